"""Pictures. matplotlib (the extra ``plot``) is imported when one is drawn, without a display.

Colours are those of Okabe and Ito (2008), which colour-blind readers tell apart; what a colour
says, a shape or a word says too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gram_hear.audio.layouts import CHANNEL_NAMES
from gram_hear.config import ModelConfig
from gram_hear.extras import need
from gram_hear.jobs.writing import write_whole
from gram_hear.scenes.acoustics import BANDS, SPEECH_BAND, energy_decay, octave
from gram_hear.scenes.geometry import turn
from gram_hear.scenes.rooms import Scene
from gram_hear.scenes.single import MadeScene

BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
DPI = 120
FIRST = 0.1  # seconds of an impulse response that are drawn: direct sound and early reflections
LOWEST = -70.0  # dB that a decay is drawn down to
SPAN = 70.0  # dB that a spectrogram shows
HEAD = 0.15  # radius in which a head is drawn, metres; a true one would be a dot
WINDOW = 2048  # samples of a spectrogram's frame
FRAMES = 1500  # of a spectrogram, at most: there are not more pixels
LOWEST_FREQUENCY = 60.0  # Hz that a spectrogram shows
MEANING = {"Y": "Y (left)", "Z": "Z (up)", "X": "X (front)", "W": "W (all directions)"}
COLOURS = (BLUE, VERMILION, GREEN, "#CC79A7")
GREY = "#cccccc"
COLUMNS = 1500  # values along time that are drawn, at most: there are not more pixels
SIDE = 750  # rows and columns of a similarity that are drawn, at most
COMPONENTS = 3
MIDDLES = (250, 1000, 4000)  # Hz at which a log-mel has ticks
AZIMUTHS = {180: "180 behind", 90: "90 left", 0: "0 front", -90: "-90 right", -180: "-180 behind"}
RECONSTRUCTION = ("heard", "what the encoder saw", "reconstructed where hidden")


def plot_scene(made: MadeScene, path: Path) -> None:
    """Draw a scene into a PNG, written whole or not at all: see :func:`scene_figure`.

    Raises:
        OptionError: where matplotlib is not installed, or ``path`` cannot be written to.
    """
    save_figure(scene_figure(made), path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as a PNG, whole or not at all.

    Raises:
        OptionError: where ``path`` cannot be written to.
    """
    # Without the name of the program, a picture depends on nothing but what it shows.
    options = {"format": "png", "dpi": DPI, "metadata": {"Software": None}}
    write_whole(path, lambda temporary: figure.savefig(temporary, **options))


def _title(figure: Any, text: str) -> None:
    """Write a title that may hold a file's name, with dollars and what is no Unicode."""
    printable = text.encode("utf-8", "replace").decode("utf-8")
    figure.suptitle(printable, fontsize=11, parse_math=False)


# --- scenes ---------------------------------------------------------------------------------


def scene_figure(made: MadeScene) -> Any:
    """Return a matplotlib figure of a scene, of :func:`gram_hear.scenes.single.make_scene`.

    The room from above, the source's RIR and its decay, and spectrograms of what is heard.

    Raises:
        OptionError: where matplotlib is not installed.
    """
    figures, matplotlib = need("matplotlib.figure", "plot"), need("matplotlib", "plot")
    with matplotlib.rc_context(STYLE):
        figure = figures.Figure(figsize=(11, 9), layout="constrained")
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
        heights = ", ".join(f"{place[2]:.1f}" for place in scene.noises)
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
    places = -1.3 * np.arange(len(rir))
    for row, place, colour in zip(rir, places, (BLUE, VERMILION)[: len(rir)], strict=True):
        axes.plot(time[shown], row[shown] / peak + place, color=colour, lw=0.8)
    axes.set_yticks(places, names)
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
    axes.grid(axis="y", color="#dddddd", lw=0.6)
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
    """Return the levels of audio in time and frequency.

    Args:
        audio: (channels, samples), any length.
        rate: Hz.

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


# --- sounds and their embeddings ------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Shown:
    """A stretch of a sound file that is drawn.

    Attributes:
        title: above all.
        audio: (channels, samples).
        rate: Hz.
        start: seconds of the file at which ``audio`` begins.
        times: (rows,) seconds of the file, the centres of what a model made of it.
        row: seconds that a row stands for.
    """

    title: str
    audio: np.ndarray
    rate: int
    start: float
    times: np.ndarray
    row: float

    @property
    def end(self) -> float:
        """Seconds of the file at which the audio ends."""
        return self.start + self.audio.shape[1] / self.rate


@dataclass(frozen=True, eq=False)
class SoundPicture(Shown):
    """What the picture of a sound shows.

    Attributes:
        features: (feature channels, frames, mels): log-mels in natural logarithms, then, of
            Ambisonic audio, intensities.
        hop: seconds from one frame to the next; frame k is centred at ``start + k * hop``.
        mel_frequencies: (mels,) Hz, the centres of the bands.
        rows: (rows, d), the embedding over time, less that of silence.
    """

    features: np.ndarray
    hop: float
    mel_frequencies: np.ndarray
    rows: np.ndarray


def sound_figure(sound: SoundPicture) -> Any:
    """Return a matplotlib figure of a sound and its embedding on one time axis.

    From above: waveform, a log-mel (or intensity) for each feature channel, the first principal
    components of the rows, and the cosine similarity of each row with each other. Of what is long
    not all is drawn: waveforms keep their extremes, features and similarities are averaged.

    Raises:
        OptionError: where matplotlib is not installed.
    """
    figures, matplotlib = need("matplotlib.figure", "plot"), need("matplotlib", "plot")
    channels, features = len(sound.audio), len(sound.features)
    heights = [0.4 + 0.45 * channels, *([1.15] * features), 1.6, 5.2]
    with matplotlib.rc_context(STYLE):
        figure = figures.Figure(figsize=(11, 1.2 + 1.15 * sum(heights)), layout="constrained")
        _title(figure, sound.title)
        # The right column holds keys and colour bars, so that all time axes are equally long.
        grid = figure.subplots(
            len(heights), 2, height_ratios=heights, width_ratios=(1, 0.018), squeeze=False
        )
        for axes in grid[1:, 0]:
            axes.sharex(grid[0, 0])
        _draw_waveform(grid[0, 0], sound)
        grid[0, 1].axis("off")
        _draw_features(figure, grid[1 : 1 + features], sound)
        _draw_components(grid[-2, 0], sound)
        grid[-2, 1].axis("off")
        _draw_similarity(figure, grid[-1, 0], grid[-1, 1], sound)
        grid[0, 0].set_xlim(sound.start, sound.end)
        for axes in grid[:-1, 0]:
            axes.tick_params(labelbottom=False)
        grid[-1, 0].set_xlabel("time (s)")
    return figure


def _channel_titles(channels: int) -> list[str]:
    """Return what the channels of a file are called; of Ambisonic audio as AmbiX has them."""
    if channels == 1:
        return ["mono"]
    if channels == 2:
        return [f"{name} ear" for name in CHANNEL_NAMES["binaural"]]
    return [MEANING[name].replace("all directions", "all") for name in CHANNEL_NAMES["ambisonic"]]


def feature_titles(channels: int) -> list[str]:
    """Return what 1, 2 or 7 feature channels of a file are called; of Ambisonic audio in AmbiX."""
    if channels == 7:
        return [*_channel_titles(4), "intensity left", "intensity up", "intensity front"]
    return _channel_titles(channels)


def _draw_waveform(axes: Any, sound: Shown) -> None:
    """Draw the channels above each other, each by its extremes where there are many samples."""
    samples = sound.audio.shape[1]
    peak = float(np.abs(sound.audio).max())
    edges = np.unique(np.linspace(0, samples, COLUMNS + 1).astype(int))[:-1]
    time = sound.start + (edges + 0.5 * samples / len(edges)) / sound.rate
    names = _channel_titles(len(sound.audio))
    places = -2.2 * np.arange(len(names))
    for row, place, colour in zip(sound.audio, places, COLOURS, strict=False):
        scaled = row / (peak or 1.0)
        low = np.minimum.reduceat(scaled, edges)
        high = np.maximum.reduceat(scaled, edges)
        axes.fill_between(time, low + place, high + place, color=colour, lw=0.6)
    axes.set_yticks(places, names)
    axes.set(ylim=(places[-1] - 1.1, 1.1), title=f"Waveform, peak {peak:.3g} of full scale")


def _draw_features(figure: Any, grid: np.ndarray, sound: SoundPicture) -> None:
    """Draw a log-mel for each channel, all on one scale, and below them intensities."""
    levels = len(sound.audio)
    decibels = 10 / math.log(10) * sound.features[:levels]
    # Silence has one value everywhere, which is not the loudest but the quietest there is.
    decibels -= decibels.max() + (0 if np.ptp(decibels) > 1e-3 else SPAN)
    frames = sound.features.shape[1]
    extent = (
        sound.start - sound.hop / 2, sound.start + (frames - 0.5) * sound.hop,
        -0.5, sound.features.shape[2] - 0.5,
    )  # fmt: skip
    bands = np.interp(MIDDLES, sound.mel_frequencies, np.arange(len(sound.mel_frequencies)))
    names = feature_titles(len(sound.features))
    for number, ((axes, bar), name) in enumerate(zip(grid, names, strict=True)):
        is_level = number < levels
        values = decibels[number] if is_level else sound.features[number]
        mesh = axes.imshow(
            average(values, COLUMNS).T, origin="lower", aspect="auto", extent=extent,
            interpolation="nearest", cmap="magma" if is_level else "RdBu_r",
            vmin=-SPAN if is_level else -1, vmax=0 if is_level else 1,
        )  # fmt: skip
        axes.set_yticks(bands, [f"{f / 1000:g}" for f in MIDDLES])
        axes.set_ylabel("kHz")
        axes.set_title(f"Log-mel, {name}" if is_level else f"{name.capitalize()}, by mel band")
        figure.colorbar(mesh, cax=bar, label="dB" if is_level else "")


def average(values: np.ndarray, most: int) -> np.ndarray:
    """Return the means of equal parts of the first axis; the values where there are few.

    Args:
        values: (n, ...).
        most: parts, at most.
    """
    if len(values) <= most:
        return values
    edges = np.linspace(0, len(values), most + 1).astype(int)
    counts = np.diff(edges).reshape(-1, *[1] * (values.ndim - 1))
    return np.add.reduceat(values, edges[:-1], axis=0) / counts


def principal_components(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first principal components of rows over time.

    Args:
        rows: (n, d).
        count: of components.

    Returns:
        scores (n, count) and the part of the variance that each explains (count,). Components that
        n rows or d values cannot have are 0, as all are where the rows are equal. Each has the sign
        with which its largest score is positive.
    """
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    total = float((centred**2).sum())
    scores, parts = np.zeros((len(rows), count)), np.zeros(count)
    if total <= 1e-12 * max(1.0, float((rows.astype(np.float64) ** 2).sum())):
        return scores, parts
    # Of the two products of the rows with themselves the smaller one is solved.
    wide = len(rows) < rows.shape[1]
    values, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    found = min(count, len(values))
    values, vectors = values[::-1][:found].clip(min=0), vectors[:, ::-1][:, :found]
    scores[:, :found] = vectors * np.sqrt(values) if wide else centred @ vectors
    parts[:found] = values / total
    largest = np.take_along_axis(scores, np.abs(scores).argmax(axis=0)[None], axis=0)
    return scores * np.where(largest < 0, -1.0, 1.0), parts


def similarity(rows: np.ndarray) -> np.ndarray:
    """Return the cosine similarity (n, n) of rows (n, d), less their mean; 0 where that is all."""
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    floor = 1e-6 * max(1.0, float(np.abs(rows).max()))
    unit = np.where(length > floor, centred / np.maximum(length, floor), 0.0)
    return (unit @ unit.T).clip(-1, 1)


def _draw_components(axes: Any, sound: SoundPicture) -> None:
    """Draw the first principal components of the rows as lines."""
    scores, parts = principal_components(sound.rows, COMPONENTS)
    styles = ("-", "--", ":")
    for score, part, colour, style in zip(scores.T, parts, COLOURS, styles, strict=False):
        label = f"{100 * part:.0f} % of the variance"
        marker = "o" if len(sound.times) == 1 else ""
        axes.plot(sound.times, score, color=colour, ls=style, lw=1.2, marker=marker, label=label)
    axes.set_title("Embedding, less silence: principal components")
    axes.set_ylabel("score")
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=COMPONENTS, borderaxespad=0.1, fontsize=8
    )


def _draw_similarity(figure: Any, axes: Any, bar: Any, sound: SoundPicture) -> None:
    """Draw how similar each row is to each other."""
    rows = average(sound.rows, SIDE)
    first, last = sound.times[0] - sound.row / 2, sound.times[-1] + sound.row / 2
    mesh = axes.imshow(
        similarity(rows), origin="lower", aspect="auto", extent=(first, last, first, last),
        interpolation="nearest", cmap="RdBu_r", vmin=-1, vmax=1,
    )  # fmt: skip
    axes.set(ylabel="time (s)", title="Embedding, less silence and its mean: cosine similarity")
    axes.set_ylim(sound.start, sound.end)
    figure.colorbar(mesh, cax=bar)


# --- reconstructed windows ------------------------------------------------------------------


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

    Args:
        patches: (windows, tokens, values), a torch tensor.
        config: of the model.

    Returns:
        (windows, feature channels, window frames, mels).
    """
    patch, channels = config.patch, config.front_end.feature_channels
    grid = patches.unflatten(2, (channels, patch.mels, patch.frames))
    grid = grid.unflatten(1, (config.frequency_patches, config.time_patches))
    # (windows, f, t, channels, mels, frames) -> (windows, channels, t, frames, f, mels)
    return grid.permute(0, 3, 2, 5, 1, 4).flatten(4, 5).flatten(2, 3)


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
    figures, matplotlib = need("matplotlib.figure", "plot"), need("matplotlib", "plot")
    names, hop = window_titles(config), config.front_end.hop / config.front_end.sample_rate
    columns = (target, np.where(hidden, np.nan, target), np.where(hidden, prediction, target))
    extent = (start, start + target.shape[1] * hop, 0, target.shape[2])
    with matplotlib.rc_context(STYLE):
        figure = figures.Figure(figsize=(11, 1 + 1.7 * len(names)), layout="constrained")
        _title(figure, title)
        grid = figure.subplots(len(names), 3, sharex=True, sharey=True, squeeze=False)
        for channel, name in enumerate(names):
            low, high = np.quantile(target[channel], (0.001, 0.999))
            for axes, values in zip(grid[channel], columns, strict=True):
                mesh = axes.imshow(
                    values[channel].T, origin="lower", aspect="auto", extent=extent,
                    vmin=low, vmax=max(high, low + 1e-3), interpolation="nearest", cmap="magma",
                )  # fmt: skip
                axes.set_facecolor(GREY)
            grid[channel][0].set_ylabel(f"{name}\nmel band")
            bar = figure.colorbar(mesh, ax=list(grid[channel]), fraction=0.02, pad=0.01)
            bar.set_label("normalised", fontsize=8)
        for axes, column in zip(grid[0], RECONSTRUCTION, strict=True):
            axes.set_title(column)
        for axes in grid[-1]:
            axes.set_xlabel("time (s)")
    return figure


# --- directions -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DirectionPicture(Shown):
    """What the picture of where a sound comes from shows.

    Attributes:
        azimuth, elevation: (rows,) degrees; NaN where a row is silent.
        confidence: (rows,) 0 to 1.
        overall: azimuth, elevation and confidence of all rows together; None where all are silent.
    """

    azimuth: np.ndarray
    elevation: np.ndarray
    confidence: np.ndarray
    overall: tuple[float, float, float] | None


def direction_figure(found: DirectionPicture) -> Any:
    """Return a figure: waveform, azimuth and elevation over time, and azimuths on a circle.

    On the circle the front is above and the left on the left, as from above the listener; a point's
    distance from the centre is its confidence.

    Raises:
        OptionError: where matplotlib is not installed.
    """
    figures, matplotlib = need("matplotlib.figure", "plot"), need("matplotlib", "plot")
    with matplotlib.rc_context(STYLE):
        figure = figures.Figure(figsize=(13, 7), layout="constrained")
        _title(figure, found.title)
        left, right = figure.subfigures(1, 2, width_ratios=(1.45, 1))
        waveform, azimuth, elevation = left.subplots(3, 1, sharex=True, height_ratios=(0.7, 1.6, 1))
        _draw_waveform(waveform, found)
        points = _draw_angle(azimuth, found, found.azimuth, (-185, 185), "Azimuth")
        azimuth.set_yticks(list(AZIMUTHS), list(AZIMUTHS.values()))
        _draw_angle(elevation, found, found.elevation, (-95, 95), "Elevation")
        elevation.set_yticks([-90, -45, 0, 45, 90], ["-90 down", "-45", "0 level", "45", "90 up"])
        elevation.set_xlabel("time (s)")
        elevation.set_xlim(found.start, found.end)
        polar = right.add_subplot(projection="polar")
        _draw_circle(polar, found)
        right.colorbar(
            points, ax=polar, orientation="horizontal", label="confidence", shrink=0.7, pad=0.08
        )
    return figure


def _draw_angle(
    axes: Any, found: DirectionPicture, angle: np.ndarray, limits: tuple[float, float], name: str
) -> Any:
    """Draw an angle over time, and grey where there is silence."""
    for first, last in _stretches(np.isnan(angle)):
        axes.axvspan(
            found.times[first] - found.row / 2, found.times[last] + found.row / 2,
            color=GREY, lw=0, label="silence",
        )  # fmt: skip
    points = axes.scatter(
        found.times, angle, c=found.confidence, s=14, vmin=0, vmax=1, cmap="viridis_r", zorder=3
    )
    axes.set(ylim=limits, title=f"{name} (degrees)")
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles[:1], labels[:1], loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1
        )
    return points


def _stretches(flags: Sequence[bool] | np.ndarray) -> list[tuple[int, int]]:
    """Return the first and last place of each run of True."""
    edges = np.flatnonzero(np.diff([False, *flags, False]))
    return [(int(first), int(last) - 1) for first, last in edges.reshape(-1, 2)]


def _draw_circle(axes: Any, found: DirectionPicture) -> None:
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
    axes.spines["polar"].set_color(GREY)
    axes.grid(color="#dddddd", lw=0.6)
    title = "All rows are silent"
    if found.overall is not None:
        azimuth, elevation, confidence = found.overall
        axes.annotate(
            "", (np.radians(azimuth), confidence), (0, 0), zorder=4,
            arrowprops={"color": VERMILION, "width": 2, "headwidth": 9, "headlength": 9},
        )  # fmt: skip
        title = f"Overall (arrow): azimuth {azimuth:.0f}, elevation {elevation:.0f} degrees"
    axes.set_title(title, pad=16)
