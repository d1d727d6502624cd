"""What the commands share: results on stdout, everything else on stderr, errors as one message.

Exit codes: 0 all done; 1 something failed, be it a file, a model or an option's value that cannot
be here; 2 the command line cannot be understood (an unknown option, an argument too many or too
few, text for a number); 130 interrupted.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gram_hear.errors import GramError
from gram_hear.start import INTERRUPTED

messages = Console(stderr=True)
results = Console()


def _show_version(show: bool) -> None:
    if show:
        typer.echo(f"gram-hear {version('gram-hear')}")
        raise typer.Exit


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Convention = Annotated[
    str | None,
    typer.Option(
        help="Of four-channel files: ambix, fuma or soundspaces. Default: what the file says, "
        "else ambix."
    ),
]
NoCheckHead = Annotated[
    bool,
    typer.Option(
        "--no-check-head",
        help="Take a SOFA file though its nearer ear is the quieter or later one, it was "
        "measured in a room, or its directions lie in one plane.",
    ),
]
Version = Annotated[
    bool,
    typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
]


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
def progress_bar(description: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr; it is moved by a function (done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
