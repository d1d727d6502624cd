"""``gram-hear naturalistic``: HEAR tasks put into simulated scenes."""

from pathlib import Path
from typing import Annotated, Literal

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
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Put the new tasks into this folder.")
    ],
    tasks_dir: TasksDir = Path("tasks"),
    format: Annotated[
        Literal["binaural", "ambisonics"],
        typer.Option(help="Write clips of two ears, or Ambisonic ones (AmbiX)."),
    ] = "binaural",
    task: Tasks = None,
    rirs: Annotated[
        Path | None,
        typer.Option(
            help="Use the rooms of this set of RIRs.", show_default="a new room for each clip"
        ),
    ] = None,
    noise: Annotated[
        Path | None,
        typer.Option(
            help="Take the noise from this folder of sound files or tars.",
            show_default="synthetic noise",
        ),
    ] = None,
    snr: Annotated[
        tuple[float, float],
        typer.Option(
            help="Choose the signal-to-noise ratio of each clip at random between these two, in dB."
        ),
    ] = (5.0, 40.0),
    seed: Annotated[int, typer.Option(help="Use this seed for all scenes, noises and levels.")] = 0,
    rate: Annotated[
        int | None,
        typer.Option(
            help="Write the clips at this sample rate, in Hz.",
            show_default="the highest of the task",
        ),
    ] = None,
    head: Head = "kemar",
    no_check_head: NoCheckHead = False,
    jobs: Jobs = None,
) -> None:
    """Put the clips of HEAR tasks into rooms with noise.

    A task becomes two new ones. TASK-binaural has the same labels and splits.
    TASK-binaural-localization asks for the direction of the source. With --format ambisonics, their
    names say ambisonics.

    Run the same command again to go on after an interruption. Tasks that are done are skipped.

    \b
    Examples:
      gram-hear naturalistic --tasks-dir tasks --task esc50 -o natural
      gram-hear naturalistic -o natural --format ambisonics --snr 0 20 --rirs rirs
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
