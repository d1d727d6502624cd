"""The sound files of a task: headers read, then each file decoded once, hashed, cut, written."""

import hashlib
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from gram_hear.audio.files import BLOCK_SECONDS, SoundReader, resample
from gram_hear.audio.wav import write_wav
from gram_hear.config import SOUND_RATES, require_rate
from gram_hear.errors import AudioError, OptionError
from gram_hear.jobs.writing import write_whole

COPIED = (".wav", ".flac")  # formats that lose nothing and know their length


@dataclass(frozen=True)
class SoundOptions:
    """What the sound of a task is converted to.

    Attributes:
        rates: sample rates in Hz; empty: the highest one of the recordings.
        duration: seconds to which clips are cut, or padded with zeros at the end; None keeps them.
    """

    rates: tuple[int, ...] = ()
    duration: float | None = None

    def __post_init__(self) -> None:
        for rate in self.rates:
            require_rate(rate, SOUND_RATES)
        if self.duration is not None and not 0.01 <= self.duration <= 3600:
            raise OptionError(f"The duration is {self.duration:g}; it must be 0.01 to 3600 s.")


@dataclass(frozen=True)
class SoundHeader:
    """What a file's header says: rate in Hz, channels, seconds (0 where it does not say)."""

    rate: int
    channels: int
    seconds: float


@dataclass(frozen=True)
class MadeSound:
    """A recording that was converted to all rates of the task.

    Attributes:
        stamp: size and time of the recording before it was read, see :func:`stamp`.
        hash: of the samples that are used, see :func:`digest`.
        samples: of the clip at the first rate.
        suffix: of the files: the recording's own where it was copied, else ``.wav``.
    """

    stamp: list[int]
    hash: str
    samples: int
    suffix: str


def read_header(path: Path) -> SoundHeader:
    """Return what a file's header says.

    Raises:
        AudioError: for what cannot be read as sound, or has other channels than 1, 2 or 4.
    """
    # Nothing is resampled until blocks are asked for.
    with SoundReader(path, SOUND_RATES[1]) as reader:
        return SoundHeader(reader.file_rate, reader.channels, reader.duration)


def stamp(path: Path) -> list[int]:
    """Return a file's size and the time of its last change."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def make_sound(
    path: Path, header: SoundHeader, options: SoundOptions, folder: Path, stem: str
) -> MadeSound:
    """Write a file at all rates, as ``<folder>/<rate>/<stem><suffix>``; channels are kept.

    A WAV file is copied as it is to its own rate where its length is not changed, and so is a FLAC
    file where no other rate is made; everything else becomes WAV of 32-bit floats.

    Args:
        path: the file.
        header: its header.
        options: with at least one rate.
        folder: has a folder for each rate.
        stem: the name of the files that are written, without suffix.

    Raises:
        AudioError: for a file that is damaged, holds no samples, or NaN or infinite ones.
        OSError: where it cannot be written.
    """
    before = stamp(path)
    audio, is_whole = decode(path, header, options.duration)
    kept = is_whole and options.duration is None and header.rate in options.rates
    kept &= path.suffix.lower() in (COPIED if len(options.rates) == 1 else COPIED[:1])
    suffix = path.suffix if kept else ".wav"
    samples = 0
    for rate in options.rates:
        target = folder / str(rate) / f"{stem}{suffix}"
        if kept and rate == header.rate:
            write_whole(target, partial(shutil.copyfile, path))
            made = audio
        else:
            made = fit(resample(audio.T, header.rate, rate).T, rate, options.duration)
            write_wav(target, made, rate)
        samples = samples or made.shape[1]
    return MadeSound(before, digest(audio, header.rate), samples, suffix)


def decode(path: Path, header: SoundHeader, duration: float | None) -> tuple[np.ndarray, bool]:
    """Read the samples that are used of a file.

    Returns:
        (channels, samples) float32 at the file's own rate; and whether the file holds just these,
        so that a copy of it can stand for them.
    """
    most = None if duration is None else int(np.ceil(duration * header.rate))
    blocks, read = [], 0
    seconds = min(header.seconds or BLOCK_SECONDS, BLOCK_SECONDS)  # room for more costs time
    with SoundReader(path, header.rate) as reader:
        for block in reader.blocks(seconds):
            blocks.append(block)
            read += block.shape[1]
            if most is not None and read >= most:
                break
    audio = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
    if not np.isfinite(audio).all():
        raise AudioError(f"{path} holds NaN or infinite samples; repair or remove it.")
    return audio[:, :most], reader.is_plain and read == round(header.seconds * header.rate)


def digest(audio: np.ndarray, rate: int) -> str:
    """Return a hash of samples (channels, samples): equal sound has it in whatever format."""
    found = hashlib.sha256(f"{rate} {audio.shape}".encode())
    found.update(np.ascontiguousarray(audio).data)
    return found.hexdigest()


def fit(audio: np.ndarray, rate: int, duration: float | None) -> np.ndarray:
    """Cut (channels, samples) to a duration in seconds, or pad it with zeros at the end."""
    if duration is None:
        return audio
    samples = max(1, round(duration * rate))
    return np.pad(audio[:, :samples], ((0, 0), (0, max(0, samples - audio.shape[1]))))
