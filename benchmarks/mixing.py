"""How much less mixing a scene costs than one FFT convolution for each RIR and channel.

    python benchmarks/mixing.py

One scene: 10 s at 32 kHz, an RIR of 3 s for the source and for each noise source. The plain way
convolves each RIR and channel by itself, with the same FFT at the same smooth length. CPU time, one
thread, the median of alternating runs. Both results are compared first.
"""

import statistics

import torch
from measure import alternate, parser_of
from torch import Tensor

from gram_hear.scenes.mixing import mix, smooth_length, to_level

RATE = 32000
SECONDS = 10
RIR_SECONDS = 3
SNR = 10.0


def draw_scene(sources: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """A clip and a noise (1, n) of white noise, and decaying RIRs (1, 1 + sources, C, m)."""
    generator = torch.Generator().manual_seed(0)
    clips, noises = torch.randn(2, 1, SECONDS * RATE, generator=generator)
    rirs = torch.randn(1, 1 + sources, channels, RIR_SECONDS * RATE, generator=generator)
    decay = torch.exp(-torch.arange(RIR_SECONDS * RATE) / (0.1 * RATE))
    return to_level(clips), 0.05 * decay * rirs, to_level(noises)


def convolve_one(signal: Tensor, rir: Tensor, length: int) -> Tensor:
    spectrum = torch.fft.rfft(signal, length) * torch.fft.rfft(rir, length)
    return torch.fft.irfft(spectrum, length)[: len(signal)]


def mix_plainly(clip: Tensor, rirs: Tensor, noise: Tensor) -> Tensor:
    """(n,), (1 + K, C, m), (n,) -> (C, n), one convolution for each RIR and channel."""
    length = smooth_length(len(clip) + rirs.shape[-1] - 1)
    heard = torch.stack([convolve_one(clip, rir, length) for rir in rirs[0]])
    background = torch.zeros_like(heard)
    for source in rirs[1:]:
        for channel, rir in enumerate(source):
            background[channel] += convolve_one(noise, rir, length)
    ratio = heard.square().sum() / background.square().sum()
    return heard + (ratio * 10 ** (-SNR / 10)).sqrt() * background


def measure(sources: int, channels: int, repeats: int) -> None:
    clips, rirs, noises = draw_scene(sources, channels)

    def plain() -> Tensor:
        return mix_plainly(clips[0], rirs[0], noises[0])

    def ours() -> Tensor:
        return mix(clips, rirs, noises, snr=[SNR]).audio[0]

    torch.testing.assert_close(ours(), plain(), rtol=0, atol=1e-5)
    times = alternate({"plain": plain, "ours": ours}, repeats)
    slow, fast = (statistics.median(each) for each in times.values())
    ratios = [a / b for a, b in zip(times["plain"], times["ours"], strict=True)]
    print(
        f"{sources:>7}{channels:>10}{1000 * slow:>12.1f}{1000 * fast:>11.1f}{slow / fast:>8.1f}"
        f"  ({min(ratios):.1f} to {max(ratios):.1f})",
        flush=True,
    )


def main() -> None:
    arguments = parser_of(__doc__, repeats=15).parse_args()
    print("sources  channels   plain, ms   ours, ms   ratio")
    for sources, channels in ((5, 2), (5, 4), (1, 2)):
        measure(sources, channels, arguments.repeats)
    print("Wanted: 2 for 5 sources and 2 channels.")


if __name__ == "__main__":
    main()
