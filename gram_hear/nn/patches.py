"""Feature windows to tokens: normalisation, patches, positions and the CLS token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gram_hear.config import ModelConfig, PatchConfig


def normalise_windows(windows: Tensor) -> Tensor:
    """Normalise each window over channel, frame and mel jointly (biased variance, eps 1e-5).

    Since the channels are normalised together, the level difference between the ears is kept and
    the absolute level is not. Silence becomes exactly 0. The result is also the target of the
    reconstruction.

    Args:
        windows: (windows, channels, frames, mels).

    Returns:
        The same shape.
    """
    return F.layer_norm(windows, windows.shape[1:], eps=1e-5)


def patchify(windows: Tensor, patch: PatchConfig) -> Tensor:
    """Cut windows into patches.

    Args:
        windows: (windows, channels, frames, mels).
        patch: the size of a patch.

    Returns:
        (windows, tokens, values). Tokens are frequency-major (f * time_patches + t); the values of
        a token are in the order (channel, mel, frame).
    """
    grid = windows.unflatten(3, (-1, patch.mels)).unflatten(2, (-1, patch.frames))
    # (windows, channels, t, frames, f, mels) -> (windows, f, t, channels, mels, frames)
    return grid.permute(0, 4, 2, 1, 5, 3).flatten(1, 2).flatten(2)


def sincos_positions(width: int, frequency_patches: int, time_patches: int) -> Tensor:
    """Return fixed 2-D positions, (tokens, width) float32 computed in float64.

    The first half of the width encodes the time index and the second the frequency index, each
    as [sin, cos] with omega = 1 / 10000^(k / (width / 4)).
    """
    quarter = width // 4
    omega = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)

    def encode(index: Tensor) -> Tensor:
        angle = index.double()[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    frequency, time = torch.meshgrid(
        torch.arange(frequency_patches), torch.arange(time_patches), indexing="ij"
    )
    return torch.cat([encode(time.flatten()), encode(frequency.flatten())], dim=1).float()


def position_table(width: int, config: ModelConfig, cls: bool) -> Tensor:
    """Return the positions of a window's tokens, (1, tokens (+ 1), width); the CLS row is 0."""
    with torch.device("cpu"):  # on meta, PyTorch would import its compiler for these few numbers
        positions = sincos_positions(width, config.frequency_patches, config.time_patches)
    return F.pad(positions, (0, 0, 1 if cls else 0, 0))[None]


class PatchEmbedding(nn.Module):
    """Linear patch embedding with positions and the CLS token first."""

    positions: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, channels = config.encoder.width, config.front_end.feature_channels
        self.patch = config.patch
        self.weight = nn.Parameter(torch.empty(width, channels, self.patch.mels, self.patch.frames))
        self.bias = nn.Parameter(torch.empty(width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("positions", position_table(width, config, cls=True))

    def forward(self, patches: Tensor, visible: Tensor | None = None) -> Tensor:
        """Embed patches.

        Args:
            patches: (windows, tokens, values) of :func:`patchify`.
            visible: (windows, kept) indices of the only tokens to embed, or None for all.

        Returns:
            (windows, 1 + tokens or kept, width), the CLS token first.
        """
        positions = self.positions[:, 1:].expand(len(patches), -1, -1)
        if visible is not None:
            patches = take_tokens(patches, visible)
            positions = take_tokens(positions, visible)
        patches = patches.to(self.weight.dtype)
        tokens = F.linear(patches, self.weight.flatten(1), self.bias) + positions
        cls = (self.cls_token + self.positions[:, :1]).expand(len(patches), -1, -1)
        return torch.cat([cls.to(tokens.dtype), tokens], dim=1)


def take_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens (windows, tokens, d) by an index (windows, kept) -> (windows, kept, d)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
