"""The CUDA kernels of mamba-ssm and causal-conv1d, where they are installed.

The extra ``gram-hear[mamba]`` brings them. Without them the plain PyTorch of
:mod:`gram_hear.nn.state_space` computes the same on every device.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from gram_hear.extras import install_command

KERNEL_TYPES = (torch.float32, torch.float16, torch.bfloat16)
KERNEL_CHUNK = 256  # tokens; mamba-ssm's own default
KERNEL_STATE = 256  # the largest of mamba-ssm's Mamba-1 scan
KERNEL_TAPS = (2, 3, 4)  # of the convolutions that causal-conv1d knows
ALIGNMENT = 8  # channels: causal-conv1d wants channels-last input to start and step in multiples


@dataclass(frozen=True)
class Kernels:
    """The functions of mamba-ssm that a Mamba stack runs on, or None for plain PyTorch.

    ``description`` says which are used, and why others are missing.
    """

    description: str
    ssd: Callable | None = None
    selective_scan: Callable | None = None
    convolution: Callable | None = None

    def serve(self, tokens: Tensor) -> bool:
        """Whether the scans take this tensor. Warns once where they are missing on CUDA."""
        return self.serve_on(tokens.device.type, tokens.dtype)

    def serve_on(self, device: str, dtype: torch.dtype) -> bool:
        """Whether the scans take tensors of a type on a type of device; warns as :meth:`serve`."""
        if device != "cuda" or dtype not in KERNEL_TYPES:
            return False
        if self.ssd is None and not torch.compiler.is_compiling():
            _warn_of_plain_path(self.description)
        return self.ssd is not None

    def convolve_on(self, device: str, dtype: torch.dtype, taps: int) -> bool:
        """Whether the convolution takes this number of taps, type and type of device."""
        return self.convolution is not None and taps in KERNEL_TAPS and self.serve_on(device, dtype)


PLAIN = Kernels("plain PyTorch")


@cache
def find_kernels() -> Kernels:
    """Import the kernels, once; the description names those that cannot be imported, and why."""
    try:
        combined = import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
        interface = import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return Kernels(f"plain PyTorch (mamba-ssm: {_first_line(error)})")
    name = f"mamba-ssm {_version('mamba-ssm')} on CUDA, plain PyTorch elsewhere"
    try:
        convolution = import_module("causal_conv1d").causal_conv1d_fn
        if convolution is None:
            raise ImportError("causal_conv1d_fn is None")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        name += f" (causal-conv1d: {_first_line(error)})"
        return Kernels(name, combined, interface)
    return Kernels(name, combined, interface, convolution)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # on the path, but not installed
        return "of unknown version"


@cache
def _warn_of_plain_path(description: str) -> None:
    """Warn in the first call alone."""
    warnings.warn(
        f"GRAM-M runs on CUDA without mamba-ssm's kernels: {description}. The result is "
        f"the same up to rounding, and slower. They come with {install_command('mamba')}.",
        stacklevel=2,
    )


def kernel_ssd(
    kernels: Kernels,
    x: Tensor,
    dt: Tensor,
    bias: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
) -> Tensor:
    """Run mamba-ssm's Mamba-2 scan; shapes as for ``state_space.ssd``, dt before its softplus."""
    assert kernels.ssd is not None
    return kernels.ssd(
        x,
        dt,
        a,
        b.unsqueeze(2),
        c.unsqueeze(2),
        chunk_size=KERNEL_CHUNK,
        D=d,
        dt_bias=bias,
        dt_softplus=True,
    )


def kernel_selective_scan(
    kernels: Kernels,
    x: Tensor,
    dt: Tensor,
    bias: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
) -> Tensor:
    """Run mamba-ssm's Mamba-1 scan; shapes as for ``state_space.selective_scan``, dt likewise."""
    assert kernels.selective_scan is not None
    x, dt, b, c = (each.transpose(1, 2).contiguous() for each in (x, dt, b, c))
    y = kernels.selective_scan(x, dt, a, b, c, D=d, delta_bias=bias, delta_softplus=True)
    return y.transpose(1, 2)


def kernel_convolution(kernels: Kernels, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Run causal-conv1d with SiLU on (batch, tokens, channels), taps in weight (channels, 1, k)."""
    assert kernels.convolution is not None
    channels_first, contiguous = tokens.transpose(1, 2), torch.contiguous_format
    steps = (tokens.stride(0), tokens.stride(1), tokens.storage_offset())
    if tokens.shape[2] % ALIGNMENT:
        channels_first = channels_first.clone(memory_format=contiguous)
    elif any(step % ALIGNMENT for step in steps):
        channels_first = tokens.clone(memory_format=contiguous).transpose(1, 2)
    weight, bias = weight.squeeze(1).to(tokens.dtype), bias.to(tokens.dtype)
    return kernels.convolution(channels_first, weight, bias, activation="silu").transpose(1, 2)
