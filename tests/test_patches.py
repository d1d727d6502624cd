"""Patches, positions and the normalisation of windows."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import gram_hear
from gram_hear.config import PATCHINGS, named_config
from gram_hear.frontend import FrontEnd
from gram_hear.hear import pool
from gram_hear.nn.initialise import initialise
from gram_hear.nn.patches import (
    PatchEmbedding,
    normalise_windows,
    patchify,
    position_table,
    sincos_positions,
    take_tokens,
)

EACH_PATCHING = pytest.mark.parametrize("patching", ["frame", "time"])


def embedding(config, seed=0):
    module = PatchEmbedding(config)
    initialise(module, seed)
    torch.nn.init.normal_(module.bias, generator=torch.Generator().manual_seed(seed + 1))
    return module


# --- patches --------------------------------------------------------------------------------


@EACH_PATCHING
def test_patchify_is_frequency_major_with_values_channel_mel_frame(noise, patching):
    patch, _ = PATCHINGS[patching]
    windows = noise(2, 3, 200, 128)
    found = patchify(windows, patch)
    n_frequency, n_time = 128 // patch.mels, 200 // patch.frames
    assert found.shape == (2, n_frequency * n_time, 3 * patch.mels * patch.frames)
    for f in range(n_frequency):
        for t in range(n_time):
            frames = slice(t * patch.frames, (t + 1) * patch.frames)
            mels = slice(f * patch.mels, (f + 1) * patch.mels)
            values = windows[:, :, frames, mels].transpose(2, 3).reshape(2, -1)
            assert torch.equal(found[:, f * n_time + t], values)


@EACH_PATCHING
@pytest.mark.parametrize("channels", [1, 7])
def test_embedding_is_the_convolution_with_the_same_weight(make_config, noise, patching, channels):
    config = make_config(channels, patching)
    module = embedding(config).double()  # in float32 two orders of summation differ by 1e-5
    windows = noise(2, channels, 200, 128).double()
    size = (config.patch.mels, config.patch.frames)
    grid = F.conv2d(windows.transpose(2, 3), module.weight, module.bias, stride=size)
    expected = grid.flatten(2).transpose(1, 2) + module.positions[:, 1:]
    found = module(patchify(windows, config.patch))
    torch.testing.assert_close(found[:, 1:], expected, rtol=0, atol=1e-10)


def test_cls_token_comes_first_without_position(make_config, noise):
    config = make_config(2)
    module = embedding(config)
    found = module(noise(3, config.tokens, config.patch_values))
    assert found.shape == (3, 1 + config.tokens, 64)
    assert torch.equal(found[:, :1], module.cls_token.expand(3, -1, -1))


def test_visible_tokens_are_embedded_as_among_all(make_config, noise):
    config = make_config(2)
    module = embedding(config)
    patches = noise(2, config.tokens, config.patch_values)
    visible = torch.tensor([[0, 7, 199], [3, 4, 120]])
    found = module(patches, visible)
    expected = take_tokens(module(patches)[:, 1:], visible)
    torch.testing.assert_close(found[:, 1:], expected, rtol=0, atol=1e-5)
    assert torch.equal(found[:, 0], module(patches)[:, 0])


# --- positions ------------------------------------------------------------------------------


def plain_positions(width, n_frequency, n_time):
    quarter = width // 4
    rows = []
    for f in range(n_frequency):
        for t in range(n_time):
            angles = [[i / 10000 ** (k / quarter) for k in range(quarter)] for i in (t, f)]
            rows.append([wave(a) for half in angles for wave in (math.sin, math.cos) for a in half])
    return torch.tensor(rows, dtype=torch.float64).float()


@pytest.mark.parametrize("size", [(64, 8, 25), (768, 1, 100), (48, 3, 5)])
def test_positions_equal_the_plain_reference(size):
    torch.testing.assert_close(sincos_positions(*size), plain_positions(*size), rtol=0, atol=1e-7)


@pytest.mark.parametrize("channels", [2, 7])
def test_positions_are_those_stored_in_the_authors_checkpoints(golden_path, channels):
    stored = load_file(golden_path(f"gramt_frame_{channels}ch.safetensors"))
    config = named_config("base", channels)
    for name, cls in [("encoder.pos_embedding", True), ("decoder_pos_embed", False)]:
        table = position_table(stored[name].shape[-1], config, cls)
        torch.testing.assert_close(table, stored[name], rtol=0, atol=1e-7)


def test_cls_row_of_positions_is_zero(make_config):
    table = position_table(64, make_config(2, "time"), cls=True)
    assert table.shape == (1, 101, 64)
    assert table[:, 0].eq(0).all()
    assert torch.equal(table[:, 1:], position_table(64, make_config(2, "time"), cls=False))


# --- normalisation --------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [10.0, 0.01])
def test_normalisation_is_joint_with_biased_variance(noise, scale):
    windows = scale * noise(3, 7, 200, 128) - 8
    axes = (1, 2, 3)
    exact = windows.double().numpy()
    mean, variance = exact.mean(axes, keepdims=True), exact.var(axes, keepdims=True)
    expected = (exact - mean) / np.sqrt(variance + 1e-5)
    found = normalise_windows(windows).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 / min(scale, 1) + 1e-5)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("floor", [1.1920929e-07, 1e-5])
def test_silence_becomes_exactly_zero(make_config, channels, floor):
    config = make_config(channels)
    front_end = FrontEnd(type(config.front_end)(config.front_end.layout, log_floor=floor))
    features = front_end(torch.zeros(2, channels, 199 * 320))
    assert normalise_windows(features).eq(0).all()


def test_nearly_constant_window_is_golden(golden, golden_path):
    stored = golden("gramt_frame_2ch.npz")
    windows = torch.from_numpy(stored["lowvar_n_int8"].astype(np.float32)) / 2**15 + 3.0
    corner = normalise_windows(windows)[0, :, :8, :8].transpose(1, 2)
    np.testing.assert_allclose(corner.numpy(), stored["lowvar_norm_corner"], rtol=0, atol=1e-4)
    model = gram_hear.load_model(golden_path("gramt_frame_2ch.safetensors"), heads=4)
    with torch.no_grad():
        tokens = model.gram(windows)
    for strategy in ("mean", "cls"):
        found = pool(tokens, strategy, model.config, per_window=True)[:, 0]
        np.testing.assert_allclose(found, stored[f"lowvar_rep_{strategy}"], rtol=0, atol=1e-4)
