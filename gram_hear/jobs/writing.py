"""Files written whole or not at all."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gram_hear.errors import GramError, OptionError, reason_of


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary name in the folder of ``path``, then rename it to ``path``.

    The temporary name is hidden and ends in ``.partial``; it is removed where writing fails.

    Raises:
        OptionError: where the folder is not there, or ``path`` is a folder itself.
    """
    if not path.parent.is_dir():
        raise OptionError(f"There is no folder {path.parent} to write {path.name} into; make it.")
    if path.is_dir():
        raise OptionError(f"{path} is a folder; a file is to be written there.")
    temporary = path.with_name(f"{temporary_prefix(path)}{uuid.uuid4().hex}.partial")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_prefix(path: Path) -> str:
    """Return how the temporary names for ``path`` begin; short, however long its name is."""
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}."


def remove_leftovers(path: Path) -> None:
    """Remove what runs that were killed left of ``path``, where no other run may be writing it."""
    for leftover in path.parent.glob(f"{temporary_prefix(path)}*.partial"):
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8, whole or not at all; see :func:`write_whole`."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: object, indent: int | None = 1) -> None:
    """Write strict JSON, whole or not at all; see :func:`write_whole`.

    Raises:
        ValueError: for NaN and infinity, which JSON does not have.
    """
    text = json.dumps(content, indent=indent, allow_nan=False, ensure_ascii=False)
    # File names may hold what is no Unicode (lone surrogates): JSON has escapes for them.
    data = f"{text}\n".encode(errors="backslashreplace")
    write_whole(path, lambda temporary: temporary.write_bytes(data))


def write_json_lines(path: Path, entries: Iterable[object]) -> None:
    """Write strict JSON, an entry on each line, whole or not at all; see :func:`write_whole`."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8") as file:
            for entry in entries:
                file.write(json.dumps(entry, allow_nan=False) + "\n")

    write_whole(path, write)


@contextmanager
def writing(output: Path, error: type[GramError]) -> Iterator[None]:
    """Turn what the file system refuses in a job into an error that says how to go on."""
    try:
        yield
    except OSError as failure:
        raise error(
            f"{output} cannot be written: {reason_of(failure)}. What is finished is kept; run the "
            "same command again to go on."
        ) from failure


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or, where the file system cannot, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
