"""A sound and a noise in one room: level, fades, convolution with RIRs, and the noise gain.

These are batched functions of tensors, the same on CPU and GPU. Nothing here is random, and no
input is changed. What callers draw (start, length, signal-to-noise ratio) is given with one value
for each clip. All compute in float32. On the CPU the result of a clip is the same to the bit
whatever other clips are in the batch; another number of threads may change the last bit.

Example::

    clips = to_level(clips)                                       # (B, n), -14 dBFS
    noises = fade(noises, lengths, whole)
    noises = pad_to_clips(noises, starts, lengths, clips.shape[-1])   # (B, n)
    mixed = mix(clips, rirs, noises, starts, lengths, snr)        # mixed.audio: (B, C, n)

Source: the published training recipe (arXiv 2506.00934).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gram_hear.errors import AudioError, OptionError, require_known

LEVEL = -14.0  # dBFS: the RMS of a clip
FADE = 0.2  # seconds of the linear fades of a noise
LARGEST_SNR = 100.0  # dB, positive or negative; beyond it float32 cannot hold both sounds
NOISE_GAINS = ("scene", "channel")  # what has a gain of its own
ENERGY_FLOOR = 1e-9  # added to the energy of the noise before the gain divides by it
BLOCK_SAMPLES = 2**25  # samples of all clips and channels that a GPU transforms at once
FULL_SCALE = 1.0 - 2.0**-12  # peaks above 1 are brought to this
SUM_SAMPLES = 1024  # samples that are summed at once; see _energy

PerClip = Tensor | Sequence[int] | Sequence[float] | Sequence[bool]


@dataclass(frozen=True, eq=False)
class Mixed:
    """A batch of mixtures."""

    audio: Tensor  # (batch, channels, samples) float32
    # (batch,) float32, the noise gain, or (batch, channels). It is 0 where there was no noise, and
    # where the noise or the clip was silent: inside the window of the noise, or in the channel.
    gain: Tensor


def to_level(audio: Tensor, dbfs: float = LEVEL) -> Tensor:
    """Return each clip at an RMS of ``dbfs``, with one gain for all its channels.

    Args:
        audio: (batch, channels, samples); (batch, samples), clips of one channel; or (samples,),
            one clip. Give the channels of one clip as (1, channels, samples).
        dbfs: the level in dB relative to an RMS of 1, such as -14.

    Returns:
        The same shape, float32. A silent clip stays as it is.

    Raises:
        AudioError: for no samples, integers, or values that are not finite.
        OptionError: for a level that is not finite.
    """
    _check_audio("The audio", audio, (1, 2, 3), "(batch, channels, samples)")
    if not abs(dbfs) < float("inf"):
        raise OptionError(f"The level is {dbfs} dBFS; give a finite number, such as {LEVEL}.")
    clips = audio.float().reshape(1 if audio.dim() == 1 else audio.shape[0], -1)
    peak = clips.abs().amax(dim=1, keepdim=True)
    _check_finite({"The audio": peak})
    shape = clips / torch.where(peak > 0, peak, 1.0)  # so that no square underflows
    rms = (_energy(shape[:, None]) / shape.shape[1]).sqrt()[:, None]
    level = shape * (10 ** (dbfs / 20) / torch.where(peak > 0, rms, 1.0))
    return level.reshape(audio.shape)


def fade(noises: Tensor, lengths: PerClip, whole: PerClip, rate: int = 32000) -> Tensor:
    """Return noises with linear fades of :data:`FADE` seconds at their ends.

    A whole sound fades in and out; an excerpt of a longer one only fades out. Where a sound is
    shorter than two fades, they overlap and their gains are multiplied. The first sample of a
    fade-in and the last one of a fade-out are 0, so a whole sound of one or two samples becomes
    silent.

    Args:
        noises: (batch, samples); each sound begins at sample 0.
        lengths: (batch,) samples of each sound; what follows is made silent.
        whole: (batch,) booleans: True for a whole sound, False for an excerpt.
        rate: Hz.

    Raises:
        AudioError: for a wrong shape, or a length beyond the samples.
        OptionError: for a rate at which a fade has fewer than two samples.
    """
    _check_audio("The noise", noises, (2,), "(batch, samples)")
    lengths = _whole_numbers("lengths", lengths, noises)
    whole = _one_each("whole", whole, noises)
    _check_window(torch.zeros_like(lengths), lengths, noises.shape[-1])
    faded = noises.to(torch.float32, copy=True)
    for sound, length, is_whole in zip(faded, lengths.tolist(), whole.tolist(), strict=True):
        fade_ends(sound[:length], is_whole, rate)
        sound[length:] = 0
    return faded


def fade_ends(sound: Tensor, whole: bool, rate: int = 32000) -> None:
    """Fade one noise (samples,) float32 in place, as :func:`fade` does.

    Raises:
        OptionError: for a rate at which a fade has fewer than two samples.
    """
    steps = round(FADE * rate) - 1
    if steps < 1:
        raise OptionError(
            f"The rate is {rate} Hz, too low for a fade of {FADE} s; give the true one."
        )
    ramp = torch.arange(min(steps, len(sound)), device=sound.device) / steps
    if whole:
        sound[: len(ramp)] *= ramp
    sound[len(sound) - len(ramp) :] *= ramp.flip(0)


def pad_to_clips(noises: Tensor, starts: PerClip, lengths: PerClip, samples: int) -> Tensor:
    """Pad noises with silence before and after them, to the length of the clips.

    Args:
        noises: (batch, m); each sound begins at sample 0.
        starts: (batch,) the sample of the clip at which each sound is to begin.
        lengths: (batch,) samples of each sound, at most m; what follows them is left out.
        samples: the length of the clips.

    Returns:
        (batch, samples) float32, silent outside each sound's window.

    Raises:
        AudioError: for a wrong shape, or a window that is not inside the clip.
    """
    _check_audio("The noise", noises, (2,), "(batch, samples)")
    starts = _whole_numbers("starts", starts, noises)
    lengths = _whole_numbers("lengths", lengths, noises)
    _check_window(torch.zeros_like(lengths), lengths, noises.shape[-1])
    _check_window(starts, lengths, samples)
    padded = noises.new_zeros(len(noises), samples, dtype=torch.float32)
    spans = zip(starts.tolist(), lengths.tolist(), strict=True)
    for row, noise, (start, length) in zip(padded, noises, spans, strict=True):
        row[start : start + length] = noise[:length]
    return padded


@lru_cache
def smooth_length(least: int) -> int:
    """Return the smallest 2^a 3^b 5^c that is at least ``least``: a length with a fast FFT."""
    best = 1 << (least - 1).bit_length()
    five = 1
    while five < best:
        odd = five
        while odd < best:
            best = min(best, odd << (-(-least // odd) - 1).bit_length())
            odd *= 3
        five *= 5
    return best


def convolve(signals: Tensor, rirs: Tensor, samples: int | None = None) -> Tensor:
    """Convolve each signal with each channel of its RIR, by FFT, and cut the result.

    Args:
        signals: (batch, n).
        rirs: (batch, channels, m), shorter or longer than the signals.
        samples: the length to which the result is cut, or zero-padded beyond n + m - 1; None is n.

    Returns:
        (batch, channels, samples) float32.

    Raises:
        AudioError: for shapes that do not fit each other.
    """
    _check_audio("The signal", signals, (2,), "(batch, samples)")
    _check_audio("The RIR", rirs, (3,), "(batch, channels, samples)")
    _check_batch("RIRs", rirs, signals)
    if samples is None:
        samples = signals.shape[-1]
    if samples < 1:
        raise AudioError(f"A convolution was to be cut to {samples} samples; give at least 1.")
    signals, rirs = signals[:, :samples], rirs[..., :samples]  # what comes later is not heard
    full = signals.shape[-1] + rirs.shape[-1] - 1
    length = smooth_length(full)
    # One clip after another on the CPU: no slower there, and complex products of a whole batch
    # round differently where a clip's last few bins fall.
    on_cpu = signals.device.type == "cpu"
    step = 1 if on_cpu else max(1, BLOCK_SAMPLES // (rirs.shape[1] * length))
    blocks = []
    for signal, rir in zip(signals.split(step), rirs.split(step), strict=True):
        spectrum = torch.fft.rfft(signal.float(), length)[:, None]
        product = spectrum * torch.fft.rfft(rir.float(), length)
        blocks.append(torch.fft.irfft(product, length)[..., : min(samples, full)])
    return F.pad(torch.cat(blocks), (0, max(0, samples - full)))


def mix(
    clips: Tensor,
    rirs: Tensor | None,
    noises: Tensor | None = None,
    starts: PerClip | None = None,
    lengths: PerClip | None = None,
    snr: PerClip | None = None,
    *,
    channels: int | None = None,
    noise_gain: str = "scene",
    check_values: bool = True,
) -> Mixed:
    """Return clips as they are heard in their rooms, each with its noise.

    Every noise sounds from all noise sources of its room at once. The noise gain brings it to its
    signal-to-noise ratio. Ex and En are energies of clip and noise after convolution:

    - ``scene``: one gain for all channels, a = sqrt(Ex / (En + 1e-9) * 10^(-snr / 10)). Energies
      are over all channels, inside the window of the noise. It keeps the noise's level differences
      between channels.
    - ``channel``: a gain for each channel, a = sqrt(Ex / En * 10^(-snr / 10)). Energies are of each
      channel, over the whole clip. So the ratio of clip to noise is the same in all channels.

    The reverberation of the noise goes on after the window. Where the energy of the clip is 0, the
    gain is 0 too. A silent noise, or one with silent RIRs, adds nothing.

    Args:
        clips: (batch, samples).
        rirs: (batch, 1 + K, channels, any length): the RIR of each clip, then those of its K noise
            sources; zeros where a room has fewer. None for a dry mixture, the same in all channels.
        noises: (batch, samples), silent outside their windows, as :func:`pad_to_clips` returns
            them; None for none.
        starts: (batch,) first sample of each noise's window; None for 0.
        lengths: (batch,) samples of each window; None for the rest of the clip. 0 for no noise.
        snr: (batch,) dB, at most :data:`LARGEST_SNR` either way.
        channels: of a dry mixture; None is 1. Leave it out where RIRs are given.
        noise_gain: ``"scene"`` or ``"channel"``.
        check_values: False checks types and shapes alone, for values that are right already: each
            check of values makes the processor wait for the GPU.

    Raises:
        AudioError: for shapes that do not fit each other, values that are not finite, a window that
            is not inside the clip, noise outside its window, or noise without RIRs.
        OptionError: for a signal-to-noise ratio that is missing, not finite or too large, and for
            options that contradict each other.
    """
    _check_audio("The clips", clips, (2,), "(batch, samples)")
    require_known("noise gain", noise_gain, NOISE_GAINS)
    channels = _check_rooms(clips, rirs, noises, channels)
    heard = _heard(clips, None if rirs is None else rirs[:, 0])
    if noises is None:
        if not (starts is None and lengths is None and snr is None):
            raise OptionError("starts, lengths and snr were given without noises; leave them out.")
        audio, gain = heard, clips.new_zeros(len(clips), dtype=torch.float32)
    else:
        inside = _window(clips, noises, starts, lengths, check_values)
        ratio = _ratio(snr, clips, check_values)
        # Summed before the transform: K sources cost one convolution.
        noise = _heard(
            noises, None if rirs is None else rirs[:, 1:].sum(dim=1, dtype=torch.float32)
        )
        if noise_gain == "scene":
            energy = _energy(noise * inside[:, None])
            gain = (_energy(heard * inside[:, None]) / (energy + ENERGY_FLOOR) * ratio).sqrt()
        else:  # of noise of any level: the quotient of squares would leave float32 sooner
            energy = _energy(noise, by_channel=True)
            loud = _energy(heard, by_channel=True) * ratio[:, None]
            gain = loud.sqrt() / energy.sqrt()
        gain = torch.where(energy == 0, 0.0, gain)
        audio = heard + gain.view(len(gain), -1, 1) * noise
    if check_values and not audio.isfinite().all():
        _check_finite({"The clips": clips, "The RIRs": rirs, "The noises": noises})
        raise AudioError("A mixture overflows float32. Bring the clips to a level first: to_level.")
    return Mixed(audio if rirs is not None else audio.repeat(1, channels, 1), gain)


def _heard(signals: Tensor, rirs: Tensor | None) -> Tensor:
    """(B, n) -> (B, C, n), or (B, 1, n) where there is no room."""
    return signals.float()[:, None] if rirs is None else convolve(signals, rirs)


def _energy(audio: Tensor, by_channel: bool = False) -> Tensor:
    """Return the sum of squares of each clip, (B, C, n) -> (B,), or of each channel, (B, C).

    It is summed in two steps of a fixed order, whatever the batch and the number of threads.
    """
    squares = F.pad(audio.square(), (0, -audio.shape[-1] % SUM_SAMPLES))
    sums = squares.unflatten(-1, (-1, SUM_SAMPLES)).sum(dim=-1)
    return sums.sum(dim=2 if by_channel else (1, 2))


def _window(
    clips: Tensor,
    noises: Tensor,
    starts: PerClip | None,
    lengths: PerClip | None,
    check_values: bool,
) -> Tensor:
    """Check the noises; return which samples of a clip lie in the window of its noise, (B, n)."""
    samples = clips.shape[-1]
    start = _whole_numbers("starts", [0] * len(clips) if starts is None else starts, clips)
    length = samples - start if lengths is None else _whole_numbers("lengths", lengths, clips)
    sample = torch.arange(samples, device=clips.device)
    inside = (sample >= start[:, None]) & (sample < (start + length)[:, None])
    if not check_values:
        return inside
    _check_window(start, length, samples)
    astray = (noises.masked_fill(inside, 0.0) != 0).any(dim=1)
    if astray.any():
        index = int(astray.nonzero()[0])
        raise AudioError(
            f"Noise {index} sounds outside its window (start {int(start[index])}, length "
            f"{int(length[index])}); pad it with pad_to_clips."
        )
    return inside


def _ratio(snr: PerClip | None, clips: Tensor, check_values: bool) -> Tensor:
    """Return the energy of the noise over that of the clip, (B,) float32."""
    if snr is None:
        raise OptionError("Noises were given without snr; give one ratio in dB for each clip.")
    decibels = _one_each("snr", snr, clips)
    for index, decibel in enumerate(decibels.tolist() if check_values else ()):
        if not abs(decibel) <= LARGEST_SNR:
            raise OptionError(
                f"The signal-to-noise ratio of clip {index} is {decibel:g} dB; it must lie between "
                f"{-LARGEST_SNR:g} and {LARGEST_SNR:g}."
            )
    exact = torch.float32 if clips.device.type == "mps" else torch.float64  # which MPS lacks
    return (10.0 ** (-decibels.to(exact) / 10)).float()


def _check_rooms(
    clips: Tensor, rirs: Tensor | None, noises: Tensor | None, channels: int | None
) -> int:
    """Return the mixture's channels after comparing the shapes of what is mixed."""
    if noises is not None:
        _check_audio("The noises", noises, (2,), "(batch, samples)")
        _check_batch("noises", noises, clips)
        if noises.shape != clips.shape:
            raise AudioError(
                f"The noises have {noises.shape[-1]} samples and the clips {clips.shape[-1]}; "
                "pad each noise with pad_to_clips."
            )
    if rirs is None:
        if channels is not None and channels < 1:
            raise OptionError(f"channels is {channels}; a dry mixture has at least 1.")
        return channels or 1
    _check_audio("The RIRs", rirs, (4,), "(batch, 1 + noise sources, channels, samples)")
    _check_batch("RIRs", rirs, clips)
    if channels not in (None, rirs.shape[2]):
        raise AudioError(
            f"{channels} channels were asked for and the RIRs have {rirs.shape[2]}; leave channels "
            "out, or give RIRs of that layout."
        )
    if noises is not None and rirs.shape[1] < 2:
        raise AudioError(
            "Noises were given, and the rooms have no noise source: the RIRs are of shape "
            f"{tuple(rirs.shape)}. Give (batch, 1 + K, channels, samples) with K of 1 or more."
        )
    return rirs.shape[2]


def _check_audio(name: str, audio: Tensor, ranks: tuple[int, ...], wanted: str) -> None:
    if audio.dim() not in ranks or audio.numel() == 0 or not audio.is_floating_point():
        given = f"{tuple(audio.shape)} and type {str(audio.dtype).removeprefix('torch.')}"
        raise AudioError(
            f"{name}: shape {given}; give {wanted} of floating-point numbers, not empty. "
            "Divide int16 audio by 32768."
        )


def _check_batch(name: str, values: Tensor, clips: Tensor) -> None:
    if len(values) != len(clips):
        raise AudioError(f"{len(values)} {name} were given for {len(clips)} clips; give one each.")
    if values.device != clips.device:
        raise AudioError(
            f"The {name} are on {values.device} and the clips on {clips.device}; "
            "move them to one device."
        )


def _check_finite(arrays: dict[str, Tensor | None]) -> None:
    """Raise an AudioError that names the first clip whose array holds NaN or infinity."""
    for name, values in arrays.items():
        if values is None or values.isfinite().all():
            continue
        index = int((~values.isfinite().flatten(1).all(dim=1)).nonzero()[0])
        raise AudioError(
            f"{name}: number {index} of the batch holds NaN or infinite values. "
            "Repair it or leave it out."
        )


def _check_window(starts: Tensor, lengths: Tensor, samples: int) -> None:
    """Raise an AudioError unless every window lies inside ``samples`` samples."""
    wrong = (starts < 0) | (lengths < 0) | (starts + lengths > samples)
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise AudioError(
            f"The window of noise {index} starts at {int(starts[index])} and is "
            f"{int(lengths[index])} long; it must lie inside {samples} samples."
        )


def _one_each(name: str, values: PerClip, clips: Tensor) -> Tensor:
    """Return one value per clip as a tensor (B,) on the clips' device."""
    given = torch.as_tensor(values, device=clips.device)
    if given.shape != clips.shape[:1]:
        raise AudioError(
            f"{name} has shape {tuple(given.shape)}; give one value for each of {len(clips)} clips."
        )
    return given


def _whole_numbers(name: str, values: PerClip, clips: Tensor) -> Tensor:
    """Return one count of samples per clip, (B,) int64."""
    given = _one_each(name, values, clips)
    if given.is_floating_point() or given.dtype == torch.bool:
        kind = str(given.dtype).removeprefix("torch.")
        raise AudioError(f"{name} is of type {kind}; give whole numbers of samples.")
    return given.long()


def below_full_scale(sound: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a sound (channels, samples) whose peak is below 1, and the gain that it needed for it.

    All channels have that gain; it is 1 where the peak was not above.
    """
    peak = float(np.abs(sound).max())
    if peak <= 1.0:
        return sound, 1.0
    gain = FULL_SCALE / peak
    return sound * np.float32(gain), gain
