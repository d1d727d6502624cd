"""Excerpts of sound files: a part is read, and nothing after it."""

from dataclasses import dataclass
from os import PathLike

import numpy as np

from gram_hear.audio.files import SoundReader
from gram_hear.errors import AudioError, OptionError


@dataclass(frozen=True, eq=False)
class Excerpt:
    """A part of a sound file, resampled."""

    audio: np.ndarray  # (channels, samples) float32; four channels are in AmbiX
    rate: int  # Hz of the audio
    start: float  # seconds of the file at which it begins
    file_rate: int  # Hz
    goes_on: bool  # whether the file holds more sound after it

    @property
    def end(self) -> float:
        """Seconds of the file at which it ends."""
        return self.start + self.audio.shape[1] / self.rate


def read_excerpt(
    path: str | PathLike,
    rate: int,
    start: float = 0.0,
    duration: float | None = None,
    convention: str | None = None,
) -> Excerpt:
    """Read an excerpt of a sound file.

    Args:
        path: as :class:`gram_hear.audio.files.SoundReader` takes it.
        rate: Hz that the sound is resampled to.
        start: seconds.
        duration: seconds, at most; None is all that follows.
        convention: of four channels; None is what the file says, else AmbiX.

    Raises:
        AudioError: for a file that cannot be read, or that holds values that are not finite.
        OptionError: for bounds that cannot be, or a start at or past the file's end.
    """
    check_bounds(start, duration)
    first = round(start * rate)
    last = None if duration is None else first + max(1, round(duration * rate))
    blocks: list[np.ndarray] = []
    position, goes_on = 0, False
    with SoundReader(path, rate, convention=convention) as reader:
        for block in reader.blocks():
            goes_on = last is not None and position + block.shape[1] > last
            stop = None if last is None else max(0, last - position)
            blocks.append(block[:, max(0, first - position) : stop])
            position += block.shape[1]
            if goes_on:
                break
        file_rate = reader.file_rate
    audio = np.concatenate(blocks, axis=1)
    if audio.shape[1] == 0:
        raise OptionError(
            f"start is {start:g} s, and {path} ends at {position / rate:.2f} s; start before that."
        )
    if not np.isfinite(audio).all():
        raise AudioError(f"{path} holds NaN or infinite samples; repair or leave out the file.")
    return Excerpt(audio, rate, first / rate, file_rate, goes_on)


def check_bounds(start: float, duration: float | None) -> None:
    """Check the bounds of an excerpt before any work is done."""
    if not 0 <= start < float("inf"):
        raise OptionError(f"start is {start:g} s; it must be 0 or more.")
    if duration is not None and not 0 < duration < float("inf"):
        raise OptionError(f"duration is {duration:g} s; it must be more than 0.")


def channels_of(path: str | PathLike) -> int:
    """Return how many channels a sound file has."""
    with SoundReader(path, 1) as reader:  # at whatever rate: nothing is read
        return reader.channels
