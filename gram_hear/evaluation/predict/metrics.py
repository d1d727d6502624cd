"""The metrics of the HEAR protocol, by the names that task metadata and score files have.

Those of clips are computed here, by :func:`scene_scores`; those of events by
:class:`gram_hear.evaluation.predict.event_metrics.EventScorer`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from gram_hear.errors import OptionError, nearest, short
from gram_hear.evaluation.predict.event_metrics import COLLARS, SEGMENT_METRIC

Kind = Literal["multiclass", "multilabel", "event", "localisation"]
SEMITONES = 12
F_MEASURE = ("f_measure", "precision", "recall")


Measure = Callable[[np.ndarray, np.ndarray], Any]  # of a prediction and a target


@dataclass(frozen=True)
class Metric:
    """A metric of the protocol.

    Attributes:
        name: in task metadata, and in score files after the split's name.
        maximise: whether more is better.
        kind: of which tasks: "multiclass" ((n, classes) scores, exactly one class for each clip),
            "multilabel" (any number of classes), "event", or "localisation" ((n, 3) directions).
        per_clip: where the metric is a mean over clips, what each of them adds, (n,) float64.
        of_all: its value where it can only be computed of all clips together. Both are None for
            events.
        parts: what score files list beside it, as ``<name>_<part>``; the first equals the metric.
        unit: "" for a share or a plain number.
        bounds: the least and the greatest value; None where there is no bound.
    """

    name: str
    maximise: bool
    kind: Kind
    per_clip: Measure | None = None
    of_all: Measure | None = None
    parts: tuple[str, ...] = ()
    unit: str = ""
    bounds: tuple[int | None, int | None] = (0, 1)

    @property
    def title(self) -> str:
        """The name with the unit, for people."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of this metric in a score file, without the split's name."""
        return (self.name, *(f"{self.name}_{part}" for part in self.parts))

    def compute(self, prediction: np.ndarray, target: np.ndarray) -> float:
        """Return the value of a metric of clips.

        Args:
            prediction: (n, classes) scores, or (n, 3) float64 directions.
            target: (n, classes) bool, or (n, 3) float64 directions.
        """
        if self.per_clip is not None:
            return float(self.per_clip(prediction, target).mean())
        assert self.of_all is not None, f"{self.name} is scored from events"
        return float(self.of_all(prediction, target))


# --- classes --------------------------------------------------------------------------------


def same_class(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return 1 where the highest score (the first of equals) is the target's class, else 0."""
    return (prediction.argmax(axis=1) == target.argmax(axis=1)).astype(np.float64)


def same_chroma(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the same with class indices modulo 12: errors of whole octaves do not count.

    The index counts, not the label's name: classes must be semitones in rising order.
    """
    difference = prediction.argmax(axis=1) - target.argmax(axis=1)
    return (difference % SEMITONES == 0).astype(np.float64)


def _each_class(
    prediction: np.ndarray, target: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each class the sorted scores of all rows, and of its positive rows.

    What average precision and the area under the ROC curve need to know of the negative rows is how
    many score more than a positive one: a plain sort and a search, many times faster than the
    curves, whose sort must carry the labels along.
    """
    columns = np.ascontiguousarray(prediction.T)
    everything = np.sort(columns, axis=1)
    for column, scores, positive in zip(columns, everything, target.T, strict=True):
        yield scores, np.sort(column[positive])


def class_average_precision(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return each class's average precision, (classes,) float64, as scikit-learn defines it.

    That is the mean, over the positive rows, of the precision among the rows that score at least
    as much. A class without any positive row gets 0, as from scikit-learn since 1.1.
    """
    values = []
    for scores, positives in _each_class(prediction, target):
        at_least = len(scores) - np.searchsorted(scores, positives)
        right = len(positives) - np.searchsorted(positives, positives)
        values.append((right / at_least).mean() if len(positives) else 0.0)
    return np.array(values)


def class_auc(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return each class's area under the ROC curve, (classes,) float64.

    That is how often a positive row scores more than a negative one; equals count half. NaN for a
    class without positive or without negative rows: nothing is there to compare.
    """
    values = []
    for scores, positives in _each_class(prediction, target):
        pairs = len(positives) * (len(scores) - len(positives))
        # Twice the number of smaller ones, and once the number of equals: left + right.
        twice = sum(
            int(np.searchsorted(scores, positives, side).sum())
            - int(np.searchsorted(positives, positives, side).sum())
            for side in ("left", "right")
        )
        values.append(twice / 2 / pairs if pairs else math.nan)
    return np.array(values)


def _mean(per_class: Measure) -> Measure:
    """Return the plain mean over classes; NaN where one class has no value."""
    return lambda prediction, target: per_class(prediction, target).mean()


def d_prime(prediction: np.ndarray, target: np.ndarray) -> float:
    """Return the mean over classes of sqrt(2) times the inverse normal CDF of the class's AUC.

    Infinite where a class has an AUC of 1 (minus infinity at 0; NaN where both occur); NaN where
    one class has no AUC.
    """
    values = [math.sqrt(2) * _inverse_normal(auc) for auc in class_auc(prediction, target).tolist()]
    return sum(values) / len(values)


def _inverse_normal(probability: float) -> float:
    """Return the number below which a standard normal variable lies with this probability."""
    if 0 < probability < 1:
        return NormalDist().inv_cdf(probability)
    return {0.0: -math.inf, 1.0: math.inf}.get(probability, math.nan)


# --- directions -----------------------------------------------------------------------------


def angular_errors(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the degrees between directions, (n,): the great-circle distance on the unit sphere.

    A prediction of length 0 has no direction; it counts as 90 degrees, what guessing comes to.
    """
    across = np.linalg.norm(np.cross(prediction, target), axis=1)
    along = (prediction * target).sum(axis=1)
    # Better than the arc cosine, which loses half of the digits of a small angle.
    degrees = np.degrees(np.arctan2(across, along))
    return np.where(prediction.any(axis=1), degrees, 90.0)


def chord_errors(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return 2 asin(|p - t| / 2) in degrees, of raw vectors (``DOA`` is their mean).

    A distance above 2, which no chord of the unit sphere has, counts as 180 degrees. (The
    benchmark's localisation fork counts it as 0 there, which rewards the worst predictions.)
    """
    half = np.linalg.norm(prediction - target, axis=1) / 2
    return np.degrees(2 * np.arcsin(np.minimum(half, 1)))


def absolute_errors(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return each row's mean of |p - t| over the columns."""
    return np.abs(prediction - target).mean(axis=1)


def _median_angle(prediction: np.ndarray, target: np.ndarray) -> float:
    return float(np.median(angular_errors(prediction, target)))


def _axis_errors(axis: int) -> Measure:
    return lambda prediction, target: np.abs(prediction - target)[:, axis]


# --- the registry ---------------------------------------------------------------------------

DEGREES: dict[str, Any] = {"unit": "degrees", "bounds": (0, 180)}
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1_acc", True, "multiclass", same_class),
        Metric("pitch_acc", True, "multiclass", same_class),
        Metric("chroma_acc", True, "multiclass", same_chroma),
        Metric("mAP", True, "multilabel", of_all=_mean(class_average_precision)),
        Metric("aucroc", True, "multilabel", of_all=_mean(class_auc)),
        Metric("d_prime", True, "multilabel", of_all=d_prime, bounds=(None, None)),
        *(Metric(name, True, "event", parts=F_MEASURE) for name in COLLARS),
        Metric(SEGMENT_METRIC, False, "event", parts=("error_rate",), bounds=(0, None)),
        Metric("DOA", False, "localisation", chord_errors, **DEGREES),
        Metric("MAE", False, "localisation", angular_errors, **DEGREES),
        Metric("DOE", False, "localisation", of_all=_median_angle, **DEGREES),
        *(
            Metric(name, False, "localisation", measure, bounds=(0, None))
            for name, measure in (
                ("3d_source_local", absolute_errors),
                *((f"3d_source_local_{axis}", _axis_errors(i)) for i, axis in enumerate("xyz")),
            )
        ),
    )
}


def named_metric(name: str) -> Metric:
    """Return the metric of this name.

    Raises:
        OptionError: there is none.
    """
    if name not in METRICS:
        raise OptionError(
            f"There is no metric {short(name)}; known are {', '.join(METRICS)}."
            f"{nearest(name, METRICS)}"
        )
    return METRICS[name]


def describe_metric(name: str) -> str:
    """Return a metric's name with what readers must know: its unit, and that less is better."""
    metric = METRICS.get(name)
    known = [metric.unit, "" if metric.maximise else "lower is better"] if metric else []
    words = ", ".join(filter(None, known))
    return f"{name} ({words})" if words else name


def scene_scores(
    names: Sequence[str], prediction: np.ndarray, target: np.ndarray
) -> dict[str, float]:
    """Return the metrics of clips, by name, in the order given.

    Values may be infinite or NaN where a metric's own description says so; :func:`strict_json`
    of :mod:`gram_hear.evaluation.predict.score_files` makes them fit for a file.

    Args:
        names: of :data:`METRICS`, of one task: not of events.
        prediction: (n, classes) scores, probabilities or logits; (n, 3) for localisation.
        target: (n, classes) of 0 and 1, for multiclass with exactly one 1 in each row; for
            localisation (n, 3) vectors other than 0.

    Raises:
        OptionError: a name is unknown or of an event metric; shapes or values do not fit.
    """
    metrics = [named_metric(name) for name in names]
    prediction, target = np.asarray(prediction), np.asarray(target)
    if prediction.ndim != 2 or prediction.shape != target.shape or not prediction.size:
        raise OptionError(
            f"The prediction has the shape {prediction.shape}, the target {target.shape}; "
            "both must be the same (n, classes) with n and classes above 0."
        )
    for what, values in (("prediction", prediction), ("target", target)):
        if not np.isfinite(values).all():
            raise OptionError(f"The {what} holds NaN or infinity; it cannot be scored.")
    scores = {}
    for metric in metrics:
        if metric.kind == "event":
            raise OptionError(
                f"{metric.name} is scored from events, not from rows: use EventScorer."
            )
        scores[metric.name] = metric.compute(*_as_kind(metric, prediction, target))
    return scores


def _as_kind(
    metric: Metric, prediction: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Check the target against the metric's kind, and return both as its function takes them."""
    if metric.kind == "localisation":
        if prediction.shape[1] != 3 or not target.any(axis=1).all():
            raise OptionError(
                f"{metric.name} needs (n, 3) vectors, and targets that are not 0; the shape is "
                f"{prediction.shape}, with {np.count_nonzero(~target.any(axis=1))} targets of 0."
            )
        return prediction.astype(np.float64), target.astype(np.float64)
    positive = target == 1
    if not (positive | (target == 0)).all():
        raise OptionError(f"{metric.name} needs a target of 0 and 1, one column for each class.")
    if metric.kind == "multiclass" and (positive.sum(axis=1) != 1).any():
        row = int(np.flatnonzero(positive.sum(axis=1) != 1)[0])
        raise OptionError(
            f"{metric.name} needs exactly one class for each row; row {row} has "
            f"{np.count_nonzero(positive[row])}."
        )
    return prediction, positive
