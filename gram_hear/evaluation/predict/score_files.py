"""The files of scores, as the original kit writes them: their names and what they hold."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gram_hear.evaluation.embed.embeddings import NEIGHBOURS_DONE, PREDICTED
from gram_hear.evaluation.predict.metrics import named_metric
from gram_hear.evaluation.predict.scoring import monitors_loss
from gram_hear.jobs.writing import write_json
from gram_hear.tasks import Task

INDENT = 4  # of JSON, as the kit has it
NO_NUMBERS = ("hparams", "postprocessing")  # of a fold's result


@dataclass(frozen=True)
class ProbeFiles:
    """The names of the files that a probe writes beside the embeddings.

    Attributes:
        marker: written last; says that the scores are whole, and how they were made.
        scores: of the test, or of each fold.
        directions: the same for localisation, where it has a file of its own.
        predictions: the arrays of a fold, with ``{fold}`` for its name.
    """

    marker: str
    scores: str
    directions: str
    predictions: str


FILES = {  # by the names that options and tables have for the probes
    "shallow": ProbeFiles(
        PREDICTED,
        "test.predicted-scores.json",
        "test.predicted-scores-localization.json",
        "{fold}.predictions.npz",
    ),
    "knn": ProbeFiles(
        NEIGHBOURS_DONE,
        "test.predicted-scores-knn.json",
        "test.predicted-scores-knn.json",
        "{fold}.predictions-knn.npz",
    ),
}


def write_scores(path: Path, content: object) -> None:
    """Write JSON as the kit does, but strict, and whole or not at all."""
    write_json(path, content, INDENT)


def publish(finished: Path, marker: Path, content: object) -> None:
    """Move all files of a folder beside the marker, which is deleted first and rewritten last."""
    marker.unlink(missing_ok=True)
    for path in list(finished.iterdir()):
        os.replace(path, marker.parent / path.name)
    write_scores(marker, content)


def as_test_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Return test scores under their keys; the first of them is the task's score."""
    first = next(iter(scores.values()))
    return {"test_score": first, **{f"test_{name}": value for name, value in scores.items()}}


def score_file(
    task: Task, results: Mapping[str, dict], hparams: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of the score file: by fold, over the folds, and how it was made."""
    notes: dict[str, str] = {}
    content: dict[str, Any] = {}

    def add(name: str, numbers: Mapping[str, float]) -> None:
        content[name], why = strict_json(numbers)
        notes.update({f"{name}.{key}": note for key, note in why.items()})

    for name, result in results.items():
        add(name, {key: value for key, value in result.items() if key not in NO_NUMBERS})
    chosen = {name: result["postprocessing"] for name, result in results.items()}
    if task.folds:
        add("aggregated_scores", _aggregate(list(results.values())))
        content["postprocessing_by_fold"] = chosen
    content["hparams"] = dict(hparams)
    content["postprocessing"] = next(iter(chosen.values()))
    by_score = named_metric(task.evaluation[0]).maximise and not monitors_loss(task)
    content["score_mode"] = "max" if by_score else "min"
    content["embedding_path"] = task.name
    if notes:
        content["notes"] = notes
    return content


def _aggregate(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return mean and standard deviation (n - 1) of each number over the folds."""
    scores: dict[str, float] = {}
    for key in (key for key in results[0] if key not in NO_NUMBERS):
        values = np.array([result[key] for result in results], dtype=np.float64)
        with np.errstate(invalid="ignore"):  # infinite scores have no deviation
            scores[f"{key}_mean"] = float(values.mean())
            scores[f"{key}_std"] = float(values.std(ddof=1))
    return scores


def strict_json(scores: Mapping[str, float]) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return scores that strict JSON can hold, and a note for each that it cannot.

    JSON has neither infinity nor NaN: such a score becomes None (null), and its note says which of
    them it was.
    """
    values = {key: value if math.isfinite(value) else None for key, value in scores.items()}
    notes = {
        key: "undefined: a class or the whole target leaves nothing to compare"
        if math.isnan(value)
        else f"{'minus ' if value < 0 else ''}infinity: classes are separated without any error"
        for key, value in scores.items()
        if not math.isfinite(value)
    }
    return values, notes
