"""``gram-hear models``: the registered models."""

import json

import typer
from rich.table import Table

from gram_hear.console import AsJson, print_table
from gram_hear.start import importing


def models(as_json: AsJson = False) -> None:
    """List the registered models.

    Example: gram-hear models
    """
    with importing():
        from gram_hear.checkpoints.registry import list_models
    entries = list_models()
    if as_json:
        typer.echo(json.dumps([vars(entry) for entry in entries], indent=2))
        return
    table = Table("name", "channels", "patching", "description", "repository", "licence")
    for entry in entries:
        table.add_row(
            entry.name,
            str(entry.channels),
            entry.patching,
            entry.description,
            entry.repository or ("(bundled)" if entry.file else "(built from a seed)"),
            entry.licence,
        )
    print_table(table)
