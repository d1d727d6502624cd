"""What the commands that draw a sound share: a part of its file, and where the picture goes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gram_hear.audio.files import SoundReader
from gram_hear.errors import AudioError, OptionError
from gram_hear.extras import need


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a sound file, resampled.

    Attributes:
        audio: (channels, samples) float32; four channels are in AmbiX.
        rate: Hz of ``audio``.
        start: seconds of the file at which it begins.
        file_rate: Hz of the file.
        goes_on: whether the file holds more sound after it.
    """

    audio: np.ndarray
    rate: int
    start: float
    file_rate: int
    goes_on: bool

    @property
    def end(self) -> float:
        """Seconds of the file at which it ends."""
        return self.start + self.audio.shape[1] / self.rate


def read_part(
    path: Path,
    rate: int,
    start: float,
    duration: float | None,
    convention: str | None = None,
) -> Part:
    """Read a part of a sound file, and nothing after it.

    Args:
        path: as :class:`gram_hear.audio.files.SoundReader` takes it.
        rate: Hz that the sound is resampled to.
        start: seconds.
        duration: seconds, at most; None is all that follows.
        convention: of four channels; None is what the file says, else AmbiX.

    Raises:
        AudioError: for a file that cannot be read, or that holds values that are not finite.
        OptionError: for a part that cannot be, or that lies beyond the file's end.
    """
    check_part(start, duration)
    first = round(start * rate)
    last = None if duration is None else first + max(1, round(duration * rate))
    blocks: list[np.ndarray] = []
    place, goes_on = 0, False
    with SoundReader(path, rate, convention=convention) as reader:
        for block in reader.blocks():
            goes_on = last is not None and place + block.shape[1] > last
            stop = None if last is None else max(0, last - place)
            blocks.append(block[:, max(0, first - place) : stop])
            place += block.shape[1]
            if goes_on:
                break
        file_rate = reader.file_rate
    audio = np.concatenate(blocks, axis=1)
    if audio.shape[1] == 0:
        raise OptionError(
            f"--start is {start:g} s, and {path} ends at {place / rate:.2f} s; start before that."
        )
    if not np.isfinite(audio).all():
        raise AudioError(f"{path} holds NaN or infinite samples; repair or leave out the file.")
    return Part(audio, rate, first / rate, file_rate, goes_on)


def channels_of(path: Path) -> int:
    """Return how many channels a sound file has."""
    with SoundReader(path, 1) as reader:  # at whatever rate: nothing is read
        return reader.channels


def check_part(start: float, duration: float | None) -> None:
    """Find a part that cannot be before any work is done."""
    if not 0 <= start < float("inf"):
        raise OptionError(f"--start is {start:g} s; it must be 0 or more.")
    if duration is not None and not 0 < duration < float("inf"):
        raise OptionError(f"--duration is {duration:g} s; it must be more than 0.")


def check_picture(audio: Path, picture: Path, force: bool) -> None:
    """Find what stands in the way of a picture before any work is done."""
    if picture.suffix.lower() != ".png":
        raise OptionError(f"{picture} must end in .png: pictures are PNG.")
    if not picture.parent.is_dir():
        raise OptionError(f"There is no folder {picture.parent} to write {picture.name} into.")
    if picture.exists() and audio.exists() and picture.samefile(audio):
        raise OptionError(f"{picture} is the sound itself; choose another output.")
    if picture.exists() and not force:
        raise OptionError(f"{picture} is there already. Use --force to replace it.")
    need("matplotlib", "plot")
