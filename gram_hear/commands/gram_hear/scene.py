"""``gram-hear scene``: one's own sound in a simulated room."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gram_hear.commands.gram_hear.options import check_output, check_picture
from gram_hear.console import AsJson, Force, NoCheckHead, say
from gram_hear.errors import OptionError, reason_of, require_known
from gram_hear.jobs.writing import write_whole
from gram_hear.start import importing

if TYPE_CHECKING:
    import numpy as np

    from gram_hear.scenes.single import MadeScene


def scene(
    audio: Annotated[Path, typer.Argument(help="A sound file, of any format and sample rate.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="WAV file (float32); a .json comes beside it.")
    ],
    azimuth: Annotated[
        float | None,
        typer.Option(
            help="Azimuth of the source in degrees: 0 in front, 90 left, -90 right, 180 behind. "
            "Default: drawn from --seed."
        ),
    ] = None,
    elevation: Annotated[
        float | None, typer.Option(help="Elevation of the source, degrees above the horizon.")
    ] = None,
    distance: Annotated[
        float | None, typer.Option(help="Distance of the source from the head's centre, metres.")
    ] = None,
    rt60: Annotated[
        float | None, typer.Option(help="Reverberation time at 1 kHz, seconds.")
    ] = None,
    snr: Annotated[
        float | None,
        typer.Option(
            help="Add noise from 1 to 5 sources, at this signal-to-noise ratio in dB. Default: no "
            "noise."
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(help="Channels to write: binaural (left, right) or ambisonics (W, Y, Z, X)."),
    ] = "binaural",
    seed: Annotated[
        int, typer.Option(help="Seed of all that is not given; another number is another room.")
    ] = 0,
    noise: Annotated[
        Path | None,
        typer.Option(
            help="Set of noises, with --snr: a folder of sounds, or tars. Default: synthetic noise."
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="Whose ears hear: kemar (a dummy head), sphere, or a SOFA file. Default: kemar."
        ),
    ] = None,
    no_check_head: NoCheckHead = False,
    rate: Annotated[int, typer.Option(help="Sample rate of the output, Hz.")] = 32000,
    tail: Annotated[
        bool, typer.Option("--tail/--no-tail", help="Let the room ring on after the sound.")
    ] = True,
    plot: Annotated[Path | None, typer.Option(help="Draw the scene into this PNG.")] = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Put a sound into a room, and write what a listener hears there.

    The sound keeps its level: it is as loud as it is in the file where it comes straight from one
    metre away. The JSON beside the WAV holds all that it was made of.

    Example: gram-hear scene speech.wav -o scene.wav --azimuth 60 --rt60 0.5 --plot scene.png
    """
    description = output.with_suffix(".json")
    check_output(output, ".wav", audio, force)
    check_output(description, ".json", audio, force)
    if plot is not None:
        check_picture(plot, audio, force)
    with importing():
        from gram_hear.config import require_rate
        from gram_hear.plots.scene import scene_figure
        from gram_hear.scenes.noises import open_noise
        from gram_hear.scenes.recipes import FORMATS
        from gram_hear.scenes.single import make_scene
        from gram_hear.style import save_figure
    require_known("format", format, FORMATS)
    require_rate(rate)
    made = make_scene(
        _read_first(audio, rate),
        rate,
        FORMATS[format],
        seed=seed,
        azimuth=azimuth,
        elevation=elevation,
        distance=distance,
        rt60=rt60,
        snr=snr,
        noise=None if noise is None else open_noise(noise, rate),
        head=head,
        check_head=not no_check_head,
        tail=tail,
    )
    if made.metadata["silent"]:
        say(f"warning: {audio} is silent, and so is the scene.")
    metadata = {
        "gram_hear": version("gram-hear"),
        "file": output.name,
        "sound": str(audio),
        **made.metadata,
    }
    text = json.dumps(metadata, indent=2) + "\n"
    _write(made, output, description, text)
    if plot is not None:
        save_figure(scene_figure(made), plot)
    typer.echo(text if as_json else output, nl=not as_json)


def _read_first(audio: Path, rate: int) -> "np.ndarray":
    """Return the first channel of a sound file, (samples,) float32 at ``rate``."""
    import numpy as np

    from gram_hear.audio.files import SoundReader

    with SoundReader(audio, rate) as reader:
        if reader.channels > 1:
            say(f"{audio} has {reader.channels} channels; a source has one: the first is used.")
        return np.concatenate([block[0] for block in reader.blocks()])


def _write(made: "MadeScene", output: Path, description: Path, text: str) -> None:
    """Write the WAV and the JSON: where one cannot be written, neither is."""
    from gram_hear.audio.wav import write_wav

    def write_both(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")
        write_wav(output, made.audio, made.rate)

    try:
        write_whole(description, write_both)
    except OSError as error:
        raise OptionError(f"{output} cannot be written: {reason_of(error)}.") from error
