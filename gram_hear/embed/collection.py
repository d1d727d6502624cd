"""A collection of sound files on disk: plan, embed, resume, and write ``.npz`` files or Parquet.

Every file becomes one part, an ``.npz`` that is written whole or not at all and says what it was
made from: the model's hash, the options, the source's size and time. A part that says what is asked
for is not made again. A Parquet dataset is assembled from the parts.
"""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np

from gram_hear.audio.files import find_audio, warn_of_left_out
from gram_hear.config import EMBEDDINGS
from gram_hear.embed.files import (
    Block,
    FileDone,
    FileFailed,
    FileGroup,
    embed_groups,
    group_files,
)
from gram_hear.errors import GramError, OptionError, count, reason_of
from gram_hear.extras import install_command
from gram_hear.foreign import ZIP_FAULTS, read_array
from gram_hear.hear import HearModel
from gram_hear.jobs.job import Job, JobGone
from gram_hear.jobs.locks import POLL
from gram_hear.jobs.writing import temporary_prefix, write_whole

SPOOL = 2**24  # bytes of a file's vectors held in memory before they go to a temporary file
GROUP = 2**25  # bytes of vectors read and written at once when a dataset is assembled


class OutputError(GramError, OSError):
    """The output cannot be written; what was finished before is kept."""


@dataclass(frozen=True)
class CollectionFile:
    """One file to embed, the part that its embeddings go to, and its name in the collection."""

    source: Path
    output: Path
    name: str


@dataclass(frozen=True)
class SoundEmbedded:
    """A stretch of sound was embedded, of so many seconds."""

    seconds: float


@dataclass(frozen=True)
class FileOutcome:
    """What became of a file: ``error`` is None, or says why there is no part of it."""

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


def parts_folder(output: Path) -> Path:
    """Return the folder of the parts: the output itself, or beside a dataset."""
    return output.with_name(output.name + ".parts") if output.suffix == ".parquet" else output


def describe_model(model: HearModel) -> dict[str, Any]:
    """Return what makes embeddings reproducible: version, checkpoint and options, for JSON."""
    source = model.source
    return {
        "gram_hear": version("gram-hear"),
        "embeddings": EMBEDDINGS,
        "model": {
            "name": source.name,
            "layout": source.layout,
            "repository": source.repository,
            "revision": source.revision,
            "commit": source.commit,
            "sha256": source.sha256(),
            "weights": model.hash_weights(),
        },
        "options": dataclasses.asdict(model.options) | {"window_fill": model.window_fill},
        "device": str(model.device),
        "hop_ms": model.hop_ms,
        "size": model.timestamp_embedding_size,
    }


def identity(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return what two parts must share to be of one collection.

    Not the device or the batch, which change embeddings by rounding alone, nor where the model
    came from.
    """
    options = {key: value for key, value in metadata["options"].items() if key != "window_batch"}
    return {
        "embeddings": metadata.get("embeddings"),
        "model": metadata["model"].get("weights"),
        **options,
        "holds": metadata["holds"],
    }


# --- run ------------------------------------------------------------------------------------


Stamp = tuple[int, int] | None


def stamp_of(path: Path) -> Stamp:
    """Return a file's size and the time of its last change; None where it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def find_done(
    files: Sequence[CollectionFile], provenance: dict[str, Any], force: bool = False
) -> dict[CollectionFile, Stamp]:
    """Return the files whose part is there, of the same model and options and unchanged source.

    Returns:
        These files, each with its part's :func:`stamp_of`.

    Raises:
        OptionError: where parts of another model or other options, or files that are no parts, are
            in the way, and ``force`` is not set.
    """
    done: dict[CollectionFile, Stamp] = {}
    foreign: list[Path] = []
    for file in files:
        stamp = stamp_of(file.output)
        if stamp is None or stamp[0] == 0:  # as a power cut leaves a file: nothing to lose
            continue
        metadata = read_metadata(file.output)
        if metadata is None or identity(metadata) != identity(provenance):
            foreign.append(file.output)
        elif not force and _is_current(file, metadata):
            done[file] = stamp
    if foreign and not force:
        raise OptionError(
            f"{count(len(foreign), 'output is', 'outputs are')} there already that another model, "
            f"other options, another version or another program made, such as {foreign[0]}. Use "
            "--force (force=True) to replace them, or another output."
        )
    return done


def _is_current(file: CollectionFile, metadata: dict[str, Any]) -> bool:
    # A source that is not there is reported when its turn comes.
    return (metadata["size_bytes"], metadata["modified_ns"]) == stamp_of(file.source)


def _is_done(file: CollectionFile, provenance: dict[str, Any]) -> bool:
    """Whether a file's part is there, of this model and these options and unchanged source."""
    metadata = read_metadata(file.output)
    return (
        metadata is not None
        and identity(metadata) == identity(provenance)
        and _is_current(file, metadata)
    )


def why_lost(file: CollectionFile, stamp: Stamp, provenance: dict[str, Any]) -> str | None:
    """Return why a part that was done is not there any more, or None where it is.

    Args:
        file: whose part it is.
        stamp: what :func:`stamp_of` said when it was done.
        provenance: of the collection.
    """
    now = stamp_of(file.output)
    if now is None or now[0] == 0:
        return (
            f"{file.output} was removed after it was done. Run the same command again to make it."
        )
    if now == stamp or _is_done(file, provenance):
        return None
    return (
        f"{file.output} was replaced or damaged after it was done. Move away what is there, and "
        "run the same command again to make it."
    )


class _PartWriter:
    """The ``.npz`` of one file in the making: vectors are spooled as they come."""

    def __init__(self, file: CollectionFile, provenance: dict[str, Any]) -> None:
        self.file = file
        self.provenance = provenance
        self._make_folder()
        self._vectors = tempfile.SpooledTemporaryFile(SPOOL, dir=str(file.output.parent))  # noqa: SIM115
        self._timestamps: list[np.ndarray] = []

    def _make_folder(self) -> None:
        """Make the part's folder, again where it was removed in the meantime."""
        self.file.output.parent.mkdir(parents=True, exist_ok=True)

    def add(self, block: Block) -> None:
        """Take the next rows of the file."""
        if "timestamps" in self.provenance["holds"]:
            self._make_folder()
            self._vectors.write(np.ascontiguousarray(block.vectors, dtype="<f4").data)
            self._timestamps.append(block.timestamps)

    def finish(self, done: FileDone) -> None:
        """Write the part, whole or not at all."""
        metadata = {
            **self.provenance,
            "file": self.file.name,
            "file_sample_rate": done.file_rate,
            "channels": done.channels,
            "convention": done.convention,
            "duration_seconds": done.duration,
            "size_bytes": done.size,
            "modified_ns": done.modified,
        }
        holds = self.provenance["holds"]

        def write(temporary: Path) -> None:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
                _write_array(archive, "metadata", np.array(json.dumps(metadata)))
                if "scene" in holds:
                    _write_array(archive, "scene", done.scene)
                if "timestamps" in holds:
                    _write_array(archive, "timestamps", np.concatenate(self._timestamps))
                    self._vectors.seek(0)
                    shape = (done.rows, len(done.scene))
                    with archive.open("vectors.npy", "w", force_zip64=True) as member:
                        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(member, header)
                        shutil.copyfileobj(self._vectors, member, 2**20)

        self._make_folder()
        try:
            write_whole(self.file.output, write)
        except FileNotFoundError:  # the folder was removed while the part was written
            self._make_folder()
            write_whole(self.file.output, write)

    def close(self) -> None:
        """Let go of the spooled vectors."""
        self._vectors.close()


def _write_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(name + ".npy", "w") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def read_metadata(part: Path) -> dict[str, Any] | None:
    """Return the metadata of a part; None where the file is no part of a collection."""
    try:
        with zipfile.ZipFile(part) as archive:
            text = read_array(archive, "metadata", OutputError, np.str_)
        metadata = json.loads(str(text))
    except (OSError, *ZIP_FAULTS):  # OutputError is an OSError
        return None
    keys = {"model", "options", "holds", "size_bytes", "modified_ns"}
    if not isinstance(metadata, dict) or not keys <= set(metadata):
        return None
    is_ours = isinstance(metadata["model"], dict) and isinstance(metadata["options"], dict)
    return metadata if is_ours else None


# --- Parquet --------------------------------------------------------------------------------


def assemble_parquet(
    files: Sequence[CollectionFile],
    failed: Sequence[CollectionFile],
    output: Path,
    provenance: dict[str, Any],
    lock: AbstractContextManager[None],
) -> None:
    """Write one Parquet dataset of all parts, in the order of their names.

    That is the parts of ``files``, all of which must be there, and those that other runs with the
    same model and options left, but not those of ``failed``: a dataset grows, and never loses files
    because fewer were given.

    Columns: ``file`` (string), ``timestamp_ms`` (double, null in the row of the whole scene) and
    ``vector`` (a list of fixed length of floats). The schema's metadata holds ``gram_hear``, a JSON
    string of the model and options. Row groups are streamed; the dataset is written whole or not
    at all, and left alone where it holds these parts already.

    Args:
        files: whose parts are done.
        failed: whose parts are not, whatever part of an earlier state of theirs there is.
        output: the dataset.
        provenance: of the collection.
        lock: is held while the dataset is written.

    Raises:
        OutputError: where the dataset cannot be written, a part cannot be read, or the dataset is
            not there when it was written.
    """
    folder = parts_folder(output)
    try:
        parts = find_parts(files, failed, folder, provenance)
        if not parts or _holds(output, _digest(parts)):
            return
        with lock:
            parts = find_parts(files, failed, folder, provenance)  # other runs may have added some
            digest = _digest(parts)
            for leftover in output.parent.glob(f"{temporary_prefix(output)}*.partial"):
                leftover.unlink(missing_ok=True)  # of a run that was killed
            if not _holds(output, digest):
                write_whole(output, lambda path: _write_parquet(parts, path, provenance, digest))
            is_there = _holds(output, digest)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{output} could not be written: {error}. Its parts are kept; run the same command "
            "again to write it."
        ) from error
    if not is_there:
        raise OutputError(
            f"{output} was removed or replaced after it was written. Run the same command again to "
            "write it."
        )


def find_parts(
    files: Sequence[CollectionFile],
    failed: Sequence[CollectionFile],
    folder: Path,
    provenance: dict[str, Any],
) -> list[tuple[str, Path]]:
    """Return the parts of a dataset, sorted by their names; see :func:`assemble_parquet`."""
    parts = {file.name: file.output for file in files}
    known = {*parts.values(), *(file.output for file in failed)}
    found = os.walk(folder)  # passes over a folder that another run removes meanwhile
    for path in (Path(at, name) for at, _, names in found for name in names):
        if path.suffix != ".npz" or path in known:
            continue
        metadata = read_metadata(path)
        if metadata is not None and identity(metadata) == identity(provenance):
            parts[path.relative_to(folder).as_posix().removesuffix(".npz")] = path
    return sorted(parts.items())


def import_pyarrow() -> Any:
    """Return pyarrow, or say how to install it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise OptionError(
            f"Parquet needs pyarrow: {install_command('parquet')}. Or give an output folder for "
            ".npz files."
        ) from error
    return pyarrow


def _digest(parts: Sequence[tuple[str, Path]]) -> str:
    """Hash which parts there are, and which state of each."""
    digest = hashlib.sha256()
    for name, path in parts:
        stat = path.stat()
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "replace"))
    return digest.hexdigest()


def _holds(output: Path, digest: str) -> bool:
    """Whether a dataset is there and holds the parts of this digest."""
    return output.exists() and _stored(output).get(b"parts") == digest.encode()


def check_dataset(output: Path, provenance: dict[str, Any]) -> None:
    """Raise an OptionError where a file at ``output`` is no dataset of this model and options."""
    if not output.exists():
        return
    stored = json.loads(_stored(output).get(b"gram_hear", b"null"))
    if stored is None or identity(stored) != identity(provenance):
        raise OptionError(
            f"{output} is there already, and another model, other options, another version or "
            "another program made it. Use --force (force=True) to replace it, or another output."
        )


def _stored(output: Path) -> dict[bytes, bytes]:
    """Return the metadata of a dataset's schema; none where the file is no Parquet."""
    pyarrow = import_pyarrow()
    try:
        return pyarrow.parquet.read_schema(output).metadata or {}
    except (pyarrow.ArrowException, OSError):
        return {}


def _write_parquet(
    parts: Sequence[tuple[str, Path]], path: Path, provenance: dict[str, Any], digest: str
) -> None:
    pyarrow = import_pyarrow()
    vector = pyarrow.list_(pyarrow.float32(), provenance["size"])
    schema = pyarrow.schema(
        [("file", pyarrow.string()), ("timestamp_ms", pyarrow.float64()), ("vector", vector)],
        metadata={"gram_hear": json.dumps(provenance), "parts": digest},
    )
    rows = _rows_at_once(provenance["size"])
    with pyarrow.parquet.ParquetWriter(path, schema, use_dictionary=["file"]) as writer:
        batches: list[Any] = []
        held = 0
        for name, part in parts:
            for timestamps, vectors in _rows_of(part):
                if held + len(vectors) > rows and batches:
                    writer.write_table(pyarrow.Table.from_batches(batches))
                    batches, held = [], 0
                names = pyarrow.array([_text(name)] * len(vectors), pyarrow.string())
                times = pyarrow.array(timestamps, pyarrow.float64(), from_pandas=True)
                flat = pyarrow.array(vectors.reshape(-1))
                values = pyarrow.FixedSizeListArray.from_arrays(flat, type=vector)
                batches.append(pyarrow.record_batch([names, times, values], schema=schema))
                held += len(vectors)
        if batches:
            writer.write_table(pyarrow.Table.from_batches(batches))


def _rows_at_once(size: int) -> int:
    """Return how many vectors of ``size`` floats are read and written at once."""
    return max(1, GROUP // (4 * size))


def _text(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")


def _rows_of(part: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield a part's rows in stretches: timestamps (NaN for the scene) and vectors."""
    try:
        with zipfile.ZipFile(part) as archive:
            members = set(archive.namelist())
            if "scene.npy" in members:
                yield (
                    np.array([np.nan]),
                    read_array(archive, "scene", OutputError, np.float32)[None],
                )
            if "vectors.npy" in members:
                timestamps = read_array(archive, "timestamps", OutputError, np.float64)
                with archive.open("vectors.npy") as file:
                    yield from _stretches(file, timestamps)
    except (OSError, *ZIP_FAULTS) as error:
        raise OutputError(
            f"The part {part} is damaged ({error}). Delete it, and run the same command again to "
            "make it anew."
        ) from error


def _stretches(file: IO[bytes], timestamps: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read an ``.npy`` of vectors a stretch at a time."""
    np.lib.format.read_magic(file)
    (rows, size), _, _ = np.lib.format.read_array_header_1_0(file)
    step = _rows_at_once(size)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        vectors = np.frombuffer(file.read(4 * count * size), dtype="<f4").reshape(count, size)
        yield timestamps[first : first + count], vectors


# --- all of it ------------------------------------------------------------------------------


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
    """Embed files and folders into ``.npz`` files or one Parquet dataset; skip what is done.

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
        What became of each file that was not done already; and an error for each that was done,
        but whose part is not there at the end.

    Raises:
        OptionError: for wrong options, or outputs of another origin in the way.
        OutputError: where the output cannot be written.
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
        self._parts: dict[Path, _PartWriter] = {}
        self._given_up: set[Path] = set()
        self._made_elsewhere: list[FileOutcome] = []

    def run(self, jobs: int = 1) -> Iterator[SoundEmbedded | FileOutcome]:
        """Embed what is due, each file into its part; wait for what other runs embed.

        A file that cannot be read is reported and does not stop the rest.

        Args:
            jobs: threads that decode ahead.

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
            with suppress(OSError):
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
        if stamp not in (None, self._before[file.source]) and _is_done(file, self.provenance):
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
                    self._parts[file.source] = _PartWriter(file, self.provenance)
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

        Files that are due still, as those that failed, are left out of the dataset, whatever part
        of an earlier state of theirs there is.

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
