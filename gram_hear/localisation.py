"""Where a sound comes from: a small predictor on the rows of a frozen model.

    locator = gram_hear.load_locator()       # binaural; layout="ambisonic" for four channels
    found = locator.locate(audio, rate)      # (2, samples): azimuth and elevation every 80 ms

A row is the embedding of one time step. The predictor, or head, is trained by
``weights/recipe/locator.py``. It gives each row a probability for each of many directions, spread
evenly over the sphere (x front, y left, z up, of the listener).
The answer is the mean of those around the likeliest one, and its confidence is their part of the
probability. Regression of one vector would fail where front and back sound alike: the mean of both
points to the side.

A head belongs to one model, one strategy and one layer, which its file names; any other is an
error.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gram_hear.audio.clips import as_clips
from gram_hear.audio.files import resample
from gram_hear.checkpoints.store import (
    Checkpoint,
    encoder_only,
    load_checkpoint,
    read_tensors,
    write_tensors,
)
from gram_hear.config import LARGEST_CONFIG, LAYOUT_OF_AUDIO, ModelConfig
from gram_hear.devices import find_device
from gram_hear.errors import AudioError, CheckpointError, OptionError, allowed
from gram_hear.foreign import parse_json
from gram_hear.hear import HearModel, Options, check_finite, from_checkpoint
from gram_hear.scenes.geometry import angles, unit_vector

BUNDLED = {  # in gram_hear.weights, by the layout that they hear
    "binaural": "gram-tiny-locator.safetensors",
    "ambisonic": "gram-tiny-ambisonics-locator.safetensors",
}
HEAD_KEY = "gram_hear_locator"  # in the metadata of a head's file
QUIETEST = -70.0  # dBFS of a row, below which it is silent,
BELOW_LOUDEST = 40.0  # and dB below the clip's loudest row from which it is
NEAR = 25.0  # degrees around the likeliest direction that its mean is taken over
SHARPNESS = 30.0  # of the von Mises-Fisher kernel that directions are smoothed with: 10 degrees
BLOCK_SECONDS = 60.0  # of sound whose windows are held at once
DOUBTFUL = 0.2  # confidence below which an answer may be on the wrong side
ONE_DIRECTION = 0.75  # least agreement of time steps that hear one source in one place
STRATEGIES = ("raw", "mean")  # cls says the same of a whole window
MIRRORED_COLUMNS = ("mirrored_azimuth_deg", "mirrored_probability")
COLUMNS = (
    *("time_s", "azimuth_deg", "elevation_deg", "confidence", "level_dbfs", "silent"),
    *MIRRORED_COLUMNS,
)

Direction = tuple[float, float, float]  # azimuth and elevation in degrees, and confidence


@dataclass(frozen=True)
class HeadConfig:
    """What a head belongs to, and its size."""

    model: str  # name or path that load_model takes
    fingerprint: str  # of the model's encoder, see fingerprint()
    model_config: str  # the encoder's configuration, as JSON
    strategy: str  # raw or mean
    layer: int | None  # number of the encoder's blocks that are used; None is all
    size: int  # length of a row
    hidden: int  # units of the hidden layer; 0 for a linear head
    directions: int  # how many on the sphere


class Head(nn.Module):
    """Maps rows to directions: standardised, then linear or with one hidden layer.

    The sizes are those of :class:`HeadConfig`. ``dropout`` is the probability for the inputs and
    the hidden layer, in training.
    """

    mean: Tensor
    scale: Tensor
    grid: Tensor

    def __init__(self, size: int, hidden: int, directions: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        grid = torch.from_numpy(sphere(directions)).float()
        self.register_buffer("grid", grid, persistent=False)
        self.hidden = nn.Linear(size, hidden) if hidden else nn.Identity()
        self.output = nn.Linear(hidden or size, directions)

    def forward(self, rows: Tensor) -> Tensor:
        """(..., size) -> (..., directions), the logarithms of their probabilities."""
        values = F.dropout((rows - self.mean) / self.scale, self.dropout, self.training)
        if isinstance(self.hidden, nn.Linear):
            values = F.dropout(F.gelu(self.hidden(values)), self.dropout, self.training)
        return self.output(values).log_softmax(dim=-1)


def sphere(count: int) -> np.ndarray:
    """Return ``count`` directions, spread evenly over the sphere: (count, 3) float64 unit vectors.

    Source: the spherical Fibonacci lattice (Swinbank and Purser 2006).
    """
    number = np.arange(count) + 0.5
    z = 1 - 2 * number / count
    azimuth = np.pi * (1 + math.sqrt(5)) * number
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=1)


def answers(probabilities: np.ndarray) -> np.ndarray:
    """Return the answers that probabilities (n, directions) of ``sphere`` give.

    Returns:
        (n, 3) vectors: each the mean of the directions around the likeliest one, weighted by their
        probability, and as long as that probability together: the confidence.
    """
    grid = sphere(probabilities.shape[1])
    alike = grid @ grid.T
    kernel = np.exp(SHARPNESS * (alike - 1))
    likeliest = (probabilities @ kernel).argmax(axis=1)
    near = np.where(alike[likeliest] > math.cos(math.radians(NEAR)), probabilities, 0.0)
    mean = near @ grid
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    return near.sum(axis=1, keepdims=True) * mean / np.maximum(length, 1e-12)


def near_mirrored(
    probabilities: np.ndarray, azimuth: np.ndarray, elevation: np.ndarray
) -> np.ndarray:
    """Return what speaks for the directions mirrored from front to back, 180 - azimuth.

    Args:
        probabilities: (n, directions), of :func:`sphere`.
        azimuth, elevation: (n,) degrees, the answers.

    Returns:
        (n,) the probability of the directions within :data:`NEAR` degrees of the mirrored answer.
        NaN where that is less than twice as far away from the answer: a sound from the side, or
        from above, has no front or back to doubt. NaN where the answer is NaN, too.
    """
    mirror = unit_vector(180.0 - azimuth, elevation).T
    answer = mirror * (-1, 1, 1)
    near = mirror @ sphere(probabilities.shape[1]).T > math.cos(math.radians(NEAR))
    apart = (mirror * answer).sum(axis=-1) < math.cos(math.radians(2 * NEAR))
    return np.where(apart, np.where(near, probabilities, 0.0).sum(axis=-1), np.nan)


def mirrored_azimuth(azimuth: float) -> float:
    """Return an azimuth in degrees mirrored from front to back, in (-180, 180]."""
    return (-180.0 if azimuth < 0 else 180.0) - azimuth


def pooled(probabilities: np.ndarray) -> np.ndarray:
    """Return the probabilities (directions,) that one or more rows (n, directions) give together.

    Their mean, in which each row counts by one over the number of directions that it is spread
    over, ``exp(entropy)``: onsets say where a sound is, reverberation says little.
    """
    exact = probabilities.astype(np.float64)
    entropy = -(exact * np.log(np.maximum(exact, 1e-30))).sum(axis=1)
    return np.average(exact, axis=0, weights=np.exp(-entropy))


@dataclass(frozen=True, eq=False)
class Located:
    """Where a sound comes from, row by row: a row is one time step.

    Arrays are (rows,) float64 unless something else is said.

    Attributes:
        timestamps: milliseconds, the centres of the rows.
        azimuth: degrees, (-180, 180]: 0 in front, 90 left, counter-clockwise. NaN where silent.
        elevation: degrees above the horizon, [-90, 90]. NaN where silent.
        confidence: the probability of the directions around that one, 0 to 1. 0 where silent.
        level: dBFS, of the mean square over both ears, or of W.
        silent: bool. Rows below -70 dBFS are silent, and so are those more than 40 dB below the
            loudest row.
        probabilities: (rows, directions) float32, of directions spread evenly over the sphere.
        hop_ms: milliseconds from one row to the next.
    """

    timestamps: np.ndarray
    azimuth: np.ndarray
    elevation: np.ndarray
    confidence: np.ndarray
    level: np.ndarray
    silent: np.ndarray
    probabilities: np.ndarray
    hop_ms: float

    def table(self, start: float = 0.0) -> list[dict[str, Any]]:
        """Return a dict for each row, with rounded numbers, as ``gram-hear locate --json`` has it.

        The keys are ``time_s``, ``azimuth_deg``, ``elevation_deg``, ``confidence``, ``level_dbfs``,
        ``silent``, ``mirrored_azimuth_deg`` and ``mirrored_probability``. What a silent row lacks
        is None. ``start`` seconds are added to the times.
        """
        times = start + self.timestamps / 1000
        mirrored = self.mirrored
        azimuths = np.where(np.isnan(mirrored), np.nan, [*map(mirrored_azimuth, self.azimuth)])
        columns = (times, self.azimuth, self.elevation, self.confidence, self.level)
        rows = []
        for silent, *values in zip(self.silent.tolist(), *columns, azimuths, mirrored, strict=True):
            plain = [None if np.isnan(value) else round(float(value), 3) for value in values]
            rows.append(dict(zip(COLUMNS, [*plain[:5], silent, *plain[5:]], strict=True)))
        return rows

    def steps(self, seconds: float) -> Iterator[tuple[float, Direction | None, float, float]]:
        """Yield one tuple for each step of so many seconds.

        It holds the second at which the step begins, its :meth:`direction`, its mean level in dBFS,
        and the probability of the mirrored direction, as :attr:`overall_mirrored`. Steps without
        the centre of a row are left out.
        """
        numbers = np.floor(self.timestamps / 1000 / seconds).astype(int)
        for number in np.unique(numbers):
            inside = numbers == number
            level = 10 * np.log10(np.mean(10 ** (self.level[inside] / 10)))
            direction, mirrored = self.direction(inside), self._mirrored_of(inside)
            yield float(number * seconds), direction, float(level), mirrored

    @property
    def overall(self) -> Direction | None:
        """Azimuth, elevation and confidence of all rows together, by :meth:`direction`."""
        return self.direction(np.ones(len(self.silent), dtype=bool))

    @property
    def mirrored(self) -> np.ndarray:
        """How probable each row's answer is when mirrored from front to back, (rows,).

        NaN for silent rows, and for sounds from the side or from above, which have no front or
        back to confuse.
        """
        return near_mirrored(self.probabilities, self.azimuth, self.elevation)

    @property
    def overall_mirrored(self) -> float:
        """What ``mirrored`` is for a row, for the answer of all rows together. NaN without one."""
        return self._mirrored_of(np.ones(len(self.silent), dtype=bool))

    def _mirrored_of(self, rows: np.ndarray) -> float:
        """Return what speaks for the other of front and back of some rows together."""
        if (direction := self.direction(rows)) is None:
            return math.nan
        together = pooled(self.probabilities[rows & ~self.silent])[None]
        return float(near_mirrored(together, *np.array(direction[:2])[:, None])[0])

    @property
    def agreement(self) -> float:
        """How much the directions of the rows agree: 1 where all are one, 0 where they cancel.

        The length of the mean of their unit vectors, weighted by confidence and amplitude. Rows of
        less confidence than ``DOUBTFUL`` do not count; NaN where all have less.
        """
        sure = self.confidence >= DOUBTFUL
        if not sure.any():
            return math.nan
        vectors = unit_vector(self.azimuth[sure], self.elevation[sure])
        level = self.level[sure] - self.level[sure].max()
        weights = self.confidence[sure] * 10 ** (level / 20)
        return float(np.linalg.norm(np.average(vectors, axis=1, weights=weights)))

    def direction(self, rows: np.ndarray) -> Direction | None:
        """Return azimuth and elevation in degrees, and confidence, of some rows together.

        Rows that are surer of their direction count more. If several sources sound, the answer is
        the direction of one of them, with less confidence.

        Args:
            rows: (rows,) bool, which rows count. Silent ones never do.

        Returns:
            The three numbers, or None if all these rows are silent.
        """
        heard = self.probabilities[rows & ~self.silent]
        if len(heard) == 0:
            return None
        [answer] = answers(pooled(heard)[None])
        azimuth, elevation = angles(answer)
        return float(azimuth), float(elevation), float(np.linalg.norm(answer))


class Locator:
    """A frozen binaural or Ambisonic model, and the localisation head on it.

    A localisation head is a small network that turns an embedding into a direction.

    Attributes:
        model: what embeds.
        head: what turns rows into directions.
        config: which model the head belongs to, and its sizes.
    """

    def __init__(self, model: HearModel, head: Head, config: HeadConfig) -> None:
        layout = model.config.front_end.layout
        if layout not in BUNDLED:
            raise CheckpointError(
                f"The model {config.model} is {layout}, and a sound has directions only where it "
                f"is {' or '.join(BUNDLED)}. Take another model."
            )
        self.model = model
        self.head = head.to(model.device).eval()
        self.config = config

    @property
    def sample_rate(self) -> int:
        """The rate that audio is resampled to, Hz."""
        return self.model.sample_rate

    @property
    def layout(self) -> str:
        """The layout of the audio that it takes, ``"binaural"`` or ``"ambisonic"``."""
        return self.model.config.front_end.layout

    def locate(self, audio: Tensor | np.ndarray, rate: int | None = None) -> Located:
        """Find where a sound comes from.

        Args:
            audio: (2, samples), left ear first. Or (4, samples) for an Ambisonic model, in the
                convention that it was loaded with. float32 or float64 in [-1, 1].
            rate: Hz. None is the model's. Audio of another rate is resampled.

        Returns:
            The direction of each row, and of all rows together, as a :class:`Located`.

        Raises:
            AudioError: for audio of another layout, without samples, or with values that are not
                finite. Also for embeddings that are not finite.
            OptionError: for a rate below 1.
        """
        [clip] = as_clips(audio[None])
        check_layout("The audio", clip.shape[0], [self.layout])
        clip = _at_rate(clip.detach(), rate or self.sample_rate, self.sample_rate)
        with torch.inference_mode():
            parts = [self._locate_windows(windows) for windows in self._windows(clip)]
        plan = self.model.plan(clip.shape[1])
        probabilities, powers = (plan.keep(torch.cat(each)) for each in zip(*parts, strict=True))
        levels = row_levels(powers, 1 + clip.shape[1] // self.model.config.front_end.hop)
        return _located(
            plan.timestamps(), probabilities.cpu().numpy(), levels.cpu().numpy(), self.model.hop_ms
        )

    def _windows(self, clip: Tensor) -> Iterator[Tensor]:
        """Yield the feature windows of a clip, at most ``window_batch`` at a time."""
        stream = self.model.stream()
        for block in clip.split(round(BLOCK_SECONDS * self.sample_rate), dim=1):
            yield from self._batches(stream.push(self.model.lay_out(block)))
        yield from self._batches(stream.finish())

    def _batches(self, windows: Tensor) -> Iterator[Tensor]:
        if len(windows):
            yield from windows.split(self.model.options.window_batch)

    def _locate_windows(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows' probabilities, (windows, rows, directions), and :func:`row_powers`."""
        rows = self.model.encode(windows)
        check_finite(rows, "The audio")
        with torch.autocast(rows.device.type, enabled=False):  # as the model shields itself
            probabilities = self.head(rows).exp()
        return probabilities, row_powers(windows, self.model.config)

    def save(self, path: str | PathLike) -> Path:
        """Write the head and which model it belongs to, as ``*.safetensors``, whole or not at all.

        Raises:
            OptionError: for another suffix.
            CheckpointError: if the file cannot be written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise OptionError(f"Heads are safetensors: {path} must end in .safetensors.")
        state = self.head.state_dict()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        # One entry alone: safetensors writes several in an order that changes from run to run.
        write_tensors(path, tensors, {HEAD_KEY: json.dumps(asdict(self.config))})
        return path


def load_locator(
    name_or_path: str | PathLike = "",
    *,
    layout: str = "",
    model: str | PathLike = "",
    convention: str | None = None,
    device: str = "cpu",
) -> Locator:
    """Load a localisation head and the model that it belongs to.

    Args:
        name_or_path: the file of a head. "" is the one that ships with the package for ``layout``.
        layout: of the audio: ``"binaural"`` (the bundled head is that of ``gram-tiny``) or
            ``"ambisonic"`` (that of ``gram-tiny-ambisonics``). "" is what the file says, or
            binaural if no file is given.
        model: name or path of the embedding model. "" is the one that the head names.
        convention: of four-channel audio, as of ``load_model``. None is AmbiX.
        device: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``.

    Returns:
        The model with its head, ready to locate.

    Raises:
        CheckpointError: for a file that is missing or no head. Also for a model whose weights or
            configuration are not those that the head was trained on.
        OptionError: for an unknown layout, or another than that of the file. Also for an unknown
            model, convention or device.

    Example::

        sound = gram_hear.read_audio("scene.wav", 32000)
        found = gram_hear.load_locator().locate(sound.audio)
        azimuth, elevation, confidence = found.overall
    """
    if layout and layout not in BUNDLED:
        raise OptionError(
            f"Nothing is located in the layout {layout!r}; {allowed(layout, BUNDLED)}"
        )
    path = Path(fspath(name_or_path) or bundled_head(layout or "binaural"))
    head, config = read_head(path)
    found_device = find_device(device)
    checkpoint = load_checkpoint(model or config.model)
    if fingerprint(checkpoint) != config.fingerprint:
        raise CheckpointError(
            f"The head {path.name} was trained on {config.model} (fingerprint "
            f"{config.fingerprint[:12]}), and {checkpoint.source.name} is another model "
            f"({fingerprint(checkpoint)[:12]}), on which it would answer at random. Use the model "
            "that it belongs to, or train a head on this one: weights/recipe/locator.py."
        )
    options = Options(strategy=config.strategy, layer=config.layer, convention=convention)
    locator = Locator(from_checkpoint(checkpoint, options).to(found_device), head, config)
    if layout and locator.layout != layout:
        raise OptionError(
            f"The head {path.name} hears {locator.layout} sound, and the layout {layout!r} was "
            "asked for. Leave one of the two out."
        )
    return locator


def bundled_head(layout: str) -> Path:
    """Return the head that ships with the package for a layout."""
    path = Path(str(files("gram_hear.weights") / BUNDLED[layout]))
    if not path.is_file():
        raise CheckpointError(
            f"This gram-hear comes without {path.name}, the head of localisation. Give a head's "
            "file, or train one: weights/recipe/locator.py."
        )
    return path


def read_head(path: Path) -> tuple[Head, HeadConfig]:
    """Read a head's file: every tensor and every key of its metadata checked.

    Raises:
        CheckpointError: for a file that is missing, damaged, or no head.
    """
    try:
        tensors, metadata = read_tensors(path)
        config = _parse(metadata.get(HEAD_KEY))
    except (CheckpointError, OSError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error
        said = f"{path} cannot be read as a head of localisation: {reason}"
        raise CheckpointError(said) from error
    size, hidden, directions = config.size, config.hidden, config.directions
    wanted: dict[str, tuple[int, ...]] = {
        "mean": (size,),
        "scale": (size,),
        "output.weight": (directions, hidden or size),
        "output.bias": (directions,),
    }
    if hidden:
        wanted |= {"hidden.weight": (hidden, size), "hidden.bias": (hidden,)}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != given or not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise CheckpointError(
            f"{path}: its tensors do not fit a head of {size} values, {hidden} hidden units and "
            f"{directions} directions, or are not finite. Train it anew: weights/recipe/locator.py."
        )
    head = Head(size, hidden, directions)
    head.load_state_dict(tensors)
    return head, config


def _parse(text: str | None) -> HeadConfig:
    if text is None:
        raise CheckpointError(f"its metadata have no {HEAD_KEY}; it may be an embedding model.")
    try:
        given = parse_json(text, f"its {HEAD_KEY}", CheckpointError, LARGEST_CONFIG)
        config = HeadConfig(**given)
    except TypeError as error:
        raise CheckpointError(f"its {HEAD_KEY} is not understood ({error}).") from error
    fits = all(
        isinstance(getattr(config, each.name), each.type)  # type: ignore[arg-type]
        for each in fields(config)
    )
    fits = fits and min(config.size, config.directions) >= 1 and config.hidden >= 0
    if not fits or config.strategy not in STRATEGIES:
        raise CheckpointError(f"its {HEAD_KEY} has a value that cannot be: {given}.")
    return config


def describe_head(
    checkpoint: Checkpoint, name: str, options: Options, size: int, hidden: int, directions: int
) -> HeadConfig:
    """Return the configuration of a head trained on rows that a checkpoint gives by ``options``.

    ``name`` is that by which ``load_model`` finds the checkpoint.
    """
    return HeadConfig(
        model=name,
        fingerprint=fingerprint(checkpoint),
        model_config=encoder_only(checkpoint).config.to_json(),
        strategy=options.strategy,
        layer=options.layer,
        size=size,
        hidden=hidden,
        directions=directions,
    )


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a hash of a checkpoint's encoder: its configuration and all tensors, in float32.

    It is the same whether the checkpoint has its decoder or not, and in whatever file it is.
    """
    encoder = encoder_only(checkpoint)
    digest = hashlib.sha256(encoder.config.to_json().encode())
    for name, tensor in sorted(encoder.tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def check_layout(what: str, channels: int, layouts: Collection[str]) -> None:
    """Raise an AudioError that says why, where ``channels`` are those of none of the layouts."""
    given = LAYOUT_OF_AUDIO.get(channels)
    if given in layouts:
        return
    reason = {
        "mono": "is mono: with one channel nothing tells where it comes from",
        "binaural": "has 2 channels (binaural), and this head hears Ambisonic sound",
        "ambisonic": "has 4 channels (Ambisonic), and this head hears two ears",
    }.get(str(given), f"has {channels} channels")
    wanted = {
        "binaural": "a binaural sound (2 channels, the left ear first)",
        "ambisonic": "a first-order Ambisonic sound (4 channels)",
    }
    remedy = f"Give {' or '.join(wanted[layout] for layout in layouts)}"
    if given in BUNDLED:
        remedy += f"; or take a head for the layout {given!r}, as the one that is bundled"
    raise AudioError(f"{what} {reason}. {remedy}.")


def row_powers(windows: Tensor, config: ModelConfig) -> Tensor:
    """Return the mean square of each frame, as its log-mel has it: of both ears, or of W.

    The mel filters add up to 1 between the centres of the first and the last, so that their sum is
    the power of that band (here 50 to 16,000 Hz).

    Args:
        windows: (windows, feature channels, window frames, mels), not normalised.
        config: of the model.

    Returns:
        (windows, rows, frames of a row).
    """
    front_end = config.front_end
    heard = windows[:, : 1 if front_end.layout == "ambisonic" else front_end.audio_channels]
    power = (heard.exp() - front_end.log_floor).clamp(min=0).sum(dim=3).mean(dim=1)
    window_power = 0.375 * front_end.n_fft  # the sum of the squared Hann window
    mean_square = 2 * power / (front_end.n_fft * window_power)
    return mean_square.unflatten(1, (-1, config.patch.frames))


def row_levels(powers: Tensor, frames: int) -> Tensor:
    """Return the level of each row in dBFS: a sine of amplitude 1 has -3.

    Args:
        powers: (rows, frames of a row) of a whole clip, from its first row on.
        frames: of the clip; what is past them does not count.

    Returns:
        (rows,).
    """
    inside = torch.arange(powers.numel(), device=powers.device).view(powers.shape) < frames
    mean = (powers * inside).sum(dim=1) / inside.sum(dim=1)
    return 10 * torch.log10(mean + 1e-20)


def is_silent(levels: np.ndarray) -> np.ndarray:
    """Return which rows are silent, of levels (rows,) in dBFS."""
    return levels < max(QUIETEST, float(levels.max()) - BELOW_LOUDEST)


def _located(
    timestamps: np.ndarray, probabilities: np.ndarray, levels: np.ndarray, hop_ms: float
) -> Located:
    silent = is_silent(levels)
    vectors = np.where(silent[:, None], 0.0, answers(probabilities))
    azimuth, elevation = (np.where(silent, np.nan, each) for each in angles(vectors))
    confidence = np.linalg.norm(vectors, axis=1)
    return Located(
        timestamps,
        azimuth,
        elevation,
        confidence,
        levels.astype(np.float64),
        silent,
        probabilities,
        hop_ms,
    )


def _at_rate(clip: Tensor, rate: int, wanted: int) -> Tensor:
    """Return a clip (channels, samples) at the rate that is wanted."""
    if rate < 1:
        raise OptionError(f"The rate is {rate} Hz; it must be at least 1.")
    if rate == wanted:
        return clip
    resampled = resample(clip.cpu().numpy().T, rate, wanted)
    if len(resampled) == 0:
        raise AudioError(f"The audio holds less than one sample at {wanted} Hz.")
    return torch.from_numpy(np.ascontiguousarray(resampled.T))
