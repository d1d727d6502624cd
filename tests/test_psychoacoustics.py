"""benchmarks/psychoacoustics.py: its sounds, its thresholds, and a small run of its references."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RATE = 32000


@pytest.fixture(scope="module")
def program():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("psychoacoustics")


def made(program, key, level, trials=3):
    sounds = program.Sounds(RATE, np.random.default_rng(0))
    return program.EXPERIMENTS[key].make(sounds, level, trials)


def bin_of(frequency):
    return round(frequency * 1.0)  # sounds last a second


def test_a_tone_in_noise_is_the_same_in_both_ears_or_inverted(program):
    level = 40.0
    for key, sign in (("n0s0", 1), ("n0spi", -1)):
        quiet, loud = made(program, key, level)
        assert quiet.shape == loud.shape == (3, 2, RATE)
        np.testing.assert_array_equal(quiet[:, 0], quiet[:, 1])
        difference, total = (loud[:, 0] + other * loud[:, 1] for other in (-1, 1))
        tone = total if sign == 1 else difference
        assert (np.abs(difference if sign == 1 else total).max() < 1e-9) == (sign == 1)
        spectrum = np.abs(np.fft.rfft(tone / 2)) ** 2 / RATE**2 * 2
        noise = np.abs(np.fft.rfft(quiet[:, 0])) ** 2 / RATE**2 * 2
        density = noise[:, 100:4900].mean()  # bins are 1 Hz wide
        found = 10 * np.log10(spectrum[:, bin_of(500)] / density)
        assert np.abs(found - level).max() < 2


@pytest.mark.parametrize("frequency", [500, 4000])
def test_the_ears_differ_in_time_or_level_by_half_of_the_difference(program, frequency):
    for interval, sign in zip(made(program, f"itd-{frequency}", 60.0), (-1, 1), strict=True):
        left, right = np.moveaxis(np.fft.rfft(interval)[..., bin_of(frequency)], 1, 0)
        lead = np.angle(left * right.conj()) / (2 * np.pi * frequency)
        np.testing.assert_allclose(1e6 * lead, sign * 30, atol=3)
    for interval, sign in zip(made(program, f"ild-{frequency}", 6.0), (-1, 1), strict=True):
        left, right = np.moveaxis(np.abs(np.fft.rfft(interval)[..., bin_of(frequency)]), 1, 0)
        np.testing.assert_allclose(20 * np.log10(left / right), sign * 3, atol=0.1)


@pytest.mark.parametrize("azimuth", [0, 60])
def test_the_sought_angle_is_further_left(program, azimuth):
    right, left = made(program, f"angle-{azimuth}", 40.0, trials=6)

    def lead(ears):
        spectra = np.fft.rfft(ears)
        cross = spectra[:, 1] * spectra[:, 0].conj()
        cross[:, 1500:] = 0  # Hz
        lags = np.arange(-32, 33)
        return lags[np.fft.irfft(cross)[:, lags].argmax(axis=1)]

    assert (lead(left) > lead(right)).all()


def test_a_threshold_is_where_the_function_crosses(program):
    experiment = program.EXPERIMENTS["itd-500"]
    scale = np.log2(experiment.levels)
    slope, middle = 3.0, 5.3
    shares = 0.5 + (0.5 - program.LAPSES) / (1 + np.exp(-slope * (scale - middle)))
    odds = np.log((program.RIGHT - 0.5) / (1 - program.LAPSES - program.RIGHT))
    found = program.threshold(experiment, shares, trials=400, seed=0)
    assert found.value == pytest.approx(2 ** (middle + odds / slope), rel=0.05)
    assert found.low < found.value < found.high
    chance, certain = np.full(len(scale), 0.5), np.full(len(scale), 0.99)
    assert program.threshold(experiment, chance, 400, 0).value == np.inf
    assert program.threshold(experiment, certain, 400, 0).value == -np.inf


@pytest.mark.slow
def test_references_hear_what_they_can(program, tmp_path, monkeypatch, capsys):
    few = {
        key: dataclasses.replace(program.EXPERIMENTS[key], levels=(-4, 4, 12, 20, 28))
        for key in ("n0s0", "n0spi")
    }
    monkeypatch.setattr(program, "EXPERIMENTS", few)
    arguments = ["--only", "n0s0", "n0spi", "--trials", "60", "--training", "30"]
    monkeypatch.setattr(sys, "argv", ["psychoacoustics.py", *arguments, "-o", str(tmp_path)])
    program.main()
    table = capsys.readouterr().out
    assert "| masking level difference, dB |" in table
    assert (tmp_path / "psychoacoustics.md").read_text() == table
    assert (tmp_path / "psychoacoustics.svg").stat().st_size > 1000
    found = json.loads((tmp_path / "psychoacoustics.json").read_text())
    assert found["options"] == {"trials": 60, "training": 30, "seed": 0}
    in_phase, inverted = (
        {name: each[key]["value"] for name, each in found["listeners"].items()}
        for key in ("n0s0", "n0spi")
    )
    assert in_phase["equalise-cancel"] - inverted["equalise-cancel"] > 6
    assert abs(in_phase["left ear alone"] - inverted["left ear alone"]) < 4


def test_a_module_that_is_missing_is_an_error(program, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["psychoacoustics.py", "no_such_module:", "--no-references"])
    with pytest.raises(SystemExit, match="no_such_module"):
        program.main()
