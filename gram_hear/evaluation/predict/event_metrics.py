"""Sound events: from frame probabilities to events, and how well they fit the target's.

The rules are those of the HEAR 2021 benchmark: a median filter along time, a threshold of 0.5, runs
of frames, a least duration; then F measures of onsets (and offsets) and the segment error rate as
`sed_eval`_ counts them "overall" (micro, over classes and files). Times are milliseconds.

.. _sed_eval: https://tut-arg.github.io/sed_eval/sound_event.html
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gram_hear.errors import TaskError, nearest

THRESHOLD = 0.5
COLLAR_MS = 200.0
SEGMENT_MS = 1000.0
WIDEST_FILTER = 100_000  # rows
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
    "event_onset_200ms_fms": Collar(COLLAR_MS),
    "event_onset_50ms_fms": Collar(50.0),
    "event_onset_offset_50ms_20perc_fms": Collar(50.0, 0.2),
}
EVENT_METRICS = (*COLLARS, SEGMENT_METRIC)


@dataclass(frozen=True, eq=False)
class EventTable:
    """Events of many files as four aligned arrays.

    Attributes:
        file, label: (events,) int64, the indices of the file and of the class.
        start, end: (events,) float64, milliseconds.
    """

    file: np.ndarray
    label: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.file)

    def lasting(self, milliseconds: float) -> "EventTable":
        """Return the events that last at least so long.

        Raises:
            TaskError: the milliseconds are negative or not finite.
        """
        if not (math.isfinite(milliseconds) and milliseconds >= 0):
            raise TaskError(
                f"min_duration is {milliseconds}; give milliseconds, or 0 to keep every event."
            )
        kept = self.end - self.start >= milliseconds
        return EventTable(self.file[kept], self.label[kept], self.start[kept], self.end[kept])

    def by_file(
        self, files: Sequence[str], labels: Sequence[str]
    ) -> dict[str, list[dict[str, str | float]]]:
        """Return each file's events as a task's split file lists them, in the table's order."""
        listed: dict[str, list[dict[str, str | float]]] = {name: [] for name in files}
        columns = (self.file.tolist(), self.label.tolist(), self.start.tolist(), self.end.tolist())
        for file, label, start, end in zip(*columns, strict=True):
            listed[files[file]].append({"label": labels[label], "start": start, "end": end})
        return listed


@dataclass(frozen=True, eq=False)
class Timeline:
    """Which file and which time each row of a split has; :meth:`of` makes one.

    Attributes:
        files: the distinct names, in the order of their first row.
        order: (rows,) int64, the rows sorted by file, then by time.
        file, milliseconds: (rows,) int64 and float64, in that order.
        starts: (files + 1,) int64, where each file begins in that order, and the end.
        hops: (files,) float64, mean milliseconds between rows; NaN for a file of one row.
    """

    files: tuple[str, ...]
    order: np.ndarray
    file: np.ndarray
    milliseconds: np.ndarray
    starts: np.ndarray
    hops: np.ndarray

    @classmethod
    def of(cls, files: Sequence[str], milliseconds: Sequence[float] | np.ndarray) -> "Timeline":
        """Sort rows that come in any order.

        Args:
            files: (rows,) the name of each row's file.
            milliseconds: (rows,) the time of each row.

        Raises:
            TaskError: there is no row, the lengths differ, a time is not finite, or two rows of a
                file have the same.
        """
        times = np.asarray(milliseconds, dtype=np.float64)
        if times.shape != (len(files),) or not len(files):
            raise TaskError(
                f"{len(files)} file names came with timestamps of shape {times.shape}; "
                "each row needs one of each, and at least one row is needed."
            )
        index: dict[str, int] = {}
        codes = np.array([index.setdefault(name, len(index)) for name in files], dtype=np.int64)
        names = tuple(index)
        order = np.lexsort((times, codes))
        codes, times = codes[order], times[order]
        _check_times(names, codes, times)
        starts = np.searchsorted(codes, np.arange(len(names) + 1))
        # Each file by itself, like the original kit: a mean that is rounded otherwise could
        # move a filter's width that lies half-way between two numbers of frames.
        hops = [
            np.diff(times[start:end]).mean() if end - start > 1 else math.nan
            for start, end in pairwise(starts)
        ]
        return cls(names, order, codes, times, starts, np.array(hops))

    def filter_widths(self, median_filter_ms: float) -> np.ndarray:
        """Return each file's width of the median filter, (files,) int64 frames, 1 for no filter.

        Raises:
            TaskError: the milliseconds are negative or not finite.
        """
        if not (math.isfinite(median_filter_ms) and median_filter_ms >= 0):
            raise TaskError(
                f"median_filter_ms is {median_filter_ms}; give milliseconds, or 0 for no filter."
            )
        widths = np.rint(median_filter_ms / self.hops)  # half to even, like Python's round
        if np.nanmax(widths, initial=1.0) > WIDEST_FILTER:
            raise TaskError(
                f"A median filter of {median_filter_ms:g} ms is {np.nanmax(widths):.0f} rows wide, "
                f"as they are only {np.nanmin(self.hops):g} ms apart; at most {WIDEST_FILTER} are "
                "allowed. Are the timestamps milliseconds?"
            )
        return np.maximum(np.nan_to_num(widths, nan=1.0), 1).astype(np.int64)


def _check_times(names: Sequence[str], codes: np.ndarray, times: np.ndarray) -> None:
    """Refuse times, sorted within each file, that are not finite or come twice."""
    strange = np.flatnonzero(~np.isfinite(times))
    if len(strange):
        raise TaskError(
            f"A timestamp of {names[codes[strange[0]]]} is {times[strange[0]]}; all must be finite."
        )
    twice = np.flatnonzero((codes[1:] == codes[:-1]) & (times[1:] == times[:-1]))
    if len(twice):
        raise TaskError(
            f"{names[codes[twice[0]]]} has two rows at {times[twice[0]]:g} ms; "
            "the timestamps of a file must differ."
        )


# --- the target -----------------------------------------------------------------------------


def target_events(
    split: Mapping[str, Sequence[Mapping[str, Any]]],
    files: Sequence[str],
    labels: Mapping[str, int],
) -> EventTable:
    """Read the events of a split file.

    Args:
        split: for each file its events, ``{"label": ..., "start": ms, "end": ms}``, checked as
            :meth:`gram_hear.tasks.Task.annotations` does.
        files: the files that are scored, such as ``Timeline.files``; their order gives the indices.
        labels: the index of each label.

    Raises:
        TaskError: the split and ``files`` do not name the same files.
    """
    for name in files:
        if name not in split:
            raise TaskError(
                f"{name} has rows, but the split file does not name it; list it there, with no "
                f"event if it has none.{nearest(name, split)}"
            )
    scored = set(files)
    for name in split:
        if name not in scored:
            raise TaskError(
                f"The split file names {name}, which has no rows: its events could not be found. "
                f"Embed it, or take it out.{nearest(name, files)}"
            )
    events = [
        (file, labels[event["label"]], event["start"], event["end"])
        for file, name in enumerate(files)
        for event in split[name]
    ]
    file, label, start, end = zip(*events, strict=True) if events else ((), (), (), ())
    return EventTable(
        np.array(file, dtype=np.int64),
        np.array(label, dtype=np.int64),
        np.array(start, dtype=np.float64),
        np.array(end, dtype=np.float64),
    )


# --- the prediction -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Filter:
    """How the rows of files that share a filter width are filtered at once.

    Attributes:
        width: in frames.
        padded: which rows to lay one after the other, so that each file has its mirrored edges.
        kept: which windows over these rows belong to a file, rather than straddle two.
        slots: where their results go: files one after the other, an empty slot around each.
    """

    width: int
    padded: np.ndarray
    kept: np.ndarray
    slots: np.ndarray


def _filters(timeline: Timeline, median_filter_ms: float) -> list[_Filter]:
    widths = timeline.filter_widths(median_filter_ms)
    slots = np.arange(len(timeline.order)) + timeline.file + 1
    return [
        _Filter(
            int(width),
            *_mirrored(timeline, np.flatnonzero(widths == width), int(width)),
            slots[(widths == width)[timeline.file]],
        )
        for width in np.unique(widths)
    ]


def _mirrored(timeline: Timeline, files: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``padded`` and ``kept`` of :class:`_Filter`.

    The window of frame i is i - width // 2 to i + (width - 1) // 2, and the edge frame is repeated
    (c b a | a b c | c b a): scipy.ndimage's "reflect", and its place of even widths.
    """
    lengths = np.diff(timeline.starts)[files]
    padded_lengths = lengths + width - 1
    begins = np.cumsum(padded_lengths) - padded_lengths
    frames = np.arange(padded_lengths.sum()) - np.repeat(begins, padded_lengths) - width // 2
    length = np.repeat(lengths, padded_lengths)
    frames %= 2 * length
    frames = np.minimum(frames, 2 * length - 1 - frames)
    padded = timeline.order[np.repeat(timeline.starts[files], padded_lengths) + frames]
    kept = np.arange(lengths.sum()) + np.repeat(np.arange(len(files)) * (width - 1), lengths)
    return padded, kept


def _window_sums(active: np.ndarray, width: int) -> np.ndarray:
    """Return how many of each ``width`` consecutive rows are active, (rows - width + 1, classes).

    Sums over 1, 2, 4, ... rows each come from the one before, and those that the binary digits of
    the width name make up the window: few passes, and over bytes where the count fits in one.
    """
    size_sums = active.view(np.uint8) if width < 256 else active.astype(np.int32)
    rows = len(active) - width + 1
    total = np.zeros((rows, active.shape[1]), dtype=size_sums.dtype)
    size, offset = 1, 0
    while True:
        if width & size:
            total += size_sums[offset : offset + rows]
            offset += size
        if 2 * size > width:
            return total
        size_sums = size_sums[:-size] + size_sums[size:]
        size *= 2


def _checked(probabilities: np.ndarray, timeline: Timeline) -> np.ndarray:
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or len(probabilities) != len(timeline.order):
        raise TaskError(
            f"Probabilities have the shape {probabilities.shape}; "
            f"(rows, classes) with the timeline's {len(timeline.order)} rows is needed."
        )
    if not math.isfinite(float(probabilities.sum(dtype=np.float64))):
        raise TaskError("Probabilities hold NaN or infinity: the predictor has diverged.")
    return probabilities


def _runs(above: np.ndarray, timeline: Timeline, filters: Iterable[_Filter]) -> EventTable:
    """Return the runs of frames that are active after the filter, by file, start and label.

    The median of numbers exceeds the threshold where at least ``width - width // 2`` of them do
    (scipy takes the upper of the two middle ones of an even width), so counting replaces sorting.
    """
    classes = above.shape[1]
    active = np.zeros((len(timeline.order) + len(timeline.files) + 1, classes), dtype=bool)
    for part in filters:
        rows = above[part.padded]
        if part.width > 1:
            rows = _window_sums(rows, part.width)[part.kept] >= part.width - part.width // 2
        active[part.slots] = rows
    # A change after slot i: the empty slots between files end every run.
    slot, label = np.divmod(np.flatnonzero(active[1:] != active[:-1]), classes)
    by_label = np.argsort(label, kind="stable")
    label = label[by_label][::2]
    first, last = slot[by_label][::2] + 1, slot[by_label][1::2]
    order = np.lexsort((label, first))
    first, last, label = first[order], last[order], label[order]
    # Files one after the other, with an empty slot before each.
    file = np.searchsorted(timeline.starts + np.arange(len(timeline.starts)), first, "left") - 1
    times = timeline.milliseconds
    return EventTable(file, label, times[first - file - 1], times[last - file - 1])


def predicted_events(
    probabilities: np.ndarray, timeline: Timeline, median_filter_ms: float, min_duration: float
) -> EventTable:
    """Turn frame probabilities into events, sorted by file, start and label.

    Each file's probabilities are median-filtered along time with a width of
    ``round(median_filter_ms / mean hop)`` frames (edges mirrored like scipy.ndimage's; no filter
    for a width below 2); a run of frames above 0.5 is an event from its first to its last
    timestamp, kept where that lasts at least ``min_duration`` ms.

    Args:
        probabilities: (rows, classes) float, in the rows' order that the timeline was made of.
        timeline: the rows' files and times.
        median_filter_ms: milliseconds; 0 for no filter.
        min_duration: milliseconds.

    Raises:
        TaskError: the shape does not fit, a value is not finite, or milliseconds are negative.
    """
    above = _checked(probabilities, timeline) > THRESHOLD
    return _runs(above, timeline, _filters(timeline, median_filter_ms)).lasting(min_duration)


# --- onsets and offsets ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Sorted:
    """Events in seconds, sorted by group (same file and label) and onset; lists, for a loop."""

    groups: list[int]
    onsets: list[float]
    offsets: list[float]

    @classmethod
    def of(cls, table: EventTable) -> "_Sorted":
        groups = (table.file << 32) + table.label
        order = np.lexsort((table.start, groups))
        # In seconds, as sed_eval has them: a distance of exactly the collar is then rounded alike.
        seconds = (times[order] / 1000 for times in (table.start, table.end))
        return cls(groups[order].tolist(), *(times.tolist() for times in seconds))


def _count_onsets(target: _Sorted, predicted: _Sorted, collar: float) -> int:
    """Return how many pairs an optimal matching of onsets has.

    With the same collar everywhere, what an onset may be paired with is a stretch of the sorted
    others, and later onsets have later stretches: the earliest free pair is never a mistake.
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


def _fitting(target: _Sorted, predicted: _Sorted, collar: float, share: float) -> list[list[int]]:
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

    Where offsets count too, what may be paired is no stretch any more, and the earliest free pair
    can be a mistake.
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
    """Go back along a path to its start, and give everyone on it a new partner."""
    theirs: int | None = free
    while theirs is not None:
        ours = reached_by[theirs]
        before = own.get(ours)
        partner[theirs], own[ours] = ours, theirs
        theirs = before


def _f_measure(target: _Sorted, predicted: _Sorted, collar: Collar) -> dict[str, float]:
    seconds = collar.milliseconds / 1000
    if collar.share is None:
        matches = _count_onsets(target, predicted, seconds)
    else:
        matches = _count_pairs(_fitting(target, predicted, seconds, collar.share))
    precision = matches / len(predicted.groups) if predicted.groups else 0.0
    recall = matches / len(target.groups) if target.groups else 0.0
    both = precision + recall
    f_measure = 2 * precision * recall / both if both else 0.0
    return {"f_measure": f_measure, "precision": precision, "recall": recall}


def onset_f_measure(
    target: EventTable, predicted: EventTable, collar_ms: float = COLLAR_MS
) -> dict[str, float]:
    """Return ``f_measure``, ``precision`` and ``recall`` of onsets, micro over classes and files.

    A predicted event is right where it is paired with a target event of the same file and class
    whose onset is at most the collar away; no event has two partners, and the number of pairs is
    the largest possible. Offsets do not count. Where nothing is predicted, or nothing is there to
    be found, the three are 0, not NaN.
    """
    return _f_measure(_Sorted.of(target), _Sorted.of(predicted), Collar(collar_ms))


def onset_offset_f_measure(
    target: EventTable, predicted: EventTable, collar_ms: float = 50.0, share: float = 0.2
) -> dict[str, float]:
    """Return the same where offsets count too.

    The offset of a predicted event may differ by the collar, or by this share of the target
    event's length where that is more.
    """
    return _f_measure(_Sorted.of(target), _Sorted.of(predicted), Collar(collar_ms, share))


# --- segments -------------------------------------------------------------------------------


class _Segments:
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


def _error_rate(target: np.ndarray, predicted: np.ndarray) -> float:
    """Return the rate of two rolls, (classes, segments) each; the classes of one may go further."""
    shared = min(len(target), len(predicted))
    right = np.count_nonzero(target[:shared] & predicted[:shared])
    wanted, given = target.sum(axis=0), predicted.sum(axis=0)
    # A segment's substitutions are min(wanted, given) - right; deletions or insertions fill up.
    errors = np.maximum(wanted, given).sum() - right
    return float(errors / wanted.sum()) if wanted.any() else math.nan


def segment_error_rate(
    target: EventTable, predicted: EventTable, segment_ms: float = SEGMENT_MS
) -> float:
    """Return substitutions + deletions + insertions in segments over the active target segments.

    Micro over classes, segments and files. NaN where no target segment is active.

    Raises:
        TaskError: ``segment_ms`` is not above 0.
    """
    files = int(max(table.file.max(initial=-1) for table in (target, predicted))) + 1
    ends = [(table.file, table.end) for table in (target, predicted)]
    segments = _Segments(files, segment_ms, ends)
    return _error_rate(*(segments.roll(table, _classes(table)) for table in (target, predicted)))


# --- both, many times -----------------------------------------------------------------------


class EventScorer:
    """Scores many predictions of one target: what depends on the target alone is computed once.

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
        self._timeline = timeline
        self._classes = _classes(target)
        self._target = _Sorted.of(target)
        last = timeline.milliseconds[timeline.starts[1:] - 1]
        ends = [(target.file, target.end), (np.arange(len(last)), last)]
        self._segments = _Segments(len(last), SEGMENT_MS, ends)
        self._roll = self._segments.roll(target, self._classes)
        self._filters: dict[float, list[_Filter]] = {}

    def score(
        self,
        probabilities: np.ndarray,
        median_filter_ms: float,
        min_duration: float,
        names: Sequence[str] = EVENT_METRICS,
    ) -> dict[str, float]:
        """Return event metrics, under the names that the score file has after its split's.

        ``names`` says which, of :data:`EVENT_METRICS`. The other arguments and the errors are those
        of :func:`predicted_events`.
        """
        return self.score_all(probabilities, [(median_filter_ms, min_duration)], names)[0]

    def score_all(
        self,
        probabilities: np.ndarray,
        choices: Sequence[tuple[float, float]],
        names: Sequence[str] = EVENT_METRICS,
    ) -> list[dict[str, float]]:
        """Return what :meth:`score` does for several (median_filter_ms, min_duration).

        Choices with the same filter share its work.
        """
        probabilities = _checked(probabilities, self._timeline)
        if probabilities.shape[1] < self._classes:
            raise TaskError(
                f"Probabilities are of {probabilities.shape[1]} classes, "
                f"but the target has events of class {self._classes - 1}."
            )
        above = probabilities > THRESHOLD
        runs: dict[float, EventTable] = {}
        scores = []
        for median_filter_ms, min_duration in choices:
            if median_filter_ms not in runs:
                runs[median_filter_ms] = _runs(above, self._timeline, self._plan(median_filter_ms))
            events = runs[median_filter_ms].lasting(min_duration)
            scores.append(self._score_events(events, probabilities.shape[1], names))
        return scores

    def _plan(self, median_filter_ms: float) -> list[_Filter]:
        if median_filter_ms not in self._filters:
            self._filters[median_filter_ms] = _filters(self._timeline, median_filter_ms)
        return self._filters[median_filter_ms]

    def _score_events(
        self, events: EventTable, classes: int, names: Sequence[str]
    ) -> dict[str, float]:
        predicted = _Sorted.of(events)
        scores: dict[str, float] = {}
        for name in names:
            if name == SEGMENT_METRIC:
                error_rate = _error_rate(self._roll, self._segments.roll(events, classes))
                scores |= {name: error_rate, f"{name}_error_rate": error_rate}
            else:
                parts = _f_measure(self._target, predicted, COLLARS[name])
                scores[name] = parts["f_measure"]
                scores |= {f"{name}_{part}": value for part, value in parts.items()}
        return scores
