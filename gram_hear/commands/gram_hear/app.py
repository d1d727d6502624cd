"""The ``gram-hear`` command: thin over the library."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as BarOfProgress
from rich.table import Table

from gram_hear.checkpoints.description import describe_checkpoint
from gram_hear.checkpoints.push import push_to_hub
from gram_hear.checkpoints.registry import list_models
from gram_hear.checkpoints.store import (
    encoder_only,
    load_checkpoint,
    save_checkpoint,
    save_folder,
)
from gram_hear.commands.gram_hear.locate import locate
from gram_hear.commands.gram_hear.naturalistic import naturalistic
from gram_hear.commands.gram_hear.plot import plot
from gram_hear.commands.gram_hear.prepare import prepare
from gram_hear.commands.gram_hear.rirs import rirs
from gram_hear.commands.gram_hear.scene import scene
from gram_hear.console import AsJson, Convention, Version, messages, print_table, results, run, say
from gram_hear.embed.collection import CollectionRun, SoundEmbedded, plan_files
from gram_hear.errors import OptionError
from gram_hear.hear import load_model

app = typer.Typer(
    name="gram-hear",
    help="Embeddings of real-world sound with the GRAM models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str, typer.Argument(help="A registered name, a checkpoint file or folder, or a Hub repository.")
]
Heads = Annotated[
    int | None,
    typer.Option(help="Attention heads, for published layouts whose heads are not 64 wide."),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit, for models from the Hub.")
]
CacheDir = Annotated[str | None, typer.Option(help="Where downloads are kept.")]


def main() -> None:
    """Run ``gram-hear``."""
    run(app)


@app.callback()
def _options(version: Version = False) -> None:
    pass


@app.command()
def embed(
    paths: Annotated[list[Path], typer.Argument(help="Sound files, and folders to search.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for .npz files, or one .parquet file.")
    ],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="Registered name, file, folder or Hub repository."),
    ] = "",
    strategy: Annotated[str, typer.Option(help="raw, mean or cls (with --parity also sum).")] = (
        "raw"
    ),
    layer: Annotated[int | None, typer.Option(help="Embed after this many blocks.")] = None,
    convention: Convention = None,
    parity: Annotated[
        bool, typer.Option("--parity", help="The authors' windows and rows, faults included.")
    ] = False,
    window_fill: Annotated[
        str | None,
        typer.Option(
            help="What fills the window of a file shorter than 2 s: repeat, mirror, silence or "
            "zero. Default: repeat; zero with --parity."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, or int8 (GRAM-T on the CPU).")
    ] = "float32",
    window_batch: Annotated[int, typer.Option(help="2 s windows encoded at once.")] = 16,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    heads: Heads = None,
    scene: Annotated[
        bool, typer.Option("--scene/--no-scene", help="Keep the embedding of each whole file.")
    ] = True,
    timestamps: Annotated[
        bool, typer.Option("--timestamps/--no-timestamps", help="Keep the embeddings over time.")
    ] = True,
    jobs: Annotated[int, typer.Option(help="Threads that decode files ahead.")] = 1,
    force: Annotated[
        bool, typer.Option("--force", help="Embed all again, and replace what is in the way.")
    ] = False,
) -> None:
    """Embed sound files of any number and length; what is done already is skipped.

    Into a folder: one .npz for each file, mirroring the input tree, with vectors (rows, d),
    timestamps (rows, in ms), scene (d) and metadata (JSON). Into a .parquet file: one dataset
    with the columns file, timestamp_ms (null for the whole scene) and vector.

    Example: gram-hear embed recordings/ -o embeddings.parquet --model gramt-binaural
    """
    files = plan_files(paths, output)
    loaded = load_model(
        model,
        strategy=strategy,
        layer=layer,
        convention=convention,
        parity=parity,
        window_fill=window_fill,
        device=device,
        dtype=dtype,
        window_batch=window_batch,
        revision=revision,
        cache_dir=cache_dir,
        heads=heads,
    )
    collection = CollectionRun(files, output, loaded, scene, timestamps, force)
    if len(collection.due) < len(files):
        say(f"{len(files) - len(collection.due)} of {len(files)} files are done already.")
    failed = _show_run(collection, jobs)
    failed += [str(outcome.error) for outcome in collection.finish()]
    say(f"{len(files) - len(failed)} of {len(files)} files are embedded in {output}.")
    if failed:
        say(f"{len(failed)} failed:")
        for error in failed:
            say(f"  {error}")
        raise typer.Exit(1)


def _show_run(collection: CollectionRun, jobs: int) -> list[str]:
    """Embed what is due under a progress bar, and return the errors of files that failed."""
    failed = []
    sound, start = 0.0, time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} s of sound"),
        TextColumn("{task.fields[speed]:.1f} s/s"),
        TimeRemainingColumn(),
    )
    with BarOfProgress(*columns, console=messages) as bar:
        task = bar.add_task("embedding", total=collection.seconds, speed=0.0)
        for event in collection.run(jobs):
            if isinstance(event, SoundEmbedded):
                sound += event.seconds
                speed = sound / (time.monotonic() - start)
                bar.update(task, completed=min(sound, collection.seconds), speed=speed)
            elif event.error is not None:
                failed.append(event.error)
                say(f"failed: {event.error}")
            else:
                # On a terminal the bar must be told, so that a line does not run into it.
                say(event.file.output, bar.console if sys.stdout.isatty() else results)
        bar.update(task, completed=collection.seconds)
    return failed


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the registered models.

    Example: gram-hear models
    """
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


@app.command()
def info(
    model: Model,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    heads: Heads = None,
    as_json: AsJson = False,
) -> None:
    """Show what a checkpoint holds: sizes, channels, patching, parameters, embedding sizes.

    Example: gram-hear info model.safetensors
    """
    checkpoint = load_checkpoint(model, heads=heads, revision=revision, cache_dir=cache_dir)
    facts = describe_checkpoint(checkpoint)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table("what", "value")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), str(value))
    print_table(table)


@app.command()
def convert(
    model: Model,
    output: Annotated[Path, typer.Argument(help="A .safetensors file, or a folder.")],
    without_decoder: Annotated[
        bool, typer.Option("--encoder-only", help="Leave out the decoder.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Of the tensors: float32 or float16.")] = "float32",
    revision: Revision = None,
    cache_dir: CacheDir = None,
    heads: Heads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Convert a checkpoint to gram-hear's own format, with its configuration in it.

    OUTPUT ending in .safetensors is one file; anything else is a folder with a config.json.

    Example: gram-hear convert lightning.ckpt model.safetensors
    """
    if output.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise OptionError(f"{output} must end in .safetensors, or be a folder.")
    if output.exists() and not force:
        raise OptionError(f"{output} is there already. Use --force to replace it.")
    checkpoint = load_checkpoint(model, heads=heads, revision=revision, cache_dir=cache_dir)
    if without_decoder:
        checkpoint = encoder_only(checkpoint)
    save = save_checkpoint if output.suffix == ".safetensors" else save_folder
    typer.echo(save(checkpoint, output, dtype))


@app.command()
def push(
    model: Model,
    repository: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private.")] = False,
    licence: Annotated[str, typer.Option(help="The Hub's identifier of the licence.")] = "other",
) -> None:
    """Upload a checkpoint's encoder to the Hub, with a model card, and print its address.

    The login is that of 'hf auth login', or the environment variable HF_TOKEN.

    Example: gram-hear push model.safetensors me/my-gram --private
    """
    typer.echo(push_to_hub(load_model(model), repository, private=private, licence=licence))


for command in (scene, rirs, naturalistic, prepare, plot, locate):
    app.command()(command)
