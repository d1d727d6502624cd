"""A Parquet dataset of a collection, assembled from its parts."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from gram_hear.embed.npz import (
    CollectionFile,
    OutputError,
    identity,
    read_metadata,
    rows_at_once,
    rows_of,
)
from gram_hear.errors import OptionError
from gram_hear.extras import install_command
from gram_hear.jobs.writing import temporary_prefix, write_whole


def parts_folder(output: Path) -> Path:
    """Return the folder of the parts: the output itself, or beside a dataset."""
    return output.with_name(output.name + ".parts") if output.suffix == ".parquet" else output


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
        files: those whose parts are done.
        failed: those whose parts are not; left out, even if an outdated part is there.
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
    size = provenance["scene_size" if provenance["holds"] == ["scene"] else "size"]
    vector = pyarrow.list_(pyarrow.float32(), size)
    schema = pyarrow.schema(
        [("file", pyarrow.string()), ("timestamp_ms", pyarrow.float64()), ("vector", vector)],
        metadata={"gram_hear": json.dumps(provenance), "parts": digest},
    )
    rows = rows_at_once(size)
    with pyarrow.parquet.ParquetWriter(path, schema, use_dictionary=["file"]) as writer:
        batches: list[Any] = []
        held = 0
        for name, part in parts:
            for timestamps, vectors in rows_of(part):
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


def _text(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")
