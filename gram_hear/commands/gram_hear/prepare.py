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
    """Pack sound files into tar files for pretraining.

    Each file is cut into clips of one channel, the first, which are resampled and written as FLAC.
    The file prepared.json says what was made. Run the same command again to go on after an
    interruption, or to add new files.

    \b
    Examples:
      gram-hear prepare recordings/ -o clips
      gram-hear prepare recordings/ -o clips --duration 5 --jobs 4
    """
    with importing():
        from gram_hear.preparation import Preparation
        from gram_hear.preparation import prepare as prepare_clips
    preparation = Preparation(None if whole else duration, rate, tar_size)
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
