"""``hear-eval fetch``: tasks of the public archive."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gram_hear.console import (
    AsJson,
    NewTasksDir,
    finish,
    names_in,
    print_table,
    progress_bar,
    say,
)
from gram_hear.errors import GramError
from gram_hear.jobs.callback import Progress
from gram_hear.start import importing

if TYPE_CHECKING:
    from gram_hear.evaluation.fetch.record import Archive, Record


def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Name tasks, such as esc50, or all. Without names, all are listed."),
    ] = None,
    rate: Annotated[
        int, typer.Option(help="Download the archives of this sample rate, in Hz.")
    ] = 48000,
    tasks_dir: NewTasksDir = Path("tasks"),
    show: Annotated[
        bool, typer.Option("--list", help="List tasks and their sizes, and download nothing.")
    ] = False,
    record: Annotated[
        str, typer.Option(help="Download from the Zenodo record of this number.")
    ] = "5885750",
    as_json: AsJson = False,
) -> None:
    """Download tasks of the public HEAR 2021 archive.

    The folder of each task is printed. Run the same command again to go on after an interruption.

    \b
    Examples:
      hear-eval fetch --list
      hear-eval fetch esc50 libricount -o tasks
    """
    with importing():
        from gram_hear.evaluation.fetch.download import check_space
        from gram_hear.evaluation.fetch.record import choose, read_record
    found = read_record(record, report=say)
    wanted = names_in(names)
    if show or wanted is None:
        shown = list(found.archives) if wanted is None else choose(found.archives, wanted, rate)
        _show_archives(found, shown, tasks_dir, as_json)
        return
    chosen = choose(found.archives, wanted, rate)
    due, failed = _due_archives(chosen, tasks_dir)
    check_space(due, tasks_dir)
    failed += _fetch_archives(due, tasks_dir)
    for each in chosen:
        if each.task not in failed:
            typer.echo(tasks_dir / each.task)
    finish(failed)


def _due_archives(
    archives: Sequence["Archive"], tasks_dir: Path
) -> tuple[list["Archive"], list[str]]:
    """Return which archives are still to be fetched, and the tasks that cannot be."""
    due, failed = [], []
    for each in archives:
        try:
            if each.is_unpacked(tasks_dir):
                say(f"{each.task} is there already.")
            else:
                due.append(each)
        except GramError as error:
            say(f"failed: {each.task}: {error}")
            failed.append(each.task)
    return due, failed


def _fetch_archives(archives: Sequence["Archive"], tasks_dir: Path) -> list[str]:
    """Fetch archives under a progress bar; return the names of the tasks that failed."""
    from gram_hear.evaluation.fetch.download import download, take_turns
    from gram_hear.evaluation.fetch.record import in_words
    from gram_hear.evaluation.fetch.unpacking import unpack

    if archives:
        there = in_words(sum(each.fetched(tasks_dir) for each in archives))
        total = in_words(sum(each.size for each in archives))
        say(f"{len(archives)} to fetch: {total}, of which {there} are here.")
    failed = []
    for each in take_turns(archives, tasks_dir, say):
        try:
            if each.is_unpacked(tasks_dir):
                say(f"{each.task} was fetched by another run.")
                continue
            with progress_bar(f"fetch {each.task}", "MB") as progress:
                download(each, tasks_dir, _in_megabytes(progress), say)
            with progress_bar(f"unpack {each.task}", "MB") as progress:
                unpack(each, tasks_dir, _in_megabytes(progress))
        except GramError as error:
            say(f"failed: {each.task}: {error}")
            failed.append(each.task)
    return failed


def _in_megabytes(progress: Progress) -> Progress:
    """Return a function that is called with bytes, and moves a bar of megabytes, rounded up."""
    return lambda done, total: progress(-(-done // 10**6), -(-total // 10**6))


def _show_archives(
    record: "Record", archives: Sequence["Archive"], tasks_dir: Path, as_json: bool
) -> None:
    """Print what a record holds, how large it is, and what of it is there."""
    from gram_hear.evaluation.fetch.record import in_words

    total = sum(each.size for each in archives)
    rows = [(each, each.state(tasks_dir)) for each in archives]
    if as_json:
        listed = [
            {"task": each.task, "rate": each.rate, "bytes": each.size, "state": state}
            for each, state in rows
        ]
        about = {"record": record.number, "title": record.title, "version": record.version}
        typer.echo(json.dumps(about | {"bytes": total, "archives": listed}, indent=2))
        return
    typer.echo(f"Zenodo record {record.number}: {record.title} {record.version}".rstrip())
    print_table(
        ("task", "rate", "size", "state"),
        [(each.task, str(each.rate or ""), in_words(each.size), state) for each, state in rows],
        fold=("state",),
    )
    typer.echo(f"{len(archives)} archives, {in_words(total)}")
