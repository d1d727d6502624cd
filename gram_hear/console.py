"""What the commands share: what they print, one progress bar, and the options that several have.

Results go to stdout, everything else to stderr; an error is one message.

Exit codes: 0 all done; 1 something failed, be it a file, a model or an option's value that cannot
be here; 2 the command line cannot be understood (an unknown option, an argument too many or too
few, text for a number, a word that is none of an option's choices); 130 interrupted.
"""

import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gram_hear.errors import GramError, visible
from gram_hear.start import INTERRUPTED
from gram_hear.tables import fitted_lines, plain_lines


def _console(stderr: bool) -> Console:
    """Return where lines go, whatever COLUMNS is: with 0, rich would print nothing."""
    console = Console(stderr=stderr)
    if console.width < 1:
        console.width = 80
    return console


messages, results = _console(stderr=True), _console(stderr=False)

HELP = {"help_option_names": ["-h", "--help"]}  # of every command, as its context's settings


# --- options that several commands have -----------------------------------------------------


def complete(*names: str) -> Callable[[str], list[str]]:
    """Return what completes a word in a shell: the names that begin with it."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def former_names(names: Mapping[str, str]) -> dict[str, Any]:
    """Return settings of a command that takes options by other names too, which no help shows.

    ``former_names({"seconds": "duration"})`` makes ``--seconds`` mean ``--duration``.
    """
    return {"token_normalize_func": lambda name: names.get(name, name)}


def _show_version(context: typer.Context, show: bool) -> None:
    if show:
        typer.echo(f"{context.find_root().command.name} {version('gram-hear')}")
        raise typer.Exit


HEADS = ("kemar", "sphere")
HEAD_METAVAR = "<kemar|sphere|FILE>"
PICTURE = "PNG, SVG or PDF file"
WHICH_HEAD = "Listen with a dummy head (kemar), a rigid sphere, or the head in a SOFA file."

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Convention = Annotated[
    Literal["ambix", "fuma", "soundspaces"] | None,
    typer.Option(
        help="Read files of four channels in this Ambisonic convention. A file that states another "
        "one is an error.",
        show_default="the file's own, or else ambix",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="Compute on this device: auto, cpu, mps, cuda, or cuda:1 and so on. With auto, a GPU "
        "is used if there is one.",
        autocompletion=complete("auto", "cpu", "mps", "cuda", "cuda:0", "cuda:1"),
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist already.")]
Head = Annotated[
    str,
    typer.Option(metavar=HEAD_METAVAR, help=WHICH_HEAD, autocompletion=complete(*HEADS)),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        help="Run this many processes at the same time.", show_default="one for each processor"
    ),
]
NoCheckHead = Annotated[
    bool,
    typer.Option(
        "--no-check-head",
        help="Accept a SOFA file that looks wrong: the ear nearer to the source is the quieter or "
        "the later one, the head was measured in a room, or all directions lie in one plane.",
    ),
]
Sounds = Annotated[
    list[Path], typer.Argument(help="Give sound files, or folders to search for them.")
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="Use only this task. For several, write --task a,b or --task a --task b. A short "
        "name, such as sounds for sounds-v1-full, means the dry task alone. Names of tasks in "
        "scenes, such as sounds-v1-full-binaural, must be written in full.",
        show_default="all tasks",
    ),
]
TasksDir = Annotated[Path, typer.Option(help="Look for the tasks in this folder.")]
NewTasksDir = Annotated[  # the same folder, where a command writes into it
    Path,
    typer.Option("--output", "-o", "--tasks-dir", help="Put the tasks into this folder."),
]
Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
    ),
]


def names_in(given: Sequence[str] | None) -> list[str] | None:
    """Return names that are given one by one, or with commas between them; None for none."""
    names = [name.strip() for each in given or () for name in each.split(",") if name.strip()]
    return names or None


# --- running --------------------------------------------------------------------------------


def run(app: typer.Typer) -> None:
    """Run a command line; errors of ours become one message and exit code 1."""
    warnings.showwarning = show_warning
    # Help is wrapped between words alone: gramt-binaural is one.
    textwrap.TextWrapper.wordsep_re = textwrap.TextWrapper.wordsep_simple_re
    try:
        app(prog_name=app.info.name)
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
    """Print a line as it is, brackets too; what a terminal cannot show is "?"."""
    console.print(visible(str(message)), markup=False, emoji=False, highlight=False, soft_wrap=True)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning; in place of ``warnings.showwarning``, which prints its line of code too."""
    say(f"warning: {message}")


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    fold: Collection[str] = (),
    spare: Sequence[str] = (),
    total: Sequence[str] | None = None,
) -> None:
    """Print a table on stdout: fitted to a terminal, plain for a pipe or a file.

    Args:
        columns: the heads, all different.
        rows: a cell for each column.
        title: a line above the table.
        fold: columns whose cells may take several lines on a terminal.
        spare: columns that a narrow terminal can do without; a message names those left out.
        total: a last row, set apart on a terminal.
    """
    every = [*rows, *([total] if total else [])]
    table = {head: [row[n] for row in every] for n, head in enumerate(columns)}
    left_out: list[str] = []
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        lines, left_out = fitted_lines(table, width, fold, spare, total=total is not None)
    else:
        lines = plain_lines(table)
    for line in [title, *lines] if title else lines:
        say(line, results)
    if left_out:
        say(f"The terminal is too narrow for the columns {', '.join(left_out)}.")


@contextmanager
def progress_bar(description: str, unit: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar on stderr; that of a step that fails vanishes.

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
    bar = Progress(*columns, console=messages)
    task = bar.add_task(description, total=None, note="")

    def move(done: float, total: float, note: str = "") -> None:
        bar.update(task, completed=done, total=total, note=note)

    bar.start()
    stop = bar.stop
    try:
        yield move
    except GramError:
        bar.live.transient = True
        stop = bar.live.stop  # without the empty line that a file would get
        raise
    finally:
        stop()
