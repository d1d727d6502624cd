"""Sets of noises: synthetic, a folder of sound files, or tars of sound files or ``.npy`` arrays."""

import hashlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gram_hear.audio.archives import (
    NPY_RATE,
    ArrayReader,
    Member,
    find_sounds,
    first_channel,
    is_array,
)
from gram_hear.audio.containers import stated_layout, view_of
from gram_hear.audio.files import (
    UNKNOWN,
    SoundReader,
    decoding_faults,
    resample,
    resampled_length,
)
from gram_hear.audio.synthesis import synthesise_noise
from gram_hear.config import SOUND_RATES
from gram_hear.errors import AudioError, OptionError, SceneError
from gram_hear.scenes.mixing import fade_ends, to_level

# Formats in which libsndfile finds any sample, and whose headers state the true length.
SEEKABLE = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC")
MARGIN = 1024  # samples on each side of an excerpt, at the lower rate: more than soxr's filter has
BUFFER = 2**16  # bytes of a file that are read at once


@dataclass(frozen=True, eq=False)
class Noise:
    """A noise for a clip."""

    audio: np.ndarray  # (m,) float32, at most as long as the clip
    whole: bool  # whether it is a whole sound; False is an excerpt of a longer one
    name: str  # of the file, or the kind of a synthetic noise
    offset: int  # the sample of the sound at which the excerpt starts, at the set's rate

    def put(self, start: int, samples: int, rate: int, level: float | None = None) -> Tensor:
        """Return the noise, faded, as it sounds from ``start`` on in a clip: (1, samples).

        Before, it is brought to ``level``, in dBFS; None leaves it as it is.
        """
        sound = torch.from_numpy(self.audio)
        padded = torch.zeros(1, samples)
        inside = padded[0, start : start + len(sound)]
        inside.copy_(sound if level is None else to_level(sound, level))
        fade_ends(inside, self.whole, rate)
        return padded

    def describe(self, start: int) -> dict[str, Any]:
        """Return what there is to say of the noise, as plain data."""
        facts = {"name": self.name, "offset": self.offset, "whole": self.whole}
        return {**facts, "start": start, "samples": len(self.audio)}


class NoiseSet:
    """A set of noises to draw from; this class makes synthetic ones.

    Example::

        noise = open_noise(Path("noises"), 32000).draw([1], samples=64000).audio

    Attributes:
        rate: Hz of the noises that are drawn.
        name: the path that the set was opened from, or "synthetic".
    """

    def __init__(self, name: str, rate: int) -> None:
        self.name = name
        self.rate = rate

    @property
    def identity(self) -> dict[str, Any]:
        """The identity of the set as plain data for manifests; it leaves out its path."""
        return {"kind": "synthetic"}

    def draw(self, seed: Sequence[int], samples: int) -> Noise:
        """Draw a noise for a clip.

        Args:
            seed: numbers of 0 or more. The draw depends on them and the set alone.
            samples: the length of the clip; of a longer sound a random excerpt is taken.

        Raises:
            SceneError: for a sound that cannot be read; the message names it.
        """
        if samples < 1:
            raise OptionError(f"A noise for {samples} samples was asked for; give at least 1.")
        made = synthesise_noise(seed, samples, self.rate)
        return Noise(made.audio, False, made.kind, 0)


class RecordedNoises(NoiseSet):
    """Sound files, in folders or tars; the first channel of each, resampled.

    With ``in_parts`` no more than the excerpt is read of a sound that allows it: a ``.npy`` array,
    or a file of :data:`SEEKABLE` whose header knows its length. The draws are the same, and the
    excerpt is equal except for rounding. What is wrong with the rest of the sound is not noticed.
    """

    def __init__(
        self, path: Path, rate: int, sounds: Sequence[Path | Member], in_parts: bool = False
    ) -> None:
        super().__init__(str(path), rate)
        self.folder = path if path.is_dir() else path.parent
        self.sounds = sounds
        self.in_parts = in_parts

    def __len__(self) -> int:
        return len(self.sounds)

    @property
    def identity(self) -> dict[str, Any]:
        """The identity of the set: the names of its sounds, hashed, and their number."""
        names = "\n".join(self._name(sound) for sound in self.sounds)
        digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        return {"kind": "recorded", "sounds": len(self.sounds), "names_sha256": digest}

    def draw(self, seed: Sequence[int], samples: int) -> Noise:
        """Draw a sound, or an excerpt where it is longer than the clip; as :class:`NoiseSet`."""
        if samples < 1:
            raise OptionError(f"A noise for {samples} samples was asked for; give at least 1.")
        generator = np.random.default_rng([*seed, 0])
        sound = self.sounds[int(generator.integers(len(self.sounds)))]
        found = self._excerpt(sound, generator, samples) if self.in_parts else None
        if found is None:
            audio = _checked(_read(sound, self.rate), sound)
            if len(audio) <= samples:
                return Noise(audio, True, self._name(sound), 0)
            offset = int(generator.integers(len(audio) - samples + 1))
            found = audio[offset : offset + samples].copy(), offset
        return Noise(found[0], False, self._name(sound), found[1])

    def _excerpt(
        self, sound: Path | Member, generator: np.random.Generator, samples: int
    ) -> tuple[np.ndarray, int] | None:
        """Return an excerpt of a longer sound, and its offset.

        Returns None, and draws nothing, where the sound is no longer or must be read whole.
        """
        with _open(sound) as opened:
            if opened is None:
                return None
            length = resampled_length(opened.length, opened.rate, self.rate)
            if length <= samples:
                return None
            state = generator.bit_generator.state
            offset = int(generator.integers(length - samples + 1))
            first, last, skip = _span(offset, samples, opened.length, opened.rate, self.rate)
            part = opened.read(first, last - first)
            if len(part) < last - first:  # its header was wrong
                generator.bit_generator.state = state
                return None
            audio = resample(part, opened.rate, self.rate)[skip : skip + samples]
            return _checked(audio, sound), offset

    def _name(self, sound: Path | Member) -> str:
        if isinstance(sound, Path):
            return sound.relative_to(self.folder).as_posix()
        return f"{sound.path.relative_to(self.folder).as_posix()}/{sound.name}"


def open_noise(path: str | Path | None, rate: int, *, in_parts: bool = False) -> NoiseSet:
    """Open a set of noises, for :func:`gram_hear.make_scene`.

    Example::

        noise = open_noise(None, 32000)

    Args:
        path: a folder, which is searched for sound files and tars. Or one tar, or one sound file.
            Or None, for synthetic noises. ``.npy`` arrays in tars are (samples,) or
            (channels, samples) at 32 kHz.
        rate: Hz, to which the noises are resampled.
        in_parts: whether no more is read of a recorded noise than the excerpt that is drawn. This
            is much faster for long files, but then damage elsewhere in a file is not noticed.

    Raises:
        SceneError: if there is no sound, and for tars that cannot be read or hold only other files.
        OptionError: for a rate below 1.
    """
    if rate < 1:
        raise OptionError(f"The rate is {rate} Hz; it must be at least 1.")
    if path is None:
        return NoiseSet("synthetic", rate)
    path = Path(path)
    sounds = list(find_sounds(path))
    if not sounds:
        raise SceneError(
            f"{path} holds no noise; it must hold sound files (.wav, .flac, .mp3, ...), or tars, "
            "not compressed, of these or of .npy arrays."
        )
    return RecordedNoises(path, rate, sounds, in_parts)


# --- reading --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    """A sound of known length, of which parts can be read."""

    length: int  # samples
    rate: int  # Hz
    read: Callable[[int, int], np.ndarray]  # (first, count) -> the first channel, (count,) float32


@contextmanager
def _open(sound: Path | Member) -> Iterator[_Opened | None]:
    """Open a sound to read a part of it; yield None where it must be read whole.

    The reader of whole sounds says what is wrong with one that cannot be opened.
    """
    if is_array(sound):
        array = ArrayReader(sound)
        yield _Opened(array.length, NPY_RATE, array.read)
        return
    with ExitStack() as closing:
        try:
            import soundfile

            view = view_of(sound)
            file = closing.enter_context(io.BufferedReader(view, BUFFER))
            opened = closing.enter_context(soundfile.SoundFile(file))
        except decoding_faults():
            yield None
            return
        if not (
            opened.format in SEEKABLE
            and 0 < opened.frames < UNKNOWN
            and SOUND_RATES[0] <= opened.samplerate <= SOUND_RATES[1]
            and not (opened.channels == 4 and stated_layout(opened) == "fuma")  # its W is scaled
        ):
            yield None
            return

        def read(first: int, count: int) -> np.ndarray:
            try:
                opened.seek(first)
                opened.seekable = lambda: False  # or soundfile would seek after reading
                part = opened.read(count, dtype="float32", always_2d=True)[:, 0]
            except decoding_faults():
                part = np.zeros(0, dtype=np.float32)
            return part if view.error is None else part[:0]

        yield _Opened(opened.frames, opened.samplerate, read)


def _span(
    offset: int, samples: int, length: int, file_rate: int, rate: int
) -> tuple[int, int, int]:
    """Return which part of a sound gives an excerpt of it as if the whole had been resampled.

    Args:
        offset, samples: of the excerpt, at ``rate``.
        length: of the sound, at ``file_rate``.
        file_rate, rate: Hz.

    Returns:
        The first sample of the part, the one after its last, and how many samples of the part to
        leave out when it is resampled. The part begins where a sample of the resampled sound falls
        on one of the file, and reaches further than the filter of the resampler on both sides.
    """
    if file_rate == rate:
        return offset, offset + samples, 0
    step = file_rate // math.gcd(file_rate, rate)
    margin = MARGIN * math.ceil(max(1, file_rate / rate))
    first = max(0, offset * file_rate // rate - margin) // step * step
    last = min(length, math.ceil((offset + samples) * file_rate / rate) + margin)
    return first, last, offset - first * rate // file_rate


def _read(sound: Path | Member, rate: int) -> np.ndarray:
    """Return the first channel of a whole sound, resampled: (samples,) float32."""
    if is_array(sound):
        return resample(first_channel(sound), NPY_RATE, rate)
    try:
        with SoundReader(sound, rate, any_channels=True) as reader:
            return np.concatenate([block[0] for block in reader.blocks()])
    except AudioError as error:
        raise SceneError(f"A noise cannot be used: {error}") from error


def _checked(audio: np.ndarray, sound: Path | Member) -> np.ndarray:
    if len(audio) == 0:
        raise SceneError(f"{sound} holds no samples; leave it out of the set.")
    if not np.isfinite(audio).all():
        raise SceneError(f"{sound} holds NaN or infinite samples; leave it out of the set.")
    return audio
