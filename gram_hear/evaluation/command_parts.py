"""What the commands of ``hear-eval`` share."""

from collections.abc import Sequence

import typer

from gram_hear.console import say


def split_names(given: Sequence[str] | None) -> list[str] | None:
    """Return names that are given one by one, or with commas between them; None for none."""
    names = [name.strip() for each in given or () for name in each.split(",") if name.strip()]
    return names or None


def finish(failed: Sequence[str]) -> None:
    """Leave with exit code 1 where something failed, and say what."""
    if failed:
        say(f"{len(failed)} failed: {', '.join(failed)}")
        raise typer.Exit(1)
