"""``gram-hear rirs``: sets of simulated room impulse responses."""

from pathlib import Path
from typing import Annotated

import typer

from gram_hear.console import Force, Head, Jobs, NoCheckHead, progress_bar, say
from gram_hear.errors import count, require_known
from gram_hear.start import importing

FORMATS = {
    "binaural": ("binaural",),
    "ambisonics": ("ambisonic",),
    "both": ("binaural", "ambisonic"),
}


def rirs(
    rooms: Annotated[int, typer.Option(help="How many rooms, over all splits.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the set.")],
    format: Annotated[
        str,
        typer.Option(
            help="Channels of the RIRs: binaural, ambisonics, or both of the same scenes."
        ),
    ] = "binaural",
    scenes_per_room: Annotated[
        int, typer.Option(help="Placements of listener, source and noise sources in each room.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Seed of all rooms and placements.")] = 0,
    valid: Annotated[float, typer.Option(help="Share of the rooms for validation.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the rooms for test.")] = 0.1,
    rt60: Annotated[
        tuple[float, float],
        typer.Option(help="Reverberation time at 1 kHz in seconds, low and high."),
    ] = (0.2, 1.0),
    distance: Annotated[
        tuple[float, float], typer.Option(help="Distance of the source in metres, low and high.")
    ] = (0.5, 5.0),
    noise_sources: Annotated[
        tuple[int, int], typer.Option(help="Noise sources in each scene, fewest and most.")
    ] = (1, 5),
    head: Head = "kemar",
    no_check_head: NoCheckHead = False,
    rate: Annotated[int, typer.Option(help="Sample rate, Hz.")] = 32000,
    seconds: Annotated[
        float | None,
        typer.Option(help="Length of each RIR in seconds. Default: as long as the room rings."),
    ] = None,
    jobs: Jobs = None,
    force: Force = False,
) -> None:
    """Simulate a set of room impulse responses, and print its folder.

    The rooms of train, valid and test are different ones. The same command goes on after an
    interruption; the same seed gives the same set, whatever --jobs.

    Example: gram-hear rirs --rooms 100 -o rirs --format both
    """
    require_known("format", format, FORMATS)
    with importing():
        from gram_hear.scenes.rir_building import RirPlan, build_rirs
        from gram_hear.scenes.rooms import Ranges
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
