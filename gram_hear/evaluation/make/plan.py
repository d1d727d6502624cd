"""What a task will be made of: labels, headers, splits and metrics, before any sound is decoded."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from gram_hear.errors import AudioError, OptionError, TaskError, count, some
from gram_hear.evaluation.make.labels import (
    LabelledRecordings,
    LabelOptions,
    check_vocabulary,
    read_labels,
    vocabulary_of,
)
from gram_hear.evaluation.make.sounds import SoundHeader, SoundOptions, read_header, stamp
from gram_hear.evaluation.make.splits import SplitOptions, Splits, make_splits
from gram_hear.evaluation.predict.metrics import named_metric

METRICS = {
    "multiclass": ("top1_acc",),
    "multilabel": ("mAP",),
    "event": ("event_onset_200ms_fms", "segment_1s_er"),
    "localisation": ("MAE", "DOA"),
}
NAMED = 10  # files that a message names


@dataclass(frozen=True)
class TaskOptions:
    """What a task is called and how it is made.

    Attributes:
        name: without version and mode; its folder is ``<name>-<version>-full``.
        version: of the task.
        labels: where labels come from.
        splits: how clips are divided into splits.
        sound: what sound is converted to.
        metrics: their names; empty: :data:`METRICS` of the kind of task.
    """

    name: str
    version: str = "v1"
    labels: LabelOptions = field(default_factory=LabelOptions)
    splits: SplitOptions = field(default_factory=SplitOptions)
    sound: SoundOptions = field(default_factory=SoundOptions)
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, value in (("name", self.name), ("version", self.version)):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
                raise OptionError(
                    f"The {what} of the task is {value!r}; it becomes part of a folder's name, so "
                    "it must begin with a letter or digit and have no others than these and . _ -"
                )

    @property
    def folder_name(self) -> str:
        """The name of the task's folder."""
        return f"{self.name}-{self.version}-full"


@dataclass(frozen=True)
class TaskPlan:
    """A task before any sound is decoded, checked.

    Attributes:
        options: how it is made; its splits know the field to group by.
        recordings: the labelled files.
        splits: as far as known: files of equal sound may still change them.
        headers: file -> what its header says.
        sound: what sound is converted to, with at least one rate.
        metrics: their names.
        notes: what a user should know of, one sentence each.
    """

    options: TaskOptions
    recordings: LabelledRecordings
    splits: Splits
    headers: Mapping[str, SoundHeader]
    sound: SoundOptions
    metrics: tuple[str, ...]
    notes: tuple[str, ...]

    @cached_property
    def stamps(self) -> dict[str, list[int]]:
        """File -> its size and the time of its last change, when this was first asked for."""
        source = self.recordings.source
        return {clip.file: stamp(source / clip.file) for clip in self.recordings.clips}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what the task is made of: labels, splits, files' stamps and options."""
        split_of, stamps = self.splits.split_of, self.stamps
        made_of = {
            "clips": [
                (clip.file, clip.annotation, split_of[clip.file], stamps[clip.file])
                for clip in self.recordings.clips
            ],
            "form": asdict(self.sound),
            "division": asdict(self.options.splits),
            "metrics": self.metrics,
            "type": self.recordings.prediction_type,
        }
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def check_tasks_dir(source: Path, tasks_dir: Path) -> None:
    """Raise an OptionError for a folder of tasks among the recordings, which would be taken in."""
    if tasks_dir.resolve().is_relative_to(source.resolve()):
        raise OptionError(
            f"The tasks would go to {tasks_dir}, inside the folder of the recordings, {source}, "
            "and be taken for recordings by the next run. Give --tasks-dir another folder, such as "
            f"{source.resolve().parent / 'tasks'}."
        )


def plan_task(source: Path, options: TaskOptions) -> TaskPlan:
    """Read labels and headers, check them and draw splits; nothing is decoded or written.

    Raises:
        TaskError: for labels or splits that make no task, files that are no sound, events outside
            their files.
        OptionError: for options that do not fit.
    """
    recordings = read_labels(source, options.labels)
    splits = replace(options.splits, group_by=options.labels.group_by)
    options = replace(options, splits=splits)
    metrics = _check_metrics(recordings, options.metrics)
    headers = _read_headers(recordings)
    notes = list(recordings.notes)
    sound = options.sound
    if not sound.rates:
        rates = sorted({header.rate for header in headers.values()})
        if len(rates) > 1:
            notes.append(
                f"The recordings have {len(rates)} sample rates; all are brought to the highest, "
                f"{rates[-1]} Hz."
            )
        sound = replace(sound, rates=(rates[-1],))
    channels = sorted({header.channels for header in headers.values()})
    if len(channels) > 1:
        counts = " and ".join(map(str, channels))
        notes.append(f"The recordings have {counts} channels, and keep them.")
    if recordings.kind == "event":
        recordings = _bound_events(recordings, headers, sound, notes)
    planned = make_splits(recordings, splits)
    return TaskPlan(options, recordings, planned, headers, sound, metrics, tuple(notes))


def _check_metrics(recordings: LabelledRecordings, names: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics asked for, or those of the kind of task."""
    kind = recordings.prediction_type if recordings.kind == "scene" else recordings.kind
    fitting = {kind, "multilabel"} if kind == "multiclass" else {kind}
    for name in names:
        if (metric := named_metric(name)).kind not in fitting:
            raise OptionError(
                f"The metric {name} is of {metric.kind} tasks, and this one is {kind}; its own is "
                f"{' and '.join(METRICS[kind])}."
            )
    if len(set(names)) < len(names):
        raise OptionError(f"A metric is named twice: {', '.join(names)}.")
    return tuple(names) or METRICS[kind]


def _read_headers(recordings: LabelledRecordings) -> dict[str, SoundHeader]:
    headers, faults = {}, []
    for clip in recordings.clips:
        try:
            headers[clip.file] = read_header(recordings.source / clip.file)
        except AudioError as error:
            faults.append(str(error))
    refuse_sounds(faults, len(recordings.clips), "Nothing was written.")
    return headers


def refuse_sounds(faults: Sequence[str], total: int, state: str) -> None:
    """Raise a TaskError that names what is wrong with sound files, where anything is."""
    if faults:
        raise TaskError(
            f"{len(faults)} of {total} files cannot be used. {some(faults, ' ', NAMED)} Repair "
            f"them, or remove them and their rows. {state}"
        )


def _bound_events(
    recordings: LabelledRecordings,
    headers: Mapping[str, SoundHeader],
    sound: SoundOptions,
    notes: list[str],
) -> LabelledRecordings:
    """Return the recordings with events cut to what is used of each file; note what is cut."""
    clips, late, cut, lost = [], [], 0, 0
    for clip in recordings.clips:
        length = 1000 * headers[clip.file].seconds or float("inf")
        end = min(length, 1000 * (sound.duration or float("inf")))
        kept = []
        for event in clip.annotation:
            if event["start"] > length:
                late.append(f"{clip.file} ({event['label']} at {event['start'] / 1000:g} s)")
            elif event["start"] >= end:
                lost += 1
            else:
                cut += event["end"] > end
                kept.append(event | {"end": min(event["end"], end)})
        clips.append(replace(clip, annotation=kept))
    if late:
        raise TaskError(
            f"{count(len(late), 'event begins', 'events begin')} after the end of the file: "
            f"{some(late)}. Onsets and offsets are seconds from the start of the file."
        )
    if lost:
        notes.append(
            f"{count(lost, 'event begins', 'events begin')} where nothing is used of the file: "
            "left out."
        )
    if cut:
        notes.append(
            f"{count(cut, 'event ends', 'events end')} after what is used of the file: cut there."
        )
    labels = vocabulary_of({label for clip in clips for label in clip.labels})
    check_vocabulary(labels, " of events in what is used of the files")
    return replace(recordings, clips=tuple(clips), labels=labels)
