"""HEAR task directories: found, read and checked.

A task directory holds ``task_metadata.json``, ``labelvocabulary.csv``, a JSON file for each split,
and audio as ``<sample rate>/<split>/<file>``. A directory of embeddings holds copies of the same
three kinds of files, so that :func:`read_task` reads both.

Source of the format: the HEAR benchmark (hearbenchmark.com), heareval 2021.1.3.
"""

import csv
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from gram_hear.errors import TaskError, allowed, count, nearest, reason_of, short, some
from gram_hear.foreign import parse_json

METADATA, VOCABULARY = "task_metadata.json", "labelvocabulary.csv"
RESAMPLED = "resampled.json"  # stands in a rate's folder whose audio was made from another rate's
NATURAL = "naturalistic"  # key of the metadata of a task whose clips stand in scenes: made of what
TYPES = {
    "embedding_type": ("scene", "event"),
    "prediction_type": ("multiclass", "multilabel"),
    "split_mode": ("trainvaltest", "presplit_kfold", "new_split_kfold"),
}
SPLITS = ("train", "valid", "test")
FEWEST_FOLDS = 3  # one to test, one to validate, one to train
LONGEST_CLIP = 86_400.0  # seconds
LARGEST_EMPTY = 4096  # bytes of a file without samples; in a larger one the header may be wrong
LONGEST_NAME = 255  # bytes of a file's name, which file systems allow
MOST_LABELS = 2**16
LARGEST_JSON = 2**29  # bytes; the events of a large task, and the timestamps of its rows, are long


@dataclass(frozen=True, eq=False)
class Task:
    """A HEAR task, or the embeddings of one.

    Attributes:
        folder: the directory.
        name: its name.
        metadata: ``task_metadata.json`` as it is.
        labels: the vocabulary in the order of ``idx``; empty for localisation without one.
        splits: their names, folds too, in the order of the metadata.
        embedding_type: ``"scene"`` or ``"event"``.
        prediction_type: ``"multiclass"`` or ``"multilabel"``.
        sample_duration: seconds of every clip, or None where they differ.
        split_mode: ``"trainvaltest"``, ``"presplit_kfold"`` or ``"new_split_kfold"``.
        evaluation: the names of the metrics; the first one is monitored.
        kind: ``"scene"``, ``"event"``, or ``"localisation"``: a scene task whose annotations are
            directions.
    """

    folder: Path
    name: str
    metadata: dict[str, Any]
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    embedding_type: str
    prediction_type: str
    sample_duration: float | None
    split_mode: str
    evaluation: tuple[str, ...]
    kind: str
    _raw: dict[str, dict[str, list]] = field(default_factory=dict, init=False, repr=False)
    _checked: dict[str, dict[str, list]] = field(default_factory=dict, init=False, repr=False)
    _orders: dict[str, list[str]] = field(default_factory=dict, init=False, repr=False)

    @property
    def folds(self) -> bool:
        """Whether the splits are folds."""
        return self.split_mode.endswith("kfold")

    def raw_annotations(self, split: str) -> dict[str, list]:
        """Return a split file as it is, in its order: read once, not to be altered.

        Raises:
            TaskError: for a file that is missing, no JSON, names a file twice, or is empty.
        """
        if split not in self.splits:
            raise TaskError(
                f"{self.name} has no split {short(split)}; it has {', '.join(self.splits)}."
                + nearest(split, self.splits)
            )
        if split not in self._raw:
            self._raw[split] = _read_split(self.folder / f"{split}.json")
        return self._raw[split]

    def annotations(self, split: str) -> dict[str, list]:
        """Return what is to be predicted of each file of a split: read once, not to be altered.

        Returns:
            File name -> labels as strings; for events ``{"label", "start", "end"}`` with times in
            milliseconds; for localisation [x, y, z].

        Raises:
            TaskError: as :meth:`raw_annotations`; for a label outside the vocabulary, another
                number of labels than one in a multiclass task, an event that ends before it
                starts, a direction that is not finite or has no length.
        """
        if split not in self._checked:
            checks: dict[str, Callable[[str, Any], list]]
            checks = {"scene": self._scene, "event": self._events, "localisation": self._direction}
            path = self.folder / f"{split}.json"
            self._checked[split] = {
                file: checks[self.kind](f"{path}: {file}", value)
                for file, value in self.raw_annotations(split).items()
            }
        return self._checked[split]

    def _scene(self, entry: str, value: Any) -> list[str]:
        if not isinstance(value, list):
            raise TaskError(f"{entry} has {short(value)}; it must have a list of labels.")
        if self.prediction_type == "multiclass" and len(value) != 1:
            raise TaskError(
                f"{entry} has {len(value)} labels; the task is multiclass, where every file has "
                "exactly one. Where files may have several, prediction_type is multilabel."
            )
        return [self._label(entry, label) for label in value]

    def _label(self, entry: str, label: Any) -> str:
        if not isinstance(label, str | int) or str(label) not in self._known:
            raise TaskError(
                f"{entry} has the label {short(label)}, which {VOCABULARY} ({len(self.labels)} "
                f"labels) lacks.{nearest(label, self.labels)}"
            )
        return str(label)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.labels)

    def _events(self, entry: str, value: Any) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not all(isinstance(event, dict) for event in value):
            raise TaskError(
                f"{entry} has {short(value)}; it must have a list of events: "
                '{"label": ..., "start": ms, "end": ms}.'
            )
        return [self._event(entry, event) for event in value]

    def _event(self, entry: str, event: dict[str, Any]) -> dict[str, Any]:
        if missing := [key for key in ("label", "start", "end") if key not in event]:
            raise TaskError(
                f"{entry} has an event without {' and '.join(missing)}: {short(event)}."
            )
        label = self._label(entry, event["label"])
        start, end = event["start"], event["end"]
        longest = 1000 * LONGEST_CLIP
        if not all(_is_number(each) and abs(each) <= longest for each in (start, end)):
            raise TaskError(
                f"{entry} has an event of {label} from {short(start)} to {short(end)}; both must "
                f"be finite numbers of milliseconds, at most {longest:.0f}."
            )
        if end < start:
            raise TaskError(
                f"{entry} has an event of {label} from {start:g} to {end:g} ms; the end must not "
                "be before the start."
            )
        return {"label": label, "start": float(start), "end": float(end)}

    def _direction(self, entry: str, value: Any) -> list[float]:
        if not isinstance(value, list) or len(value) != 3 or not all(map(_is_number, value)):
            raise TaskError(
                f"{entry} has {short(value)}; other files have directions, so it must have three "
                "finite numbers: [x, y, z]."
            )
        if not any(value):
            raise TaskError(f"{entry} has the direction [0, 0, 0], which points nowhere.")
        return [float(coordinate) for coordinate in value]

    def row_files(self, split: str) -> list[str]:
        """Return the files of a split in the order of the rows of its embeddings.

        The files in the order of the split file, shuffled by one ``random.Random(0)`` that goes
        through the splits in the order of the metadata, as heareval 2021.1.3 does.
        """
        self.raw_annotations(split)
        if not self._orders:
            generator = random.Random(0)
            for name in self.splits:
                self._orders[name] = list(self.raw_annotations(name))
                generator.shuffle(self._orders[name])
        return self._orders[split]

    def without(self, left_out: Mapping[str, Container[str]]) -> "Task":
        """Return the task without some files of its splits, as if they were not named there.

        Args:
            left_out: split -> names of files.

        Raises:
            TaskError: where a split has no other files.
        """
        kept = replace(self)
        for split in self.splits:
            raw = self.raw_annotations(split)
            kept._raw[split] = {
                file: value for file, value in raw.items() if file not in left_out.get(split, ())
            }
            if not kept._raw[split]:
                raise TaskError(f"{self.name} has no clip of {split} that holds samples.")
        return kept

    def rates(self) -> list[int]:
        """Return the sample rates in Hz whose folders are there, rising."""
        return sorted(
            int(path.name)
            for path in self.folder.iterdir()
            if path.name.isascii() and path.name.isdecimal() and path.is_dir()
        )

    def source_rates(self) -> list[int]:
        """Return those of :meth:`rates` whose audio was not made from another rate's."""
        return [rate for rate in self.rates() if not (self.folder / f"{rate}" / RESAMPLED).exists()]

    def audio(self, split: str, file: str, rate: int) -> Path:
        """Return where a file is, or would be, at a sample rate in Hz."""
        return self.folder / str(rate) / split / file

    def missing(self, rate: int) -> list[Path]:
        """Return the audio files that are not there at a sample rate in Hz."""
        missing = []
        for split in self.splits:
            folder = self.folder / str(rate) / split
            there = names_in(folder)
            missing += [folder / file for file in self.raw_annotations(split) if file not in there]
        return missing


def holds_no_samples(path: Path) -> bool:
    """Whether a sound file is empty, by its size and its header; what cannot be read is not."""
    import soundfile

    with suppress(soundfile.SoundFileError, OSError, TypeError, ValueError):
        size = path.stat().st_size
        return size == 0 or (size <= LARGEST_EMPTY and soundfile.info(str(path)).frames == 0)
    return False


def names_in(folder: Path) -> set[str]:
    """Return the names in a folder; none where there is no such folder."""
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- reading --------------------------------------------------------------------------------


def read_task(folder: Path) -> Task:
    """Read a task directory, or a directory of embeddings; annotations are checked when asked for.

    Raises:
        TaskError: for a file that is missing or cannot be read, a key that is missing or has a
            value that is not allowed, a vocabulary that is not numbered 0, 1, 2, ... or repeats a
            label.
    """
    path = folder / METADATA
    if not path.is_file():
        raise TaskError(
            f"There is no {path}; a HEAR task is a folder with {METADATA}, {VOCABULARY}, a JSON "
            "file for each split, and audio in folders named by sample rate."
        )
    metadata = read_json(path)
    if not isinstance(metadata, dict):
        raise TaskError(f"{path} holds {short(metadata)}; it must hold an object with keys.")
    types = {key: _choice(path, metadata, key, names) for key, names in TYPES.items()}
    splits = _read_splits(path, metadata, types["split_mode"])
    duration = metadata.get("sample_duration")
    if duration is not None and not (_is_number(duration) and 0 < duration <= LONGEST_CLIP):
        raise TaskError(
            f"{path}: sample_duration is {short(duration)}; it must be a number of seconds above "
            f"0, at most {LONGEST_CLIP:.0f}, or null where clips differ in length."
        )
    kind = types["embedding_type"]
    if kind == "scene" and _has_directions(folder / f"{splits[0]}.json"):
        kind = "localisation"
    return Task(
        folder=folder,
        name=folder.resolve().name,
        metadata=metadata,
        labels=_read_vocabulary(folder / VOCABULARY, kind, folder / f"{splits[0]}.json"),
        splits=splits,
        sample_duration=duration,
        evaluation=_names(path, metadata, "evaluation"),
        kind=kind,
        **types,
    )


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; NaN and infinity, which the original kit writes, are kept.

    Raises:
        TaskError: for a file that cannot be read, is larger than 512 MiB, or is refused by
            :func:`gram_hear.foreign.parse_json`.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(min(os.fstat(file.fileno()).st_size, LARGEST_JSON) + 1)
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {reason_of(error)}.") from error
    return parse_json(data, str(path), TaskError, LARGEST_JSON, finite=False)


def _choice(path: Path, metadata: dict, key: str, names: Sequence[str]) -> str:
    if key not in metadata:
        raise TaskError(f"{path} lacks the key {key!r}; allowed are {', '.join(names)}.")
    value = metadata[key]
    if value not in names:
        raise TaskError(f"{path}: {key} is {short(value)}; {allowed(value, names)}")
    return value


def _names(path: Path, metadata: dict, key: str) -> tuple[str, ...]:
    """Return a key's value, which must be a list of names."""
    if key not in metadata:
        raise TaskError(f"{path} lacks the key {key!r}; it must be a list of names.")
    value = metadata[key]
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(name, str) and name for name in value)
        or len(set(value)) < len(value)
    ):
        raise TaskError(
            f"{path}: {key} is {short(value)}; it must be a list of names, each once, at least one."
        )
    return tuple(value)


def _read_splits(path: Path, metadata: dict, mode: str) -> tuple[str, ...]:
    """Return the splits' names: of the metadata, or those that the mode and the files imply."""
    folder = path.parent
    if "splits" in metadata:
        splits = _names(path, metadata, "splits")
    elif mode == "trainvaltest":
        splits = SPLITS
    else:
        splits = tuple(sorted(found.stem for found in folder.glob("fold*.json")))
    for split in splits:
        if not _is_plain(f"{split}.embedding-dimensions.json"):  # the longest that is made of it
            raise TaskError(
                f"{path}: splits has {short(split)}, which cannot be the name of a file."
            )
        if not (folder / f"{split}.json").is_file():
            raise TaskError(f"There is no {folder / f'{split}.json'}, a split of {folder.name}.")
    if mode == "trainvaltest":
        if lacking := [split for split in SPLITS if split not in splits]:
            raise TaskError(
                f"{path}: splits are {', '.join(splits)}; {mode} needs {' and '.join(lacking)} too."
            )
    elif len(splits) < FEWEST_FOLDS:
        raise TaskError(
            f"{path}: there are {len(splits)} folds; {mode} needs at least {FEWEST_FOLDS}, to "
            "test, to validate and to train."
        )
    return splits


def _is_plain(name: str) -> bool:
    """Whether a name can be that of a file, and stays in the folder that it is put in."""
    return (
        name not in ("", ".", "..")
        and not {"/", "\\"} & set(name)
        and min(name) >= " "
        and len(name.encode()) <= LONGEST_NAME
    )


def _read_split(path: Path) -> dict[str, list]:
    split = read_json(path)
    if not isinstance(split, dict):
        raise TaskError(f"{path} holds {short(split)}; it must hold an object, file by file.")
    if not split:
        raise TaskError(f"{path} names no file; a split needs at least one.")
    for file in split:
        if not _is_plain(file):
            raise TaskError(
                f"{path} names the file {short(file)}; it must be a file's name alone, without "
                f"folders and control characters, of at most {LONGEST_NAME} bytes."
            )
    return split


def _has_directions(path: Path) -> bool:
    """Whether a split of scenes has directions: floats, which labels never are."""
    return any(
        isinstance(value, list) and any(isinstance(each, float) for each in value)
        for value in _read_split(path).values()
    )


def _are_whole_directions(path: Path) -> bool:
    """Whether a split has three whole numbers for each file: directions, or labels."""
    return all(
        isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))
        for value in _read_split(path).values()
    )


def _read_vocabulary(path: Path, kind: str, split: Path) -> tuple[str, ...]:
    if not path.is_file():
        if kind == "localisation":
            return ()
        hint = ""
        if kind == "scene" and _are_whole_directions(split):
            hint = (
                f" If the numbers of {split.name} are directions, write at least one of them as a "
                "float, as [1.0, 0.0, 0.0]: then the task is one of localisation, and needs no "
                "vocabulary."
            )
        raise TaskError(f"There is no {path}; it must list the labels, as idx,label.{hint}")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(islice(csv.DictReader(file, restval="", strict=True), MOST_LABELS + 1))
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {reason_of(error)}.") from error
    except (ValueError, csv.Error) as error:
        raise TaskError(f"{path} is no CSV ({error}).") from error
    if not rows or not {"idx", "label"} <= {*rows[0]}:
        raise TaskError(
            f"{path} must begin with the line idx,label and list at least one label; it has "
            f"{f'the columns {short(list(rows[0]))}' if rows else 'no labels'}."
        )
    if len(rows) > MOST_LABELS:
        raise TaskError(f"{path} lists more than {MOST_LABELS} labels, the most that are read.")
    labels = {row["idx"]: row["label"] for row in rows}
    indices = [str(i) for i in range(len(rows))]
    if sorted(labels) != sorted(indices):
        raise TaskError(
            f"{path}: idx must count 0 to {len(rows) - 1} for its {len(rows)} labels, each once; "
            f"it has {short([row['idx'] for row in rows])}."
        )
    ordered = tuple(labels[index] for index in indices)
    if not all(ordered):
        raise TaskError(f"{path}: idx {ordered.index('')} has no label.")
    if len(set(ordered)) < len(ordered):
        twice = Counter(ordered).most_common(1)[0][0]
        raise TaskError(f"{path} has the label {short(twice)} twice; every label must be unique.")
    return ordered


# --- finding --------------------------------------------------------------------------------


def find_tasks(tasks_dir: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Return the folders of tasks below a directory.

    Args:
        tasks_dir: its direct children that have a ``task_metadata.json`` are the tasks.
        names: which ones, in this order; None or "all" is all, sorted. A name may lack its ending
            of version and mode (``fsdd`` for ``fsdd-v1-full``) where only one task begins so, or
            all others are that one's in scenes (``fsdd-v1-full-binaural``).

    Raises:
        TaskError: where the directory is missing or holds no task, for a name that no task has or
            that several share.
    """
    if not tasks_dir.is_dir():
        raise TaskError(f"There is no folder {tasks_dir}; give the one that the tasks lie in.")
    if (tasks_dir / METADATA).is_file():
        raise TaskError(f"{tasks_dir} is a task itself; give the folder that it lies in.")
    found = {path.name: path for path in sorted(tasks_dir.iterdir()) if (path / METADATA).is_file()}
    if not found:
        raise TaskError(f"{tasks_dir} holds no HEAR task: none of its folders has a {METADATA}.")
    if names is None or "all" in names:
        return list(found.values())
    return [found[name] for name in dict.fromkeys(_full_name(each, found) for each in names)]


def _full_name(name: str, found: Mapping[str, Path]) -> str:
    if name in found:
        return name
    longer = [each for each in found if each.startswith(f"{name}-")]
    shortest = min(longer, key=len, default="")
    if not all(each == shortest or each.startswith(f"{shortest}-") for each in longer):
        raise TaskError(f"Several tasks are called {name}: {', '.join(longer)}; give one of these.")
    if not longer:
        raise TaskError(
            f"There is no task {name!r}; there are {', '.join(found)}."
            + nearest(name, [*found, *(each.rsplit("-", 2)[0] for each in found)])
        )
    return shortest


def describe_tasks(tasks_dir: Path) -> list[dict[str, Any]]:
    """Describe the tasks below a directory, broken ones too.

    Returns:
        For each task ``name``; ``type`` (as "scene, multiclass"), ``metrics``, ``splits`` (name ->
        number of files), ``sample_duration`` in seconds or None, ``rates`` in Hz, ``made`` (those
        of them whose audio was made from another rate's), ``missing`` (rate -> number of audio
        files that are not there), ``empty`` (the clips that hold no samples, as "split/file"); and
        ``faults``, what is wrong. Where the metadata is broken there are ``name`` and ``faults``
        alone.

    Raises:
        TaskError: as :func:`find_tasks`.
    """
    return [_describe(folder) for folder in find_tasks(tasks_dir)]


def _describe(folder: Path) -> dict[str, Any]:
    faults: list[str] = []
    try:
        task = read_task(folder)
    except TaskError as error:
        return {"name": folder.name, "faults": [str(error)]}
    counts = dict(_counts(task, faults))
    rates = task.rates()
    readable = len(counts) == len(task.splits)
    # Split and name of the files, which are those of every rate.
    missing = {
        rate: {(path.parent.name, path.name) for path in task.missing(rate)}
        for rate in rates
        if readable
    }
    if not rates:
        faults.append(f"{folder} has no audio: no folder is named by a sample rate, as 48000.")
    elif nowhere := set.intersection(*missing.values()) if missing else set():
        faults.append(
            f"{len(nowhere)} of {sum(counts.values())} audio files are there at no sample rate, "
            f"such as {'/'.join(min(nowhere))}."
        )
    empty = _empty_clips(task) if readable else []
    if empty:
        faults.append(
            f"{empty_in_words(empty, sum(counts.values()))} Embed with --empty-clips skip (leave "
            f"{'it' if len(empty) == 1 else 'them'} out) or zero (1 s of silence)."
        )
    return {
        "name": task.name,
        "type": f"{task.kind}, {task.prediction_type}" if task.kind == "scene" else task.kind,
        "metrics": list(task.evaluation),
        "splits": counts,
        "sample_duration": task.sample_duration,
        "rates": rates,
        "made": [rate for rate in rates if rate not in task.source_rates()],
        "missing": {rate: len(files) for rate, files in missing.items()},
        "empty": empty,
        "faults": faults,
    }


def _empty_clips(task: Task) -> list[str]:
    """Return the clips that hold no samples at a rate that was not made, as "split/file"."""
    empty = []
    for split in task.splits:
        there = {rate: names_in(task.folder / str(rate) / split) for rate in task.source_rates()}
        for file in task.raw_annotations(split):
            paths = [task.audio(split, file, rate) for rate in there if file in there[rate]]
            if any(map(holds_no_samples, paths)):
                empty.append(f"{split}/{file}")
    return empty


def empty_in_words(empty: Sequence[str], clips: int | None = None) -> str:
    """Return a sentence that names clips without samples, given as "split/file".

    ``clips`` is how many the task has, where that is known.
    """
    number = count(len(empty), "clip") if clips is None else f"{len(empty):,} of {clips:,} clips"
    hold = "holds" if len(empty) == 1 else "hold"
    return f"{number} {hold} no samples: {some(empty, shown=5)}."


def _counts(task: Task, faults: list[str]) -> Iterator[tuple[str, int]]:
    """Yield the number of files of each split that can be read, and note what is wrong."""
    for split in task.splits:
        try:
            yield split, len(task.raw_annotations(split))
            task.annotations(split)
        except TaskError as error:
            faults.append(str(error))
