"""``gram-hear locate``: where the sound of a binaural or Ambisonic file comes from."""

import csv
import io
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from gram_hear.audio.layouts import check_convention
from gram_hear.commands.gram_hear.parts import (
    Part,
    channels_of,
    check_part,
    check_picture,
    read_part,
)
from gram_hear.config import LAYOUT_OF_AUDIO
from gram_hear.console import Convention, print_table, say
from gram_hear.errors import OptionError
from gram_hear.localisation import BUNDLED, Located, Locator, check_layout, load_locator
from gram_hear.plots import DirectionPicture, direction_figure, save_figure

SHORTEST_STEP = 0.01  # seconds
COLUMNS = ("time_s", "azimuth_deg", "elevation_deg", "confidence", "level_dbfs", "silent")


def locate(
    audio: Annotated[
        Path, typer.Argument(help="A binaural or Ambisonic sound file, of any sample rate.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Draw what is found into this PNG.")
    ] = None,
    head: Annotated[
        str,
        typer.Option(
            help="File of a head. Default: the one that comes with gram-hear for 2 channels, or 4."
        ),
    ] = "",
    model: Annotated[
        str, typer.Option("--model", "-m", help="Default: the model that the head names.")
    ] = "",
    start: Annotated[float, typer.Option(help="Seconds from which the file is used.")] = 0.0,
    duration: Annotated[
        float | None, typer.Option(help="Seconds that are used. Default: all that follow.")
    ] = None,
    convention: Convention = None,
    step: Annotated[float, typer.Option(help="Seconds of a line of the table.")] = 0.5,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with every row, instead of a table.")
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV, with every row, instead of a table.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a picture.")] = False,
) -> None:
    """Print the direction that the sound of a binaural or Ambisonic file comes from, over time.

    Azimuth in degrees: 0 in front, 90 left, -90 right, 180 behind; elevation above the horizon.
    Confidence is 0 to 1. Silent rows are marked, and get no direction. One direction is found at a
    time: of several sources at once it is that of the loudest, or one between them.

    Example: gram-hear locate scene.wav -o directions.png
    """
    if as_json and as_csv:
        raise OptionError("--json and --csv were both given; choose one.")
    if not SHORTEST_STEP <= step < float("inf"):
        raise OptionError(f"--step is {step:g} s; it must be {SHORTEST_STEP:g} or more.")
    check_part(start, duration)
    if convention is not None:
        check_convention(convention)
    if output is not None:
        check_picture(audio, output, force)
    channels = channels_of(audio)
    check_layout(str(audio), channels, BUNDLED)
    layout = "" if head else LAYOUT_OF_AUDIO[channels]
    locator = load_locator(head, layout=layout, model=model, device=device)
    check_layout(str(audio), channels, [locator.layout])
    part = read_part(audio, locator.sample_rate, start, duration, convention)
    found = locator.locate(part.audio)
    if found.silent.all():
        say(f"{audio}: all of it is silent; there is no direction.")
    if output is not None:
        save_figure(direction_figure(_picture(audio, part, found)), output)
        say(f"drawn: {output}")
    _print(audio, part, found, locator, step, as_json, as_csv)


def _picture(path: Path, part: Part, found: Located) -> DirectionPicture:
    return DirectionPicture(
        title=f"{path.name}: where the sound comes from",
        audio=part.audio,
        rate=part.rate,
        start=part.start,
        times=part.start + found.timestamps / 1000,
        row=found.hop_ms / 1000,
        azimuth=found.azimuth,
        elevation=found.elevation,
        confidence=found.confidence,
        overall=found.overall,
    )


def _print(
    path: Path,
    part: Part,
    found: Located,
    locator: Locator,
    step: float,
    as_json: bool,
    as_csv: bool,
) -> None:
    rows = _rows(part, found)
    if as_json:
        names = ("azimuth_deg", "elevation_deg", "confidence")
        overall = found.overall
        facts = {
            "file": str(path),
            "model": locator.config.model,
            "overall": overall and dict(zip(names, np.round(overall, 3).tolist(), strict=True)),
            "rows": rows,
        }
        typer.echo(json.dumps(facts, indent=2))
    elif as_csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        typer.echo(text.getvalue(), nl=False)
    else:
        _print_table(part, found, step)


def _rows(part: Part, found: Located) -> list[dict[str, Any]]:
    """Return every row as plain data: a silent one has no direction (None)."""
    columns = (
        part.start + found.timestamps / 1000,
        found.azimuth,
        found.elevation,
        found.confidence,
        found.level,
    )
    rows = []
    for silent, *values in zip(found.silent.tolist(), *columns, strict=True):
        plain = [None if np.isnan(value) else round(float(value), 3) for value in values]
        rows.append(dict(zip(COLUMNS, [*plain, silent], strict=True)))
    return rows


def _print_table(part: Part, found: Located, step: float) -> None:
    """Print the mean direction of each step of time, and of all."""
    table = Table("time (s)", "azimuth (°)", "elevation (°)", "confidence", "level (dBFS)")
    times = part.start + found.timestamps / 1000
    steps = np.floor((times - part.start) / step).astype(int)
    for number in np.unique(steps):
        inside = steps == number
        begin = part.start + number * step
        level = 10 * np.log10(np.mean(10 ** (found.level[inside] / 10)))
        end = min(begin + step, part.end)
        table.add_row(f"{begin:.2f} - {end:.2f}", *_cells(found.direction(inside)), f"{level:.0f}")
    table.add_section()
    table.add_row("overall", *_cells(found.overall), "")
    print_table(table)


def _cells(direction: tuple[float, float, float] | None) -> tuple[str, str, str]:
    if direction is None:
        return "silent", "", ""
    azimuth, elevation, confidence = direction
    side = "" if round(azimuth) % 180 == 0 else " left" if azimuth > 0 else " right"
    return f"{azimuth:.0f}{side}", f"{elevation:.0f}", f"{confidence:.2f}"
