"""Scores of one split: of a validation, which chooses, and of a test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from gram_hear.errors import TaskError, short
from gram_hear.evaluation.predict.data import SplitData
from gram_hear.evaluation.predict.event_metrics import EventScorer
from gram_hear.evaluation.predict.metrics import Metric, named_metric, scene_scores
from gram_hear.evaluation.predict.postprocessing import postprocessing_choices
from gram_hear.evaluation.predict.predictors import Objective
from gram_hear.tasks import Task

Choice = tuple[float, float]  # median_filter_ms and min_duration


@dataclass(frozen=True)
class ValidationScore:
    """The result of a validation.

    Attributes:
        value: greater is better; NaN where the predictor has diverged or the metric is undefined.
        choice: the post-processing that gave it; None where there is none.
    """

    value: float
    choice: Choice | None = None


class SplitScorer:
    """Scores predictions of one split by the metrics of its task.

    Attributes:
        split: the embeddings and targets.
        objective: what predictors of the task learn.
        metrics: of the task; the first one is monitored.
        events: what scores events; None for other tasks.
    """

    def __init__(self, task: Task, split: SplitData) -> None:
        self.task, self.split = task, split
        direction = task.kind == "localisation"
        self.objective = Objective("localisation" if direction else task.prediction_type)
        self.metrics = metrics_of(task)
        self.by_loss = monitors_loss(task)
        self.choices: list[Choice] = []
        self.events: EventScorer | None = None
        if split.timeline is not None and split.events is not None:
            self.choices = choices_of(task)
            self.events = EventScorer(split.events, split.timeline)

    def validate(self, prediction: Tensor, loss: float) -> ValidationScore:
        """Score a validation by the first metric, or by the loss where the task says so.

        The post-processing that scores best is chosen, by the first metric too where the loss is
        monitored. Of equals it is the last, with the longest filter and the greatest least
        duration, as in the original kit.

        Args:
            prediction: (rows, outputs), after the activation.
            loss: of these outputs.
        """
        first = self.metrics[0]
        probabilities = prediction.numpy()
        if not np.isfinite(probabilities).all():
            return ValidationScore(math.nan)
        if self.by_loss and len(self.choices) <= 1:  # nothing to choose: spare the metric
            return ValidationScore(float(np.float32(-loss)), next(iter(self.choices), None))
        best, chosen = math.nan, None
        for choice, scores in self._score(probabilities, [first.name]):
            value = scores[first.name] if first.maximise else -scores[first.name]
            if math.isnan(best) or value >= best:
                best, chosen = value, choice
        return ValidationScore(float(np.float32(-loss if self.by_loss else best)), chosen)

    def test(self, prediction: Tensor, choice: Choice | None) -> dict[str, float]:
        """Score a test by all metrics, with the post-processing that the validation chose."""
        names = [metric.name for metric in self.metrics]
        return next(
            scores for found, scores in self._score(prediction.numpy(), names) if found == choice
        )

    def listed_events(self, prediction: Tensor, choice: Choice) -> dict[str, Any]:
        """Return the events of the target and of a prediction, each by file."""
        assert self.events is not None
        assert self.split.timeline is not None
        assert self.split.events is not None
        (found,) = self.events.postprocessing.events(prediction.numpy(), [choice])
        files, labels = self.split.timeline.files, self.task.labels
        return {
            "target_events": self.split.events.by_file(files, labels),
            "predicted_events": found.by_file(files, labels),
        }

    def _score(
        self, probabilities: np.ndarray, names: Sequence[str]
    ) -> list[tuple[Choice | None, dict[str, float]]]:
        """Return each choice of post-processing (None: there is none) with its scores."""
        if self.events is None:
            return [(None, scene_scores(names, probabilities, self.split.targets.numpy()))]
        found = self.events.score(probabilities, self.choices, names)
        return list(zip(self.choices, found, strict=True))


def monitors_loss(task: Task) -> bool:
    """Whether validations of a task are scored by their loss, not by the first metric."""
    return task.metadata.get("use_scoring_for_early_stopping", True) is False


def metrics_of(task: Task) -> list[Metric]:
    """Return a task's metrics.

    Raises:
        OptionError: for a metric that is not known.
        TaskError: for one that does not fit the task.
    """
    metrics = [named_metric(name) for name in task.evaluation]
    kinds = {"scene": {"multiclass", "multilabel"}}.get(task.kind, {task.kind})
    for metric in metrics:
        if metric.kind not in kinds:
            raise TaskError(
                f"{task.folder}: the metric {metric.name} is of {metric.kind} tasks, and this is "
                f"one of {task.kind}."
            )
    return metrics


def choices_of(task: Task) -> list[Choice]:
    """Return a task's choices of post-processing: see :func:`postprocessing_choices`."""
    grid = parameters_of(task, "event_postprocessing_grid")
    return postprocessing_choices(grid, str(task.folder))


def parameters_of(task: Task, name: str) -> dict[str, Any]:
    """Return one of a task's ``evaluation_params``; empty where there is none.

    Raises:
        TaskError: where it is no object.
    """
    group: Any = task.metadata.get("evaluation_params") or {}
    if isinstance(group, dict):
        group = group.get(name) or {}
    if not isinstance(group, dict):
        raise TaskError(
            f"{task.folder}: evaluation_params must be an object, and its {name} too, of names and "
            f"lists of choices; here is {short(group)}."
        )
    return group
