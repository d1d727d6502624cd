"""A task directory made of labelled recordings: planned, made in a folder aside, moved in whole.

What is made lies in ``.<task>.making`` beside the task until all of it is there and was read back.
Each sound that is done is noted in a journal, so that a run that was killed goes on. Sides are
settled when all sound is known: files of equal sound stay on one.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from gram_hear.errors import AudioError, OptionError, TaskError, count, reason_of, short
from gram_hear.evaluation.make.labels import (
    AXES,
    Collection,
    Labels,
    check_vocabulary,
    read_labels,
    some,
    vocabulary_of,
)
from gram_hear.evaluation.make.sounds import Form, Header, make_sound, read_header, stamp
from gram_hear.evaluation.make.splits import Division, Sides, divide
from gram_hear.evaluation.predict.metrics import named_metric
from gram_hear.evaluation.predict.postprocessing import EVENT_POSTPROCESSING
from gram_hear.jobs.interrupts import interrupts_held
from gram_hear.jobs.progress import Progress, silent
from gram_hear.jobs.writing import hold, write_whole
from gram_hear.tasks import METADATA, VOCABULARY, read_json, read_task

MADE = "made"  # key of the metadata: of what, and how
JOURNAL, PLAN = "sounds.jsonl", "plan.json"
METRICS = {
    "multiclass": ("top1_acc",),
    "multilabel": ("mAP",),
    "event": ("event_onset_200ms_fms", "segment_1s_er"),
    "localisation": ("MAE", "DOA"),
}
NAMED = 10  # files that a message names

Facts = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What a task is made of and called.

    Attributes:
        name: without version and mode; its folder is ``<name>-<version>-full``.
        version: of the task.
        labels: where labels come from.
        division: how clips are shared among sides.
        form: what sound is made into.
        metrics: names; none: :data:`METRICS` of the kind of task.
    """

    name: str
    version: str = "v1"
    labels: Labels = field(default_factory=Labels)
    division: Division = field(default_factory=Division)
    form: Form = field(default_factory=Form)
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
class Plan:
    """A task before any sound is decoded: labels, sides, headers and metrics, all checked."""

    recipe: Recipe
    collection: Collection
    sides: Sides
    headers: Mapping[str, Header]
    form: Form
    metrics: tuple[str, ...]
    notes: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        """What the task is made of: its labels and sides, the files' sizes and times, and how."""
        source, side_of = self.collection.source, self.sides.side_of
        said = {
            "clips": [
                (clip.file, clip.annotation, side_of[clip.file], stamp(source / clip.file))
                for clip in self.collection.clips
            ],
            "form": asdict(self.form),
            "division": asdict(self.recipe.division),
            "metrics": self.metrics,
            "type": self.collection.prediction_type,
        }
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


@dataclass(frozen=True)
class Made:
    """A task that was made.

    Attributes:
        folder: of the task.
        notes: what a user should know of, one sentence each, those of the plan included.
        found: files that an earlier run had done; all of them where the task was there already.
    """

    folder: Path
    notes: tuple[str, ...]
    found: int


def check_place(source: Path, tasks_dir: Path) -> None:
    """Raise an OptionError for a folder of tasks among the recordings, which would be taken in."""
    if tasks_dir.resolve().is_relative_to(source.resolve()):
        raise OptionError(
            f"The tasks would go to {tasks_dir}, inside the folder of the recordings, {source}, "
            "and be taken for recordings by the next run. Give --tasks-dir another folder, such as "
            f"{source.resolve().parent / 'tasks'}."
        )


# --- the plan -------------------------------------------------------------------------------


def plan_task(source: Path, recipe: Recipe) -> Plan:
    """Read and check what can be known before any sound is decoded; nothing is written.

    Raises:
        TaskError: for labels or sides that make no task, files that are no sound, events outside
            their files.
        OptionError: for options that do not fit.
    """
    collection = read_labels(source, recipe.labels)
    division = replace(recipe.division, group_by=recipe.labels.group_by)
    recipe = replace(recipe, division=division)
    metrics = _check_metrics(collection, recipe.metrics)
    headers = _read_headers(collection)
    notes = list(collection.notes)
    form = recipe.form
    if not form.rates:
        rates = sorted({header.rate for header in headers.values()})
        if len(rates) > 1:
            notes.append(
                f"The recordings have {len(rates)} sample rates; all are brought to the highest, "
                f"{rates[-1]} Hz."
            )
        form = replace(form, rates=(rates[-1],))
    channels = sorted({header.channels for header in headers.values()})
    if len(channels) > 1:
        counts = " and ".join(map(str, channels))
        notes.append(f"The recordings have {counts} channels, and keep them.")
    if collection.kind == "event":
        collection = _bound_events(collection, headers, form, notes)
    sides = divide(collection, division)
    return Plan(recipe, collection, sides, headers, form, metrics, tuple(notes))


def _check_metrics(collection: Collection, names: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics asked for, or those of the kind of task."""
    kind = collection.prediction_type if collection.kind == "scene" else collection.kind
    allowed = {kind, "multilabel"} if kind == "multiclass" else {kind}
    for name in names:
        if (metric := named_metric(name)).kind not in allowed:
            raise OptionError(
                f"The metric {name} is of {metric.kind} tasks, and this one is {kind}; its own is "
                f"{' and '.join(METRICS[kind])}."
            )
    if len(set(names)) < len(names):
        raise OptionError(f"A metric is named twice: {', '.join(names)}.")
    return tuple(names) or METRICS[kind]


def _read_headers(collection: Collection) -> dict[str, Header]:
    headers, faults = {}, []
    for clip in collection.clips:
        try:
            headers[clip.file] = read_header(collection.source / clip.file)
        except AudioError as error:
            faults.append(str(error))
    _refuse_sounds(faults, len(collection.clips), "Nothing was written.")
    return headers


def _refuse_sounds(faults: Sequence[str], total: int, state: str) -> None:
    if faults:
        raise TaskError(
            f"{len(faults)} of {total} files cannot be used. {some(faults, ' ', NAMED)} Repair "
            f"them, or remove them and their rows. {state}"
        )


def _bound_events(
    collection: Collection, headers: Mapping[str, Header], form: Form, notes: list[str]
) -> Collection:
    """Return the collection with events inside what is used of their files."""
    clips, late, cut, lost = [], [], 0, 0
    for clip in collection.clips:
        length = 1000 * headers[clip.file].seconds or float("inf")
        end = min(length, 1000 * (form.duration or float("inf")))
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
    return replace(collection, clips=tuple(clips), labels=labels)


# --- making ---------------------------------------------------------------------------------


def make_task(
    plan: Plan,
    tasks_dir: Path,
    *,
    jobs: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Made:
    """Make the task of a plan, or go on with what was interrupted.

    Args:
        plan: of :func:`plan_task`.
        tasks_dir: the folder that the task's is made in; made where it is not there.
        jobs: threads side by side; None is one for each processor.
        force: replace a task of this name that was made of something else.
        progress: called with the number of files done and that of all.

    Raises:
        TaskError: for sound that is damaged, or sides that cannot be made of what is equal.
        OptionError: for a task of this name made of something else, or what cannot be written.
    """
    jobs = os.cpu_count() or 1 if jobs is None else jobs
    if jobs < 1:
        raise OptionError(f"jobs is {jobs}; it must be at least 1.")
    folder = tasks_dir / plan.recipe.folder_name
    work = tasks_dir / f".{folder.name}.making"
    total = len(plan.collection.clips)
    progress = progress or silent
    if before := _made_before(folder, plan, force):
        progress(total, total)
        return Made(folder, (*plan.notes, *before.get("notes", plan.sides.notes)), total)
    try:
        with _opened(work, plan):
            facts, found = _make_sounds(work, plan, jobs, progress)
            twins = _twins(facts)
            sides = divide(plan.collection, plan.recipe.division, twins) if twins else plan.sides
            said = (*sides.notes, *_describe_twins(plan.collection, sides, twins))
            sides = replace(sides, notes=said)
            _assemble(work / "task", plan, sides, facts, work / "sounds")
            _move_in(work, folder)
        shutil.rmtree(work)
    except OSError as error:
        raise OptionError(
            f"{folder} cannot be written: {reason_of(error)} ({error.filename}). What is "
            "finished is kept; run again to go on."
        ) from error
    return Made(folder, (*plan.notes, *sides.notes), found)


def _made_before(folder: Path, plan: Plan, force: bool) -> Facts | None:
    """Return how the task was made that is there as planned; an OptionError for something else."""
    if not folder.exists():
        return None
    if not (folder / METADATA).is_file():
        raise OptionError(f"{folder} is there and is no task; give the task another --name.")
    metadata = read_json(folder / METADATA)
    made = metadata.get(MADE) if isinstance(metadata, dict) else None
    if isinstance(made, dict) and made.get("fingerprint") == plan.fingerprint:
        return made
    if not force:
        raise OptionError(
            f"{folder} is there and was made of other files or labels, or otherwise. Give the "
            "task another --name, or replace it with --force."
        )
    return None


@contextmanager
def _opened(work: Path, plan: Plan) -> Iterator[None]:
    """Hold the folder of what is not finished; what other options made there is discarded."""
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        if not hold(lock):
            raise OptionError(f"Another run is making {plan.recipe.folder_name}; wait for it.")
        source = str(plan.collection.source.absolute())
        said = json.loads(json.dumps({"source": source, **asdict(plan.form)}))
        if not (work / PLAN).is_file() or read_json(work / PLAN) != said:
            for path in work.iterdir():
                if path.name not in ("lock", "old"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            _write_json(work / PLAN, said)
        for leftover in work.rglob(".*.partial"):  # of a run that was killed
            leftover.unlink()
        for rate in plan.form.rates:
            (work / "sounds" / str(rate)).mkdir(parents=True, exist_ok=True)
        yield


def _make_sounds(
    work: Path, plan: Plan, jobs: int, progress: Progress
) -> tuple[dict[str, Facts], int]:
    """Make the sounds that are not there; return the facts of all, and how many were there."""
    source, total = plan.collection.source, len(plan.collection.clips)
    facts = _read_journal(work, plan)
    found, faults = len(facts), []
    progress(found, total)

    def make(file: str) -> Facts:
        header = plan.headers[file]
        return make_sound(source / file, header, plan.form, work / "sounds", _stem(file))

    pool = ThreadPoolExecutor(jobs)
    with open(work / JOURNAL, "a", encoding="utf-8") as journal:
        try:
            files = [clip.file for clip in plan.collection.clips if clip.file not in facts]
            finished: SimpleQueue[Future[Facts]] = SimpleQueue()
            futures: dict[Future[Facts], str] = {}
            for file in files:
                with interrupts_held():
                    futures[future := pool.submit(make, file)] = file
                    future.add_done_callback(finished.put)
            for done in range(found + 1, found + len(futures) + 1):
                future = finished.get()
                file = futures[future]
                try:
                    facts[file] = future.result()
                    journal.write(json.dumps({"file": file, **facts[file]}) + "\n")
                    journal.flush()
                except AudioError as error:
                    faults.append(str(error))
                progress(done, total)
        finally:
            with interrupts_held():
                pool.shutdown(wait=False, cancel_futures=True)
            pool.shutdown()
    _refuse_sounds(sorted(faults), total, "No task was made; the same command goes on.")
    return facts, found


def _stem(file: str) -> str:
    """Return what a file is called until the names of all are known."""
    return hashlib.sha256(os.fsencode(file)).hexdigest()[:24]


def _read_journal(work: Path, plan: Plan) -> dict[str, Facts]:
    """Return the facts of the sounds that are there, made of the files as they are now."""
    path = work / JOURNAL
    if not path.is_file():
        return {}
    facts: dict[str, Facts] = {}
    whole = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            facts[entry.pop("file")] = entry
            whole.append(line)
        except (ValueError, KeyError, TypeError, AttributeError):  # cut short, or not ours
            continue
    text = "".join(f"{line}\n" for line in whole)
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))
    wanted = {clip.file for clip in plan.collection.clips}
    return {
        file: entry
        for file, entry in facts.items()
        if file in wanted and _is_there(work, plan.collection.source, file, entry)
    }


def _is_there(work: Path, source: Path, file: str, entry: Facts) -> bool:
    places = [
        (work / "sounds" / rate / f"{_stem(file)}{entry['suffix']}", size)
        for rate, size in entry["sizes"].items()
    ]
    return stamp(source / file) == entry["stamp"] and all(
        place.is_file() and place.stat().st_size == size for place, size in places
    )


# --- equal sound ----------------------------------------------------------------------------


def _twins(facts: Mapping[str, Facts]) -> list[list[str]]:
    """Return the files whose samples are equal to others', together with these."""
    same: dict[str, list[str]] = {}
    for file in sorted(facts):
        same.setdefault(facts[file]["hash"], []).append(file)
    return [files for files in same.values() if len(files) > 1]


def _describe_twins(
    collection: Collection, sides: Sides, twins: Sequence[Sequence[str]]
) -> Iterator[str]:
    """Yield a sentence on twins on several sides, one on those with other labels, one on all."""
    side_of = sides.side_of
    said = {clip.file: clip.annotation for clip in collection.clips}
    torn = [files for files in twins if len({side_of[file] for file in files}) > 1]
    if torn:
        named = [" = ".join(f"{side_of[file]}/{file}" for file in files) for files in torn]
        yield (
            f"{count(len(torn), 'sound is', 'sounds are')} on several of the sides given, so that "
            f"what is tested was trained on: {some(named, '; ', NAMED)}."
        )
    if other := [files for files in twins if any(said[f] != said[files[0]] for f in files)]:
        named = [" = ".join(f"{file} {short(said[file], 40)}" for file in files) for files in other]
        equal = count(len(other), "sound is there several times", "sounds are there several times")
        yield f"{equal}, labelled differently: {some(named, '; ', NAMED)}."
    if kept := [files for files in twins if files not in torn]:
        named = [" = ".join(files) for files in kept]
        equal = count(len(kept), "sound is there several times", "sounds are there several times")
        yield f"{equal}, on one side: {some(named, '; ')}."


# --- the task's folder ----------------------------------------------------------------------


def _assemble(
    folder: Path, plan: Plan, sides: Sides, facts: Mapping[str, Facts], sounds: Path
) -> None:
    """Make the task's folder anew, its metadata last, and read it back."""
    shutil.rmtree(folder, ignore_errors=True)
    names = task_names({file: entry["suffix"] for file, entry in facts.items()})
    for side, clips in sides.clips.items():
        for rate in plan.form.rates:
            place = folder / str(rate) / side
            place.mkdir(parents=True)
            for clip in clips:
                made = f"{_stem(clip.file)}{facts[clip.file]['suffix']}"
                _link(sounds / str(rate) / made, place / names[clip.file])
        _write_json(folder / f"{side}.json", {names[c.file]: c.annotation for c in clips})
    table = io.StringIO()
    labels = AXES if plan.collection.kind == "localisation" else plan.collection.labels
    csv.writer(table, lineterminator="\n").writerows([("idx", "label"), *enumerate(labels)])
    (folder / VOCABULARY).write_text(table.getvalue(), encoding="utf-8")
    _write_json(folder / METADATA, _metadata(plan, sides, facts))
    task = read_task(folder)
    for split in task.splits:
        task.annotations(split)
    if absent := [path for rate in plan.form.rates for path in task.missing(rate)]:
        raise TaskError(f"{len(absent)} files are not in the task that was made: {absent[0]}.")


def task_names(suffixes: Mapping[str, str]) -> dict[str, str]:
    """Return what files are called in the task, from path -> suffix there.

    That is the file's name where no two are alike, else its path with ``_`` for ``/``; a suffix
    that changes is added, as in ``a.mp3.wav``.

    Raises:
        TaskError: where two files still have the same name.
    """
    whole = {f: f if f.endswith(suffix) else f"{f}{suffix}" for f, suffix in suffixes.items()}
    names = {file: name.rpartition("/")[2] for file, name in whole.items()}
    if len({name.casefold() for name in names.values()}) < len(names):
        names = {file: name.replace("/", "_") for file, name in whole.items()}
    first: dict[str, str] = {}
    for file, name in names.items():
        if (other := first.setdefault(name.casefold(), file)) != file:
            raise TaskError(f"{other} and {file} would both be called {name}; rename one of them.")
    return names


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or, where the file system cannot, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _metadata(plan: Plan, sides: Sides, facts: Mapping[str, Facts]) -> dict[str, Any]:
    collection, recipe = plan.collection, plan.recipe
    lengths = {entry["samples"] for entry in facts.values()}
    metadata = {
        "task_name": recipe.name,
        "version": recipe.version,
        "mode": "full",
        "embedding_type": "event" if collection.kind == "event" else "scene",
        "prediction_type": collection.prediction_type,
        "sample_duration": lengths.pop() / plan.form.rates[0] if len(lengths) == 1 else None,
        "split_mode": sides.mode,
        "evaluation": list(plan.metrics),
        "splits": list(sides.clips),
    }
    if sides.mode.endswith("kfold"):
        metadata["nfolds"] = len(sides.clips)
    if collection.kind == "event":
        metadata["evaluation_params"] = {"event_postprocessing_grid": EVENT_POSTPROCESSING}
    division = {key: value for key, value in asdict(recipe.division).items() if value is not None}
    metadata[MADE] = {
        "by": f"gram-hear {version('gram-hear')}",
        "source": collection.source.resolve().name,
        **division,
        "notes": list(sides.notes),  # those that a later run, which decodes nothing, cannot find
        "fingerprint": plan.fingerprint,
    }
    return metadata


def _move_in(work: Path, folder: Path) -> None:
    """Put the task in its place; what is there already goes aside first."""
    shutil.rmtree(work / "old", ignore_errors=True)
    if folder.exists():
        os.rename(folder, work / "old")
    os.rename(work / "task", folder)


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1) + "\n"
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))
