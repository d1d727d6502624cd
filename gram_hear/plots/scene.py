"""A simulated scene: the room from above, the source's impulse response, what is heard."""

import itertools
import math
from typing import Any

import numpy as np

from gram_hear.extras import need
from gram_hear.plots.waveform import MEANING
from gram_hear.scenes.acoustics import BANDS, SPEECH_BAND, energy_decay, octave
from gram_hear.scenes.geometry import turn
from gram_hear.scenes.rooms import Scene
from gram_hear.scenes.single import MadeScene
from gram_hear.style import BLACK, BLUE, DARK_GREY, GRID, LEVELS, TEAL, VERMILION, WIDTH, drawing

FIRST = 0.1  # seconds of an impulse response that are drawn: direct sound and early reflections
LOWEST = -70.0  # dB that a decay is drawn down to
SPAN = 70.0  # dB that a spectrogram shows
HEAD = 0.15  # radius in which a head is drawn, metres; a true one would be a dot
WIDEST = 1.15  # of the depth of a room: what the plan is wide, at least
WINDOW = 2048  # samples of a spectrogram's frame
# Where a label may be: on which side of what it names, and how many points away.
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 1), (-0.7, 1), (0.7, -1), (-0.7, -1))
DISTANCES = (7, 12, 18, 26, 36, 48)
FRAMES = 1500  # of a spectrogram, at most: there are not more pixels
LOWEST_FREQUENCY = 60.0  # Hz that a spectrogram shows


def scene_figure(made: MadeScene) -> Any:
    """Return a matplotlib figure of what :func:`gram_hear.make_scene` returned.

    It shows the room from above, the RIR of the source and its decay, and spectrograms of what is
    heard.

    Example::

        made = gram_hear.make_scene(sound, 32000, azimuth=60)
        gram_hear.scene_figure(made).savefig("scene.png")

    Raises:
        OptionError: if matplotlib is not installed.
    """
    with drawing(WIDTH, 6.6) as figure:
        upper, lower = figure.subfigures(2, 1, height_ratios=(1.35, 1))
        axes = upper.subplot_mosaic(
            [["plan", "rir"], ["plan", "decay"], ["key", "decay"]],
            width_ratios=(1, 1.15),
            height_ratios=(1, 0.6, 0.4),
        )
        anchors = _draw_plan(axes["plan"], made)
        _draw_key(axes["key"], made.scene)
        _draw_rir(axes["rir"], made)
        _draw_decay(axes["decay"], made)
        _draw_spectrograms(lower, made)
        place_labels(axes["plan"], anchors)
    return figure


def _draw_plan(axes: Any, made: MadeScene) -> dict[str, tuple[float, float]]:
    """Draw the room from above: walls, the listener's head with its nose, source, noises.

    Returns:
        What is to be labelled, and where it is, in metres.
    """
    patches, scene = need("matplotlib.patches", "plot"), made.scene
    width, depth, height = scene.room.size
    axes.add_patch(
        patches.Rectangle((0, 0), width, depth, facecolor="#f4f4f4", edgecolor=BLACK, lw=1.8)
    )
    listener, source = scene.listener[:2], scene.source[:2]
    axes.plot(*zip(listener, source, strict=True), color=VERMILION, ls="--", lw=1, zorder=2)
    front = _draw_head(axes, scene)
    anchors = {"listener": listener, "source": source}
    if 0 < front[0] < width and 0 < front[1] < depth:
        anchors = {"front": front} | anchors  # first, since it has the least room
    for number, (x, y, _) in enumerate(scene.noises, start=1):
        axes.plot(x, y, "s", color=TEAL, ms=6, mec=BLACK, mew=0.6, zorder=3)
        anchors[f"noise {number}"] = (x, y)
    axes.plot(*source, "o", color=VERMILION, ms=8, mec=BLACK, mew=0.6, zorder=5)
    measured, asked = made.metadata["rt60_measured"], made.metadata["rt60"]
    margin = 0.03 * max(width, depth)
    beside = max(margin, (WIDEST * depth - width) / 2)  # for labels, where a room is narrow
    axes.set(
        xlabel="x (m)",
        ylabel="y (m)",
        title=f"Room from above: {width:.1f} x {depth:.1f} m, {height:.1f} m high,\n"
        f"RT60 {measured if _is_known(measured) else asked:.2f} s at {_octave_khz():g} kHz",
        aspect="equal",
        xlim=(-beside, width + beside),
        ylim=(-margin, depth + margin),
    )
    for axis, size in ((axes.xaxis, width), (axes.yaxis, depth)):
        axis.set_ticks(np.arange(0, size + 1e-9, 1 if size < 8 else 2))
    axes.spines[:].set_visible(False)
    return anchors


def _octave_khz() -> float:
    """Return the centre of the octave that an RT60 is of, in kHz."""
    return BANDS[SPEECH_BAND] / 1000


def _is_known(rt60: float | None) -> bool:
    return rt60 is not None and math.isfinite(rt60)


def _draw_key(axes: Any, scene: Scene) -> None:
    """Say below the plan where the source, the listener and the noises are."""
    lines = need("matplotlib.lines", "plot")
    side = _side(scene)
    entries = [
        ("o", VERMILION, f"source: {scene.distance:.1f} m away, azimuth {side}, elevation "
         f"{round(scene.elevation)}°,\n{scene.source[2]:.1f} m above the floor"),
        ((3, 0, 0), BLUE, f"listener: {scene.listener[2]:.1f} m above the floor; the nose points "
         "to the front"),
    ]  # fmt: skip
    if scene.noises:
        heights = ", ".join(f"{up:.1f}" for _, _, up in scene.noises)
        entries += [("s", TEAL, f"noise sources: {heights} m above the floor")]
    handles = [
        lines.Line2D([], [], ls="", marker=marker, color=colour, mec=BLACK, mew=0.6, ms=6,
                     label=label)
        for marker, colour, label in entries
    ]  # fmt: skip
    axes.axis("off")
    axes.legend(handles=handles, loc="upper center", borderaxespad=0, handletextpad=0.2)


def _side(scene: Scene) -> str:
    """Return the source's azimuth, with its side in words."""
    degrees = round(scene.azimuth)
    side = "" if degrees % 180 == 0 else " (left)" if degrees > 0 else " (right)"
    return f"{degrees}°{side}"


def _draw_head(axes: Any, scene: Scene) -> tuple[float, float]:
    """Draw a head from above, larger than it is, and an arrow from its nose to the front.

    Returns:
        The tip of the arrow.
    """
    patches = need("matplotlib.patches", "plot")
    radius = max(HEAD, 0.045 * max(scene.room.size[:2]))
    centre = np.array(scene.listener[:2])

    def at(points: list[tuple[float, float]]) -> np.ndarray:
        flat = radius * np.array([(*point, 0.0) for point in points])
        return turn(flat, scene.yaw)[:, :2] + centre

    nose, tip = at([(0.75, 0.5), (1.6, 0), (0.75, -0.5)]), at([(1.6, 0), (3.2, 0)])
    axes.plot(*tip.T, color=BLUE, lw=1.2, zorder=4)
    axes.plot(*tip[1], marker=(3, 0, scene.yaw - 90), color=BLUE, ms=5, zorder=4)
    shape = {"facecolor": "#a9c4e6", "edgecolor": BLUE, "lw": 1.1, "zorder": 4}
    for ear in at([(0, 1.0), (0, -1.0)]):
        axes.add_patch(patches.Ellipse(ear, 0.7 * radius, 0.5 * radius, angle=scene.yaw, **shape))
    axes.add_patch(patches.Circle(centre, radius, **shape))
    axes.add_patch(patches.Polygon(nose, facecolor=BLUE, edgecolor=BLUE, lw=1.1, zorder=4.5))
    return float(tip[1, 0]), float(tip[1, 1])


def place_labels(axes: Any, anchors: dict[str, tuple[float, float]]) -> None:
    """Write a label beside each anchor, where it overlaps no other label, mark, line or wall.

    The layout of the figure is settled first: what is drawn afterwards must not change it. Of
    places that all overlap something, that with the least overlap is taken.
    """
    transforms = need("matplotlib.transforms", "plot")
    figure = axes.figure.figure
    figure.draw_without_rendering()
    point = figure.dpi / 72  # pixels
    panel = axes.get_window_extent()
    room, *bodies = axes.patches
    taken = [body.get_window_extent().padded(point) for body in bodies]
    (left, low), (right, high) = axes.transData.transform(room.get_bbox().get_points())
    walls = [(left, low, left, high), (right, low, right, high),
             (left, low, right, low), (left, high, right, high)]  # fmt: skip
    taken += [transforms.Bbox.from_extents(wall).padded(2 * point) for wall in walls]
    for line in axes.lines:
        ends = axes.transData.transform(line.get_xydata())
        steps = max(2, round(float(np.ptp(ends, axis=0).max() / (4 * point))))
        for x, y in np.linspace(ends[0], ends[-1], steps):
            taken.append(transforms.Bbox.from_extents(x, y, x, y).padded(5 * point))
    style = {"zorder": 6, "fontsize": 7.5, "ha": "center", "va": "center"}
    for name, anchor in anchors.items():
        trial = axes.annotate(name, anchor, (0, 0), textcoords="offset points", **style)
        size = trial.get_window_extent()
        trial.remove()
        best, least, place, leads = size, math.inf, (0.0, 0.0), False
        for away, (across, up) in itertools.product(DISTANCES, SIDES):
            offset = (
                across * (away + size.width / 2 / point),
                up * (away - 3 + size.height / 2 / point),
            )
            box = size.translated(offset[0] * point, offset[1] * point).padded(point)
            outside = box.width * box.height - _overlap(box, panel)
            cost = outside + sum(_overlap(box, other) for other in taken)
            if cost < least:
                best, least, place, leads = box, cost, offset, away > DISTANCES[0]
            if not cost:
                break
        line = {"arrowstyle": "-", "lw": 0.5, "color": DARK_GREY, "shrinkA": 0, "shrinkB": 3}
        label = axes.annotate(
            name, anchor, place, textcoords="offset points", **style, annotation_clip=False,
            arrowprops=line if leads else None,
        )  # fmt: skip
        label.set_in_layout(False)
        taken.append(best)


def _overlap(first: Any, second: Any) -> float:
    """Return the area that two boxes share."""
    wide = min(first.x1, second.x1) - max(first.x0, second.x0)
    high = min(first.y1, second.y1) - max(first.y0, second.y0)
    return max(0.0, wide) * max(0.0, high)


def _draw_rir(axes: Any, made: MadeScene) -> None:
    """Draw the first part of the source's RIR: both ears above each other, or W alone."""
    rir, direct = _heard(made), made.metadata["direct_delay"][0]
    time = 1000 * (np.arange(rir.shape[1]) / made.rate - direct)
    shown = (time >= -5) & (time <= 1000 * FIRST)
    peak = max(np.abs(rir).max(), np.finfo(np.float32).tiny)
    names = [f"{name} ear" if len(rir) == 2 else name for name in made.channels[: len(rir)]]
    offsets = -1.3 * np.arange(len(rir))
    for row, offset, colour in zip(rir, offsets, (BLUE, VERMILION)[: len(rir)], strict=True):
        axes.plot(time[shown], row[shown] / peak + offset, color=colour, lw=0.6)
    axes.set_yticks(offsets, names)
    axes.set(
        xlabel="time after the direct sound (ms)",
        title=f"Impulse response of the source, first {1000 * FIRST:.0f} ms",
        xlim=(-5, 1000 * FIRST),
    )


def _heard(made: MadeScene) -> np.ndarray:
    """Return what of the source's RIR is drawn: (2, samples) both ears, or (1, samples) W."""
    rir = made.rendered.rirs[0]
    return rir if len(rir) == 2 else rir[:1]


def _draw_decay(axes: Any, made: MadeScene) -> None:
    """Draw what is left of the energy over time, and the slope that the RT60 is read from."""
    centre = BANDS[SPEECH_BAND]
    filtered = octave(_heard(made), made.rate, centre)
    curve, direct = energy_decay((filtered**2).sum(axis=0)), made.metadata["direct_delay"][0]
    time = np.arange(len(curve)) / made.rate - direct
    asked, measured = made.metadata["rt60"], made.metadata["rt60_measured"]
    shown = (time >= -0.01) & (curve > LOWEST)
    axes.plot(time[shown], curve[shown], color=BLUE, lw=1.6, label="energy still to come")
    last = time[shown][-1] if shown.any() else asked
    if _is_known(measured):
        _draw_slope(axes, time, curve, measured)
        last = max(last, 1.25 * measured)
    said = f"{measured:.2f} s, " if _is_known(measured) else ""
    axes.set(
        xlabel="time (s)",
        ylabel="level (dB)",
        ylim=(LOWEST, 3),
        xlim=(-0.01, last),
        title=f"Decay at {_octave_khz():g} kHz: RT60 {said}{asked:.2f} s asked for",
    )
    axes.grid(axis="y", **GRID)
    axes.legend(loc="upper right")


def _draw_slope(axes: Any, time: np.ndarray, curve: np.ndarray, rt60: float) -> None:
    """Draw the line through the decay's first 25 dB, and where it reaches -60 dB."""
    inside = (curve <= -5) & (curve >= -25)
    # The line of that slope in the midst of the part that was fitted.
    start = float(np.mean(time[inside] + curve[inside] * rt60 / 60))
    axes.plot(
        [start, start + rt60], [0, -60], color=VERMILION, ls="--", lw=1.2,
        label="slope from -5 to -25 dB",
    )  # fmt: skip
    axes.plot(start + rt60, -60, "v", color=VERMILION, ms=6)
    axes.annotate(
        "-60 dB", (start + rt60, -60), (-8, -1), textcoords="offset points", color=VERMILION,
        ha="right", va="center",
    )  # fmt: skip


def _draw_spectrograms(figure: Any, made: MadeScene) -> None:
    """Draw a spectrogram for each channel, all on one scale."""
    levels, times, frequencies = spectrogram(made.audio, made.rate)
    levels -= levels.max()
    rows = len(levels) // 2
    grid = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
    mesh = None
    for axes, name, level in zip(grid.flat, made.channels, levels, strict=True):
        mesh = axes.pcolormesh(
            times,
            frequencies,
            level,
            vmin=-SPAN,
            vmax=0,
            cmap=LEVELS,
            shading="nearest",
            rasterized=True,
        )
        axes.set_yscale("log")
        axes.set(ylim=(LOWEST_FREQUENCY, made.rate / 2))
        ticks = [f for f in (100, 300, 1000, 3000, 10000) if f < made.rate / 2]
        axes.set_yticks(ticks, [str(f) for f in ticks])
        axes.minorticks_off()
        axes.set_title(MEANING.get(name, f"{name.capitalize()} ear"))
    for axes in grid[-1]:
        axes.set_xlabel("time (s)")
    for axes in grid[:, 0]:
        axes.set_ylabel("frequency (Hz)")
    figure.colorbar(mesh, ax=grid, label="level (dB), loudest 0", fraction=0.03, pad=0.01)


def spectrogram(audio: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the levels of audio (channels, samples) in time and frequency.

    Returns:
        levels (channels, frequencies, frames) in dB, the frames' centres in seconds, and the
        frequencies in Hz, those of 0 Hz left out. Of a long sound not all is looked at: its
        frames are WINDOW samples, and there are at most FRAMES of them.
    """
    samples = audio.shape[1]
    hop = max(WINDOW // 4, math.ceil(samples / FRAMES))
    padded = np.pad(audio, ((0, 0), (WINDOW // 2, WINDOW // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)[:, ::hop]
    spectra = np.fft.rfft(frames * np.hanning(WINDOW), axis=2)[:, :, 1:]
    levels = 10 * np.log10(np.abs(spectra) ** 2 + 1e-12)
    times = np.arange(frames.shape[1]) * hop / rate
    return levels.transpose(0, 2, 1), times, np.fft.rfftfreq(WINDOW, 1 / rate)[1:]
