"""Scores without training: the nearest neighbours of a test clip vote for its class.

As X-ARES has it (``KNN`` and ``KNNTrainer`` of its ``xares/trainer.py``): embeddings of length 1,
the 10 most similar training clips by cosine, and the softmax of their similarities / 0.07 as the
weights of their votes. X-ARES scores multiclass tasks of clips so, and no others
(``do_knn=False``); validation clips are not used where there is a validation split, and all other
folds are where there are folds.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gram_hear.errors import OptionError, TaskError, reason_of
from gram_hear.evaluation.embed.embeddings import NEIGHBOURS_DONE
from gram_hear.evaluation.predict.metrics import scene_scores
from gram_hear.evaluation.predict.prediction import (
    Fold,
    folds_of,
    load_examples,
    metrics_of,
    publish,
    save_arrays,
    score_file,
    unfinished,
    write_json,
)
from gram_hear.evaluation.predict.probe import Examples, Rows
from gram_hear.jobs.locks import locked
from gram_hear.jobs.progress import Progress, silent
from gram_hear.jobs.writing import write_whole
from gram_hear.tasks import Task, read_task

NEIGHBOURS = 10  # of X-ARES, as the temperature
TEMPERATURE = 0.07
SCORES_FILE = "test.predicted-scores-knn.json"
PREDICTIONS = "{fold}.predictions-knn.npz"
DONE_FILE = NEIGHBOURS_DONE
TEST_ROWS = 2048  # and training rows that are compared at once: 64 MiB of similarities
TRAINING_ROWS = 8192
STEP = 2.0**-20  # of similarities that are told apart: what float32 says for certain of a cosine


@dataclass(frozen=True)
class NeighbourPlan:
    """How tasks are scored by their nearest neighbours: there is nothing to choose but where."""

    device: str = "cpu"
    done_file: ClassVar[str] = DONE_FILE

    def to_dict(self) -> dict[str, Any]:
        """Return what changes the scores."""
        return {"probe": "knn", "neighbours": NEIGHBOURS, "temperature": TEMPERATURE}


def check_neighbours(task: Task) -> None:
    """Check that a task is one that nearest neighbours can vote on.

    Raises:
        TaskError: for events, directions and multilabel tasks; for metrics that do not fit.
    """
    kind = task.prediction_type if task.kind == "scene" else task.kind
    if kind != "multiclass":
        raise TaskError(
            f"{task.folder} is a task of {kind}; nearest neighbours vote for the one class of a "
            "whole clip (multiclass), as in X-ARES. Use --probe shallow."
        )
    metrics_of(task)


def score_neighbours(
    folder: Path, plan: NeighbourPlan, progress: Progress | None = None
) -> dict[str, Any]:
    """Score the embeddings of a task by nearest neighbours, and write files beside the kit's.

    Args:
        folder: one task's embeddings, made here or by the original kit.
        plan: where.
        progress: called when a fold is done.

    Returns:
        What :data:`SCORES_FILE` holds: the keys of the shallow predictor's, without a loss, a
        validation score and an epoch.

    Raises:
        TaskError: as :func:`check_neighbours`; for missing or broken files, a directory that
            another run writes, or a disk that fails. Scores that were there before stay until the
            new ones are whole.
    """
    task = read_task(folder)
    check_neighbours(task)
    try:
        with locked(folder, TaskError), unfinished(folder) as place:
            return _score(task, plan, place, progress or silent)
    except OSError as error:
        raise TaskError(
            f"{folder} cannot be read or written: {reason_of(error)}. Scores that were "
            "there are kept; run again."
        ) from error


def _score(task: Task, plan: NeighbourPlan, place: Path, report: Progress) -> dict[str, Any]:
    """Do what :func:`score_neighbours` says, in a directory that is locked."""
    started, cpu_started = time.time(), time.process_time()
    folds = folds_of(task)
    results: dict[str, Any] = {}
    for done, fold in enumerate(folds, 1):
        results[fold.name] = _test(task, fold, plan, place)
        report(done, len(folds))
    hparams = {"neighbours": NEIGHBOURS, "temperature": TEMPERATURE, "similarity": "cosine"}
    scores = score_file(task, results, hparams)
    write_json(place / SCORES_FILE, scores)
    marker = {
        **plan.to_dict(),
        "time": time.time() - started,
        "cpu_time": time.process_time() - cpu_started,
        "embedding_path": task.name,
        "device": plan.device,
    }
    publish(place, task.folder / DONE_FILE, marker)
    return scores


def _test(task: Task, fold: Fold, plan: NeighbourPlan, place: Path) -> dict[str, Any]:
    """Score a fold's test split, and write what its neighbours voted for to a folder."""
    started = time.time()
    # The validation split trains where the splits are folds, and is left alone where it is none.
    splits = (*fold.training, fold.validation) if task.folds else fold.training
    device = torch.device(plan.device)
    training = load_examples(task, sorted(splits)).to(device)
    test = load_examples(task, (fold.test,))
    votes = neighbour_votes(training, test.features).cpu().numpy()
    targets = test.targets.numpy()
    names = [metric.name for metric in metrics_of(task)]
    scores = scene_scores(names, votes, targets)
    arrays = {"target": targets, "prediction": votes}
    write_whole(
        place / PREDICTIONS.format(fold=fold.name),
        lambda temporary: save_arrays(temporary, arrays),
    )
    return {
        "test_score": scores[names[0]],
        **{f"test_{name}": value for name, value in scores.items()},
        "time_in_min": (time.time() - started) / 60,
        "postprocessing": [],
    }


def neighbour_votes(
    training: Examples,
    test: Rows,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Return how the nearest training rows vote on each test row, (rows, classes) float32.

    Memory is bounded by blocks of rows. Where fewer training rows are there than ``neighbours``,
    all of them vote. Of rows that are equally similar, to :data:`STEP`, the first ones vote.

    Args:
        training: rows, and their classes as 0 and 1.
        test: rows of the same width.
        neighbours: how many vote, 1 or more.
        temperature: by which similarities are divided before the softmax that weighs votes.

    Raises:
        OptionError: rows of other widths, no training row, or numbers that cannot be.
    """
    width, rows = training.features.width, len(training.features)
    if width != test.width or not rows:
        raise OptionError(
            f"The {rows} training rows have {width} numbers, the test rows {test.width}; there "
            "must be training rows, of the same width."
        )
    if neighbours < 1 or temperature <= 0:
        raise OptionError(
            f"neighbours is {neighbours}, temperature {temperature}; both must be above 0."
        )
    device = training.features.tables[0].device
    targets = training.targets.to(device)
    votes = []
    for block in test.batches(TEST_ROWS):
        similarity, index = _nearest(training.features, _unit(block.to(device)), neighbours)
        weights = (similarity / temperature).softmax(dim=1)
        votes.append(torch.einsum("rk,rkc->rc", weights, targets[index]))
    return torch.cat(votes)


def _nearest(training: Rows, block: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Return similarities and indices of the nearest training rows, (rows, neighbours)."""
    similarity = block.new_empty(len(block), 0)
    index = torch.empty(len(block), 0, dtype=torch.long, device=block.device)
    for first, table in _blocks(training):
        found = block @ _unit(table.to(block.device)).T
        here = _greatest(found, neighbours)
        similarity = torch.cat([similarity, found.gather(1, here)], dim=1)
        index = torch.cat([index, here + first], dim=1)
        kept = _greatest(similarity, neighbours)
        similarity, index = similarity.gather(1, kept), index.gather(1, kept)
    return similarity, index


def _blocks(rows: Rows) -> Iterator[tuple[int, Tensor]]:
    for number, table in enumerate(rows.batches(TRAINING_ROWS)):
        yield number * TRAINING_ROWS, table


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1)


def _greatest(values: Tensor, count: int) -> Tensor:
    """Return the columns of each row's greatest values, rising; of equals the first ones.

    ``topk`` alone takes any of the equals. So it finds the least value that is in, and where more
    columns reach it than there is place for, the last ones of those that just reach it go.
    """
    count = min(count, values.shape[1])
    steps = (values / STEP).round()
    found = steps.topk(count, dim=1)
    columns = found.indices.sort(dim=1).values
    least = found.values[:, -1:]
    crowded = (steps >= least).sum(dim=1) > count
    if crowded.any():
        steps, least = steps[crowded], least[crowded]
        taken, equal = steps > least, steps == least
        taken |= equal & (equal.cumsum(dim=1) <= count - taken.sum(dim=1, keepdim=True))
        columns[crowded] = taken.nonzero()[:, 1].view(-1, count)
    return columns
