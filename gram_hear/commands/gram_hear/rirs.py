"""The ``gram-hear rirs`` command: thin over the library."""

from pathlib import Path
from typing import Annotated

import typer

from gram_hear.console import NoCheckHead, progress_bar, say
from gram_hear.errors import OptionError, count, nearest
from gram_hear.scenes.rir_building import RirPlan, build_rirs
from gram_hear.scenes.rooms import Ranges

FORMATS = {
    "binaural": ("binaural",),
    "ambisonics": ("ambisonic",),
    "both": ("binaural", "ambisonic"),
}
DEFAULT = Ranges()


def rirs(
    rooms: Annotated[int, typer.Option(help="How many rooms, over all splits.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the set.")],
    format: Annotated[
        str, typer.Option(help="binaural, ambisonics, or both of the same scenes.")
    ] = "binaural",
    scenes_per_room: Annotated[
        int, typer.Option(help="Placements of listener, source and noise sources in each room.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Of all rooms and placements.")] = 0,
    valid: Annotated[float, typer.Option(help="Share of the rooms for validation.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the rooms for test.")] = 0.1,
    rt60: Annotated[
        tuple[float, float], typer.Option(help="Seconds at 1 kHz, low and high.")
    ] = DEFAULT.rt60,
    distance: Annotated[
        tuple[float, float], typer.Option(help="Of the source, metres, low and high.")
    ] = DEFAULT.distance,
    noise_sources: Annotated[
        tuple[int, int], typer.Option(help="In each scene, fewest and most.")
    ] = DEFAULT.noise_sources,
    head: Annotated[str, typer.Option(help="kemar, sphere, or a SOFA file.")] = "kemar",
    no_check_head: NoCheckHead = False,
    rate: Annotated[int, typer.Option(help="Hz.")] = 32000,
    seconds: Annotated[
        float | None,
        typer.Option(help="Of each RIR. Default: as long as the room rings."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes side by side. Default: one for each processor.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a set that is there.")] = False,
) -> None:
    """Simulate a set of room impulse responses, and print its folder.

    The rooms of train, valid and test are different ones. The same command goes on after an
    interruption; the same seed gives the same set, whatever --jobs.

    Example: gram-hear rirs --rooms 100 -o rirs --format both
    """
    if format not in FORMATS:
        raise OptionError(
            f"Unknown format {format!r}; allowed are {', '.join(FORMATS)}."
            + nearest(format, FORMATS)
        )
    plan = RirPlan(
        rooms=rooms,
        scenes_per_room=scenes_per_room,
        layouts=FORMATS[format],
        seed=seed,
        valid=valid,
        test=test,
        ranges=Ranges(rt60=rt60, distance=distance, noise_sources=noise_sources),
        head=head,
        rate=rate,
        seconds=seconds,
    )
    with progress_bar("simulate", "scenes") as progress:
        counts = build_rirs(
            output, plan, jobs=jobs, force=force, check_head=not no_check_head, progress=progress
        )
    say(
        ", ".join(f"{count(number, 'scene')} for {split}" for split, number in counts.items()) + "."
    )
    typer.echo(output)
