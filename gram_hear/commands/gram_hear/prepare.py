"""``gram-hear prepare``: folders of audio to tars of clips for pretraining."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gram_hear.console import AsJson, Jobs, Sounds, progress_bar, say
from gram_hear.errors import count
from gram_hear.start import importing


def prepare(
    paths: Sounds,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the tars.")],
    seconds: Annotated[float, typer.Option(help="Seconds of a clip; longer files are cut.")] = 10.0,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Keep files whole; training then draws excerpts of them."),
    ] = False,
    rate: Annotated[int, typer.Option(help="Sample rate of the clips, Hz.")] = 32000,
    tar_size: Annotated[
        float, typer.Option(help="Largest size of a tar, MB. Each tar is written by one process.")
    ] = 500.0,
    jobs: Jobs = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace tars of other files or options.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make tars of FLAC clips for pretraining of sound files, and print their folder.

    Clips are one channel, the first, resampled. prepared.json in the folder says what was made.
    The same command goes on after an interruption, and adds files that are new.

    Example: gram-hear prepare recordings/ -o clips
    """
    with importing():
        from gram_hear.preparation import Preparation
        from gram_hear.preparation import prepare as prepare_clips
    preparation = Preparation(None if whole else seconds, rate, tar_size)
    with progress_bar("prepare", "files") as progress:
        summary = prepare_clips(
            paths, output, preparation, jobs=jobs, force=force, progress=progress
        )
    for warning in summary["warnings"]:
        say(f"warning: {warning}")
    failed = summary["failed"]
    hours = summary["sound_seconds"] / 3600
    say(
        f"{count(summary['clips'], 'clip')}, {hours:.2f} hours of sound, of "
        f"{count(summary['files'], 'file')} in {count(len(summary['tars']), 'tar')}."
    )
    typer.echo(json.dumps(summary, indent=2) if as_json else output)
    if failed:
        say(f"{count(len(failed), 'file')} failed:")
        for each in failed:
            say(f"  {each['reason']}")
        raise typer.Exit(1)
