"""The parts of a collection: an ``.npz`` for each sound file, written whole or not at all.

A part says what it was made from: the model's hash, the options, the source's size and time. So it
is known whether it is up to date, wherever it comes from.
"""

import dataclasses
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np

from gram_hear.config import EMBEDDINGS
from gram_hear.embed.files import Block, FileDone
from gram_hear.errors import GramError, OptionError, count
from gram_hear.foreign import ZIP_FAULTS, read_array
from gram_hear.hear import HearModel
from gram_hear.jobs.writing import write_whole

SPOOL = 2**24  # bytes of a file's vectors held in memory before they go to a temporary file
GROUP = 2**25  # bytes of vectors read at once, and written at once into a dataset


class OutputError(GramError, OSError):
    """An output that cannot be written. What was finished before is kept."""


@dataclass(frozen=True)
class CollectionFile:
    """One file to embed, the part that its embeddings go to, and its name in the collection."""

    source: Path
    output: Path
    name: str


# --- what it is made of ---------------------------------------------------------------------


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
        "scene_size": model.scene_embedding_size,
    }


def identity(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return what two parts must share to be of one collection.

    Not the device or the batch, which change embeddings by rounding alone, nor where the model
    came from.
    """
    options = {key: value for key, value in metadata["options"].items() if key != "window_batch"}
    options.setdefault("scene", "mean")  # what it was before there was an option
    return {
        "embeddings": metadata.get("embeddings"),
        "model": metadata["model"].get("weights"),
        **options,
        "holds": metadata["holds"],
    }


# --- what is done ---------------------------------------------------------------------------


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
    """Return the files whose part is there, each with the part's :func:`stamp_of`.

    It is of the same model and options, and of the source as it is.

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


def is_done(file: CollectionFile, provenance: dict[str, Any]) -> bool:
    """Whether a file's part is there, of this model and these options and unchanged source."""
    metadata = read_metadata(file.output)
    return (
        metadata is not None
        and identity(metadata) == identity(provenance)
        and _is_current(file, metadata)
    )


def why_lost(file: CollectionFile, stamp: Stamp, provenance: dict[str, Any]) -> str | None:
    """Return why a part that was done is not there any more, or None where it is.

    ``stamp`` is what :func:`stamp_of` said when it was done.
    """
    now = stamp_of(file.output)
    if now is None or now[0] == 0:
        return (
            f"{file.output} was removed after it was done. Run the same command again to make it."
        )
    if now == stamp or is_done(file, provenance):
        return None
    return (
        f"{file.output} was replaced or damaged after it was done. Move away what is there, and "
        "run the same command again to make it."
    )


# --- written and read -----------------------------------------------------------------------


class PartWriter:
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
                    shape = (done.rows, self.provenance["size"])
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


def rows_at_once(size: int) -> int:
    """Return how many vectors of ``size`` floats are read and written at once."""
    return max(1, GROUP // (4 * size))


def rows_of(part: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
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
    step = rows_at_once(size)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        vectors = np.frombuffer(file.read(4 * count * size), dtype="<f4").reshape(count, size)
        yield timestamps[first : first + count], vectors
