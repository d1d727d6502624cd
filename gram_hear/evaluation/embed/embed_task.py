"""The embedding of a HEAR task: in parts, so that runs can be broken off, and share one task.

A split's clips are cut into parts of 60 s of sound. What a part gives is kept in the folder of the
job's state (:mod:`gram_hear.jobs.job`) until the split is whole. Only then do its embeddings get
their name. ``embeddings-done.json`` comes last.
"""

import hashlib
import json
import pickle
import platform
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from gram_hear.errors import AudioError, ModuleError, TaskError, reason_of, short
from gram_hear.evaluation.embed.embeddings import (
    DONE,
    EMPTY,
    EMPTY_FILES,
    NEIGHBOURS_DONE,
    PREDICTED,
    PROGRESS,
    begun_of,
    difference_of,
    event_labels,
    in_words,
    shown,
)
from gram_hear.evaluation.embed.hear_module import HearModule, is_out_of_memory
from gram_hear.evaluation.embed.task_audio import SILENCE, ClipFile, TaskAudio
from gram_hear.jobs.callback import Progress, silent
from gram_hear.jobs.interrupts import interrupts_held, result_of, submit
from gram_hear.jobs.job import Job, JobGone, claimed
from gram_hear.jobs.locks import OLD_LOCK, locked
from gram_hear.jobs.writing import write_json, write_whole
from gram_hear.tasks import METADATA, VOCABULARY, Task, empty_in_words, read_json

BATCH_SECONDS = 60.0  # of sound, all channels counted, in a part, and in the first batches
READERS = 2  # threads that decode ahead
TOLERANCE = 0.001  # seconds by which a clip may differ from sample_duration
TO_DELETE = "delete it, or choose another folder of embeddings"

EmptyClips = Literal["error", "skip", "zero"]
Arrays = dict[str, np.ndarray]


def embed_task(
    task: Task,
    module: HearModule,
    folder: Path,
    *,
    progress: Progress | None = None,
    force: bool = False,
    empty_clips: EmptyClips = "error",
) -> Path:
    """Embed the clips of a task and write its embeddings to ``folder / task.name``.

    What is done already is not done again: a finished directory is left as it is, and a run that
    was broken off goes on where it was, to the same numbers. Several runs may embed one task at
    once: they share its parts. Batches are clips of one length, of 60 s together; where memory is
    short they are halved, and stay so.

    Audio is taken from the folder of the module's sample rate. A file that is not there is made
    from the highest other rate, once: it is kept beside the task.

    Args:
        task: a task directory with audio.
        module: what embeds.
        folder: of the embeddings of this module and model.
        progress: called with the numbers of files that are done, and of all.
        force: replace embeddings that something else made (another version of the module's code,
            of the model or of the task), and discard their scores.
        empty_clips: what becomes of clips without samples: ``"error"``; ``"skip"``, they are left
            out, of labels and scores too; ``"zero"``, a second of silence is embedded for each.

    Returns:
        The directory.

    Raises:
        TaskError: for a task that is broken or lacks audio, or a directory of other embeddings.
        OptionError: for embeddings to be replaced that another run is writing.
        AudioError: for a file that cannot be read, has another rate than its folder, or holds NaN,
            or no samples where ``empty_clips`` is ``"error"``.
        ModuleError: for a module that breaks the API, or a clip too long for the memory.
    """
    out = folder / task.name
    if out.resolve() == task.folder.resolve():
        raise TaskError(f"{out} is the task itself; choose another folder for the embeddings.")
    identity = _identity(task, module, empty_clips)
    if is_embedded(task, module, folder, force, empty_clips):
        Job(out, identity).remove_rest()
        return out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TaskError(f"{out} cannot be made: {reason_of(error)}.") from error
    try:
        if force and _difference(out, identity):
            _discard(out)
        while not _is_done(out, task, identity):
            with suppress(JobGone):  # another run finished it, or began it anew
                _TaskRun(task, module, out, identity, progress or silent).run()
    except OSError as error:  # sounds and modules have errors of their own
        raise TaskError(
            f"{out} cannot be written: {reason_of(error)}. What is done is kept; run again."
        ) from error
    return out


def is_embedded(
    task: Task,
    module: HearModule,
    folder: Path,
    force: bool = False,
    empty_clips: EmptyClips = "error",
) -> bool:
    """Whether a task's embeddings of this module and model are finished.

    Args:
        task, module, folder, force, empty_clips: as for :func:`embed_task`.

    Raises:
        TaskError: for a directory of other embeddings that ``force`` does not say to replace, or
            of unknown origin, or one that is incomplete.
    """
    out = folder / task.name
    identity = _identity(task, module, empty_clips)
    return not (force and _difference(out, identity)) and _is_done(out, task, identity)


def _identity(task: Task, module: HearModule, empty_clips: EmptyClips) -> dict[str, Any]:
    """Return what embeddings depend on, as their directory says it: module, model and task."""
    digest = hashlib.sha256()
    for path in _copied_files(task):
        digest.update(path.name.encode() + b"\0" + _read_bytes(path) + b"\0")
    scene = task.embedding_type == "scene"
    return {
        "module": module.name,
        "module_code": module.code,
        # A model file is told by what it holds, wherever it lies.
        "model": Path(module.model_path).name if module.model_digest else module.model_path,
        "model_sha256": module.weights,
        "options": json.loads(json.dumps(module.options, default=str)),
        "sample_rate": module.sample_rate,
        "embedding_size": module.scene_embedding_size if scene else module.timestamp_embedding_size,
        "task_sha256": digest.hexdigest(),
        EMPTY: empty_clips,
    }


def _copied_files(task: Task) -> list[Path]:
    """Return what a directory of embeddings has copies of."""
    names = [METADATA, VOCABULARY, *(f"{split}.json" for split in task.splits)]
    return [path for path in (task.folder / name for name in names) if path.is_file()]


def _is_done(out: Path, task: Task, identity: dict[str, Any]) -> bool:
    """Whether a directory is finished.

    Raises:
        TaskError: where it holds other embeddings, or some of unknown origin.
    """
    if _made_of(out) is None:
        if any(out.glob("*.embeddings.npy")):
            raise TaskError(
                f"{out} holds embeddings, but no {DONE} that would say what made them; {TO_DELETE}."
            )
        return False
    if difference := _difference(out, identity):
        raise TaskError(
            f"{out} holds other embeddings: {difference}. Use --force to embed again and discard "
            f"the scores, {TO_DELETE}."
        )
    if not (out / DONE).is_file():
        return False
    for split in task.splits:
        if not (whole := out / f"{split}.embeddings.npy").is_file():
            raise TaskError(f"{out} is marked as done, but {whole.name} is missing; {TO_DELETE}.")
    return True


def _made_of(out: Path) -> Any:
    """Return what a directory says that its embeddings are made of; None where it says nothing."""
    return read_json(out / DONE) if (out / DONE).is_file() else begun_of(out)


def _difference(out: Path, identity: dict[str, Any]) -> str:
    """Describe how a directory's embeddings differ from what is asked for.

    Return "" if they do not, or there are none.
    """
    found = _made_of(out)
    if found is None:
        return ""
    if not isinstance(found, dict):
        return f"what they are made of is given as {short(found)}"
    # Where nothing is said of empty clips, there were none.
    keys = [key for key in identity if key != EMPTY or found.get(EMPTY) is not None]
    if not (key := difference_of(found, identity, keys)):
        return ""
    have = "have" if key in ("model_sha256", "options") else "has"
    there, now = shown(found.get(key)), shown(identity[key])
    return f"{in_words(key, identity)} {have} changed since ({there} there, {now} now)"


def _discard(out: Path) -> None:
    """Delete a directory's embeddings, beginning with the markers that tie scores to them."""
    job = Job(out, {})
    with locked(out, TaskError), job.finishing():
        job.forget()
        for name in (PREDICTED, NEIGHBOURS_DONE):
            (out / name).unlink(missing_ok=True)
        for path in (*out.glob("*.embeddings.npy"), *out.glob("*.partial")):
            path.unlink()
        for name in (DONE, PROGRESS):  # last what says that there were embeddings of ours
            (out / name).unlink(missing_ok=True)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {reason_of(error)}.") from error


# --- a run ----------------------------------------------------------------------------------


@dataclass
class _TaskRun:
    """One run over a task.

    Attributes:
        job: the state that all runs over the task share, and that outlives a kill.
        budget: how many samples a batch may hold, all channels counted.
    """

    task: Task
    module: HearModule
    out: Path
    identity: dict[str, Any]
    progress: Progress
    job: Job = field(init=False)

    def __post_init__(self) -> None:
        self.has_events = self.task.embedding_type == "event"
        self.size: int = self.identity["embedding_size"]
        self.audio = TaskAudio(self.task, self.module.sample_rate)
        self.budget = round(BATCH_SECONDS * self.module.sample_rate)
        self.files_done = 0

    def run(self) -> None:
        """Embed what is left to do, and mark the directory as done.

        Raises:
            JobGone: where another run finished the task, or began it anew.
        """
        for split in self.task.splits:
            self.task.annotations(split)  # what is wrong shows before anything is computed
        clips = {split: self.audio.clip_files(split) for split in self.task.splits}
        empty = {split: [each.file for each in clips[split] if each.empty] for split in clips}
        names = [f"{split}/{file}" for split, files in empty.items() for file in files]
        if names:
            clips = self._without_empty(clips, empty, names)
        self._warn_of_lengths(
            [each for files in clips.values() for each in files if not each.empty]
        )
        self._begin(clips, names)
        for path in _copied_files(self.task):
            write_whole(self.out / path.name, partial(shutil.copyfile, path))
        if self.job.made_of[EMPTY] == "skip":
            for split in self.task.splits:
                self._write(f"{split}.json", self.task.raw_annotations(split))
        self.total = sum(map(len, clips.values()))
        self.progress(0, self.total)
        for split, files in clips.items():
            before = self.files_done
            self._embed_split(split, files)
            self._tell(before + len(files) - self.files_done)  # those of other runs too
        self._finish()

    def _without_empty(
        self, clips: dict[str, list[ClipFile]], empty: Mapping[str, list[str]], names: Sequence[str]
    ) -> dict[str, list[ClipFile]]:
        """Apply ``empty_clips`` to clips without samples; return the clips to embed."""
        said = f"{self.task.name}: {empty_in_words(names, sum(map(len, clips.values())))}"
        if self.identity[EMPTY] == "error":
            raise AudioError(
                f"{said} Nothing was embedded. --empty-clips skip leaves them out, --empty-clips "
                f"zero embeds {SILENCE:g} s of silence for each."
            )
        if self.identity[EMPTY] == "zero":
            warnings.warn(f"{said} {SILENCE:g} s of silence is embedded for each.", stacklevel=4)
            return clips
        warnings.warn(f"{said} They are left out.", stacklevel=4)
        self.task = self.task.without(empty)
        self.audio = TaskAudio(self.task, self.module.sample_rate)
        return {split: self.audio.clip_files(split) for split in self.task.splits}

    def _warn_of_lengths(self, clips: Sequence[ClipFile]) -> None:
        duration = self.task.sample_duration
        if duration is None:
            return
        rate = self.module.sample_rate
        others = [each for each in clips if abs(each.samples / rate - duration) > TOLERANCE]
        if others:
            warnings.warn(
                f"{self.task.name}: {len(others)} of {len(clips)} clips are not {duration:g} s "
                f"long, as sample_duration says ({others[0].file}: "
                f"{others[0].samples / rate:g} s). Each is embedded as it is.",
                stacklevel=4,
            )

    def _begin(self, clips: Mapping[str, Sequence[ClipFile]], empty: Sequence[str]) -> None:
        """Begin the job, or go on with what was begun of the same audio."""
        lengths = {
            split: [(each.file, each.samples, each.channels) for each in files]
            for split, files in clips.items()
        }
        made_of = {
            **self.identity,
            EMPTY: self.identity[EMPTY] if empty else None,
            **({EMPTY_FILES: list(empty)} if empty else {}),
            "audio_sha256": hashlib.sha256(json.dumps(lengths).encode()).hexdigest(),
            "part_samples": self.budget,
        }
        found = begun_of(self.out)
        if found is not None and found.get("audio_sha256") != made_of["audio_sha256"]:
            raise TaskError(
                f"The audio of {self.task.name} has changed since {self.out} was begun; "
                f"{TO_DELETE}."
            )
        self.job = Job(self.out, made_of)
        self.job.begin_unchecked()
        if (self.out / PROGRESS).is_file():
            self._take_over()
        (self.job.state / "rows").mkdir(exist_ok=True)

    def _take_over(self) -> None:
        """Go on with what version 0.1.0 left: splits that are whole stay, others are begun anew."""
        for split in self.task.splits:
            if (path := self.out / f"{split}.embeddings.npy").is_file():
                self.job.note(split, {"seconds": 0.0, "batch_samples": self.budget}, [path])
        for path in (*self.out.glob("*.partial"), self.out / OLD_LOCK, self.out / PROGRESS):
            path.unlink(missing_ok=True)

    def _tell(self, files: int) -> None:
        """Tell that so many more files are done."""
        if files:
            self.files_done += files
            self.progress(self.files_done, self.total)

    # --- a split ---

    def _embed_split(self, split: str, clips: Sequence[ClipFile]) -> None:
        """Embed the parts of a split that no other run embeds; make it whole, unless one has."""
        if self.job.is_done(split):
            return
        order = list(range(len(clips))) if self.has_events else _by_length(clips)
        parts = {
            f"{split} {number:06}": members
            for number, members in enumerate(_cut(order, clips, self.job.made_of["part_samples"]))
        }
        records = {part: self.job.record(part) for part in parts}
        made = [record for record in records.values() if record is not None]
        self.budget = min([self.budget, *(record["batch_samples"] for record in made)])
        self._tell(sum(len(parts[part]) for part, record in records.items() if record is not None))
        due = [part for part, record in records.items() if record is None]
        self._embed_parts(split, clips, parts, due)
        for _ in claimed(self.job, [split]):
            self._assemble(split, parts)
        for part in parts:
            self._rows_of(part).unlink(missing_ok=True)

    def _embed_parts(
        self,
        split: str,
        clips: Sequence[ClipFile],
        parts: Mapping[str, Sequence[int]],
        due: Sequence[str],
    ) -> None:
        """Embed parts, with the clips of the next one loaded ahead."""
        position = {part: i for i, part in enumerate(due)}
        loading: dict[str, list[Future[np.ndarray]]] = {}
        with ThreadPoolExecutor(READERS) as pool, closing(claimed(self.job, due)) as mine:

            def load(part: str) -> list[Future[np.ndarray]]:
                return [submit(pool, self.audio.load, split, clips[i]) for i in parts[part]]

            try:
                for part in mine:
                    if self.job.is_done(split):  # by another run, which removed its parts
                        break
                    sounds = [result_of(each) for each in loading.pop(part, None) or load(part)]
                    following = due[position[part] + 1 : position[part] + 2]
                    loading = {each: load(each) for each in following if self.job.is_free(each)}
                    self._embed_part(part, sounds, [clips[i].file for i in parts[part]])
                    self._tell(len(sounds))
            finally:
                with interrupts_held():
                    for future in (each for futures in loading.values() for each in futures):
                        future.cancel()

    def _embed_part(self, part: str, sounds: list[np.ndarray], names: list[str]) -> None:
        """Embed the clips of a part in batches of one shape, and note it."""
        started = time.monotonic()
        batches: list[Arrays] = []
        first = 0
        while first < len(sounds):
            shape = sounds[first].shape
            most = first + max(1, self.budget // sounds[first].size)
            last = first + 1
            while last < min(most, len(sounds)) and sounds[last].shape == shape:
                last += 1
            embedded = self._embed_batch(sounds[first:last], names[first:last])
            if embedded is not None:  # else again, with a smaller batch
                batches.append(embedded)
                first = last
        arrays = {key: np.concatenate([each[key] for each in batches]) for key in batches[0]}

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]

        write_whole(self._rows_of(part), write)
        seconds = time.monotonic() - started
        record = {"seconds": seconds, "batch_samples": self.budget, "rows": len(arrays["rows"])}
        self.job.note(part, record, [self._rows_of(part)])

    def _rows_of(self, part: str) -> Path:
        """Return where a part's rows are kept until its split is whole."""
        return self.job.state / "rows" / f"{part}.npz"

    def _embed_batch(self, sounds: Sequence[np.ndarray], names: Sequence[str]) -> Arrays | None:
        """Embed clips of one shape; return None where memory was short, and halve the budget.

        Returns:
            ``rows`` (rows, d) float32; for events also ``times`` (rows,) float64 in milliseconds,
            and ``counts`` (clips,) int64, the number of rows of each clip.
        """
        audio = np.stack(sounds)
        if audio.ndim == 3 and self.module.multichannel:
            audio = audio.transpose(0, 2, 1)
        try:
            if not self.has_events:
                return {"rows": self.module.scenes(audio, names)}
            rows, times = self.module.timestamps(audio, names)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(sounds) == 1:
                seconds = len(sounds[0]) / self.module.sample_rate
                raise ModuleError(
                    f"{self.module.name} ran out of memory with {names[0]} alone ({seconds:.1f} s) "
                    f"on {self.module.device}; choose another device, or a smaller model."
                ) from error
            self.budget = sounds[0].size * (len(sounds) // 2)
        else:
            counts = np.full(len(rows), rows.shape[1], dtype=np.int64)
            return {"rows": rows.reshape(-1, self.size), "times": times.ravel(), "counts": counts}
        if self.module.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _assemble(self, split: str, parts: Mapping[str, Sequence[int]]) -> None:
        """Write a split from its parts: its embeddings come last, and then it is noted."""
        records = [self.job.record(part) for part in parts]
        if lost := [part for part, record in zip(parts, records, strict=True) if record is None]:
            raise TaskError(self.job.describe_lost(lost))
        made = [record for record in records if record is not None]
        files = self.task.row_files(split)
        raw = self.task.raw_annotations(split)
        if self.has_events:
            counts = np.concatenate([self._read(part, "counts") for part in parts])
            times = np.concatenate([self._read(part, "times") for part in parts])
            files = [file for file, count in zip(files, counts, strict=True) for _ in range(count)]
            stamps = list(zip(files, times.tolist(), strict=True))
            self._write(f"{split}.filename-timestamps.json", stamps)
            own = {str(event["label"]): event["label"] for each in raw.values() for event in each}
            found = event_labels(self.task, split, files, times)
            labels = [[own[label] for label in row] for row in found]
        else:
            labels = [raw[file] for file in files]
        self._write(f"{split}.target-labels.json", labels)
        # For the original kit's predictor, which reads labels from nowhere else.
        pickled = pickle.dumps(labels, protocol=4)
        write_whole(self.out / f"{split}.target-labels.pkl", lambda path: path.write_bytes(pickled))
        self._write(f"{split}.embedding-dimensions.json", [len(files), self.size])
        whole = self.out / f"{split}.embeddings.npy"
        write_whole(whole, partial(self._write_rows, parts))
        record = {
            "seconds": sum(each["seconds"] for each in made),
            "batch_samples": min(each["batch_samples"] for each in made),
        }
        self.job.note(split, record, [whole])

    def _write_rows(self, parts: Mapping[str, Sequence[int]], path: Path) -> None:
        """Write the rows of all parts: those of events as they come, one of a clip at its index."""
        with open(path, "wb") as file:  # not mapped: a full disk would kill the process
            for part, members in parts.items():
                rows = self._read(part, "rows")
                if self.has_events:
                    file.write(rows.tobytes())
                    continue
                for index, row in zip(members, rows, strict=True):
                    file.seek(index * row.nbytes)
                    file.write(row.tobytes())

    def _read(self, part: str, name: str) -> np.ndarray:
        with np.load(self._rows_of(part), allow_pickle=False) as arrays:
            return arrays[name]

    # --- its end ---

    def _write(self, name: str, content: Any) -> None:
        write_json(self.out / name, content, indent=None)

    def _finish(self) -> None:
        with self.job.finishing():
            if (self.out / DONE).is_file():  # another run was faster
                return
            records = {split: self.job.record(split) for split in self.task.splits}
            if lost := [split for split, record in records.items() if record is None]:
                raise TaskError(self.job.describe_lost(lost))
            made = [record for record in records.values() if record is not None]
            libraries = ("gram-hear", "torch", "numpy", "soxr", "soundfile")
            identity = {k: v for k, v in self.job.made_of.items() if k != "part_samples"}
            write_json(
                self.out / DONE,
                {
                    **identity,
                    "seconds": sum(each["seconds"] for each in made),
                    "files": self.total,
                    "device": str(self.module.device),
                    "batch_samples": min(each["batch_samples"] for each in made),
                    "versions": {
                        "python": platform.python_version(),
                        **{name: version(name) for name in libraries},
                    },
                },
            )
            self.job.close()


def _cut(order: Sequence[int], clips: Sequence[ClipFile], most: int) -> list[list[int]]:
    """Cut clips, by their indices in an order, into parts of at most so many samples.

    All channels count. A longer clip is a part of its own.
    """
    parts: list[list[int]] = []
    room = 0
    for index in order:
        samples = clips[index].samples * clips[index].channels
        if samples > room:
            parts.append([])
            room = most
        parts[-1].append(index)
        room -= samples
    return parts


def _by_length(clips: Sequence[ClipFile]) -> list[int]:
    """Return the indices of clips so that those of one shape stand together."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, clip in enumerate(clips):
        groups.setdefault((clip.samples, clip.channels), []).append(index)
    return [index for group in groups.values() for index in group]
