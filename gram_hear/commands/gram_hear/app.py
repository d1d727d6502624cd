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
from gram_hear.console import HELP, Version, former_names, run

FORMER = {  # names of options, by command
    "locate": {"head": "locator"},
    "prepare": {"seconds": "duration"},
    "push": {"license": "licence"},
    "rirs": {"seconds": "duration"},
}

app = typer.Typer(
    name="gram-hear",
    no_args_is_help=True,
    context_settings=HELP,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _program(version: Version = False) -> None:
    """Embeddings of real-world sound with the GRAM models.

    Type 'gram-hear COMMAND --help' to read about a command and its options.

    \b
    Examples:
      gram-hear embed recordings/ -o embeddings
      gram-hear scene speech.wav -o scene.wav --azimuth 60
      gram-hear locate scene.wav
    """


for command in (
    *(embed, plot, locate, models, info, convert, push),
    *(scene, rirs, naturalistic, prepare),
):
    settings = former_names(FORMER.get(command.__name__, {}))
    if command is convert:
        settings["allow_extra_args"] = True  # so that convert can still take its output as a word
    app.command(context_settings=settings)(command)


def main() -> None:
    """Run ``gram-hear``."""
    run(app)
