"""``hear-eval tasks``: what a folder of tasks holds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gram_hear.console import AsJson, print_table, say
from gram_hear.errors import count
from gram_hear.start import importing


def tasks(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Name the folder here, or with --tasks-dir."),
    ] = None,
    tasks_dir: Annotated[
        Path | None,
        typer.Option(help="Look for the tasks in this folder.", show_default="tasks"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the tasks in a folder, and what is missing there.

    For each task, this prints its type, metrics, splits and sample rates, and files that are
    missing or broken.

    \b
    Examples:
      hear-eval tasks
      hear-eval tasks --tasks-dir tasks --json
    """
    if folder is not None and tasks_dir is not None:
        raise typer.BadParameter(f"{folder} and --tasks-dir {tasks_dir} were given; choose one.")
    with importing():
        from gram_hear.tasks import describe_tasks
    described = describe_tasks(folder or tasks_dir or Path("tasks"))
    if as_json:
        typer.echo(json.dumps(described, indent=2))
    else:
        _show_tasks(described)
    if broken := [each["name"] for each in described if each["faults"]]:
        say(f"{len(broken)} broken: {', '.join(broken)}")
        raise typer.Exit(1)


def _show_tasks(described: Sequence[dict[str, Any]]) -> None:
    """Print what :func:`gram_hear.tasks.describe_tasks` returns, a broken task's parts left out."""
    rows = [
        (
            each["name"],
            each.get("type") or "",
            ", ".join(each.get("metrics") or ()),
            ", ".join(f"{name} {size}" for name, size in (each.get("splits") or {}).items()),
            ", ".join(
                f"{rate} (resampled)" if rate in each["made"] else str(rate)
                for rate in each.get("rates") or ()
            ),
            "; ".join([*_missing(each), *each["faults"]]),
        )
        for each in described
    ]
    columns = ("task", "type", "metrics", "splits", "rates", "missing or wrong")
    print_table(columns, rows, fold=columns[2:], spare=("type", "metrics"))


def _missing(described: dict[str, Any]) -> list[str]:
    """Say how many files each rate lacks; those of a rate that was made are made when needed."""
    return [
        f"{rate}: {count(files, 'file')} missing"
        for rate, files in (described.get("missing") or {}).items()
        if files and rate not in described["made"]
    ]
