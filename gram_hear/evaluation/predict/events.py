"""Events of many files as one table, and which file and time each time step of a split has.

A *row* of embeddings is the vector of one clip at one time: a time step. Times are milliseconds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gram_hear.errors import TaskError, nearest

WIDEST_FILTER = 100_000  # rows


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
    """Which file and which time each row of a split has; built by :meth:`of`.

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
        # move a filter's width that lies half-way between two numbers of rows.
        hops = [
            np.diff(times[start:end]).mean() if end - start > 1 else math.nan
            for start, end in pairwise(starts)
        ]
        return cls(names, order, codes, times, starts, np.array(hops))

    def filter_widths(self, median_filter_ms: float) -> np.ndarray:
        """Return each file's width of the median filter, (files,) int64 rows, 1 for no filter.

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
