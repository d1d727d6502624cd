"""``gram-hear plot``: a sound and what a model makes of it, in one picture."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from gram_hear.audio.layouts import check_convention, to_layout
from gram_hear.checkpoints.registry import offline_name
from gram_hear.checkpoints.store import (
    Checkpoint,
    build_autoencoder,
    build_encoder,
    load_checkpoint,
)
from gram_hear.commands.gram_hear.parts import channels_of, check_part, check_picture, read_part
from gram_hear.config import LAYOUT_OF_AUDIO
from gram_hear.console import Convention, say
from gram_hear.errors import OptionError
from gram_hear.frontend import FrontEnd
from gram_hear.hear import HearModel, get_timestamp_embeddings, load_model
from gram_hear.nn.masks import random_mask
from gram_hear.plots import (
    SoundPicture,
    reconstruction_figure,
    save_figure,
    sound_figure,
    unpatchify,
)
from gram_hear.windows import WindowPlan

SHOWN = 30.0  # seconds of a longer file that are drawn, where nobody says how many
LONGEST = 600.0  # seconds that are drawn at all
MASKED = 0.8  # of the patches, as in the published pretraining


def plot(
    audio: Annotated[
        Path, typer.Argument(help="A sound file of 1, 2 or 4 channels, of any sample rate.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="PNG. Default: here, under the name of the sound with .png."
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="Registered name, file, folder or Hub repository. "
            "Default: the bundled model, binaural or, for four channels, Ambisonic.",
        ),
    ] = "",
    start: Annotated[float, typer.Option(help="Seconds from which the sound is shown.")] = 0.0,
    duration: Annotated[
        float | None,
        typer.Option(help=f"Seconds that are shown, at most {LONGEST:g}. Default: {SHOWN:g}."),
    ] = None,
    reconstruction: Annotated[
        bool,
        typer.Option(
            "--reconstruction",
            help="Draw instead the window of 2 s at --start: heard, masked, and reconstructed.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the mask.")] = 0,
    strategy: Annotated[str, typer.Option(help="Of the embedding: raw or mean.")] = "raw",
    layer: Annotated[int | None, typer.Option(help="Embed after this many blocks.")] = None,
    convention: Convention = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Draw a sound and its embedding over time into a PNG, and print its path.

    Waveform, log-mel of each channel, principal components and similarity of the embedding's rows,
    on one time axis. Of a long file a part is shown, and embedded as if it were all: choose it with
    --start and --duration. --reconstruction needs a checkpoint with its decoder.

    Example: gram-hear plot scene.wav -o scene.png --start 10 --duration 20
    """
    suffix = ".reconstruction.png" if reconstruction else ".png"
    output = output or Path(audio.stem + suffix)
    if reconstruction:
        _refuse_with_reconstruction(duration, strategy, layer, device)
    if not 0 <= seed < 2**63:
        raise OptionError(f"--seed is {seed}; it must be 0 or more, and below 2^63.")
    check_picture(audio, output, force)
    if convention is not None:
        check_convention(convention)
    name = model or offline_name(LAYOUT_OF_AUDIO[channels_of(audio)])
    if reconstruction:
        check_part(start, None)
        figure = _reconstruction(audio, name, start, convention, seed)
    else:
        if strategy not in ("raw", "mean"):
            raise OptionError(
                f"The strategy is {strategy!r}; a picture over time takes raw or mean."
            )
        check_part(start, duration)
        loaded = load_model(name, strategy=strategy, layer=layer, device=device)
        figure = sound_figure(_sound_picture(audio, loaded, start, duration, convention))
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


def _sound_picture(
    path: Path,
    model: HearModel,
    start: float,
    duration: float | None,
    convention: str | None = None,
) -> SoundPicture:
    """Read what the picture of a sound shows, and embed it with a model that takes AmbiX."""
    if duration is not None and duration > LONGEST:
        raise OptionError(
            f"--duration is {duration:g} s; at most {LONGEST:g} s fit into a picture."
        )
    part = read_part(path, model.sample_rate, start, duration or SHOWN, convention)
    if part.goes_on and duration is None:
        say(f"{path} goes on: {part.start:g} to {part.end:g} s are shown; see --duration.")
    heard = torch.from_numpy(part.audio)
    embeddings, timestamps = get_timestamp_embeddings([part.audio], model)
    plan = model.plan(part.audio.shape[1])
    source = model.source.name or "model"
    return SoundPicture(
        title=f"{path.name}, {part.file_rate} Hz; embedding of {Path(source).name}",
        audio=heard.numpy(),
        rate=part.rate,
        start=part.start,
        features=_features(heard, model),
        hop=model.config.front_end.hop / model.sample_rate,
        mel_frequencies=_band_centres(model),
        rows=_less_silence(embeddings[0], plan, model).cpu().numpy(),
        times=part.start + timestamps[0].double().cpu().numpy() / 1000,
        row=model.hop_ms / 1000,
    )


def _features(audio: torch.Tensor, model: HearModel) -> np.ndarray:
    """Return the features of a file's own channels, whatever the model's.

    Intensities are weighted means over a mel band: of a plane wave the cosines of its direction.
    The models' own are sums, and so the larger the wider the band.
    """
    layout = LAYOUT_OF_AUDIO[len(audio)]
    front_end = FrontEnd(replace(model.config.front_end, layout=layout))
    samples, levels = audio.shape[1], front_end.config.audio_channels
    padded = torch.nn.functional.pad(audio, (0, max(0, front_end.config.n_fft - samples)))
    frames = 1 + samples // front_end.config.hop
    features = front_end(padded[None])[0, :, :frames]
    features[levels:] /= front_end.filterbank.sum(dim=0)
    return features.numpy()


def _less_silence(rows: torch.Tensor, plan: WindowPlan, model: HearModel) -> torch.Tensor:
    """Return a plan's rows (n, d), less those that silence has at the same place in its window.

    A row says where in its window it stands, too, which no sound has made.
    """
    front_end, frames = model.config.front_end, model.config.window_frames
    window = torch.zeros(1, front_end.audio_channels, frames * front_end.hop)
    silent, _ = get_timestamp_embeddings(window, model)
    return rows - plan.keep(silent.expand(plan.windows, -1, -1))


def _band_centres(model: HearModel) -> np.ndarray:
    """Return the centres of the mel bands in Hz, (mels,)."""
    config = model.config.front_end
    low, high = (2595 * np.log10(1 + f / 700) for f in (config.f_min, config.f_max))
    mels = np.linspace(low, high, config.mels + 2)[1:-1]
    return 700 * (10 ** (mels / 2595) - 1)


def _reconstruction(
    path: Path, name: str, start: float, convention: str | None, seed: int
) -> object:
    """Mask the window that begins at ``start``, reconstruct it, and return the figure."""
    checkpoint = load_checkpoint(name)
    _need_decoder(checkpoint, name)
    config = checkpoint.config
    rate = config.front_end.sample_rate
    seconds = config.window_frames * config.front_end.hop / rate
    part = read_part(path, rate, start, seconds, convention)
    encoder, autoencoder = build_encoder(checkpoint), build_autoencoder(checkpoint)
    sound = to_layout(torch.from_numpy(part.audio), config.front_end.layout)
    missing = config.front_end.n_fft - sound.shape[1]
    sound = torch.nn.functional.pad(sound, (0, max(0, missing)))
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask(1, config.tokens, round(MASKED * config.tokens), generator)
    with torch.inference_mode():
        window = encoder.windows_of(sound[None], [0], config.window_fill)
        made = autoencoder(window, mask)
        hidden = mask[..., None].expand_as(made.target)
        target, prediction, hidden = (
            unpatchify(each, config)[0].numpy() for each in (made.target, made.prediction, hidden)
        )
    title = (
        f"{path.name}, window at {part.start:g} s; {Path(name).name}; {100 * MASKED:.0f} % hidden, "
        f"loss {float(made.loss):.3f}"
    )
    return reconstruction_figure(target, prediction, hidden, config, title, part.start)


def _need_decoder(checkpoint: Checkpoint, name: str) -> None:
    if checkpoint.config.decoder is None:
        raise OptionError(
            f"{name} holds an encoder alone, and only a decoder reconstructs. Use a checkpoint of "
            "pretraining, or one converted without --encoder-only."
        )
