"""What the commands of ``gram-hear`` share: options, and the check of a file to be written."""

from pathlib import Path
from typing import Annotated

import typer

from gram_hear import style
from gram_hear.errors import OptionError

DEFAULT_MODEL = "gramt-binaural"
WHICH_MODEL = (
    "Give the name of a registered model (see gram-hear models), a checkpoint file or folder, or a "
    "repository on the Hugging Face Hub."
)


def complete_model(incomplete: str) -> list[str]:
    """Return the registered names that begin so."""
    from gram_hear.checkpoints.registry import list_models

    return [entry.name for entry in list_models() if entry.name.startswith(incomplete)]


ModelArgument = Annotated[str, typer.Argument(help=WHICH_MODEL, autocompletion=complete_model)]
Model = Annotated[
    str, typer.Option("--model", "-m", help=WHICH_MODEL, autocompletion=complete_model)
]
Heads = Annotated[
    int | None,
    typer.Option(
        help="Say how many attention heads the model has. Only a checkpoint in the authors' layout "
        "whose heads are not 64 wide needs this."
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(help="Take this branch, tag or commit of a model from the Hub."),
]
CacheDir = Annotated[
    str | None,
    typer.Option(
        help="Keep downloaded models in this folder.", show_default="the Hub client's own folder"
    ),
]
Layer = Annotated[
    int | None,
    typer.Option(
        help="Stop after this many blocks of the encoder, and embed what comes out there.",
        show_default="all blocks",
    ),
]
Start = Annotated[float, typer.Option(help="Begin at this second of the file.")]


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
