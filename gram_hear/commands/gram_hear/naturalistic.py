"""``gram-hear naturalistic``: HEAR tasks put into simulated scenes."""

from pathlib import Path
from typing import Annotated

import typer

from gram_hear.console import (
    Head,
    Jobs,
    NoCheckHead,
    Tasks,
    TasksDir,
    finish,
    names_in,
    progress_bar,
    say,
)
from gram_hear.errors import GramError
from gram_hear.start import importing


def naturalistic(
    tasks_dir: TasksDir,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder that the new tasks are made in.")
    ],
    format: Annotated[
        str, typer.Option(help="Channels to write: binaural or ambisonics (AmbiX).")
    ] = "binaural",
    task: Tasks = None,
    rirs: Annotated[
        Path | None, typer.Option(help="A set of RIRs. Default: a simulated room for each clip.")
    ] = None,
    noise: Annotated[
        Path | None, typer.Option(help="A folder or tar files of noise. Default: synthetic.")
    ] = None,
    snr: Annotated[
        tuple[float, float],
        typer.Option(help="Signal-to-noise ratio in dB, low and high; each clip draws one."),
    ] = (5.0, 40.0),
    seed: Annotated[int, typer.Option(help="Seed of all scenes, noises and levels.")] = 0,
    rate: Annotated[
        int | None,
        typer.Option(help="Sample rate of the new audio, Hz. Default: the task's highest."),
    ] = None,
    head: Head = "kemar",
    no_check_head: NoCheckHead = False,
    jobs: Jobs = None,
) -> None:
    """Put every clip of HEAR tasks into a room, with noise, and print the folders made.

    Each task gives <task>-<format>, with the same labels and splits, and the task of finding the
    source, <task>-<format>-localization. What is done is skipped: the same command goes on after an
    interruption.

    Example: gram-hear naturalistic --tasks-dir tasks --task esc50 -o natural --format binaural
    """
    with importing():
        from gram_hear.jobs.workers import cores
        from gram_hear.scenes.naturalistic import naturalise_task, obstacle
        from gram_hear.scenes.recipes import SceneSettings
        from gram_hear.tasks import find_tasks, read_task
    settings = SceneSettings(format, rate, seed, snr, rirs, noise, head)
    jobs = cores() if jobs is None else jobs
    names = names_in(task)
    wants_all = names is None or "all" in names
    failed = []
    for folder in find_tasks(tasks_dir, names):
        try:
            found = read_task(folder)
            if wants_all and obstacle(found) is not None:
                say(
                    f"{folder.name} is skipped: it is a natural-scene or localisation task already."
                )
                continue
            with progress_bar(folder.name, "clips") as progress:
                made = naturalise_task(
                    found,
                    output,
                    settings,
                    jobs=jobs,
                    check_head=not no_check_head,
                    progress=progress,
                )
        except GramError as error:
            say(f"failed: {folder.name}: {error}")
            failed.append(folder.name)
            continue
        if made.silent:
            counts = f"{made.silent} of {made.clips} clips of {folder.name}"
            say(f"{counts} are silent; no noise was added.")
        typer.echo(made.folder)
        if made.localisation is not None:
            typer.echo(made.localisation)
    finish(failed)
