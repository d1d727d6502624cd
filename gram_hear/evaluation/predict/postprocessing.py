"""Post-processing of events: from the probabilities of time steps to events.

The rules are those of the HEAR 2021 benchmark: a median filter along time, a threshold of 0.5, runs
of time steps, a least duration. A task may choose among filters and durations.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from gram_hear.errors import TaskError, allowed, short
from gram_hear.evaluation.predict.events import EventTable, Timeline

THRESHOLD = 0.5
LONGEST_FILTER = 60_000.0  # milliseconds, of a median filter
MOST_FILTERS = 100  # choices of each kind
# Choices of the protocol, in milliseconds.
EVENT_POSTPROCESSING = {"median_filter_ms": [250], "min_duration": [125, 250]}


def postprocessing_choices(grid: Mapping[str, Any], task: str) -> list[tuple[float, float]]:
    """Return the choices of median filter and least duration, milliseconds, in rising order.

    Args:
        grid: a task's own choices (``event_postprocessing_grid``) by the names of
            :data:`EVENT_POSTPROCESSING`, which gives those that are not in it.
        task: what errors call the task.

    Raises:
        TaskError: for other names, and for what is no list of milliseconds.
    """
    if unknown := set(grid) - set(EVENT_POSTPROCESSING):
        raise TaskError(
            f"{task}: event_postprocessing_grid has {', '.join(sorted(unknown))[:80]}; "
            + allowed("", EVENT_POSTPROCESSING)
        )
    choices: dict[str, Any] = {**EVENT_POSTPROCESSING, **grid}
    for name, values in choices.items():
        most = LONGEST_FILTER if name == "median_filter_ms" else math.inf
        numbers = isinstance(values, list) and all(
            isinstance(each, (int, float)) and not isinstance(each, bool) and 0 <= each <= most
            for each in values
        )
        if not numbers or not 0 < len(values) <= MOST_FILTERS:
            raise TaskError(
                f"{task}: {name} is {short(values)}; it must be a list of 1 to {MOST_FILTERS} "
                f"numbers of milliseconds, none above {most:g}."
            )
    return sorted(product(choices["median_filter_ms"], choices["min_duration"]))


@dataclass(frozen=True, eq=False)
class _MedianFilter:
    """How all rows of files that share a filter width are filtered in one pass.

    Attributes:
        width: in time steps.
        padded: the rows that are concatenated, each file with its mirrored edges.
        kept: which windows over these rows lie in one file.
        slots: where the results go: files one after the other, with an empty slot around each.
    """

    width: int
    padded: np.ndarray
    kept: np.ndarray
    slots: np.ndarray


def _median_filters(timeline: Timeline, median_filter_ms: float) -> list[_MedianFilter]:
    widths = timeline.filter_widths(median_filter_ms)
    slots = np.arange(len(timeline.order)) + timeline.file + 1
    return [
        _MedianFilter(
            int(width),
            *_mirrored(timeline, np.flatnonzero(widths == width), int(width)),
            slots[(widths == width)[timeline.file]],
        )
        for width in np.unique(widths)
    ]


def _mirrored(timeline: Timeline, files: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``padded`` and ``kept`` of :class:`_MedianFilter`.

    The window of time step i is i - width // 2 to i + (width - 1) // 2, and the edge is repeated
    (c b a | a b c | c b a): scipy.ndimage's "reflect", for even widths too.
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


def _active_runs(
    above: np.ndarray, timeline: Timeline, filters: Iterable[_MedianFilter]
) -> EventTable:
    """Return the runs of time steps that are active after the filter, by file, start and label.

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


class Postprocessing:
    """Turns probabilities of the rows of one timeline into events; filters are prepared once.

    Each file's probabilities are median-filtered along time with a width of
    ``round(median_filter_ms / mean hop)`` time steps (edges mirrored like scipy.ndimage's; no
    filter for a width below 2). A run of time steps above 0.5 is an event from its first to its
    last timestamp, kept where that lasts at least ``min_duration`` ms.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._filters: dict[float, list[_MedianFilter]] = {}

    def events(
        self, probabilities: np.ndarray, choices: Iterable[tuple[float, float]]
    ) -> list[EventTable]:
        """Return events for each choice, sorted by file, start and label.

        Args:
            probabilities: (rows, classes) float, in the rows' order that the timeline was made of.
            choices: pairs of ``median_filter_ms`` (0 for no filter) and ``min_duration``, both in
                milliseconds; those with the same filter share its work.

        Raises:
            TaskError: the shape does not fit, a value is not finite, or milliseconds are negative.
        """
        above = _checked(probabilities, self._timeline) > THRESHOLD
        runs: dict[float, EventTable] = {}
        found = []
        for milliseconds, min_duration in choices:
            if milliseconds not in self._filters:
                self._filters[milliseconds] = _median_filters(self._timeline, milliseconds)
            if milliseconds not in runs:
                runs[milliseconds] = _active_runs(
                    above, self._timeline, self._filters[milliseconds]
                )
            found.append(runs[milliseconds].lasting(min_duration))
        return found
