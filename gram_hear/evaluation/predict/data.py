"""A task's embeddings, opened and checked once: what predictors learn from and are tested on."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gram_hear.errors import TaskError
from gram_hear.evaluation.embed.embeddings import SplitEmbeddings
from gram_hear.evaluation.predict.events import EventTable, Timeline, target_events
from gram_hear.evaluation.predict.predictors import Examples, Rows
from gram_hear.tasks import Task


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
