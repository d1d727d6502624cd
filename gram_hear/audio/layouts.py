"""Channel layouts and Ambisonic conventions: the only module that knows channel order.

Ambisonic audio is of first order here, in one of three conventions:

- ``ambix``: channels W, Y, Z, X (ACN), SN3D gain; X front, Y left, Z up. The usual one.
- ``fuma``: channels W, X, Y, Z; W scaled by 1 / sqrt(2), the others as in SN3D; the same axes.
- ``soundspaces``: ACN order, N3D gain, in axes x right, y up, z back: channels W, up, back, right.
  The published models were trained in it, and the published natural-scene data is in it.

That the published Ambisonic model expects ``soundspaces`` follows the authors' later evaluation
code; it could not be confirmed on the weights. Pass ``convention="soundspaces"`` to feed channels
unconverted.
"""

import math
import warnings
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from gram_hear.config import LAYOUT_OF_AUDIO
from gram_hear.errors import AudioError, require_known

CONVENTIONS = ("ambix", "fuma", "soundspaces")
CHANNEL_NAMES = {"binaural": ("left", "right"), "ambisonic": ("W", "Y", "Z", "X")}  # AmbiX

Signal = TypeVar("Signal", Tensor, np.ndarray)


def check_convention(convention: str) -> str:
    """Return ``convention`` where it is one of :data:`CONVENTIONS`, else raise an OptionError."""
    require_known("Ambisonic convention", convention, CONVENTIONS)
    return convention


def encode_ambix(directions: np.ndarray) -> np.ndarray:
    """Return the AmbiX gains (..., 4) float32 of plane waves from directions (..., 3).

    Directions are unit vectors: x front, y left, z up.
    """
    x, y, z = np.moveaxis(directions, -1, 0)
    return np.stack([np.ones_like(x), y, z, x], axis=-1).astype(np.float32)


def to_soundspaces(audio: Signal, convention: str) -> Signal:
    """Convert first-order Ambisonic audio to the published model's axes.

    Args:
        audio: (..., 4, samples) in ``convention``; torch or numpy.
        convention: ``"ambix"``, ``"fuma"`` or ``"soundspaces"`` (returned as it is).

    Returns:
        (..., 4, samples): W, sqrt(3) Z, -sqrt(3) X, -sqrt(3) Y of the AmbiX components.
    """
    check_convention(convention)
    if convention == "soundspaces":
        return audio
    if convention == "ambix":
        w, y, z, x = _components(audio)
    else:
        w, x, y, z = _components(audio)
        w = w * math.sqrt(2.0)
    gain = math.sqrt(3.0)
    return _stack([w, gain * z, -gain * x, -gain * y])


def from_soundspaces(audio: Signal) -> Signal:
    """Convert first-order Ambisonic audio from the published model's axes to AmbiX.

    Args:
        audio: (..., 4, samples) in ``soundspaces``; torch or numpy.

    Returns:
        (..., 4, samples) in AmbiX: the inverse of :func:`to_soundspaces`.
    """
    w, up, back, right = _components(audio)
    gain = 1 / math.sqrt(3.0)
    return _stack([w, -gain * right, gain * up, -gain * back])


def in_ambix(audio: Signal, convention: str) -> Signal:
    """Return sound (channels, samples) in AmbiX if it has four channels, else as it is."""
    check_convention(convention)
    if convention == "ambix" or LAYOUT_OF_AUDIO[len(audio)] != "ambisonic":
        return audio
    if convention == "soundspaces":
        return from_soundspaces(audio)
    w, x, y, z = _components(audio)
    return _stack([w * math.sqrt(2.0), y, z, x])


def _components(audio: Signal) -> list[Signal]:
    """Return the four channels of (..., 4, samples)."""
    if audio.shape[-2] != 4:
        raise AudioError(
            f"The audio has {audio.shape[-2]} channels; first-order Ambisonic audio has 4."
        )
    return [audio[..., i, :] for i in range(4)]


def _stack(components: list[Signal]) -> Signal:
    first = components[0]
    if isinstance(first, Tensor):
        return torch.stack(components, dim=-2)
    return np.stack(components, axis=-2)


def to_layout(
    audio: Tensor, layout: str, convention: str = "ambix", parity: bool = False
) -> Tensor:
    """Bring audio of 1, 2 or 4 channels into the layout that a model takes.

    Args:
        audio: (..., channels, samples); the number of channels tells its layout.
        layout: the layout wanted: ``"mono"``, ``"binaural"`` or ``"ambisonic"``.
        convention: of audio of four channels.
        parity: copy mono to all four Ambisonic channels, as the authors do, instead of W alone.

    Returns:
        (..., channels of the layout, samples). Mono becomes two equal ears, or W alone; binaural
        becomes its mean; Ambisonic becomes W, or, with a warning, W at both ears.

    Raises:
        AudioError: for binaural audio into an Ambisonic model, and other numbers of channels.
    """
    given = LAYOUT_OF_AUDIO.get(audio.shape[-2])
    if given is None:
        raise AudioError(
            f"The audio has {audio.shape[-2]} channels; allowed are 1 (mono), 2 (binaural) and 4 "
            "(first-order Ambisonic)."
        )
    if given == "ambisonic":
        audio = to_soundspaces(audio, convention)
    if given == layout:
        return audio
    if given == "binaural" and layout == "ambisonic":
        raise AudioError(
            "Binaural audio (2 channels) was given to an Ambisonic model: two ears do not "
            "determine a sound field. Use a binaural model, or the mean of both channels as mono."
        )
    omni = audio.mean(dim=-2, keepdim=True) if given == "binaural" else audio[..., :1, :]
    if layout == "mono":
        return omni
    if given == "ambisonic":
        warnings.warn(
            "Ambisonic audio (4 channels) goes into a binaural model as its channel W at both "
            "ears: its directions are lost. Use an Ambisonic model to keep them.",
            stacklevel=2,
        )
    if layout == "binaural":
        return torch.cat([omni, omni], dim=-2)
    silent = omni if parity else torch.zeros_like(omni)
    return torch.cat([omni, silent, silent, silent], dim=-2)
