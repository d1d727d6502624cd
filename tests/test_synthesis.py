"""Synthetic noises: what each kind is, and that nothing but seed, length and rate makes it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_hear.audio.synthesis import LEVEL, NOISES, synthesise_noise
from gram_hear.errors import OptionError

RATE = 32000
AT_KINDS = pytest.mark.parametrize("kind", NOISES)


def make(kind, seed=0, seconds=2.0, rate=RATE):
    return synthesise_noise([seed], round(seconds * rate), rate, kind).audio


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


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(list(NOISES)),
    st.lists(st.integers(0, 2**32), min_size=1, max_size=3),
    st.integers(1, 5000),
    st.sampled_from([8000, 22050, 48000]),
)
def test_any_length_and_rate_gives_finite_sound(kind, seed, samples, rate):
    audio = synthesise_noise(seed, samples, rate, kind).audio
    assert audio.shape == (samples,)
    assert audio.dtype == np.float32
    assert np.isfinite(audio).all()
    assert 0 < np.abs(audio).max() <= 1
    assert np.sqrt(np.mean(audio**2)) <= LEVEL * 1.001


def test_kinds_are_all_drawn():
    drawn = [synthesise_noise([seed], 1, RATE).kind for seed in range(100)]
    assert set(drawn) == set(NOISES)


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
