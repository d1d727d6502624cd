"""``gram-hear models``: the registered models."""

import json

import typer

from gram_hear.console import AsJson, print_table
from gram_hear.start import importing


def models(as_json: AsJson = False) -> None:
    """List the registered models.

    Their names can be given to every command that takes a model. Bundled models need no download.
    The channels are those of the sound that a model hears: 1 mono, 2 binaural, 4 Ambisonic.

    \b
    Examples:
      gram-hear models
      gram-hear models --json
    """
    with importing():
        from gram_hear.checkpoints.registry import list_models
    entries = list_models()
    if as_json:
        facts = [{**vars(entry), "audio_channels": entry.audio_channels} for entry in entries]
        typer.echo(json.dumps(facts, indent=2))
        return
    rows = [
        (
            entry.name,
            str(entry.audio_channels),
            entry.patching,
            entry.description,
            entry.repository or ("(bundled)" if entry.file else "(built from a seed)"),
            entry.licence,
        )
        for entry in entries
    ]
    columns = ("name", "channels", "patching", "description", "repository", "licence")
    print_table(
        columns,
        rows,
        fold=("description", "licence"),
        spare=("licence", "repository", "patching"),
    )
