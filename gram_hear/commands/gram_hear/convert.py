"""``gram-hear convert``: a checkpoint in gram-hear's own format."""

from pathlib import Path
from typing import Annotated

import typer

from gram_hear.commands.gram_hear.options import CacheDir, Heads, ModelArgument, Revision
from gram_hear.console import Force
from gram_hear.errors import OptionError
from gram_hear.start import importing


def convert(
    model: ModelArgument,
    output: Annotated[Path, typer.Argument(help="A .safetensors file, or a folder.")],
    without_decoder: Annotated[
        bool, typer.Option("--encoder-only", help="Leave out the decoder.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="Numbers to write the tensors in: float32 or float16.")
    ] = "float32",
    revision: Revision = None,
    cache_dir: CacheDir = None,
    heads: Heads = None,
    force: Force = False,
) -> None:
    """Convert a checkpoint to gram-hear's own format, with its configuration in it.

    OUTPUT ending in .safetensors is one file; anything else is a folder with a config.json.

    Example: gram-hear convert lightning.ckpt model.safetensors
    """
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
