"""A sound and its embedding over time, in one picture.

A row of an embedding is one vector, of one time step.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gram_hear.audio.excerpts import Excerpt
from gram_hear.config import LAYOUT_OF_AUDIO
from gram_hear.frontend import FrontEnd
from gram_hear.hear import HearModel, get_timestamp_embeddings
from gram_hear.plots.mel import band_centres, draw_hertz
from gram_hear.plots.waveform import COLUMNS, channel_titles, draw_waveform
from gram_hear.style import COLOURS, LEVELS, SIGNED, WIDTH, drawing

COMPONENTS = 3
SIDE = 750  # rows and columns of a similarity that are drawn, at most
SPAN = 70.0  # dB that a log-mel shows
CLOSEST = 0.2  # of the height of a log-mel, between two ticks


@dataclass(frozen=True, eq=False)
class SoundPicture:
    """What the picture of a sound shows."""

    title: str
    excerpt: Excerpt
    times: np.ndarray  # (rows,) seconds of the file, the centres of the embedding's rows
    row: float  # seconds that a row stands for
    # (feature channels, frames, mels): log-mels in natural logarithms, then, of Ambisonic audio,
    # intensities.
    features: np.ndarray
    hop: float  # seconds from one frame to the next; frame k is centred at excerpt.start + k * hop
    mel_frequencies: np.ndarray  # (mels,) Hz, the centres of the bands
    rows: np.ndarray  # (rows, d), the embedding over time, less that of silence


def picture_sound(path: Path, excerpt: Excerpt, model: HearModel) -> SoundPicture:
    """Return what the picture of an excerpt shows, embedded as if it were the whole file.

    The excerpt is at the model's rate; the model takes AmbiX, with the strategy raw or mean.
    """
    rows, timestamps = get_timestamp_embeddings([excerpt.audio], model)
    source = Path(model.source.name or "model").name
    return SoundPicture(
        title=f"{path.name}, {excerpt.file_rate} Hz; embedding of {source}",
        excerpt=excerpt,
        times=excerpt.start + timestamps[0].double().cpu().numpy() / 1000,
        row=model.hop_ms / 1000,
        features=_features(torch.from_numpy(excerpt.audio), model),
        hop=model.config.front_end.hop / model.sample_rate,
        mel_frequencies=band_centres(model.config.front_end),
        rows=_less_silence(rows[0], excerpt.audio.shape[1], model).cpu().numpy(),
    )


def _features(audio: Tensor, model: HearModel) -> np.ndarray:
    """Return the features of a file's own channels, whatever the model's.

    Intensities are weighted means over a mel band: of a plane wave the cosines of its direction.
    The models' own are sums, and so the larger the wider the band.
    """
    layout = LAYOUT_OF_AUDIO[len(audio)]
    front_end = FrontEnd(replace(model.config.front_end, layout=layout))
    samples, levels = audio.shape[1], front_end.config.audio_channels
    padded = torch.nn.functional.pad(audio, (0, max(0, front_end.config.n_fft - samples)))
    frames = 1 + samples // front_end.config.hop
    features = front_end(padded[None])[0, :, :frames]
    features[levels:] /= front_end.filterbank.sum(dim=0)
    return features.numpy()


def _less_silence(rows: Tensor, samples: int, model: HearModel) -> Tensor:
    """Return a clip's rows (n, d), less those that silence has at the same position in its window.

    A row depends on where in its window it stands, too, which no sound has made.
    """
    front_end, frames = model.config.front_end, model.config.window_frames
    window = torch.zeros(1, front_end.audio_channels, frames * front_end.hop)
    silent, _ = get_timestamp_embeddings(window, model)
    plan = model.plan(samples)
    return rows - plan.keep(silent.expand(plan.windows, -1, -1))


def sound_figure(sound: SoundPicture) -> Any:
    """Return a matplotlib figure of a sound and its embedding on one time axis.

    From above: waveform, a log-mel (or intensity) for each feature channel, the first principal
    components of the rows, and the cosine similarity of each row with each other. Of what is long
    not all is drawn: waveforms keep their extremes, features and similarities are averaged.

    Raises:
        OptionError: where matplotlib is not installed.
    """
    excerpt, features = sound.excerpt, len(sound.features)
    heights = [0.3 + 0.25 * len(excerpt.audio), *([0.85] * features), 1.1, 3.4]  # inches
    with drawing(WIDTH, 0.8 + 1.05 * sum(heights), sound.title) as figure:
        # The right column holds keys and colour bars, so that all time axes are equally long.
        grid = figure.subplots(
            len(heights), 2, height_ratios=heights, width_ratios=(1, 0.018), squeeze=False
        )
        for axes in grid[1:, 0]:
            axes.sharex(grid[0, 0])
        draw_waveform(grid[0, 0], excerpt)
        grid[0, 1].axis("off")
        _draw_features(figure, grid[1 : 1 + features], sound)
        _draw_components(grid[-2, 0], sound)
        grid[-2, 1].axis("off")
        _draw_similarity(figure, grid[-1, 0], grid[-1, 1], sound)
        grid[0, 0].set_xlim(excerpt.start, excerpt.end)
        for axes in grid[:-1, 0]:
            axes.tick_params(labelbottom=False)
        grid[-1, 0].set_xlabel("time (s)")
    return figure


def feature_titles(channels: int) -> list[str]:
    """Return what 1, 2 or 7 feature channels of a file are called; of Ambisonic audio in AmbiX."""
    if channels == 7:
        return [*channel_titles(4), "intensity left", "intensity up", "intensity front"]
    return channel_titles(channels)


def _draw_features(figure: Any, grid: np.ndarray, sound: SoundPicture) -> None:
    """Draw a log-mel for each channel, all on one scale, and below them intensities."""
    levels = len(sound.excerpt.audio)
    decibels = 10 / math.log(10) * sound.features[:levels]
    # Silence has one value everywhere, which is not the loudest but the quietest there is.
    decibels -= decibels.max() + (0 if np.ptp(decibels) > 1e-3 else SPAN)
    frames = sound.features.shape[1]
    extent = (
        sound.excerpt.start - sound.hop / 2, sound.excerpt.start + (frames - 0.5) * sound.hop,
        -0.5, sound.features.shape[2] - 0.5,
    )  # fmt: skip
    names = feature_titles(len(sound.features))
    for number, ((axes, bar), name) in enumerate(zip(grid, names, strict=True)):
        is_level = number < levels
        values = decibels[number] if is_level else sound.features[number]
        mesh = axes.imshow(
            average(values, COLUMNS).T, origin="lower", aspect="auto", extent=extent,
            interpolation="nearest", cmap=LEVELS if is_level else SIGNED,
            vmin=-SPAN if is_level else -1, vmax=0 if is_level else 1,
        )  # fmt: skip
        draw_hertz(axes, sound.mel_frequencies, 0, CLOSEST)
        axes.set_ylabel("Hz")
        axes.set_title(f"Log-mel, {name}" if is_level else f"{name.capitalize()}, by mel band")
        figure.colorbar(mesh, cax=bar, label="dB" if is_level else "-1 to 1")


def _draw_components(axes: Any, sound: SoundPicture) -> None:
    """Draw the first principal components of the rows as lines."""
    scores, parts = principal_components(sound.rows, COMPONENTS)
    styles = ("-", "--", ":")
    for score, part, colour, style in zip(scores.T, parts, COLOURS, styles, strict=False):
        label = f"{100 * part:.0f} %"
        marker = "o" if len(sound.times) == 1 else ""
        axes.plot(sound.times, score, color=colour, ls=style, lw=1.2, marker=marker, label=label)
    axes.set_title("Principal components, less silence (share of variance)")
    axes.set_ylabel("score")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=COMPONENTS, borderaxespad=0.1)


def _draw_similarity(figure: Any, axes: Any, bar: Any, sound: SoundPicture) -> None:
    """Draw how similar each row is to each other."""
    rows = average(sound.rows, SIDE)
    first, last = sound.times[0] - sound.row / 2, sound.times[-1] + sound.row / 2
    mesh = axes.imshow(
        similarity(rows), origin="lower", aspect="auto", extent=(first, last, first, last),
        interpolation="nearest", cmap=SIGNED, vmin=-1, vmax=1,
    )  # fmt: skip
    axes.set(ylabel="time (s)", title="Embedding less silence and its mean: cosine similarity")
    axes.set_ylim(sound.excerpt.start, sound.excerpt.end)
    figure.colorbar(mesh, cax=bar, label="similarity")


def average(values: np.ndarray, most: int) -> np.ndarray:
    """Return values (n, ...) averaged over parts of the first axis, if n is above ``most``."""
    if len(values) <= most:
        return values
    edges = np.linspace(0, len(values), most + 1).astype(int)
    counts = np.diff(edges).reshape(-1, *[1] * (values.ndim - 1))
    return np.add.reduceat(values, edges[:-1], axis=0) / counts


def principal_components(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first principal components of rows (n, d) over time.

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
