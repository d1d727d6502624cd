"""Whether one model's score is better than another's by more than chance, clip by clip.

A paired permutation test (Fisher; in the form of approximate randomisation, Noreen 1989): if two
models were alike, each clip's two outputs could as well be exchanged. So they are, for a random
half of the clips at a time, and the p-value is the share of the exchanges whose difference of
scores is at least as large as the one that was seen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from gram_hear.errors import GramError, TaskError
from gram_hear.evaluation.compare.comparison import Comparison, Run, Score
from gram_hear.evaluation.predict.folds import folds_of
from gram_hear.evaluation.predict.metrics import named_metric
from gram_hear.evaluation.predict.score_files import FILES
from gram_hear.foreign import FLOATS, ZIP_FAULTS, read_array
from gram_hear.jobs.callback import Progress, silent
from gram_hear.tasks import read_task

LEVEL = 0.05  # below which an adjusted p-value is significant
RESAMPLES = 9999  # exchanges, where the score is a mean over clips
FEWEST = 199  # exchanges that a p-value is given from
BUDGET = 2e8  # numbers that are sorted at most to score exchanges of a metric of whole splits
SEED = 0
GROUPS = 64  # up to how many sizes of differences are drawn as binomial counts
CHUNK = 512  # exchanges that are drawn at once otherwise


@dataclass(frozen=True)
class PairTest:
    """Two models on the same clips of a task.

    Attributes:
        task, first, second: of which the difference is first less second.
        difference: of the scores, over seeds and folds.
        clips: how many were compared; 0 where ``why`` says why none were.
        resamples: how many exchanges were made.
        p: two-sided; None where the models could not be tested.
        adjusted: ``p`` after Holm (1979) for all pairs of the task.
        why: why the models could not be tested; "" where they were.
    """

    task: str
    first: str
    second: str
    difference: float | None = None
    clips: int = 0
    resamples: int = 0
    p: float | None = None
    adjusted: float | None = None
    why: str = ""

    @property
    def significant(self) -> bool | None:
        """Whether the models differ significantly; None where they could not be tested."""
        return None if self.adjusted is None else self.adjusted < LEVEL


@dataclass(frozen=True)
class FoldOutputs:
    """A model's outputs on the test clips of one fold.

    Attributes:
        files: of the clips.
        target: (clips, outputs).
        predictions: (clips, outputs), one for each seed.
        values: (clips,) what each clip adds to the score, the mean over the seeds; NaN where the
            metric is no mean over clips.
    """

    files: list[str]
    target: np.ndarray
    predictions: list[np.ndarray]
    values: np.ndarray


@dataclass(frozen=True)
class ModelOutputs:
    """A model's outputs on a task by fold; none where ``why`` says why they cannot be compared."""

    score: Score
    folds: dict[str, FoldOutputs] = field(default_factory=dict)
    why: str = ""


def compare_models(
    comparison: Comparison, resamples: int = RESAMPLES, progress: Progress = silent
) -> list[PairTest]:
    """Test every pair of models on every task that both have a score of.

    Args:
        comparison: the models.
        resamples: exchanges; fewer where a metric must be computed for each of them and is costly.
        progress: called with the number of pairs tested, and of all pairs.

    Returns:
        One for each pair, by task, in the order of the models.
    """
    of_task = [comparison.scored(task) for task in comparison.tasks]
    total = sum(math.comb(len(scores), 2) for scores in of_task)
    progress(0, total)
    tests: list[PairTest] = []
    for scores in of_task:
        if len(scores) < 2:
            continue
        found = []
        for first, second in combinations([_outputs_of(score) for score in scores], 2):
            found.append(_test(first, second, resamples))
            progress(len(tests) + len(found), total)
        tests += _adjust(found)
    return tests


def _outputs_of(score: Score) -> ModelOutputs:
    """Read a model's outputs on a task."""
    why = "events are counted over all files together, not clip by clip"
    if named_metric(score.metric).kind != "event":
        try:
            return ModelOutputs(score, _read_folds(score))
        except FileNotFoundError as error:
            why = f"{score.model} has no predictions on disk ({Path(error.filename).name})"
        except (GramError, OSError) as error:
            why = f"the predictions of {score.model} cannot be compared: {error}"
    return ModelOutputs(score, why=why)


def _read_folds(score: Score) -> dict[str, FoldOutputs]:
    folds: dict[str, FoldOutputs] = {}
    per_clip = named_metric(score.metric).per_clip
    task = read_task(score.runs[0].folder)
    for fold in folds_of(task):
        outputs = [_read_outputs(run, fold.name) for run in score.runs]
        target = outputs[0][0]
        for run, (other, _) in zip(score.runs, outputs, strict=True):
            if not np.array_equal(target, other):
                raise TaskError(f"{run.folder} has other targets than {score.runs[0].folder}")
        predictions = [prediction for _, prediction in outputs]
        values = np.full(len(target), np.nan)
        if per_clip:
            exact = [each.astype(np.float64) for each in predictions]
            values = np.mean([per_clip(each, target.astype(np.float64)) for each in exact], 0)
        files = task.row_files(fold.test)
        if len(files) != len(target):
            raise TaskError(f"there are {len(target)} of {len(files)} files")
        folds[fold.name] = FoldOutputs(files, target, predictions, values)
    return folds


def _read_outputs(run: Run, fold: str) -> tuple[np.ndarray, np.ndarray]:
    path: Path = run.folder / FILES[run.result.probe].predictions.format(fold=fold)
    try:
        with ZipFile(path) as archive:
            target, prediction = (
                read_array(archive, name, TaskError, *FLOATS) for name in ("target", "prediction")
            )
    except ZIP_FAULTS as error:
        raise TaskError(f"{path} is broken; predict the task again, with --force") from error
    if target.ndim != 2 or prediction.shape != target.shape:
        raise TaskError(
            f"{path} holds a target of the shape {target.shape} and a prediction of "
            f"{prediction.shape}; both must be the same (clips, outputs): predict the task again, "
            "with --force"
        )
    return target, prediction


def _test(first: ModelOutputs, second: ModelOutputs, resamples: int) -> PairTest:
    """Test one pair of models on one task."""
    metric = first.score.metric
    empty = PairTest(first.score.task, first.score.model, second.score.model)
    if why := first.why or second.why:
        return replace(empty, why=why)
    pairs = [(a, second.folds[fold]) for fold, a in first.folds.items() if fold in second.folds]
    same = len(pairs) == len(first.folds) == len(second.folds) and all(
        a.files == b.files and np.array_equal(a.target, b.target) for a, b in pairs
    )
    if not same:
        return replace(empty, why="the models were tested on different clips")
    empty = replace(empty, clips=sum(len(a.files) for a, _ in pairs))
    if named_metric(metric).per_clip:
        differences = [(a.values - b.values) / len(a.files) / len(pairs) for a, b in pairs]
        seen, drawn = _exchange_means(np.concatenate(differences), resamples)
    else:
        found = _exchange_outputs(pairs, metric, resamples)
        if isinstance(found, str):
            return replace(empty, why=found)
        seen, drawn = found
    if not math.isfinite(seen):
        return replace(empty, why=f"{metric} of the predictions on disk is undefined")
    # A hair of tolerance: sums in another order must not lose an exchange that equals what is seen.
    # An exchange without a finite difference (of two infinite scores) counts against a difference.
    extreme = np.count_nonzero(~(np.abs(drawn) < abs(seen) * (1 - 1e-9) - 1e-12))
    p = (extreme + 1) / (len(drawn) + 1)
    return replace(empty, difference=float(seen), resamples=len(drawn), p=float(p))


def _exchange_means(differences: np.ndarray, resamples: int) -> tuple[float, np.ndarray]:
    """Return the sum of clips' differences, and those sums with random signs.

    Where the differences have few sizes, as those of right and wrong answers, the clips of a size
    that keep their sign are a binomial number.
    """
    generator = np.random.default_rng(SEED)
    sizes, counts = np.unique(np.abs(differences).round(15), return_counts=True)
    sizes, counts = sizes[sizes > 0], counts[sizes > 0]
    drawn = np.zeros(resamples)
    if len(sizes) <= GROUPS:
        for size, count in zip(sizes, counts, strict=True):
            drawn += size * (2.0 * generator.binomial(count, 0.5, resamples) - count)
        return float(differences.sum()), drawn
    for start in range(0, resamples, CHUNK):
        part = drawn[start : start + CHUNK]
        signs = generator.integers(0, 2, (len(part), len(differences)), dtype=np.int8)
        part[:] = 2 * (signs @ differences) - differences.sum()
    return float(differences.sum()), drawn


def _exchange_outputs(
    pairs: Sequence[tuple[FoldOutputs, FoldOutputs]], metric: str, resamples: int
) -> tuple[float, np.ndarray] | str:
    """Return the difference of a metric of whole splits, and those of exchanged outputs.

    The models' seeds are paired in their order.
    """
    if len(pairs[0][0].predictions) != len(pairs[0][1].predictions):
        return "the models have different numbers of seeds"
    cost = sum(2 * a.target.size * len(a.predictions) for a, _ in pairs)
    resamples = min(resamples, int(BUDGET / cost))
    if resamples < FEWEST:
        return f"{metric} would have to be computed {FEWEST} times over a test as large as this"
    measured = named_metric(metric)
    generator = np.random.default_rng(SEED)

    def difference(exchange: bool) -> float:
        found = []
        for a, b in pairs:
            swapped = generator.integers(0, 2, (len(a.files), 1)) == 1 if exchange else False
            target = a.target if measured.kind == "localisation" else a.target == 1
            for x, y in zip(a.predictions, b.predictions, strict=True):
                one, two = np.where(swapped, y, x), np.where(swapped, x, y)
                found.append(measured.compute(one, target) - measured.compute(two, target))
        return sum(found) / len(found)  # NaN where an infinite score meets another

    seen = difference(False)
    return seen, np.array([difference(True) for _ in range(resamples)])


def _adjust(tests: Sequence[PairTest]) -> list[PairTest]:
    """Adjust the p-values of a task's pairs to one another (Holm, 1979)."""
    known = sorted((test for test in tests if test.p is not None), key=lambda test: test.p or 0.0)
    adjusted: dict[tuple[str, str], float] = {}
    least = 0.0
    for rank, test in enumerate(known):
        least = max(least, min(1.0, (test.p or 0.0) * (len(known) - rank)))
        adjusted[test.first, test.second] = least
    return [replace(test, adjusted=adjusted.get((test.first, test.second))) for test in tests]
