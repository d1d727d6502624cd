"""Waveforms over time, and what the channels of a sound file are called."""

from typing import Any

import numpy as np

from gram_hear.audio.excerpts import Excerpt
from gram_hear.audio.layouts import CHANNEL_NAMES
from gram_hear.style import COLOURS

COLUMNS = 1500  # values along time that are drawn, at most: there are not more pixels
MEANING = {"Y": "Y (left)", "Z": "Z (up)", "X": "X (front)", "W": "W (all directions)"}


def channel_titles(channels: int) -> list[str]:
    """Return what the channels of a file are called; of Ambisonic audio as AmbiX has them."""
    if channels == 1:
        return ["mono"]
    if channels == 2:
        return [f"{name} ear" for name in CHANNEL_NAMES["binaural"]]
    return [MEANING[name].replace("all directions", "all") for name in CHANNEL_NAMES["ambisonic"]]


def draw_waveform(axes: Any, excerpt: Excerpt) -> None:
    """Draw the channels above each other, each by its extremes where there are many samples."""
    samples = excerpt.audio.shape[1]
    peak = float(np.abs(excerpt.audio).max())
    edges = np.unique(np.linspace(0, samples, COLUMNS + 1).astype(int))[:-1]
    time = excerpt.start + (edges + 0.5 * samples / len(edges)) / excerpt.rate
    names = channel_titles(len(excerpt.audio))
    offsets = -2.2 * np.arange(len(names))
    for channel, offset, colour in zip(excerpt.audio, offsets, COLOURS, strict=False):
        scaled = channel / (peak or 1.0)
        low = np.minimum.reduceat(scaled, edges)
        high = np.maximum.reduceat(scaled, edges)
        axes.fill_between(time, low + offset, high + offset, color=colour, lw=0.6)
    axes.set_yticks(offsets, names)
    axes.set(ylim=(offsets[-1] - 1.1, 1.1), title=f"Waveform, peak {peak:.3g} of full scale")
