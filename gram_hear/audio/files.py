"""Sound files in: any format of libsndfile, any rate, 1, 2 or 4 channels; whole or in blocks."""

import itertools
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from gram_hear.audio.containers import (
    UNSIZED,
    ByteView,
    Part,
    after_tags,
    ogg_streams,
    reading,
    stated_layout,
    unsized_data,
)
from gram_hear.config import LAYOUT_OF_AUDIO, SOUND_RATES
from gram_hear.errors import AudioError, count, reason_of

if TYPE_CHECKING:
    import soundfile

# Folders are searched for these: all formats that libsndfile knows by their header, except .mat,
# which is seldom sound. A file that is named is read whatever its suffix is.
SUFFIXES = (
    *(".wav", ".wave", ".wavex", ".bwf", ".amb", ".rf64", ".w64", ".nist", ".sph"),
    *(".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".mp1", ".mpga", ".mpa"),
    *(".aif", ".aiff", ".aifc", ".caf", ".au", ".snd", ".sf", ".ircam", ".voc", ".sd2"),
    *(".svx", ".8svx", ".16svx", ".iff", ".paf", ".fap", ".pvf", ".avr", ".htk", ".sds"),
    *(".wve", ".xi", ".mpc2k"),
)
# Sound and video that libsndfile does not read.
UNREADABLE = (
    *(".m4a", ".m4b", ".aac", ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".amr", ".alac"),
    *(".webm", ".weba", ".mka", ".mkv", ".wma", ".wmv", ".asf", ".avi", ".flv", ".mpg", ".mpeg"),
    *(".ac3", ".eac3", ".dts", ".ape", ".wv", ".tta", ".mpc", ".spx", ".ra", ".dsf", ".dff"),
)
BLOCK_SECONDS = 10.0
LEAST = 4096  # so many samples are read at once, even if by the header fewer are left
LINKS = "/"  # counts links to folders among the suffixes, none of which holds a slash
SHOWN = 10  # suffixes of files that are left out: so many are named
UNKNOWN = 2**40  # a header that states so many frames does not know, or cannot be true

# The first bytes, with their offset, of formats that libsndfile does not read.
FOREIGN = {
    (4, b"ftyp"): "MP4 (AAC or ALAC)",
    (0, b"\x1aE\xdf\xa3"): "Matroska or WebM",
    (28, b"\x7fFLAC"): "FLAC in Ogg",
    (28, b"Speex"): "Speex in Ogg",
    (0, b"0&\xb2u\x8ef\xcf\x11"): "Windows Media",
    (0, b"#!AMR"): "AMR",
    (0, b"wvpk"): "WavPack",
    (0, b"MAC "): "Monkey's Audio",
}
UNRECOGNISED = (1, 7)  # libsndfile's errors for an unknown format, and for what is no MP3
SAME = ("format", "subtype", "channels", "samplerate")  # must be equal in the streams of a file
MOST_VALUES = 2**23  # samples of all channels together that are read at once
# In libsndfile's log: the stated size of the samples, and the true one where it differs.
SIZES = re.compile(r"^ *(?:data|SSND|BODY|riff|Data Size) *: (\d+)\b(?: \(should be (\d+))?", re.M)


@dataclass(frozen=True)
class Recording:
    """A sound file, decoded and resampled.

    Attributes:
        audio: (channels, samples) float32, full scale at 1. Four channels are first-order Ambisonic
            audio in AmbiX (W, Y, Z, X), whatever the convention of the file.
        file_rate: the sample rate of the file, Hz.
        duration: seconds.
        convention: of the four channels in the file. None for one or two channels.
    """

    audio: np.ndarray
    file_rate: int
    duration: float
    convention: str | None = None


def find_audio(
    folder: Path,
    left_out: Counter[str] | None = None,
    suffixes: tuple[str, ...] = SUFFIXES,
) -> Iterator[Path]:
    """Yield the sound files below a folder in sorted order, by their suffix, except hidden ones.

    A folder that cannot be listed is itself yielded, so that reading it fails and says why.

    Args:
        folder: where to look. Links to folders are not followed.
        left_out: is increased by the files of other suffixes, by suffix, and by the links to
            folders, as :data:`LINKS`. :func:`warn_of_left_out` warns of them.
        suffixes: of the files to look for, in lower case.
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
            if name.lower().endswith(suffixes):
                yield Path(parent) / name
            else:
                left_out[os.path.splitext(name)[1].lower()] += 1
    yield from unreadable


def warn_of_left_out(left_out: Counter[str], folder: Path | None = None) -> None:
    """Warn of the files that :func:`find_audio` left out: how many, of which suffixes, and why.

    The messages begin with the folder, if it is given.
    """
    start = "" if folder is None else f"{folder}: "
    unreadable = {suffix: left_out[suffix] for suffix in UNREADABLE if left_out[suffix]}
    others = {suffix: n for suffix, n in left_out.items() if suffix not in (*unreadable, LINKS)}
    if unreadable:
        name = f"recording{next(iter(unreadable))}"
        warnings.warn(
            f"{start}{_by_suffix(unreadable)} left out: libsndfile does not read sound of these "
            f"formats. Convert them first, for example with ffmpeg -i {name} recording.flac.",
            stacklevel=3,
        )
    if others:
        warnings.warn(
            f"{start}{_by_suffix(others)} left out: not sound by their suffix.", stacklevel=3
        )
    if left_out[LINKS]:
        links = count(left_out[LINKS], "link to a folder", "links to folders")
        warnings.warn(
            f"{start}{links} left out: links are not followed. Name the folders themselves.",
            stacklevel=3,
        )


def _by_suffix(suffixes: dict[str, int]) -> str:
    """Return in words how many files there are of each suffix, the most frequent first."""
    ranked = sorted(suffixes.items(), key=lambda each: (-each[1], each[0]))
    shown = [f"{suffix or 'without a suffix'} {number}" for suffix, number in ranked[:SHOWN]]
    if len(ranked) > SHOWN:
        shown.append(f"{count(len(ranked) - SHOWN, 'other suffix', 'other suffixes')}")
    return f"{count(sum(suffixes.values()), 'file')} ({', '.join(shown)})"


def file_status(path: Path) -> os.stat_result:
    """Return size and times of a file; raise an AudioError where it is missing or unreadable."""
    try:
        status = path.stat()
        if is_folder := stat.S_ISDIR(status.st_mode):
            os.scandir(path).close()  # one that cannot be listed fails here
    except (FileNotFoundError, ValueError) as error:
        raise AudioError(f"There is no file {path}.") from error
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {reason_of(error)}.") from error
    if is_folder:
        raise AudioError(f"{path} is a folder; a sound file was expected.")
    return status


def check_rate(rate: int, name: str) -> None:
    """Raise an AudioError where a file states a sample rate that sound cannot have."""
    least, most = SOUND_RATES
    if not least <= rate <= most:
        raise AudioError(
            f"{name} states a sample rate of {rate} Hz; it must be {least} to {most} Hz. Correct "
            "its header, or export the file again."
        )


def resample(audio: np.ndarray, rate: float, wanted: float, quality: str = "HQ") -> np.ndarray:
    """Resample audio with soxr.

    Args:
        audio: (samples,) or (samples, channels), float32 or float64.
        rate: of the audio, Hz.
        wanted: the new rate, Hz.
        quality: one of soxr's: ``"HQ"`` for 20 bits, ``"VHQ"`` for 28.

    Returns:
        The same type and number of axes, at the new rate. The length is :func:`resampled_length`.
    """
    import soxr

    audio = np.ascontiguousarray(audio)
    if rate == wanted:
        return audio
    resampled = soxr.resample(audio, rate, wanted, quality=quality)
    samples = resampled_length(len(audio), rate, wanted)
    missing = max(0, samples - len(resampled))
    return np.pad(resampled, [(0, missing), (0, 0)][: audio.ndim])[:samples]


def resampled_length(samples: int, rate: float, wanted: float) -> int:
    """Return the length of resampled audio: to the nearest sample, and at least one of any."""
    return max(min(samples, 1), int((2 * samples * wanted + rate) // (2 * rate)))


def decoding_faults() -> tuple[type[Exception], ...]:
    """Return the classes of error that soundfile raises for a file that it cannot open or read."""
    import soundfile

    return (soundfile.SoundFileError, OSError, TypeError, ValueError, MemoryError)


def read_audio(
    path: str | os.PathLike, sample_rate: int, *, convention: str | None = None
) -> Recording:
    """Read a whole sound file and resample it.

    Example::

        audio = read_audio("bell.flac", 32000).audio  # (channels, samples) float32

    Args:
        path: a file that libsndfile reads: WAV, FLAC, OGG, Opus, MP3, AIFF, and others.
        sample_rate: Hz, to which the sound is resampled (soxr, high quality).
        convention: of a file of four channels: ``"ambix"``, ``"fuma"`` or ``"soundspaces"``. None
            takes the one that the file states, else AmbiX.

    Returns:
        The sound, as a :class:`Recording`. Four channels are in AmbiX, whatever the convention of
        the file.

    Raises:
        AudioError: for a file that is missing, empty, damaged or in another format. For one without
            samples, or with another number of channels than 1, 2 or 4. For four channels of
            loudspeakers, for an impossible sample rate, and if the file states another convention
            than ``convention``.
        OptionError: for an unknown convention.
    """
    with SoundReader(path, sample_rate, convention=convention) as reader:
        audio = np.concatenate(list(reader.blocks()), axis=1)
        return Recording(audio, reader.file_rate, reader.duration, reader.convention)


def read_samples(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """Read a whole sound file, of any number of channels, at its own sample rate.

    Returns:
        (samples, channels) float32, which may be empty, and the sample rate in Hz. Four channels
        are in AmbiX.

    Raises:
        AudioError: as :func:`read_audio`.
    """
    with SoundReader(path, SOUND_RATES[1], any_channels=True) as reader:
        reader.check_layout(any_number=True)
        blocks = [*reader.samples(), np.zeros((0, reader.channels), dtype=np.float32)]
        return np.concatenate(blocks), reader.file_rate


class SoundReader:
    """An open sound file, read in resampled blocks.

    Example::

        with SoundReader("hour.flac", 32000) as reader:
            for block in reader.blocks():  # (channels, samples) float32
                ...

    Attributes:
        path: of the file, or of the tar that holds it.
        name: of the file, for messages.
        channels: 1, 2 or 4, or any number where that was asked for.
        file_rate: the sample rate of the file, Hz.
        duration: seconds. Until all blocks are read it is that of the header, or 0 where the header
            does not state it.
        convention: of the file's four channels; None for other numbers. Blocks are in AmbiX.
        is_plain: whether blocks hold the channels of the file unchanged, and its header states how
            much sound there is.
    """

    def __init__(
        self,
        path: str | os.PathLike | Part,
        sample_rate: int,
        *,
        convention: str | None = None,
        any_channels: bool = False,
    ) -> None:
        """Open a file, or a part of one; arguments and errors are those of :func:`read_audio`.

        With ``any_channels`` any number of channels is allowed, and four may be loudspeakers.
        """
        self._is_part = isinstance(path, Part)
        self.path = path.path if isinstance(path, Part) else Path(path)
        self.name = str(path) if isinstance(path, Part) else str(self.path)
        self.sample_rate = sample_rate
        self._failures = decoding_faults()
        if convention is not None:
            from gram_hear.audio.layouts import check_convention  # brings torch

            check_convention(convention)
        size = file_status(self.path).st_size
        self._part = path if isinstance(path, Part) else Part(self.path, self.path.name, 0, size)
        if self._part.size == 0:
            raise AudioError(f"{self.name} is empty (0 bytes).")
        if self._part.offset + self._part.size > size:
            raise AudioError(f"{self.name} ends early; {self.path} was cut. Get it again.")
        self._view: ByteView | None = None
        self._unsized = 0
        self._file = self._open()
        self.channels: int = self._file.channels
        self.file_rate: int = self._file.samplerate
        try:
            self._stated = stated_layout(self._file)
            check_rate(self.file_rate, self.name)
            if not any_channels:
                self.check_layout()
            self.convention = self._convention(convention)
        except AudioError:
            self.close()
            raise
        self.is_plain = self.convention in (None, "ambix") and not self._unsized
        self.duration: float = self._promised / self.file_rate

    def __enter__(self) -> "SoundReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self._view is not None:
            self._view.close()

    def check_layout(self, any_number: bool = False) -> None:
        """Raise an AudioError where the channels are not mono, binaural or Ambisonic.

        With ``any_number`` other numbers of channels are allowed.
        """
        if self._stated == "speakers" and self.channels == 4:
            raise AudioError(
                f"{self.name} says that its 4 channels are for loudspeakers (such as quad); 4 "
                "channels must be first-order Ambisonic. If they are, convert the file to FLAC "
                "or plain WAV, which name no loudspeakers; else mix it down to 1 or 2 channels."
            )
        if self._stated == "fuma" and self.channels < 4:
            raise AudioError(
                f"{self.name} says that it is Ambisonic B-format and has {self.channels} channels; "
                "first-order Ambisonic audio has 4."
            )
        if self.channels not in LAYOUT_OF_AUDIO and not any_number:
            raise AudioError(
                f"{self.name} has {self.channels} channels; allowed are 1 (mono), 2 (binaural) and "
                "4 (first-order Ambisonic)."
            )

    def _convention(self, given: str | None) -> str | None:
        if self.channels != 4 or self._stated == "speakers":
            return None
        if given is not None and self._stated not in (None, given):
            raise AudioError(
                f"{self.name} says that it is in the convention {self._stated!r}, and {given!r} "
                "was asked for. Leave the convention out to follow the file."
            )
        return given or self._stated or "ambix"

    def _open(self) -> "soundfile.SoundFile":
        """Open the file at its start, where necessary through a view of its bytes."""
        import soundfile

        # As bytes, so that names that are not UTF-8 can be opened too.
        name = os.fsencode(self.path) if os.name == "posix" else str(self.path)
        try:
            self._view = self._bytes() if self._is_part else None
            file = soundfile.SoundFile(self._view or name)
            if file.format == "MP3":
                file.close()
                return self._open_at(0, "MP3")
            if file.format in ("WAV", "WAVEX", "RF64", "AU") and file.frames == 0:
                self._unsized = unsized_data(self._bytes())
            if self._unsized:
                file.close()
                self._view = self._bytes(patch=self._unsized)
                file = soundfile.SoundFile(self._view)
        except self._failures as error:
            reason = self._why(error)
            raise AudioError(f"{self.name} could not be read as sound: {reason}") from error
        if file.format == "RAW":
            file.close()
            raise AudioError(
                f"{self.name} could not be read as sound: it has no header, and what its samples "
                "are would be a guess from its suffix. Convert it to WAV or FLAC."
            )
        return self._prepare(file)

    def _bytes(self, start: int = 0, **options: Any) -> ByteView:
        """Return a view of the file from one of its bytes on."""
        part = self._part
        return ByteView(self.path, part.offset + start, part.size - start, **options)

    def _open_at(self, start: int, format: str) -> "soundfile.SoundFile":
        """Open a stream of an MP3 or Ogg file through a view of its bytes.

        Where an MP3 has no count of its frames, mpg123 guesses its length from the size of the
        file, and reads no further. If it does not know the size, it looks at every frame, but takes
        a last frame that is cut off for an error. So the size is hidden only where the lengths
        differ.
        """
        import soundfile

        view = self._bytes(start)
        file = soundfile.SoundFile(view)
        if format == "MP3":
            unending = self._bytes(start, hides_end=True)
            counted = soundfile.SoundFile(unending)
            if counted.frames != file.frames:
                file, counted, view, unending = counted, file, unending, view
            counted.close()
            unending.close()
        self._view = view
        return self._prepare(file)

    def _prepare(self, file: "soundfile.SoundFile") -> "soundfile.SoundFile":
        # soundfile seeks after every read where it can. That fails where a header states no length
        # (a FLAC from a pipe) or a wrong one, and is not needed here.
        file.seekable = lambda: False
        self._promised = 0 if file.frames >= UNKNOWN else file.frames
        return file

    def _why(self, error: Exception) -> str:
        """Return why a file cannot be opened: the format that it has, or libsndfile's reason."""
        try:
            with reading(self._bytes()) as file:
                head = file.read(64)
        except OSError as reason:
            return reason_of(reason)
        file_name = PurePath(self._part.name)
        suffix = file_name.suffix
        is_unknown = getattr(error, "code", None) in UNRECOGNISED
        format = suffix[1:].upper() if is_unknown and suffix.lower() in UNREADABLE else ""
        for (offset, mark), name in FOREIGN.items():
            if head[offset:].startswith(mark):
                format = name
        if format:
            return (
                f"it is {format}, which libsndfile does not read. Convert it, as by ffmpeg -i "
                f"{file_name.name} {file_name.stem}.flac"
            )
        if is_unknown:
            kind = suffix[1:].upper() or "sound"
            return f"it is no {kind} file, nor of another format that libsndfile reads."
        return str(getattr(error, "error_string", error))  # libsndfile's, without the path

    def blocks(self, seconds: float = BLOCK_SECONDS) -> Iterator[np.ndarray]:
        """Yield the sound from the start, (channels, samples) float32 at ``sample_rate``.

        Four channels are in AmbiX. Joined, the blocks are the same whatever their length. A warning
        comes where a file ends before its header says (WAV, AIFF, W64, and MP3 with a count of its
        frames), and where a header was never completed. A damaged stream is an error, such as a
        truncated FLAC, or an Ogg or Opus file that lacks a page.

        Raises:
            AudioError: for a damaged file, or one that holds no samples.
        """
        import soxr

        stream = soxr.ResampleStream(
            self.file_rate, self.sample_rate, self.channels, dtype="float32", quality="HQ"
        )
        same_rate = self.file_rate == self.sample_rate
        read = written = 0
        end = np.zeros((0, self.channels), dtype=np.float32)
        for samples in itertools.chain(self.samples(seconds), [end]):
            read += len(samples)
            if not same_rate:
                samples = stream.resample_chunk(samples, last=samples is end)
            written += len(samples)
            if len(samples):
                yield np.ascontiguousarray(samples.T)
        if written == 0:
            raise AudioError(
                f"{self.name} holds no samples."
                if read == 0
                else f"{self.name} holds {read} samples at {self.file_rate} Hz: less than one at "
                f"{self.sample_rate} Hz."
            )

    def samples(self, seconds: float = BLOCK_SECONDS) -> Iterator[np.ndarray]:
        """Yield the sound at the rate of the file, (samples, channels) float32; perhaps none.

        Four channels are in AmbiX. Warnings and errors are those of :meth:`blocks`.
        """
        # A file may hold several MP3s or Ogg streams, one after another.
        ogg_starts, is_cut = self._ogg_streams()
        most = min(round(seconds * self.file_rate), MOST_VALUES // self.channels)
        before = 0
        while True:
            read = 0
            while len(samples := self._read(most, read)):
                read += len(samples)
                yield self._in_ambix(samples)
            before += read
            if read < self._promised:
                is_cut = True
                break
            if not self._open_next(ogg_starts, before / self.file_rate):
                break
        self._warn_of_header(before / self.file_rate, is_cut)
        self.duration = before / self.file_rate

    def _read(self, most: int, read: int) -> np.ndarray:
        """Return the next samples of a stream, of which ``read`` were read; none at its end."""
        if self._promised:  # ask for no more than is left: the whole buffer would be allocated
            most = min(most, max(self._promised - read, LEAST))
        try:
            samples = self._file.read(max(1, most), dtype="float32", always_2d=True)
            if self._view is not None and self._view.error is not None:
                raise self._view.error
        except self._failures as error:
            raise AudioError(f"{self.name} is damaged: reading it failed ({error}).") from error
        return samples

    def _in_ambix(self, samples: np.ndarray) -> np.ndarray:
        if self.convention in (None, "ambix"):
            return samples
        from gram_hear.audio.layouts import in_ambix  # brings torch, which few files need

        return np.ascontiguousarray(in_ambix(samples.T, self.convention).T)

    def _ogg_streams(self) -> tuple[list[int], bool]:
        """Return the offsets of an Ogg file's later streams, and whether the file is cut off."""
        if self._file.format != "OGG":
            return [], False
        granules = 48000 if self._file.subtype == "OPUS" else self.file_rate
        try:
            starts, is_whole = ogg_streams(self._bytes(), granules, self.name)
        except OSError as error:
            raise AudioError(f"{self.name} cannot be read: {reason_of(error)}.") from error
        return starts[1:], not is_whole

    def _open_next(self, ogg_starts: list[int], seconds: float) -> bool:
        """Open the stream after the one that was read; return whether there is one like it."""
        old, view = self._file, self._view
        start = size = self._part.size
        try:
            if old.format == "MP3" and view is not None:
                read = view.start - self._part.offset + view.tell()
                start = after_tags(self._bytes(), read)
            elif ogg_starts:
                start = ogg_starts.pop(0)
            if start >= size:
                return False
            self._file = self._open_at(start, old.format)
            goes_on = self._promised > 0 and all(
                getattr(self._file, name) == getattr(old, name) for name in SAME
            )
        except self._failures:
            goes_on = False
        if self._file is not old:
            old.close()
            if view is not None:
                view.close()
        if not goes_on:
            warnings.warn(
                f"{self.name}: no more could be read after {seconds:.2f} s, at byte {start} of "
                f"{size}. The file is cut off or damaged there, or goes on with other channels or "
                "at another sample rate. Get it again, or split it there.",
                stacklevel=3,
            )
        return goes_on

    def _warn_of_header(self, seconds: float, is_cut: bool) -> None:
        """Warn where the header states more sound than there is, or was never completed."""
        notes = self._file.extra_info
        is_unsized = bool(self._unsized)
        for stated, there in SIZES.findall(notes):
            is_unsized |= int(stated) == 0 and seconds > 0
            is_cut |= bool(there) and int(there) < int(stated) < UNSIZED
        if is_unsized:
            warnings.warn(
                f"{self.name} does not say how much sound it holds, as if its recording had been "
                f"broken off; the {seconds:.2f} s up to its end are used.",
                stacklevel=3,
            )
        elif is_cut or "from 'ds64' chunk" in notes:
            warnings.warn(
                f"{self.name} ends before its header says, or is broken at its end; the "
                f"{seconds:.2f} s that are there are used.",
                stacklevel=3,
            )
