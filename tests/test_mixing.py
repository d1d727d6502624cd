"""Mixing against the authors' numbers, plain time-domain references, and what must always hold."""

import math

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gram_hear.errors import AudioError, OptionError
from gram_hear.scenes.mixing import convolve, fade, mix, pad_to_clips, smooth_length, to_level

ATOL = 2e-6  # four times the float32 noise of a mixed scene
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
RATE = 32000


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def energy(audio):
    return float(audio.double().square().sum())


# --- slow, plain references, float64 ---------------------------------------------------------


def convolved(signal, rir, samples):
    """The convolution sum, cut to its first samples."""
    out = np.zeros(samples)
    for delay, value in enumerate(np.asarray(rir, dtype=np.float64)[:samples]):
        rest = np.asarray(signal, dtype=np.float64)[: samples - delay]
        out[delay : delay + len(rest)] += value * rest
    return out


def mixed_plainly(clip, rirs, noise, start, length, snr, noise_gain="scene"):
    """One scene: (n,), (1 + K, C, m) or None, (n,) -> (C, n), gain. One convolution per RIR."""
    samples = len(clip)
    if rirs is None:
        source, background = clip.double().numpy()[None], noise.double().numpy()[None]
    else:
        source = np.stack([convolved(clip, each, samples) for each in rirs[0]])
        background = sum(
            np.stack([convolved(noise, each, samples) for each in rir]) for rir in rirs[1:]
        )
    if noise_gain == "channel":
        quotients = [
            np.sum(x**2) / np.sum(n**2) if n.any() else 0
            for x, n in zip(source, background, strict=True)
        ]
        gains = np.sqrt(np.array(quotients) * 10 ** (-snr / 10))
        return source + gains[:, None] * background, gains
    window = slice(start, start + length)
    energies = [np.sum(sound[:, window] ** 2) for sound in (source, background)]
    gain = math.sqrt(energies[0] / (energies[1] + 1e-9) * 10 ** (-snr / 10))
    return source + gain * background, gain


def faded_plainly(noise, length, whole, steps):
    out = np.zeros(len(noise))
    for i in range(length):
        rise = min(1.0, i / steps) if whole else 1.0
        out[i] = float(noise[i]) * rise * min(1.0, (length - 1 - i) / steps)
    return out


# --- the authors' numbers --------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(golden):
    arrays = golden("scenes.npz")
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files if arrays[name].ndim} | {
        name: int(arrays[name]) for name in ("fade_longer_start", "fade_audio_len")
    }


@pytest.fixture(scope="module")
def golden_mix(scenes):
    """Return a function: the golden clips mixed in rooms of so many channels (None: dry)."""

    def make(channels, noisy=True, device="cpu"):
        clips, noises = (scenes[f"{name}_int16"].float() / 32768 for name in ("source", "noise"))
        rirs = torch.cat([scenes["source_rir4_f16"][:, None], scenes["noise_rirs4_f16"]], dim=1)
        rirs = None if channels is None else rirs[:, :, :channels].to(device)
        if not noisy:
            return mix(clips.to(device), rirs)
        window = [scenes[name] for name in ("noise_start_idx", "real_noise_length", "snr")]
        return mix(clips.to(device), rirs, noises.to(device), *window)

    return make


def assert_golden(found, expected):
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("device", DEVICES)
def test_binaural_scenes_are_golden(scenes, golden_mix, device):
    mixed = golden_mix(2, device=device)
    assert_golden(mixed.audio[1], scenes["scene_2ch_clip1"])
    assert_golden(mixed.audio[..., ::4], scenes["scene_2ch_every4"])
    torch.testing.assert_close(mixed.gain.cpu(), scenes["aux_gain"], rtol=2e-6, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_ambisonic_scenes_are_golden(scenes, golden_mix, device):
    assert_golden(golden_mix(4, device=device).audio[..., ::8], scenes["scene_4ch_every8"])


@pytest.mark.parametrize("device", DEVICES)
def test_scenes_without_noise_are_golden(scenes, golden_mix, device):
    binaural = golden_mix(2, noisy=False, device=device)
    assert_golden(binaural.audio[..., ::4], scenes["scene_2ch_nonoise_every4"])
    assert binaural.gain.tolist() == [0, 0, 0]
    ambisonic = golden_mix(4, noisy=False, device=device).audio[1]
    assert_golden(ambisonic[:, ::4], scenes["scene_4ch_nonoise_clip1_every4"])


def test_dry_noisy_clips_are_golden(scenes, golden_mix):
    assert_golden(golden_mix(None).audio[..., ::4], scenes["scene_1ch_norir_every4"])


def test_golden_energies_are_those_inside_the_window(scenes, golden_mix):
    clean = golden_mix(2, noisy=False).audio
    noisy = golden_mix(2)
    noises = (noisy.audio - clean) / noisy.gain[:, None, None]
    for index in range(3):
        start = int(scenes["noise_start_idx"][index])
        window = slice(start, start + int(scenes["real_noise_length"][index]))
        source = energy(clean[index, :, window])
        assert source == pytest.approx(float(scenes["aux_energy_source"][index]), rel=3e-6)
        noise = energy(noises[index, :, window])
        assert noise == pytest.approx(float(scenes["aux_energy_noise"][index]), rel=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["longer", "equal", "shorter"])
def test_fades_are_golden(scenes, kind, device):
    noise = scenes[f"fade_{kind}_in"]
    if kind == "longer":
        start = scenes["fade_longer_start"]
        noise = noise[start : start + scenes["fade_audio_len"]]
    found = fade(noise[None].to(device), [len(noise)], [kind != "longer"])[0]
    assert_golden(found, scenes[f"fade_{kind}_out"])


def test_overlapping_fades_are_golden(scenes):
    found = fade(torch.ones(1, 7000), [7000], [True])[0]
    assert_golden(found, scenes["fade_overlap_ones7000"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("given", "level", "expected"),
    [
        ("norm_in", -14, "norm_out"),
        ("norm_in", -20, "norm_out_m20"),
        ("norm2_in", -14, "norm2_out"),
    ],
)
def test_levels_are_golden(scenes, given, level, expected, device):
    audio = scenes[given].reshape(1, -1, scenes[given].shape[-1])  # (1, channels, samples)
    assert_golden(
        to_level(audio.to(device), level)[0].reshape(scenes[given].shape), scenes[expected]
    )


def resampled_plainly(audio, old, new):
    """Hann-windowed sinc of 6 zero crossings, cut off at 0.99 of the lower Nyquist frequency."""
    lowest = 0.99 * min(old, new)
    times = np.arange(len(audio) * new // old)[:, None] / new
    nearest = np.rint(times * old).astype(int) + np.arange(-9, 10)
    argument = np.clip((nearest / old - times) * lowest, -6, 6)
    kernel = np.sinc(argument) * np.cos(argument * np.pi / 12) ** 2 * lowest / old
    return (kernel * np.pad(audio, 9)[nearest + 9]).sum(axis=1)


def test_preparation_of_a_clip_is_golden(scenes):
    """First channel, resampled, level, cut. The authors round their kernel to float32: 1e-5."""
    first = scenes["prep_in44k_int16"][0].double().numpy() / 32768
    found = to_level(torch.from_numpy(resampled_plainly(first, 441, 320)))[:16000]
    torch.testing.assert_close(found, scenes["prep_out_first16000"], rtol=0, atol=2e-5)


# --- equal to the references -----------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 400),
    taps=st.integers(1, 500),
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 2, 4]),
    cut=st.one_of(st.none(), st.integers(1, 1200)),
    seed=st.integers(0, 2**31),
)
def test_convolution_equals_the_sum(samples, taps, batch, channels, cut, seed):
    signals, rirs = normal(batch, samples, seed=seed), normal(batch, channels, taps, seed=seed + 1)
    found = convolve(signals, rirs, cut)
    assert found.shape == (batch, channels, samples if cut is None else cut)
    for signal, rir, each in zip(signals, rirs, found, strict=True):
        expected = np.stack([convolved(signal, channel, found.shape[-1]) for channel in rir])
        scale = float(signal.norm() * rir.norm(dim=-1).max())
        np.testing.assert_allclose(each.numpy(), expected, rtol=0, atol=2e-6 * max(scale, 1))


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 300),
    taps=st.integers(1, 400),
    sources=st.integers(1, 5),
    channels=st.sampled_from([1, 2, 4]),
    snr=st.floats(-40, 60, width=32),
    dry=st.booleans(),
    fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 2**31),
)
def test_mixture_equals_the_plain_one(samples, taps, sources, channels, snr, dry, fractions, seed):
    start = round(fractions[0] * (samples - 1))
    length = 1 + round(fractions[1] * (samples - start - 1))
    clip = normal(1, samples, seed=seed)
    rirs = None if dry else normal(1, 1 + sources, channels, taps, seed=seed + 1)
    noise = pad_to_clips(normal(1, length, seed=seed + 2), [start], [length], samples)
    mixed = mix(clip, rirs, noise, [start], [length], [snr])
    room = None if dry else rirs[0]
    expected, gain = mixed_plainly(clip[0], room, noise[0], start, length, snr)
    assert mixed.audio.shape == (1, 1 if dry else channels, samples)
    assert mixed.audio.dtype == mixed.gain.dtype == torch.float32
    # A room or a window of few samples can all but cancel the noise: relative to what is summed.
    scale = max(1.0, np.abs(expected).max()) * max(1.0, gain)
    np.testing.assert_allclose(mixed.audio[0].numpy(), expected, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("level", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize(("channels", "dry"), [(1, True), (1, False), (2, False), (4, False)])
def test_gain_of_each_channel_equals_the_plain_one(level, channels, dry):
    clips, rirs = normal(2, 300, seed=1), normal(2, 3, channels, 40, seed=2)
    rirs[0, 1:, -1] = 0  # the noise is not heard in this channel
    rirs[1, 0, -1] = 0  # the clip is not heard in this one
    noises = pad_to_clips(level * normal(2, 200, seed=3), [30, 0], [200, 150], 300)
    snr = [7.0, -3.0]
    given = None if dry else rirs
    mixed = mix(clips, given, noises, [30, 0], [200, 150], snr, noise_gain="channel")
    for i, (start, length) in enumerate([(30, 200), (0, 150)]):
        scene = None if dry else rirs[i]
        plain, gains = mixed_plainly(
            clips[i], scene, noises[i], start, length, snr[i], noise_gain="channel"
        )
        np.testing.assert_allclose(mixed.gain[i], gains, rtol=2e-4)
        np.testing.assert_allclose(mixed.audio[i], plain, atol=1e-4)
    if not dry:
        assert mixed.gain[0, -1] == 0
        assert mixed.gain[1, -1] == 0


def test_gains_of_channels_bring_noise_to_the_level_differences_of_the_clip():
    clips, noises = normal(1, 500, seed=1), 1e-3 * normal(1, 500, seed=2)
    rirs = normal(1, 2, 2, 20, seed=3)
    rirs[:, 1, 1] *= 10  # the noise is 20 dB louder on the right
    alone = convolve(noises, rirs[:, 1])
    for noise_gain, equal in (("scene", False), ("channel", True)):
        heard = mix(clips, rirs[:, :1]).audio
        mixed = mix(clips, rirs, noises, snr=[10.0], noise_gain=noise_gain).audio
        left, right = (energy(heard[0, c]) / energy((mixed - heard)[0, c]) for c in (0, 1))
        assert (abs(10 * math.log10(left / right)) < 0.01) == equal
        ratio = energy(alone[0, 1]) / energy(alone[0, 0])
        own = energy((mixed - heard)[0, 1]) / energy((mixed - heard)[0, 0])
        assert (abs(10 * math.log10(own / ratio)) < 0.01) == (not equal)


@pytest.mark.parametrize("noise_gain", ["scene", "channel"])
def test_silence_has_no_gain(noise_gain):
    clips, rirs, noises = normal(3, 200), normal(3, 2, 2, 9), normal(3, 200, seed=1)
    clips[0], noises[1], rirs[2, 1] = 0, 0, 0
    mixed = mix(clips, rirs, noises, snr=[0.0] * 3, noise_gain=noise_gain)
    assert mixed.gain.shape == ((3,) if noise_gain == "scene" else (3, 2))
    assert not mixed.gain.any()
    assert torch.equal(mixed.audio, mix(clips, rirs).audio)


def test_unknown_noise_gain_is_an_error():
    with pytest.raises(OptionError, match="Did you mean 'channel'"):
        mix(normal(1, 9), None, noise_gain="chanel")


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 900),
    share=st.floats(0, 1),
    whole=st.booleans(),
    seed=st.integers(0, 2**31),
)
@example(samples=1, share=1.0, whole=True, seed=0)
@example(samples=2, share=1.0, whole=True, seed=0)
@example(samples=9, share=0.0, whole=True, seed=0)
def test_fade_equals_the_plain_one(samples, share, whole, seed):
    noise, length = normal(1, samples, seed=seed), round(share * samples)
    found = fade(noise, [length], [whole], rate=1000)  # 200 samples, 199 steps
    expected = faded_plainly(noise[0], length, whole, 199)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.data())
def test_placing_copies_the_sound_and_nothing_else(samples, stored, data):
    length = data.draw(st.integers(0, min(samples, stored)))
    start = data.draw(st.integers(0, samples - length))
    noise = normal(1, stored)
    expected = torch.zeros(1, samples)
    expected[:, start : start + length] = noise[:, :length]
    assert torch.equal(pad_to_clips(noise, [start], [length], samples), expected)


@given(st.integers(1, 500_000))
@example(1)
@example(415_999)  # 10 s and an RIR of 3 s at 32 kHz
def test_smooth_length_is_the_smallest(least):
    assert smooth_length(least) == scipy.fft.next_fast_len(least, real=True)


@pytest.mark.slow
def test_ten_seconds_in_a_room_equal_float64():
    clips, noises = to_level(normal(2, 320_000)), to_level(normal(2, 320_000, seed=1))
    decay = torch.exp(-torch.arange(96_000) / 8000)
    rirs = normal(2, 6, 2, 96_000, seed=2) * decay * 0.05
    mixed = mix(clips, rirs, noises, snr=[5.0, 40.0])
    for index, snr in enumerate((5.0, 40.0)):
        clip, noise, rir = (each[index].double().numpy() for each in (clips, noises, rirs))
        source, *background = (
            np.stack([scipy.signal.fftconvolve(sound, ear)[:320_000] for ear in each])
            for sound, each in zip([clip] + [noise] * 5, rir, strict=True)
        )
        gain = np.sqrt(np.sum(source**2) / np.sum(sum(background) ** 2) * 10 ** (-snr / 10))
        expected = source + gain * sum(background)
        assert float(mixed.gain[index]) == pytest.approx(gain, rel=2e-6)
        np.testing.assert_allclose(mixed.audio[index].numpy(), expected, rtol=0, atol=ATOL)


# --- what must always hold -------------------------------------------------------------------


def batch_of(batch, samples, taps, sources, channels, seed):
    """A batch of scenes, each with its own window, as the arguments of mix."""
    generator = np.random.default_rng(seed)
    starts = torch.from_numpy(generator.integers(0, samples, batch))
    lengths = torch.tensor([int(generator.integers(1, samples - s + 1)) for s in starts])
    return (
        normal(batch, samples, seed=seed),
        normal(batch, 1 + sources, channels, taps, seed=seed + 1),
        pad_to_clips(normal(batch, samples, seed=seed + 2), starts, lengths, samples),
        starts,
        lengths,
        torch.from_numpy(generator.uniform(5, 40, batch).astype(np.float32)),
    )


SCENES = {
    "samples": st.integers(2, 3000),
    "taps": st.integers(1, 2000),
    "sources": st.integers(1, 5),
    "channels": st.sampled_from([1, 2, 4]),
    "seed": st.integers(0, 2**31),
}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(batch=st.integers(2, 9), **SCENES)
def test_a_clip_does_not_depend_on_the_others(batch, samples, taps, sources, channels, seed):
    arguments = batch_of(batch, samples, taps, sources, channels, seed)
    together = mix(*arguments)
    levels = to_level(arguments[0])
    faded = fade(arguments[0], arguments[4], [True] * batch)
    for index in range(batch):
        one = [each[index : index + 1].clone() for each in arguments]
        alone = mix(*one)
        assert torch.equal(alone.audio[0], together.audio[index])
        assert torch.equal(alone.gain[0], together.gain[index])
        assert torch.equal(to_level(one[0])[0], levels[index])
        assert torch.equal(fade(one[0], one[4], [True])[0], faded[index])


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 4), **SCENES)
def test_snr_of_the_mixture_is_the_one_asked_for(batch, samples, taps, sources, channels, seed):
    clips, rirs, noises, starts, lengths, snr = batch_of(
        batch, samples, taps, sources, channels, seed
    )
    mixed = mix(clips, rirs, noises, starts, lengths, snr)
    background = sum(convolve(noises, rirs[:, k]) for k in range(1, 1 + sources))
    source = convolve(clips, rirs[:, 0])
    added = mixed.gain[:, None, None] * background
    scale = max(1.0, float(mixed.audio.abs().max()))
    torch.testing.assert_close(mixed.audio, source + added, rtol=0, atol=1e-4 * scale)
    for index in range(batch):
        window = slice(int(starts[index]), int(starts[index] + lengths[index]))
        if energy(background[index, :, window]) < 1e-4:
            continue  # the floor of 1e-9 counts
        ratio = energy(source[index, :, window]) / energy(added[index, :, window])
        assert 10 * math.log10(ratio) == pytest.approx(float(snr[index]), abs=0.05)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(factor=st.floats(0.01, 100), **SCENES)
def test_mixing_is_linear(factor, samples, taps, sources, channels, seed):
    """A louder clip brings louder noise; the noise's own level, and a louder room, do neither."""
    clips, rirs, noises, *window = batch_of(2, samples, taps, sources, channels, seed)
    assume(bool((window[1] >= 10).all()))
    mixed = mix(clips, rirs, noises, *window).audio
    scale = float(mixed.abs().max())
    louder = mix(factor * clips, rirs, noises, *window).audio
    torch.testing.assert_close(louder, factor * mixed, rtol=0, atol=1e-4 * factor * scale)
    other = mix(clips, rirs, factor * noises, *window).audio
    torch.testing.assert_close(other, mixed, rtol=0, atol=1e-4 * scale)
    added = convolve(clips, rirs[:, 0]) + convolve(noises, rirs[:, 0])
    summed = convolve(clips + noises, rirs[:, 0])
    torch.testing.assert_close(summed, added, rtol=0, atol=1e-4 * float(added.abs().max()))


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from([(7,), (1, 5000), (3, 2000), (2, 2, 1500), (1, 4, 9)]),
    dbfs=st.floats(-60, 0),
    exponent=st.floats(-37, 30),
    seed=st.integers(0, 2**31),
)
def test_level_is_the_one_asked_for_at_any_level(shape, dbfs, exponent, seed):
    audio = normal(*shape, seed=seed) * 10.0**exponent
    level = to_level(audio, dbfs).double()
    rms = level.reshape(1 if len(shape) == 1 else shape[0], -1).square().mean(dim=1).sqrt()
    np.testing.assert_allclose(20 * rms.log10().numpy(), dbfs, rtol=0, atol=1e-4)
    ratio = float(level.flatten()[0]) / float(audio.flatten()[0])  # one gain for a clip
    np.testing.assert_allclose(
        level.flatten()[: shape[-1]], ratio * audio.flatten()[: shape[-1]].double(), rtol=1e-5
    )


def test_channels_share_one_gain(noise):
    audio = noise(2, 2, 1000) * torch.tensor([1.0, 0.1])[:, None]
    level = to_level(audio)
    torch.testing.assert_close(level[:, 0] / audio[:, 0], level[:, 1] / audio[:, 1])


def test_inputs_are_left_as_they_are(noise):
    arguments = batch_of(2, 900, 500, 2, 2, seed=3)
    copies = [each.clone() for each in arguments]
    mixed = mix(*arguments)
    dry = mix(arguments[0], None)
    dry.audio.zero_()
    to_level(arguments[0]).zero_()
    fade(arguments[2], [900, 900], [False, False]).zero_()
    pad_to_clips(arguments[2], [0, 0], [900, 900], 900).zero_()
    mixed.audio.zero_()
    assert all(torch.equal(one, other) for one, other in zip(arguments, copies, strict=True))


def test_half_precision_inputs_are_mixed_in_float32(noise):
    clips, rirs, noises, *window = batch_of(2, 900, 500, 3, 2, seed=3)
    half = mix(clips.half(), rirs.half(), noises.half(), *window)
    full = mix(clips.half().float(), rirs.half().float(), noises.half().float(), *window)
    assert torch.equal(half.audio, full.audio)


# --- the noise's window, dry clips, silence --------------------------------------------------


def test_noise_rings_on_beyond_its_window(noise):
    clips, noises = noise(1, 4000), pad_to_clips(noise(1, 500, seed=1), [1000], [500], 4000)
    rirs = torch.zeros(1, 2, 1, 1000)
    rirs[0, 0, 0, 0] = rirs[0, 1, 0, 0] = rirs[0, 1, 0, 999] = 1
    mixed = mix(clips, rirs, noises, [1000], [500], [0.0])
    added = (mixed.audio - clips[:, None])[0, 0]
    echo = mixed.gain * noises[0, 1000:1500]
    torch.testing.assert_close(added[1999:2499], echo, rtol=0, atol=1e-5)
    assert energy(added[:990]) < 1e-9


def test_the_window_is_the_whole_clip_unless_given(noise):
    arguments = noise(2, 500), noise(2, 3, 2, 300), noise(2, 500, seed=1)
    given = mix(*arguments, [0, 0], [500, 500], [5.0, 9.0])
    assert torch.equal(mix(*arguments, snr=[5.0, 9.0]).audio, given.audio)


def test_dry_clips_are_copied_to_the_channels(noise):
    clips = noise(3, 100)
    clean = mix(clips, None, channels=4)
    assert torch.equal(clean.audio, clips[:, None].expand(3, 4, 100))
    noisy = mix(clips, None, noise(3, 100, seed=1), snr=[0.0] * 3, channels=2)
    assert torch.equal(noisy.audio[:, 0], noisy.audio[:, 1])
    added = noisy.audio[:, 0] - clips
    torch.testing.assert_close(added.norm(dim=1), clips.norm(dim=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dry", [True, False])
def test_a_silent_clip_stays_silent_beside_others(noise, dry):
    clips = noise(3, 400) * torch.tensor([1.0, 0.0, 1.0])[:, None]
    mixed = mix(to_level(clips), None if dry else noise(3, 3, 2, 200), noise(3, 400), snr=[5.0] * 3)
    silent = (mixed.audio == 0).flatten(1).all(dim=1)
    assert silent.tolist() == [False, True, False]
    assert mixed.gain[1] == 0


@pytest.mark.parametrize("what", ["noise", "rirs", "length"])
def test_silent_noise_adds_nothing(noise, what):
    clips, rirs, noises = noise(2, 400), noise(2, 3, 2, 200), noise(2, 400, seed=1)
    lengths = torch.tensor([400, 400])
    if what == "noise":
        noises[1] = 0
    elif what == "rirs":
        rirs[1, 1:] = 0
    else:
        lengths[1], noises[1] = 0, 0
    mixed = mix(clips, rirs, noises, [0, 0], lengths, [5.0, 5.0])
    assert torch.equal(mixed.audio[1], mix(clips, rirs).audio[1])
    assert mixed.gain[1] == 0
    assert mixed.gain[0] > 0


def test_nearly_silent_noise_has_a_bounded_gain(noise):
    mixed = mix(noise(1, 400), None, 1e-15 * noise(1, 400, seed=1), snr=[5.0])
    assert mixed.audio.isfinite().all()
    assert mixed.gain < math.sqrt(400 / 1e-9)


def test_slots_without_a_source_change_nothing(noise):
    clips, rirs, noises = noise(2, 400), noise(2, 3, 2, 200), noise(2, 400, seed=1)
    more = torch.cat([rirs, torch.zeros(2, 3, 2, 200)], dim=1)
    found, expected = (mix(clips, each, noises, snr=[5.0, 6.0]).audio for each in (more, rirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# --- bad input -------------------------------------------------------------------------------


def with_value(tensor, value):
    tensor = tensor.clone()
    tensor[(1, *[0] * (tensor.dim() - 1))] = value
    return tensor


CLIPS, RIRS, NOISES = torch.ones(2, 50), torch.ones(2, 3, 2, 20), torch.ones(2, 50)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"clips": torch.ones(50)}, AudioError, r"clips: shape \(50,\)"),
        ({"clips": torch.ones(2, 0)}, AudioError, "not empty"),
        ({"clips": torch.ones(2, 50, dtype=torch.int16)}, AudioError, "type int16.*32768"),
        ({"clips": with_value(CLIPS, math.nan)}, AudioError, "clips: number 1.*NaN"),
        ({"clips": 1e38 * CLIPS, "rirs": 1e3 * RIRS}, AudioError, "overflows.*to_level"),
        ({"rirs": torch.ones(2, 3, 20)}, AudioError, r"RIRs: shape \(2, 3, 20\)"),
        ({"rirs": torch.ones(3, 3, 2, 20)}, AudioError, "3 RIRs were given for 2 clips"),
        ({"rirs": torch.ones(2, 1, 2, 20)}, AudioError, "no noise source"),
        ({"rirs": with_value(RIRS, math.nan)}, AudioError, "RIRs: number 1.*NaN"),
        ({"rirs": with_value(RIRS.flip(1), math.inf)}, AudioError, "RIRs: number 1.*infinite"),
        ({"rirs": RIRS.to("meta")}, AudioError, "RIRs are on meta.*one device"),
        ({"channels": 4}, AudioError, "4 channels were asked for and the RIRs have 2"),
        ({"rirs": None, "channels": 0}, OptionError, "channels is 0"),
        ({"noises": torch.ones(2, 49)}, AudioError, "49 samples and the clips 50.*pad_to_clips"),
        ({"noises": torch.ones(1, 50)}, AudioError, "1 noises were given for 2 clips"),
        ({"noises": with_value(NOISES, -math.inf)}, AudioError, "noises: number 1.*infinite"),
        ({"noises": None}, OptionError, "without noises"),
        (
            {"starts": [0, 3], "lengths": [50, 47]},
            AudioError,
            "Noise 1 sounds outside.*pad_to_clips",
        ),
        ({"starts": [0, -1]}, AudioError, "noise 1 starts at -1"),
        ({"starts": [0, 1], "lengths": [50, 50]}, AudioError, "inside 50 samples"),
        ({"starts": [0.0, 0.0]}, AudioError, "starts is of type float32.*whole"),
        ({"lengths": [50]}, AudioError, r"lengths has shape \(1,\).*2 clips"),
        ({"snr": None}, OptionError, "without snr"),
        ({"snr": [5.0]}, AudioError, r"snr has shape \(1,\)"),
        ({"snr": [5.0, math.nan]}, OptionError, "clip 1 is nan dB.*-100 and 100"),
        ({"snr": [math.inf, 5.0]}, OptionError, "clip 0 is inf dB"),
        ({"snr": [5.0, 101.0]}, OptionError, "clip 1 is 101 dB"),
    ],
)
def test_bad_input_to_mix_is_explained(changed, error, message):
    given = {"clips": CLIPS, "rirs": RIRS, "noises": NOISES, "snr": [5.0, 5.0], **changed}
    with pytest.raises(error, match=message):
        mix(**given)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: to_level(torch.ones(1, 1, 1, 9)), AudioError, "shape"),
        (lambda: to_level(torch.ones(2, 9, dtype=torch.int16)), AudioError, "type int16"),
        (lambda: to_level(with_value(CLIPS, math.nan)), AudioError, "number 1.*NaN"),
        (lambda: to_level(CLIPS, math.inf), OptionError, "level is inf dBFS"),
        (lambda: fade(NOISES, [50, 51], [True, True]), AudioError, "inside 50 samples"),
        (lambda: fade(NOISES, [50, 50], [True]), AudioError, "whole has shape"),
        (lambda: fade(NOISES, [50, 50], [True, True], 2), OptionError, "rate is 2 Hz"),
        (lambda: fade(NOISES[0], [50], [True]), AudioError, r"\(batch, samples\)"),
        (
            lambda: pad_to_clips(NOISES, [0, 11], [50, 50], 60),
            AudioError,
            "starts at 11.*60 samples",
        ),
        (lambda: pad_to_clips(NOISES, [0, 0], [50, 51], 60), AudioError, "inside 50 samples"),
        (lambda: convolve(CLIPS, RIRS), AudioError, r"\(batch, channels, samples\)"),
        (lambda: convolve(CLIPS, RIRS[:1, 0]), AudioError, "1 RIRs were given for 2 clips"),
        (lambda: convolve(CLIPS, RIRS[:, 0], 0), AudioError, "cut to 0 samples"),
    ],
)
def test_bad_input_to_the_steps_is_explained(call, error, message):
    with pytest.raises(error, match=message):
        call()
