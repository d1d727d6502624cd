"""The probe without training: the nearest neighbours of a test clip vote for its class.

The rules are those of X-ARES (``KNN`` and ``KNNTrainer`` of its ``xares/trainer.py``). Embeddings
are scaled to length 1, the 10 most similar training clips by cosine vote, and the softmax of their
similarities / 0.07 weighs the votes. X-ARES scores multiclass tasks of clips in this way, and no
others (``do_knn=False``). A validation split is not used; in k-fold tasks all other folds are.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gram_hear.errors import OptionError, TaskError
from gram_hear.evaluation.predict.data import TaskData
from gram_hear.evaluation.predict.folds import Fold
from gram_hear.evaluation.predict.predictors import Examples, Rows
from gram_hear.evaluation.predict.score_files import FILES, as_test_scores
from gram_hear.evaluation.predict.scoring import SplitScorer, metrics_of
from gram_hear.jobs.callback import Progress
from gram_hear.tasks import Task

NEIGHBOURS = 10  # of X-ARES, as the temperature
TEMPERATURE = 0.07
TEST_ROWS = 2048  # and training rows that are compared at once: 64 MiB of similarities
TRAINING_ROWS = 8192
STEP = 2.0**-20  # below which similarities count as equal: float32 says no more of a cosine


@dataclass(frozen=True)
class NeighbourProbe:
    """How tasks are scored by nearest neighbours: there is nothing to choose but the device."""

    device: str = "cpu"
    files: ClassVar = FILES["knn"]
    validates: ClassVar = False

    def to_dict(self) -> dict[str, Any]:
        """Return what changes the scores."""
        return {"probe": "knn", "neighbours": NEIGHBOURS, "temperature": TEMPERATURE}

    def facts(self, task: Task) -> dict[str, Any]:
        """Return what the marker of the scores says in addition: nothing."""
        return {}

    def check(self, task: Task) -> None:
        """Check that a task is one that nearest neighbours can vote on.

        Raises:
            TaskError: for events, directions and multilabel tasks; for metrics that do not fit.
        """
        kind = task.prediction_type if task.kind == "scene" else task.kind
        if kind != "multiclass":
            raise TaskError(
                f"{task.folder} is a task of {kind}; nearest neighbours vote for the one class of "
                "a whole clip (multiclass), as in X-ARES. Use --probe shallow."
            )
        metrics_of(task)

    def score(
        self, data: TaskData, folds: Sequence[Fold], output: Path, progress: Progress
    ) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """Score every fold's test split; the results lack loss, validation score and epoch."""
        results: dict[str, Any] = {}
        for done, fold in enumerate(folds, 1):
            started = time.time()
            test = SplitScorer(data.task, data[fold.test])
            training = data.examples(fold.training).to(torch.device(self.device))
            votes = neighbour_votes(training, test.split.examples.features).cpu()
            np.savez_compressed(
                output / self.files.predictions.format(fold=fold.name),
                target=test.split.targets.numpy(),
                prediction=votes.numpy(),
            )
            results[fold.name] = {
                **as_test_scores(test.test(votes, None)),
                "time_in_min": (time.time() - started) / 60,
                "postprocessing": [],
            }
            progress(done, len(folds))
        how = {"neighbours": NEIGHBOURS, "temperature": TEMPERATURE, "similarity": "cosine"}
        return results, how


def neighbour_votes(
    training: Examples, test: Rows, neighbours: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Tensor:
    """Return how the nearest training rows vote on each test row, (rows, classes) float32.

    A row is one embedding vector. Memory is bounded, as blocks of rows are compared. Where there
    are fewer training rows than ``neighbours``, all of them vote. Of rows that are equally similar,
    to :data:`STEP`, the first ones vote.

    Args:
        training: rows, and their classes as 0 and 1.
        test: rows of the same width.
        neighbours: how many vote, 1 or more.
        temperature: by which similarities are divided before the softmax that weighs votes.

    Raises:
        OptionError: for rows of different widths, no training row, or numbers that are not above 0.
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
    for number, table in enumerate(training.batches(TRAINING_ROWS)):
        found = block @ _unit(table.to(block.device)).T
        here = _greatest(found, neighbours)
        similarity = torch.cat([similarity, found.gather(1, here)], dim=1)
        index = torch.cat([index, here + number * TRAINING_ROWS], dim=1)
        kept = _greatest(similarity, neighbours)
        similarity, index = similarity.gather(1, kept), index.gather(1, kept)
    return similarity, index


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1)


def _greatest(values: Tensor, count: int) -> Tensor:
    """Return the columns of each row's greatest values, rising; of equals the first ones.

    ``topk`` alone takes any of the equals. So it finds the least value that is in, and where more
    columns reach it than are wanted, the last ones of those that just reach it go.
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
