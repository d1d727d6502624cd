"""The program ``gram-hear``: its commands, each in a file of its own.

The files import their libraries when a command runs, so that no help text waits for torch.
"""

import typer

from gram_hear.commands.gram_hear.convert import convert
from gram_hear.commands.gram_hear.embed import embed
from gram_hear.commands.gram_hear.info import info
from gram_hear.commands.gram_hear.locate import locate
from gram_hear.commands.gram_hear.models import models
from gram_hear.commands.gram_hear.naturalistic import naturalistic
from gram_hear.commands.gram_hear.plot import plot
from gram_hear.commands.gram_hear.prepare import prepare
from gram_hear.commands.gram_hear.push import push
from gram_hear.commands.gram_hear.rirs import rirs
from gram_hear.commands.gram_hear.scene import scene
from gram_hear.console import Version, run

app = typer.Typer(
    name="gram-hear",
    help="Embeddings of real-world sound with the GRAM models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _program(version: Version = False) -> None:
    """Take the options that stand before a command."""


for command in (
    *(embed, models, info, convert, push),
    *(scene, rirs, naturalistic, prepare, plot, locate),
):
    app.command()(command)


def main() -> None:
    """Run ``gram-hear``."""
    run(app)
