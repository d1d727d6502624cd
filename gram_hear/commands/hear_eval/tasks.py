"""``hear-eval tasks``: what a folder of tasks holds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from gram_hear.console import AsJson, print_table, say
from gram_hear.errors import count
from gram_hear.start import importing


def tasks(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[TASKS_DIR]", help="The same as --tasks-dir.")
    ] = None,
    tasks_dir: Annotated[
        Path | None, typer.Option(help="Folder that holds the task directories. Default: tasks.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a folder of tasks holds, in which sample rates, and what is missing.

    Example: hear-eval tasks --tasks-dir tasks
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
    table = Table("task", "type", "metrics", "splits", "rates", "missing or wrong")
    for each in described:
        table.add_row(
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
    print_table(table)


def _missing(described: dict[str, Any]) -> list[str]:
    """Say how many files each rate lacks; those of a rate that was made are made when needed."""
    return [
        f"{rate}: {count(files, 'file')} missing"
        for rate, files in (described.get("missing") or {}).items()
        if files and rate not in described["made"]
    ]
