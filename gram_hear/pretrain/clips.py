"""Sets of clips to learn from: tars and folders of recorded sound, or synthetic ones.

A tar is indexed once and its members are read from their place in it, in any order. What was found
is kept beside the tar where that folder can be written to. Names and places are held in arrays,
some 40 bytes a clip: the processes that load data share them.
"""

import io
import math
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from gram_hear.audio.files import SUFFIXES, UNKNOWN, check_rate, find_audio
from gram_hear.audio.synthesis import synthesise_clip
from gram_hear.errors import AudioError, OptionError, SceneError
from gram_hear.scenes.archives import NPY, Member, find_below, find_members, first_channel

NPY_RATE = 32000  # Hz of arrays, which do not say it: that of the published recipe
SYNTHETIC_CLIPS = 4096
IN_FOLDER = -1  # in place of a tar's number
MARGIN = 64  # samples read beyond an excerpt, so that resampling cannot leave it short

Paths = str | Path | Sequence[str | Path]


class ClipSet(ABC):
    """Sounds of one channel, to draw clips from."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, i: int) -> str:
        """Return what messages call a clip."""

    @abstractmethod
    def read(self, i: int, samples: int, rate: int, seed: Sequence[int]) -> np.ndarray:
        """Return a clip: the first channel of a sound, or a random excerpt of a longer one.

        Args:
            i: which.
            samples: of the clip, at most.
            rate: Hz that it is wanted at.
            seed: numbers from 0 on that the place of an excerpt depends on.

        Returns:
            (n,) float32 with n from 1 to ``samples``, finite.

        Raises:
            AudioError: for what cannot be read or decoded, or holds nothing or NaN.
        """


class SyntheticClips(ClipSet):
    """Sounds of :func:`gram_hear.audio.synthesis.synthesise_clip`; each is made when it is read."""

    def __init__(self, seed: int, count: int = SYNTHETIC_CLIPS) -> None:
        if seed < 0 or count < 1:
            raise OptionError(
                f"{count} synthetic clips of seed {seed} were asked for; give at least 1, and a "
                "seed of 0 or more."
            )
        self.seed = seed
        self.count = count

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        """Return its number."""
        return f"synthetic clip {i}"

    def read(self, i: int, samples: int, rate: int, seed: Sequence[int]) -> np.ndarray:
        """Make a clip of full length; it depends on the set's seed and ``i`` alone."""
        return synthesise_clip([self.seed, i], samples, rate).audio


class RecordedClips(ClipSet):
    """Sound files in folders, and members of tars."""

    def __init__(self, sounds: Iterable[Path | Member]) -> None:
        tars: dict[Path, int] = {}
        places, names, ends = array("q"), bytearray(), array("q")
        for sound in sounds:
            if isinstance(sound, Member):
                places.extend((tars.setdefault(sound.tar, len(tars)), sound.offset, sound.size))
                names += os.fsencode(sound.name)
            else:
                places.extend((IN_FOLDER, 0, 0))
                names += os.fsencode(sound)
            ends.append(len(names))
        self._tars = list(tars)
        self._places = np.array(places, dtype=np.int64).reshape(-1, 3)
        self._names = bytes(names)
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def name(self, i: int) -> str:
        """Return its path, or that of its tar and its name in it."""
        return str(self._sound(i))

    def _sound(self, i: int) -> Path | Member:
        name = os.fsdecode(self._names[self._ends[i - 1] if i else 0 : self._ends[i]])
        tar, offset, size = map(int, self._places[i])
        return Path(name) if tar == IN_FOLDER else Member(self._tars[tar], name, offset, size)

    def read(self, i: int, samples: int, rate: int, seed: Sequence[int]) -> np.ndarray:
        """Read a clip, and of a longer sound no more than that; as :class:`ClipSet`."""
        sound = self._sound(i)
        generator = np.random.default_rng([*seed])
        try:
            if isinstance(sound, Path):
                # As bytes, so that names that are not UTF-8 can be opened too.
                with open(os.fsencode(sound), "rb") as file:
                    audio = _decode(file, str(sound), samples, rate, generator)
            elif sound.name.lower().endswith(NPY):
                audio = _excerpt(_first(sound), samples, rate, generator)
            else:
                audio = _decode(_Part(sound), str(sound), samples, rate, generator)
        except OSError as error:
            raise AudioError(f"{sound} cannot be read: {error.strerror or error}.") from error
        if len(audio) == 0:
            raise AudioError(f"{sound} holds no samples.")
        if not np.isfinite(audio).all():
            raise AudioError(f"{sound} holds NaN or infinite samples.")
        return audio


def open_clips(paths: Paths | None, seed: int = 0, count: int = SYNTHETIC_CLIPS) -> ClipSet:
    """Open a set of clips.

    Args:
        paths: a folder, searched for sound files and tars, a tar, a sound file, or several of
            these; None makes synthetic sounds. ``.npy`` arrays in tars are (samples,) or (channels,
            samples) of floats at 32 kHz.
        seed: of synthetic sounds.
        count: of synthetic sounds.

    Raises:
        SceneError: where nothing is there, for tars that cannot be read or hold other files.
    """
    if paths is None:
        return SyntheticClips(seed, count)
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    clips = RecordedClips(sound for path in given for sound in _find(Path(path)))
    if len(clips) == 0:
        raise SceneError(
            f"{', '.join(map(str, given)) or 'An empty list'} holds no clips; give sound files "
            "(.wav, .flac, .mp3, ...), or tars of these or of .npy arrays. gram-hear prepare makes "
            "such tars."
        )
    return clips


def _find(path: Path) -> Iterator[Path | Member]:
    """Yield what a folder, a tar or a sound file holds."""
    if path.is_dir():
        yield from find_audio(path)
        for tar in find_below(path, ".tar"):
            yield from find_members(tar, (*SUFFIXES, NPY))
    elif not path.is_file():
        raise SceneError(f"There is no folder or file {path} of clips.")
    elif path.name.lower().endswith(".tar"):
        yield from find_members(path, (*SUFFIXES, NPY))
    else:
        yield path


# --- tars -----------------------------------------------------------------------------------


class _Part(io.RawIOBase):
    """A member of a tar as a file of its own."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._file = open(member.tar, "rb")  # noqa: SIM115 - closed in close
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._member.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._member.size - self._at))
        self._file.seek(self._member.offset + self._at)
        read = self._file.readinto(memoryview(buffer)[:count])
        self._at += read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()


# --- decoding -------------------------------------------------------------------------------


def _first(member: Member) -> np.ndarray:
    """Return the first channel of an array, (samples,) float32."""
    try:
        return first_channel(member)
    except SceneError as error:
        raise AudioError(str(error)) from error


def _excerpt(
    audio: np.ndarray, samples: int, rate: int, generator: np.random.Generator
) -> np.ndarray:
    """Return an excerpt of an array, resampled."""
    wanted = _span(samples, NPY_RATE, rate)
    start = _draw_start(generator, len(audio), samples, NPY_RATE, rate)
    return _resample(audio[start : start + wanted], NPY_RATE, rate)[:samples]


def _decode(
    file: io.IOBase, name: str, samples: int, rate: int, generator: np.random.Generator
) -> np.ndarray:
    """Return an excerpt of an open sound file's first channel, resampled."""
    import soundfile

    try:
        with io.BufferedReader(file, 2**16) as buffered, soundfile.SoundFile(buffered) as sound:  # type: ignore[type-var]
            check_rate(sound.samplerate, "its header")
            if sound.frames >= UNKNOWN:  # a header that does not know: from the start, and as it is
                sound.seekable = lambda: False
            else:
                sound.seek(_draw_start(generator, sound.frames, samples, sound.samplerate, rate))
            wanted = _span(samples, sound.samplerate, rate)
            audio = sound.read(wanted, dtype="float32", always_2d=True)[:, 0]
            return _resample(audio, sound.samplerate, rate)[:samples]
    except (soundfile.SoundFileError, TypeError, ValueError, MemoryError) as error:
        reason = getattr(error, "error_string", error)
        raise AudioError(f"{name} could not be read as sound: {reason}") from error


def _span(samples: int, file_rate: int, rate: int) -> int:
    """Return how many samples of a file a clip of ``samples`` samples at ``rate`` takes."""
    return samples if file_rate == rate else math.ceil(samples * file_rate / rate) + MARGIN


def _draw_start(
    generator: np.random.Generator, length: int, samples: int, file_rate: int, rate: int
) -> int:
    """Draw where a clip starts in a file; 0 where it is no longer than the clip."""
    spare = length - math.ceil(samples * file_rate / rate)
    return int(generator.integers(spare + 1)) if spare > 0 else 0


def _resample(audio: np.ndarray, file_rate: int, rate: int) -> np.ndarray:
    import soxr

    if file_rate == rate:
        return np.ascontiguousarray(audio)
    return soxr.resample(np.ascontiguousarray(audio), file_rate, rate, quality="HQ")
