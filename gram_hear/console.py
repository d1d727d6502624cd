"""What the commands share: results on stdout, everything else on stderr, errors as one message.

Exit codes: 0 all done, 1 something failed, 2 the command line itself was wrong.
"""

import sys
import warnings
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from gram_hear.errors import GramError

messages = Console(stderr=True)
results = Console()


def run(app: typer.Typer) -> None:
    """Run a command line; errors of ours become one message and exit code 1."""
    warnings.showwarning = _show_warning
    try:
        app()
    except GramError as error:
        say(f"error: {error}")
        sys.exit(1)


def say(message: object, console: Console = messages) -> None:
    """Print a line as it is: names of files may hold brackets, or bytes that are no characters."""
    text = str(message).encode("utf-8", "replace").decode("utf-8")  # those are shown as "?"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {message}")


def print_table(table: Table) -> None:
    """Print a table whole: off a terminal rich assumes 80 columns and would break the cells."""
    Console(width=None if sys.stdout.isatty() else 200).print(table)
