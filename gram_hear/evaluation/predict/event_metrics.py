"""The metrics of sound events: F measures of onsets and offsets, and the segment error rate.

They are those that `sed_eval`_ counts "overall" (micro, over classes and files).

.. _sed_eval: https://tut-arg.github.io/sed_eval/sound_event.html
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gram_hear.errors import TaskError
from gram_hear.evaluation.predict.events import EventTable, Timeline
from gram_hear.evaluation.predict.postprocessing import Postprocessing

SEGMENT_MS = 1000.0
MOST_SEGMENTS = 2**28  # of all files together, times classes
SEGMENT_METRIC = "segment_1s_er"


@dataclass(frozen=True)
class Collar:
    """How near a predicted event must be to be right.

    Attributes:
        milliseconds: by which the onset may differ.
        share: None where offsets do not count; else the offset may differ by the milliseconds, or
            by this share of the target event's length where that is more.
    """

    milliseconds: float
    share: float | None = None


COLLARS = {  # of the F measures, by their names in task metadata
    "event_onset_200ms_fms": Collar(200.0),
    "event_onset_50ms_fms": Collar(50.0),
    "event_onset_offset_50ms_20perc_fms": Collar(50.0, 0.2),
}
EVENT_METRICS = (*COLLARS, SEGMENT_METRIC)


# --- onsets and offsets ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SortedEvents:
    """Events in seconds, sorted by group (same file and label) and onset; lists, for a loop."""

    groups: list[int]
    onsets: list[float]
    offsets: list[float]

    @classmethod
    def of(cls, table: EventTable) -> "SortedEvents":
        """Sort a table of events."""
        groups = (table.file << 32) + table.label
        order = np.lexsort((table.start, groups))
        # In seconds, as sed_eval has them: a distance of exactly the collar is then rounded alike.
        seconds = (times[order] / 1000 for times in (table.start, table.end))
        return cls(groups[order].tolist(), *(times.tolist() for times in seconds))


def _count_onsets(target: SortedEvents, predicted: SortedEvents, collar: float) -> int:
    """Return how many pairs an optimal matching of onsets has.

    With one collar for all, the onsets that an onset may be paired with follow each other in sorted
    order, and those of a later onset are later: taking the earliest free pair is optimal.
    """
    groups, onsets = target.groups, target.onsets
    their_groups, their_onsets = predicted.groups, predicted.onsets
    ours = theirs = matches = 0
    while ours < len(groups) and theirs < len(their_groups):
        group, their_group = groups[ours], their_groups[theirs]
        distance = onsets[ours] - their_onsets[theirs]
        if group == their_group and abs(distance) <= collar:
            matches += 1
            ours += 1
            theirs += 1
        elif group < their_group or (group == their_group and distance < 0):
            ours += 1
        else:
            theirs += 1
    return matches


def _fitting(
    target: SortedEvents, predicted: SortedEvents, collar: float, share: float
) -> list[list[int]]:
    """Return for each target event the indices of the predicted ones that it may be paired with."""
    every = []
    begin, count = 0, len(predicted.groups)
    for group, onset, offset in zip(target.groups, target.onsets, target.offsets, strict=True):
        while begin < count and (
            predicted.groups[begin] < group
            or (predicted.groups[begin] == group and onset - predicted.onsets[begin] > collar)
        ):
            begin += 1
        room = max(collar, share * (offset - onset))
        fitting = []
        i = begin
        while (
            i < count
            and predicted.groups[i] == group
            and abs(onset - predicted.onsets[i]) <= collar
        ):
            if abs(offset - predicted.offsets[i]) <= room:
                fitting.append(i)
            i += 1
        every.append(fitting)
    return every


def _count_pairs(fitting: Sequence[Sequence[int]]) -> int:
    """Return how many pairs the largest matching has, by augmenting paths.

    Where offsets count too, the candidates do not follow each other any more, and the earliest free
    pair may not be part of the largest matching.
    """
    partner: dict[int, int] = {}  # of a predicted event
    own: dict[int, int] = {}  # of a target event
    for start in range(len(fitting)):
        reached_by: dict[int, int] = {}
        queue = [start]
        for ours in queue:  # which grows: paths of two, four, ... steps
            free = None
            for theirs in fitting[ours]:
                if theirs not in reached_by:
                    reached_by[theirs] = ours
                    if theirs not in partner:
                        free = theirs
                        break
                    queue.append(partner[theirs])
            if free is not None:
                _change_partners(free, reached_by, partner, own)
                break
    return len(own)


def _change_partners(
    free: int, reached_by: dict[int, int], partner: dict[int, int], own: dict[int, int]
) -> None:
    """Go back along an augmenting path to its start, and give each event on it a new partner."""
    theirs: int | None = free
    while theirs is not None:
        ours = reached_by[theirs]
        before = own.get(ours)
        partner[theirs], own[ours] = ours, theirs
        theirs = before


def f_measure(target: SortedEvents, predicted: SortedEvents, collar: Collar) -> dict[str, float]:
    """Return ``f_measure``, ``precision`` and ``recall``, micro over classes and files.

    A predicted event is right where it is paired with a target event of the same file and class
    that is near enough. No event has two partners, and there are as many pairs as possible. Where
    nothing is predicted, or there is nothing to find, all three are 0, not NaN.
    """
    seconds = collar.milliseconds / 1000
    if collar.share is None:
        matches = _count_onsets(target, predicted, seconds)
    else:
        matches = _count_pairs(_fitting(target, predicted, seconds, collar.share))
    precision = matches / len(predicted.groups) if predicted.groups else 0.0
    recall = matches / len(target.groups) if target.groups else 0.0
    both = precision + recall
    mean = 2 * precision * recall / both if both else 0.0
    return {"f_measure": mean, "precision": precision, "recall": recall}


# --- segments -------------------------------------------------------------------------------


class Segments:
    """The segments of all files, one after the other.

    Args:
        files: how many there are.
        milliseconds: the length of a segment.
        ends: pairs of (n,) file indices and (n,) milliseconds that must lie in the segments.
    """

    def __init__(
        self, files: int, milliseconds: float, ends: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> None:
        if not (math.isfinite(milliseconds) and milliseconds > 0):
            raise TaskError(f"Segments of {milliseconds} ms were given; give more than 0.")
        self._seconds = milliseconds / 1000
        counts = np.zeros(files, dtype=np.int64)
        for file, end in ends:
            np.maximum.at(counts, file, self._index(np.ceil, end))
        self._offsets = np.cumsum(counts) - counts
        self._total = int(counts.sum())

    def _index(self, rounding: np.ufunc, milliseconds: np.ndarray) -> np.ndarray:
        # Segments begin at 0: what lies before has none.
        return np.maximum(rounding(milliseconds / 1000 / self._seconds), 0).astype(np.int64)

    def roll(self, table: EventTable, classes: int) -> np.ndarray:
        """Return which class is active in which segment, (classes, segments) bool.

        An event's onset is rounded down to a segment, its offset up.

        Raises:
            TaskError: for more segments than can be held.
        """
        row = table.label * self._total + self._offsets[table.file]
        size = classes * self._total + 1
        if size > MOST_SEGMENTS:
            raise TaskError(
                f"The clips or their events last {self._total * self._seconds / 3600:.0f} hours in "
                f"all, too long for {SEGMENT_METRIC} over {classes} classes."
            )
        changes = np.bincount(row + self._index(np.floor, table.start), minlength=size)
        changes -= np.bincount(row + self._index(np.ceil, table.end), minlength=size)
        return np.cumsum(changes)[:-1].reshape(classes, self._total) > 0


def _classes(table: EventTable) -> int:
    return int(table.label.max(initial=-1)) + 1


def error_rate(target: np.ndarray, predicted: np.ndarray) -> float:
    """Return substitutions, deletions and insertions, over the active segments of the target.

    Micro over classes, segments and files. NaN where no segment of the target is active.

    Args:
        target, predicted: (classes, segments) bool, as :meth:`Segments.roll` returns them; one of
            them may have more classes.
    """
    shared = min(len(target), len(predicted))
    right = np.count_nonzero(target[:shared] & predicted[:shared])
    wanted, given = target.sum(axis=0), predicted.sum(axis=0)
    # A segment's substitutions are min(wanted, given) - right; deletions or insertions fill up.
    errors = np.maximum(wanted, given).sum() - right
    return float(errors / wanted.sum()) if wanted.any() else math.nan


# --- many predictions of one target -----------------------------------------------------------


class EventScorer:
    """Scores many predictions of one target; what depends on the target alone is computed once.

    Args:
        target: the target events; their files are indices into ``timeline.files``.
        timeline: the rows that probabilities will come for.

    Raises:
        TaskError: a target event's file is not one of the timeline's.
    """

    def __init__(self, target: EventTable, timeline: Timeline) -> None:
        if target.file.max(initial=-1) >= len(timeline.files):
            raise TaskError(
                f"A target event has the file index {target.file.max()}, but the timeline has "
                f"{len(timeline.files)} files; make the target with its files."
            )
        self.postprocessing = Postprocessing(timeline)
        self._classes = _classes(target)
        self._target = SortedEvents.of(target)
        last = timeline.milliseconds[timeline.starts[1:] - 1]
        ends = [(target.file, target.end), (np.arange(len(last)), last)]
        self._segments = Segments(len(last), SEGMENT_MS, ends)
        self._roll = self._segments.roll(target, self._classes)

    def score(
        self,
        probabilities: np.ndarray,
        choices: Sequence[tuple[float, float]],
        names: Sequence[str] = EVENT_METRICS,
    ) -> list[dict[str, float]]:
        """Return event metrics for each choice of post-processing.

        Their keys are those of a score file, without the split's name.

        Args:
            probabilities, choices: as for :meth:`Postprocessing.events`.
            names: which metrics, of :data:`EVENT_METRICS`.

        Raises:
            TaskError: as :meth:`Postprocessing.events`; for fewer classes than the target has.
        """
        found = self.postprocessing.events(probabilities, choices)
        if (classes := probabilities.shape[1]) < self._classes:
            raise TaskError(
                f"Probabilities are of {classes} classes, but the target has events of class "
                f"{self._classes - 1}."
            )
        return [self._score_events(events, classes, names) for events in found]

    def _score_events(
        self, events: EventTable, classes: int, names: Sequence[str]
    ) -> dict[str, float]:
        predicted = SortedEvents.of(events)
        scores: dict[str, float] = {}
        for name in names:
            if name == SEGMENT_METRIC:
                rate = error_rate(self._roll, self._segments.roll(events, classes))
                scores |= {name: rate, f"{name}_error_rate": rate}
            else:
                parts = f_measure(self._target, predicted, COLLARS[name])
                scores[name] = parts["f_measure"]
                scores |= {f"{name}_{part}": value for part, value in parts.items()}
        return scores
