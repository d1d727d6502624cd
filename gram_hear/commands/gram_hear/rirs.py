"""``gram-hear rirs``: sets of simulated room impulse responses."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gram_hear.console import Force, Head, Jobs, NoCheckHead, progress_bar, say
from gram_hear.errors import count
from gram_hear.start import importing

FORMATS = {
    "binaural": ("binaural",),
    "ambisonics": ("ambisonic",),
    "both": ("binaural", "ambisonic"),
}


def rirs(
    rooms: Annotated[int, typer.Option(help="Simulate this many rooms, over all splits.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Write the set into this folder.")],
    format: Annotated[
        Literal["binaural", "ambisonics", "both"],
        typer.Option(help="Write RIRs of two ears, Ambisonic ones, or both for the same scenes."),
    ] = "binaural",
    scenes_per_room: Annotated[
        int,
        typer.Option(
            help="Place the listener, the source and the noise sources this many times in each "
            "room."
        ),
    ] = 100,
    seed: Annotated[int, typer.Option(help="Use this seed for all rooms and placements.")] = 0,
    valid: Annotated[float, typer.Option(help="Use this share of the rooms for validation.")] = 0.1,
    test: Annotated[float, typer.Option(help="Use this share of the rooms for test.")] = 0.1,
    rt60: Annotated[
        tuple[float, float],
        typer.Option(
            help="Choose reverberation times at 1 kHz at random between these two, in seconds."
        ),
    ] = (0.2, 1.0),
    distance: Annotated[
        tuple[float, float],
        typer.Option(help="Choose distances of the source at random between these two, in metres."),
    ] = (0.5, 5.0),
    noise_sources: Annotated[
        tuple[int, int],
        typer.Option(help="Choose numbers of noise sources at random between these two."),
    ] = (1, 5),
    head: Head = "kemar",
    no_check_head: NoCheckHead = False,
    rate: Annotated[int, typer.Option(help="Write the RIRs at this sample rate, in Hz.")] = 32000,
    duration: Annotated[
        float | None,
        typer.Option(
            help="Make each RIR this many seconds long.", show_default="as long as the room rings"
        ),
    ] = None,
    jobs: Jobs = None,
    force: Force = False,
) -> None:
    """Simulate a set of room impulse responses (RIRs).

    The splits train, valid and test have different rooms. The same seed gives the same set. Run the
    same command again to go on after an interruption.

    \b
    Examples:
      gram-hear rirs --rooms 100 -o rirs
      gram-hear rirs --rooms 100 -o rirs --format both --rt60 0.2 0.6 --jobs 4
    """
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
        seconds=duration,
    )
    with progress_bar("simulate", "scenes") as progress:
        counts = build_rirs(
            output, plan, jobs=jobs, force=force, check_head=not no_check_head, progress=progress
        )
    say(
        ", ".join(f"{count(number, 'scene')} for {split}" for split, number in counts.items()) + "."
    )
    typer.echo(output)
