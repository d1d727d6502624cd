"""Where a sound comes from, over time and on a circle."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gram_hear.audio.excerpts import Excerpt
from gram_hear.extras import need
from gram_hear.localisation import NEAR, Located
from gram_hear.plots.waveform import draw_waveform
from gram_hear.style import BLACK, CONFIDENCE, GRID, LIGHT_GREY, VERMILION, WIDTH, drawing

AZIMUTHS = {
    180: "behind 180°",
    90: "left 90°",
    0: "front 0°",
    -90: "right -90°",
    -180: "behind -180°",
}
ELEVATIONS = {90: "above 90°", 0: "level 0°", -90: "below -90°"}
LIMITS = (0.25, 0.5, 1.0)  # of the scale of probabilities: the first that all of them are below
LIKELIEST = {"marker": "o", "s": 15, "edgecolors": BLACK, "linewidths": 0.6, "zorder": 4}
SHORTEST_ARROW = 0.05  # of the circle's radius: a shorter one is hidden by its tip
OVERALL = {"-": "overall direction", "--": "overall, mirrored"}  # arrows by their style of line
MIRRORED = {"marker": "D", "s": 9, "edgecolors": BLACK, "linewidths": 0.4, "zorder": 3}


def direction_figure(name: str, excerpt: Excerpt, found: Located) -> Any:
    """Return a figure: waveform, azimuth and elevation over time, and azimuths on a circle.

    A disc is the direction that was found in a row, a diamond the same direction mirrored from
    front to back. Both are the darker the more probable. On the circle the front is above and the
    left on the left, as from above the listener; the distance from the centre is the probability.

    Args:
        name: of the sound file, for the title.
        excerpt: of it, at the locator's rate.
        found: what :meth:`gram_hear.localisation.Locator.locate` found in the excerpt.

    Raises:
        OptionError: where matplotlib is not installed.
    """
    times = excerpt.start + found.timestamps / 1000
    mirrored = found.mirrored
    most = np.nanmax([*found.confidence, *mirrored, 0.0])
    limit = next(each for each in LIMITS if most <= each or each == LIMITS[-1])
    colours = {"vmin": 0, "vmax": limit, "cmap": CONFIDENCE}
    with drawing(WIDTH, 4.5, f"{name}: where the sound comes from") as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1))
        waveform, azimuth, elevation = left.subplots(3, 1, sharex=True, height_ratios=(0.8, 2, 0.9))
        draw_waveform(waveform, excerpt)
        _draw_time(azimuth, times, found, "Azimuth (degrees)", AZIMUTHS)
        other = -found.azimuth % 360.0 - 180.0  # 180 - azimuth, in [-180, 180)
        azimuth.scatter(times, other, c=mirrored, **MIRRORED, **colours)
        points = azimuth.scatter(times, found.azimuth, c=found.confidence, **LIKELIEST, **colours)
        _draw_time(elevation, times, found, "Elevation (degrees)", ELEVATIONS)
        elevation.scatter(times, found.elevation, c=found.confidence, **LIKELIEST, **colours)
        elevation.set_xlabel("time (s)")
        elevation.set_xlim(excerpt.start, excerpt.end)
        polar = right.add_subplot(projection="polar")
        _draw_circle(polar, found, limit, colours)
        bar = right.colorbar(points, ax=polar, orientation="horizontal", shrink=0.9, pad=0.1)
        bar.set_label(
            f"probability of the directions within {NEAR:g}°\n"
            "(colour, and distance from the centre)"
        )
        bar.outline.set_edgecolor(BLACK)
        _draw_key(figure, found, limit)
    return figure


def _draw_time(
    axes: Any, times: np.ndarray, found: Located, title: str, ticks: dict[int, str]
) -> None:
    """Prepare a panel of angles over time, grey where there is silence."""
    half_a_row = found.hop_ms / 2000  # seconds
    for first, last in _stretches(np.isnan(found.azimuth)):
        axes.axvspan(
            times[first] - half_a_row, times[last] + half_a_row,
            color=LIGHT_GREY, lw=0,
        )  # fmt: skip
    top = max(ticks)
    axes.set(ylim=(-1.06 * top, 1.06 * top), title=title)
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.grid(axis="y", **GRID)
    axes.set_axisbelow(True)


def _stretches(flags: Sequence[bool] | np.ndarray) -> list[tuple[int, int]]:
    """Return the first and last index of each run of True."""
    edges = np.flatnonzero(np.diff([False, *flags, False]))
    return [(int(first), int(last) - 1) for first, last in edges.reshape(-1, 2)]


def _draw_circle(axes: Any, found: Located, limit: float, colours: dict[str, Any]) -> None:
    """Draw azimuths on a circle, as seen from above, and the overall direction."""
    axes.set_theta_zero_location("N")
    axes.scatter(
        np.radians(found.azimuth), found.confidence, c=found.confidence, **LIKELIEST, **colours
    )
    axes.set_xticks(
        np.radians(np.arange(0, 360, 45)),
        ["front 0°", "45°", "left\n90°", "135°", "behind 180°", "-135°", "right\n-90°", "-45°"],
    )
    axes.set_ylim(0, limit)
    rings = limit * np.array([0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_yticks(rings, ["", f"{rings[1]:g}", "", f"{rings[3]:g}", ""], fontsize=6.5)
    axes.set_rlabel_position(22.5)
    axes.tick_params(axis="x", pad=1)
    axes.spines["polar"].set_color(LIGHT_GREY)
    axes.grid(**GRID)
    axes.set_axisbelow(True)
    for style, (angle, length) in _arrows(found, limit).items():
        _draw_arrow(axes, angle, length, style)
    title = "All time steps are silent"
    if found.overall is not None:
        azimuth, elevation, confidence = found.overall
        title = (
            f"Overall: azimuth {round(azimuth)}°, elevation {round(elevation)}°\n"
            f"confidence {confidence:.2f}"
        )
        if math.isfinite(doubt := found.overall_mirrored):
            title += f"; mirrored, front to back: {doubt:.2f}"
    axes.set_title(title, pad=8, loc="center")


def _arrows(found: Located, limit: float) -> dict[str, tuple[float, float]]:
    """Return the azimuth and length of the arrows that a circle of this radius has, by style."""
    if found.overall is None:
        return {}
    azimuth, _, confidence = found.overall
    arrows = {"-": (azimuth, confidence)}
    if found.overall_mirrored >= SHORTEST_ARROW * limit:  # not where it is NaN
        arrows["--"] = (180.0 - azimuth, found.overall_mirrored)
    return arrows


def _draw_arrow(axes: Any, azimuth: float, length: float, style: str) -> None:
    """Draw an arrow from the listener into a direction."""
    axes.plot(
        np.radians([azimuth, azimuth]), [0, length], color=VERMILION, ls=style, lw=1.8, zorder=6
    )
    axes.plot(
        np.radians(azimuth), length, zorder=6, color=VERMILION, ms=6.5, mec=VERMILION,
        marker=(3, 0, azimuth), mfc=VERMILION if style == "-" else "white",
    )  # fmt: skip


def _draw_key(figure: Any, found: Located, limit: float) -> None:
    """Say below all what each mark that is drawn means."""
    lines, patches = need("matplotlib.lines", "plot"), need("matplotlib.patches", "plot")
    disc = {"marker": "o", "ms": 5, "ls": "", "color": LIGHT_GREY, "mec": BLACK, "mew": 0.6}
    diamond = disc | {"marker": "D", "ms": 3.5}
    handles = []
    if np.isfinite(found.azimuth).any():
        handles.append(lines.Line2D([], [], label="direction found in a time step", **disc))
    if np.isfinite(found.mirrored).any():
        handles.append(lines.Line2D([], [], label="mirrored, front to back", **diamond))
    handles += [
        lines.Line2D([], [], color=VERMILION, lw=1.8, ls=style, label=OVERALL[style])
        for style in _arrows(found, limit)
    ]
    if np.isnan(found.azimuth).any():
        handles.append(patches.Patch(color=LIGHT_GREY, lw=0, label="silence"))
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=len(handles),
        columnspacing=1.2,
        handlelength=1.6,
    )
