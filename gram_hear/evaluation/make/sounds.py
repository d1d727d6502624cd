"""The sound files of a task: looked at, then decoded once, hashed, cut, resampled, written."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gram_hear.audio.files import BLOCK_SECONDS, SoundReader
from gram_hear.audio.wav import write_wav
from gram_hear.config import SOUND_RATES, require_rate
from gram_hear.errors import AudioError, OptionError
from gram_hear.evaluation.embed.task_audio import resample
from gram_hear.jobs.writing import write_whole

COPIED = (".wav", ".flac")  # formats that lose nothing and know their length


@dataclass(frozen=True)
class Form:
    """What the sound of a task is made into.

    Attributes:
        rates: Hz; none: the highest of the recordings' own.
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
class Header:
    """What a file's header says: Hz, channels, and seconds (0 where it does not know)."""

    rate: int
    channels: int
    seconds: float


def read_header(path: Path) -> Header:
    """Return what a file's header says.

    Raises:
        AudioError: for what cannot be read as sound, or has other channels than 1, 2 or 4.
    """
    # Nothing is resampled until blocks are asked for.
    with SoundReader(path, SOUND_RATES[1]) as reader:
        return Header(reader.file_rate, reader.channels, reader.duration)


def stamp(path: Path) -> list[int]:
    """Return a file's size and the time of its last change."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def make_sound(path: Path, header: Header, form: Form, place: Path, stem: str) -> dict[str, Any]:
    """Write a file at all rates, as ``<place>/<rate>/<stem><suffix>``; channels are kept.

    A WAV file is copied as it is to its own rate where its length is not changed, and so is a FLAC
    file where no other rate is made; everything else becomes WAV of 32-bit floats.

    Args:
        path: the file.
        header: its header.
        form: with at least one rate; their folders are there.
        place: the folder of the rates' folders.
        stem: the name that it has there.

    Returns:
        ``stamp`` of the file before it was read, ``hash`` of the samples that are used, ``samples``
        at the first rate, ``suffix`` (its own where it was copied), and ``sizes``, bytes
        at each rate.

    Raises:
        AudioError: for a file that is damaged, holds no samples, or NaN or infinite ones.
        OSError: where it cannot be written.
    """
    before = stamp(path)
    audio, is_whole = decode(path, header, form.duration)
    kept = is_whole and form.duration is None and header.rate in form.rates
    kept &= path.suffix.lower() in (COPIED if len(form.rates) == 1 else COPIED[:1])
    suffix = path.suffix if kept else ".wav"
    sizes, samples = {}, 0
    for rate in form.rates:
        target = place / str(rate) / f"{stem}{suffix}"
        if kept and rate == header.rate:
            copy(path, target)
            made = audio
        else:
            made = fit(convert(audio, header.rate, rate), rate, form.duration)
            write_wav(target, made, rate)
        samples = samples or made.shape[1]
        sizes[str(rate)] = os.path.getsize(target)
    return {
        "stamp": before,
        "hash": digest(audio, header.rate),
        "samples": samples,
        "suffix": suffix,
        "sizes": sizes,
    }


def decode(path: Path, header: Header, duration: float | None) -> tuple[np.ndarray, bool]:
    """Return the samples that are used, (channels, samples) float32 at the file's own rate.

    Also whether the file holds just these samples, so that a copy of it can stand for them.
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


def convert(audio: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample (channels, samples)."""
    if rate == new_rate:
        return audio
    return resample(np.ascontiguousarray(audio.T), rate, new_rate).T


def fit(audio: np.ndarray, rate: int, duration: float | None) -> np.ndarray:
    """Cut (channels, samples) to a duration in seconds, or pad it with zeros at the end."""
    if duration is None:
        return audio
    samples = max(1, round(duration * rate))
    return np.pad(audio[:, :samples], ((0, 0), (0, max(0, samples - audio.shape[1]))))


def copy(path: Path, target: Path) -> None:
    """Copy a file as it is, whole or not at all."""
    write_whole(target, lambda place: shutil.copyfile(path, place))
