"""What the commands of ``gram-hear`` share: options, and the check of a file to be written."""

from pathlib import Path
from typing import Annotated

import typer

from gram_hear import style
from gram_hear.errors import OptionError

WHICH_MODEL = "A registered name, a checkpoint file or folder, or a Hub repository."

ModelArgument = Annotated[str, typer.Argument(help=WHICH_MODEL)]
Model = Annotated[
    str, typer.Option("--model", "-m", help=f"{WHICH_MODEL} Default: gramt-binaural.")
]
Heads = Annotated[
    int | None,
    typer.Option(
        help="Number of attention heads, for published layouts whose heads are not 64 wide."
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a model from the Hub.")
]
CacheDir = Annotated[str | None, typer.Option(help="Folder where downloads are kept.")]
Layer = Annotated[
    int | None, typer.Option(help="Embed after this many blocks of the encoder. Default: all.")
]
Start = Annotated[float, typer.Option(help="Second of the file at which to begin.")]


def check_output(output: Path, suffix: str, sound: Path, force: bool) -> None:
    """Find what stands in the way of an output before any work is done.

    Its name must end so. The sound, which is the input, is never replaced, another file by force.
    """
    if output.suffix.lower() != suffix:
        raise OptionError(f"{output} must end in {suffix}.")
    _check_place(output, sound, force)


def check_picture(output: Path, sound: Path, force: bool) -> None:
    """The same of a picture, which has one of several suffixes; and that it can be drawn."""
    style.check_picture(output)
    _check_place(output, sound, force)


def _check_place(output: Path, sound: Path, force: bool) -> None:
    if not output.parent.is_dir():
        raise OptionError(f"There is no folder {output.parent} to write {output.name} into.")
    if not output.exists():
        return
    if sound.exists() and output.samefile(sound):
        raise OptionError(f"{output} is the sound itself; choose another output.")
    if not force:
        raise OptionError(f"{output} is there already. Use --force to replace it.")
