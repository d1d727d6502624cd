"""The protocol's probe: shallow predictors from a grid, chosen by validation, then tested."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from gram_hear.errors import OptionError, TaskError, short
from gram_hear.evaluation.embed.embeddings import SplitEmbeddings
from gram_hear.evaluation.predict.data import TaskData
from gram_hear.evaluation.predict.folds import Fold, folds_of
from gram_hear.evaluation.predict.grid import Setting, draw_settings, most_steps
from gram_hear.evaluation.predict.postprocessing import EVENT_POSTPROCESSING
from gram_hear.evaluation.predict.predictors import Examples
from gram_hear.evaluation.predict.score_files import FILES, as_test_scores, write_scores
from gram_hear.evaluation.predict.scoring import (
    Choice,
    SplitScorer,
    choices_of,
    metrics_of,
    parameters_of,
)
from gram_hear.evaluation.predict.training import Trained, side_by_side, train
from gram_hear.jobs.callback import Progress
from gram_hear.tasks import Task

FEWEST_STEPS = 100  # of an optimizer, below which scores say little (docs/decisions.md)


@dataclass(frozen=True)
class ShallowProbe:
    """How shallow predictors are trained.

    Attributes:
        grid: ``"default"``, ``"fast"`` or ``"faster"``.
        grid_points: how many of its points are tried.
        seed: of the predictors' weights and dropout.
        shuffle: draw a new order of the training rows in every epoch (the protocol does not).
        device: on which they are trained.

    Raises:
        OptionError: for a grid, a number of points or a seed that is not allowed.
    """

    grid: str = "default"
    grid_points: int = 8
    seed: int = 42
    shuffle: bool = False
    device: str = "cpu"
    files: ClassVar = FILES["shallow"]
    validates: ClassVar = True

    def __post_init__(self) -> None:
        draw_settings(self.grid, self.grid_points, "")
        if self.seed < 0:
            raise OptionError(f"The seed is {self.seed}; it must be 0 or more.")

    def to_dict(self) -> dict[str, Any]:
        """Return what changes the scores."""
        return {key: getattr(self, key) for key in ("grid", "grid_points", "seed", "shuffle")}

    def check(self, task: Task) -> None:
        """Check, before anything is embedded, that a task can be predicted: :meth:`settings`."""
        self.settings(task)

    def settings(self, task: Task) -> list[Setting]:
        """Return the grid points that a task is predicted with, and check its metadata.

        Raises:
            TaskError, OptionError: for metrics, post-processing or a grid that do not fit.
        """
        metrics_of(task)
        if task.kind == "event":
            choices_of(task)
        name = task.metadata.get("task_name")
        if not isinstance(name, str):
            raise TaskError(
                f"{task.folder}: task_name is {short(name)}; it must be the task's name."
            )
        own = parameters_of(task, "task_specific_param_grid")
        return draw_settings(self.grid, self.grid_points, name, own)

    def facts(self, task: Task) -> dict[str, Any]:
        """Return what the marker of the scores says in addition."""
        return {"optimizer_steps": self.optimizer_steps(task)}

    def optimizer_steps(self, task: Task) -> int:
        """Return how many optimizer steps a predictor takes at most, in the fold with the fewest.

        Args:
            task: embeddings.

        Raises:
            TaskError: where the number of rows is not known, and as :meth:`settings`.
        """
        settings = self.settings(task)
        rows = {split: SplitEmbeddings(task, split).shape[0] for split in task.splits}
        return min(
            most_steps(settings, sum(rows[split] for split in fold.training))
            for fold in folds_of(task)
        )

    def score(
        self, data: TaskData, folds: Sequence[Fold], output: Path, progress: Progress
    ) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """Search the grid on the first fold, and test its best point on every fold.

        Raises:
            TaskError: where no grid point has a validation score, or predictions are not finite.
        """
        tried = self.settings(data.task)
        total = len(tried) + len(folds) - 1
        scorers = {
            split: SplitScorer(data.task, data[split])
            for split in {name for fold in folds for name in (fold.validation, fold.test)}
        }
        results: dict[str, Any] = {}
        done = 0

        def report(points: int) -> None:
            nonlocal done
            done += points
            progress(done, total)

        for number, fold in enumerate(folds):
            started = time.time()
            training = data.examples(fold.training)
            best = self._search(training, scorers[fold.validation], tried, number, report)
            if best is None:
                raise TaskError(
                    f"{data.task.folder}: no grid point has a validation score on split "
                    f"{fold.validation}: {data.task.evaluation[0]} is undefined there, or every "
                    "predictor diverged."
                )
            results[fold.name] = {
                **_test(data.task, fold, best, scorers[fold.test], output),
                "time_in_min": (time.time() - started) / 60,
                "hparams": best.setting.to_dict(),
                "postprocessing": _named_choice(best.validation.choice),
            }
            tried = [best.setting]
        return results, tried[0].to_dict()

    def _search(
        self,
        training: Examples,
        scorer: SplitScorer,
        settings: Sequence[Setting],
        fold: int,
        report: Callable[[int], None],
    ) -> Trained | None:
        """Train grid points; return the best validated, the first of equals; None without any."""
        device = torch.device(self.device)
        training, validation = training.to(device), scorer.split.examples.to(device)
        trained: dict[int, Trained] = {}
        for group in side_by_side(settings, device, self.shuffle):
            found = train(
                [settings[i] for i in group],
                training,
                validation,
                scorer.objective,
                scorer.validate,
                [point_seed(self.seed, fold, i) for i in group],
                device,
                self.shuffle,
            )
            trained |= {i: one for i, one in zip(group, found, strict=True) if one is not None}
            report(len(group))
        in_order = (trained[i] for i in sorted(trained))
        return max(in_order, key=lambda one: one.validation.value, default=None)


def point_seed(seed: int, fold: int, point: int) -> int:
    """Return the seed of one predictor's weights and dropout."""
    return int(np.random.SeedSequence([seed, fold, point]).generate_state(1)[0])


def _test(
    task: Task, fold: Fold, best: Trained, scorer: SplitScorer, output: Path
) -> dict[str, Any]:
    """Score a fold's test split, and write predictions and events to a folder."""
    split = scorer.split
    prediction, logits = best.predict(split.examples.features)
    if not prediction.isfinite().all():
        raise TaskError(f"{task.folder}: the predictions of split {fold.test} are not finite.")
    loss = best.objective.losses(logits[None], split.targets)
    validated = best.validation.value
    if not scorer.metrics[0].maximise or scorer.by_loss:
        validated = -validated
    np.savez_compressed(
        output / FILES["shallow"].predictions.format(fold=fold.name),
        target=split.targets.numpy(),
        prediction=prediction.numpy(),
        prediction_logit=logits.numpy(),
    )
    if scorer.events is not None:
        events = scorer.listed_events(prediction, best.validation.choice)
        write_scores(output / f"{fold.name}.events.json", events)
    return {
        "test_loss": float(loss[0]),
        **as_test_scores(scorer.test(prediction, best.validation.choice)),
        "validation_score": validated,
        "epoch": best.epoch,
    }


def _named_choice(choice: Choice | None) -> list[list]:
    """Return a choice of post-processing as the kit writes it."""
    if choice is None:
        return []
    return [list(pair) for pair in zip(EVENT_POSTPROCESSING, choice, strict=True)]
