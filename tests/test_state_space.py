"""The fast scans against their token-by-token references: values, gradients and extremes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_hear.nn.state_space import (
    selective_scan,
    selective_scan_sequential,
    ssd,
    ssd_sequential,
)

NAMES = ("x", "dt", "a", "b", "c", "d")
SCANS = pytest.mark.parametrize("kind", ["mamba2", "mamba1"])
PAIRS = {
    "mamba2": (ssd, ssd_sequential),
    "mamba1": (selective_scan, selective_scan_sequential),
}


def draw_inputs(kind, batch=2, tokens=50, heads=3, width=4, state=5, seed=0, dtype=torch.float64):
    """Inputs of either scan; Mamba-1 has heads * width channels."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    rows = (heads,) if kind == "mamba2" else (heads * width,)
    x = normal(batch, tokens, *((heads, width) if kind == "mamba2" else rows))
    dt = F.softplus(normal(batch, tokens, *rows) * 2 - 2)
    a = -normal(*(rows if kind == "mamba2" else (*rows, state))).exp()
    b, c = normal(2, batch, tokens, state)
    return x, dt, a, b, c, normal(*rows)


def with_gradients(scan, inputs, **options):
    """The output, and the gradients of all inputs under a fixed random weighting of it."""
    inputs = [each.detach().clone().requires_grad_() for each in inputs]
    y = scan(*inputs, **options)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    gradients = torch.autograd.grad((y * weights.to(y.dtype)).sum(), inputs)
    return y.detach(), dict(zip(NAMES, gradients, strict=True))


def assert_same(kind, inputs, tolerance, **options):
    """Compare values and gradients, each on the scale of its largest entry."""
    fast, slow = PAIRS[kind]
    found, found_gradients = with_gradients(fast, inputs, **options)
    expected, expected_gradients = with_gradients(slow, inputs)
    pairs = {"y": (found, expected)}
    pairs |= {name: (found_gradients[name], expected_gradients[name]) for name in NAMES}
    for name, (one, other) in pairs.items():
        assert one.shape == other.shape, name
        scale = max(1.0, other.abs().max().item())
        difference = (one - other).abs().max().item()
        assert difference <= tolerance * scale, (name, difference, scale)


# --- equal to the reference -----------------------------------------------------------------


@pytest.mark.slow
@SCANS
@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 300),
    heads=st.integers(1, 4),
    width=st.integers(1, 8),
    state=st.integers(1, 9),
    chunk=st.integers(1, 320),
    seed=st.integers(0, 2**31),
)
def test_scan_equals_the_sequential_reference(
    kind, batch, tokens, heads, width, state, chunk, seed
):
    inputs = draw_inputs(kind, batch, tokens, heads, width, state, seed)
    assert_same(kind, inputs, 1e-9, chunk=chunk)


@SCANS
@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 201])
def test_scan_with_its_own_chunk_equals_the_reference(kind, tokens):
    assert_same(kind, draw_inputs(kind, tokens=tokens), 1e-9)


@SCANS
def test_scan_in_float32_is_near_the_float64_reference(kind):
    inputs = draw_inputs(kind, tokens=201, heads=2, width=16, state=16)
    expected, expected_gradients = with_gradients(PAIRS[kind][1], inputs)
    found, gradients = with_gradients(PAIRS[kind][0], [each.float() for each in inputs])
    pairs = [(found, expected), *((gradients[name], expected_gradients[name]) for name in NAMES)]
    for name, (one, other) in zip(("y", *NAMES), pairs, strict=True):
        assert one.dtype == torch.float32
        error = (one.double() - other).abs().max() / other.abs().max()
        assert error < 2e-5, (name, error)


@SCANS
def test_memory_reaches_far_back_where_nothing_decays(kind):
    x, dt, a, b, c, d = draw_inputs(kind, batch=1, tokens=500)
    a = a * 1e-6
    assert_same(kind, (x, dt, a, b, c, d), 1e-9, chunk=64)
    changed = x.clone()
    changed[:, 0] += 1
    y, other = (PAIRS[kind][0](each, dt, a, b, c, d) for each in (x, changed))
    assert (y - other)[:, -1].abs().max() > 1e-3  # 499 tokens later, and 7 chunks or more


# --- what a token may see -------------------------------------------------------------------


# --- extremes -------------------------------------------------------------------------------


STEPS = {
    "none": lambda dt: F.softplus(torch.full_like(dt, -200.0)),  # 0 in float32
    "tiny": lambda dt: F.softplus(torch.full_like(dt, -60.0)),
    "huge": lambda dt: F.softplus(torch.full_like(dt, 1000.0)),
    "mixed": lambda dt: F.softplus(torch.where(dt > dt.median(), 300.0, -300.0).to(dt.dtype)),
}


@SCANS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", STEPS)
def test_extreme_steps_stay_finite_and_right(kind, step, dtype):
    x, dt, a, b, c, d = draw_inputs(kind, tokens=130, dtype=dtype)
    inputs = (x, STEPS[step](dt), a, b, c, d)
    found, gradients = with_gradients(PAIRS[kind][0], inputs, chunk=64)
    expected, _ = with_gradients(PAIRS[kind][1], inputs)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(
        found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()
    )
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name


@SCANS
@pytest.mark.parametrize("step", ["none", "tiny", "huge", "mixed"])
def test_gradients_through_softplus_at_extremes(kind, step):
    """A dt below the smallest step has no gradient of its own, and softplus had none to pass."""
    x, dt, a, b, c, d = draw_inputs(kind, tokens=70)
    raw = STEPS[step](dt).expm1().log().nan_to_num(posinf=1000.0, neginf=-200.0)
    inputs = (x, raw, a, b, c, d)

    def through(scan):
        return lambda x, raw, *rest: scan(x, F.softplus(raw), *rest)

    found, gradients = with_gradients(through(PAIRS[kind][0]), inputs)
    expected, expected_gradients = with_gradients(through(PAIRS[kind][1]), inputs)
    largest = max(each.abs().max().item() for each in (expected, *expected_gradients.values()))
    for one, other in [(found, expected), *((gradients[n], expected_gradients[n]) for n in NAMES)]:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10 * (1 + largest))


# --- the backward pass of the Mamba-1 scan --------------------------------------------------


def test_recomputing_the_states_gives_the_same_values_and_keeps_less():
    inputs = draw_inputs("mamba1", batch=1, tokens=256, width=8, state=16)
    with torch.no_grad():
        expected = selective_scan(*inputs)
    kept = []
    leaves = [each.requires_grad_() for each in inputs]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        found = selective_scan(*leaves)
    assert torch.equal(found, expected)
    states = 256 * leaves[2].numel()  # one state for each token
    assert sum(kept) < states / 2


@pytest.mark.parametrize("large", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("chunk", [32, 128, 256])
def test_a_large_step_does_not_blur_the_small_ones_after_it(large, chunk):
    x, _, _, b, c, d = draw_inputs("mamba2", tokens=201, heads=8, width=4, state=16)
    a = -torch.linspace(1, 16, 8, dtype=torch.float64)
    chosen = torch.rand(2, 201, 8, generator=torch.Generator().manual_seed(1)) > 0.9
    dt = torch.where(chosen, large, 0.01).double()
    expected = ssd_sequential(x, dt, a, b, c, d)
    found = ssd(*(each.float() for each in (x, dt, a, b, c, d)), chunk=chunk)
    scale = expected.abs().max()
    assert (found - expected).abs().max() <= 2e-6 * scale


@pytest.mark.parametrize("rate", [1e3, 1e30, 3e38, float("inf")])
def test_decays_beyond_all_measure_leave_only_the_token_itself(rate):
    x, dt, a, b, c, d = (each.float() for each in draw_inputs("mamba2"))
    found = ssd(x, dt + 1, torch.full_like(a, -rate), b, c, d)
    own = (b * c).sum(-1)[..., None, None] * (dt + 1)[..., None] * x
    torch.testing.assert_close(found, own + d[:, None] * x)
