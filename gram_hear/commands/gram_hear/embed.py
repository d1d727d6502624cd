"""``gram-hear embed``: sound files in, embeddings out."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gram_hear.commands.gram_hear.options import (
    DEFAULT_MODEL,
    CacheDir,
    Heads,
    Layer,
    Model,
    Revision,
)
from gram_hear.console import Convention, Device, Sounds, messages, progress_bar, results, say
from gram_hear.start import importing

if TYPE_CHECKING:
    from gram_hear.embed.collection import CollectionRun


def embed(
    paths: Sounds,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Write the embeddings into this folder, or into this one file if its name ends "
            "in .parquet.",
        ),
    ],
    model: Model = DEFAULT_MODEL,
    strategy: Annotated[
        Literal["raw", "mean", "cls", "sum"],
        typer.Option(
            help="Choose what the embedding of a time step is made of: its frequency patches side "
            "by side (raw), their mean (mean), the CLS token of its window (cls), or the sum of "
            "its patches (sum, only with --parity)."
        ),
    ] = "raw",
    scene: Annotated[
        Literal["mean", "mean_std"],
        typer.Option(
            help="Choose what the embedding of a whole file is made of: the mean of its embeddings "
            "over time (mean), or their mean and their standard deviation (mean_std), which is "
            "twice as long and tells how the sound changes."
        ),
    ] = "mean",
    layer: Layer = None,
    convention: Convention = None,
    parity: Annotated[
        bool,
        typer.Option(
            "--parity",
            help="Compute the windows and time steps as the authors' code does, with its faults.",
        ),
    ] = False,
    window_fill: Annotated[
        Literal["repeat", "mirror", "silence", "zero"] | None,
        typer.Option(
            help="Choose what fills the window of 2 s if the file is shorter: the sound again and "
            "again (repeat), the sound back and forth (mirror), silence, or the value 0 in the "
            "log-mel spectrogram (zero).",
            show_default="repeat, or zero with --parity",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "int8"],
        typer.Option(
            help="Compute with numbers of this type. int8 is for GRAM-T models on the CPU. "
            "Embeddings are float32 in any case."
        ),
    ] = "float32",
    window_batch: Annotated[
        int, typer.Option(help="Encode this many windows of 2 s at once.")
    ] = 16,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    heads: Heads = None,
    no_scene: Annotated[
        bool, typer.Option("--no-scene", help="Leave out the embeddings of whole files.")
    ] = False,
    no_timestamps: Annotated[
        bool, typer.Option("--no-timestamps", help="Leave out the embeddings over time.")
    ] = False,
    jobs: Annotated[
        int, typer.Option(help="Read this many files at the same time, while the model computes.")
    ] = 1,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Embed all files again, and replace files that exist already."
        ),
    ] = False,
) -> None:
    """Turn sound files into embeddings.

    If the output is a folder, each sound file gets an .npz file in it. Its arrays are vectors (one
    embedding for each time step), timestamps (in ms), scene (one embedding for the whole file) and
    metadata (JSON). If the name of the output ends in .parquet, all embeddings go into one table
    with the columns file, timestamp_ms (empty for the whole file) and vector.

    Run the same command again to go on after an interruption, or to add new files. Files that are
    done already are skipped.

    \b
    Examples:
      gram-hear embed recordings/ -o embeddings
      gram-hear embed a.wav b.flac -o embeddings --model gram-tiny
      gram-hear embed recordings/ -o all.parquet --strategy mean --no-scene
    """
    with importing():
        from gram_hear.embed.collection import CollectionRun, plan_files
        from gram_hear.hear import load_model
    files = plan_files(paths, output)
    loaded = load_model(
        model,
        strategy=strategy,
        scene=scene,
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
    collection = CollectionRun(files, output, loaded, not no_scene, not no_timestamps, force)
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
