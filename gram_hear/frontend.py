"""Waveform to log-mel features, the same for training and embedding.

Source: the published models' front-end (arXiv 2506.00934); every number stands in
:class:`gram_hear.config.FrontEndConfig`.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gram_hear.config import FrontEndConfig
from gram_hear.errors import AudioError

INTENSITY_FLOOR = 1e-6  # added to the energy that normalises the intensity vector
BLOCK_FRAMES = 8192  # frames of all clips and channels transformed at once; bounds the memory


def mel_filterbank(config: FrontEndConfig) -> Tensor:
    """Return the triangular HTK mel filters, (n_fft // 2 + 1, mels), unit height.

    Built in float32 throughout, as the published models' bank is: in float64 it would differ
    by 1.4e-5, which moves embeddings by 1e-4.
    """

    def spaced(first: float, last: float, count: int) -> Tensor:
        return torch.linspace(first, last, count, dtype=torch.float32, device="cpu")

    frequency = spaced(0, config.sample_rate / 2, config.n_fft // 2 + 1)
    low, high = (2595.0 * math.log10(1.0 + f / 700.0) for f in (config.f_min, config.f_max))
    corner = 700.0 * (10.0 ** (spaced(low, high, config.mels + 2) / 2595.0) - 1.0)
    left, centre, right = corner[:-2], corner[1:-1], corner[2:]
    rising = (frequency[:, None] - left) / (centre - left)
    falling = (right - frequency[:, None]) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0.0)


def hann_window(config: FrontEndConfig) -> Tensor:
    """Return the periodic Hann window, (n_fft,) float32."""
    return torch.hann_window(config.n_fft, dtype=torch.float32, device="cpu")


class FrontEnd(nn.Module):
    """Log-mel features of a waveform, and for Ambisonic audio its intensity vector.

    It always computes in float32, whatever type the rest of the model is cast to.

    Example::

        front_end = FrontEnd(FrontEndConfig("mono"))
        front_end(torch.zeros(1, 1, 32000)).shape  # (1, 1, 101, 128): a frame every 10 ms
    """

    window: Tensor
    filterbank: Tensor

    def __init__(self, config: FrontEndConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", hann_window(config), persistent=False)
        self.register_buffer("filterbank", mel_filterbank(config), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrontEnd":
        # Derived from the config, so made anew: half() does not round them, to_empty() fills them.
        super()._apply(fn, recurse)
        self.window = hann_window(self.config).to(self.window.device)
        self.filterbank = mel_filterbank(self.config).to(self.filterbank.device)
        return self

    @property
    def shortest(self) -> int:
        """Samples of the shortest waveform that reflect padding can centre frames on."""
        return self.config.n_fft // 2 + 1

    def frames(self, samples: int) -> int:
        """Return the number of frames of a waveform of ``samples`` samples."""
        return 1 + samples // self.config.hop

    def forward(self, waveform: Tensor) -> Tensor:
        """Return the features of a batch of clips.

        Args:
            waveform: (batch, channels, samples) at ``config.sample_rate``, with the 1, 2 or 4
                channels of ``config.layout``. Ambisonic audio is in the model's own axes, those of
                SoundSpaces: see ``gram_hear.audio.layouts``.

        Returns:
            (batch, feature channels, 1 + samples // hop, mels) float32. Frame k is centred at
            sample k * hop. Mono and binaural: log(mel power + floor). Ambisonic: the same for
            the four channels, then the three normalised intensities.

        Raises:
            AudioError: for another number of channels, or for half a frame of samples or fewer.
        """
        channels = self.config.audio_channels
        if waveform.dim() != 3 or waveform.shape[1] != channels:
            raise AudioError(
                f"The front-end was given a waveform of shape {tuple(waveform.shape)}; "
                f"a {self.config.layout} model takes (batch, {channels}, samples)."
            )
        if waveform.shape[-1] < self.shortest:
            raise AudioError(
                f"The front-end was given {waveform.shape[-1]} samples; it needs at least "
                f"{self.shortest}. Pad the clip with zeros."
            )
        half = self.config.n_fft // 2
        return self.transform(F.pad(waveform.float(), (half, half), mode="reflect"))

    def transform(self, padded: Tensor) -> Tensor:
        """Return the features of every whole frame of a stretch of sound.

        Args:
            padded: (batch, channels, samples) that begins half a frame before the centre of its
                first frame: a clip with its reflected ends, or a stretch from within a clip.

        Returns:
            (batch, feature channels, 1 + (samples - n_fft) // hop, mels) float32.
        """
        n_fft, hop = self.config.n_fft, self.config.hop
        frames = 1 + (padded.shape[-1] - n_fft) // hop
        step = max(1, BLOCK_FRAMES // (padded.shape[0] * padded.shape[1]))
        blocks = []
        for first in range(0, frames, step):
            last = min(first + step, frames) - 1
            block = padded[..., first * hop : last * hop + n_fft]
            blocks.append(self._features(self._spectrum(block)))
        return torch.cat(blocks, dim=2)

    def _spectrum(self, padded: Tensor) -> Tensor:
        """(B, C, samples) -> complex (B, C, frames, bins)."""
        with torch.autocast(padded.device.type, enabled=False):
            spectrum = torch.stft(
                padded.flatten(0, 1),
                n_fft=self.config.n_fft,
                hop_length=self.config.hop,
                window=self.window,
                center=False,
                return_complex=True,
            )
        return spectrum.unflatten(0, padded.shape[:2]).transpose(-1, -2)

    def _features(self, spectrum: Tensor) -> Tensor:
        """Complex (B, C, frames, bins) -> (B, C', frames, mels)."""
        power = spectrum.real.square() + spectrum.imag.square()
        with torch.autocast(power.device.type, enabled=False):
            log_mel = torch.log(power @ self.filterbank + self.config.log_floor)
            if self.config.layout != "ambisonic":
                return log_mel
            intensity = intensity_vector(spectrum, power) @ self.filterbank
        return torch.cat([log_mel, intensity], dim=1)


def intensity_vector(spectrum: Tensor, power: Tensor) -> Tensor:
    """Return the normalised active intensity of each bin, (B, 3, frames, bins) in [-1, 1].

    I = 2 Re(conj(W) X_k) / (floor + |W|^2 + sum |X_k|^2), with W the omnidirectional channel and
    X_k the three directional ones.

    Args:
        spectrum: complex (B, 4, frames, bins).
        power: its squared magnitude.
    """
    omni, directional = spectrum[:, :1], spectrum[:, 1:]
    real_part = omni.real * directional.real + omni.imag * directional.imag
    return 2 * real_part / (INTENSITY_FLOOR + power.sum(dim=1, keepdim=True))
