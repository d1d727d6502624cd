"""``gram-hear scene``: one's own sound in a simulated room."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gram_hear.commands.gram_hear.options import check_output, check_picture
from gram_hear.console import (
    HEAD_METAVAR,
    HEADS,
    PICTURE,
    WHICH_HEAD,
    AsJson,
    Force,
    NoCheckHead,
    complete,
    say,
)
from gram_hear.errors import OptionError, reason_of
from gram_hear.jobs.writing import write_whole
from gram_hear.start import importing

if TYPE_CHECKING:
    import numpy as np

    from gram_hear.scenes.single import MadeScene

RANDOM = "random, from --seed"


def scene(
    audio: Annotated[Path, typer.Argument(help="Give a sound file. Its first channel is used.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Write the scene into this WAV file, and a description of it beside it (.json).",
        ),
    ],
    azimuth: Annotated[
        float | None,
        typer.Option(
            help="Put the source at this azimuth in degrees: 0 is in front, 90 left, -90 right and "
            "180 behind.",
            show_default=RANDOM,
        ),
    ] = None,
    elevation: Annotated[
        float | None,
        typer.Option(
            help="Put the source this many degrees above the horizon (below it, if negative).",
            show_default=RANDOM,
        ),
    ] = None,
    distance: Annotated[
        float | None,
        typer.Option(
            help="Put the source this many metres from the centre of the head.",
            show_default=RANDOM,
        ),
    ] = None,
    rt60: Annotated[
        float | None,
        typer.Option(
            help="Make a room with this reverberation time at 1 kHz, in seconds.",
            show_default=RANDOM,
        ),
    ] = None,
    snr: Annotated[
        float | None,
        typer.Option(
            help="Add noise from 1 to 5 sources, at this signal-to-noise ratio in dB.",
            show_default="no noise",
        ),
    ] = None,
    format: Annotated[
        Literal["binaural", "ambisonics"],
        typer.Option(
            help="Write two channels (left, right), or four Ambisonic ones (AmbiX: W, Y, Z, X)."
        ),
    ] = "binaural",
    seed: Annotated[
        int,
        typer.Option(
            help="Use this seed for whatever is not given. Another seed makes another room."
        ),
    ] = 0,
    noise: Annotated[
        Path | None,
        typer.Option(
            help="Take the noise from this folder of sound files or tars. It needs --snr.",
            show_default="synthetic noise",
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            metavar=HEAD_METAVAR,
            help=f"{WHICH_HEAD} Ambisonic scenes have none.",
            autocompletion=complete(*HEADS),
            show_default="kemar",
        ),
    ] = None,
    no_check_head: NoCheckHead = False,
    rate: Annotated[int, typer.Option(help="Write the scene at this sample rate, in Hz.")] = 32000,
    tail: Annotated[
        bool, typer.Option("--tail/--no-tail", help="Let the room ring on after the sound ends.")
    ] = True,
    plot: Annotated[Path | None, typer.Option(help=f"Draw the scene into this {PICTURE}.")] = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Put a sound into a simulated room.

    The scene is what a listener in the room hears. The level of the sound is kept: direct sound
    from one metre away is as loud as in the file. The JSON file beside the WAV file says where
    everything is.

    \b
    Examples:
      gram-hear scene speech.wav -o scene.wav
      gram-hear scene speech.wav -o scene.wav --azimuth 60 --plot scene.png
      gram-hear scene speech.wav -o a.wav --snr 10 --format ambisonics
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
    say(_where(made))
    typer.echo(text if as_json else output, nl=not as_json)


def _where(made: "MadeScene") -> str:
    """Return where the source is, and how long the room rings, as one line."""
    azimuth = round(made.scene.azimuth)
    side = "left" if azimuth > 0 else "right"
    side = {0: "front", 180: "behind", -180: "behind"}.get(azimuth, side)
    return (
        f"azimuth {azimuth}° ({side}), elevation {round(made.scene.elevation)}°, "
        f"distance {made.scene.distance:.1f} m, RT60 {made.scene.room.rt60:.2f} s"
    )


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
