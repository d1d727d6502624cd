"""Sets of clips to learn from: recorded sound in folders, tars and Parquet files, or synthetic.

Local tars are read by offset, in any order. What lies in shards (:mod:`gram_hear.audio.shards`) is
read from a cache, in an order that needs only a few shards at a time. Names and offsets are held in
arrays, some 40 bytes a clip, which the processes that load data share.
"""

import hashlib
import io
import math
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gram_hear.audio.archives import NPY_RATE, ArrayReader, Member, is_array, sounds_of
from gram_hear.audio.containers import ByteView, view_of
from gram_hear.audio.files import UNKNOWN, check_rate, decoding_faults, resample
from gram_hear.audio.shards import ShardCache, ShardReader, Watch
from gram_hear.audio.sources import Shard, find_sources
from gram_hear.audio.synthesis import synthesise_clip
from gram_hear.errors import AudioError, OptionError, SceneError, count, reason_of
from gram_hear.jobs.callback import silent

SYNTHETIC_CLIPS = 4096
OPEN_SHARDS = 8  # some 16,000 clips of AudioSet; the authors' buffer mixes 1,000
IN_USE = 3  # groups of shards at a time: this one, the next, and one of validation
IN_FOLDER = -1  # instead of the number of a tar
MARGIN = 64  # samples read beyond an excerpt, so that resampling cannot leave it short

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Order:
    """The order of an epoch: numbers of clips, in groups that need other shards each.

    ``ends`` are the positions at which groups end, in rising order.
    """

    clips: np.ndarray
    ends: np.ndarray

    def group_at(self, position: int) -> int:
        """Return the number of the group that a position is in."""
        return int(np.searchsorted(self.ends, position, side="right"))

    def start_of(self, group: int) -> int:
        """Return the position at which a group starts."""
        return int(self.ends[group - 1]) if group else 0

    def clips_of(self, group: int) -> np.ndarray:
        """Return the numbers of the clips in a group."""
        return self.clips[self.start_of(group) : self.ends[group]]


class ClipSet(ABC):
    """Sounds of one channel, to draw clips from.

    Attributes:
        open_shards: the number of shards that a group of clips comes from; 0 where clips are read
            in any order.
        shards_key: stands for what, beside the number of clips, decides the order of a set with
            shards; None for others.
    """

    open_shards = 0
    shards_key: str | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    def order(self, generator: np.random.Generator) -> Order:
        """Draw the order of an epoch, in which every clip comes once."""
        return Order(generator.permutation(len(self)), np.array([len(self)]))

    def fetch_ahead(self, clips: np.ndarray) -> None:  # noqa: B027 (most have nothing to fetch)
        """Fetch what these clips lie in, in the background; they will soon be read."""

    def close(self) -> None:  # noqa: B027
        """Let go of what is open; the next read opens it again."""

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
    """Sound files in folders, members of tars, and, after these, those of shards."""

    def __init__(
        self,
        sounds: Iterable[Path | Member],
        shards: ShardReader | None = None,
        counts: Sequence[int] = (),
    ) -> None:
        """Gather the sounds.

        Args:
            sounds: local ones.
            shards: what reads the others.
            counts: the number of clips in each shard.
        """
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
        self._shards = shards
        # Where the clips of each shard begin, and at the end the number of all clips.
        self._starts = len(self._entries) + np.cumsum([0, *counts], dtype=np.int64)
        if shards is not None:
            self.open_shards = shards.most
            digest = hashlib.sha256(np.array(counts, dtype="<i8").tobytes()).hexdigest()[:12]
            self.shards_key = f"{count(len(counts), 'shard')} ({digest}), {shards.most} open"

    def __len__(self) -> int:
        return int(self._starts[-1])

    def order(self, generator: np.random.Generator) -> Order:
        """Draw the order of an epoch, as :class:`ClipSet` has it.

        Shards come in a random order. They are taken in groups of :attr:`open_shards`, and the
        clips of a group in a random order, together with a share of the clips that lie in no shard.
        """
        counts = np.diff(self._starts)
        if len(counts) <= self.open_shards or self.open_shards == 0:
            return super().order(generator)
        shards = generator.permutation(len(counts))
        groups = [shards[i : i + self.open_shards] for i in range(0, len(shards), self.open_shards)]
        sizes = np.array([counts[group].sum() for group in groups])
        local = generator.permutation(len(self._entries))
        shares = np.cumsum(sizes) * len(local) // max(int(sizes.sum()), 1)
        pieces = []
        for group, share in zip(groups, np.split(local, shares[:-1]), strict=True):
            spans = [np.arange(self._starts[k], self._starts[k + 1]) for k in group]
            pieces.append(generator.permutation(np.concatenate([*spans, share])))
        return Order(np.concatenate(pieces), np.cumsum([len(piece) for piece in pieces]))

    def fetch_ahead(self, clips: np.ndarray) -> None:
        """Fetch the shards of clips in the background."""
        if self._shards is not None:
            shards = np.unique(np.searchsorted(self._starts, clips, side="right") - 1)
            self._shards.fetch_ahead([int(k) for k in shards if k >= 0])

    def close(self) -> None:
        """Let go of the shards that are open."""
        if self._shards is not None:
            self._shards.close()

    def name(self, i: int) -> str:
        """Return its path, or that of its tar or shard and its name or number in it."""
        shard, at = self._place(i)
        if shard is None or self._shards is None:
            return str(self._sound(i))
        return f"{self._shards.shards[shard]}: clip {at}"

    def _place(self, i: int) -> tuple[int | None, int]:
        """Return the shard of a clip and its number in it; None and ``i`` where it is in none."""
        if i < self._starts[0]:
            return None, i
        shard = int(np.searchsorted(self._starts, i, side="right")) - 1
        return shard, i - int(self._starts[shard])

    def _sound(self, i: int) -> Path | Member:
        shard, at = self._place(i)
        if shard is not None and self._shards is not None:
            return self._shards.member(shard, at)
        name = os.fsdecode(self._names[self._ends[i - 1] if i else 0 : self._ends[i]])
        tar, offset, size = map(int, self._entries[i])
        return Path(name) if tar == IN_FOLDER else Member(self._tars[tar], name, offset, size)

    def read(self, i: int, samples: int, rate: int, seed: Sequence[int]) -> np.ndarray:
        """Read a clip, as :class:`ClipSet` has it; no more of a longer sound is decoded."""
        generator = np.random.default_rng([*seed])
        sound: Path | Member | str = self.name(i)
        try:
            sound = self._sound(i)
            if is_array(sound):
                audio = _excerpt(ArrayReader(sound), samples, rate, generator)
            else:
                audio = _decode(view_of(sound), str(sound), samples, rate, generator)
        except SceneError as error:
            raise AudioError(str(error)) from error
        except OSError as error:
            raise AudioError(f"{sound} cannot be read: {reason_of(error)}.") from error
        if len(audio) == 0:
            raise AudioError(f"{sound} holds no samples.")
        if not np.isfinite(audio).all():
            raise AudioError(f"{sound} holds NaN or infinite samples.")
        return audio


def open_clips(
    paths: Paths | None,
    seed: int = 0,
    count: int = SYNTHETIC_CLIPS,
    *,
    cache: ShardCache | None = None,
    open_shards: int = OPEN_SHARDS,
    report: Callable[[str], object] = lambda text: None,
    watch: Watch = lambda: nullcontext(silent),
) -> ClipSet:
    """Open a set of clips.

    Args:
        paths: what :func:`gram_hear.audio.sources.find_sources` takes: folders, tars, Parquet
            files, sound files, and URLs, one or several; None makes ``count`` synthetic sounds of a
            seed. ``.npy`` arrays in tars are (samples,) or (channels, samples) of floats at 32 kHz.
            Other files in tars, such as WebDataset's labels, are ignored.
        cache: where shards are kept; None is the default cache.
        open_shards: the number of shards that are mixed at a time.
        report, watch: as :meth:`gram_hear.audio.shards.ShardCache.count_clips` has them.

    Raises:
        SceneError: where nothing is there, or what is there cannot be read.
        OptionError: for URLs that cannot be read here, and a cache that is too small.
    """
    if paths is None:
        return SyntheticClips(seed, count)
    if open_shards < 1:
        raise OptionError(f"open_shards is {open_shards}; it must be at least 1.")
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    sources = [source for path in given for source in find_sources(path)]
    shards = [source for source in sources if isinstance(source, Shard)]
    reader, counts = None, []
    if shards:
        cache = cache or ShardCache()
        reader = ShardReader(cache, shards, open_shards)
        counts = cache.count_clips(shards, report, watch)
        cache.require_room(shards, IN_USE * open_shards)
    sounds = (s for file in sources if isinstance(file, Path) for s in sounds_of(file))
    clips = RecordedClips(sounds, reader, counts)
    if len(clips) == 0:
        raise SceneError(
            f"{', '.join(map(str, given)) or 'An empty list'} holds no clips; give sound files "
            "(.wav, .flac, .mp3, ...), Parquet files with a column of sound, or tars, not "
            "compressed, of sound files or .npy arrays. gram-hear prepare makes such tars."
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
