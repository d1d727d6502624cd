"""The Transformer against a float64 reference written out head by head."""

import math

import numpy as np
import pytest
import torch

from gram_hear.config import TransformerConfig
from gram_hear.nn.transformer import Attention, Mlp, TransformerBlock, TransformerEncoder

CONFIG = TransformerConfig(width=24, depth=3, heads=4, mlp_width=60)


@pytest.fixture
def random():
    """Return a function that fills a module with float64 noise, so that no value is trivial."""

    def fill(module, seed=0):
        generator = torch.Generator().manual_seed(seed)
        module.double()
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        return module

    return fill


def array(tensor):
    return tensor.detach().numpy()


def plain_linear(linear, tokens):
    return np.einsum("...i,oi->...o", tokens, array(linear.weight)) + array(linear.bias)


def plain_norm(norm, tokens, epsilon):
    centred = tokens - tokens.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return centred / deviation * array(norm.weight) + array(norm.bias)


def plain_attention(attention, tokens, heads):
    query, key, value = np.split(plain_linear(attention.qkv, tokens), 3, axis=-1)
    size = tokens.shape[-1] // heads
    mixed = np.zeros_like(tokens)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = np.einsum("bid,bjd->bij", query[..., part], key[..., part]) / math.sqrt(size)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed[..., part] = np.einsum("bij,bjd->bid", weights, value[..., part])
    return plain_linear(attention.output, mixed)


def plain_mlp(mlp, tokens):
    hidden = plain_linear(mlp.expand, tokens)
    gelu = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return plain_linear(mlp.reduce, gelu)


def plain_block(block, tokens, heads, epsilon):
    attended = plain_norm(block.norm1, tokens, epsilon)
    tokens = tokens + plain_attention(block.attention, attended, heads)
    return tokens + plain_mlp(block.mlp, plain_norm(block.norm2, tokens, epsilon))


def assert_near(found, expected):
    np.testing.assert_allclose(array(found), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("heads", [1, 3, 6])
def test_attention_equals_the_plain_reference(noise, random, heads):
    attention = random(Attention(24, heads))
    tokens = noise(2, 7, 24).double()
    assert_near(attention(tokens), plain_attention(attention, array(tokens), heads))


def test_mlp_has_the_exact_gelu(noise, random):
    mlp = random(Mlp(16, 40))
    tokens = 3 * noise(2, 5, 16).double()
    assert_near(mlp(tokens), plain_mlp(mlp, array(tokens)))


@pytest.mark.parametrize("epsilon", [1e-5, 1e-6])
@pytest.mark.parametrize("scale", [1.0, 1e-3])  # 1e-3: the variance is near the epsilons
def test_block_equals_the_plain_reference(noise, random, epsilon, scale):
    block = random(TransformerBlock(Attention(24, 4), 24, 60, epsilon))
    tokens = scale * noise(2, 7, 24).double()
    assert_near(block(tokens), plain_block(block, array(tokens), 4, epsilon))


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_encoder_is_blocks_then_norm_with_epsilon_1e_6(noise, random, scale):
    encoder = random(TransformerEncoder(CONFIG))
    tokens = scale * noise(2, 7, 24).double()
    expected = array(tokens)
    for block in encoder.blocks:
        expected = plain_block(block, expected, 4, 1e-6)
    assert_near(encoder(tokens), plain_norm(encoder.norm, expected, 1e-6))


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_layer_k_is_k_blocks_then_the_final_norm(noise, random, layer):
    encoder = random(TransformerEncoder(CONFIG))
    tokens = noise(2, 7, 24).double()
    expected = tokens
    for block in encoder.blocks[:layer]:
        expected = block(expected)
    assert torch.equal(encoder(tokens, layer), encoder.norm(expected))
    assert torch.equal(encoder(tokens), encoder(tokens, 3))
