"""Several models compared: their results found, grouped by seeds, averaged and ranked."""

import os
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev

from gram_hear.errors import OptionError, TaskError, count
from gram_hear.evaluation.compare.results import Result, read_results, warn_of_versions
from gram_hear.evaluation.predict.metrics import METRICS, named_metric
from gram_hear.evaluation.predict.score_files import FILES

UNBOUNDED = ("d_prime",)  # metrics of which more is better, and which no average of shares takes


@dataclass(frozen=True)
class Run:
    """One module evaluated once on one task: where, and what came out."""

    folder: Path
    result: Result


@dataclass(frozen=True)
class Score:
    """What a model reached on a task, over all its runs.

    Attributes:
        model, task: as the comparison names them.
        runs: by seed.
        value: the mean over the runs; None where one of them is undefined.
        deviation: the standard deviation (n - 1) over runs where there are several; of a single
            run over its folds; None where there is neither.
        over: what ``deviation`` is over, ``"seeds"`` or ``"folds"``; None without one.
        count: of how many.
    """

    model: str
    task: str
    runs: tuple[Run, ...]
    value: float | None
    deviation: float | None
    over: str | None
    count: int

    @property
    def metric(self) -> str:
        """The name of the metric."""
        return self.runs[0].result.metric

    @property
    def seeds(self) -> list[int | None]:
        """The seed of each run; None where it has none, or it is not known."""
        return [run.result.seed for run in self.runs]


@dataclass(frozen=True)
class Change:
    """What scenes cost a model: its score on them less its score on the dry clips, run by run.

    ``deviation`` is that of the differences (n - 1); None for a single run.
    """

    model: str
    task: str
    source: str
    dry: float
    value: float
    difference: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Comparison:
    """Models and tasks in the order of the table, and what is known of each pair.

    Attributes:
        models, tasks: their names.
        scores: by (model, task); a pair that was not run is not there.
        changes: of tasks in scenes whose dry task was predicted with the same options.
        shared: the tasks on which every model has a defined score.
        averaged: those of ``shared`` whose metric is a share, where more is better.
        averages: by model, over ``averaged``; empty where there are none.
        ranks: by (model, task), over the models that have a defined score; equals share the mean.
        mean_ranks: by model, over ``shared``; empty where there are none.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    scores: Mapping[tuple[str, str], Score]
    changes: tuple[Change, ...]
    shared: tuple[str, ...] = ()
    averaged: tuple[str, ...] = ()
    averages: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[tuple[str, str], float] = field(default_factory=dict)
    mean_ranks: Mapping[str, float] = field(default_factory=dict)

    def metric(self, task: str) -> str:
        """Return the metric of a task."""
        return next(score.metric for (_, each), score in self.scores.items() if each == task)

    def maximised(self, task: str) -> bool:
        """Whether more is better on a task."""
        return named_metric(self.metric(task)).maximise

    def scored(self, task: str) -> list[Score]:
        """Return the defined scores on a task, in the order of the models."""
        found = (self.scores.get((model, task)) for model in self.models)
        return [score for score in found if score is not None and score.value is not None]

    def best(self, task: str) -> tuple[str, ...]:
        """Return the models of the best score on a task, several where they are equal."""
        ranked = {model: rank for (model, each), rank in self.ranks.items() if each == task}
        first = min(ranked.values(), default=0.0)
        return tuple(model for model in self.models if ranked.get(model) == first)


# --- finding --------------------------------------------------------------------------------


def find_modules(folders: Sequence[Path]) -> list[Path]:
    """Return the folders of modules, EMBEDDINGS/MODULE, that are given or lie below those given.

    Raises:
        OptionError: for what is no folder, a task's own folder, or one without any results.
    """
    markers = {names.marker for names in FILES.values()}
    found: dict[Path, Path] = {}
    for given in folders:
        if not given.is_dir():
            raise OptionError(f"There is no folder {given}; give EMBEDDINGS/MODULE, or EMBEDDINGS.")
        if any((given / marker).exists() for marker in markers):
            raise OptionError(
                f"{given} holds one task; give its module's folder, {given.absolute().parent}, and "
                "choose tasks with --task."
            )
        inside = []
        for folder, inner, files in os.walk(given):
            inner.sort()
            if markers & set(files):
                inner.clear()
                inside.append(Path(folder).parent)
        if not inside:
            raise OptionError(
                f"{given} holds no results: nothing below it has {' or '.join(sorted(markers))}. "
                "Run hear-eval predict first."
            )
        found.update({module.resolve(): module for module in inside})
    return list(found)


def read_runs(folders: Sequence[Path], tasks: Sequence[str] | None = None) -> list[Run]:
    """Return every run below some folders, of all tasks or of those named.

    Args:
        folders: as :func:`find_modules` takes them.
        tasks: full names, or what stands in them before the first "-".

    Raises:
        OptionError: as :func:`find_modules`; for a task that none of them has.
    """
    runs = [
        Run(module / result.task, result)
        for module in find_modules(folders)
        for result in read_results(module)
    ]
    names = {run.result.task for run in runs}
    for task in tasks or ():
        if not any(_is_named(name, task) for name in names):
            there = ", ".join(sorted(names))
            raise OptionError(f"No model has results of {task!r}; there are {there}.")
    if tasks:
        runs = [run for run in runs if any(_is_named(run.result.task, task) for task in tasks)]
    if not runs:
        raise OptionError("No result can be read; see the warnings above.")
    return runs


def _is_named(name: str, given: str) -> bool:
    return given in (name, name.split("-")[0])


# --- comparing ------------------------------------------------------------------------------


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare runs: those of one model and task are its seeds.

    A model is a module's folder name, followed by those options of prediction that differ between
    runs. Models are in the order of their first run, tasks by name.

    Raises:
        TaskError: for two runs of one model, task and seed with different scores.
    """
    names = _model_names(runs)
    labels = _task_names(runs)
    grouped: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run, model in zip(runs, names, strict=True):
        grouped[model, labels[_task_of(run.result)]].append(run)
    scores = {key: _score(*key, _distinct(found)) for key, found in grouped.items()}
    models = tuple(dict.fromkeys(names))
    tasks = tuple(sorted({task for _, task in scores}))
    changes = [change for score in scores.values() if (change := _change(score)) is not None]
    changes.sort(key=lambda each: (each.task, models.index(each.model)))
    return _ranked(Comparison(models, tasks, scores, tuple(changes)))


def _model_names(runs: Sequence[Run]) -> list[str]:
    """Return each run's model: its module, and the options that are not the same in all runs."""
    options = [_options_of(run.result) for run in runs]
    trained = [each for each, run in zip(options, runs, strict=True) if run.result.probe != "knn"]
    differing = {
        key
        for key in ("probe", "grid", "points", "shuffled")
        if len({each[key] for each in (options if key == "probe" else trained)}) > 1
    }
    names = []
    for run, chosen in zip(runs, options, strict=True):
        words = [word for key, word in chosen.items() if key in differing and word]
        names.append(run.folder.resolve().parent.name + (f" ({', '.join(words)})" if words else ""))
    return names


def _options_of(result: Result) -> dict[str, str]:
    trained = result.probe != "knn"
    return {
        "probe": result.probe,
        "grid": f"{result.grid}" if trained else "",
        "points": count(result.grid_points or 0, "point") if trained else "",
        "shuffled": ("shuffled" if result.shuffle else "in order") if trained else "",
    }


def _task_of(result: Result) -> tuple[str, str, str]:
    """Return what identifies a task: its name, its metric, and what was done about empty clips."""
    empty = f"empty clips: {result.empty_clips}" if result.empty_clips else ""
    return result.task, result.metric, empty


def _task_names(runs: Sequence[Run]) -> dict[tuple[str, str, str], str]:
    """Return the name of each task, with metric and empty clips in brackets where they differ."""
    found = {_task_of(run.result) for run in runs}
    names = {}
    for run in runs:
        if run.result.metric not in METRICS:
            raise TaskError(
                f"{run.folder} is scored by {run.result.metric}, which is no metric known here; "
                f"known are {', '.join(METRICS)}."
            )
    for task, *details in found:
        others = [list(each) for name, *each in found if name == task]
        differing = [
            word
            for i, word in enumerate(details)
            if word and any(each[i] != word for each in others)
        ]
        brackets = f" ({', '.join(differing)})" if differing else ""
        names[task, details[0], details[1]] = f"{task}{brackets}"
    return names


def _distinct(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return the runs by seed; the same run found twice counts once.

    Runs without a known seed count as several where their scores differ, and nearest neighbours,
    which have none, must not differ.
    """
    kept: list[Run] = []
    for run in runs:
        result = run.result
        same = [each for each in kept if each.result.seed == result.seed]
        if any(each.result.scores == result.scores for each in same):
            continue
        if same and (result.seed is not None or result.probe == "knn"):
            seed = "" if result.seed is None else f" and seed {result.seed}"
            raise TaskError(
                f"{same[0].folder} and {run.folder} are of one module and task, with the same "
                f"options{seed}, and have different scores ({same[0].result.score} and "
                f"{result.score}). If they are of different models, rename a module's folder; "
                "otherwise leave one out."
            )
        kept.append(run)
    return tuple(sorted(kept, key=lambda run: -1 if run.result.seed is None else run.result.seed))


def _score(model: str, task: str, runs: tuple[Run, ...]) -> Score:
    values = [run.result.score for run in runs]
    known = [value for value in values if value is not None]
    value = mean(known) if len(known) == len(values) else None
    if len(runs) > 1:
        deviation = stdev(known) if value is not None else None
        return Score(model, task, runs, value, deviation, "seeds", len(runs))
    folds = len(runs[0].result.folds)
    return Score(
        model, task, runs, value, runs[0].result.deviation, "folds" if folds else None, folds or 1
    )


def _change(score: Score) -> Change | None:
    """Return a task's difference from its dry one; None where no run has both."""
    results = [run.result for run in score.runs]
    both = [(r.dry, r.score) for r in results if r.dry is not None and r.score is not None]
    if not both:
        return None
    differences = [value - dry for dry, value in both]
    return Change(
        score.model,
        score.task,
        source=results[0].source or "",
        dry=mean(dry for dry, _ in both),
        value=mean(value for _, value in both),
        difference=mean(differences),
        deviation=stdev(differences) if len(differences) > 1 else None,
        count=len(differences),
    )


def _ranked(comparison: Comparison) -> Comparison:
    """Return a comparison with its ranks and averages."""
    models, scores = comparison.models, comparison.scores
    ranks: dict[tuple[str, str], float] = {}
    shared = []
    for task in comparison.tasks:
        sign = -1.0 if comparison.maximised(task) else 1.0
        values = {
            each.model: sign * score
            for each in comparison.scored(task)
            if (score := each.value) is not None
        }
        for model, value in values.items():
            better = sum(other < value for other in values.values())
            equal = sum(other == value for other in values.values())
            ranks[model, task] = better + (equal + 1) / 2
        if len(values) == len(models):
            shared.append(task)
    averaged = [
        task
        for task in shared
        if comparison.maximised(task) and comparison.metric(task) not in UNBOUNDED
    ]

    def average(model: str) -> float:
        return mean(value for t in averaged if (value := scores[model, t].value) is not None)

    return replace(
        comparison,
        shared=tuple(shared),
        averaged=tuple(averaged),
        averages={model: average(model) for model in models} if averaged else {},
        ranks=ranks,
        mean_ranks={m: mean(ranks[m, task] for task in shared) for m in models} if shared else {},
    )


def warn_of_gaps(comparison: Comparison) -> None:
    """Warn of models that lack tasks that others have, and of seeds that differ."""
    missing = [
        f"{model} lacks {task}"
        for model in comparison.models
        for task in comparison.tasks
        if (model, task) not in comparison.scores
    ]
    if missing:
        warnings.warn(
            f"{'; '.join(missing)}. Averages and mean ranks are over the "
            f"{len(comparison.shared)} of {len(comparison.tasks)} tasks that all models have.",
            stacklevel=2,
        )


def warn_of_mixtures(comparison: Comparison) -> None:
    """Warn of models whose tasks or seeds were embedded by different code, weights or options."""
    for model in comparison.models:
        of_model = [score for key, score in comparison.scores.items() if key[0] == model]
        runs = [run for score in of_model for run in score.runs]
        warn_of_versions(model, [(str(run.folder), run.result) for run in runs])
