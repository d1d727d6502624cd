"""``gram-hear locate``: where the sound of a binaural or Ambisonic file comes from."""

import csv
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gram_hear.commands.gram_hear.options import Start, check_picture, complete_model
from gram_hear.console import PICTURE, Convention, Device, Force, print_table, say
from gram_hear.errors import OptionError
from gram_hear.start import importing

if TYPE_CHECKING:
    from gram_hear.audio.excerpts import Excerpt
    from gram_hear.localisation import Direction, Located

LEVEL = "level (dBFS)"
SHORTEST_STEP = 0.01  # seconds
SECTORS = (  # of 45 degrees, from the front to the left
    *("front", "front left", "left", "behind left"),
    *("behind", "behind right", "right", "front right"),
)


def locate(
    audio: Annotated[Path, typer.Argument(help="Give a binaural or an Ambisonic sound file.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", "--plot", help=f"Draw the directions over time into this {PICTURE}."
        ),
    ] = None,
    locator: Annotated[
        str,
        typer.Option(
            help="Use this trained localisation head, a .safetensors file.",
            show_default="the bundled one for the file's channels",
        ),
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="Find the model of the localisation head here: a registered name, or a "
            "checkpoint file or folder. It must be the model that the head was trained on.",
            autocompletion=complete_model,
            show_default="the model that the head names",
        ),
    ] = "",
    start: Start = 0.0,
    duration: Annotated[
        float | None,
        typer.Option(help="Use this many seconds.", show_default="all that follow"),
    ] = None,
    convention: Convention = None,
    step: Annotated[float, typer.Option(help="Print one line for this many seconds.")] = 0.5,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with every time step, instead of a table.")
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV, with every time step, instead of a table.")
    ] = False,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Find the direction that a sound comes from.

    The azimuth is 0 degrees in front, 90 left, -90 right and 180 behind. The elevation is counted
    from the horizon upwards. The confidence is between 0 and 1. Silent parts get no direction.

    One direction is found at a time. If several sources sound at once, it is the direction of the
    loudest one, or one between them.

    \b
    Examples:
      gram-hear locate scene.wav
      gram-hear locate scene.wav -o directions.png --step 0.2
      gram-hear locate scene.wav --csv > directions.csv
    """
    if as_json and as_csv:
        raise OptionError("--json and --csv were both given; choose one.")
    if not SHORTEST_STEP <= step < float("inf"):
        raise OptionError(f"--step is {step:g} s; it must be {SHORTEST_STEP:g} or more.")
    if output is not None:
        check_picture(output, audio, force)
    with importing():
        from gram_hear.audio.excerpts import channels_of, check_bounds, read_excerpt
        from gram_hear.audio.layouts import check_convention
        from gram_hear.config import LAYOUT_OF_AUDIO
        from gram_hear.localisation import BUNDLED, COLUMNS, check_layout, load_locator
        from gram_hear.plots.directions import direction_figure
        from gram_hear.style import save_figure
    check_bounds(start, duration)
    if convention is not None:
        check_convention(convention)
    channels = channels_of(audio)
    check_layout(str(audio), channels, BUNDLED)
    layout = "" if locator else LAYOUT_OF_AUDIO[channels]
    loaded = load_locator(locator, layout=layout, model=model, device=device)
    check_layout(str(audio), channels, [loaded.layout])
    excerpt = read_excerpt(audio, loaded.sample_rate, start, duration, convention)
    found = loaded.locate(excerpt.audio)
    if found.silent.all():
        say(f"{audio}: all of it is silent; there is no direction.")
    if output is not None:
        save_figure(direction_figure(audio.name, excerpt, found), output)
        say(f"drawn: {output}")
    if as_json:
        typer.echo(json.dumps(_facts(audio, excerpt, found, loaded.config.model), indent=2))
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found.table(excerpt.start))
    else:
        _print_steps(excerpt, found, step)
    if doubt := _doubt(found):
        say(f"note: {doubt}")


def _facts(audio: Path, excerpt: "Excerpt", found: "Located", model: str) -> dict[str, object]:
    from gram_hear.localisation import MIRRORED_COLUMNS, mirrored_azimuth

    names = ("azimuth_deg", "elevation_deg", "confidence", *MIRRORED_COLUMNS)
    facts: dict[str, float | None] | None = None
    if (overall := found.overall) is not None:
        mirrored = found.overall_mirrored
        azimuth = math.nan if math.isnan(mirrored) else mirrored_azimuth(overall[0])
        values = (*overall, azimuth, mirrored)
        plain = [None if math.isnan(value) else round(value, 3) for value in values]
        facts = dict(zip(names, plain, strict=True))
    return {
        "file": str(audio),
        "model": model,
        "overall": facts,
        "rows": found.table(excerpt.start),
    }


def _doubt(found: "Located") -> str:
    """Return what must be said of the overall direction before one relies on it, or ""."""
    from gram_hear.localisation import DOUBTFUL, ONE_DIRECTION

    if found.agreement < ONE_DIRECTION:
        return (
            "The sound seems to move, or to come from several directions, or the model cannot tell "
            "which. The overall direction means little."
        )
    if found.overall is not None and (confidence := found.overall[2]) < DOUBTFUL:
        return (
            f"The overall direction is doubtful (confidence {confidence:.2f}), and may be on the "
            "wrong side."
        )
    return ""


def _print_steps(excerpt: "Excerpt", found: "Located", seconds: float) -> None:
    """Print the direction of each step of time, and of all."""
    rows = []
    for offset, direction, level, mirrored in found.steps(seconds):
        begin = excerpt.start + offset
        end = min(begin + seconds, excerpt.end)
        cells = (*_cells(direction), _mirrored_cell(direction, mirrored))
        rows.append((f"{begin:.2f} - {end:.2f}", *cells, f"{level:.0f}"))
    columns = ("time (s)", "azimuth (°)", "elevation (°)", "confidence", "mirrored (°)", LEVEL)
    mirrored_cell = _mirrored_cell(found.overall, found.overall_mirrored)
    total = ("overall", *_cells(found.overall), mirrored_cell, "")
    print_table(columns, rows, spare=(LEVEL,), total=total)


def _mirrored_cell(direction: "Direction | None", probability: float) -> str:
    """Return the azimuth mirrored from front to back and its probability; "" where none is."""
    if direction is None or math.isnan(probability):
        return ""
    from gram_hear.localisation import mirrored_azimuth

    return f"{mirrored_azimuth(direction[0]):.0f} ({probability:.2f})"


def _cells(direction: "Direction | None") -> tuple[str, str, str]:
    if direction is None:
        return "silent", "", ""
    azimuth, elevation, confidence = direction
    sector = SECTORS[round(azimuth / 45) % 8]
    return f"{round(azimuth)} {sector}", f"{round(elevation)}", f"{confidence:.2f}"
