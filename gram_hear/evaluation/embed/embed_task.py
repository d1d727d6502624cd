"""The embedding of a HEAR task: written to disk so that a run can be broken off.

While a directory is made, ``embeddings-progress.json`` says how far it is, and rows are in files
that end in ``.partial``. What is renamed is whole. ``embeddings-done.json`` comes last.
"""

import hashlib
import json
import math
import operator
import os
import pickle
import platform
import shutil
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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
    event_labels,
)
from gram_hear.evaluation.embed.hear_module import HearModule, is_out_of_memory
from gram_hear.evaluation.embed.task_audio import SILENCE, Source, TaskAudio
from gram_hear.jobs.interrupts import interrupts_held, result_of, submit
from gram_hear.jobs.locks import locked
from gram_hear.jobs.progress import Progress, silent
from gram_hear.jobs.writing import write_whole
from gram_hear.tasks import (
    METADATA,
    VOCABULARY,
    Task,
    empty_in_words,
    read_json,
)

BATCH_SECONDS = 60.0  # of sound, all channels counted, in the first batches
SAVE_SECONDS = 0.5  # after which progress is written down again; a kill costs so much
READERS = 2  # threads that decode ahead
TOLERANCE = 0.001  # seconds by which a clip may differ from sample_duration
TO_DELETE = "delete it, or choose another folder of embeddings"

EmptyClips = Literal["error", "skip", "zero"]


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
    was broken off goes on where it was, to the same numbers. Batches are clips of one length, of
    60 s together; where memory is short they are halved, and stay so.

    Audio is taken from the folder of the module's sample rate. A file that is not there is made
    from the highest other rate, once: it is kept beside the task.

    Args:
        task: a task directory with audio.
        module: what embeds.
        folder: of the embeddings of this module and model.
        progress: called with the numbers of files that are done, and of all.
        force: replace embeddings that something else made (another version of the module's code,
            of the model or of the task), and take their scores as gone.
        empty_clips: what becomes of clips without samples: ``"error"``; ``"skip"``, they are left
            out, of labels and scores too; ``"zero"``, a second of silence is embedded for each.

    Returns:
        The directory.

    Raises:
        TaskError: for a task that is broken or lacks audio, a directory of other embeddings, or
            one that another run writes.
        AudioError: for a file that cannot be read, has another rate than its folder, or holds NaN,
            or no samples where ``empty_clips`` is ``"error"``.
        ModuleError: for a module that breaks the API, or a clip too long for the memory.
    """
    out = folder / task.name
    if out.resolve() == task.folder.resolve():
        raise TaskError(f"{out} is the task itself; choose another folder for the embeddings.")
    if is_embedded(task, module, folder, force, empty_clips):
        return out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TaskError(f"{out} cannot be made: {reason_of(error)}.") from error
    identity = _identity(task, module, empty_clips)
    with locked(out, TaskError):
        try:
            if force and _difference(out, identity):
                _discard(out)
            if not _is_done(out, task, identity):
                _Run(task, module, out, identity, progress).run()
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
    """Return what embeddings are told apart by."""
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
    done = (out / DONE).is_file()
    if not done and not (out / PROGRESS).is_file():
        if any(out.glob("*.embeddings.npy")):
            raise TaskError(
                f"{out} holds embeddings, but neither {DONE} nor {PROGRESS} that would say what "
                f"made them; {TO_DELETE}."
            )
        return False
    if difference := _difference(out, identity):
        raise TaskError(
            f"{out} holds other embeddings: {difference}. Use --force to replace them and their "
            f"scores, {TO_DELETE}."
        )
    for split in task.splits if done else ():
        if not (whole := out / f"{split}.embeddings.npy").is_file():
            raise TaskError(f"{out} is marked as done, but {whole.name} is missing; {TO_DELETE}.")
    return done


def _difference(out: Path, identity: dict[str, Any]) -> str:
    """Return in what a directory's embeddings are of something else; "" where there are none."""
    path = next((each for each in (out / DONE, out / PROGRESS) if each.is_file()), None)
    if path is None:
        return ""
    found = read_json(path)
    if not isinstance(found, dict):
        return f"{path.name} holds {short(found)}"
    for key, value in identity.items():
        there = found.get(key)
        if there != value and not (key == EMPTY and there is None):  # none of its clips is empty
            return f"{key} is {short(there)} in {path.name}, and {value!r} now"
    return ""


def _discard(out: Path) -> None:
    """Remove a directory's embeddings, and what says that scores are of them: that first."""
    for name in (PREDICTED, NEIGHBOURS_DONE, DONE):
        (out / name).unlink(missing_ok=True)
    for path in (*out.glob("*.embeddings.npy"), *out.glob("*.partial"), out / PROGRESS):
        path.unlink(missing_ok=True)  # last what says that there were embeddings of ours


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {reason_of(error)}.") from error


# --- a run ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Clip:
    """A clip on its way: the index of its file in the order of the rows, and its sound."""

    index: int
    audio: np.ndarray


class _Run:
    """One task on its way; the state that outlives a kill is ``self.state``.

    ``state["splits"][split]`` is how many files of the split's work are done and, for events, how
    many rows they gave; ``budget`` is how many samples a batch may hold.
    """

    def __init__(
        self,
        task: Task,
        module: HearModule,
        out: Path,
        identity: dict[str, Any],
        progress: Progress | None,
    ) -> None:
        self.task = task
        self.module = module
        self.out = out
        self.empty_clips: EmptyClips = identity[EMPTY]
        self.events = task.embedding_type == "event"
        self.size: int = identity["embedding_size"]
        self.audio = TaskAudio(task, module.sample_rate)
        self.progress = progress or silent
        self.state: dict[str, Any] = {
            **identity,
            EMPTY: None,
            "audio_sha256": "",
            "budget": round(BATCH_SECONDS * module.sample_rate),
            "seconds": 0.0,
            "splits": {split: {"files": 0, "rows": 0} for split in task.splits},
        }

    def run(self) -> None:
        """Embed what is left to do, and mark the directory as done."""
        for split in self.task.splits:
            self.task.annotations(split)  # what is wrong shows before anything is computed
        plan = {split: self.audio.sources(split) for split in self.task.splits}
        if any(source.empty for sources in plan.values() for source in sources):
            plan = self._without_empty(plan)
        self._warn_of_lengths(
            [each for sources in plan.values() for each in sources if not each.empty]
        )
        self._resume(plan)
        for path in _copied_files(self.task):
            write_whole(self.out / path.name, partial(shutil.copyfile, path))
        if self.state.get(EMPTY) == "skip":  # a run that an older version began lacks the key
            for split in self.task.splits:
                self._write(f"{split}.json", self.task.raw_annotations(split))
        total = sum(map(len, plan.values()))
        self.progress(self._files_done(), total)
        try:
            for split, sources in plan.items():
                for _ in self._embed_split(split, sources):
                    self.progress(self._files_done(), total)
        finally:
            self._save()
        self._finish(total)

    def _without_empty(self, plan: dict[str, list[Source]]) -> dict[str, list[Source]]:
        """Do with clips without samples what was asked for; return what is to be embedded."""
        empty = {split: [each.file for each in plan[split] if each.empty] for split in plan}
        names = [f"{split}/{file}" for split, files in empty.items() for file in files]
        said = empty_in_words(names, sum(map(len, plan.values())))
        if self.empty_clips == "error":
            raise AudioError(
                f"{self.task.name}: {said} Nothing was embedded. --empty-clips skip leaves them "
                f"out, --empty-clips zero embeds {SILENCE:g} s of silence for each."
            )
        self.state.update({EMPTY: self.empty_clips, EMPTY_FILES: names})
        if self.empty_clips == "zero":
            warnings.warn(
                f"{self.task.name}: {said} {SILENCE:g} s of silence is embedded for each.",
                stacklevel=4,
            )
            return plan
        warnings.warn(f"{self.task.name}: {said} They are left out.", stacklevel=4)
        self.task = self.task.without(empty)
        self.audio = TaskAudio(self.task, self.module.sample_rate)
        return {split: self.audio.sources(split) for split in self.task.splits}

    def _warn_of_lengths(self, sources: Sequence[Source]) -> None:
        duration = self.task.sample_duration
        if duration is None:
            return
        rate = self.module.sample_rate
        others = [each for each in sources if abs(each.samples / rate - duration) > TOLERANCE]
        if others:
            warnings.warn(
                f"{self.task.name}: {len(others)} of {len(sources)} clips are not {duration:g} s "
                f"long, as sample_duration says ({others[0].file}: "
                f"{others[0].samples / rate:g} s). Each is embedded as it is.",
                stacklevel=4,
            )

    def _resume(self, plan: dict[str, list[Source]]) -> None:
        """Take over the state of a run that was broken off."""
        lengths = {
            split: [(each.file, each.samples, each.channels) for each in sources]
            for split, sources in plan.items()
        }
        self.state["audio_sha256"] = hashlib.sha256(json.dumps(lengths).encode()).hexdigest()
        path = self.out / PROGRESS
        if path.is_file():
            found = read_json(path)
            if found.get("audio_sha256") != self.state["audio_sha256"]:
                raise TaskError(
                    f"The audio of {self.task.name} has changed since {self.out} was begun; "
                    f"{TO_DELETE}."
                )
            if not _is_state(found, plan):
                raise TaskError(f"{path} is damaged: it does not say what is done. {TO_DELETE}.")
            self.state = found
        self._start = time.monotonic() - self.state["seconds"]
        self._save()

    def _save(self) -> None:
        self._saved = time.monotonic()
        self.state["seconds"] = self._saved - self._start
        content = json.dumps(self.state, indent=1)
        write_whole(self.out / PROGRESS, lambda place: place.write_text(content, encoding="utf-8"))

    def _files_done(self) -> int:
        return sum(split["files"] for split in self.state["splits"].values())

    def _embed_split(self, split: str, sources: Sequence[Source]) -> Iterator[None]:
        """Embed the files of a split that are left, yielding after each batch; make it whole."""
        if (self.out / f"{split}.embeddings.npy").is_file():
            return
        state = self.state["splits"][split]
        if self.events:
            order = list(range(len(sources)))
            rows: _EventRows | _SceneRows = _EventRows(self.out, split, self.size, state)
        else:
            order = _by_length(sources)
            rows = _SceneRows(self.out, split, self.size, state, len(sources))
        with ThreadPoolExecutor(READERS) as pool:
            clips = self._load_ahead(pool, split, sources, order[state["files"] :])
            pending: deque[_Clip] = deque()
            while count := self._fill(pending, clips):
                batch = [pending[i] for i in range(count)]
                if not self._embed(batch, sources, rows):
                    continue  # smaller now: try again
                for _ in batch:
                    pending.popleft()
                state.update(files=state["files"] + count, rows=rows.count)  # both or neither
                if time.monotonic() - self._saved >= SAVE_SECONDS:
                    self._save()
                yield
        self._complete(split, rows)

    def _load_ahead(
        self,
        pool: ThreadPoolExecutor,
        split: str,
        sources: Sequence[Source],
        order: Sequence[int],
    ) -> Iterator[_Clip]:
        """Yield clips in order, with a batch of sound, but at least one clip, loaded ahead."""
        loading: deque[tuple[int, Future[np.ndarray]]] = deque()
        ahead = 0
        try:
            for index in order:
                while loading and ahead + sources[index].samples > self.state["budget"]:
                    first, future = loading.popleft()
                    ahead -= sources[first].samples
                    yield _Clip(first, result_of(future))
                future = submit(pool, self.audio.load, split, sources[index])
                loading.append((index, future))
                ahead += sources[index].samples
            for index, future in loading:
                yield _Clip(index, result_of(future))
        finally:
            with interrupts_held():
                for _, future in loading:
                    future.cancel()

    def _fill(self, pending: deque[_Clip], clips: Iterator[_Clip]) -> int:
        """Load clips up to a batch, and return how many of the pending ones make it.

        Pending clips are of one shape, but for the last one.
        """
        while True:
            if pending:
                first = pending[0].audio
                room = max(1, self.state["budget"] // first.size)
                others = pending[-1].audio.shape != first.shape
                if len(pending) - others >= room:
                    return room
                if others:
                    return len(pending) - 1
            clip = next(clips, None)
            if clip is None:
                return len(pending)
            pending.append(clip)

    def _embed(
        self, batch: Sequence[_Clip], sources: Sequence[Source], rows: "_EventRows | _SceneRows"
    ) -> bool:
        """Embed and keep a batch; return False where memory was short and the budget was halved."""
        audio = np.stack([clip.audio for clip in batch])
        if audio.ndim == 3 and self.module.multichannel:
            audio = audio.transpose(0, 2, 1)
        indices = [clip.index for clip in batch]
        names = [sources[index].file for index in indices]
        try:
            rows.embed(self.module, indices, audio, names)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                seconds = len(batch[0].audio) / self.module.sample_rate
                raise ModuleError(
                    f"{self.module.name} ran out of memory with {names[0]} alone ({seconds:.1f} s) "
                    f"on {self.module.device}; choose another device, or a smaller model."
                ) from error
            self.state["budget"] = batch[0].audio.size * (len(batch) // 2)
        else:
            return True
        if self.module.device.type == "cuda":
            torch.cuda.empty_cache()
        return False

    def _complete(self, split: str, rows: "_EventRows | _SceneRows") -> None:
        """Write what goes with the rows, and give them their name at last."""
        raw = self.task.raw_annotations(split)
        if isinstance(rows, _EventRows):
            files, milliseconds = rows.timestamps(self.task.row_files(split))
            self._write(
                f"{split}.filename-timestamps.json",
                list(zip(files, milliseconds.tolist(), strict=True)),
            )
            own = {str(event["label"]): event["label"] for each in raw.values() for event in each}
            labels = [
                [own[label] for label in row]
                for row in event_labels(self.task, split, files, milliseconds)
            ]
        else:
            labels = [raw[file] for file in self.task.row_files(split)]
        self._write(f"{split}.target-labels.json", labels)
        # For the original kit's predictor, which reads labels from nowhere else.
        pickled = pickle.dumps(labels, protocol=4)
        path = self.out / f"{split}.target-labels.pkl"
        write_whole(path, lambda place: place.write_bytes(pickled))
        self._write(f"{split}.embedding-dimensions.json", [rows.count, self.size])
        os.replace(rows.path, self.out / f"{split}.embeddings.npy")
        rows.clear()

    def _write(self, name: str, content: Any) -> None:
        text = json.dumps(content)
        write_whole(self.out / name, lambda place: place.write_text(text, encoding="utf-8"))

    def _finish(self, files: int) -> None:
        libraries = ("gram-hear", "torch", "numpy", "soxr", "soundfile")
        done = {key: value for key, value in self.state.items() if key not in ("splits", "budget")}
        self._write(
            DONE,
            {
                **done,
                "files": files,
                "device": str(self.module.device),
                "batch_samples": self.state["budget"],
                "versions": {
                    "python": platform.python_version(),
                    **{name: version(name) for name in libraries},
                },
            },
        )
        for leftover in (self.out / PROGRESS, *self.out.glob("*.partial")):
            leftover.unlink(missing_ok=True)


def _is_state(found: Any, plan: dict[str, list[Source]]) -> bool:
    """Whether what a broken run left is a state that can be gone on from."""
    try:
        return (
            operator.index(found["budget"]) > 0
            and 0 <= float(found["seconds"]) < math.inf
            and all(
                0 <= operator.index(found["splits"][split]["files"]) <= len(sources)
                and operator.index(found["splits"][split]["rows"]) >= 0
                for split, sources in plan.items()
            )
        )
    except (KeyError, TypeError, ValueError):
        return False


def _by_length(sources: Sequence[Source]) -> list[int]:
    """Return the indices of clips so that those of one shape stand together."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, source in enumerate(sources):
        groups.setdefault((source.samples, source.channels), []).append(index)
    return [index for group in groups.values() for index in group]


class _SceneRows:
    """One row for each file, written at its place."""

    def __init__(self, out: Path, split: str, size: int, state: dict, count: int) -> None:
        self.path = out / f"{split}.embeddings.partial"
        self.count = count
        self._row_bytes = 4 * size
        whole = self.path.is_file() and self.path.stat().st_size == count * self._row_bytes
        if not whole:
            state["files"] = 0  # the beginning, or somebody took the rows away
        if not state["files"]:
            with open(self.path, "wb") as file:
                file.truncate(count * self._row_bytes)

    def embed(
        self, module: HearModule, indices: Sequence[int], audio: np.ndarray, names: Sequence[str]
    ) -> None:
        """Embed clips and keep their rows."""
        embeddings = module.scenes(audio, names)
        with open(self.path, "r+b") as file:  # not mapped: a full disk would kill the process
            for index, row in zip(indices, embeddings, strict=True):
                file.seek(index * self._row_bytes)
                file.write(row.tobytes())

    def clear(self) -> None:
        """Remove what is not needed any more: nothing."""


class _EventRows:
    """Many rows for each file, appended file by file, with their timestamps and numbers."""

    def __init__(self, out: Path, split: str, size: int, state: dict) -> None:
        self.path = out / f"{split}.embeddings.partial"
        self._times = out / f"{split}.timestamps.partial"  # float64, one for each row
        self._counts = out / f"{split}.counts.partial"  # int64, rows of each file
        self.count: int = state["rows"]
        self._paths = (self.path, self._times, self._counts)
        lengths = (4 * size * state["rows"], 8 * state["rows"], 8 * state["files"])
        there = [path.stat().st_size if path.is_file() else 0 for path in self._paths]
        if any(have < wanted for have, wanted in zip(there, lengths, strict=True)):
            state["files"] = state["rows"] = 0  # somebody took the rows away
            self.count = 0
            lengths = (0, 0, 0)
        for path, length in zip(self._paths, lengths, strict=True):
            with open(path, "ab") as file:
                file.truncate(length)  # what the broken run wrote after it last told

    def embed(
        self, module: HearModule, indices: Sequence[int], audio: np.ndarray, names: Sequence[str]
    ) -> None:
        """Embed clips and append their rows, timestamps and numbers of rows."""
        embeddings, times = module.timestamps(audio, names)
        clips, rows, _ = embeddings.shape
        counts = np.full(clips, rows, dtype=np.int64)
        for path, values in zip(self._paths, (embeddings, times, counts), strict=True):
            with open(path, "ab") as file:
                file.write(np.ascontiguousarray(values).data)
        self.count += clips * rows

    def timestamps(self, files: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Return the file and the milliseconds of each row."""
        counts = np.fromfile(self._counts, dtype=np.int64)
        names = [
            file for file, count in zip(files, counts.tolist(), strict=True) for _ in range(count)
        ]
        return names, np.fromfile(self._times, dtype=np.float64)

    def clear(self) -> None:
        """Remove what is not needed any more."""
        self._times.unlink()
        self._counts.unlink()
