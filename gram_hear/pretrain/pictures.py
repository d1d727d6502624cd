"""Pictures of windows: what was heard, what was hidden, and what was made of it."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gram_hear.audio.layouts import CHANNEL_NAMES
from gram_hear.config import ModelConfig
from gram_hear.extras import need

DPI = 100
COLUMNS = ("heard", "what the encoder saw", "reconstructed where hidden")


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawing as a PNG file's bytes, and as pixels (height, width, 3) uint8."""

    png: bytes
    pixels: np.ndarray


def unpatchify(patches: Tensor, config: ModelConfig) -> Tensor:
    """Put windows together again: the inverse of :func:`gram_hear.nn.patches.patchify`.

    Args:
        patches: (windows, tokens, values).
        config: of the model.

    Returns:
        (windows, feature channels, window frames, mels).
    """
    patch, channels = config.patch, config.front_end.feature_channels
    grid = patches.unflatten(2, (channels, patch.mels, patch.frames))
    grid = grid.unflatten(1, (config.frequency_patches, config.time_patches))
    # (windows, f, t, channels, mels, frames) -> (windows, channels, t, frames, f, mels)
    return grid.permute(0, 3, 2, 5, 1, 4).flatten(4, 5).flatten(2, 3)


def channel_names(config: ModelConfig) -> list[str]:
    """Return what a model's feature channels are called."""
    layout = config.front_end.layout
    if layout == "mono":
        return ["log-mel"]
    if layout == "binaural":
        return [f"{name} ear" for name in CHANNEL_NAMES[layout]]
    # In the model's own axes: see gram_hear.audio.layouts.
    return ["W", "up", "back", "right", "intensity up", "intensity back", "intensity right"]


def draw_reconstruction(
    target: Tensor, prediction: Tensor, hidden: Tensor, config: ModelConfig, title: str
) -> Picture:
    """Draw a window: a row for each feature channel, a column for each of :data:`COLUMNS`.

    Args:
        target, prediction: (feature channels, frames, mels), normalised as the model sees them.
        hidden: the same shape, bool.
        config: of the model.
        title: above all.

    Raises:
        OptionError: where matplotlib is not installed.
    """
    figures = need("matplotlib.figure", "pretrain")
    agg = need("matplotlib.backends.backend_agg", "pretrain")
    names, hop = channel_names(config), config.front_end.hop / config.front_end.sample_rate
    figure = figures.Figure(figsize=(11, 1 + 1.7 * len(names)), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(len(names), 3, sharex=True, sharey=True, squeeze=False)
    seen = target.masked_fill(hidden, torch.nan)
    columns = (target, seen, torch.where(hidden, prediction, target))
    for channel, name in enumerate(names):
        low, high = (float(target[channel].quantile(q)) for q in (0.001, 0.999))
        for axes, values in zip(grid[channel], columns, strict=True):
            mesh = axes.imshow(
                values[channel].T.numpy(),
                origin="lower",
                aspect="auto",
                vmin=low,
                vmax=max(high, low + 1e-3),
                extent=(0, target.shape[1] * hop, 0, target.shape[2]),
                interpolation="nearest",
                cmap="magma",
            )
            axes.set_facecolor("#cccccc")
        grid[channel][0].set_ylabel(f"{name}\nmel band", fontsize=8)
        figure.colorbar(mesh, ax=list(grid[channel]), fraction=0.02, pad=0.01)
    for axes, column in zip(grid[0], COLUMNS, strict=True):
        axes.set_title(column, fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("time (s)", fontsize=8)
    canvas = agg.FigureCanvasAgg(figure)
    png = io.BytesIO()
    canvas.print_png(png, metadata={"Software": None})
    return Picture(png.getvalue(), np.asarray(canvas.buffer_rgba())[..., :3].copy())
