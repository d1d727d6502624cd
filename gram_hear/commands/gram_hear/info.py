"""``gram-hear info``: what a checkpoint holds."""

import json

import typer

from gram_hear.commands.gram_hear.options import CacheDir, Heads, ModelArgument, Revision
from gram_hear.console import AsJson, print_table
from gram_hear.start import importing


def info(
    model: ModelArgument,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    heads: Heads = None,
    as_json: AsJson = False,
) -> None:
    """Show what a checkpoint holds.

    This prints its sizes, channels, patches and parameters, and the size of its embeddings.

    \b
    Examples:
      gram-hear info gram-tiny
      gram-hear info model.safetensors --json
    """
    with importing():
        from gram_hear.checkpoints.description import describe_checkpoint
        from gram_hear.checkpoints.store import load_checkpoint
    checkpoint = load_checkpoint(model, heads=heads, revision=revision, cache_dir=cache_dir)
    facts = describe_checkpoint(checkpoint)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    rows = [
        (name.replace("_", " "), "-" if value is None else str(value))
        for name, value in facts.items()
    ]
    print_table(("what", "value"), rows)
