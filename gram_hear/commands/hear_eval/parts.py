"""What the commands of ``hear-eval`` share."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import typer

from gram_hear.console import say
from gram_hear.errors import GramError
from gram_hear.jobs.writing import write_whole

TRACEBACK_LOG = "traceback.log"  # how the name of a file ends that holds other people's tracebacks


def split_names(given: Sequence[str] | None) -> list[str] | None:
    """Return names that are given one by one, or with commas between them; None for none."""
    names = [name.strip() for each in given or () for name in each.split(",") if name.strip()]
    return names or None


def finish(failed: Sequence[str]) -> None:
    """Leave with exit code 1 where something failed, and say what."""
    if failed:
        say(f"{len(failed)} failed: {', '.join(failed)}")
        raise typer.Exit(1)


def log_traceback(text: str, path: Path) -> str:
    """Write a traceback to a file; return a sentence that names it, "" where there is none."""
    if not text:
        return ""
    write = partial(Path.write_text, data=text, encoding="utf-8", errors="backslashreplace")
    try:
        write_whole(path, write)
    except (OSError, GramError) as error:
        return f" The traceback cannot be written to {path}: {error}"
    return f" The traceback is in {path}."
