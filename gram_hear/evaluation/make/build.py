"""A task directory built of labelled recordings: in a folder aside, from where it is moved whole.

The folder aside, ``.<task>.making`` beside the task, is a job (:mod:`gram_hear.jobs.job`): several
runs may share it, and what a killed run left is resumed. Its parts are a few sound files each.
Splits are settled when all sound is known, since files of equal sound stay in one.
"""

import csv
import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gram_hear.errors import AudioError, OptionError, TaskError, count, reason_of, short, some
from gram_hear.evaluation.make.labels import AXES, LabelledClip
from gram_hear.evaluation.make.plan import NAMED, TaskPlan, refuse_sounds
from gram_hear.evaluation.make.sounds import MadeSound, SoundHeader, SoundOptions, make_sound
from gram_hear.evaluation.make.splits import Splits, make_splits
from gram_hear.evaluation.predict.postprocessing import EVENT_POSTPROCESSING
from gram_hear.jobs.callback import Progress, silent
from gram_hear.jobs.job import Job, Record, run_parts
from gram_hear.jobs.workers import cores
from gram_hear.jobs.writing import link_or_copy, write_json, write_text
from gram_hear.tasks import METADATA, VOCABULARY, read_json, read_task

MADE = "made"  # key of the metadata: of what the task was made, and how
SOUNDS, TASK, REPLACED = "sounds", "task", "old"  # folders of the job
FILES_OF_PART = 16  # so that locks and notes cost little beside short sounds
SOUND_OF_PROCESS = 3600.0  # seconds of sound for which another process pays

Part = list[tuple[str, SoundHeader]]  # files, each with its header


@dataclass(frozen=True)
class MadeTask:
    """A task that was made.

    Attributes:
        folder: of the task.
        notes: what a user should know of, one sentence each, those of the plan included.
        found: files that an earlier run had done; all of them where the task was there already.
    """

    folder: Path
    notes: tuple[str, ...]
    found: int


def make_task(
    plan: TaskPlan,
    tasks_dir: Path,
    *,
    jobs: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> MadeTask:
    """Make the task of a plan, or go on with what was interrupted.

    Args:
        plan: of :func:`gram_hear.evaluation.make.plan.plan_task`.
        tasks_dir: the folder that the task's is made in; made where it is not there.
        jobs: processes side by side; None is one for each hour of sound, at most one for each
            processor.
        force: replace a task of this name that was made of something else.
        progress: called with the number of files done and that of all.

    Raises:
        TaskError: for sound that is damaged, or splits that cannot be made of equal sounds.
        OptionError: for a task of this name made of something else, or what cannot be written.
    """
    if jobs is not None and jobs < 1:
        raise OptionError(f"jobs is {jobs}; it must be at least 1.")
    folder = tasks_dir / plan.options.folder_name
    total = len(plan.recordings.clips)
    job = Job(tasks_dir / f".{folder.name}.making", _made_of(plan))
    if (notes := _find_made(folder, plan, force)) is not None:
        _remove_rest(job)
        progress(total, total)
        return MadeTask(folder, (*plan.notes, *notes), total)
    try:
        # Sounds of other recordings or rates are of no use.
        job.begin(force=True, clear=lambda: shutil.rmtree(job.output / SOUNDS, ignore_errors=True))
        _take_over(job, plan)
        sounds, found = _make_sounds(job, plan, jobs, progress)
        with job.finishing():
            if (notes := _find_made(folder, plan, force)) is None:
                notes = _finish(job, plan, sounds, folder)
            _close(job)
        with suppress(OSError):  # where another run has begun there
            job.output.rmdir()
    except OSError as error:
        raise OptionError(
            f"{folder} cannot be written: {reason_of(error)} ({error.filename}). What is "
            "finished is kept; run again to go on."
        ) from error
    return MadeTask(folder, (*plan.notes, *notes), found)


def _close(job: Job) -> None:
    """Remove the folder of a task that is made but for the lock; within ``job.finishing``."""
    for name in (SOUNDS, TASK, REPLACED):
        shutil.rmtree(job.output / name, ignore_errors=True)
    job.close()


def _remove_rest(job: Job) -> None:
    """Remove what a run left that was killed when the task was made, unless others are at work."""
    if not job.output.is_dir():
        return
    with suppress(OSError):  # the task is there, whatever may be done beside it
        with job.finishing():
            begun = job.begun_of()
            if begun is None or (not job.difference(begun) and job.is_idle()):
                _close(job)
        job.output.rmdir()


def _find_made(folder: Path, plan: TaskPlan, force: bool) -> Sequence[str] | None:
    """Return the notes of the task that is there as planned; None where it is to be made.

    Raises:
        OptionError: for a folder that is no task, or a task that was made of something else.
    """
    if not folder.exists():
        return None
    if not (folder / METADATA).is_file():
        raise OptionError(f"{folder} is there and is no task; give the task another --name.")
    metadata = read_json(folder / METADATA)
    made = metadata.get(MADE) if isinstance(metadata, dict) else None
    if isinstance(made, dict) and made.get("fingerprint") == plan.fingerprint:
        return made.get("notes", plan.splits.notes)
    if not force:
        raise OptionError(
            f"{folder} is there and was made of other files or labels, or otherwise. Give the "
            "task another --name, or replace it with --force."
        )
    return None


# --- sounds ---------------------------------------------------------------------------------


def _made_of(plan: TaskPlan) -> dict[str, Any]:
    """Return what the sounds depend on, as plain data; labels and splits may still change."""
    return {"source": str(plan.recordings.source.absolute()), **asdict(plan.sound)}


def _make_sounds(
    job: Job, plan: TaskPlan, jobs: int | None, progress: Progress
) -> tuple[dict[str, MadeSound], int]:
    """Make the sounds that are not there.

    Returns:
        file -> its sound; and how many were there. Some files may be missing where another run
        has finished the job or begun it anew.

    Raises:
        TaskError: for files that cannot be used; the sounds of the others are kept.
    """
    sounds = {
        file: MadeSound(**facts)
        for record in job.records()
        for file, facts in record["sounds"].items()
        if plan.stamps.get(file) == facts["stamp"]
    }
    done = found = len(sounds)
    files, faults = [clip.file for clip in plan.recordings.clips], []
    progress(done, len(files))
    for rate in plan.sound.rates:
        (job.output / SOUNDS / str(rate)).mkdir(parents=True, exist_ok=True)
    due = _divide(files, sounds, plan)
    seconds = sum(header.seconds for part in due.values() for _, header in part)
    jobs = jobs or min(cores(), 1 + int(seconds / SOUND_OF_PROCESS))
    make = partial(_make_part, job.output / SOUNDS, plan.recordings.source, plan.sound)
    with closing(run_parts(job, due, make, jobs)) as outcomes:
        for outcome in outcomes:
            for text in outcome.warnings:
                warnings.warn(text, stacklevel=2)
            if record := outcome.record:
                sounds |= {file: MadeSound(**facts) for file, facts in record["sounds"].items()}
                faults += record["faults"]
            done += len(due[outcome.part])
            progress(done, len(files))
    refuse_sounds(sorted(faults), len(files), "No task was made; the same command goes on.")
    return sounds, found


def _divide(files: Sequence[str], done: Mapping[str, MadeSound], plan: TaskPlan) -> dict[str, Part]:
    """Return the parts of the job that are due: name -> files that are not done.

    Runs that share the job divide it alike. The name is that of the files as they are now, so that
    a part is made anew where one of them has changed.
    """
    parts = {}
    for first in range(0, len(files), FILES_OF_PART):
        if due := [file for file in files[first : first + FILES_OF_PART] if file not in done]:
            name = hashlib.sha256(json.dumps([(file, plan.stamps[file]) for file in due]).encode())
            parts[name.hexdigest()] = [(file, plan.headers[file]) for file in due]
    return parts


def _make_part(
    folder: Path, source: Path, options: SoundOptions, part: Part
) -> tuple[Record, list[Path]]:
    """Make the sounds of a few files.

    Returns:
        "sounds", file -> its :class:`MadeSound` as a dictionary, and "faults", what is wrong with
        the others; and the files that were written.
    """
    sounds, faults, written = {}, [], []
    for file, header in part:
        try:
            made = make_sound(source / file, header, options, folder, _stem(file))
        except AudioError as error:
            faults.append(str(error))
        else:
            sounds[file] = asdict(made)
            written += [_sound_path(folder, rate, file, made) for rate in options.rates]
    return {"sounds": sounds, "faults": faults}, written


def _sound_path(folder: Path, rate: int, file: str, made: MadeSound) -> Path:
    return folder / str(rate) / f"{_stem(file)}{made.suffix}"


def _stem(file: str) -> str:
    """Return what the sound of a file is called until the names of all are known."""
    return hashlib.sha256(os.fsencode(file)).hexdigest()[:24]


def _take_over(job: Job, plan: TaskPlan) -> None:
    """Note the sounds that version 0.1.0 left, which kept a journal of them."""
    journal, made_of = job.output / "sounds.jsonl", job.output / "plan.json"
    if not journal.is_file():
        return
    is_same = made_of.is_file() and not job.difference(read_json(made_of))
    lines = journal.read_text(encoding="utf-8", errors="replace").splitlines() if is_same else []
    for line in lines:
        with suppress(ValueError, LookupError, TypeError, OSError):  # cut short, or files are gone
            facts = json.loads(line)
            file, sizes = facts.pop("file"), facts.pop("sizes")
            made = MadeSound(**facts)
            paths = [_sound_path(job.output / SOUNDS, rate, file, made) for rate in sizes]
            if [path.stat().st_size for path in paths] == list(sizes.values()):
                job.note(file, {"sounds": {file: facts}, "faults": []}, paths)
    for path in (journal, made_of, job.output / "lock"):
        path.unlink(missing_ok=True)


# --- equal sound ----------------------------------------------------------------------------


def _find_duplicates(sounds: Mapping[str, MadeSound]) -> list[list[str]]:
    """Return the files whose samples are equal to those of others, together with these."""
    same: dict[str, list[str]] = {}
    for file in sorted(sounds):
        same.setdefault(sounds[file].hash, []).append(file)
    return [files for files in same.values() if len(files) > 1]


def _describe_duplicates(
    clips: Sequence[LabelledClip], splits: Splits, duplicates: Sequence[Sequence[str]]
) -> Iterator[str]:
    """Yield notes on duplicates: those in several splits, with different labels, and the others."""
    split_of = splits.split_of
    labels = {clip.file: clip.annotation for clip in clips}
    torn = [files for files in duplicates if len({split_of[file] for file in files}) > 1]
    if torn:
        named = [" = ".join(f"{split_of[file]}/{file}" for file in files) for files in torn]
        yield (
            f"{count(len(torn), 'sound is', 'sounds are')} in several of the splits given, so that "
            f"what is tested was trained on: {some(named, '; ', NAMED)}."
        )
    several = ("sound is there several times", "sounds are there several times")
    if other := [same for same in duplicates if any(labels[f] != labels[same[0]] for f in same)]:
        named = [" = ".join(f"{f} {short(labels[f], 40)}" for f in files) for files in other]
        yield f"{count(len(other), *several)}, labelled differently: {some(named, '; ', NAMED)}."
    if kept := [files for files in duplicates if files not in torn]:
        named = [" = ".join(files) for files in kept]
        yield f"{count(len(kept), *several)}, in one split: {some(named, '; ')}."


# --- the task's folder ----------------------------------------------------------------------


def _finish(
    job: Job, plan: TaskPlan, sounds: Mapping[str, MadeSound], folder: Path
) -> tuple[str, ...]:
    """Settle the splits and put the task in its place; return the notes on its splits.

    Raises:
        OptionError: where another run has removed sounds.
        TaskError: where no splits or names can be given.
    """
    if len(sounds) < len(plan.recordings.clips) or job.difference(job.begun_of()):
        raise OptionError(
            f"Another run has meanwhile finished {folder.name}, or begun it anew, of other "
            "recordings or labels. Run again to make it of these."
        )
    duplicates = _find_duplicates(sounds)
    splits = plan.splits
    if duplicates:
        splits = make_splits(plan.recordings, plan.options.splits, duplicates)
    about = _describe_duplicates(plan.recordings.clips, splits, duplicates)
    splits = replace(splits, notes=(*splits.notes, *about))
    _assemble(job.output / TASK, plan, splits, sounds, job.output / SOUNDS)
    _move_in(job.output, folder)
    return splits.notes


def _assemble(
    folder: Path, plan: TaskPlan, splits: Splits, made: Mapping[str, MadeSound], sounds: Path
) -> None:
    """Make the task's folder anew, its metadata last, and read it back."""
    shutil.rmtree(folder, ignore_errors=True)
    names = task_names({file: sound.suffix for file, sound in made.items()})
    for split, clips in splits.clips.items():
        for rate in plan.sound.rates:
            target = folder / str(rate) / split
            target.mkdir(parents=True)
            for clip in clips:
                path = _sound_path(sounds, rate, clip.file, made[clip.file])
                link_or_copy(path, target / names[clip.file])
        write_json(folder / f"{split}.json", {names[c.file]: c.annotation for c in clips})
    table = io.StringIO()
    labels = AXES if plan.recordings.kind == "localisation" else plan.recordings.labels
    csv.writer(table, lineterminator="\n").writerows([("idx", "label"), *enumerate(labels)])
    write_text(folder / VOCABULARY, table.getvalue())
    write_json(folder / METADATA, _metadata(plan, splits, made))
    task = read_task(folder)
    for split in task.splits:
        task.annotations(split)
    if absent := [path for rate in plan.sound.rates for path in task.missing(rate)]:
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


def _metadata(plan: TaskPlan, splits: Splits, made: Mapping[str, MadeSound]) -> dict[str, Any]:
    recordings, options = plan.recordings, plan.options
    lengths = {sound.samples for sound in made.values()}
    metadata: dict[str, Any] = {
        "task_name": options.name,
        "version": options.version,
        "mode": "full",
        "embedding_type": "event" if recordings.kind == "event" else "scene",
        "prediction_type": recordings.prediction_type,
        "sample_duration": lengths.pop() / plan.sound.rates[0] if len(lengths) == 1 else None,
        "split_mode": splits.mode,
        "evaluation": list(plan.metrics),
        "splits": list(splits.clips),
    }
    if splits.mode.endswith("kfold"):
        metadata["nfolds"] = len(splits.clips)
    if recordings.kind == "event":
        metadata["evaluation_params"] = {"event_postprocessing_grid": EVENT_POSTPROCESSING}
    metadata[MADE] = {
        "by": f"gram-hear {version('gram-hear')}",
        "source": recordings.source.resolve().name,
        **{key: value for key, value in asdict(options.splits).items() if value is not None},
        "notes": list(splits.notes),  # those that a later run, which decodes nothing, cannot find
        "fingerprint": plan.fingerprint,
    }
    return metadata


def _move_in(work: Path, folder: Path) -> None:
    """Put the task in its place; what is there already goes aside first."""
    shutil.rmtree(work / REPLACED, ignore_errors=True)
    if folder.exists():
        os.rename(folder, work / REPLACED)
    os.rename(work / TASK, folder)
