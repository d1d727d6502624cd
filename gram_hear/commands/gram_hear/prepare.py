"""``gram-hear prepare``: sounds of any kind to tars of clips for pretraining."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gram_hear.console import AsJson, Jobs, progress_bar, say
from gram_hear.errors import count
from gram_hear.start import importing


def prepare(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Give sound files, tars or Parquet files of sounds, folders to search for all of "
            "these, or URLs of tars and Parquet files (hf://, s3://, gs://, https://). Patterns "
            "such as {000..869}, {a,b} and * stand for several."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Write the tar files into this folder.")
    ],
    duration: Annotated[
        float, typer.Option(help="Cut longer files into clips of this many seconds.")
    ] = 10.0,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Keep files whole. Training then draws parts of them."),
    ] = False,
    rate: Annotated[int, typer.Option(help="Write the clips at this sample rate, in Hz.")] = 32000,
    tar_size: Annotated[
        float,
        typer.Option(
            help="Let a tar file grow to this many MB. Each of them is written by one process, so "
            "smaller ones keep more processes busy."
        ),
    ] = 500.0,
    audio_column: Annotated[
        str | None,
        typer.Option(
            help="Read the sounds from this column of Parquet files.",
            show_default="the only column of bytes and path",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Keep Parquet files and remote tars in this folder while they are read.",
            show_default="gram-hear/shards in the user's cache directory",
        ),
    ] = None,
    cache_size: Annotated[
        float, typer.Option(help="Let that folder grow to this many GB.")
    ] = 100.0,
    jobs: Jobs = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace tar files that were made of other sounds or with other options.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Pack sounds into tar files for pretraining.

    Each sound is cut into clips of one channel, the first, which are resampled and written as FLAC.
    The file prepared.json says what was made, and what was left out. Run the same command again to
    go on after an interruption, or to add new files.

    \b
    Examples:
      gram-hear prepare recordings/ -o clips
      gram-hear prepare recordings/ -o clips --duration 5 --jobs 4
      gram-hear prepare hf://datasets/OWNER/AudioSet/data -o clips
    """
    with importing():
        from gram_hear.audio.shards import ShardCache
        from gram_hear.preparation import Preparation
        from gram_hear.preparation import prepare as prepare_clips
    preparation = Preparation(None if whole else duration, rate, tar_size)
    shards = ShardCache(cache, cache_size, audio_column)
    with progress_bar("prepare", "files") as progress:
        summary = prepare_clips(
            paths,
            output,
            preparation,
            jobs=jobs,
            force=force,
            progress=progress,
            cache=shards,
        )
    for warning in summary["warnings"]:
        say(f"warning: {warning}")
    failed = summary["failed"]
    hours = summary["sound_seconds"] / 3600
    say(
        f"{count(summary['clips'], 'clip')}, {hours:.2f} hours of sound, of "
        f"{count(summary['files'], 'file')} in {count(len(summary['tars']), 'tar')}."
    )
    if left_out := _left_out(summary["left_out"]):
        say(f"Left out: {left_out}.")
    typer.echo(json.dumps(summary, indent=2) if as_json else output)
    if failed:
        say(f"{count(len(failed), 'file')} failed:")
        for each in failed:
            say(f"  {each['reason']}")
        raise typer.Exit(1)


def _left_out(found: dict[str, Any]) -> str:
    """Return what was left out, in words; empty where nothing was."""
    others = sum(found["files_by_suffix"].values())
    labels = sum(found["beside_sounds_by_suffix"].values())
    rests, seconds = found["short_rests"], found["short_seconds"]
    unreadable = found["unreadable"]
    parts = [
        others and count(others, "file by its suffix", "files by their suffix"),
        labels and count(labels, "file beside sounds in tars", "files beside sounds in tars"),
        rests and f"{count(rests, 'remainder')} of less than 1 s ({seconds:.1f} s in all)",
        unreadable and count(unreadable, "unreadable sound"),
    ]
    return ", ".join(part for part in parts if part)
