"""Where a sound comes from, over time and on a circle."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gram_hear.audio.excerpts import Excerpt
from gram_hear.localisation import Located
from gram_hear.plots.waveform import draw_waveform
from gram_hear.style import GRID, LIGHT_GREY, VERMILION, drawing

AZIMUTHS = {180: "180 behind", 90: "90 left", 0: "0 front", -90: "-90 right", -180: "-180 behind"}


def direction_figure(name: str, excerpt: Excerpt, found: Located) -> Any:
    """Return a figure: waveform, azimuth and elevation over time, and azimuths on a circle.

    On the circle the front is above and the left on the left, as from above the listener; a point's
    distance from the centre is its confidence.

    Args:
        name: of the sound file, for the title.
        excerpt: of it, at the locator's rate.
        found: what :meth:`gram_hear.localisation.Locator.locate` found in the excerpt.

    Raises:
        OptionError: where matplotlib is not installed.
    """
    times = excerpt.start + found.timestamps / 1000
    with drawing(13, 7, f"{name}: where the sound comes from") as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1.45, 1))
        waveform, azimuth, elevation = left.subplots(3, 1, sharex=True, height_ratios=(0.7, 1.6, 1))
        draw_waveform(waveform, excerpt)
        points = _draw_angle(azimuth, times, found, found.azimuth, (-185, 185), "Azimuth")
        azimuth.set_yticks(list(AZIMUTHS), list(AZIMUTHS.values()))
        _draw_angle(elevation, times, found, found.elevation, (-95, 95), "Elevation")
        elevation.set_yticks([-90, -45, 0, 45, 90], ["-90 down", "-45", "0 level", "45", "90 up"])
        elevation.set_xlabel("time (s)")
        elevation.set_xlim(excerpt.start, excerpt.end)
        polar = right.add_subplot(projection="polar")
        _draw_circle(polar, found)
        right.colorbar(
            points, ax=polar, orientation="horizontal", label="confidence", shrink=0.7, pad=0.08
        )
    return figure


def _draw_angle(
    axes: Any,
    times: np.ndarray,
    found: Located,
    angle: np.ndarray,
    limits: tuple[float, float],
    name: str,
) -> Any:
    """Draw an angle over time, and grey where there is silence."""
    half_a_row = found.hop_ms / 2000  # seconds
    for first, last in _stretches(np.isnan(angle)):
        axes.axvspan(
            times[first] - half_a_row, times[last] + half_a_row,
            color=LIGHT_GREY, lw=0, label="silence",
        )  # fmt: skip
    points = axes.scatter(
        times, angle, c=found.confidence, s=14, vmin=0, vmax=1, cmap="viridis_r", zorder=3
    )
    axes.set(ylim=limits, title=f"{name} (degrees)")
    axes.grid(axis="y", **GRID)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles[:1], labels[:1], loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1
        )
    return points


def _stretches(flags: Sequence[bool] | np.ndarray) -> list[tuple[int, int]]:
    """Return the first and last index of each run of True."""
    edges = np.flatnonzero(np.diff([False, *flags, False]))
    return [(int(first), int(last) - 1) for first, last in edges.reshape(-1, 2)]


def _draw_circle(axes: Any, found: Located) -> None:
    """Draw azimuths on a circle, as seen from above, and the overall direction."""
    axes.set_theta_zero_location("N")
    axes.scatter(
        np.radians(found.azimuth), found.confidence, c=found.confidence, s=18, vmin=0, vmax=1,
        cmap="viridis_r", zorder=3,
    )  # fmt: skip
    axes.set_xticks(
        np.radians(np.arange(0, 360, 45)),
        ["front", "45", "left\n90", "135", "behind", "-135", "right\n-90", "-45"],
    )
    axes.set_ylim(0, 1)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0], ["", "0.5", "", "1"])
    axes.set_rlabel_position(22.5)
    axes.spines["polar"].set_color(LIGHT_GREY)
    axes.grid(**GRID)
    title = "All rows are silent"
    if found.overall is not None:
        azimuth, elevation, confidence = found.overall
        axes.annotate(
            "", (np.radians(azimuth), confidence), (0, 0), zorder=4,
            arrowprops={"color": VERMILION, "width": 2, "headwidth": 9, "headlength": 9},
        )  # fmt: skip
        title = f"Overall (arrow): azimuth {azimuth:.0f}, elevation {elevation:.0f} degrees"
    axes.set_title(title, pad=16)
