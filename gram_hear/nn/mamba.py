"""GRAM-M's encoder: a pre-norm residual stack with Mamba-2 or Mamba-1 mixers.

The tensors of a mixer have their names of mamba-ssm.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gram_hear.config import Mamba1Config, Mamba2Config
from gram_hear.nn.mamba_kernels import (
    KERNEL_STATE,
    PLAIN,
    Kernels,
    find_kernels,
    kernel_convolution,
    kernel_selective_scan,
    kernel_ssd,
)
from gram_hear.nn.state_space import selective_scan, ssd

EPSILON = 1e-5  # of every RMSNorm
FIRST_STEPS = (1e-3, 1e-1)  # range of dt in a new model
FIRST_DECAYS = (1.0, 16.0)  # range of -A in a new Mamba-2 mixer


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 at least, returned in the weight's type."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., width) -> the same shape."""
        tokens = at_least_float32(tokens)
        length = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)  # makes no large tensor
        scale = torch.rsqrt(length.square() / tokens.shape[-1] + EPSILON)
        return (tokens * scale).mul_(self.weight).to(self.weight.dtype)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return float64 as it is, and anything else as float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def decays(a_log: Tensor) -> Tensor:
    """Return the negative decay rates A of their logarithms, in float32 at least."""
    return -at_least_float32(a_log).exp()


class CausalConvolution(nn.Module):
    """Depthwise convolution over the tokens so far, with bias, then SiLU."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, taps))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, tokens: Tensor, kernels: Kernels = PLAIN) -> Tensor:
        """(batch, tokens, channels) -> the same shape."""
        if kernels.convolve_on(tokens.device.type, tokens.dtype, self.weight.shape[-1]):
            return kernel_convolution(kernels, tokens, self.weight, self.bias)
        *earlier, now = self.weight.squeeze(1).to(tokens.dtype).t().contiguous()
        mixed = torch.addcmul(self.bias.to(tokens.dtype), tokens, now)
        for delay, tap in enumerate(reversed(earlier), start=1):
            mixed[:, delay:].addcmul_(tokens[:, :-delay], tap)
        return F.silu(mixed, inplace=True)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw weight and bias as PyTorch's own convolutions do."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        self.weight.uniform_(-bound, bound, generator=generator)
        self.bias.uniform_(-bound, bound, generator=generator)


def first_step_bias(count: int, generator: torch.Generator) -> Tensor:
    """Draw biases whose softplus lies log-uniform in :data:`FIRST_STEPS`, (count,)."""
    low, high = (math.log(step) for step in FIRST_STEPS)
    steps = torch.empty(count).uniform_(low, high, generator=generator).exp()
    return steps + torch.log(-torch.expm1(-steps))


class Mamba2Mixer(nn.Module):
    """Mamba-2: each head has one decay; ``B`` and ``C`` are shared by all heads."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        inner, state, heads = config.inner_width, config.state, config.heads
        self.sizes = [inner, inner + 2 * state, heads]
        self.state = state
        self.in_proj = nn.Linear(config.width, sum(self.sizes), bias=False)
        self.conv1d = CausalConvolution(inner + 2 * state, config.convolution)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm = RMSNorm(inner)
        self.out_proj = nn.Linear(inner, config.width, bias=False)

    def forward(self, tokens: Tensor, kernels: Kernels = PLAIN) -> Tensor:
        """(batch, tokens, width) -> the same shape."""
        inner, _, heads = self.sizes
        z, xbc, dt = self.in_proj(tokens).split(self.sizes, dim=-1)
        x, b, c = self.conv1d(xbc, kernels).split([inner, self.state, self.state], dim=-1)
        x = x.unflatten(-1, (heads, -1))
        a, d, bias = decays(self.A_log), at_least_float32(self.D), at_least_float32(self.dt_bias)
        if kernels.serve(x):
            y = kernel_ssd(kernels, x, dt, bias, a, b, c, d)
        else:
            x, dt, b, c = (at_least_float32(each) for each in (x, dt, b, c))
            with torch.autocast(tokens.device.type, enabled=False):
                y = ssd(x, F.softplus(dt + bias), a, b, c, d)
        gated = F.silu(at_least_float32(z)).mul_(y.flatten(2))  # not into y: the kernel keeps it
        return self.out_proj(self.norm(gated))

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw steps, decays and the skip as mamba-ssm does."""
        self.dt_bias.copy_(first_step_bias(len(self.dt_bias), generator))
        self.A_log.uniform_(*FIRST_DECAYS, generator=generator).log_()
        self.D.fill_(1.0)


class Mamba1Mixer(nn.Module):
    """Mamba-1: each channel has its own row of decays; the step comes from a low rank."""

    def __init__(self, config: Mamba1Config) -> None:
        super().__init__()
        inner, state = config.inner_width, config.state
        self.sizes = [config.step_rank, state, state]
        self.in_proj = nn.Linear(config.width, 2 * inner, bias=False)
        self.conv1d = CausalConvolution(inner, config.convolution)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(config.step_rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, state))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, config.width, bias=False)

    def forward(self, tokens: Tensor, kernels: Kernels = PLAIN) -> Tensor:
        """(batch, tokens, width) -> the same shape."""
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        x = self.conv1d(x, kernels)
        step, b, c = self.x_proj(x).split(self.sizes, dim=-1)
        dt = F.linear(step, self.dt_proj.weight)
        a, d, bias = (
            decays(self.A_log),
            at_least_float32(self.D),
            at_least_float32(self.dt_proj.bias),
        )
        if a.shape[1] <= KERNEL_STATE and kernels.serve(x):
            y = kernel_selective_scan(kernels, x, dt, bias, a, b, c, d)
        else:
            x, dt, b, c = (at_least_float32(each) for each in (x, dt, b, c))
            with torch.autocast(tokens.device.type, enabled=False):
                y = selective_scan(x, F.softplus(dt + bias), a, b, c, d)
        gated = F.silu(at_least_float32(z)).mul_(y)
        return self.out_proj(gated.to(self.out_proj.weight.dtype))

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw steps, decays and the skip as mamba-ssm does."""
        inner, state = self.A_log.shape
        self.dt_proj.bias.copy_(first_step_bias(inner, generator))
        self.A_log.copy_(torch.arange(1, state + 1).log().expand(inner, -1))
        self.D.fill_(1.0)


class MambaBlock(nn.Module):
    """A norm and a mixer, without the residual, which the encoder adds."""

    def __init__(self, config: Mamba2Config | Mamba1Config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.width)
        self.mixer = (
            Mamba2Mixer(config) if isinstance(config, Mamba2Config) else Mamba1Mixer(config)
        )

    def forward(self, residual: Tensor, kernels: Kernels = PLAIN) -> Tensor:
        """(batch, tokens, width) -> what the block adds to the residual, of the same shape."""
        return self.mixer(self.norm(residual), kernels)


class MambaEncoder(nn.Module):
    """GRAM-M's encoder: blocks around a residual in float32, and a final RMSNorm, eps 1e-5.

    It is causal: a token sees itself and those before it. The kernels are chosen here, once.
    """

    def __init__(self, config: Mamba2Config | Mamba1Config) -> None:
        super().__init__()
        self.kernels = find_kernels()
        self.blocks = nn.ModuleList(MambaBlock(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)

    def extra_repr(self) -> str:
        """Show in ``repr(model)`` what the scans run on."""
        return f"scan: {self.kernels.description}"

    def forward(self, tokens: Tensor, layer: int | None = None) -> Tensor:
        """(batch, tokens, width) -> the same shape.

        Args:
            tokens: embedded patches, the CLS token first.
            layer: the number of blocks to apply before the final norm; None is all of them.
        """
        residual = at_least_float32(tokens)
        for block in self.blocks[:layer]:
            residual = residual + block(residual, self.kernels)
        return self.norm(residual)
