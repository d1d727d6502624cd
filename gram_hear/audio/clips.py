"""Arrays and tensors of audio, checked and brought into clips of (channels, samples) float32."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.masked import is_masked_tensor

from gram_hear.config import LAYOUT_OF_AUDIO
from gram_hear.errors import AudioError

Audio = Tensor | np.ndarray | Sequence[Tensor] | Sequence[np.ndarray]

MANY = 512  # more clips than this, of 1, 2 or 4 samples each, are one clip with channels last
LOUDEST = 2.0  # larger absolute samples bring a warning
FULL_SCALE = {torch.int8: 2**7, torch.int16: 2**15, torch.int32: 2**31, torch.uint8: 2**7}


def as_clips(audio: Audio) -> list[Tensor]:
    """Check audio and return its clips, each (channels, samples) float32 on its own device.

    Example::

        as_clips(np.zeros((3, 2, 32000)))  # three tensors of shape (2, 32000)

    Args:
        audio: (n, samples), (n, channels, samples), or a list of (samples,) or (channels,
            samples) clips; float32 or float64, numpy or torch.

    Raises:
        AudioError: for audio of another type, rank or number of channels, without clips or
            samples, or with values that are not finite.
    """
    batch: Sequence[Any]
    if isinstance(audio, (list, tuple)):
        batch, name = audio, "Clip {} of the list"
    else:
        tensor = as_tensor(audio)
        if tensor.dim() not in (2, 3):
            raise AudioError(
                f"The audio has shape {tuple(tensor.shape)}; it must be (n, samples) or (n, "
                "channels, samples). For one clip add the first dimension: audio[None]."
            )
        if tensor.dim() == 2 and tensor.shape[1] in LAYOUT_OF_AUDIO and len(tensor) > MANY:
            raise AudioError(
                f"The audio has shape {tuple(tensor.shape)}: clips of {tensor.shape[1]} samples. "
                "The channels of one clip seem to come last; give (1, channels, samples): "
                "audio.T[None]."
            )
        batch, name = tensor.unbind(0), "Clip {}"
    if len(batch) == 0:
        raise AudioError("The audio is empty: there are no clips in it. Give at least one.")
    clips = [check_clip(as_tensor(clip), name.format(i)) for i, clip in enumerate(batch)]
    loudest = max(range(len(clips)), key=lambda i: clips[i][1])
    warn_if_loud(name.format(loudest), clips[loudest][1], stacklevel=4)
    return [clip for clip, _ in clips]


def as_tensor(audio: Any) -> Tensor:
    """Return an array or a tensor of float32 or float64 as a tensor, or raise an AudioError."""
    if isinstance(audio, np.ma.MaskedArray) or is_masked_tensor(audio):
        advice = "audio.filled(0.0)" if isinstance(audio, np.ndarray) else "audio.to_tensor(0.0)"
        raise AudioError(
            "The audio is masked, and what lies under the mask would be heard. Say what is to be "
            f"heard there, such as silence: {advice}."
        )
    if isinstance(audio, np.ndarray):
        if audio.dtype.kind not in "fiub" or audio.dtype.itemsize > 8:
            raise AudioError(f"The audio is {audio.dtype}; it must be float32 or float64.")
        native = audio.dtype.newbyteorder("=")
        audio = torch.tensor(np.ascontiguousarray(audio, dtype=native))
    if not isinstance(audio, Tensor):
        raise AudioError(
            f"The audio is a {type(audio).__name__}; it must be a numpy array, a torch tensor, or "
            "a list of those."
        )
    if audio.layout != torch.strided or audio.is_nested or audio.is_meta:
        kind = "nested" if audio.is_nested else "meta" if audio.is_meta else audio.layout
        raise AudioError(
            f"The audio is a {kind} tensor; it must be dense, with values. Give clips of unequal "
            "lengths as a list."
        )
    if audio.dtype not in (torch.float32, torch.float64):
        scale = FULL_SCALE.get(audio.dtype)
        advice = f"divide it by {scale}.0" if scale else "convert it to values in [-1, 1]"
        if audio.dtype == torch.uint8:
            advice = "subtract 128 and divide by 128.0"
        raise AudioError(
            f"The audio is {str(audio.dtype).removeprefix('torch.')}; it must be float32 or "
            f"float64 in [-1, 1]: {advice}."
        )
    return audio


def check_clip(clip: Tensor, name: str) -> tuple[Tensor, float]:
    """Return a clip as (channels, samples) float32, and its largest absolute sample.

    Args:
        clip: (samples,) or (channels, samples), float32 or float64.
        name: of the clip, for messages.

    Raises:
        AudioError: as :func:`as_clips`.
    """
    if clip.dim() not in (1, 2):
        raise AudioError(
            f"{name} has shape {tuple(clip.shape)}; it must be (samples,) or (channels, samples)."
        )
    clip = clip[None] if clip.dim() == 1 else clip
    channels, samples = clip.shape
    if channels not in LAYOUT_OF_AUDIO:
        advice = " The channels seem to come last; they must come before the samples."
        raise AudioError(
            f"{name} has {channels} channels (shape {channels} x {samples}); allowed are 1 (mono), "
            "2 (binaural) and 4 (first-order Ambisonic)."
            + (advice if samples in LAYOUT_OF_AUDIO else "")
        )
    if samples == 0:
        raise AudioError(f"{name} has no samples.")
    clip = clip.to(torch.float32)
    peak = float(clip.detach().abs().max())
    if not np.isfinite(peak):
        raise AudioError(f"{name} holds NaN or infinite samples; repair or leave out the clip.")
    return clip, peak


def warn_if_loud(name: str, peak: float, stacklevel: int = 2) -> None:
    """Warn where the largest absolute sample of ``name`` is far outside [-1, 1]."""
    if peak > LOUDEST:
        warnings.warn(
            f"{name} has samples up to {peak:.3g}, far outside [-1, 1]. Divide integer samples by "
            "their full scale (32768 for 16 bits).",
            stacklevel=stacklevel,
        )
