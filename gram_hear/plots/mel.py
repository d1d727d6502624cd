"""Axes of mel bands, with their frequencies in Hz."""

from typing import Any

import numpy as np

from gram_hear.config import FrontEndConfig

TICKS = (125, 250, 500, 1000, 2000, 4000, 8000, 16000)  # Hz
CLOSEST = 0.09  # of the axis, between two ticks


def band_centres(front_end: FrontEndConfig) -> np.ndarray:
    """Return the centres of the mel bands of a front-end in Hz, (mels,)."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (front_end.f_min, front_end.f_max))
    mels = np.linspace(low, high, front_end.mels + 2)[1:-1]
    return 700 * (10 ** (mels / 2595) - 1)


def draw_hertz(axes: Any, centres: np.ndarray, first: float, closest: float = CLOSEST) -> None:
    """Give the y axis of mel bands ticks in Hz.

    Args:
        centres: (mels,) Hz, as :func:`band_centres` has them.
        first: where on the axis the centre of the lowest band is; bands are 1 apart.
        closest: the least distance of two ticks, as a part of the axis.
    """
    bands = np.arange(len(centres))
    shown: list[tuple[float, int]] = []
    for frequency in TICKS[::-1]:
        if not centres[0] <= frequency <= centres[-1]:
            continue
        place = float(np.interp(frequency, centres, bands))
        if not shown or shown[-1][0] - place >= closest * len(centres):
            shown.append((place, frequency))
    axes.set_yticks([first + place for place, _ in shown], [str(f) for _, f in shown])
