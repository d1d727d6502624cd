"""Sound files in: any format of libsndfile, any rate, 1, 2 or 4 channels."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gram_hear.audio.layouts import LAYOUT_OF_AUDIO
from gram_hear.errors import AudioError

# What a folder is searched for; a file that is named is read whatever its suffix.
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".w64", ".caf")


@dataclass(frozen=True)
class Recording:
    """The samples of a file, resampled: (channels, samples) float32, full scale at 1.

    ``file_rate`` is the file's own sample rate in Hz, ``duration`` its length in seconds.
    """

    audio: np.ndarray
    file_rate: int
    duration: float


def find_audio(folder: Path) -> Iterator[Path]:
    """Yield the sound files below a folder, by their suffix, in sorted order; hidden ones not."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(parent) / name


def read_audio(path: str | os.PathLike, sample_rate: int) -> Recording:
    """Read a whole sound file and resample it.

    Args:
        path: a file that libsndfile reads: WAV, FLAC, OGG, Opus, MP3, AIFF, and others.
        sample_rate: to resample to, in Hz (soxr, high quality).

    Raises:
        AudioError: for a missing, empty or foreign file, one without samples, or with another
            number of channels than 1, 2 or 4.
    """
    import soundfile

    path = Path(path)
    if not path.exists():
        raise AudioError(f"There is no file {path}.")
    if path.is_dir():
        raise AudioError(f"{path} is a folder; a sound file was expected.")
    if path.stat().st_size == 0:
        raise AudioError(f"{path} is empty (0 bytes).")
    try:
        samples, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path} could not be read as sound: {error}") from error
    length, channels = samples.shape
    if length == 0:
        raise AudioError(f"{path} holds no samples.")
    if channels not in LAYOUT_OF_AUDIO:
        raise AudioError(
            f"{path} has {channels} channels; allowed are 1 (mono), 2 (binaural) and 4 "
            "(first-order Ambisonics)."
        )
    audio = resample(samples.T, file_rate, sample_rate)
    return Recording(audio, file_rate, length / file_rate)


def resample(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample (channels, samples) float32 with soxr; the same array where the rates agree."""
    if from_rate == to_rate:
        return np.ascontiguousarray(audio)
    import soxr

    return np.ascontiguousarray(soxr.resample(audio.T, from_rate, to_rate, quality="HQ").T)
