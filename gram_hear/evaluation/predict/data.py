"""A task's embeddings, opened and checked once: what predictors learn from and are tested on."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from gram_hear.errors import TaskError
from gram_hear.evaluation.embed.embeddings import SplitEmbeddings
from gram_hear.evaluation.predict.events import EventTable, Timeline, target_events
from gram_hear.tasks import Task

RESIDENT_BYTES = 4 * 2**30  # of features that are moved to a GPU once


class Rows:
    """Embedding vectors in float32, one table after another; the tables may lie in files."""

    def __init__(self, tables: Sequence[Tensor]) -> None:
        self.tables = list(tables)
        self.bounds = [0, *accumulate(len(table) for table in tables)]

    def __len__(self) -> int:
        return self.bounds[-1]

    @property
    def width(self) -> int:
        """How many numbers a row has."""
        return self.tables[0].shape[1]

    def batch(self, start: int, stop: int) -> Tensor:
        """Return the rows from ``start`` to before ``stop``."""
        parts = [
            table[max(start - first, 0) : stop - first]
            for table, (first, last) in zip(self.tables, pairwise(self.bounds), strict=True)
            if start < last and stop > first
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all rows in order, ``size`` at a time, the last time fewer."""
        for start in range(0, len(self), size):
            yield self.batch(start, start + size)

    def take(self, index: Tensor) -> Tensor:
        """Return rows by their index, a tensor on the CPU, in its order."""
        taken = torch.empty(len(index), self.width, device=self.tables[0].device)
        for table, first in zip(self.tables, self.bounds[:-1], strict=True):
            found = ((index >= first) & (index < first + len(table))).nonzero()[:, 0]
            rows = table[(index[found] - first).to(table.device)]
            taken[found.to(table.device)] = rows
        return taken

    def to(self, device: torch.device) -> "Rows":
        """Return the rows on a device; what is too large for it is moved batch by batch later."""
        if device.type == "cpu" or sum(table.nbytes for table in self.tables) > RESIDENT_BYTES:
            return self
        return Rows([table.to(device) for table in self.tables])


@dataclass(frozen=True)
class Examples:
    """Rows to learn from or to score: features (rows, inputs), targets (rows, outputs) float32.

    Targets are 0 and 1, or the three coordinates of a direction.
    """

    features: Rows
    targets: Tensor

    def to(self, device: torch.device) -> "Examples":
        """Return the examples on a device."""
        return Examples(self.features.to(device), self.targets.to(device))


@dataclass(frozen=True)
class SplitData:
    """One split of a task.

    A row is one embedding vector: of a whole clip, or, in tasks of events, of a clip at one time.

    Attributes:
        name: of the split.
        features: (rows, d) float32, mapped from the file.
        targets: (rows, classes) float32 of 0 and 1, or (rows, 3) for directions.
        timeline: of events, which file and time each row has; else None.
        events: the events to be found; None for other tasks.
    """

    name: str
    features: Tensor
    targets: Tensor
    timeline: Timeline | None = None
    events: EventTable | None = None

    @property
    def examples(self) -> Examples:
        """The rows and their targets."""
        return Examples(Rows([self.features]), self.targets)


@dataclass(frozen=True)
class TaskData:
    """A task and those of its splits that are used, by name."""

    task: Task
    splits: Mapping[str, SplitData]

    def __getitem__(self, split: str) -> SplitData:
        return self.splits[split]

    @property
    def width(self) -> int:
        """How many values an embedding has."""
        return next(iter(self.splits.values())).features.shape[1]

    def examples(self, splits: Iterable[str]) -> Examples:
        """Return the rows of some splits, one after another, and their targets."""
        chosen = [self.splits[name] for name in splits]
        targets = torch.cat([split.targets for split in chosen])
        return Examples(Rows([split.features for split in chosen]), targets)


def open_task(task: Task, splits: Collection[str] = ()) -> TaskData:
    """Open the embeddings of a task, made here or by the original kit, and check them.

    Args:
        task: read from the directory of embeddings.
        splits: those that are used; all of them where none are named.

    Raises:
        TaskError: for what is missing or broken, or embeddings of different widths.
    """
    opened = {split: SplitEmbeddings(task, split) for split in task.splits}
    if len(widths := {each.shape[1] for each in opened.values()}) > 1:
        raise TaskError(
            f"{task.folder} has embeddings of {' and '.join(map(str, sorted(widths)))} values in "
            "its splits; embed the task again."
        )
    used = {name: each for name, each in opened.items() if not splits or name in splits}
    return TaskData(task, {name: _split_data(each) for name, each in used.items()})


def _split_data(split: SplitEmbeddings) -> SplitData:
    task, features = split.task, torch.from_numpy(split.vectors)
    if task.kind == "localisation":
        return SplitData(split.name, features, torch.tensor(split.labels, dtype=torch.float32))
    index = {label: i for i, label in enumerate(task.labels)}
    targets = _one_hot(split.labels, index)
    if task.kind != "event":
        return SplitData(split.name, features, targets)
    timeline = Timeline.of(split.files, split.milliseconds)
    events = target_events(task.annotations(split.name), timeline.files, index)
    return SplitData(split.name, features, targets, timeline, events)


def _one_hot(labels: Sequence[Sequence[str]], index: Mapping[str, int]) -> Tensor:
    """Return 1 for the labels of each row and 0 for the others, (rows, classes)."""
    targets = np.zeros((len(labels), len(index)), dtype=np.float32)
    for row, present in zip(targets, labels, strict=True):
        row[[index[label] for label in present]] = 1.0
    return torch.from_numpy(targets)
