"""A collection of sound files on disk: planned, embedded, resumed, and shared by several runs.

Every file becomes one part, an ``.npz`` (:mod:`gram_hear.embed.npz`). A part that is there and is
of the same model, options and source is not made again. A Parquet dataset is assembled from the
parts (:mod:`gram_hear.embed.parquet`).
"""

import errno
import os
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from gram_hear.audio.files import find_audio, warn_of_left_out
from gram_hear.embed.files import (
    Block,
    FileDone,
    FileFailed,
    FileGroup,
    embed_groups,
    group_files,
)
from gram_hear.embed.npz import (
    CollectionFile,
    OutputError,
    PartWriter,
    describe_model,
    find_done,
    identity,
    is_done,
    stamp_of,
    why_lost,
)
from gram_hear.embed.parquet import (
    assemble_parquet,
    check_dataset,
    import_pyarrow,
    parts_folder,
)
from gram_hear.errors import OptionError, reason_of
from gram_hear.hear import HearModel
from gram_hear.jobs.job import Job, JobGone
from gram_hear.jobs.locks import POLL


@dataclass(frozen=True)
class SoundEmbedded:
    """A stretch of sound was embedded, of so many seconds."""

    seconds: float


@dataclass(frozen=True)
class FileOutcome:
    """What became of a file: ``error`` is None, or says why there are no embeddings of it.

    ``file`` has its path (``source``), the ``.npz`` that its embeddings go to (``output``), and its
    name in the collection (``name``).
    """

    file: CollectionFile
    error: str | None


# --- plan -----------------------------------------------------------------------------------


def plan_files(paths: Iterable[str | PathLike], output: str | PathLike) -> list[CollectionFile]:
    """Pair every sound file with its part, before anything is computed.

    ``a/b.wav`` in a given folder goes to ``OUTPUT/a/b.wav.npz``, and a given file ``x/c.flac`` to
    ``OUTPUT/c.flac.npz``: the suffix stays, so that ``b.wav`` and ``b.flac`` do not collide. Where
    OUTPUT ends in ``.parquet``, the parts go to ``OUTPUT.parts/``. A warning counts the files of
    the folders that are left out, by suffix.

    Args:
        paths: files, and folders that are searched for sound files.
        output: the folder of the embeddings, or a ``.parquet`` file.

    Raises:
        OptionError: where there is no sound file, where two have one output or outputs that differ
            in upper and lower case alone, or where the output is a file and should be a folder, or
            the other way round.
    """
    output = Path(output)
    folder = parts_folder(output)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise OptionError(f"The output {folder} is a file; it must be a folder.")
    if folder != output and os.path.isdir(output):
        raise OptionError(f"The output {output} is a folder; it must be a .parquet file.")
    files: dict[str, CollectionFile] = {}
    sources: set[Path] = set()
    left_out: Counter[str] = Counter()
    for path in map(Path, paths):
        found = find_audio(path, left_out) if os.path.isdir(path) else iter([path])
        for source in found:
            # A folder that cannot be listed comes as its own source.
            relative = source.relative_to(path) if source != path else Path(source.name)
            part = folder / relative.parent / (relative.name + ".npz")
            if source in sources:  # named twice, or in a folder that is given too
                continue
            sources.add(source)
            # macOS and Windows take names that differ in case, or in how an accent is written, for
            # one file.
            key = unicodedata.normalize("NFC", str(part)).lower()
            file = files.setdefault(key, CollectionFile(source, part, relative.as_posix()))
            if file.output != part:
                raise OptionError(
                    f"{file.source} and {source} would be written to {file.output} and {part}, "
                    "which are one file on macOS and Windows. Rename one, or embed them into "
                    "different folders."
                )
            if file.source != source:
                raise OptionError(
                    f"{file.source} and {source} would both be written to {part}. Give the folder "
                    "that holds both, or embed them into different folders."
                )
    warn_of_left_out(left_out)
    if not files:
        raise OptionError("No sound file was found in what was given.")
    return list(files.values())


# --- run ------------------------------------------------------------------------------------


def embed_collection(
    paths: Iterable[str | PathLike],
    output: str | PathLike,
    model: HearModel,
    *,
    scene: bool = True,
    timestamps: bool = True,
    jobs: int = 1,
    force: bool = False,
) -> list[FileOutcome]:
    """Embed files and folders into ``.npz`` files or one Parquet dataset, and skip what is done.

    Several runs may share an output: each takes files that no other is embedding.

    Args:
        paths: files, and folders that are searched for sound files.
        output: a folder for ``.npz`` files, or a file that ends in ``.parquet``.
        model: what ``load_model`` returned.
        scene: keep the embedding of each whole file.
        timestamps: keep the embeddings over time.
        jobs: threads that decode ahead.
        force: embed again what is there, and replace what is in the way.

    Returns:
        What became of each file that was not done already. Also an error for each file that was
        done, but whose embeddings are not there at the end.

    Raises:
        OptionError: for wrong options, or if embeddings of another model, other options or another
            program are in the way.
        OutputError: if the output cannot be written.

    Example::

        model = gram_hear.load_model("gram-tiny")
        outcomes = embed_collection(["bell.flac"], "embeddings", model)
        failed = [outcome for outcome in outcomes if outcome.error]
    """
    run = CollectionRun(plan_files(paths, output), output, model, scene, timestamps, force)
    outcomes = {each.file: each for each in run.run(jobs) if isinstance(each, FileOutcome)}
    outcomes |= {outcome.file: outcome for outcome in run.finish()}
    return list(outcomes.values())


@dataclass
class _Claim:
    """The lock on a group of files, and how many of them have not come to their end."""

    lock: ExitStack
    left: int


class CollectionRun:
    """What :func:`embed_collection` does, step by step, for a caller that shows progress.

    Attributes:
        files: all files; ``due``: the sources of those that are not done, fewer as :meth:`run`
            goes.
        seconds: of sound that :meth:`run` will go through, as the headers tell it.
        job: which run embeds which group of files that share batches. Parts say themselves what
            they are made of, so nothing else is noted, and nothing of it is left at the end.
    """

    def __init__(
        self,
        files: Sequence[CollectionFile],
        output: str | PathLike,
        model: HearModel,
        scene: bool = True,
        timestamps: bool = True,
        force: bool = False,
    ) -> None:
        holds = [name for name, kept in (("scene", scene), ("timestamps", timestamps)) if kept]
        if not holds:
            raise OptionError("Neither scene nor timestamps is to be kept; keep at least one.")
        self.output = Path(output)
        self.is_parquet = self.output.suffix == ".parquet"
        if self.is_parquet:
            import_pyarrow()
            if len(holds) == 2 and model.options.scene != "mean":
                raise OptionError(
                    "The vectors of a Parquet dataset all have one length, and with scene "
                    f"{model.options.scene!r} those of whole files are longer than those over "
                    "time. Leave one of the two out (timestamps=False, --no-timestamps), or give "
                    "an output folder for .npz files."
                )
        self.model = model
        self.files = files
        self.provenance = {**describe_model(model), "holds": holds}
        self.job = Job(parts_folder(self.output), identity(self.provenance))
        self._done = find_done(files, self.provenance, force)
        if self.is_parquet and not force:
            check_dataset(self.output, self.provenance)
        self._by_source = {file.source: file for file in files}
        self.due = {file.source for file in files if file not in self._done}
        self._before = {source: stamp_of(self._by_source[source].output) for source in self.due}
        # Groups are made of all files, so that a run that was interrupted ends with the same
        # numbers: a file shares its batches with the same others, done or not.
        groups = group_files((file.source for file in files), model) if self.due else []
        self.groups = [group for group in groups if self.due.intersection(group.paths)]
        self.seconds = sum(group.seconds for group in self.groups)
        self._claims: dict[Path, _Claim] = {}
        self._parts: dict[Path, PartWriter] = {}
        self._given_up: set[Path] = set()
        self._made_elsewhere: list[FileOutcome] = []

    def run(self, jobs: int = 1) -> Iterator[SoundEmbedded | FileOutcome]:
        """Embed what is due, each file into its part; wait for what other runs embed.

        A file that cannot be read is reported and does not stop the rest. ``jobs`` threads decode
        ahead.

        Yields:
            A :class:`SoundEmbedded` for each stretch of sound, a :class:`FileOutcome` for each
            file.

        Raises:
            OutputError: where a part cannot be written; what was finished is kept.
            OptionError: where a run with another model or other options is at work in the output.
        """
        if jobs < 1:
            raise OptionError(f"jobs is {jobs}; it must be at least 1.")
        return self._run(jobs)

    def _run(self, threads: int) -> Iterator[SoundEmbedded | FileOutcome]:
        waiting = self.groups
        if not waiting:
            return
        try:
            self._begin()
            while waiting:
                held: list[FileGroup] = []
                yield from self._embed(self._claim_groups(waiting, held), threads)
                if held == waiting:
                    time.sleep(POLL)
                waiting = held
        finally:
            for part in self._parts.values():
                part.close()
            for claim in self._claims.values():
                claim.lock.close()
            if self.job.state.is_dir():  # unless another run, or somebody, has removed it
                with suppress(OSError), self.job.finishing():
                    if self.job.is_idle():
                        self.job.close()

    def _begin(self) -> None:
        try:
            self.job.begin_unchecked()
        except OSError as error:
            raise _not_written(self.job.output, error) from error

    def _claim_groups(
        self, waiting: Iterable[FileGroup], held: list[FileGroup]
    ) -> Iterator[FileGroup]:
        """Yield the groups that this run is to embed, claimed; put those of others into ``held``.

        It does not wait for other runs, which may wait for what this one has in hand.
        """
        for group in waiting:
            lock = self._claim(group)
            if lock is None:
                held.append(group)
                continue
            for source in self.due.intersection(group.paths):
                self._look_again(self._by_source[source])
            if self.due.intersection(group.paths):
                self._claims.update(dict.fromkeys(group.paths, _Claim(lock, len(group.paths))))
                yield group
            else:
                lock.close()

    def _claim(self, group: FileGroup) -> ExitStack | None:
        """Return what lets go of a group when it is closed; None where another run holds it."""
        name = "\n".join(self._by_source[path].name for path in group.paths)
        while True:
            lock = ExitStack()
            try:
                return lock if lock.enter_context(self.job.claim(name)) else None
            except JobGone:  # another run was through, or the folder was removed
                self._begin()
            except OSError as error:
                raise _not_written(self.job.output, error) from error

    def _look_again(self, file: CollectionFile) -> None:
        """See whether another run has made a file's part since this one began."""
        stamp = stamp_of(file.output)
        if stamp not in (None, self._before[file.source]) and is_done(file, self.provenance):
            self._made_elsewhere.append(self._settle(file))

    def _settle(self, file: CollectionFile) -> FileOutcome:
        self.due.discard(file.source)
        self._done[file] = stamp_of(file.output)
        return FileOutcome(file, None)

    def _embed(
        self, groups: Iterable[FileGroup], threads: int
    ) -> Iterator[SoundEmbedded | FileOutcome]:
        for event in embed_groups(groups, self.model, threads):
            yield from self._take_made_elsewhere()
            if isinstance(event, Block):
                yield SoundEmbedded(len(event.vectors) * self.model.hop_ms / 1000)
            if event.path in self.due and event.path not in self._given_up:
                outcome = self._write(self._by_source[event.path], event)
                if outcome is not None:
                    yield outcome
            if not isinstance(event, Block):
                claim = self._claims.pop(event.path)
                claim.left -= 1
                if not claim.left:
                    claim.lock.close()
        yield from self._take_made_elsewhere()

    def _take_made_elsewhere(self) -> Iterator[FileOutcome]:
        while self._made_elsewhere:
            yield self._made_elsewhere.pop(0)

    def _write(
        self, file: CollectionFile, event: Block | FileDone | FileFailed
    ) -> FileOutcome | None:
        """Take what comes of a file that is due; return its outcome at its end."""
        outcome = None
        try:
            if isinstance(event, FileFailed):
                outcome = FileOutcome(file, event.error)
            else:
                if file.source not in self._parts:
                    self._parts[file.source] = PartWriter(file, self.provenance)
                if isinstance(event, Block):
                    self._parts[file.source].add(event)
                else:
                    self._parts[file.source].finish(event)
                    outcome = self._settle(file)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise _not_written(file.output, error) from error
            self._given_up.add(file.source)
            outcome = FileOutcome(file, f"{file.output}: {reason_of(error)}")
        if outcome is not None and file.source in self._parts:
            self._parts.pop(file.source).close()
        return outcome

    def finish(self) -> list[FileOutcome]:
        """See that what was done is there, and bring the dataset, if the output is one, up to date.

        Files that are due still, as those that failed, are left out of the dataset, even if an
        outdated part of theirs is there.

        Returns:
            An error for each part that was removed or replaced; their files are due again.

        Raises:
            OutputError: where the dataset cannot be written.
        """
        lost = [
            FileOutcome(file, reason)
            for file, stamp in self._done.items()
            if (reason := why_lost(file, stamp, self.provenance)) is not None
        ]
        for outcome in lost:
            del self._done[outcome.file]
            self.due.add(outcome.file.source)
        if self.is_parquet:
            failed = [file for file in self.files if file.source in self.due]
            lock = self.job.finishing()
            assemble_parquet(list(self._done), failed, self.output, self.provenance, lock)
        return lost


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} could not be written: {error}. What was finished is kept; run the same command "
        "again to go on."
    )
