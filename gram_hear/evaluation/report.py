"""The scores of a module over its tasks, as one table: ``results.json``, ``results.md``, rows."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gram_hear.errors import TaskError
from gram_hear.evaluation.prediction import DONE_FILE, LOCALISATION_FILE, SCORES_FILE
from gram_hear.writing import write_whole

RESULTS_FILE = "results.json"
RESULTS_TABLE = "results.md"
COLUMNS = ("task", "metric", "score", "deviation", "minutes")


@dataclass(frozen=True)
class Result:
    """The score of one task: its first metric, over its folds where it has several.

    ``score`` and ``deviation`` (over the folds, n - 1; None for one test) are None where the metric
    is infinite or undefined. ``minutes`` is what prediction took, ``scores`` every test score.
    """

    task: str
    metric: str
    score: float | None
    deviation: float | None
    minutes: float
    grid: str
    grid_points: int
    seed: int | None
    shuffle: bool
    scores: dict[str, float | None]


def read_result(folder: Path) -> Result | None:
    """Return the result of a task's embeddings; None where they are not predicted yet.

    Raises:
        TaskError: for files that cannot be read, or lack what they must hold.
    """
    marker = folder / DONE_FILE
    if not marker.exists():
        return None
    files = [folder / name for name in (SCORES_FILE, LOCALISATION_FILE)]
    file = next((each for each in files if each.exists()), files[0])
    done, scores = _read_json(marker), _read_json(file)
    metadata = _read_json(folder / "task_metadata.json")
    try:
        metric = metadata["evaluation"][0]
        if "aggregated_scores" in scores:
            found = scores["aggregated_scores"]
            score, deviation = found["test_score_mean"], found["test_score_std"]
        else:
            found = scores["test"]
            score, deviation = found["test_score"], None
        return Result(
            task=folder.name,
            metric=metric,
            score=None if score is None else float(score),
            deviation=None if deviation is None else float(deviation),
            minutes=done["time"] / 60,
            grid=done["grid"],
            grid_points=done["grid_points"],
            seed=done.get("seed"),
            shuffle=done.get("shuffle", False),
            scores={key: value for key, value in found.items() if key.startswith("test_")},
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise TaskError(
            f"{file} or {marker.name} is not whole ({error!r}). Predict the task again, "
            "with --force."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(
            f"{path} cannot be read: {error}. Predict the task again, with --force."
        ) from error


def read_results(folder: Path) -> list[Result]:
    """Return the results of all predicted tasks in a module's folder, by name.

    Tasks whose files are broken are left out, with a warning.
    """
    results = []
    for task in sorted(each.parent for each in folder.glob(f"*/{DONE_FILE}")):
        try:
            result = read_result(task)
        except TaskError as error:
            warnings.warn(f"{error} Its scores are left out.", stacklevel=2)
            continue
        if result is not None:
            results.append(result)
    return results


def rows_of(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells of the table, below :data:`COLUMNS`."""
    return [
        (
            result.task,
            result.metric,
            "undefined" if result.score is None else f"{result.score:.4f}",
            "" if result.deviation is None else f"{result.deviation:.4f}",
            f"{result.minutes:.1f}",
        )
        for result in results
    ]


def write_results(folder: Path, module: str) -> list[Result]:
    """Write ``results.json`` and ``results.md`` beside the tasks of a module, and return them.

    Where nothing is predicted, nothing is written.
    """
    results = read_results(folder)
    if not results:
        return results
    content = {"module": module, "results": [asdict(result) for result in results]}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    table = [f"# {module}", "", _line(COLUMNS), _line("---" for _ in COLUMNS)]
    table += [_line(row) for row in rows_of(results)]
    write_whole(folder / RESULTS_FILE, lambda file: file.write_text(text, encoding="utf-8"))
    markdown = "\n".join(table) + "\n"
    write_whole(folder / RESULTS_TABLE, lambda file: file.write_text(markdown, encoding="utf-8"))
    return results


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
