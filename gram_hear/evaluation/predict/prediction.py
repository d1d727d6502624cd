"""Prediction of a task from its embeddings: the one way for every probe."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from gram_hear.errors import TaskError, reason_of, short
from gram_hear.evaluation.predict.data import TaskData, open_task
from gram_hear.evaluation.predict.folds import Fold, folds_of
from gram_hear.evaluation.predict.metrics import named_metric
from gram_hear.evaluation.predict.score_files import (
    ProbeFiles,
    publish,
    score_content,
    write_kit_json,
)
from gram_hear.jobs.callback import Progress, silent
from gram_hear.jobs.locks import locked
from gram_hear.jobs.writing import remove_leftovers
from gram_hear.tasks import Task, read_json, read_task

UNFINISHED = ".prediction.partial"  # a folder for what a run writes until it is whole


class TaskHeldError(TaskError):
    """Another run is predicting the task."""


class Probe(Protocol):
    """How the embeddings of tasks are scored: by shallow predictors, or by nearest neighbours."""

    @property
    def device(self) -> str:
        """Where it computes."""

    @property
    def files(self) -> ProbeFiles:
        """What it writes."""

    @property
    def validates(self) -> bool:
        """Whether it needs a split that validates."""

    def to_dict(self) -> dict[str, Any]:
        """Return what changes the scores."""

    def check(self, task: Task) -> None:
        """Raise a TaskError or an OptionError for a task that the probe cannot score."""

    def score(
        self, data: TaskData, folds: Sequence[Fold], output: Path, progress: Progress
    ) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """Score every fold, and write what is predicted.

        Args:
            data: the task's embeddings.
            folds: of the task.
            output: a folder for predictions and events.
            progress: called when a grid point or a fold is done.

        Returns:
            The results by fold, and the hyper-parameters.
        """

    def facts(self, data: TaskData) -> dict[str, Any]:
        """Return what the marker of a task's scores says in addition."""


def is_predicted(folder: Path, probe: Probe, force: bool = False) -> bool:
    """Whether a task has been predicted by this very probe.

    Raises:
        TaskError: where it was predicted with other options, and ``force`` is not set.
    """
    marker = folder / probe.files.marker
    if force or not marker.exists():
        return False
    done = read_json(marker)
    if not isinstance(done, dict):
        raise TaskError(f"{marker} holds {short(done)}. Use --force to predict the task again.")
    before = {name: done.get(name) for name in probe.to_dict()}
    if before == probe.to_dict():
        return True
    raise TaskError(
        f"{folder} was predicted with {_listed(before)}, and now {_listed(probe.to_dict())} are "
        "asked for. Use --force to replace those scores."
    )


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={str(value)[:80]}" for name, value in options.items())


def predict_task(
    folder: Path,
    probe: Probe,
    progress: Progress = silent,
    tell: Callable[[Mapping[str, Any]], object] = lambda facts: None,
) -> dict[str, Any]:
    """Score the embeddings of a task, and write the files of scores that the kit writes.

    Args:
        folder: one task's embeddings, made here or by the original kit.
        probe: a :class:`~gram_hear.evaluation.predict.shallow.ShallowProbe`, or a
            :class:`~gram_hear.evaluation.predict.knn.NeighbourProbe`.
        progress: called when a grid point or a fold is done.
        tell: called with :meth:`Probe.facts` before the first fold; where the score is a share of
            the test clips, also with ``counted_clips``, the fewest that a fold is tested on, and
            ``folds``, how many there are.

    Returns:
        What the score file holds.

    Raises:
        TaskError: for missing or broken files; labels or metrics that do not fit; a task without
            any validation score; a disk that fails. Scores that were there before stay until the
            new ones are whole.
        TaskHeldError: where another run is predicting the task.
    """
    task = read_task(folder)
    probe.check(task)
    try:
        with locked(folder, TaskHeldError), _unfinished(folder) as unfinished:
            remove_leftovers(folder / probe.files.marker)
            return _predict(task, probe, unfinished, progress, tell)
    except OSError as error:
        raise TaskError(
            f"{folder} cannot be read or written: {reason_of(error)}. Scores that were "
            "there are kept; run again."
        ) from error


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """Make a folder for unfinished files; it is removed afterwards, as is that of a killed run."""
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _counted(data: TaskData, folds: Sequence[Fold]) -> dict[str, int]:
    """Return how many test clips the score is a share of; nothing where it is another number."""
    if named_metric(data.task.evaluation[0]).kind != "multiclass":
        return {}
    fewest = min(len(data[fold.test].targets) for fold in folds)
    return {"counted_clips": fewest, "folds": len(folds)}


def _predict(
    task: Task,
    probe: Probe,
    unfinished: Path,
    progress: Progress,
    tell: Callable[[Mapping[str, Any]], object],
) -> dict[str, Any]:
    """Predict a task; the caller holds the lock of its folder."""
    started, cpu_started = time.time(), time.process_time()
    folds = folds_of(task, probe.validates)
    data = open_task(task, set().union(*(fold.splits for fold in folds)))
    facts = probe.facts(data)
    tell({**facts, **_counted(data, folds)})
    results, hparams = probe.score(data, folds, unfinished, progress)
    scores = score_content(task, results, hparams)
    directions = task.kind == "localisation"
    name = probe.files.directions if directions else probe.files.scores
    write_kit_json(unfinished / name, scores)
    marker = {
        **probe.to_dict(),
        "time": time.time() - started,
        "cpu_time": time.process_time() - cpu_started,
        "embedding_path": task.name,
        "embedding_size": data.width,
        "device": probe.device,
        **facts,
    }
    publish(unfinished, task.folder / probe.files.marker, marker)
    return scores
