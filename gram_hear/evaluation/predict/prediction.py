"""Shallow predictors on the embeddings of a task: grid, folds, test, and the files of the kit."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from gram_hear.errors import OptionError, TaskError, reason_of, short
from gram_hear.evaluation.embed.embeddings import (
    PREDICTED,
    dimensions,
    open_embeddings,
    row_labels,
    row_timestamps,
)
from gram_hear.evaluation.predict.event_metrics import (
    EventScorer,
    Timeline,
    predicted_events,
    target_events,
)
from gram_hear.evaluation.predict.grid import Setting, draw_settings, most_steps
from gram_hear.evaluation.predict.metrics import Metric, named_metric, scene_scores, strict_json
from gram_hear.evaluation.predict.probe import (
    Examples,
    Judgement,
    Objective,
    Rows,
    Trained,
    side_by_side,
    train,
)
from gram_hear.jobs.locks import locked
from gram_hear.jobs.progress import Progress, silent
from gram_hear.jobs.writing import write_whole
from gram_hear.tasks import Task, read_json, read_task

SCORES_FILE = "test.predicted-scores.json"
LOCALISATION_FILE = "test.predicted-scores-localization.json"
DONE_FILE = PREDICTED
FEWEST_STEPS = 100  # of an optimizer, below which scores say little (docs/decisions.md)
LONGEST_FILTER = 60_000.0  # milliseconds, of a median filter
MOST_FILTERS = 100  # choices of each kind
UNFINISHED = ".prediction.partial"  # a folder for what a run writes until it is whole
HOW = ("hparams", "postprocessing")  # of a fold's result: what is no number
EVENT_POSTPROCESSING = {"median_filter_ms": [250], "min_duration": [125, 250]}  # milliseconds


class AnyPlan(Protocol):
    """How tasks are scored, and the file that says that they were."""

    @property
    def done_file(self) -> str:
        """The name of that file."""

    def to_dict(self) -> dict[str, Any]:
        """Return what changes the scores."""


@dataclass(frozen=True)
class Plan:
    """How tasks are predicted: the grid, how many of its points, the seed, and where.

    ``shuffle`` draws a new order of the training rows in every epoch, which the protocol does not.
    """

    grid: str = "default"
    grid_points: int = 8
    seed: int = 42
    shuffle: bool = False
    device: str = "cpu"
    done_file: ClassVar[str] = DONE_FILE

    def check(self) -> None:
        """Raise an OptionError for a grid, a number or a seed that cannot be."""
        draw_settings(self.grid, self.grid_points, "")
        if self.seed < 0:
            raise OptionError(f"The seed is {self.seed}; it must be 0 or more.")

    def to_dict(self) -> dict[str, Any]:
        """Return what changes the scores."""
        return {
            "grid": self.grid,
            "grid_points": self.grid_points,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }


@dataclass(frozen=True)
class Fold:
    """One test: its name in the score file, and the splits that it trains on, validates, tests."""

    name: str
    training: tuple[str, ...]
    validation: str
    test: str


def folds_of(task: Task) -> list[Fold]:
    """Return the folds of a task: one of train, valid and test, or one for each split.

    In k-fold tasks the splits are sorted; the one after the test split validates. What
    :func:`gram_hear.tasks.read_task` returns has all the splits that this needs.
    """
    if not task.folds:
        return [Fold("test", ("train",), "valid", "test")]
    splits = sorted(task.splits)
    folds = []
    for i, test in enumerate(splits):
        validation = splits[(i + 1) % len(splits)]
        training = tuple(name for name in splits if name not in (test, validation))
        folds.append(Fold(test, training, validation, test))
    return folds


class Scoring:
    """The metrics of one split of a task: judges validations, scores tests.

    Attributes:
        examples: the split's embeddings and targets.
    """

    def __init__(self, task: Task, split: str) -> None:
        self.metrics = metrics_of(task)
        self.by_loss = monitors_loss(task)
        self.examples = load_examples(task, (split,))
        self.choices: list[tuple[float, float]] = []
        self.events: EventScorer | None = None
        if task.kind == "event":
            files, milliseconds = row_timestamps(task.folder, split)
            self.timeline = Timeline.of(files, milliseconds)
            index = {label: i for i, label in enumerate(task.labels)}
            self.target = target_events(task.annotations(split), self.timeline.files, index)
            self.events = EventScorer(self.target, self.timeline)
            self.choices = _postprocessing(task)

    def judge(self, prediction: torch.Tensor, loss: float) -> Judgement:
        """Judge a validation by the first metric, or by the loss where the task says so.

        The post-processing that scores best is chosen, by the first metric too where the loss is
        monitored; of equals the last, with the longest filter and the greatest least duration, as
        the original kit does.
        """
        first = self.metrics[0]
        probabilities = prediction.numpy()
        if not np.isfinite(probabilities).all():
            return Judgement(math.nan)
        if self.by_loss and len(self.choices) <= 1:  # nothing to choose: spare the metric
            return Judgement(float(np.float32(-loss)), next(iter(self.choices), None))
        best, chosen = math.nan, None
        for choice, scores in self._score(probabilities, [first.name]):
            value = scores[first.name] if first.maximise else -scores[first.name]
            if math.isnan(best) or value >= best:
                best, chosen = value, choice
        return Judgement(float(np.float32(-loss if self.by_loss else best)), chosen)

    def score(self, prediction: torch.Tensor, choice: Any) -> dict[str, float]:
        """Score a test by all metrics, with the post-processing that the validation chose."""
        names = [metric.name for metric in self.metrics]
        return next(
            scores for found, scores in self._score(prediction.numpy(), names) if found == choice
        )

    def _score(
        self, probabilities: np.ndarray, names: Sequence[str]
    ) -> list[tuple[tuple[float, float] | None, dict[str, float]]]:
        """Return each choice of post-processing (None: there is none) with its scores."""
        if self.events is None:
            return [(None, scene_scores(names, probabilities, self.examples.targets.numpy()))]
        keys = [key for name in names for key in named_metric(name).keys]
        every = self.events.score_all(probabilities, self.choices, names)
        return [
            (choice, {key: scores[key] for key in keys})
            for choice, scores in zip(self.choices, every, strict=True)
        ]


def monitors_loss(task: Task) -> bool:
    """Whether a task's validations are judged by their loss, not by the first metric."""
    return task.metadata.get("use_scoring_for_early_stopping", True) is False


def metrics_of(task: Task) -> list[Metric]:
    """Return a task's metrics, checked to be of its kind."""
    metrics = [named_metric(name) for name in task.evaluation]
    kinds = {"scene": {"multiclass", "multilabel"}}.get(task.kind, {task.kind})
    for metric in metrics:
        if metric.kind not in kinds:
            raise TaskError(
                f"{task.folder}: the metric {metric.name} is of {metric.kind} tasks, and this is "
                f"one of {task.kind}."
            )
    return metrics


def _parameters(task: Task, name: str) -> dict[str, Any]:
    """Return one of a task's ``evaluation_params``; empty where there is none."""
    group: Any = task.metadata.get("evaluation_params") or {}
    if isinstance(group, dict):
        group = group.get(name) or {}
    if not isinstance(group, dict):
        raise TaskError(
            f"{task.folder}: evaluation_params must be an object, and its {name} too, of names and "
            f"lists of choices; here is {short(group)}."
        )
    return group


def _postprocessing(task: Task) -> list[tuple[float, float]]:
    """Return the choices of median filter and least duration, in milliseconds."""
    grid = EVENT_POSTPROCESSING | _parameters(task, "event_postprocessing_grid")
    unknown = set(grid) - set(EVENT_POSTPROCESSING)
    if unknown:
        raise TaskError(
            f"{task.folder}: event_postprocessing_grid has {', '.join(sorted(unknown))[:80]}; "
            f"allowed are {', '.join(EVENT_POSTPROCESSING)}."
        )
    for name, values in grid.items():
        most = LONGEST_FILTER if name == "median_filter_ms" else math.inf
        numbers = isinstance(values, list) and all(
            isinstance(each, (int, float)) and not isinstance(each, bool) and 0 <= each <= most
            for each in values
        )
        if not numbers or not 0 < len(values) <= MOST_FILTERS:
            raise TaskError(
                f"{task.folder}: {name} is {short(values)}; it must be a list of milliseconds, 1 "
                f"to {MOST_FILTERS} of them, none above {most:g}."
            )
    return sorted((m, d) for m in grid["median_filter_ms"] for d in grid["min_duration"])


def load_examples(task: Task, splits: Sequence[str]) -> Examples:
    """Return the embeddings of some splits, one after another, with their targets.

    Raises:
        TaskError: for what is missing or broken, or rows that are not of one width in all splits.
    """
    if len(widths := {dimensions(task.folder, split)[1] for split in task.splits}) > 1:
        raise TaskError(
            f"{task.folder} has rows of {' and '.join(map(str, sorted(widths)))} values in its "
            "splits; embed the task anew."
        )
    tables, targets = [], []
    for split in splits:
        tables.append(torch.from_numpy(open_embeddings(task.folder, split)))
        targets.append(_targets(task, split))
    return Examples(Rows(tables), torch.from_numpy(np.concatenate(targets)))


def _targets(task: Task, split: str) -> np.ndarray:
    """Return a split's targets in row order: (rows, classes) of 0 and 1, or (rows, 3)."""
    if task.kind == "localisation":
        return np.array(row_labels(task, split), dtype=np.float32)
    index = {label: i for i, label in enumerate(task.labels)}
    labels = row_labels(task, split)
    targets = np.zeros((len(labels), len(index)), dtype=np.float32)
    for row, present in zip(targets, labels, strict=True):
        for label in present:
            row[index[label]] = 1.0
    return targets


def objective_of(task: Task) -> Objective:
    """Return what the predictor of a task learns."""
    return Objective("localisation" if task.kind == "localisation" else task.prediction_type)


def is_predicted(folder: Path, plan: AnyPlan, force: bool = False) -> bool:
    """Whether a task has been predicted by this very plan.

    Raises:
        TaskError: where it was predicted by another plan, and ``force`` does not say to go on.
    """
    marker = folder / plan.done_file
    if force or not marker.exists():
        return False
    done = read_json(marker)
    if not isinstance(done, dict):
        raise TaskError(f"{marker} holds {short(done)}. Use --force to predict the task again.")
    before = {name: done.get(name) for name in plan.to_dict()}
    if before == plan.to_dict():
        return True
    raise TaskError(
        f"{folder} was predicted with {_listed(before)}, and now {_listed(plan.to_dict())} are "
        "asked for. Use --force to replace those scores."
    )


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={str(value)[:80]}" for name, value in options.items())


def predict_task(folder: Path, plan: Plan, progress: Progress | None = None) -> dict[str, Any]:
    """Train and test on the embeddings of a task, and write the scores as the kit does.

    Args:
        folder: one task's embeddings, made here or by the original kit.
        plan: how.
        progress: called when a grid point or a fold is done.

    Returns:
        What :data:`SCORES_FILE` holds.

    Raises:
        TaskError: for missing or broken files, labels or metrics that do not fit, a task on which
            no grid point could be judged, a directory that another run writes, or a disk that
            fails. Scores that were there before stay until the new ones are whole.
    """
    task = read_task(folder)
    settings = settings_of(task, plan)
    try:
        with locked(folder, TaskError), unfinished(folder) as place:
            return _predict(task, plan, settings, place, progress or silent)
    except OSError as error:
        raise TaskError(
            f"{folder} cannot be read or written: {reason_of(error)}. Scores that were "
            "there are kept; run again."
        ) from error


def settings_of(task: Task, plan: Plan) -> list[Setting]:
    """Return the grid points that a task is predicted with, and check its metadata.

    Args:
        task: a task, or its embeddings: what is wrong can be known before anything is embedded.
        plan: how it is to be predicted.

    Raises:
        TaskError, OptionError: for metrics, post-processing or a grid that do not fit.
    """
    metrics_of(task)
    if task.kind == "event":
        _postprocessing(task)
    name = task.metadata.get("task_name")
    if not isinstance(name, str):
        raise TaskError(f"{task.folder}: task_name is {short(name)}; it must be the task's name.")
    own = _parameters(task, "task_specific_param_grid")
    return draw_settings(plan.grid, plan.grid_points, name, own)


def optimizer_steps(task: Task, settings: Sequence[Setting]) -> int:
    """Return how many optimizer steps a predictor takes at most, in the fold that has fewest.

    Args:
        task: embeddings.
        settings: the grid points that are tried.

    Raises:
        TaskError: where it is not said how many rows there are.
    """
    rows = {split: dimensions(task.folder, split)[0] for split in task.splits}
    return min(
        most_steps(settings, sum(rows[split] for split in fold.training)) for fold in folds_of(task)
    )


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Make a folder for what is not whole yet; it is gone afterwards, and so is a killed run's."""
    place = folder / UNFINISHED
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _predict(
    task: Task, plan: Plan, settings: Sequence[Setting], place: Path, report: Progress
) -> dict[str, Any]:
    """Do what :func:`predict_task` says, in a directory that is locked."""
    started, cpu_started = time.time(), time.process_time()
    folds = folds_of(task)
    total = len(settings) + len(folds) - 1
    results: dict[str, Any] = {}
    best: Trained | None = None
    for i, fold in enumerate(folds):
        fold_started = time.time()
        tried = settings if best is None else [best.setting]
        done = 0 if best is None else len(settings) + i - 1
        best = _search(task, fold, i, tried, plan, partial(_add, report, done, total))
        results[fold.name] = _test(task, fold, best, place, time.time() - fold_started)
    assert best is not None
    scores = score_file(task, results, best.setting.to_dict())
    name = LOCALISATION_FILE if task.kind == "localisation" else SCORES_FILE
    write_json(place / name, scores)
    done_marker = {
        **plan.to_dict(),
        "time": time.time() - started,
        "cpu_time": time.process_time() - cpu_started,
        "embedding_path": task.name,
        "embedding_size": best.predictor.widths[0],
        "device": plan.device,
        "optimizer_steps": optimizer_steps(task, settings),
    }
    publish(place, task.folder / DONE_FILE, done_marker)
    return scores


def publish(place: Path, marker: Path, content: object) -> None:
    """Move the files of a run to where its marker stands, which is away while they change."""
    marker.unlink(missing_ok=True)
    for path in list(place.iterdir()):
        os.replace(path, marker.parent / path.name)
    write_json(marker, content)


def _add(report: Progress, before: int, total: int, done: int) -> None:
    report(before + done, total)


def _search(
    task: Task,
    fold: Fold,
    number: int,
    settings: Sequence[Setting],
    plan: Plan,
    report: Callable[[int], None],
) -> Trained:
    """Train the settings on a fold; return the one of the best validation, the first of equals."""
    device = torch.device(plan.device)
    training = load_examples(task, fold.training).to(device)
    scoring = Scoring(task, fold.validation)
    validation = scoring.examples.to(device)
    trained: dict[int, Trained] = {}
    done = 0
    objective = objective_of(task)
    for group in side_by_side(settings, device, plan.shuffle):
        seeds = [point_seed(plan.seed, number, i) for i in group]
        members = [settings[i] for i in group]
        found = train(
            members,
            training,
            validation,
            objective,
            scoring.judge,
            seeds,
            device,
            plan.shuffle,
        )
        trained.update((i, one) for i, one in zip(group, found, strict=True) if one is not None)
        done += len(group)
        report(done)
    if not trained:
        raise TaskError(
            f"{task.folder}: no grid point could be judged on split {fold.validation}: "
            f"{task.evaluation[0]} is undefined there, or every predictor diverged."
        )
    return max((trained[i] for i in sorted(trained)), key=lambda one: one.judgement.score)


def point_seed(seed: int, fold: int, point: int) -> int:
    """Return the seed of one predictor's weights and dropout."""
    return int(np.random.SeedSequence([seed, fold, point]).generate_state(1)[0])


def _test(task: Task, fold: Fold, best: Trained, place: Path, seconds: float) -> dict[str, Any]:
    """Score a fold's test split, and write predictions and events to a folder."""
    scoring = Scoring(task, fold.test)
    prediction, logits = best.predict(scoring.examples.features)
    if not prediction.isfinite().all():
        raise TaskError(f"{task.folder}: the predictions of split {fold.test} are not finite.")
    loss = best.objective.losses(logits[None], scoring.examples.targets)
    choice = best.judgement.details
    scores = scoring.score(prediction, choice)
    first = scoring.metrics[0]
    validated = best.judgement.score
    if not first.maximise or scoring.by_loss:
        validated = -validated
    arrays = {
        "target": scoring.examples.targets.numpy(),
        "prediction": prediction.numpy(),
        "prediction_logit": logits.numpy(),
    }
    write_whole(
        place / f"{fold.name}.predictions.npz",
        lambda temporary: save_arrays(temporary, arrays),
    )
    if scoring.events is not None:
        files, labels = scoring.timeline.files, task.labels
        found = predicted_events(prediction.numpy(), scoring.timeline, *choice)
        events = {
            "target_events": scoring.target.by_file(files, labels),
            "predicted_events": found.by_file(files, labels),
        }
        write_json(place / f"{fold.name}.events.json", events)
    return {
        "test_loss": float(loss[0]),
        "test_score": scores[first.name],
        **{f"test_{name}": value for name, value in scores.items()},
        "validation_score": validated,
        "epoch": best.epoch,
        "time_in_min": seconds / 60,
        "hparams": best.setting.to_dict(),
        "postprocessing": _named_choice(choice),
    }


def _named_choice(choice: tuple[float, float] | None) -> list[list]:
    """Return a choice of post-processing as the kit writes it."""
    if choice is None:
        return []
    return [list(pair) for pair in zip(EVENT_POSTPROCESSING, choice, strict=True)]


def score_file(
    task: Task, results: Mapping[str, dict], hparams: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of the score file: by fold, over the folds, and how it was made."""
    notes: dict[str, str] = {}
    content: dict[str, Any] = {}
    for name, result in results.items():
        numbers = {key: value for key, value in result.items() if key not in HOW}
        content[name], why = strict_json(numbers)
        notes.update({f"{name}.{key}": note for key, note in why.items()})
    if task.folds:
        content["aggregated_scores"], why = strict_json(_aggregate(list(results.values())))
        notes.update({f"aggregated_scores.{key}": note for key, note in why.items()})
        content["postprocessing_by_fold"] = {
            name: result["postprocessing"] for name, result in results.items()
        }
    content["hparams"] = dict(hparams)
    content["postprocessing"] = next(iter(results.values()))["postprocessing"]
    by_score = named_metric(task.evaluation[0]).maximise and not monitors_loss(task)
    content["score_mode"] = "max" if by_score else "min"
    content["embedding_path"] = task.name
    if notes:
        content["notes"] = notes
    return content


def _aggregate(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return mean and standard deviation (n - 1) of each number over the folds."""
    scores: dict[str, float] = {}
    for key in (key for key in results[0] if key not in HOW):
        values = np.array([result[key] for result in results], dtype=np.float64)
        with np.errstate(invalid="ignore"):  # infinite scores have no deviation
            scores[f"{key}_mean"] = float(values.mean())
            scores[f"{key}_std"] = float(values.std(ddof=1))
    return scores


def write_json(path: Path, content: object) -> None:
    """Write strict JSON, whole."""
    text = json.dumps(content, indent=4, allow_nan=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays into one compressed ``.npz``, whatever the path's ending."""
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
