"""One's own sound in a simulated room."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gram_hear.audio.clips import check_clip
from gram_hear.audio.layouts import CHANNEL_NAMES
from gram_hear.errors import AudioError, OptionError
from gram_hear.jobs.workers import one_thread
from gram_hear.scenes.heads import load_head
from gram_hear.scenes.mixing import Mixed, below_full_scale, mix
from gram_hear.scenes.noises import NoiseSet, open_noise
from gram_hear.scenes.rendering import Rendered, render, tune
from gram_hear.scenes.rooms import Scene, draw_room_and_scene

NOISE, START = 5, 6  # streams of the seed; see gram_hear.scenes


@dataclass(frozen=True, eq=False)
class MadeScene:
    """A sound in a room.

    Attributes:
        audio: (channels, samples) float32, in [-1, 1].
        rate: Hz.
        channels: the names of the channels, in order.
        scene: where everything stands.
        rendered: its room impulse responses (RIRs), that of the source first.
        metadata: all that the audio depends on and all that is known of it, as plain data for JSON.
            ``options`` are those of :func:`gram_hear.make_scene`.
    """

    audio: np.ndarray
    rate: int
    channels: tuple[str, ...]
    scene: Scene
    rendered: Rendered
    metadata: dict[str, Any]


def make_scene(
    audio: np.ndarray,
    rate: int,
    layout: str = "binaural",
    *,
    seed: int = 0,
    azimuth: float | None = None,
    elevation: float | None = None,
    distance: float | None = None,
    rt60: float | None = None,
    snr: float | None = None,
    noise: NoiseSet | None = None,
    head: str | Path | None = None,
    check_head: bool = True,
    tail: bool = True,
) -> MadeScene:
    """Put a sound into a room.

    What is not given is drawn from the seed. The same seed is the same room, listener and source
    in both layouts, with and without noise. The sound keeps its own level: at one metre the direct
    sound is as loud as the sound itself. If the result exceeds 1, one gain over all channels brings
    its peak just below.

    Args:
        audio: (samples,) in [-1, 1].
        rate: of the sound and of the result, Hz.
        layout: ``"binaural"`` or ``"ambisonic"`` (AmbiX).
        seed: what everything is drawn from, 0 or more.
        azimuth: of the source as the listener hears it, degrees, counter-clockwise, 0 in front.
        elevation: of the source, degrees above the horizon.
        distance: of the source from the head's centre, metres.
        rt60: reverberation time in the octave of 1 kHz, seconds.
        snr: signal-to-noise ratio in dB, over all channels, while the noise sounds. None leaves the
            noise out.
        noise: what noise is drawn from, as :func:`open_noise` returns it. None makes synthetic
            noise. Needs ``snr``.
        head: whose ears hear, as :func:`load_head` takes it. None is the bundled KEMAR head.
            Ambisonic scenes have no head.
        check_head: as ``check`` of that function.
        tail: let the room ring on after the sound. Otherwise the result is as long as the sound.

    Returns:
        The sound as it is heard, with its room impulse responses and what is known of them.

    Raises:
        AudioError: for audio that is not one channel of finite samples.
        OptionError: for an unknown layout, or numbers out of range.
        SceneError: for a room or a position that cannot be, or a head that cannot be read.

    Example::

        made = make_scene(sound, 32000, azimuth=60, seed=1)
        made.audio  # (2, samples): the left and the right ear
    """
    options = {
        "seed": seed, "azimuth": azimuth, "elevation": elevation, "distance": distance,
        "rt60": rt60, "snr": snr, "head": None if head is None else str(head),
        "check_head": check_head, "tail": tail,
    }  # fmt: skip
    _check_options(options, noise, rate)
    if layout == "ambisonic" and head is not None:
        raise OptionError(
            f"The head {head} was given, and Ambisonic scenes have none; leave it out."
        )
    dry, _ = check_clip(torch.from_numpy(np.asarray(audio, dtype=np.float32)), "The sound")
    if len(dry) != 1:
        raise AudioError(f"The sound has {len(dry)} channels; give one of them, as (samples,).")
    ears = load_head(head or "kemar", rate, check=check_head) if layout == "binaural" else None
    drawn = draw_room_and_scene(
        [seed],
        rt60=rt60,
        azimuth=azimuth,
        elevation=elevation,
        distance=distance,
        noise_sources=0 if snr is None else None,
    )
    scene = tune(drawn)
    rendered = render(scene, layout, rate, ears)
    ringing = rendered.rirs.shape[-1] - 1 if tail else 0
    dry = torch.nn.functional.pad(dry, (0, ringing))
    rirs = torch.from_numpy(rendered.rirs)[None]
    with one_thread():
        if snr is None:
            mixed, facts = mix(dry, rirs), None
        else:
            mixed, facts = _with_noise(dry, rirs, noise or open_noise(None, rate), seed, snr)
    sound, gain = below_full_scale(mixed.audio[0].numpy())
    metadata = {
        "options": options,
        **rendered.metadata,
        "channels": list(CHANNEL_NAMES[layout]),
        "samples": sound.shape[1],
        "noise": facts,
        "gain": gain,
        "silent": not bool(dry.any()),
    }
    return MadeScene(sound, rate, CHANNEL_NAMES[layout], scene, rendered, metadata)


def _check_options(options: dict[str, Any], noise: NoiseSet | None, rate: int) -> None:
    if options["seed"] < 0:
        raise OptionError(f"The seed is {options['seed']}; it must be 0 or more.")
    for name in ("azimuth", "elevation", "distance", "rt60"):
        value = options[name]
        if value is not None and not math.isfinite(value):
            raise OptionError(f"{name} is {value}; give a finite number, or leave it out.")
    elevation = options["elevation"]
    if elevation is not None and not -90 <= elevation <= 90:
        raise OptionError(f"elevation is {elevation:g}; it must be -90 (below) to 90 (above).")
    if noise is not None:
        if options["snr"] is None:
            raise OptionError("A set of noises was given without snr; give the ratio in dB too.")
        if noise.rate != rate:
            raise OptionError(
                f"The noises have {noise.rate} Hz and the sound {rate} Hz; open them at that rate."
            )


def _with_noise(
    dry: Tensor, rirs: Tensor, noise: NoiseSet, seed: int, snr: float
) -> tuple[Mixed, dict[str, Any]]:
    """Mix a sound (1, samples) with a drawn noise; return also what the noise is, and its gain.

    A noise that is shorter than the sound starts somewhere in it.
    """
    samples = dry.shape[-1]
    drawn = noise.draw([seed, NOISE], samples)
    length = len(drawn.audio)
    start = int(np.random.default_rng([seed, START]).integers(samples - length + 1))
    noises = drawn.put(start, samples, noise.rate)
    mixed = mix(dry, rirs, noises, [start], [length], [snr])
    gain = float(mixed.gain[0])
    facts = {"set": noise.name, "identity": noise.identity, **drawn.describe(start), "gain": gain}
    if gain == 0 and bool(dry.any()):
        warnings.warn(f"The noise {drawn.name} is silent: nothing was added.", stacklevel=3)
    return mixed, facts
