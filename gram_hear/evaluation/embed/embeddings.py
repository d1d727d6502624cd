"""The embeddings of a HEAR task on disk: the names of their files, and how they are read.

The layout is that of the original kit (heareval 2021.1.3), whose directories are read too. For each
split: ``<split>.embeddings.npy``, float32 without a header; its shape in
``<split>.embedding-dimensions.json``; for events ``<split>.filename-timestamps.json``. What embeds
writes ``embeddings-done.json`` last.

A row is one embedding vector: of a whole clip, or, in tasks of events, of a clip at one time.
"""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gram_hear.errors import TaskError, short, some
from gram_hear.foreign import NotPlain, read_pickled_lists
from gram_hear.jobs import job
from gram_hear.tasks import LONGEST_CLIP, Task, read_json

DONE = "embeddings-done.json"
PROGRESS = "embeddings-progress.json"  # of version 0.1.0, while embeddings are not finished
PREDICTED = "prediction-done.json"  # marker: scores belong to the embeddings beside it
NEIGHBOURS_DONE = "prediction-done-knn.json"  # the same for k-NN scores
EMPTY = "empty_clips"  # key of how clips without samples were treated; None where there are none
EMPTY_FILES = "empty_files"  # key of their names, as "split/file"
# What made embeddings, beside their task: keys of what they are made of.
MADE_BY = ("module", "module_code", "model", "model_sha256", "options", "sample_rate")
EVENT_END = 0.0001  # ms by which an event lasts past its end, so that its last timestamp is in it
CHUNK_BYTES = 2**26  # of embeddings that are checked at once


@dataclass(frozen=True)
class SplitEmbeddings:
    """The embeddings of one split, of ours or of the original kit; each file is read once.

    Files are read when something of them is asked for first. Every property raises a TaskError for
    files that are missing, broken, or do not fit each other.

    Example::

        train = SplitEmbeddings(read_task(folder), "train")
        predictor.fit(train.vectors, train.labels)

    Attributes:
        task: read from the directory of embeddings.
        name: of one of its splits.
    """

    task: Task
    name: str

    def _path(self, ending: str) -> Path:
        return self.task.folder / f"{self.name}.{ending}"

    @cached_property
    def shape(self) -> tuple[int, int]:
        """The number of rows, and of values in a row."""
        path = self._path("embedding-dimensions.json")
        found = read_json(path)
        if (
            not isinstance(found, list)
            or len(found) != 2
            or not all(isinstance(each, int) and each > 0 for each in found)
        ):
            raise TaskError(f"{path} holds {short(found)}; it must hold [rows, values of a row].")
        return found[0], found[1]

    @cached_property
    def vectors(self) -> np.ndarray:
        """The rows, (rows, d) float32, mapped from the file; what is written stays in memory.

        Where they hold NaN or infinite values, the error names the clips of those rows.
        """
        folder, path = self.task.folder, self._path("embeddings.npy")
        if not (folder / DONE).is_file() and begun_of(folder) is not None:
            raise TaskError(
                f"{folder} is not finished: run the embedding again, and it will go on."
            )
        rows, size = self.shape
        if not path.is_file():
            raise TaskError(f"There is no {path}; embed the task first.")
        found = path.stat().st_size
        if found != 4 * rows * size:
            raise TaskError(
                f"{path} has {found} bytes; {rows} x {size} float32 values, as its dimensions say, "
                f"are {4 * rows * size}. Embed the task anew."
            )
        # Copied on write, never written back: PyTorch warns of arrays that cannot be written.
        vectors = np.memmap(path, np.float32, "c", shape=(rows, size))
        step = max(1, CHUNK_BYTES // (4 * size))
        wrong = [
            start + int(row)
            for start in range(0, rows, step)
            for row in np.flatnonzero(~np.isfinite(vectors[start : start + step]).all(axis=1))
        ]
        if wrong:
            names = list(dict.fromkeys(self.files[row] for row in wrong))
            raise TaskError(
                f"{path} holds NaN or infinite values in {len(wrong)} of {rows} rows, of "
                f"{some(names, shown=5)}. Look at those sounds and at the module, and embed anew."
            )
        return vectors

    @property
    def files(self) -> list[str]:
        """The file of each row, by its name alone."""
        has_timestamps = self._path("filename-timestamps.json").is_file()
        return self._times[0] if has_timestamps else self.task.row_files(self.name)

    @property
    def milliseconds(self) -> np.ndarray:
        """The time of each row in a task of events, (rows,) float64."""
        return self._times[1]

    @cached_property
    def _times(self) -> tuple[list[str], np.ndarray]:
        path = self._path("filename-timestamps.json")
        found = read_json(path)
        rows, _ = self.shape
        if not isinstance(found, list) or len(found) != rows:
            number = len(found) if isinstance(found, list) else "no list of"
            raise TaskError(f"{path} holds {number} timestamps; there are {rows} rows.")
        try:
            paths, times = zip(*found, strict=True)
            milliseconds = np.array(times, dtype=np.float64)
            base = {each: each.rsplit("/", 1)[-1] for each in dict.fromkeys(paths)}
        except (TypeError, ValueError, AttributeError) as error:
            raise TaskError(f"{path} must hold [file, milliseconds] for each row.") from error
        longest = 1000 * LONGEST_CLIP
        if milliseconds.ndim != 1 or not (np.abs(milliseconds) <= longest).all():
            raise TaskError(
                f"{path} holds timestamps that are not finite, or beyond {longest:.0f} "
                "milliseconds."
            )
        return [base[each] for each in paths], milliseconds

    @cached_property
    def labels(self) -> list[list]:
        """What is to be predicted of each row.

        Its labels as strings (of events those that hold at its time, each once, in the order of the
        vocabulary); for localisation [x, y, z].
        """
        task, split = self.task, self.name
        if task.kind == "event":
            return event_labels(task, split, self.files, self.milliseconds)
        annotations = task.annotations(split)
        labels = [annotations[file] for file in task.row_files(split)]
        rows, _ = self.shape
        if rows != len(labels):
            raise TaskError(
                f"{task.folder} has {rows} rows of {split}, and {split}.json names {len(labels)} "
                "files; embed the task anew."
            )
        self._compare_with_recorded(labels)
        return labels

    def _compare_with_recorded(self, labels: list[list]) -> None:
        """Compare labels with those that were written beside the embeddings, if they were.

        Early versions of the original kit took files in the order of the file system, which cannot
        be told afterwards: their labels would be attached to other rows.
        """
        path = self._path("target-labels.json")
        if path.is_file():
            recorded = read_json(path)
        else:
            path = self._path("target-labels.pkl")
            if not path.is_file():
                return
            try:
                recorded = read_pickled_lists(path)
            except NotPlain as error:
                warnings.warn(
                    f"{path} cannot be read as plain lists ({error}); labels are taken from "
                    f"{self.name}.json unchecked.",
                    stacklevel=4,
                )
                return
            except (ValueError, LookupError, AttributeError) as error:
                raise TaskError(
                    f"{path} is damaged ({error}); embed the task anew, or delete this file to "
                    f"take the labels from {self.name}.json unchecked."
                ) from error
        kinds = (int, float) if self.task.kind == "localisation" else (int, str)
        if not (
            isinstance(recorded, list)
            and len(recorded) == len(labels)
            and all(
                _has_labels(row, wanted, kinds)
                for row, wanted in zip(recorded, labels, strict=True)
            )
        ):
            raise TaskError(
                f"{path} has other labels, or in another order, than {self.name}.json gives for "
                "the rows: they come from an early version of the original kit, whose order cannot "
                "be told, or the split was changed. Embed the task anew."
            )


def begun_of(folder: Path) -> Any:
    """Return what unfinished embeddings are made of; None where none were begun."""
    if (folder / PROGRESS).is_file():
        return read_json(folder / PROGRESS)
    found = job.begun_of(folder)
    return found if isinstance(found, dict) and "module_code" in found else None


def difference_of(first: Mapping[str, Any], second: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Return the first of some keys by which embeddings are made of different things, or ""."""
    return next((key for key in keys if first.get(key) != second.get(key)), "")


def in_words(key: str, made_of: Mapping[str, Any]) -> str:
    """Return what a key of what embeddings are made of means, as a message says it."""
    names = {
        "module_code": f"the code of {made_of.get('module', 'the module')}",
        "model_sha256": "the weights of the model",
        "options": "the options (--model-options)",
        "sample_rate": "the sample rate",
        "embedding_size": "the size of the embeddings",
        "task_sha256": "the task",
        EMPTY: "the choice of --empty-clips",
    }
    return names.get(key, f"the {key}")


def shown(value: Any) -> str:
    """Return a value of what embeddings are made of, for a message; of a SHA-256 the beginning."""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:8]
    return "nothing" if value in (None, "") else short(value)


def _has_labels(row: Any, labels: list, kinds: tuple[type, ...]) -> bool:
    """Whether a row that was written down has these labels, which may be numbers there."""
    return (
        isinstance(row, list)
        and len(row) == len(labels)
        and all(isinstance(each, kinds) for each in row)
        and [type(label)(each) for each, label in zip(row, labels, strict=True)] == labels
    )


def event_labels(
    task: Task, split: str, files: Sequence[str], milliseconds: np.ndarray
) -> list[list[str]]:
    """Return the labels that hold at each row: start <= t < end + 0.0001 ms.

    Args:
        task, split: whose events.
        files: of each row, by its name.
        milliseconds: the time of each row.
    """
    annotations = task.annotations(split)
    rows_of: dict[str, list[int]] = {}
    for row, file in enumerate(files):
        rows_of.setdefault(file, []).append(row)
    if strange := [file for file in rows_of if file not in annotations]:
        raise TaskError(
            f"{task.folder} has rows of {strange[0]}, which {split}.json does not name; embed the "
            "task anew."
        )
    index = {label: i for i, label in enumerate(task.labels)}
    holding = [np.empty(0, dtype=np.int64)]  # row * number of labels + label
    for file, members in rows_of.items():
        rows = np.array(members)
        rows = rows[np.argsort(milliseconds[rows], kind="stable")]
        times = milliseconds[rows]
        for event in annotations[file]:
            first, last = np.searchsorted(times, [event["start"], event["end"] + EVENT_END])
            holding.append(rows[first:last] * len(index) + index[event["label"]])
    labels: list[list[str]] = [[] for _ in files]
    for pair in np.unique(np.concatenate(holding)).tolist():
        row, label = divmod(pair, len(index))
        labels[row].append(task.labels[label])
    return labels
