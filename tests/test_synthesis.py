"""Synthetic sounds and noises: what each kind is, and that only seed, length and rate make it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_hear.audio.synthesis import (
    LEVEL,
    NOISES,
    SOUNDS,
    synthesise_clip,
    synthesise_noise,
    synthesise_sound,
)
from gram_hear.errors import OptionError

RATE = 32000
AT_KINDS = pytest.mark.parametrize("kind", [*NOISES, *SOUNDS])


def make(kind, seed=0, seconds=2.0, rate=RATE):
    function = synthesise_noise if kind in NOISES else synthesise_sound
    return function([seed], round(seconds * rate), rate, kind).audio


def powers(audio, rate=RATE):
    return np.fft.rfftfreq(len(audio), 1 / rate), np.abs(np.fft.rfft(audio)) ** 2


def modulation(audio):
    """Deviation of the level of 50 ms blocks, against its mean."""
    levels = np.sqrt((audio[: len(audio) // 1600 * 1600].reshape(-1, 1600) ** 2).mean(axis=1))
    return levels.std() / levels.mean()


@AT_KINDS
def test_same_seed_same_noise_another_seed_another(kind):
    np.testing.assert_array_equal(make(kind, 5), make(kind, 5))
    assert abs(np.corrcoef(make(kind, 5), make(kind, 6))[0, 1]) < 0.5


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([*NOISES, *SOUNDS, None]),
    st.lists(st.integers(0, 2**32), min_size=1, max_size=3),
    st.integers(1, 5000),
    st.sampled_from([8000, 22050, 48000]),
)
def test_any_length_and_rate_gives_finite_sound(kind, seed, samples, rate):
    if kind is None:
        audio = synthesise_clip(seed, samples, rate).audio
    else:
        function = synthesise_noise if kind in NOISES else synthesise_sound
        audio = function(seed, samples, rate, kind).audio
    assert audio.shape == (samples,)
    assert audio.dtype == np.float32
    assert np.isfinite(audio).all()
    assert 0 < np.abs(audio).max() <= 1
    assert np.sqrt(np.mean(audio**2)) <= LEVEL * 1.001


@pytest.mark.parametrize(
    ("function", "kinds"), [(synthesise_noise, NOISES), (synthesise_sound, SOUNDS)]
)
def test_kinds_are_all_drawn(function, kinds):
    assert {function([seed], 1, RATE).kind for seed in range(100)} == set(kinds)


def test_drawn_kind_is_as_that_kind_asked_for():
    drawn = synthesise_noise([3], 1000, RATE)
    np.testing.assert_array_equal(drawn.audio, synthesise_noise([3], 1000, RATE, drawn.kind).audio)


@pytest.mark.parametrize("seed", range(5))
def test_coloured_noise_falls_evenly_over_octaves(seed):
    frequencies, power = powers(make("coloured", seed, seconds=8))
    centres = 125 * 2.0 ** np.arange(7)
    levels = [power[(frequencies > c / 1.4) & (frequencies < c * 1.4)].mean() for c in centres]
    fall = np.diff(10 * np.log10(levels))  # dB per octave
    assert fall.std() < 0.8
    assert -7 < fall.mean() < 0.5  # 1/f^2 to white


def test_hum_is_tonal_and_rain_is_not():
    def peakiness(audio):
        power = powers(audio)[1]
        return np.sort(power)[-200:].sum() / power.sum()

    assert min(peakiness(make("hum", seed)) for seed in range(4)) > 0.8
    assert max(peakiness(make("rain", seed)) for seed in range(4)) < 0.5


def test_wind_is_low_and_crackle_is_sparse():
    for seed in range(4):
        frequencies, power = powers(make("wind", seed))
        assert power[frequencies < 2000].sum() > 0.95 * power.sum()
        crackle = make("crackle", seed)
        assert np.abs(crackle).max() > 8 * np.sqrt(np.mean(crackle**2))


def test_textures_move_and_steady_noises_do_not():
    for seed in range(4):
        assert modulation(make("coloured", seed)) < 0.2
        assert modulation(make("babble", seed)) > 0.2


@pytest.mark.parametrize("seed", range(3))
def test_machine_is_rhythmic(seed):
    """The envelope repeats: its autocorrelation has a high peak beyond 50 ms."""
    audio = make("machine", seed, seconds=6)
    envelope = np.abs(audio[: len(audio) // 320 * 320]).reshape(-1, 320).mean(axis=1)
    envelope -= envelope.mean()
    repeated = np.correlate(envelope, envelope, "full")[len(envelope) :]
    assert repeated[5:450].max() > 0.3 * (envelope**2).sum()


def peaks(audio, rate=RATE):
    """Frequency of the strongest bin of each 32 ms with sound in it, (frames,) Hz."""
    frames = audio[: len(audio) // 1024 * 1024].reshape(-1, 1024) * np.hanning(1024)
    power = np.abs(np.fft.rfft(frames)) ** 2
    heard = power.sum(axis=1) > 0.05 * power.sum(axis=1).max()
    return power[heard].argmax(axis=1) * rate / 1024


def test_tones_are_harmonic():
    """Of most notes nearly all power lies in a few lines."""
    for seed in range(6):
        audio = make("tone", seed)
        frames = audio[: len(audio) // 4096 * 4096].reshape(-1, 4096) * np.hanning(4096)
        power = np.sort(np.abs(np.fft.rfft(frames)) ** 2, axis=1)
        assert power[:, -200:].sum() > 0.9 * power.sum()


def test_chirps_sweep_and_tones_stay():
    def spread(kind, seed):
        return np.log2(np.maximum(peaks(make(kind, seed)), 1)).std()

    assert np.median([spread("chirp", seed) for seed in range(9)]) > 0.3
    assert all(peaks(make("chirp", seed)).min() >= 200 for seed in range(9))


def test_impacts_start_at_once_and_die_slowly():
    for seed in range(6):
        audio = np.abs(make("impact", seed, seconds=4))
        envelope = audio[: len(audio) // 320 * 320].reshape(-1, 320).max(axis=1)
        steps = envelope[1:] / np.maximum(envelope[:-1], 1e-3 * envelope.max())
        heard = envelope[1:] > 0.01 * envelope.max()
        assert steps.max() > 3  # from one 10 ms to the next
        assert np.median(steps[heard]) < 1


def test_speech_has_formants_below_4_khz_and_pauses():
    for seed in range(6):
        audio = make("speech", seed, seconds=4)
        frequencies, power = powers(audio)
        assert power[frequencies < 4000].sum() > 0.95 * power.sum()
        assert modulation(audio) > 0.3


def test_textures_are_no_tones():
    for seed in range(8):
        power = powers(make("texture", seed, seconds=4))[1]
        assert np.sort(power)[-20:].sum() < 0.5 * power.sum()


@pytest.mark.parametrize("seed", range(4))
def test_rhythm_comes_again(seed):
    audio = make("rhythm", seed, seconds=12)
    envelope = np.abs(audio[: len(audio) // 320 * 320]).reshape(-1, 320).mean(axis=1)
    envelope -= envelope.mean()
    repeated = np.correlate(envelope, envelope, "full")[len(envelope) :]
    assert repeated[15:600].max() > 0.4 * (envelope**2).sum()


def test_clip_is_its_seed_alone_and_holds_several_sounds():
    clips = [synthesise_clip([seed], 20000, RATE) for seed in range(60)]
    np.testing.assert_array_equal(clips[7].audio, synthesise_clip([7], 20000, RATE).audio)
    kinds = [clip.kind.split(" + ") for clip in clips]
    assert {len(each) for each in kinds} == {1, 2, 3, 4}
    assert {kind for each in kinds for kind in each} == set(SOUNDS)


def test_clips_are_not_silent_where_nothing_sounds():
    """A recording has a noise floor; digital silence would be learned as a sound of its own."""
    for seed in range(20):
        audio = synthesise_clip([seed], RATE, RATE).audio
        levels = np.sqrt((audio.reshape(-1, 320).astype(float) ** 2).mean(axis=1))
        assert levels.min() > 1e-6


def test_sounds_and_noises_of_one_seed_differ():
    sound, noise = synthesise_sound([4], RATE, RATE), synthesise_noise([4], RATE, RATE)
    assert abs(np.corrcoef(sound.audio, noise.audio)[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: synthesise_clip([0], 0, RATE), "A clip of 0 samples"),
        (lambda: synthesise_sound([0], 1, 100), "A sound of 1 samples at 100 Hz"),
        (lambda: synthesise_sound([0], 1, RATE, "chrip"), "Did you mean 'chirp'"),
    ],
)
def test_sounds_that_cannot_be_made(function, message):
    with pytest.raises(OptionError, match=message):
        function()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], 0, RATE), "0 samples"),
        (([0], 10, 100), "100 Hz"),
        (([0], 10, RATE, "rian"), "Did you mean 'rain'"),
    ],
)
def test_what_cannot_be_made_is_an_error(arguments, message):
    with pytest.raises(OptionError, match=message):
        synthesise_noise(*arguments)
