"""The scores of a module over its tasks, as one table: ``results.json``, ``results.md``, rows."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gram_hear.errors import TaskError, count, reason_of, short, some, visible
from gram_hear.evaluation.embed.embeddings import (
    DONE,
    EMPTY,
    EMPTY_FILES,
    MADE_BY,
    difference_of,
    in_words,
)
from gram_hear.evaluation.predict.knn import NEIGHBOURS
from gram_hear.evaluation.predict.metrics import describe_metric
from gram_hear.evaluation.predict.score_files import FILES
from gram_hear.jobs.locks import LOCK, wait_for_lock
from gram_hear.jobs.writing import remove_leftovers, write_json, write_text
from gram_hear.tasks import METADATA, NATURAL, empty_in_words, read_json

RESULTS_FILE = "results.json"
RESULTS_TABLE = "results.md"
COLUMNS = ("task", "metric", "score", "deviation", "minutes")
DRY_COLUMNS = ("dry", "difference")  # beside tasks in scenes whose dry task was predicted too
OPTION_COLUMNS = ("probe", "grid", "points", "seed", "shuffled")  # shown where results differ


@dataclass(frozen=True)
class Result:
    """The score of one task: its first metric, over its folds where it has several.

    Attributes:
        task, metric: their names.
        score: None where the metric is infinite or undefined.
        deviation: over the folds (n - 1); None for one test.
        minutes: what prediction took.
        grid, grid_points, seed, shuffle: how predictors were trained; None for nearest neighbours,
            and where the seed is not known.
        scores: every test score.
        source: the task whose clips were put into scenes; None for other tasks.
        dry: the score of that task by the same metric and options; None where not known.
        difference: the score less ``dry``.
        probe: one of :data:`FILES`.
        folds: the score of each fold; empty for one test.
        empty_clips: what was done about clips without samples, ``"skip"`` or ``"zero"``; None where
            the task has none.
        empty_files: those clips, as "split/file".
        made_by: what made the embeddings (:data:`MADE_BY`), as far as their folder says it.
        dry_made_by: the same of the dry task, where it is something else: ``dry`` is None then.
    """

    task: str
    metric: str
    score: float | None
    deviation: float | None
    minutes: float
    grid: str | None
    grid_points: int | None
    seed: int | None
    shuffle: bool
    scores: dict[str, float | None]
    source: str | None = None
    dry: float | None = None
    difference: float | None = None
    probe: str = "shallow"
    folds: tuple[float | None, ...] = ()
    empty_clips: str | None = None
    empty_files: tuple[str, ...] = ()
    made_by: Mapping[str, Any] = field(default_factory=dict)
    dry_made_by: Mapping[str, Any] | None = None

    @property
    def comparable(self) -> tuple:
        """What must be equal in two results before their scores are compared."""
        return (
            *(self.metric, self.probe, self.grid, self.grid_points, self.seed, self.shuffle),
            self.empty_clips,
        )


def read_result(folder: Path, probe: str = "shallow") -> Result | None:
    """Return the result of a task's embeddings; None where they are not predicted yet.

    Args:
        folder: one task's embeddings.
        probe: one of :data:`FILES`.

    Raises:
        TaskError: for files that cannot be read, or lack what they must hold.
    """
    names = FILES[probe]
    marker, file = folder / names.marker, folder / names.scores
    if not marker.exists():
        return None
    if not file.exists() and (folder / names.directions).exists():
        file = folder / names.directions
    try:
        done, scores, metadata = (read_json(path) for path in (marker, file, folder / METADATA))
        # Embeddings of the original kit lack this file.
        made = read_json(folder / DONE) if (folder / DONE).is_file() else {}
    except TaskError as error:
        raise TaskError(f"{error} Predict the task again, with --force.") from error
    try:
        if (minutes := _finite(done["time"] / 60)) is None:
            raise ValueError(f"time is {done['time']}")
        folds: tuple[float | None, ...] = ()
        if "aggregated_scores" in scores:
            found = scores["aggregated_scores"]
            score, deviation = found["test_score_mean"], found["test_score_std"]
            folds = tuple(
                _finite(each["test_score"])
                for each in scores.values()
                if isinstance(each, dict) and "test_score" in each
            )
        else:
            found = scores["test"]
            score, deviation = found["test_score"], None
        return Result(
            task=folder.name,
            metric=str(metadata["evaluation"][0]),
            score=_finite(score),
            deviation=_finite(deviation),
            minutes=minutes,
            grid=str(done["grid"]) if probe == "shallow" else None,
            grid_points=int(done["grid_points"]) if probe == "shallow" else None,
            seed=None if done.get("seed") is None else int(done["seed"]),
            shuffle=bool(done.get("shuffle", False)),
            scores={key: _finite(each) for key, each in found.items() if key.startswith("test_")},
            source=str(metadata[NATURAL]["source"]) if NATURAL in metadata else None,
            probe=probe,
            folds=folds,
            empty_clips=None if made.get(EMPTY) is None else str(made[EMPTY]),
            empty_files=tuple(map(str, made.get(EMPTY_FILES) or ())),
            made_by={key: made[key] for key in MADE_BY if key in made},
        )
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TaskError(
            f"{file} or {marker.name} is incomplete ({short(error)}). Predict the task again, "
            "with --force."
        ) from error


def _finite(value: float | None) -> float | None:
    """Return a score; None for the NaN and infinity that the original kit writes."""
    return None if value is None or not math.isfinite(value) else float(value)


def notes_of(results: Sequence[Result]) -> list[str]:
    """Return what was done about clips without samples, a sentence for each task that has some."""
    done = {"skip": "Left out.", "zero": "Embedded as silence."}
    return [
        f"{result.task}: {empty_in_words(result.empty_files)} {done.get(result.empty_clips, '')}"
        for result in {each.task: each for each in results}.values()
        if result.empty_clips is not None
    ]


def read_results(folder: Path) -> list[Result]:
    """Return the results of all predicted tasks in a module's folder, by name.

    Tasks in scenes have the score of their dry task with them. Tasks whose files are broken are
    left out, with a warning.
    """
    results = []
    found = [
        (marker.parent, order, probe)
        for order, (probe, names) in enumerate(FILES.items())
        for marker in folder.glob(f"*/{names.marker}")
    ]
    for task, _, probe in sorted(found):
        try:
            result = read_result(task, probe)
        except TaskError as error:
            warnings.warn(f"{error} Its scores are left out.", stacklevel=2)
            continue
        if result is not None:
            results.append(result)
    by_name = {(result.task, result.probe): result for result in results}
    return [
        _beside_dry(result, by_name.get((result.source or "", result.probe))) for result in results
    ]


def _beside_dry(result: Result, dry: Result | None) -> Result:
    """Return the result of a task in scenes with its dry task's, where they can be compared."""
    if dry is None or dry.comparable != result.comparable or dry.score is None:
        return result
    if _other_maker(result.made_by, dry.made_by):
        return replace(result, dry_made_by=dry.made_by)
    difference = None if result.score is None else result.score - dry.score
    return replace(result, dry=dry.score, difference=difference)


def _other_maker(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Return the key by which two embeddings were made by different things; "" if none is known."""
    return difference_of(first, second, [key for key in MADE_BY if key in first and key in second])


def warn_of_versions(model: str, results: Iterable[tuple[str, Result]]) -> None:
    """Warn of results that count as one model's, and are of different code, weights or options.

    Args:
        model: what it is called.
        results: each with what it is called.
    """
    known = [(name, result) for name, result in results if result.made_by]
    if not known:
        return
    first, reference = known[0]
    others: dict[str, list[str]] = {}  # by what differs
    for name, result in known:
        if key := _other_maker(reference.made_by, result.made_by):
            others.setdefault(in_words(key, result.made_by), []).append(name)
    said = [f"{first} differs from {some(names)} in {what}" for what, names in others.items()]
    apart = {name: result for name, result in known if result.dry_made_by is not None}
    if not said:  # the dry tasks are not among the results
        for name, result in apart.items():
            key = _other_maker(result.made_by, result.dry_made_by or {})
            said.append(f"{name} differs from its dry task in {in_words(key, result.made_by)}")
    if said:
        lacking = f" Not compared with the dry task: {some(list(apart))}." if apart else ""
        warnings.warn(
            f"{model}: not all embeddings were made by the same version: {some(said, '; ')}."
            f"{lacking} hear-eval --force embeds again what the present version did not make.",
            stacklevel=2,
        )


def columns_of(results: Sequence[Result]) -> tuple[str, ...]:
    """Return the heads of the table.

    There are columns for dry tasks where a task in scenes has one, and for those options of
    prediction that differ between tasks.
    """
    dry = DRY_COLUMNS if any(result.dry is not None for result in results) else ()
    trained = [result for result in results if result.probe == "shallow"]
    differing = tuple(
        column
        for column in OPTION_COLUMNS
        if len({_cells(each)[column] for each in (results if column == "probe" else trained)}) > 1
    )
    return (*COLUMNS[:-1], *dry, *differing, COLUMNS[-1])


def heading_of(results: Sequence[Result]) -> str:
    """Return the sentence above the table: how all tasks were predicted, and what minutes mean."""
    trained = [result for result in results if result.probe == "shallow"]
    by_neighbours = f"by the {NEIGHBOURS} nearest neighbours" if trained != results else ""
    if not trained:
        return f"Predicted {by_neighbours}. Minutes are those of prediction."
    cells = _cells(trained[0])
    words = {
        "grid": f"grid {cells['grid']}",
        "points": count(trained[0].grid_points or 0, "grid point"),
        "seed": f"seed {cells['seed'] or 'unknown'}",
        "shuffled": "training rows shuffled" if trained[0].shuffle else "training rows in order",
    }
    columns = columns_of(results)
    same = [words[column] for column in words if column not in columns]
    how = f"Predicted with {', '.join(same)}. " if same else ""
    if by_neighbours:
        how += f"Where the probe is knn: {by_neighbours}. "
    return f"{how}Minutes are those of prediction."


def rows_of(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells of the table, below :func:`columns_of`."""
    columns = columns_of(results)
    return [tuple(_cells(result)[column] for column in columns) for result in results]


def _cells(result: Result) -> dict[str, str]:
    return {
        "task": result.task,
        "metric": describe_metric(result.metric),
        "score": "undefined" if result.score is None else f"{result.score:.4f}",
        "deviation": _decimals(result.deviation, ".4f"),
        "dry": _decimals(result.dry, ".4f"),
        "difference": _decimals(result.difference, "+.4f"),
        "probe": result.probe,
        "grid": result.grid or "",
        "points": "" if result.grid_points is None else str(result.grid_points),
        "seed": "" if result.seed is None else str(result.seed),
        "shuffled": ("yes" if result.shuffle else "no") if result.probe == "shallow" else "",
        "minutes": f"{result.minutes:.1f}",
    }


def _decimals(value: float | None, decimals: str) -> str:
    return "" if value is None else format(value, decimals)


def write_results(folder: Path, module: str, results: Sequence[Result]) -> None:
    """Write ``results.json`` and ``results.md`` beside the tasks of a module.

    Where nothing is predicted, nothing is written.

    Raises:
        TaskError: where the folder cannot be written.
    """
    if not results:
        return
    content = {"module": module, "results": [asdict(result) for result in results]}
    lines = [f"# {module}", "", heading_of(results), ""]
    lines += markdown_table(columns_of(results), rows_of(results))
    for note in notes_of(results):
        lines += ["", note]
    markdown = "\n".join(lines) + "\n"
    try:
        with wait_for_lock(folder / LOCK):  # another run may have predicted the same
            for name in (RESULTS_FILE, RESULTS_TABLE):  # of runs that were killed
                remove_leftovers(folder / name)
            write_json(folder / RESULTS_FILE, content, indent=2)
            write_text(folder / RESULTS_TABLE, markdown)
    except OSError as error:
        raise TaskError(
            f"{RESULTS_FILE} and {RESULTS_TABLE} cannot be written to {folder}: "
            f"{reason_of(error)}. Run again when they can; the scores are kept."
        ) from error


def markdown_table(columns: Sequence[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a table in Markdown, one for each row."""

    def shown(cell: str) -> str:
        return visible(" ".join(cell.split())).replace("|", "\\|")

    every = (columns, ["---"] * len(columns), *rows)
    return ["| " + " | ".join(map(shown, row)) + " |" for row in every]
