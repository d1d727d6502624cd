"""``gram-hear push``: a checkpoint onto the Hub."""

from typing import Annotated

import typer

from gram_hear.commands.gram_hear.options import ModelArgument
from gram_hear.start import importing


def push(
    model: ModelArgument,
    repository: Annotated[
        str, typer.Argument(help="The repository on the Hugging Face Hub: owner/name.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
    licence: Annotated[str, typer.Option(help="The Hub's identifier of the licence.")] = "other",
) -> None:
    """Upload a checkpoint's encoder to the Hub, with a model card, and print its address.

    The login is that of 'hf auth login', or the environment variable HF_TOKEN.

    Example: gram-hear push model.safetensors me/my-gram --private
    """
    with importing():
        from gram_hear.checkpoints.push import push_to_hub
        from gram_hear.hear import load_model
    typer.echo(push_to_hub(load_model(model), repository, private=private, licence=licence))
