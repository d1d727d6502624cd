"""Parquet files of sounds, as ``datasets`` writes them, unpacked into plain tars.

A column of sound has the bytes of a file and its path in each row, or bytes alone.
"""

import itertools
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gram_hear.audio.archives import TAR_END, add_member, plain_stem
from gram_hear.audio.files import SUFFIXES
from gram_hear.errors import GramError, SceneError, count
from gram_hear.extras import need

ROWS = 32  # that are decoded at a time
BLOCK = 512  # bytes of a tar's header, to which its members are padded
SWELLING = 4  # times the size that a footer states, which the sounds may have ...
SLACK = 64 << 20  # ... and bytes besides
MARKS = {b"fLaC": ".flac", b"RIFF": ".wav", b"OggS": ".ogg"}  # how files of sound begin


@dataclass(frozen=True)
class Table:
    """What a Parquet file's footer says: its rows, and the bytes of a tar of its sounds."""

    column: str
    rows: int
    tar_bytes: int


def read_footer(file: Any, name: str, wanted: str | None) -> Table:
    """Read the footer of an open Parquet file, and find the column of sound in it.

    Raises:
        SceneError: for no Parquet file, none or several columns of sound, and sounds that are
            not in it.
    """
    parquet = need("pyarrow.parquet", "parquet")
    with _parquet_faults(name):
        opened = parquet.ParquetFile(file)
        schema, facts = opened.schema_arrow, opened.metadata
    column = _sound_column(schema, name, wanted)
    stored = rows = only_paths = 0
    for group in range(facts.num_row_groups):
        part = facts.row_group(group)
        rows += part.num_rows
        for i in range(part.num_columns):
            chunk = part.column(i)
            if not f"{chunk.path_in_schema}.".startswith(f"{column}."):
                continue
            stored += max(chunk.total_uncompressed_size, 0)
            ends_in_bytes = chunk.path_in_schema in (column, f"{column}.bytes")
            if ends_in_bytes and chunk.statistics is not None and chunk.statistics.has_null_count:
                only_paths += chunk.statistics.null_count
    if only_paths:
        raise SceneError(
            f"{name}: {count(only_paths, 'row')} of {rows:,} hold no bytes in the column "
            f"{column!r}, perhaps a path alone. Write the sounds themselves into the file (with "
            "datasets: embed_external_files)."
        )
    return Table(column, rows, stored + 2 * BLOCK * rows + TAR_END)


def _sound_column(schema: Any, name: str, wanted: str | None) -> str:
    types = need("pyarrow.types", "parquet")

    def is_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    def is_sound(kind: Any) -> bool:
        if not types.is_struct(kind):
            return False
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        return "path" in fields and "bytes" in fields and is_bytes(fields["bytes"])

    if wanted is not None:
        if (times := schema.names.count(wanted)) != 1:
            there = f"{times} columns" if times else "no column"
            raise SceneError(f"{name} has {there} {wanted!r}; it has {', '.join(schema.names)}.")
        kind = schema.field(wanted).type
        if not (is_sound(kind) or is_bytes(kind)):
            raise SceneError(
                f"The column {wanted!r} of {name} is {str(kind)[:80]}; a column of sound has bytes "
                "and a path, or bytes."
            )
        return wanted
    found = [each.name for each in schema if is_sound(each.type)]
    if len(found) != 1:
        raise SceneError(
            f"{name} has {len(found)} columns of bytes and path "
            f"({', '.join(found or schema.names)[:200]}); name that of the sounds: audio_column."
        )
    return str(found[0])


@contextmanager
def _parquet_faults(name: str) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        if isinstance(error, GramError):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise SceneError(f"{name} cannot be read as Parquet: {reason}.") from error


def unpack(source: Path, file: BinaryIO, name: str, wanted: str | None) -> None:
    """Write the sounds of a local Parquet file as a tar: a member for each row, in its order."""
    parquet = need("pyarrow.parquet", "parquet")
    table = read_footer(source, name, wanted)
    most = SWELLING * table.tar_bytes + SLACK
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        numbers = itertools.count()
        with _parquet_faults(name):
            opened = parquet.ParquetFile(source, memory_map=False, pre_buffer=False)
            batches = opened.iter_batches(batch_size=ROWS, columns=[table.column])
        while True:
            with _parquet_faults(name):
                batch = next(batches, None)
                rows = [] if batch is None else batch.column(table.column).to_pylist()
            if batch is None:
                return
            for row in rows:
                data, path = _cell(row)
                if tar.offset + len(data) > most:
                    raise SceneError(
                        f"{name} holds more than {SWELLING} times what its footer states; it was "
                        "not taken."
                    )
                add_member(tar, f"{next(numbers):08d}{_member_name(path, data)}", data)


def _cell(row: Any) -> tuple[bytes, str]:
    """Return the bytes of a row, and the path beside them; empty where there is none."""
    if isinstance(row, dict):
        return row.get("bytes") or b"", str(row.get("path") or "")
    return row or b"", ""


def _member_name(path: str, data: bytes) -> str:
    """Return how the name of a row's member ends: the file's own, as far as it is harmless."""
    name = re.split(r"[/\\]", path)[-1]
    stem, suffix = plain_stem(name), os.path.splitext(name)[1]
    if suffix.lower() not in SUFFIXES:
        suffix = MARKS.get(data[:4], ".mp3")
    return f"{'_' if stem else ''}{stem}{suffix.lower()}"
