"""Sound files in: any format of libsndfile, any rate, 1, 2 or 4 channels; whole or in blocks."""

import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from gram_hear.config import LAYOUT_OF_AUDIO
from gram_hear.errors import AudioError

# What a folder is searched for: all that libsndfile tells by its header. A file that is named is
# read whatever its suffix. Not looked for: .mat (seldom sound), and .raw, .pcm, .vox, .gsm, which
# have no header.
SUFFIXES = (
    *(".wav", ".wave", ".wavex", ".bwf", ".amb", ".rf64", ".w64", ".nist", ".sph"),
    *(".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".mp1", ".mpga", ".mpa"),
    *(".aif", ".aiff", ".aifc", ".caf", ".au", ".snd", ".sf", ".ircam", ".voc", ".sd2"),
    *(".svx", ".8svx", ".16svx", ".iff", ".paf", ".fap", ".pvf", ".avr", ".htk", ".sds"),
    *(".wve", ".xi", ".mpc2k"),
)
# Sound and film that libsndfile does not read.
UNREADABLE = (
    *(".m4a", ".m4b", ".aac", ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".amr", ".alac"),
    *(".webm", ".weba", ".mka", ".mkv", ".wma", ".wmv", ".asf", ".avi", ".flv", ".mpg", ".mpeg"),
    *(".ac3", ".eac3", ".dts", ".ape", ".wv", ".tta", ".mpc", ".spx", ".ra", ".dsf", ".dff"),
)
BLOCK_SECONDS = 10.0
LEAST = 4096  # samples that are asked for, where a header says that fewer are left
LINKS = "/"  # what counts links to folders among suffixes, none of which holds a slash
SHOWN = 10  # suffixes that are named at most, of files that are left out
UNKNOWN = 2**40  # frames from which a header says that it does not know, or what cannot be


@dataclass(frozen=True)
class Recording:
    """The samples of a file, resampled: (channels, samples) float32, full scale at 1.

    ``file_rate`` is the file's own sample rate in Hz, ``duration`` its length in seconds.
    """

    audio: np.ndarray
    file_rate: int
    duration: float


def find_audio(folder: Path, left_out: Counter[str] | None = None) -> Iterator[Path]:
    """Yield the sound files below a folder, by their suffix, in sorted order; hidden ones not.

    A folder that cannot be listed is yielded itself: reading it fails and says why.

    Args:
        folder: where to look. Links to folders are not followed.
        left_out: counts the files of other suffixes, by suffix, and the links to folders, as
            :data:`LINKS`; :func:`warn_of_left_out` tells of them.
    """
    left_out = Counter() if left_out is None else left_out
    unreadable: list[Path] = []
    for parent, folders, names in os.walk(
        folder, onerror=lambda error: unreadable.append(Path(error.filename))
    ):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        left_out[LINKS] += sum(os.path.islink(os.path.join(parent, name)) for name in folders)
        for name in sorted(names):
            if name.startswith("."):
                continue
            if name.lower().endswith(SUFFIXES):
                yield Path(parent) / name
            else:
                left_out[os.path.splitext(name)[1].lower()] += 1
    yield from unreadable


def warn_of_left_out(left_out: Counter[str]) -> None:
    """Warn of what :func:`find_audio` left out: how many files of which suffixes, and why."""
    unreadable = {suffix: left_out[suffix] for suffix in UNREADABLE if left_out[suffix]}
    others = {suffix: n for suffix, n in left_out.items() if suffix not in (*unreadable, LINKS)}
    if unreadable:
        name = f"recording{next(iter(unreadable))}"
        warnings.warn(
            f"{_count(unreadable)} are left out: libsndfile does not read sound of these formats. "
            f"Convert them first, for example with ffmpeg -i {name} recording.flac.",
            stacklevel=3,
        )
    if others:
        warnings.warn(
            f"{_count(others)} are left out: they are not sound by their suffix.", stacklevel=3
        )
    if left_out[LINKS]:
        warnings.warn(
            f"{left_out[LINKS]} links to folders are left out: such links are not followed. Name "
            "the folders themselves.",
            stacklevel=3,
        )


def _count(suffixes: dict[str, int]) -> str:
    """Return how many files there are of each suffix, the most frequent first."""
    ranked = sorted(suffixes.items(), key=lambda each: (-each[1], each[0]))
    shown = [f"{suffix or 'without a suffix'} {count}" for suffix, count in ranked[:SHOWN]]
    if len(ranked) > SHOWN:
        shown.append(f"{len(ranked) - SHOWN} other suffixes")
    return f"{sum(suffixes.values())} files ({', '.join(shown)})"


def file_status(path: Path) -> os.stat_result:
    """Return size and times of a file; an AudioError where it is none or cannot be reached."""
    try:
        status = path.stat()
        if is_folder := stat.S_ISDIR(status.st_mode):
            os.scandir(path).close()  # one that cannot be listed fails here
    except (FileNotFoundError, ValueError) as error:
        raise AudioError(f"There is no file {path}.") from error
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror}.") from error
    if is_folder:
        raise AudioError(f"{path} is a folder; a sound file was expected.")
    return status


def read_audio(path: str | os.PathLike, sample_rate: int) -> Recording:
    """Read a whole sound file and resample it.

    Args:
        path: a file that libsndfile reads: WAV, FLAC, OGG, Opus, MP3, AIFF, and others.
        sample_rate: to resample to, in Hz (soxr, high quality).

    Raises:
        AudioError: for a missing, empty, damaged or foreign file, one without samples, or with
            another number of channels than 1, 2 or 4.
    """
    with SoundReader(path, sample_rate) as reader:
        audio = np.concatenate(list(reader.blocks()), axis=1)
        return Recording(audio, reader.file_rate, reader.duration)


class SoundReader:
    """A sound file, open to be read in resampled blocks.

    Attributes:
        channels: 1, 2 or 4, or any number where that was asked for.
        file_rate: the file's own sample rate in Hz.
        duration: seconds of the file; from its header (0 where that does not know) until all blocks
            are read, then as read.
    """

    def __init__(
        self, path: str | os.PathLike, sample_rate: int, *, any_channels: bool = False
    ) -> None:
        import soundfile

        self.path = Path(path)
        self.sample_rate = sample_rate
        self._failures = (soundfile.SoundFileError, OSError, TypeError, ValueError, MemoryError)
        if file_status(self.path).st_size == 0:
            raise AudioError(f"{self.path} is empty (0 bytes).")
        # As bytes, so that names that are not UTF-8 can be opened too.
        name = os.fsencode(self.path) if os.name == "posix" else str(self.path)
        try:
            self._file = soundfile.SoundFile(name)
        except self._failures as error:
            reason = getattr(error, "error_string", error)  # libsndfile's, without the path
            raise AudioError(f"{self.path} could not be read as sound: {reason}") from error
        if self._file.format == "RAW":
            self._file.close()
            raise AudioError(
                f"{self.path} could not be read as sound: it has no header, and what its samples "
                "are would be a guess from its suffix. Convert it to WAV or FLAC."
            )
        # soundfile seeks after every read where it can; that fails where a header does not know the
        # length (a FLAC from a pipe) or lies, and nothing here needs it.
        self._file.seekable = lambda: False
        self.channels: int = self._file.channels
        self.file_rate: int = self._file.samplerate
        self._promised = 0 if self._file.frames >= UNKNOWN else self._file.frames
        self.duration: float = self._promised / self.file_rate
        if self.channels not in LAYOUT_OF_AUDIO and not any_channels:
            self._file.close()
            raise AudioError(
                f"{self.path} has {self.channels} channels; allowed are 1 (mono), 2 (binaural) and "
                "4 (first-order Ambisonics)."
            )

    def __enter__(self) -> "SoundReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def blocks(self, seconds: float = BLOCK_SECONDS) -> Iterator[np.ndarray]:
        """Yield the sound from the start, (channels, samples) float32 at ``sample_rate``.

        The blocks joined are the same whatever their length. A file that ends before its header
        says so brings a warning (WAV, AIFF, W64, and MP3 with a frame count; OGG and Opus end
        silently); one whose stream is damaged, as a truncated FLAC, is an error.

        Raises:
            AudioError: for a damaged file, or one that holds no samples.
        """
        import soxr

        stream = soxr.ResampleStream(
            self.file_rate, self.sample_rate, self.channels, dtype="float32", quality="HQ"
        )
        same_rate = self.file_rate == self.sample_rate
        read = written = 0
        last = False
        while not last:
            count = round(seconds * self.file_rate)
            if self._promised:  # a buffer would be filled for what is not there, too
                count = min(count, max(self._promised - read, LEAST))
            samples = self._read(count)
            last = len(samples) == 0
            read += len(samples)
            if not same_rate:
                samples = stream.resample_chunk(samples, last=last)
            written += len(samples)
            if len(samples):
                yield np.ascontiguousarray(samples.T)
        self._check_end(read)
        if written == 0:
            raise AudioError(
                f"{self.path} holds no samples."
                if read == 0
                else f"{self.path} holds {read} samples at {self.file_rate} Hz: less than one at "
                f"{self.sample_rate} Hz."
            )

    def _read(self, count: int) -> np.ndarray:
        try:
            return self._file.read(max(1, count), dtype="float32", always_2d=True)
        except self._failures as error:
            raise AudioError(f"{self.path} is damaged: reading it failed ({error}).") from error

    def _check_end(self, read: int) -> None:
        """Note the true duration, and warn where the header promised more."""
        if self._file.format == "MP3" and not _counts_frames(self.path):
            warnings.warn(
                f"{self.path} does not say how long it is: libsndfile estimates the length of such "
                f"an MP3, and what lies beyond {read / self.file_rate:.2f} s, if anything, is not "
                "read. Encode it anew (WAV, FLAC, or MP3 with a frame count) to be sure.",
                stacklevel=3,
            )
        if read < self._promised or "(should be " in self._file.extra_info:
            warnings.warn(
                f"{self.path} ends before its header says; the {read / self.file_rate:.2f} s that "
                "are there are used.",
                stacklevel=3,
            )
        self.duration = read / self.file_rate


def _counts_frames(path: Path) -> bool:
    """Whether an MP3 begins with a frame that counts the others (Xing, Info or VBRI)."""
    with open(path, "rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3":  # tags come first; their size is written in 7 bits of each byte
            size = sum(
                byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)
            )
            file.seek(10 + size)
        else:
            file.seek(0)
        first = file.read(4096)
    return any(mark in first for mark in (b"Xing", b"Info", b"VBRI"))
