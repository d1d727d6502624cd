"""HEAR tasks in real-world scenes: each clip in a room of its own, and where its source stands.

Of a task directory come two: ``<task>-<format>``, with the same labels, splits and folds, every
clip reverberant, noisy and spatial; and ``<task>-<format>-localization``, the same audio with unit
vectors to the sources as labels. ``manifest.jsonl`` says of each clip what it was made of, so that
it can be made again, bit for bit (:func:`gram_hear.scenes.recipes.rerender`).

Everything of a clip is drawn from the seed, the task's name, the split and the file's name: not
from other clips, their order, or the number of processes. A binaural and an Ambisonic version of a
task show the same scenes.
"""

import contextlib
import dataclasses
import hashlib
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gram_hear.audio.wav import write_wav
from gram_hear.errors import OptionError, TaskError, some
from gram_hear.foreign import parse_json
from gram_hear.jobs.callback import Progress, silent
from gram_hear.jobs.job import Job, Record, run_parts
from gram_hear.jobs.writing import (
    link_or_copy,
    write_json,
    write_json_lines,
    write_text,
    write_whole,
    writing,
)
from gram_hear.scenes.heads import load_head
from gram_hear.scenes.recipes import (
    SceneSettings,
    clip_seed,
    draw_recipe,
    follow,
    open_noise_set,
    open_rir_set,
)
from gram_hear.tasks import METADATA, NATURAL, VOCABULARY, Task, read_json

MANIFEST = "manifest.jsonl"
JOURNAL = "manifest.partial.jsonl"  # of a task that gram-hear 0.1.0 did not finish
LOCALISATION = "localization"  # as the benchmark's fork spells it
DIRECTION_METRICS = (
    *("DOA", "MAE", "DOE"),
    *("3d_source_local", "3d_source_local_x", "3d_source_local_y", "3d_source_local_z"),
)
DEFAULT = SceneSettings()


@dataclass(frozen=True)
class Naturalised:
    """What came of a task."""

    folder: Path  # the task in scenes
    localisation: Path | None  # None where nothing says where the sources are
    clips: int
    silent: int  # clips, which get no noise


def obstacle(task: Task) -> str | None:
    """Return why a task's clips cannot be put into scenes; None where they can."""
    if NATURAL in task.metadata:
        return f"The clips of {task.name} stand in scenes already; give the dry task."
    if task.kind == "localisation":
        return f"{task.name} is a localisation task; in other scenes its directions are untrue."
    return None


def naturalise_task(
    task: Task,
    output: Path,
    settings: SceneSettings = DEFAULT,
    *,
    jobs: int = 1,
    check_head: bool = True,
    progress: Progress | None = None,
) -> Naturalised:
    """Put every clip of a task into a scene, and write the task and its localisation task.

    A clip's first channel is brought to -14 dBFS, convolved and mixed with noise as in the
    published training (:func:`gram_hear.scenes.mixing.mix`). The sound is advanced by the whole
    samples that it takes from the source to the listener, so that the times of events stay true.
    Where its peak exceeds 1, one gain over all channels brings it below. Silent clips get no noise.

    What is done is not done again: a finished task is left as it is, a run that was broken off goes
    on, and several runs may make one task together. The metadata is written last: before, the
    folder is no task.

    Args:
        task: a HEAR task, of scenes or events, with audio.
        output: the folder that both tasks are made in.
        settings: format, rate, rooms and noise.
        jobs: processes that work side by side; the clips do not depend on their number.
        check_head: as ``check`` of :func:`gram_hear.scenes.heads.load_head`.
        progress: called with the numbers of clips that are done, and of all.

    Raises:
        TaskError: for a task that is broken, lacks audio, or cannot be put into scenes; for clips
            that failed, when all others are done; where the output cannot be written.
        OptionError: for options out of range, or a folder that other options were used for.
        SceneError: for a head or a set that cannot be read.
    """
    if jobs < 1:
        raise OptionError(f"jobs is {jobs}; it must be at least 1.")
    _check_task(task)
    settings = _settle(task, settings)
    made_of = _made_of(task, settings)
    job = Job(output / f"{task.name}-{settings.format}", made_of)
    localisation = Job(localisation_folder(job.output), made_of)
    clips = _list_clips(task, job.output, settings)
    finished = partial(_finished, job.output)
    progress = progress or silent
    with writing(job.output, TaskError):
        for each in (job, localisation):  # what is in the way shows before any work
            _refuse_unfinished(each.output)
            each.check(finished=partial(_finished, each.output))
        if finished() is None:
            _open_all(settings, check_head)
        if job.begin(force=None, finished=finished):
            _build(task, settings, job, clips, jobs, progress)
        progress(len(clips), len(clips))
        silent_clips = sum(entry["silent"] for entry in read_manifest(job.output))
        directions = _directions(task, job.output)
        if directions is not None:
            _localise(task, job.output, localisation, directions)
    made = None if directions is None else localisation.output
    return Naturalised(job.output, made, len(clips), silent_clips)


def read_manifest(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what each clip of a task in scenes was made of, in the order of the splits.

    Raises:
        TaskError: where there is no whole manifest.
    """
    path = folder / MANIFEST
    try:
        with open(path, "rb") as file:
            for line in file:
                yield _entry(line, path)
    except OSError as error:
        raise TaskError(f"{path} cannot be read ({error}); make the task anew.") from error


def _entry(line: bytes, path: Path) -> dict[str, Any]:
    """Parse a line of a manifest, and check the keys that are used here."""
    entry = parse_json(line, str(path), TaskError)
    kinds = {"split": str, "file": str, "channels": int, "samples": int, "silent": bool}
    kinds["scene"] = dict
    if not isinstance(entry, dict) or not all(
        isinstance(entry.get(key), kind) for key, kind in kinds.items()
    ):
        raise TaskError(f"{path} holds a line that describes no clip; make the task anew.")
    return entry


# --- what is asked for ----------------------------------------------------------------------


@dataclass(frozen=True)
class _TaskClip:
    """A clip of a task that is to be put into a scene."""

    settings: SceneSettings
    split: str
    file: str  # what the task calls it there
    source: Path
    source_rate: int  # Hz that the source must have
    target: Path
    seed: tuple[int, ...]  # what everything of it is drawn from

    @property
    def name(self) -> str:
        """split/file, as the task in scenes has it."""
        return f"{self.split}/{self.target.name}"


def _check_task(task: Task) -> None:
    if why := obstacle(task):
        raise TaskError(why)
    if not task.source_rates():
        raise TaskError(
            f"{task.folder} has no audio: it belongs into folders named by sample rate, as 48000."
        )
    for split in task.splits:
        task.annotations(split)


def _settle(task: Task, settings: SceneSettings) -> SceneSettings:
    """Return settings with a rate, and with paths that hold wherever they are read from."""
    head = Path(settings.head)
    return dataclasses.replace(
        settings,
        rate=settings.rate or max(task.source_rates()),
        rirs=settings.rirs and settings.rirs.resolve(),
        noise=settings.noise and settings.noise.resolve(),
        head=str(head.resolve()) if head.is_file() else settings.head,
    )


def _list_clips(task: Task, folder: Path, settings: SceneSettings) -> list[_TaskClip]:
    """Return all clips of a task, from their sound at this rate, or else at the highest one."""
    rates = task.source_rates()
    source_rate = settings.rate if settings.rate in rates else max(rates)
    if missing := task.missing(source_rate):
        names = some([f"{path.parent.name}/{path.name}" for path in missing])
        raise TaskError(
            f"{task.name} lacks {len(missing)} audio files of {source_rate} Hz: {names}. "
            f"They belong into {task.folder / str(source_rate)}."
        )
    name = task.metadata.get("task_name", task.name)
    return [
        _TaskClip(
            settings=settings,
            split=split,
            file=file,
            source=task.audio(split, file, source_rate).resolve(),
            source_rate=source_rate,
            target=folder / str(settings.rate) / split / target,
            seed=clip_seed(settings.seed, name, split, file),
        )
        for split in task.splits
        for file, target in _wav_names(task, split).items()
    ]


def _wav_names(task: Task, split: str) -> dict[str, str]:
    """Return what the files of a split are called where they are WAV: ``a.flac.wav`` for others."""
    files = task.raw_annotations(split)
    names = {file: file if file.lower().endswith(".wav") else f"{file}.wav" for file in files}
    if twice := [file for file, name in names.items() if name != file and name in files]:
        raise TaskError(
            f"{task.name}: {twice[0]} of {split} would become {names[twice[0]]}, which is another "
            "file; rename one of them."
        )
    return names


def _made_of(task: Task, settings: SceneSettings) -> dict[str, Any]:
    """Return what a task in scenes depends on, which its metadata states."""
    digest = hashlib.sha256()
    for name in (METADATA, VOCABULARY, *(f"{split}.json" for split in task.splits)):
        digest.update(name.encode() + b"\0" + (task.folder / name).read_bytes() + b"\0")
    binaural = settings.layout == "binaural"
    return {
        "source": task.name,
        "source_sha256": digest.hexdigest(),
        "format": settings.format,
        "convention": None if binaural else "ambix",
        "rate": settings.rate,
        "seed": settings.seed,
        "snr": list(settings.snr),
        "rirs": settings.rirs and str(settings.rirs),
        "noise": settings.noise and str(settings.noise),
        "head": settings.head if binaural and settings.rirs is None else None,
    }


def _open_all(settings: SceneSettings, check_head: bool) -> None:
    """Open the head and the sets, so that what is wrong with them shows before any work."""
    assert settings.rate is not None
    open_noise_set(settings.noise and str(settings.noise), settings.rate)
    if settings.rirs is not None:
        rirs, _ = open_rir_set(str(settings.rirs), settings.layout, settings.rate)
        if not rirs.splits:
            warnings.warn(
                f"{settings.rirs} does not say which rooms are for tests: all of its {len(rirs)} "
                "scenes are drawn from.",
                stacklevel=3,
            )
    elif settings.layout == "binaural":
        load_head(settings.head, settings.rate, check=check_head)


# --- making ---------------------------------------------------------------------------------


def _finished(folder: Path) -> Any:
    """Return what a finished task says that it was made of; None where it is not finished."""
    if not (folder / METADATA).is_file():
        return None
    found = read_json(folder / METADATA)
    return found.get(NATURAL, {}) if isinstance(found, dict) else {}


def _refuse_unfinished(folder: Path) -> None:
    """Raise an OptionError for a task that gram-hear 0.1.0 began."""
    if (folder / JOURNAL).is_file() and _finished(folder) is None:
        raise OptionError(
            f"{folder} was begun by gram-hear 0.1.0, and this version does not go on with it; "
            "delete it, or choose another output."
        )


def _build(
    task: Task,
    settings: SceneSettings,
    job: Job,
    clips: Sequence[_TaskClip],
    jobs: int,
    progress: Progress,
) -> None:
    """Make the clips that are left to make, and finish the task."""
    folder = job.output
    for split in task.splits:
        (folder / str(settings.rate) / split).mkdir(parents=True, exist_ok=True)
    if failed := _make_clips(clips, job, jobs, progress):
        raise TaskError(
            f"{len(failed)} of {len(clips)} clips of {task.name} failed: {some(failed, '; ')}. "
            "The others are kept; repair these and run again."
        )
    with job.finishing():
        if job.is_finished(partial(_finished, folder)):  # by another run
            return
        if lost := job.missing(clip.name for clip in clips):
            raise TaskError(job.describe_lost(lost))
        write_json_lines(folder / MANIFEST, (job.record(clip.name) for clip in clips))
        _copy_splits(task, folder)
        write_whole(folder / VOCABULARY, partial(shutil.copyfile, task.folder / VOCABULARY))
        _finish(job, task.metadata)


def _make_clips(clips: Sequence[_TaskClip], job: Job, jobs: int, progress: Progress) -> list[str]:
    """Make the clips that are not done; return the errors of those that failed."""
    named = {clip.name: clip for clip in clips}
    due = {name: named[name] for name in job.missing(named)}
    done = len(clips) - len(due)
    failed = []
    progress(done, len(clips))
    with contextlib.closing(run_parts(job, due, _make, jobs)) as outcomes:
        for outcome in outcomes:
            for message in outcome.warnings:
                warnings.warn(message, stacklevel=2)
            if outcome.error is not None:
                clip = named[outcome.part]
                failed.append(f"{clip.split}/{clip.file}: {outcome.error}")
            done += 1
            progress(done, len(clips))
    return failed


def _make(clip: _TaskClip) -> tuple[Record, list[Path]]:
    """Make a clip and write it; return its entry of the manifest, and its file."""
    assert clip.settings.rate is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say of the sets was said before
        _open_all(clip.settings, check_head=False)
    recipe = draw_recipe(
        clip.settings, clip.settings.rate, clip.seed, clip.source, clip.source_rate
    )
    sound, facts = follow(recipe)
    write_wav(clip.target, sound, clip.settings.rate)
    return {"split": clip.split, "file": clip.target.name, **facts}, [clip.target]


def _finish(job: Job, metadata: Mapping[str, Any]) -> None:
    """Write the metadata, with which a folder becomes a task and says what it was made of."""
    signed = {**job.made_of, "gram_hear": version("gram-hear"), "manifest": MANIFEST}
    write_json(job.output / METADATA, {**metadata, NATURAL: signed}, indent=4)
    job.close()


def _copy_splits(task: Task, folder: Path) -> None:
    """Write the split files: as they are, unless files are called otherwise."""
    for split in task.splits:
        path = task.folder / f"{split}.json"
        names = _wav_names(task, split)
        if all(file == name for file, name in names.items()):
            write_whole(folder / path.name, partial(shutil.copyfile, path))
        else:
            raw = task.raw_annotations(split)
            write_json(folder / path.name, {names[file]: raw[file] for file in raw}, indent=4)


# --- localisation ---------------------------------------------------------------------------


def localisation_folder(folder: Path) -> Path:
    """Return where the localisation task of a task in scenes is."""
    return folder.with_name(f"{folder.name}-{LOCALISATION}")


def _directions(task: Task, folder: Path) -> dict[str, dict[str, list[float]]] | None:
    """Return split -> file -> unit vector to the source, or None, with a warning that says why.

    Silent clips are left out: nothing in them says where they are.
    """
    directions: dict[str, dict[str, list[float]]] = {split: {} for split in task.splits}
    for entry in read_manifest(folder):
        if entry["silent"]:
            continue
        if "direction" not in entry["scene"]:
            warnings.warn(
                f"{entry['rirs']} does not say where the source of {entry['rir']} is: "
                f"there is no localisation task of {task.name}.",
                stacklevel=3,
            )
            return None
        directions[entry["split"]][entry["file"]] = entry["scene"]["direction"]
    if empty := [split for split, files in directions.items() if not files]:
        warnings.warn(
            f"All clips of {', '.join(empty)} are silent: there is no localisation task of "
            f"{task.name}.",
            stacklevel=3,
        )
        return None
    return directions


def _localise(
    task: Task, folder: Path, job: Job, directions: Mapping[str, Mapping[str, list[float]]]
) -> None:
    """Make the localisation task of a task in scenes, whose audio it shares."""
    finished = partial(_finished, job.output)
    if not job.begin(force=None, finished=finished):
        return
    with job.finishing():
        if job.is_finished(finished):  # by another run
            return
        for split, files in directions.items():
            audio = Path(str(job.made_of["rate"]), split)
            (job.output / audio).mkdir(parents=True, exist_ok=True)
            for file in files:
                _share(folder / audio / file, job.output / audio / file)
            write_json(job.output / f"{split}.json", files, indent=4)
        write_text(job.output / VOCABULARY, "idx,label\n0,x\n1,y\n2,z\n")
        _share(folder / MANIFEST, job.output / MANIFEST)
        _finish(job, _localisation_metadata(task))


def _share(source: Path, target: Path) -> None:
    """Let a file be in both tasks; one that is there was left by a run that was killed."""
    if not (target.exists() and target.samefile(source)):
        write_whole(target, partial(link_or_copy, source))


def _localisation_metadata(task: Task) -> dict[str, Any]:
    """Return the metadata of a task with the labels and scores of localisation in it."""
    labels = ("evaluation_params", "use_scoring_for_early_stopping")
    kept = {key: value for key, value in task.metadata.items() if key not in labels}
    return kept | {
        "task_name": f"{task.metadata.get('task_name', task.name)}-{LOCALISATION}",
        "embedding_type": "scene",
        "prediction_type": "multilabel",
        "evaluation": list(DIRECTION_METRICS),
    }
