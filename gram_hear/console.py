"""What the commands share: what they print, one progress bar, and the options that several have.

Results go to stdout, everything else to stderr; an error is one message.

Exit codes: 0 all done; 1 something failed, be it a file, a model or an option's value that cannot
be here; 2 the command line cannot be understood (an unknown option, an argument too many or too
few, text for a number); 130 interrupted.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gram_hear.errors import GramError
from gram_hear.start import INTERRUPTED

messages = Console(stderr=True)
results = Console()


# --- options that several commands have -----------------------------------------------------


def _show_version(show: bool) -> None:
    if show:
        typer.echo(f"gram-hear {version('gram-hear')}")
        raise typer.Exit


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Convention = Annotated[
    str | None,
    typer.Option(
        help="Channel convention of four-channel files: ambix, fuma or soundspaces. Default: what "
        "the file says, else ambix."
    ),
]
Device = Annotated[
    str, typer.Option(help="Device that computes: auto, cpu, mps, cuda, cuda:1, ...")
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Head = Annotated[
    str, typer.Option(help="Whose ears hear: kemar (a dummy head), sphere, or a SOFA file.")
]
Jobs = Annotated[
    int | None, typer.Option(help="Processes side by side. Default: one for each processor.")
]
NoCheckHead = Annotated[
    bool,
    typer.Option(
        "--no-check-head",
        help="Accept a SOFA file even if its nearer ear is the quieter or later one, it was "
        "measured in a room, or its directions lie in one plane.",
    ),
]
Sounds = Annotated[list[Path], typer.Argument(help="Sound files, and folders to search.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task", help="A task, or several: --task a,b or --task a --task b. Default: all."
    ),
]
TasksDir = Annotated[Path, typer.Option(help="Folder that holds the task directories.")]
Version = Annotated[
    bool,
    typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
]


def names_in(given: Sequence[str] | None) -> list[str] | None:
    """Return names that are given one by one, or with commas between them; None for none."""
    names = [name.strip() for each in given or () for name in each.split(",") if name.strip()]
    return names or None


# --- running --------------------------------------------------------------------------------


def run(app: typer.Typer) -> None:
    """Run a command line; errors of ours become one message and exit code 1."""
    warnings.showwarning = show_warning
    try:
        app()
    except GramError as error:
        say(f"error: {error}")
        sys.exit(1)
    except SystemExit as leaving:
        if _is_interrupted(leaving):
            say("Interrupted; what is done is kept. Run the same command again to go on.")
            sys.exit(INTERRUPTED)
        raise


def _is_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C stands behind an exit: versions of typer make different things of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def finish(failed: Sequence[str]) -> None:
    """Leave with exit code 1 where something failed, and say what."""
    if failed:
        say(f"{len(failed)} failed: {', '.join(failed)}")
        raise typer.Exit(1)


# --- printing -------------------------------------------------------------------------------


def say(message: object, console: Console = messages) -> None:
    """Print a line as it is: names of files may hold brackets, or bytes that are no characters."""
    text = str(message).encode("utf-8", "replace").decode("utf-8")  # those are shown as "?"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning; in place of ``warnings.showwarning``, which prints its line of code too."""
    say(f"warning: {message}")


def print_table(table: Table) -> None:
    """Print a table whole: off a terminal rich assumes 80 columns and would break the cells."""
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@contextmanager
def progress_bar(description: str, unit: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar on stderr.

    Yields:
        The function that moves it: ``move(done, total)``; ``note="3.0 s/s"`` is shown beside.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit} {{task.fields[note]}}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages) as bar:
        task = bar.add_task(description, total=None, note="")

        def move(done: float, total: float, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield move
