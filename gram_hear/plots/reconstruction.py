"""A window as a masked autoencoder has it: heard, masked, and reconstructed."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from gram_hear.audio.excerpts import read_excerpt
from gram_hear.audio.layouts import CHANNEL_NAMES, to_layout
from gram_hear.checkpoints.store import build_autoencoder, build_encoder, load_checkpoint
from gram_hear.config import ModelConfig
from gram_hear.errors import OptionError
from gram_hear.nn.masks import random_mask, split_mask
from gram_hear.plots.mel import band_centres, draw_hertz
from gram_hear.style import LEVELS, LIGHT_GREY, WIDTH, drawing

RECONSTRUCTION = ("heard", "seen by the encoder", "hidden parts reconstructed")
MASKED = 0.8  # of the patches, as in the published pretraining


def picture_reconstruction(
    path: Path, model: str, start: float = 0.0, convention: str | None = None, seed: int = 0
) -> Any:
    """Mask the window of a sound file that begins at ``start``, reconstruct it, and draw it.

    Args:
        path: of the sound file.
        model: a checkpoint with its decoder, as ``load_model`` takes it.
        start: seconds.
        convention: of four channels; None is what the file says, else AmbiX.
        seed: of the mask.

    Returns:
        A matplotlib figure; see :func:`reconstruction_figure`.

    Raises:
        OptionError: for a checkpoint without a decoder, or a start past the file's end.
        AudioError, CheckpointError: for a file, or a checkpoint, that cannot be read.
    """
    checkpoint = load_checkpoint(model)
    config, front_end = checkpoint.config, checkpoint.config.front_end
    if config.decoder is None:
        raise OptionError(
            f"{model} holds an encoder alone, and only a decoder reconstructs. Use a checkpoint of "
            "pretraining, or one converted without --encoder-only."
        )
    seconds = config.window_frames * front_end.hop / front_end.sample_rate
    excerpt = read_excerpt(path, front_end.sample_rate, start, seconds, convention)
    sound = to_layout(torch.from_numpy(excerpt.audio), front_end.layout)
    sound = torch.nn.functional.pad(sound, (0, max(0, front_end.n_fft - sound.shape[1])))
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask(1, config.tokens, round(MASKED * config.tokens), generator)
    with torch.inference_mode():
        window = build_encoder(checkpoint).windows_of(sound[None], [0], config.window_fill)
        made = build_autoencoder(checkpoint)(window, *split_mask(mask))
        hidden = mask[..., None].expand_as(made.target)
        target, prediction, hidden = (
            unpatchify(each, config)[0].numpy() for each in (made.target, made.prediction, hidden)
        )
    title = (
        f"{path.name}, window at {excerpt.start:g} s; {Path(model).name}; "
        f"{100 * MASKED:.0f} % hidden, loss {float(made.loss):.3f}"
    )
    return reconstruction_figure(target, prediction, hidden, config, title, excerpt.start)


def reconstruction_figure(
    target: np.ndarray,
    prediction: np.ndarray,
    hidden: np.ndarray,
    config: ModelConfig,
    title: str,
    start: float = 0.0,
) -> Any:
    """Return a figure of a window: a row for each feature channel, a column for each state.

    The states are :data:`RECONSTRUCTION`.

    Args:
        target, prediction: (feature channels, frames, mels), normalised as the model sees them.
        hidden: the same shape, bool.
        config: of the model.
        title: above all.
        start: seconds at which the window begins.

    Raises:
        OptionError: where matplotlib is not installed.
    """
    names, hop = window_titles(config), config.front_end.hop / config.front_end.sample_rate
    centres = band_centres(config.front_end)
    columns = (target, np.where(hidden, np.nan, target), np.where(hidden, prediction, target))
    extent = (start, start + target.shape[1] * hop, 0, target.shape[2])
    with drawing(WIDTH, 0.8 + 1.25 * len(names), title) as figure:
        grid = figure.subplots(len(names), 3, sharex=True, sharey=True, squeeze=False)
        for channel, name in enumerate(names):
            low, high = np.quantile(target[channel], (0.001, 0.999))
            for axes, values in zip(grid[channel], columns, strict=True):
                mesh = axes.imshow(
                    values[channel].T, origin="lower", aspect="auto", extent=extent,
                    vmin=low, vmax=max(high, low + 1e-3), interpolation="nearest", cmap=LEVELS,
                )  # fmt: skip
                axes.set_facecolor(LIGHT_GREY)
            draw_hertz(grid[channel][0], centres, 0.5)
            grid[channel][0].set_ylabel(f"{name}\nfrequency (Hz)")
            bar = figure.colorbar(mesh, ax=list(grid[channel]), fraction=0.02, pad=0.01)
            bar.set_label("normalised")
        for axes, column in zip(grid[0], RECONSTRUCTION, strict=True):
            axes.set_title(column)
        for axes in grid[-1]:
            axes.set_xlabel("time (s)")
    return figure


def window_titles(config: ModelConfig) -> list[str]:
    """Return what a model's feature channels are called; of Ambisonic audio in the model's axes."""
    layout = config.front_end.layout
    if layout == "mono":
        return ["log-mel"]
    if layout == "binaural":
        return [f"{name} ear" for name in CHANNEL_NAMES[layout]]
    # See gram_hear.audio.layouts.
    return ["W", "up", "back", "right", "intensity up", "intensity back", "intensity right"]


def unpatchify(patches: Any, config: ModelConfig) -> Any:
    """Put windows together again: the inverse of :func:`gram_hear.nn.patches.patchify`.

    (windows, tokens, values) -> (windows, feature channels, window frames, mels).
    """
    patch, channels = config.patch, config.front_end.feature_channels
    grid = patches.unflatten(2, (channels, patch.mels, patch.frames))
    grid = grid.unflatten(1, (config.frequency_patches, config.time_patches))
    # (windows, f, t, channels, mels, frames) -> (windows, channels, t, frames, f, mels)
    return grid.permute(0, 3, 2, 5, 1, 4).flatten(4, 5).flatten(2, 3)
