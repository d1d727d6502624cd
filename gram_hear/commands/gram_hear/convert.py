"""``gram-hear convert``: a checkpoint in gram-hear's own format."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gram_hear.commands.gram_hear.options import CacheDir, Heads, ModelArgument, Revision
from gram_hear.console import Force
from gram_hear.errors import OptionError
from gram_hear.start import importing


def convert(
    context: typer.Context,
    model: ModelArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the model into this .safetensors file. A name with another ending is a "
            "folder, which gets the weights and a config.json. This option is needed.",
        ),
    ] = None,
    without_decoder: Annotated[
        bool,
        typer.Option(
            "--encoder-only", help="Leave out the decoder, which is used in pretraining alone."
        ),
    ] = False,
    dtype: Annotated[
        Literal["float32", "float16"],
        typer.Option(help="Write the weights as numbers of this type."),
    ] = "float32",
    revision: Revision = None,
    cache_dir: CacheDir = None,
    heads: Heads = None,
    force: Force = False,
) -> None:
    """Convert a checkpoint to the gram-hear format.

    The result is a safetensors file that holds its own configuration. Checkpoints of the authors
    and of pretraining can be converted, and models from the Hub too.

    \b
    Examples:
      gram-hear convert last.ckpt -o model.safetensors
      gram-hear convert gramt-binaural -o encoder.safetensors --encoder-only
    """
    output = _output(output, context.args)
    if output.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise OptionError(f"{output} must end in .safetensors, or be a folder.")
    if output.exists() and not force:
        raise OptionError(f"{output} is there already. Use --force to replace it.")
    with importing():
        from gram_hear.checkpoints.store import (
            encoder_only,
            load_checkpoint,
            save_checkpoint,
            save_folder,
        )
    checkpoint = load_checkpoint(model, heads=heads, revision=revision, cache_dir=cache_dir)
    if without_decoder:
        checkpoint = encoder_only(checkpoint)
    save = save_checkpoint if output.suffix == ".safetensors" else save_folder
    typer.echo(save(checkpoint, output, dtype))


def _output(output: Path | None, surplus: list[str]) -> Path:
    """Return the output: that of the option, or a second word, as up to version 0.1.0."""
    if output is not None and not surplus:
        return output
    if output is None and len(surplus) == 1:
        return Path(surplus[0])
    given = f"unexpected: {' '.join(surplus)}" if surplus else "no output was given"
    raise typer.BadParameter(f"{given}; write gram-hear convert MODEL -o OUTPUT.")
