"""Multi-window attention against full, masked attention computed head by head."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from gram_hear.config import PATCHINGS
from gram_hear.nn import windowed_attention
from gram_hear.nn.windowed_attention import WindowedAttention, block_length

LISTS = [
    (200, PATCHINGS["frame"][1]),
    (100, PATCHINGS["time"][1]),
    (12, (0,)),
    (12, (12,)),
    (12, (1, 0, 1)),
    (12, (0, 3, 0, 0, 4, 3)),
    (12, (3, 3, 2, 3)),
]


def layer_and_tokens(tokens, windows, batch=2, head_width=4):
    generator = torch.Generator().manual_seed(tokens + 31 * len(windows))
    width = head_width * len(windows)
    layer = WindowedAttention(width, windows).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    given_tokens = torch.randn(batch, tokens, width, dtype=torch.float64, generator=generator)
    return layer, given_tokens.requires_grad_()


def plain_attention(layer, tokens):
    """Each head over all N x N pairs, those outside its windows masked."""
    place = torch.arange(tokens.shape[1])
    query, key, value = layer.qkv(tokens).chunk(3, dim=-1)
    size = tokens.shape[-1] // len(layer.windows)
    heads = []
    for h, window in enumerate(layer.windows):
        part = slice(h * size, (h + 1) * size)
        scores = query[..., part] @ key[..., part].transpose(1, 2) * size**-0.5
        if window:
            together = place[:, None] // window == place // window
            index = (place[:, None] - place + window - 1).clamp(0, 2 * window - 2)
            biased = scores + layer.bias_tables[str(h)][index]
            scores = biased.masked_fill(~together, float("-inf"))
        heads.append(scores.softmax(dim=-1) @ value[..., part])
    return layer.output(torch.cat(heads, dim=-1))


def assert_equals_the_reference(tokens, windows):
    layer, given_tokens = layer_and_tokens(tokens, windows)
    found, expected = layer(given_tokens), plain_attention(layer, given_tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    towards = torch.randn(found.shape, dtype=torch.float64)
    inputs = [given_tokens, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, towards),
        torch.autograd.grad(expected, inputs, towards),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)


@pytest.fixture(params=["products", "fused"])
def path(request, monkeypatch):
    """Both ways to attend, whatever the device would take."""
    monkeypatch.setattr(
        windowed_attention, "prefers_products", lambda _: request.param == "products"
    )


@pytest.mark.parametrize(("tokens", "windows"), LISTS)
def test_values_and_gradients_equal_full_masked_attention(path, tokens, windows):
    assert_equals_the_reference(tokens, windows)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12, 24]), min_size=1, max_size=6))
def test_any_list_of_windows_equals_full_masked_attention(windows):
    assert_equals_the_reference(24, tuple(windows))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 100))
def test_blocks_are_of_whole_windows_and_no_longer_than_allowed(window, count, longest):
    tokens = window * count
    block = block_length(window, tokens, longest)
    assert block % window == tokens % block == 0
    assert block <= max(window, longest)
    longer = range(block + window, longest + 1, window)
    assert all(tokens % length for length in longer)


class Batches(TorchFunctionMode):
    """Counts the matrices that each call of attention or batched product gets."""

    CALLS = (F.scaled_dot_product_attention, torch.bmm, torch.baddbmm)

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function in self.CALLS:
            query = arguments[1 if function is torch.baddbmm else 0]
            self.sizes.append(query.shape[:-2].numel())
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("patching", PATCHINGS)
def test_no_kernel_gets_more_than_65535_matrices(path, patching):
    """More crash CUDA's kernels; this is a published batch on two devices."""
    tokens, windows = {"frame": 200, "time": 100}[patching], PATCHINGS[patching][1]
    with torch.device("meta"), Batches() as batches:
        found = WindowedAttention(512, windows)(torch.empty(48 * 16, tokens, 512))
    assert found.shape == (48 * 16, tokens, 512)
    assert len(batches.sizes) >= len(windows)
    assert max(batches.sizes) <= 65535


def test_only_windowed_heads_have_bias_tables():
    layer, _ = layer_and_tokens(200, PATCHINGS["frame"][1])
    sizes = {int(head): len(table) for head, table in layer.bias_tables.items()}
    assert sizes == {0: 3, 1: 9, 2: 19, 3: 49, 4: 99, 5: 199}
