"""``gram-hear push``: a checkpoint onto the Hub."""

from typing import Annotated

import typer

from gram_hear.commands.gram_hear.options import ModelArgument
from gram_hear.start import importing


def push(
    model: ModelArgument,
    repository: Annotated[
        str, typer.Argument(help="Name the repository on the Hub, as owner/name.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
    licence: Annotated[
        str,
        typer.Option(
            help="Put this licence on the model card, by the Hub's identifier, such as apache-2.0."
        ),
    ] = "other",
) -> None:
    """Upload a model's encoder to the Hugging Face Hub.

    A model card is written, and the address of the repository is printed. Log in first with
    'hf auth login', or set the environment variable HF_TOKEN.

    \b
    Examples:
      gram-hear push model.safetensors me/my-gram
      gram-hear push model.safetensors me/my-gram --private --licence apache-2.0
    """
    with importing():
        from gram_hear.checkpoints.push import push_to_hub
        from gram_hear.hear import load_model
    typer.echo(push_to_hub(load_model(model), repository, private=private, licence=licence))
