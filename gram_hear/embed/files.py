"""Sound files in, embeddings out, in memory that does not grow with their length or number.

Files are decoded ahead in threads, in blocks; their windows, each as soon as it is complete, are
encoded in batches. Files that are shorter than a batch share batches with others of like length.
Batches follow from the list of files alone, so the same list gives the same numbers.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from gram_hear.audio.clips import check_clip, warn_if_loud
from gram_hear.audio.files import SoundReader, file_status
from gram_hear.errors import AudioError, OptionError
from gram_hear.hear import HearModel, check_finite
from gram_hear.jobs.interrupts import result_of, submit

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Block:
    """Embeddings of a stretch of a file, in order.

    ``vectors`` is (rows, d) float32. ``timestamps`` is (rows,) float64, in milliseconds from the
    start of the file. A row is the embedding of one time step.
    """

    path: Path
    timestamps: np.ndarray
    vectors: np.ndarray


@dataclass(frozen=True)
class FileDone:
    """The end of a file: ``scene``, float32, is the embedding of the whole file.

    It is (d,), the mean of all rows, or (2 d,), with their standard deviation behind it, as the
    model's option ``scene`` says.
    ``rows`` is their number, ``duration`` is in seconds, and ``file_rate`` in Hz. ``convention`` is
    that of the file, or None if it is not Ambisonic. ``modified`` is the time of the file in
    nanoseconds, and ``size`` its bytes. Neither changed while it was read.
    """

    path: Path
    scene: np.ndarray
    rows: int
    duration: float
    file_rate: int
    channels: int
    convention: str | None
    modified: int
    size: int


@dataclass(frozen=True)
class FileFailed:
    """A file that could not be embedded, and why. Discard blocks of it that came before."""

    path: Path
    error: str


def embed_files(
    paths: Iterable[str | PathLike], model: HearModel, *, jobs: int = 1
) -> Iterator[Block | FileDone | FileFailed]:
    """Embed sound files of any number and length, in bounded memory.

    A file of four channels is Ambisonic. Its convention is the one that it states itself, else the
    model's, else AmbiX. A file that states another convention than the model's fails.

    Args:
        paths: files that libsndfile reads, of any rate and 1, 2 or 4 channels.
        model: what ``load_model`` returned.
        jobs: threads that decode ahead.

    Yields:
        For each file its :class:`Block` objects in order and then a :class:`FileDone`, or a
        :class:`FileFailed`. Files come in order of length, and objects of short files may
        alternate. The vectors are those of ``get_timestamp_embeddings`` for the whole file.

    Raises:
        OptionError: for ``jobs`` below 1.

    Example::

        model = gram_hear.load_model("gram-tiny", strategy="mean")
        for event in embed_files(["bell.flac"], model):
            if isinstance(event, FileDone):
                event.scene  # the embedding of the whole file
    """
    if jobs < 1:
        raise OptionError(f"jobs is {jobs}; it must be at least 1.")
    yield from embed_groups(group_files(map(Path, paths), model), model, jobs)


@dataclass(frozen=True)
class FileGroup:
    """Files that share batches, and their length in seconds as their headers tell it."""

    paths: list[Path]
    seconds: float


def group_files(paths: Iterable[Path], model: HearModel) -> list[FileGroup]:
    """Put files that share batches together, by their length as the header tells it.

    A group holds at most ``window_batch`` windows, or one longer file. A file that cannot be
    opened counts as empty, and fails when its turn comes.
    """
    lengths = sorted((_header_seconds(path, model), str(path), path) for path in paths)
    groups: list[FileGroup] = []
    room = 0.0
    for seconds, _, path in lengths:
        windows = 1 + int(1000 * seconds / (model.config.hop_ms * model.config.time_patches))
        if windows > room:
            groups.append(FileGroup([], 0.0))
            room = model.options.window_batch
        groups[-1] = FileGroup([*groups[-1].paths, path], groups[-1].seconds + seconds)
        room -= windows
    return groups


def _header_seconds(path: Path, model: HearModel) -> float:
    try:
        with SoundReader(path, model.sample_rate) as reader:
            return reader.duration
    except AudioError:
        return 0.0


def embed_groups(
    groups: Iterable[FileGroup], model: HearModel, jobs: int
) -> Iterator[Block | FileDone | FileFailed]:
    """Embed the groups of :func:`group_files`; each group's numbers depend on it alone."""
    with ThreadPoolExecutor(jobs) as pool:
        clips = (
            (_FileStream(path, model, pool), path is group.paths[-1])
            for group in groups
            for path in group.paths
        )
        # Each clip that is ahead holds an open file.
        yield from _embed_clips(_ahead(clips, 2 * jobs + 1), model)


def _ahead(items: Iterator[_Item], count: int) -> Iterator[_Item]:
    """Yield items, with the next ``count`` made already."""
    made: deque[_Item] = deque()
    for item in items:
        made.append(item)
        if len(made) > count:
            yield made.popleft()
    yield from made


class _FileStream:
    """One file on its way: blocks that a thread decodes ahead, windows, rows."""

    def __init__(self, path: Path, model: HearModel, pool: ThreadPoolExecutor) -> None:
        self.path = path
        self.model = model
        self.stream = model.stream()
        self.samples: int | None = None  # all of them, once known
        self.windows = 0
        self.rows = 0
        self._sum = np.zeros(model.timestamp_embedding_size)
        self._squares = np.zeros(model.timestamp_embedding_size)
        self._pool = pool
        self._peak = 0.0
        self._decoding = self._decode()
        self._next: Future[np.ndarray | None] = submit(pool, next, self._decoding, None)

    def _decode(self) -> Iterator[np.ndarray]:
        """Yield the file's blocks; runs in a thread, one block ahead."""
        before = file_status(self.path)
        if self.model.options.parity:  # the authors' timestamps depend on the whole length
            with self._open() as reader:
                self.samples = sum(block.shape[1] for block in reader.blocks())
        with self._open() as reader:
            yield from reader.blocks()
            self.reader = reader
        after = file_status(self.path)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise AudioError(f"{self.path} changed while it was read; embed it again.")
        self.stat = after

    def _open(self) -> SoundReader:
        convention = self.model.options.convention
        return SoundReader(self.path, self.model.sample_rate, convention=convention)

    def next_windows(self) -> tuple[Tensor, bool]:
        """Return the feature windows that the next block completes, and whether it is the end.

        Raises what decoding raised.
        """
        block = result_of(self._next)
        if block is not None:
            self._next = submit(self._pool, next, self._decoding, None)
            clip, peak = check_clip(torch.from_numpy(block), str(self.path))
            self._peak = max(self._peak, peak)
            return self.stream.push(self.model.lay_out(clip, "ambix")), False
        self.samples = self.stream.samples
        warn_if_loud(str(self.path), self._peak)
        return self.stream.finish(), True

    def take(self, encoded: Tensor) -> Block | None:
        """Make encoded windows, the next ones of this clip, a block of its kept rows."""
        plan = self.model.plan(self.samples or self.stream.samples)
        vectors = plan.keep(encoded, self.windows).cpu().numpy()
        self.windows += len(encoded)
        timestamps = plan.timestamps(self.rows, self.rows + len(vectors))
        self.rows += len(vectors)
        exact = vectors.astype(np.float64)
        self._sum += exact.sum(axis=0)
        self._squares += np.square(exact).sum(axis=0)
        return Block(self.path, timestamps, vectors) if len(vectors) else None

    def done(self) -> FileDone | FileFailed:
        """Return the clip's end, once all its windows are encoded."""
        try:
            check_finite(torch.from_numpy(self._sum), str(self.path))
        except AudioError as error:
            return FileFailed(self.path, str(error))
        return FileDone(
            path=self.path,
            scene=self._scene(),
            rows=self.rows,
            duration=self.reader.duration,
            file_rate=self.reader.file_rate,
            channels=self.reader.channels,
            convention=self.reader.convention,
            modified=self.stat.st_mtime_ns,
            size=self.stat.st_size,
        )

    def _scene(self) -> np.ndarray:
        """Return the embedding of the whole clip, as :func:`gram_hear.hear.pool_scene`."""
        mean = self._sum / self.rows
        if self.model.options.scene == "mean":
            return mean.astype(np.float32)
        variance = self._squares / self.rows - np.square(mean)
        return np.concatenate([mean, np.sqrt(variance.clip(min=0))]).astype(np.float32)


@dataclass
class _WaitingWindows:
    """Windows of a clip that wait for their batch; ``last`` where they are the clip's last."""

    clip: _FileStream
    windows: Tensor
    last: bool


def _embed_clips(
    clips: Iterator[tuple[_FileStream, bool]], model: HearModel
) -> Iterator[Block | FileDone | FileFailed]:
    """Embed clips in batches of exactly ``window_batch`` windows, in their order.

    A batch ends where its group does: ``clips`` says of each whether it is the last of one.
    """
    batch = model.options.window_batch
    queue: deque[_WaitingWindows] = deque()
    for clip, ends_group in clips:
        last = False
        while not last:
            try:
                windows, last = clip.next_windows()
            except (AudioError, OSError, MemoryError) as error:
                queue = deque(each for each in queue if each.clip is not clip)
                message = str(error) or type(error).__name__
                name = str(clip.path)
                yield FileFailed(clip.path, message if name in message else f"{name}: {message}")
                break
            queue.append(_WaitingWindows(clip, windows, last))
            while sum(len(each.windows) for each in queue) >= batch:
                yield from _encode_batch(queue, model)
        while queue and ends_group:
            yield from _encode_batch(queue, model)


def _encode_batch(
    queue: deque[_WaitingWindows], model: HearModel
) -> Iterator[Block | FileDone | FileFailed]:
    """Encode the next windows of the queue, and hand them to their clips."""
    room = model.options.window_batch
    taken: list[_WaitingWindows] = []
    while queue and room:
        first = queue.popleft()
        part = _WaitingWindows(first.clip, first.windows[:room], first.last)
        if len(first.windows) > room:
            part.last = False
            queue.appendleft(_WaitingWindows(first.clip, first.windows[room:], first.last))
        room -= len(part.windows)
        taken.append(part)
    with torch.no_grad():
        windows = torch.cat([part.windows for part in taken])
        encoded = model.encode(windows) if len(windows) else windows
    offset = 0
    for part in taken:
        if count := len(part.windows):
            block = part.clip.take(encoded[offset : offset + count])
            offset += count
            if block is not None:
                yield block
        if part.last:
            yield part.clip.done()
