"""A collection of sound files on disk: plan, embed, resume, and write ``.npz`` files or Parquet.

Every file becomes one part, an ``.npz`` that is written whole or not at all and says what it was
made from: the model's hash, the options, the source's size and time. A part that says what is asked
for is not made again. A Parquet dataset is assembled from the parts.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np

from gram_hear.audio.files import find_audio, warn_of_left_out
from gram_hear.config import EMBEDDINGS
from gram_hear.embed.files import Block, FileDone, FileFailed, Group, embed_groups, group_files
from gram_hear.errors import GramError, OptionError, count, reason_of
from gram_hear.extras import install_command
from gram_hear.foreign import ZIP_FAULTS, read_array
from gram_hear.hear import HearModel
from gram_hear.jobs.writing import temporary_prefix, write_whole

SPOOL = 2**24  # bytes of a file's vectors held in memory before they go to a temporary file
GROUP = 2**25  # bytes of vectors read and written at once when a dataset is assembled


class OutputError(GramError, OSError):
    """The output cannot be written; what was finished before is kept."""


@dataclass(frozen=True)
class Job:
    """One file to embed, the part that its embeddings go to, and its name in the collection."""

    source: Path
    output: Path
    name: str


@dataclass(frozen=True)
class Progress:
    """A stretch of sound was embedded, of so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What became of a job: ``error`` is None, or says why there is no output."""

    job: Job
    error: str | None


# --- plan -----------------------------------------------------------------------------------


def plan_jobs(paths: Iterable[str | PathLike], output: str | PathLike) -> list[Job]:
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
    jobs: dict[str, Job] = {}
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
            job = jobs.setdefault(key, Job(source, part, relative.as_posix()))
            if job.output != part:
                raise OptionError(
                    f"{job.source} and {source} would be written to {job.output} and {part}, which "
                    "are one file on macOS and Windows. Rename one, or embed them into different "
                    "folders."
                )
            if job.source != source:
                raise OptionError(
                    f"{job.source} and {source} would both be written to {part}. Give the folder "
                    "that holds both, or embed them into different folders."
                )
    warn_of_left_out(left_out)
    if not jobs:
        raise OptionError("No sound file was found in what was given.")
    return list(jobs.values())


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
    jobs: Sequence[Job], provenance: dict[str, Any], force: bool = False
) -> dict[Job, Stamp]:
    """Return the jobs whose part is there, of the same model and options and unchanged source.

    Returns:
        These jobs, each with its part's :func:`stamp_of`.

    Raises:
        OptionError: where parts of another model or other options, or files that are no parts, are
            in the way, and ``force`` is not set.
    """
    done: dict[Job, Stamp] = {}
    foreign: list[Path] = []
    for job in jobs:
        stamp = stamp_of(job.output)
        if stamp is None or stamp[0] == 0:  # as a power cut leaves a file: nothing to lose
            continue
        metadata = read_metadata(job.output)
        if metadata is None or identity(metadata) != identity(provenance):
            foreign.append(job.output)
        elif not force and _is_current(job, metadata):
            done[job] = stamp
    if foreign and not force:
        raise OptionError(
            f"{count(len(foreign), 'output is', 'outputs are')} there already that another model, "
            f"other options, another version or another program made, such as {foreign[0]}. Use "
            "--force (force=True) to replace them, or another output."
        )
    return done


def _is_current(job: Job, metadata: dict[str, Any]) -> bool:
    # A source that is not there is reported when its turn comes.
    return (metadata["size_bytes"], metadata["modified_ns"]) == stamp_of(job.source)


def why_lost(job: Job, stamp: Stamp, provenance: dict[str, Any]) -> str | None:
    """Return why a part that was done is not there any more, or None where it is.

    Args:
        job: whose part it is.
        stamp: what :func:`stamp_of` said when it was done.
        provenance: of the collection.
    """
    now = stamp_of(job.output)
    if now is None or now[0] == 0:
        return f"{job.output} was removed after it was done. Run the same command again to make it."
    if now == stamp:
        return None
    metadata = read_metadata(job.output)
    if (
        metadata is not None
        and identity(metadata) == identity(provenance)
        and _is_current(job, metadata)
    ):
        return None
    return (
        f"{job.output} was replaced or damaged after it was done. Move away what is there, and run "
        "the same command again to make it."
    )


def clear_leftovers(jobs: Sequence[Job], output: Path) -> None:
    """Remove what :func:`write_whole` could not: temporary files of a run that was killed."""
    outputs = {output, *(job.output for job in jobs)}
    ours = {(path.parent, temporary_prefix(path)) for path in outputs}
    for folder in {path.parent for path in outputs}:
        for path in folder.glob(".*.*.partial"):
            prefix = f".{path.name.split('.')[1]}."
            if (folder, prefix) in ours:
                with contextlib.suppress(OSError):
                    path.unlink()


def run_jobs(
    jobs: Sequence[Job],
    groups: Iterable[Group],
    due: Set[Path],
    model: HearModel,
    provenance: dict[str, Any],
    threads: int,
) -> Iterator[Progress | Outcome]:
    """Embed groups of files, each file that is due into its part.

    A file that cannot be read is reported and does not stop the rest.

    Yields:
        A :class:`Progress` for each stretch of sound, an :class:`Outcome` for each file.

    Raises:
        OutputError: where a part cannot be written; what was finished is kept.
    """
    by_source = {job.source: job for job in jobs}
    parts: dict[Path, _Part] = {}
    try:
        for event in embed_groups(groups, model, threads):
            if isinstance(event, Block):
                yield Progress(len(event.vectors) * model.hop_ms / 1000)
            if event.path not in due:
                continue
            job = by_source[event.path]
            if isinstance(event, FileFailed):
                if event.path in parts:
                    parts.pop(event.path).close()
                yield Outcome(job, event.error)
                continue
            try:
                if event.path not in parts:
                    parts[event.path] = _Part(job, provenance)
                if isinstance(event, Block):
                    parts[event.path].add(event)
                    continue
                parts[event.path].finish(event)
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    parts.pop(event.path).close()
                    due = due - {event.path}
                    yield Outcome(job, f"{job.output}: {reason_of(error)}")
                    continue
                raise OutputError(
                    f"{job.output} could not be written: {error}. What was finished is kept; run "
                    "the same command again to go on."
                ) from error
            parts.pop(event.path).close()
            yield Outcome(job, None)
    finally:
        for part in parts.values():
            part.close()


class _Part:
    """The ``.npz`` of one file in the making: vectors are spooled as they come."""

    def __init__(self, job: Job, provenance: dict[str, Any]) -> None:
        self.job = job
        self.provenance = provenance
        self._make_folder()
        self._vectors = tempfile.SpooledTemporaryFile(SPOOL, dir=str(job.output.parent))  # noqa: SIM115
        self._timestamps: list[np.ndarray] = []

    def _make_folder(self) -> None:
        """Make the part's folder, again where it was removed in the meantime."""
        self.job.output.parent.mkdir(parents=True, exist_ok=True)

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
            "file": self.job.name,
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
                    with archive.open("vectors.npy", "w", force_zip64=True) as file:
                        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(file, header)
                        shutil.copyfileobj(self._vectors, file, 2**20)

        self._make_folder()
        try:
            write_whole(self.job.output, write)
        except FileNotFoundError:  # the folder was removed while the part was written
            self._make_folder()
            write_whole(self.job.output, write)

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
    jobs: Sequence[Job], failed: Sequence[Job], output: str | PathLike, provenance: dict[str, Any]
) -> None:
    """Write one Parquet dataset of all parts, in the order of their names.

    That is the parts of ``jobs``, all of which must be there, and those that earlier runs with the
    same model and options left, but not those of ``failed``: a dataset grows, and never loses files
    because fewer were given.

    Columns: ``file`` (string), ``timestamp_ms`` (double, null in the row of the whole scene) and
    ``vector`` (a list of fixed length of floats). The schema's metadata holds ``gram_hear``, a JSON
    string of the model and options. Row groups are streamed; the dataset is written whole or not
    at all, and left alone where it holds these parts already.

    Raises:
        OutputError: where the dataset cannot be written, a part cannot be read, or the dataset is
            not there when it was written.
    """
    import_pyarrow()
    output = Path(output)
    try:
        parts = sorted(find_parts(jobs, failed, parts_folder(output), provenance).items())
        digest = _digest(parts)
        if not parts or _holds(output, digest):
            return
        write_whole(output, lambda temporary: _write_parquet(parts, temporary, provenance, digest))
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{output} could not be written: {error}. Its parts are kept; run the same command "
            "again to write it."
        ) from error
    if not _holds(output, digest):
        raise OutputError(
            f"{output} was removed or replaced after it was written. Run the same command again to "
            "write it."
        )


def find_parts(
    jobs: Sequence[Job], failed: Sequence[Job], folder: Path, provenance: dict[str, Any]
) -> dict[str, Path]:
    """Return the parts of a dataset by their names; see :func:`assemble_parquet`."""
    parts = {job.name: job.output for job in jobs}
    known = {*parts.values(), *(job.output for job in failed)}
    for path in folder.rglob("*.npz"):
        if path in known:
            continue
        metadata = read_metadata(path)
        if metadata is not None and identity(metadata) == identity(provenance):
            parts[path.relative_to(folder).as_posix().removesuffix(".npz")] = path
    return parts


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
) -> list[Outcome]:
    """Embed files and folders into ``.npz`` files or one Parquet dataset; skip what is done.

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
    collection = Collection(plan_jobs(paths, output), output, model, scene, timestamps, force)
    outcomes = {event.job: event for event in collection.run(jobs) if isinstance(event, Outcome)}
    outcomes |= {outcome.job: outcome for outcome in collection.finish()}
    return list(outcomes.values())


class Collection:
    """What :func:`embed_collection` does, step by step, for a caller that shows progress.

    Attributes:
        jobs: all files; ``due``: the sources of those that are not done, fewer as :meth:`run` goes.
        seconds: of sound that :meth:`run` will go through, as the headers tell it.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
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
        self.jobs = jobs
        self.provenance = {**describe_model(model), "holds": holds}
        self._done = find_done(jobs, self.provenance, force)
        if self.is_parquet and not force:
            check_dataset(self.output, self.provenance)
        self.due = {job.source for job in jobs if job not in self._done}
        # Groups are made of all files, so that a run that was interrupted ends with the same
        # numbers: a file shares its batches with the same others, done or not.
        groups = group_files((job.source for job in jobs), model) if self.due else []
        self.groups = [group for group in groups if self.due.intersection(group.paths)]
        self.seconds = sum(group.seconds for group in self.groups)

    def run(self, jobs: int = 1) -> Iterator[Progress | Outcome]:
        """Embed what is due, with ``jobs`` threads that decode; see :func:`run_jobs`."""
        if jobs < 1:
            raise OptionError(f"jobs is {jobs}; it must be at least 1.")
        return self._run(jobs)

    def _run(self, jobs: int) -> Iterator[Progress | Outcome]:
        clear_leftovers(self.jobs, self.output)
        due = frozenset(self.due)
        for event in run_jobs(self.jobs, self.groups, due, self.model, self.provenance, jobs):
            if isinstance(event, Outcome) and event.error is None:
                self.due.discard(event.job.source)
                self._done[event.job] = stamp_of(event.job.output)
            yield event

    def finish(self) -> list[Outcome]:
        """See that what was done is there, and bring the dataset, if the output is one, up to date.

        Files that are due still, as those that failed, are left out of the dataset, whatever part
        of an earlier state of theirs there is.

        Returns:
            An error for each part that was removed or replaced; their files are due again.

        Raises:
            OutputError: where the dataset cannot be written.
        """
        lost = [
            Outcome(job, reason)
            for job, stamp in self._done.items()
            if (reason := why_lost(job, stamp, self.provenance)) is not None
        ]
        for outcome in lost:
            del self._done[outcome.job]
            self.due.add(outcome.job.source)
        if self.is_parquet:
            failed = [job for job in self.jobs if job.source in self.due]
            assemble_parquet(list(self._done), failed, self.output, self.provenance)
        return lost
