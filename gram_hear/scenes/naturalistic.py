"""HEAR tasks in real-world scenes: each clip in a room of its own, and where its source stands.

Of a task directory come two: ``<task>-<format>``, with the same labels, splits and folds, every
clip reverberant, noisy and spatial; and ``<task>-<format>-localization``, the same audio with unit
vectors to the sources as labels. ``manifest.jsonl`` says of each clip what it was made of, so that
it can be made again, bit for bit (:func:`rerender`).

Everything of a clip is drawn from the seed, the task's name, the split and the file's name: not
from other clips, their order, or the number of processes. A binaural and an Ambisonic version of a
task show the same scenes.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gram_hear.audio.wav import write_wav
from gram_hear.errors import GramError, OptionError, TaskError, reason_of
from gram_hear.foreign import parse_json
from gram_hear.jobs.progress import Progress, silent
from gram_hear.jobs.workers import work
from gram_hear.jobs.writing import hold, write_whole
from gram_hear.scenes.heads import load_head
from gram_hear.scenes.recipes import (
    Settings,
    clip_seed,
    draw_recipe,
    follow,
    open_noise_set,
    open_rir_set,
    rerender,
)
from gram_hear.tasks import METADATA, NATURAL, VOCABULARY, Task, read_json

__all__ = ["Naturalised", "Settings", "naturalise_task", "obstacle", "read_manifest", "rerender"]

MANIFEST, JOURNAL = "manifest.jsonl", "manifest.partial.jsonl"
LOCALISATION = "localization"  # as the benchmark's fork spells it
DIRECTION_METRICS = (
    *("DOA", "MAE", "DOE"),
    *("3d_source_local", "3d_source_local_x", "3d_source_local_y", "3d_source_local_z"),
)
DEFAULT = Settings()
DELETE = "delete it, or choose another folder"


@dataclass(frozen=True)
class Naturalised:
    """What came of a task.

    Attributes:
        folder: the task in scenes.
        localisation: the localisation task; None where nothing says where the sources are.
        clips: their number.
        silent: how many of them are silent, and stay so.
    """

    folder: Path
    localisation: Path | None
    clips: int
    silent: int


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
    settings: Settings = DEFAULT,
    *,
    jobs: int = 1,
    check_head: bool = True,
    progress: Progress | None = None,
) -> Naturalised:
    """Put every clip of a task into a scene, and write the task and its localisation task.

    A clip's first channel is brought to -14 dBFS, convolved and mixed with noise as in the
    published training (:func:`gram_hear.scenes.mixing.mix`). The sound is advanced by the whole
    samples that it takes from the source to the listener, so that the times of events stay true.
    Where its peak exceeds 1, one gain over all channels brings it below. A silent clip stays so.

    What is done already is not done again: a finished task is left as it is, and a run that was
    broken off goes on. The metadata is written last: before, the folder is no task.

    Args:
        task: a HEAR task, of scenes or events, with audio.
        output: the folder that both tasks are made in.
        settings: how.
        jobs: processes that work side by side; the clips do not depend on their number.
        check_head: refuse a SOFA file whose ears contradict its directions, and the like, as
            ``check`` of :func:`gram_hear.scenes.heads.load_head`.
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
    folder = output / f"{task.name}-{settings.format}"
    clips = _list_clips(task, folder, settings)
    made_of = _made_of(task, settings)
    with _writing(folder):
        _is_done(localisation_folder(folder), made_of)  # what is in the way shows before any work
        if not _is_done(folder, made_of):
            _open_all(settings, check_head)
            folder.mkdir(parents=True, exist_ok=True)
            _build(task, settings, folder, clips, made_of, jobs, progress)
        if progress is not None:
            progress(len(clips), len(clips))
        silent = sum(entry["silent"] for entry in read_manifest(folder))
        localisation = _localise(task, folder, made_of)
    return Naturalised(folder, localisation, len(clips), silent)


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
    """Return what a line says of a clip, as far as it is used here checked."""
    entry = parse_json(line, str(path), TaskError)
    kinds = {"split": str, "file": str, "channels": int, "samples": int, "silent": bool}
    kinds["scene"] = dict
    if not isinstance(entry, dict) or not all(
        isinstance(entry.get(key), kind) for key, kind in kinds.items()
    ):
        raise TaskError(f"{path} holds a line that describes no clip; make the task anew.")
    return entry


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that says how to go on."""
    try:
        yield
    except OSError as error:
        raise TaskError(
            f"{folder} could not be written: {reason_of(error)}. What is finished is kept; "
            "run the same command again to go on."
        ) from error


# --- what is asked for ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Clip:
    """A clip that is to be made.

    Attributes:
        settings: with what.
        split, file: where the task has it; ``source``, ``source_rate``: its sound.
        target: the file that it goes to.
        seed: what everything of it is drawn from.
    """

    settings: Settings
    split: str
    file: str
    source: Path
    source_rate: int
    target: Path
    seed: tuple[int, ...]


def _check_task(task: Task) -> None:
    if why := obstacle(task):
        raise TaskError(why)
    if not task.source_rates():
        raise TaskError(
            f"{task.folder} has no audio: it belongs into folders named by sample rate, as 48000."
        )
    for split in task.splits:
        task.annotations(split)


def _settle(task: Task, settings: Settings) -> Settings:
    """Return settings with a rate, and with paths that hold wherever they are read from."""
    head = Path(settings.head)
    return dataclasses.replace(
        settings,
        rate=settings.rate or max(task.source_rates()),
        rirs=settings.rirs and settings.rirs.resolve(),
        noise=settings.noise and settings.noise.resolve(),
        head=str(head.resolve()) if head.is_file() else settings.head,
    )


def _list_clips(task: Task, folder: Path, settings: Settings) -> list[_Clip]:
    """Return all clips of a task, from their sound at this rate, or else at the highest one."""
    rates = task.source_rates()
    source_rate = settings.rate if settings.rate in rates else max(rates)
    if missing := task.missing(source_rate):
        names = ", ".join(f"{path.parent.name}/{path.name}" for path in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise TaskError(
            f"{task.name} lacks {len(missing)} audio files of {source_rate} Hz: {names}{more}. "
            f"They belong into {task.folder / str(source_rate)}."
        )
    name = task.metadata.get("task_name", task.name)
    return [
        _Clip(
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
    """Return what the files of a split are called where they are WAV: ``a.flac.wav`` for others.

    Raises:
        TaskError: where two files would have one name.
    """
    files = task.raw_annotations(split)
    names = {file: file if file.lower().endswith(".wav") else f"{file}.wav" for file in files}
    if twice := [file for file, name in names.items() if name != file and name in files]:
        raise TaskError(
            f"{task.name}: {twice[0]} of {split} would become {names[twice[0]]}, which is another "
            "file; rename one of them."
        )
    return names


def _made_of(task: Task, settings: Settings) -> dict[str, Any]:
    """Return what a task in scenes is told apart by, and says of itself."""
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


def _open_all(settings: Settings, check_head: bool) -> None:
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


def _is_done(folder: Path, made_of: Mapping[str, Any]) -> bool:
    """Whether a folder is finished, of just this.

    Raises:
        OptionError: where it holds something else.
    """
    metadata = folder / METADATA
    if metadata.is_file():
        found = read_json(metadata)
        _compare(folder, found.get(NATURAL) if isinstance(found, dict) else None, made_of)
        return True
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{folder} is a file; it must be a folder.")
    begun = (folder / JOURNAL).is_file() or not folder.exists()
    if not begun and any(folder.iterdir()):
        raise OptionError(f"{folder} holds files of something else; {DELETE}.")
    return False


def _compare(folder: Path, found: Any, made_of: Mapping[str, Any]) -> None:
    """Raise an OptionError where a folder was made, or begun, of something else."""
    if not isinstance(found, dict):
        raise OptionError(f"{folder} does not say what it was made of; {DELETE}.")
    for key, value in made_of.items():
        if found.get(key) != value:
            raise OptionError(
                f"{folder} was made with other options: {key} is {found.get(key)!r} there, and "
                f"{value!r} now; {DELETE}."
            )


@dataclass(frozen=True)
class _Outcome:
    """What became of a clip: its entry in the manifest, or why there is none; and warnings."""

    clip: _Clip
    entry: dict[str, Any] | None
    error: str | None
    warnings: tuple[str, ...]


def _make(clip: _Clip) -> _Outcome:
    """Make a clip and write it; a sound that cannot be read stops no other clip.

    Raises:
        TaskError: where it cannot be written.
    """
    assert clip.settings.rate is not None
    entry = error = None
    with warnings.catch_warnings(record=True) as caught:
        try:
            recipe = draw_recipe(
                clip.settings, clip.settings.rate, clip.seed, clip.source, clip.source_rate
            )
            sound, facts = follow(recipe)
        except GramError as failure:
            error = f"{clip.split}/{clip.file}: {failure}"
        else:
            entry = {"split": clip.split, "file": clip.target.name, **facts}
            with _writing(clip.target):
                write_wav(clip.target, sound, clip.settings.rate)
    return _Outcome(clip, entry, error, tuple(str(each.message) for each in caught))


def _build(
    task: Task,
    settings: Settings,
    folder: Path,
    clips: Sequence[_Clip],
    made_of: Mapping[str, Any],
    jobs: int,
    progress: Progress | None,
) -> None:
    """Make the clips that are left to make, and finish the task."""
    with _Journal(folder, made_of) as journal:
        if _is_done(folder, made_of):  # by another run, in the meantime
            (folder / JOURNAL).unlink(missing_ok=True)
            return
        for split in task.splits:
            (folder / str(settings.rate) / split).mkdir(parents=True, exist_ok=True)
        failed = _make_clips(clips, journal, jobs, progress or silent)
        if failed:
            more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
            raise TaskError(
                f"{len(failed)} of {len(clips)} clips of {task.name} failed: "
                f"{'; '.join(failed[:3])}{more}. The others are kept; repair these and run again."
            )
        lines = [journal.lines[clip.split, clip.target.name] for clip in clips]
        write_whole(folder / MANIFEST, lambda place: place.write_bytes(b"".join(lines)))
        _copy_splits(task, folder)
        write_whole(folder / VOCABULARY, partial(shutil.copyfile, task.folder / VOCABULARY))
        for leftover in folder.glob(f"{settings.rate}/*/.*.partial"):
            leftover.unlink(missing_ok=True)
        _finish(folder, task.metadata, made_of)


def _make_clips(
    clips: Sequence[_Clip],
    journal: "_Journal",
    jobs: int,
    progress: Progress,
) -> list[str]:
    """Make the clips that the journal does not have; return the errors of those that failed."""
    due = [clip for clip in clips if not journal.has(clip)]
    done = len(clips) - len(due)
    failed = []
    progress(done, len(clips))
    with contextlib.closing(work(_make, due, min(jobs, max(1, len(due))))) as outcomes:
        for outcome in outcomes:
            for message in outcome.warnings:
                warnings.warn(message, stacklevel=2)
            if outcome.entry is None:
                failed.append(str(outcome.error))
            else:
                journal.add(outcome.entry)
            done += 1
            progress(done, len(clips))
    return failed


class _Journal:
    """The clips of a task that are made, line by line as they come; it outlives a kill.

    The first line says of what, so that nothing else goes on in the same folder.

    Attributes:
        lines: split and file -> the line of the manifest; ``sizes`` -> least bytes of the file.
    """

    def __init__(self, folder: Path, made_of: Mapping[str, Any]) -> None:
        self.lines: dict[tuple[str, str], bytes] = {}
        self.sizes: dict[tuple[str, str], int] = {}
        self._file = open(folder / JOURNAL, "a+b")  # noqa: SIM115
        try:
            if not hold(self._file):
                raise TaskError(f"Another run is making {folder}; wait for it.")
            self._read(folder, made_of)
        except BaseException:
            self._file.close()
            raise

    def _read(self, folder: Path, made_of: Mapping[str, Any]) -> None:
        """Take over what an earlier run noted, up to a line that was cut short."""
        self._file.seek(0)
        whole = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            if whole == 0:
                _compare(folder, parse_json(line, str(folder / JOURNAL), TaskError), made_of)
            else:
                self._take(_entry(line, folder / JOURNAL), line)
            whole += len(line)
        self._file.truncate(whole)
        if whole == 0:
            self._append(made_of)

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def has(self, clip: _Clip) -> bool:
        """Whether a clip is made, and its file is there and whole."""
        size = self.sizes.get((clip.split, clip.target.name))
        return size is not None and clip.target.is_file() and clip.target.stat().st_size > size

    def add(self, entry: Mapping[str, Any]) -> None:
        """Note that a clip is made."""
        self._take(entry, self._append(entry))

    def _take(self, entry: Mapping[str, Any], line: bytes) -> None:
        key = entry["split"], entry["file"]
        self.lines[key] = line
        self.sizes[key] = 4 * entry["channels"] * entry["samples"]

    def _append(self, content: Mapping[str, Any]) -> bytes:
        line = json.dumps(content, allow_nan=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        return line


def _finish(folder: Path, metadata: Mapping[str, Any], made_of: Mapping[str, Any]) -> None:
    """Write the metadata, with which a folder becomes a task, and what it was made of in it."""
    signed = {**made_of, "gram_hear": version("gram-hear"), "manifest": MANIFEST}
    _write_json(folder / METADATA, {**metadata, NATURAL: signed})
    (folder / JOURNAL).unlink(missing_ok=True)


def _copy_splits(task: Task, folder: Path) -> None:
    """Write the split files: as they are, unless files are called otherwise."""
    for split in task.splits:
        path = task.folder / f"{split}.json"
        names = _wav_names(task, split)
        if all(file == name for file, name in names.items()):
            write_whole(folder / path.name, partial(shutil.copyfile, path))
        else:
            raw = task.raw_annotations(split)
            _write_json(folder / path.name, {names[file]: raw[file] for file in raw})


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))


# --- localisation ---------------------------------------------------------------------------


def localisation_folder(folder: Path) -> Path:
    """Return where the localisation task of a task in scenes is."""
    return folder.with_name(f"{folder.name}-{LOCALISATION}")


def _localise(task: Task, folder: Path, made_of: Mapping[str, Any]) -> Path | None:
    """Make the localisation task of a task in scenes, with the same audio, where it can be made.

    Silent clips are left out: nothing in them says where they are.
    """
    out = localisation_folder(folder)
    if _is_done(out, made_of):
        return out
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
    out.mkdir(exist_ok=True)
    _write_localisation(task, folder, out, directions, made_of)
    return out


def _write_localisation(
    task: Task,
    folder: Path,
    out: Path,
    directions: Mapping[str, Mapping[str, list[float]]],
    made_of: Mapping[str, Any],
) -> None:
    """Write a localisation task beside the task whose clips it shares."""
    _write_json(out / JOURNAL, made_of)  # says whose the folder is until it is finished
    for split, files in directions.items():
        place = f"{made_of['rate']}/{split}"
        (out / place).mkdir(parents=True, exist_ok=True)
        for file in files:
            _share(folder / place / file, out / place / file)
        _write_json(out / f"{split}.json", files)
    rows = "idx,label\n0,x\n1,y\n2,z\n"
    write_whole(out / VOCABULARY, lambda place: place.write_text(rows, encoding="utf-8"))
    _share(folder / MANIFEST, out / MANIFEST)
    _finish(out, _localisation_metadata(task), made_of)


def _localisation_metadata(task: Task) -> dict[str, Any]:
    """Return a task's metadata, with what its labels and scores are replaced."""
    labels = ("evaluation_params", "use_scoring_for_early_stopping")
    kept = {key: value for key, value in task.metadata.items() if key not in labels}
    return kept | {
        "task_name": f"{task.metadata.get('task_name', task.name)}-{LOCALISATION}",
        "embedding_type": "scene",
        "prediction_type": "multilabel",
        "evaluation": list(DIRECTION_METRICS),
    }


def _share(source: Path, target: Path) -> None:
    """Give a file a second name, or, where the file system cannot, a copy."""
    if target.exists() and os.path.samefile(source, target):
        return

    def link(place: Path) -> None:
        try:
            os.link(source, place)
        except OSError:
            shutil.copyfile(source, place)

    write_whole(target, link)
