"""A simulated scene: the room from above, the source's impulse response, what is heard."""

import math
from typing import Any

import numpy as np

from gram_hear.extras import need
from gram_hear.plots.waveform import MEANING
from gram_hear.scenes.acoustics import BANDS, SPEECH_BAND, energy_decay, octave
from gram_hear.scenes.geometry import turn
from gram_hear.scenes.rooms import Scene
from gram_hear.scenes.single import MadeScene
from gram_hear.style import BLUE, GREEN, GRID, VERMILION, drawing

FIRST = 0.1  # seconds of an impulse response that are drawn: direct sound and early reflections
LOWEST = -70.0  # dB that a decay is drawn down to
SPAN = 70.0  # dB that a spectrogram shows
HEAD = 0.15  # radius in which a head is drawn, metres; a true one would be a dot
WINDOW = 2048  # samples of a spectrogram's frame
FRAMES = 1500  # of a spectrogram, at most: there are not more pixels
LOWEST_FREQUENCY = 60.0  # Hz that a spectrogram shows


def scene_figure(made: MadeScene) -> Any:
    """Return a matplotlib figure of a scene, of :func:`gram_hear.make_scene`.

    The room from above, the source's RIR and its decay, and spectrograms of what is heard.

    Example::

        made = gram_hear.make_scene(sound, 32000, azimuth=60)
        gram_hear.scene_figure(made).savefig("scene.png")

    Raises:
        OptionError: where matplotlib is not installed.
    """
    with drawing(11, 9) as figure:
        upper, lower = figure.subfigures(2, 1, height_ratios=(1.2, 1))
        axes = upper.subplot_mosaic(
            [["plan", "rir"], ["plan", "decay"], ["key", "decay"]],
            width_ratios=(1, 1.25),
            height_ratios=(1, 0.72, 0.33),
        )
        _draw_plan(axes["plan"], axes["key"], made.scene)
        _draw_rir(axes["rir"], made)
        _draw_decay(axes["decay"], made)
        _draw_spectrograms(lower, made)
    return figure


def _draw_plan(axes: Any, key: Any, scene: Scene) -> None:
    """Draw the room from above: walls, the listener's head with its nose, source, noises."""
    patches = need("matplotlib.patches", "plot")
    width, depth, height = scene.room.size
    axes.add_patch(
        patches.Rectangle((0, 0), width, depth, facecolor="#f7f7f7", edgecolor="black", lw=2.5)
    )
    (x, y, up), (source_x, source_y, source_up) = scene.listener, scene.source
    axes.plot([x, source_x], [y, source_y], color=VERMILION, ls="--", lw=1, zorder=2)
    for number, (noise_x, noise_y, _) in enumerate(scene.noises, start=1):
        axes.plot(noise_x, noise_y, "s", color=GREEN, ms=11, mec="white", zorder=3)
        axes.annotate(
            str(number), (noise_x, noise_y), color="white", size=7.5, weight="bold",
            ha="center", va="center_baseline", zorder=3,
        )  # fmt: skip
    _draw_head(axes, scene)
    axes.plot(source_x, source_y, "o", color=VERMILION, ms=12, mec="white", zorder=5)
    margin = 0.03 * max(width, depth)
    axes.set(
        xlim=(-margin, width + margin),
        ylim=(-margin, depth + margin),
        aspect="equal",
        xlabel="x (m)",
        ylabel="y (m)",
        title=f"Room from above, {width:.1f} x {depth:.1f} m, {height:.1f} m high",
    )
    axes.spines[:].set_visible(False)
    entries = [
        ("o", VERMILION, f"source: {scene.distance:.1f} m away, azimuth {_azimuth(scene)},\n"
         f"elevation {round(scene.elevation)}°; {source_up:.1f} m above the floor"),
        ("o", BLUE, f"listener: {up:.1f} m above the floor; the nose points to the front"),
    ]  # fmt: skip
    if scene.noises:
        heights = ", ".join(f"{up:.1f}" for _, _, up in scene.noises)
        entries += [("s", GREEN, f"noise sources: {heights} m above the floor")]
    lines = need("matplotlib.lines", "plot")
    handles = [
        lines.Line2D([], [], ls="", marker=marker, color=colour, ms=9, label=label)
        for marker, colour, label in entries
    ]
    key.axis("off")
    key.legend(handles=handles, loc="upper center")


def _azimuth(scene: Scene) -> str:
    """Return the source's azimuth, with its side in words."""
    degrees = round(scene.azimuth)
    side = "" if degrees % 180 == 0 else " (left)" if degrees > 0 else " (right)"
    return f"{degrees}°{side}"


def _draw_head(axes: Any, scene: Scene) -> None:
    """Draw a head from above, larger than it is."""
    patches = need("matplotlib.patches", "plot")
    radius = max(HEAD, 0.035 * max(scene.room.size[:2]))
    centre = np.array(scene.listener[:2])

    def at(points: list[tuple[float, float]]) -> np.ndarray:
        flat = radius * np.array([(*point, 0.0) for point in points])
        return turn(flat, scene.yaw)[:, :2] + centre

    nose = at([(0.6, 0.6), (1.8, 0), (0.6, -0.6)])
    axes.add_patch(patches.Polygon(nose, color=BLUE, zorder=4))
    for ear in at([(0, 1.05), (0, -1.05)]):
        shape = patches.Ellipse(ear, 0.9 * radius, 0.5 * radius, angle=scene.yaw, color=BLUE)
        axes.add_patch(shape).set_zorder(4)
    axes.add_patch(
        patches.Circle(centre, radius, facecolor=BLUE, edgecolor="white", lw=0.8, zorder=4)
    )


def _draw_rir(axes: Any, made: MadeScene) -> None:
    """Draw the first part of the source's RIR: both ears above each other, or W alone."""
    rir, direct = _heard(made), made.metadata["direct_delay"][0]
    time = 1000 * (np.arange(rir.shape[1]) / made.rate - direct)
    shown = (time >= -5) & (time <= 1000 * FIRST)
    peak = max(np.abs(rir).max(), np.finfo(np.float32).tiny)
    names = [f"{name} ear" if len(rir) == 2 else name for name in made.channels[: len(rir)]]
    offsets = -1.3 * np.arange(len(rir))
    for row, offset, colour in zip(rir, offsets, (BLUE, VERMILION)[: len(rir)], strict=True):
        axes.plot(time[shown], row[shown] / peak + offset, color=colour, lw=0.8)
    axes.set_yticks(offsets, names)
    axes.set(
        xlabel="time after the direct sound has reached the head's centre (ms)",
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
    axes.plot(time[shown], curve[shown], color=BLUE, lw=1.8, label="energy still to come")
    last = time[shown][-1] if shown.any() else asked
    if measured is not None and math.isfinite(measured):
        _draw_slope(axes, time, curve, measured)
        last = max(last, 1.25 * measured)
    said = "" if measured is None or not math.isfinite(measured) else f"{measured:.2f} s, "
    axes.set(
        xlabel="time (s)",
        ylabel="dB",
        ylim=(LOWEST, 3),
        xlim=(-0.01, last),
        title=f"Decay in the octave of {centre / 1000:g} kHz: RT60 {said}{asked:.2f} s asked",
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
    axes.plot(start + rt60, -60, "v", color=VERMILION, ms=8)
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
            times, frequencies, level, vmin=-SPAN, vmax=0, cmap="magma", shading="nearest"
        )
        axes.set_yscale("log")
        axes.set(ylim=(LOWEST_FREQUENCY, made.rate / 2))
        ticks = [f for f in (100, 300, 1000, 3000, 10000) if f < made.rate / 2]
        axes.set_yticks(ticks, [f"{f / 1000:g}" for f in ticks])
        axes.minorticks_off()
        axes.set_title(MEANING.get(name, f"{name.capitalize()} ear"))
    for axes in grid[-1]:
        axes.set_xlabel("time (s)")
    for axes in grid[:, 0]:
        axes.set_ylabel("kHz")
    figure.colorbar(mesh, ax=grid, label="dB below the loudest", fraction=0.03, pad=0.01)


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
