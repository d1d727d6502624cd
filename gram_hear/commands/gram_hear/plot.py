"""``gram-hear plot``: a sound and what a model makes of it, in one picture."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gram_hear.commands.gram_hear.options import (
    WHICH_MODEL,
    Layer,
    Start,
    check_picture,
    complete_model,
)
from gram_hear.console import PICTURE, Convention, Device, Force, say
from gram_hear.errors import OptionError
from gram_hear.start import importing

SHOWN = 30.0  # seconds of a longer file that are drawn, where nobody says how many
LONGEST = 600.0  # seconds that are drawn at all


def plot(
    audio: Annotated[Path, typer.Argument(help="Give a sound file of 1, 2 or 4 channels.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help=f"Write the picture into this {PICTURE}.",
            show_default="the sound's name with .png, in the current folder",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help=WHICH_MODEL,
            autocompletion=complete_model,
            show_default="the bundled model for the file's channels",
        ),
    ] = "",
    start: Start = 0.0,
    duration: Annotated[
        float | None,
        typer.Option(
            help=f"Show this many seconds, at most {LONGEST:g}.", show_default=f"{SHOWN:g} s"
        ),
    ] = None,
    reconstruction: Annotated[
        bool,
        typer.Option(
            "--reconstruction",
            help="Draw the 2 s from --start on instead: as they are, masked, and as the model "
            "reconstructs them. The checkpoint must still have its decoder.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Use this seed for the mask of --reconstruction.")] = 0,
    strategy: Annotated[
        Literal["raw", "mean"],
        typer.Option(
            help="Choose what the embedding of a time step is made of: its frequency patches side "
            "by side (raw), or their mean (mean)."
        ),
    ] = "raw",
    layer: Layer = None,
    convention: Convention = None,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Draw a sound and its embedding over time.

    The picture has one time axis for the waveform, the log-mel spectrogram of each channel, the
    principal components of the embedding, and how alike its time steps are. Choose a part of a long
    file with --start and --duration. That part is embedded as if it were the whole file.

    \b
    Examples:
      gram-hear plot scene.wav
      gram-hear plot scene.wav -o scene.png --start 10 --duration 20
      gram-hear plot scene.wav --reconstruction --model runs/last.ckpt
    """
    if reconstruction:
        _refuse_with_reconstruction(duration, strategy, layer, device)
    if not 0 <= seed < 2**63:
        raise OptionError(f"--seed is {seed}; it must be 0 or more, and below 2^63.")
    if duration is not None and duration > LONGEST:
        raise OptionError(
            f"--duration is {duration:g} s; at most {LONGEST:g} s fit into a picture."
        )
    output = output or Path(audio.stem + (".reconstruction.png" if reconstruction else ".png"))
    check_picture(output, audio, force)
    with importing():
        from gram_hear.audio.excerpts import channels_of, check_bounds, read_excerpt
        from gram_hear.audio.layouts import check_convention
        from gram_hear.checkpoints.registry import offline_name
        from gram_hear.config import LAYOUT_OF_AUDIO
        from gram_hear.hear import load_model
        from gram_hear.plots.reconstruction import picture_reconstruction
        from gram_hear.plots.sound import picture_sound, sound_figure
        from gram_hear.style import save_figure
    check_bounds(start, duration)
    if convention is not None:
        check_convention(convention)
    name = model or offline_name(LAYOUT_OF_AUDIO[channels_of(audio)])
    if reconstruction:
        figure = picture_reconstruction(audio, name, start, convention, seed)
    else:
        loaded = load_model(name, strategy=strategy, layer=layer, device=device)
        shown = read_excerpt(audio, loaded.sample_rate, start, duration or SHOWN, convention)
        if shown.goes_on and duration is None:
            say(f"{audio} goes on: {shown.start:g} to {shown.end:g} s are shown; see --duration.")
        figure = sound_figure(picture_sound(audio, shown, loaded))
    save_figure(figure, output)
    typer.echo(output)


def _refuse_with_reconstruction(
    duration: float | None, strategy: str, layer: int | None, device: str
) -> None:
    given = {
        "--duration": duration is not None,
        "--strategy": strategy != "raw",
        "--layer": layer is not None,
        "--device": device not in ("auto", "cpu"),
    }
    if any(given.values()):
        raise OptionError(
            f"{', '.join(name for name, is_given in given.items() if is_given)} and "
            "--reconstruction were both given; a window is always 2 s, goes through the whole "
            "model, and is drawn on the CPU."
        )
