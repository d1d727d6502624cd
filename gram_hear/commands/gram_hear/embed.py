"""``gram-hear embed``: sound files in, embeddings out."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gram_hear.commands.gram_hear.options import CacheDir, Heads, Layer, Model, Revision
from gram_hear.console import Convention, Device, Sounds, messages, progress_bar, results, say
from gram_hear.start import importing

if TYPE_CHECKING:
    from gram_hear.embed.collection import CollectionRun


def embed(
    paths: Sounds,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for .npz files, or one .parquet file.")
    ],
    model: Model = "",
    strategy: Annotated[
        str,
        typer.Option(
            help="How a row is made of its patches: raw, mean or cls (with --parity also sum)."
        ),
    ] = "raw",
    layer: Layer = None,
    convention: Convention = None,
    parity: Annotated[
        bool,
        typer.Option("--parity", help="Use the authors' windows and rows, faults included."),
    ] = False,
    window_fill: Annotated[
        str | None,
        typer.Option(
            help="What fills the window of a file shorter than 2 s: repeat, mirror, silence or "
            "zero. Default: repeat; zero with --parity."
        ),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="Numbers to compute in: float32, bfloat16, float16, or int8 (GRAM-T on the CPU)."
        ),
    ] = "float32",
    window_batch: Annotated[
        int, typer.Option(help="How many windows of 2 s are encoded at once.")
    ] = 16,
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
        bool, typer.Option("--force", help="Embed all again, and replace what is there.")
    ] = False,
) -> None:
    """Embed sound files of any number and length; what is done already is skipped.

    Into a folder: one .npz for each file, mirroring the input tree, with vectors (rows, d),
    timestamps (rows, in ms), scene (d) and metadata (JSON). Into a .parquet file: one dataset
    with the columns file, timestamp_ms (null for the whole scene) and vector. A row is the
    embedding of one time step.

    Example: gram-hear embed recordings/ -o embeddings.parquet --model gramt-binaural
    """
    with importing():
        from gram_hear.embed.collection import CollectionRun, plan_files
        from gram_hear.hear import load_model
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


def _show_run(collection: "CollectionRun", jobs: int) -> list[str]:
    """Embed what is due under a progress bar, and return the errors of files that failed."""
    from gram_hear.embed.collection import SoundEmbedded

    failed = []
    sound, start, total = 0.0, time.monotonic(), collection.seconds
    # On a terminal the bar must be told of a line, so that the line does not run into it.
    printed_to = messages if sys.stdout.isatty() else results
    with progress_bar("embedding", "s of sound") as move:
        move(0, total)
        for event in collection.run(jobs):
            if isinstance(event, SoundEmbedded):
                sound += event.seconds
                move(min(sound, total), total, f"{sound / (time.monotonic() - start):.1f} s/s")
            elif event.error is not None:
                failed.append(event.error)
                say(f"failed: {event.error}")
            else:
                say(event.file.output, printed_to)
        move(total, total)
    return failed
