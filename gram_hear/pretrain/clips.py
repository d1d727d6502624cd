"""Sets of clips to learn from: tars and folders of recorded sound, or synthetic ones.

A tar is indexed once, and its members are read by their offsets, in any order. The index is kept
beside the tar where that folder can be written to. Names and offsets are held in arrays, some 40
bytes a clip, which the processes that load data share.
"""

import io
import math
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gram_hear.audio.archives import NPY, NPY_RATE, ArrayReader, Member, find_sounds
from gram_hear.audio.containers import ByteView
from gram_hear.audio.files import UNKNOWN, check_rate, decoding_faults, resample
from gram_hear.audio.synthesis import synthesise_clip
from gram_hear.errors import AudioError, OptionError, SceneError, reason_of

SYNTHETIC_CLIPS = 4096
IN_FOLDER = -1  # instead of the number of a tar
MARGIN = 64  # samples read beyond an excerpt, so that resampling cannot leave it short

Paths = str | Path | Sequence[str | Path]


class ClipSet(ABC):
    """Sounds of one channel, to draw clips from."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, i: int) -> str:
        """Return the name of a clip, for messages."""

    @abstractmethod
    def read(self, i: int, samples: int, rate: int, seed: Sequence[int]) -> np.ndarray:
        """Return a clip: the first channel of a sound, or a random excerpt of a longer one.

        Args:
            i: the number of the clip.
            samples, rate: its length, at most, and the Hz that it is resampled to.
            seed: numbers of 0 or more, from which the start of an excerpt is drawn.

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
        entries, names, ends = array("q"), bytearray(), array("q")
        for sound in sounds:
            if isinstance(sound, Member):
                entries.extend((tars.setdefault(sound.path, len(tars)), sound.offset, sound.size))
                names += os.fsencode(sound.name)
            else:
                entries.extend((IN_FOLDER, 0, 0))
                names += os.fsencode(sound)
            ends.append(len(names))
        self._tars = list(tars)
        self._entries = np.array(entries, dtype=np.int64).reshape(-1, 3)
        self._names = bytes(names)
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, i: int) -> str:
        """Return its path, or that of its tar and its name in it."""
        return str(self._sound(i))

    def _sound(self, i: int) -> Path | Member:
        name = os.fsdecode(self._names[self._ends[i - 1] if i else 0 : self._ends[i]])
        tar, offset, size = map(int, self._entries[i])
        return Path(name) if tar == IN_FOLDER else Member(self._tars[tar], name, offset, size)

    def read(self, i: int, samples: int, rate: int, seed: Sequence[int]) -> np.ndarray:
        """Read a clip, as :class:`ClipSet` has it; no more of a longer sound is decoded."""
        sound = self._sound(i)
        generator = np.random.default_rng([*seed])
        try:
            if isinstance(sound, Path):
                audio = _decode(ByteView(sound), str(sound), samples, rate, generator)
            elif sound.name.lower().endswith(NPY):
                audio = _excerpt(ArrayReader(sound), samples, rate, generator)
            else:
                view = ByteView(sound.path, sound.offset, sound.size)
                audio = _decode(view, str(sound), samples, rate, generator)
        except SceneError as error:
            raise AudioError(str(error)) from error
        except OSError as error:
            raise AudioError(f"{sound} cannot be read: {reason_of(error)}.") from error
        if len(audio) == 0:
            raise AudioError(f"{sound} holds no samples.")
        if not np.isfinite(audio).all():
            raise AudioError(f"{sound} holds NaN or infinite samples.")
        return audio


def open_clips(paths: Paths | None, seed: int = 0, count: int = SYNTHETIC_CLIPS) -> ClipSet:
    """Open a set of clips.

    Args:
        paths: a folder, searched for sound files and tars, a tar, a sound file, or several of
            these; None makes ``count`` synthetic sounds of a seed. ``.npy`` arrays in tars are
            (samples,) or (channels, samples) of floats at 32 kHz. Other files in tars, such as
            WebDataset's labels, are ignored.

    Raises:
        SceneError: where nothing is there, for tars that cannot be read or hold other files alone.
    """
    if paths is None:
        return SyntheticClips(seed, count)
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    clips = RecordedClips(sound for path in given for sound in find_sounds(Path(path)))
    if len(clips) == 0:
        raise SceneError(
            f"{', '.join(map(str, given)) or 'An empty list'} holds no clips; give sound files "
            "(.wav, .flac, .mp3, ...), or tars, not compressed, of these or of .npy arrays. "
            "gram-hear prepare makes such tars."
        )
    return clips


# --- decoding -------------------------------------------------------------------------------


def _excerpt(
    sound: ArrayReader, samples: int, rate: int, generator: np.random.Generator
) -> np.ndarray:
    """Return an excerpt of an array, resampled."""
    wanted = _span(samples, NPY_RATE, rate)
    start = _draw_start(generator, sound.length, samples, NPY_RATE, rate)
    audio = sound.read(start, min(wanted, sound.length - start))
    return resample(audio, NPY_RATE, rate)[:samples]


def _decode(
    view: ByteView, name: str, samples: int, rate: int, generator: np.random.Generator
) -> np.ndarray:
    """Return an excerpt of an open sound file's first channel, resampled."""
    import soundfile

    try:
        with io.BufferedReader(view, 2**16) as file, soundfile.SoundFile(file) as sound:
            check_rate(sound.samplerate, "its header")
            if sound.frames < UNKNOWN:  # else its header does not know: from the start
                start = _draw_start(generator, sound.frames, samples, sound.samplerate, rate)
                if start:
                    sound.seek(start)
            sound.seekable = lambda: False  # or soundfile would seek after reading
            wanted = _span(samples, sound.samplerate, rate)
            audio = sound.read(wanted, dtype="float32", always_2d=True)[:, 0]
            if view.error is not None:
                raise view.error
            return resample(audio, sound.samplerate, rate)[:samples]
    except decoding_faults() as error:
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
