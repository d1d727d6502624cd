"""How mamba-ssm and causal-conv1d are found and called, with stand-ins that compute on the CPU.

The stand-ins have the packages' signatures, refuse what the packages' kernels refuse, and keep
what those keep for the backward pass.
"""

import copy
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F

from gram_hear.config import Mamba1Config, Mamba2Config
from gram_hear.nn import mamba_kernels
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mamba import CausalConvolution, MambaEncoder
from gram_hear.nn.mamba_kernels import (
    PLAIN,
    Kernels,
    find_kernels,
    kernel_convolution,
    kernel_selective_scan,
    kernel_ssd,
)
from gram_hear.nn.state_space import selective_scan_sequential, ssd_sequential

pytestmark = pytest.mark.slow

SSD = """
import torch
import torch.nn.functional as F

class Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, chunk_size, D, dt_bias, dt_softplus):
        with torch.enable_grad():
            inputs = [each.detach().requires_grad_() for each in (x, dt, A, B, C, D, dt_bias)]
            x, dt, A, B, C, D, dt_bias = inputs
            steps = F.softplus(dt.float() + dt_bias) if dt_softplus else dt.float() + dt_bias
            state, outputs = 0, []
            for t in range(x.shape[1]):
                inflow = (steps[:, t, :, None] * x[:, t].float())[..., None] * B[:, t, :, None, :]
                state = torch.exp(steps[:, t] * A)[..., None, None] * state + inflow
                y = (state * C[:, t, :, None, :]).sum(-1) + D[:, None] * x[:, t]
                outputs.append(y)
            y = torch.stack(outputs, dim=1).to(x.dtype)
        ctx.inputs, ctx.y = inputs, y
        kept = y.detach().clone()
        ctx.save_for_backward(kept)  # as the real one: a change of the output is an error
        return kept

    @staticmethod
    def backward(ctx, gradient):
        ctx.saved_tensors
        x, dt, A, B, C, D, dt_bias = torch.autograd.grad(ctx.y, ctx.inputs, gradient)
        return x, dt, A, B, C, None, D, dt_bias, None


def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None,
                              initial_states=None, seq_idx=None, cu_seqlens=None,
                              dt_softplus=False, dt_limit=(0.0, float("inf")),
                              return_final_states=False, return_varlen_states=False):
    batch, tokens, heads, width = x.shape
    assert dt.shape == (batch, tokens, heads)
    assert A.shape == D.shape == dt_bias.shape == (heads,)
    assert B.shape == C.shape == (batch, tokens, 1, B.shape[3])
    assert x.dtype == dt.dtype == B.dtype == C.dtype
    assert A.dtype == D.dtype == dt_bias.dtype == torch.float32
    assert D.stride(-1) == 1 and isinstance(chunk_size, int)
    assert z is initial_states is seq_idx is cu_seqlens is None
    return Scan.apply(x, dt, A, B, C, chunk_size, D, dt_bias, dt_softplus)
"""

SELECTIVE = """
import torch
import torch.nn.functional as F

def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
                      return_last_state=False):
    batch, channels, tokens = u.shape
    assert delta.shape == u.shape and z is None
    assert A.shape == (channels, B.shape[1]) and A.shape[1] <= 256
    assert B.shape == C.shape == (batch, A.shape[1], tokens)
    assert D.shape == delta_bias.shape == (channels,)
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
    assert all(each.stride(-1) == 1 or tokens == 1 for each in (u, delta, B, C))
    steps = delta.float() + delta_bias[:, None]
    if delta_softplus:
        steps = F.softplus(steps)
    state, outputs = 0, []
    for t in range(tokens):
        inflow = (steps[:, :, t] * u[:, :, t].float())[..., None] * B[:, None, :, t].float()
        state = torch.exp(steps[:, :, t, None] * A) * state + inflow
        outputs.append((state * C[:, None, :, t].float()).sum(-1) + D * u[:, :, t].float())
    return torch.stack(outputs, dim=2).to(u.dtype)
"""

CONVOLUTION = """
import torch
import torch.nn.functional as F

def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None,
                     return_final_states=False, final_states_out=None, activation=None):
    batch, channels, tokens = x.shape
    assert activation in (None, "silu", "swish")
    assert x.stride(2) == 1 or x.stride(1) == 1
    if x.stride(1) == 1 and x.stride(2) > 1:
        assert channels % 8 == x.stride(0) % 8 == x.stride(2) % 8 == x.storage_offset() % 8 == 0
    assert weight.shape == (channels, weight.shape[1]) and 2 <= weight.shape[1] <= 4
    assert bias.shape == (channels,) and bias.stride(-1) == 1
    assert x.dtype == weight.dtype == bias.dtype
    out = F.conv1d(F.pad(x, (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=channels)
    return F.silu(out) if activation else out
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that makes stand-in packages importable, and forgets what was found."""

    def forget():
        for name in list(sys.modules):
            if name.partition(".")[0] in ("mamba_ssm", "causal_conv1d"):
                monkeypatch.delitem(sys.modules, name)
        find_kernels.cache_clear()

    def put(**contents):
        for package in ("mamba_ssm", "causal_conv1d"):
            if package not in contents:
                monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
        for package, files in contents.items():
            for path, text in files.items():
                file = tmp_path / package / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        return find_kernels()

    forget()
    yield put
    forget()


MAMBA_SSM = {
    "__init__.py": "",
    "ops/__init__.py": "",
    "ops/triton/__init__.py": "",
    "ops/triton/ssd_combined.py": SSD,
    "ops/selective_scan_interface.py": SELECTIVE,
}
CAUSAL_CONV1D = {"__init__.py": CONVOLUTION}


@pytest.fixture
def kernels(install):
    """Return the kernels found with both stand-ins in place."""
    return install(mamba_ssm=MAMBA_SSM, causal_conv1d=CAUSAL_CONV1D)


# --- what is found --------------------------------------------------------------------------


def test_nothing_installed(install):
    found = install()
    assert found.description.startswith("plain PyTorch (mamba-ssm: ")
    assert "mamba_ssm" in found.description
    assert (found.ssd, found.selective_scan, found.convolution) == (None, None, None)


def test_both_installed(kernels):
    version = "mamba-ssm of unknown version on CUDA"
    assert kernels.description == f"{version}, plain PyTorch elsewhere"
    assert kernels.ssd.__name__ == "mamba_chunk_scan_combined"
    assert kernels.selective_scan.__name__ == "selective_scan_fn"
    assert kernels.convolution.__name__ == "causal_conv1d_fn"
    assert find_kernels() is kernels


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (None, "causal_conv1d"),
        ({"__init__.py": "causal_conv1d_fn = None"}, "causal_conv1d_fn is None"),
        ({"__init__.py": "raise ImportError('libcudart is missing\\nmore')"}, "libcudart"),
        ({"__init__.py": ""}, "causal_conv1d_fn"),
    ],
    ids=["missing", "none", "broken", "other"],
)
def test_mamba_ssm_without_the_convolution(install, files, reason):
    found = install(mamba_ssm=MAMBA_SSM, **({} if files is None else {"causal_conv1d": files}))
    assert found.ssd is not None
    assert found.convolution is None
    assert "on CUDA, plain PyTorch elsewhere (causal-conv1d: " in found.description
    assert reason in found.description
    assert "\n" not in found.description


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("raise ImportError('undefined symbol: _ZN3c10\\nof a long story')", "undefined symbol"),
        ("raise RuntimeError('0 active drivers')", "0 active drivers"),
        ("raise OSError", "OSError"),
        ("", "mamba_chunk_scan_combined"),
    ],
    ids=["import", "runtime", "silent", "other version"],
)
def test_mamba_ssm_that_does_not_import(install, failure, reason):
    files = MAMBA_SSM | {"ops/triton/ssd_combined.py": failure}
    found = install(mamba_ssm=files, causal_conv1d=CAUSAL_CONV1D)
    assert found.description.startswith("plain PyTorch (mamba-ssm: ")
    assert reason in found.description
    assert "\n" not in found.description
    assert (found.ssd, found.convolution) == (None, None)


def test_a_fault_of_another_kind_is_not_hidden(install):
    files = MAMBA_SSM | {"ops/triton/ssd_combined.py": "1 / 0"}
    with pytest.raises(ZeroDivisionError):
        install(mamba_ssm=files)


def test_an_encoder_shows_what_it_runs_on(kernels):
    encoder = MambaEncoder(Mamba2Config(width=16, depth=1, state=4, head_width=8))
    assert f"scan: {kernels.description}" in repr(encoder)
    assert copy.deepcopy(encoder).kernels.ssd is kernels.ssd


# --- when they serve ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "dtype", "served"),
    [
        ("cuda", torch.float32, True),
        ("cuda", torch.bfloat16, True),
        ("cuda", torch.float16, True),
        ("cuda", torch.float64, False),
        ("cpu", torch.float32, False),
        ("mps", torch.float32, False),
    ],
)
def test_kernels_serve_cuda_up_to_float32(kernels, device, dtype, served):
    assert kernels.serve_on(device, dtype) == served
    assert kernels.convolve_on(device, dtype, taps=4) == served


@pytest.mark.parametrize(("taps", "served"), [(1, False), (2, True), (4, True), (5, False)])
def test_convolution_serves_the_taps_it_knows(kernels, taps, served):
    assert kernels.convolve_on("cuda", torch.float32, taps) == served


def test_tensors_on_the_cpu_take_the_plain_path(kernels):
    assert not kernels.serve(torch.zeros(1))
    assert not kernels.serve(torch.zeros(1, dtype=torch.float64))


def test_cuda_without_kernels_warns_once_and_says_what_to_do():
    found = Kernels("plain PyTorch (mamba-ssm: a reason of this test)")
    mamba_kernels._warn_of_plain_path.cache_clear()
    with pytest.warns(UserWarning, match="a reason of this test.*same.*pip install"):
        assert not found.serve_on("cuda", torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not found.serve_on("cuda", torch.bfloat16)
        assert not found.convolve_on("cuda", torch.float32, taps=4)


def test_elsewhere_nobody_is_warned():
    mamba_kernels._warn_of_plain_path.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not PLAIN.serve(torch.zeros(1))
        assert not PLAIN.serve_on("cuda", torch.float64)


# --- how they are called --------------------------------------------------------------------


def assert_near(found, expected, dtype):
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance * (1 + scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 30])
def test_kernel_ssd_equals_the_plain_scan(kernels, noise, dtype, tokens):
    xbc = noise(2, tokens, 3 * 8 + 2 * 5).to(dtype)  # slices, as the mixer gives them
    x, b, c = xbc.split([24, 5, 5], dim=-1)
    x = x.unflatten(-1, (3, 8))
    dt, bias, d = noise(2, tokens, 3, seed=1).to(dtype), noise(3, seed=2), noise(3, seed=3)
    a = -noise(3, seed=4).exp()
    found = kernel_ssd(kernels, x, dt, bias, a, b, c, d)
    assert found.dtype == dtype
    x, dt, b, c = (each.float() for each in (x, dt, b, c))
    assert_near(found, ssd_sequential(x, F.softplus(dt + bias), a, b, c, d), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 30])
def test_kernel_selective_scan_equals_the_plain_scan(kernels, noise, dtype, tokens):
    x, dt = noise(2, 2, tokens, 12).to(dtype)
    b, c = noise(2, tokens, 9, seed=1).to(dtype)[..., 1:].split([4, 4], dim=-1)
    bias, d, a = noise(12, seed=2), noise(12, seed=3), -noise(12, 4, seed=4).exp()
    found = kernel_selective_scan(kernels, x, dt, bias, a, b, c, d)
    assert found.dtype == dtype
    x, dt, b, c = (each.float() for each in (x, dt, b, c))
    assert_near(found, selective_scan_sequential(x, F.softplus(dt + bias), a, b, c, d), dtype)


@pytest.mark.parametrize(
    ("row", "start", "channels"),
    [(48, 8, 16), (48, 4, 16), (50, 8, 16), (48, 8, 12), (16, 0, 16), (13, 1, 12)],
    ids=["aligned", "shifted", "odd rows", "odd channels", "whole", "all odd"],
)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("tokens", [1, 3, 20])
@pytest.mark.parametrize("taps", [2, 4])
def test_kernel_convolution_takes_any_slice(
    kernels, noise, row, start, channels, batch, tokens, taps
):
    part = noise(batch, tokens, row)[..., start : start + channels]
    convolution = CausalConvolution(channels, taps)
    convolution.reset(torch.Generator().manual_seed(0))
    found = kernel_convolution(kernels, part, convolution.weight, convolution.bias)
    torch.testing.assert_close(found, convolution(part), rtol=0, atol=1e-6)


ENCODERS = {
    "mamba2": Mamba2Config(width=16, depth=2, state=4, head_width=8),  # in_proj rows of 76
    "mamba2 aligned": Mamba2Config(width=64, depth=2, state=8, head_width=16),  # of 280
    "mamba1": Mamba1Config(width=16, depth=2, state=4, step_rank=2),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ENCODERS)
def test_encoder_on_kernels_equals_the_plain_one_forward_and_backward(
    kernels, monkeypatch, noise, kind, weights, autocast
):
    config = ENCODERS[kind]
    encoder = MambaEncoder(config)
    initialise(encoder, 0)
    tokens, factors = noise(2, 21, config.width), noise(2, 21, config.width, seed=1)
    plain = encoder(tokens)
    (plain * factors).sum().backward()
    expected = {name: each.grad.clone() for name, each in encoder.named_parameters()}
    encoder.zero_grad()
    monkeypatch.setattr(Kernels, "serve_on", lambda self, device, dtype: True)
    calls = []
    for module in encoder.modules():
        if isinstance(module, CausalConvolution):
            module.register_forward_hook(lambda *_: calls.append("convolution"))
    encoder.to(weights)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = encoder(tokens.to(weights))
    (found.float() * factors).sum().backward()
    assert len(calls) == 2
    exact = weights == torch.float32 and not autocast
    similarity = 1 - 1e-9 if exact else 0.99
    assert F.cosine_similarity(found.flatten().double(), plain.flatten().double(), 0) > similarity
    for name, each in encoder.named_parameters():
        assert each.grad.isfinite().all(), name
        if exact:
            scale = 1 + expected[name].abs().max().item()
            torch.testing.assert_close(each.grad, expected[name], rtol=0, atol=2e-5 * scale)
