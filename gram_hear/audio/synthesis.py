"""Synthetic sounds and noises, each a pure function of a seed, a length and a sample rate.

Sounds begin and end; a clip holds one or several. Noises go on. The same seed gives the same
samples on one machine with one version of NumPy; elsewhere the last bits may differ. Levels carry
no meaning: everything has an RMS of 0.1, or less where the peak would exceed 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from gram_hear.errors import OptionError, require_known

LEVEL = 0.1  # RMS
LOWEST = 20.0  # Hz, below which noises have little energy
OVERLAPPING = 4  # the largest number of sounds in a clip
SHORTEST = 0.1  # the shortest sound in a clip, as a share of the clip
EDGE = 0.005  # seconds in which a sound in a clip rises and falls


@dataclass(frozen=True, eq=False)
class Synthetic:
    """A synthetic sound: what it is, and (samples,) float32 in [-1, 1]."""

    kind: str
    audio: np.ndarray


Maker = Callable[[Generator, int, int], np.ndarray]


def synthesise_noise(
    seed: Sequence[int], samples: int, rate: int, kind: str | None = None
) -> Synthetic:
    """Make a noise.

    Example::

        rain = synthesise_noise([1], 32000, 32000, "rain").audio  # (32000,) float32

    Args:
        seed: numbers of 0 or more. The noise depends on them, its length and its rate alone.
        samples: its length, at least 1.
        rate: Hz, at least 8000.
        kind: one of :data:`NOISES`; None draws one.

    Raises:
        OptionError: for an unknown kind, or a number out of range.
    """
    return _synthesise("noise", NOISES, [*seed, 0], samples, rate, kind)


def synthesise_sound(
    seed: Sequence[int], samples: int, rate: int, kind: str | None = None
) -> Synthetic:
    """Make a sound of one of the kinds :data:`SOUNDS`; otherwise as :func:`synthesise_noise`."""
    return _synthesise("sound", SOUNDS, [*seed, 1], samples, rate, kind)


def synthesise_clip(seed: Sequence[int], samples: int, rate: int) -> Synthetic:
    """Make a clip of one to :data:`OVERLAPPING` sounds, each of its own kind, time and level.

    They may overlap, and a faint white noise is added. The ``kind`` of the clip names them in the
    order in which they begin.

    Args:
        seed: numbers of 0 or more. The clip depends on them, its length and its rate alone.
        samples: its length, at least 1.
        rate: Hz, at least 8000.

    Raises:
        OptionError: for a number out of range.
    """
    _check_numbers("clip", samples, rate)
    generator = np.random.default_rng([*seed, 2])
    audio = 10 ** generator.uniform(-4, -2.5) * generator.standard_normal(samples)
    events = []
    for _ in range(int(generator.integers(1, OVERLAPPING + 1))):
        kind = list(SOUNDS)[int(generator.integers(len(SOUNDS)))]
        length = max(1, round(samples * _log_uniform(generator, SHORTEST, 1.0)))
        start = int(generator.integers(samples - length + 1))
        sound = _unit(SOUNDS[kind](generator, length, rate)) * _edges(length, rate)
        audio[start : start + length] += 10 ** generator.uniform(-1, 0) * sound
        events.append((start, kind))
    return Synthetic(" + ".join(kind for _, kind in sorted(events)), _to_level(audio))


def _synthesise(
    what: str, makers: dict[str, Maker], seed: list[int], samples: int, rate: int, kind: str | None
) -> Synthetic:
    _check_numbers(what, samples, rate)
    generator = np.random.default_rng(seed)
    drawn = list(makers)[int(generator.integers(len(makers)))]
    kind = drawn if kind is None else kind
    require_known(what, kind, makers)
    return Synthetic(kind, _to_level(makers[kind](generator, samples, rate)))


def _check_numbers(what: str, samples: int, rate: int) -> None:
    if samples < 1 or rate < 8000:
        raise OptionError(
            f"A {what} of {samples} samples at {rate} Hz was asked for; at least 1 sample and 8000 "
            "Hz are needed."
        )


def _to_level(audio: np.ndarray) -> np.ndarray:
    rms, peak = math.sqrt(float(np.mean(audio**2))), float(np.abs(audio).max())
    return (audio * min(LEVEL / max(rms, 1e-12), 1 / max(peak, 1e-12))).astype(np.float32)


# --- what noises are made of ----------------------------------------------------------------


def _length(samples: int) -> int:
    """Return a length for transforms: a power of 2, at least the number of samples."""
    return 2 ** max(10, math.ceil(math.log2(samples)))


def _shape(
    generator: Generator, samples: int, rate: int, gains: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return Gaussian noise (samples,) of RMS 1 whose amplitude spectrum is ``gains`` of Hz."""
    n = _length(samples)
    frequencies = np.maximum(np.fft.rfftfreq(n, 1 / rate), rate / n)
    spectrum = gains(frequencies)
    spectrum[0] = 0
    shaped = np.fft.irfft(np.fft.rfft(generator.standard_normal(n)) * spectrum, n)
    return shaped[:samples] / max(float(np.sqrt(np.mean(shaped**2))), 1e-12)


def _coloured(generator: Generator, samples: int, rate: int, exponent: float) -> np.ndarray:
    """Return noise whose power falls with the frequency to the power of ``exponent``."""
    return _shape(
        generator, samples, rate, lambda f: f ** (-exponent / 2) / (1 + (LOWEST / f) ** 4)
    )


def _band(
    generator: Generator, samples: int, rate: int, centre: float, octaves: float
) -> np.ndarray:
    """Return noise in a band, Gaussian over the logarithm of frequency."""
    return _shape(
        generator,
        samples,
        rate,
        lambda f: np.exp(-0.5 * (np.log2(f / min(centre, 0.4 * rate)) / (octaves / 2)) ** 2),
    )


def _slow(generator: Generator, samples: int, rate: int, hertz: float) -> np.ndarray:
    """Return a random curve (samples,) of deviation 1 that turns about ``hertz`` times a second."""
    points = max(2, math.ceil(samples / rate * hertz) + 2)
    knots = generator.standard_normal(points)
    return np.interp(np.arange(samples) * (hertz / rate), np.arange(points), knots)


def _rings(
    generator: Generator, rate: int, frequencies: np.ndarray, seconds: np.ndarray
) -> np.ndarray:
    """Return the sum of resonances struck once; each decays by 60 dB in its number of seconds."""
    times = np.arange(max(1, int(float(seconds.max()) * rate))) / rate
    usable = np.minimum(frequencies, 0.45 * rate)[:, None]
    phases = generator.uniform(0, 2 * np.pi, len(frequencies))[:, None]
    rings = np.sin(2 * np.pi * usable * times + phases) * np.exp(-6.9 * times / seconds[:, None])
    return rings.sum(axis=0)


def _strike(strikes: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Return strikes (samples,) convolved with the ringing after each, cut to their length."""
    n = _length(len(strikes) + len(ring))
    return np.fft.irfft(np.fft.rfft(strikes, n) * np.fft.rfft(ring, n), n)[: len(strikes)]


def _random_strikes(
    generator: Generator, samples: int, rate: int, per_second: float, spread: float
) -> np.ndarray:
    """Return strikes (samples,) at random times; their log sizes have the deviation ``spread``."""
    strikes = np.zeros(samples)
    count = int(generator.poisson(per_second * samples / rate))
    sizes = np.exp(spread * generator.standard_normal(count)) * generator.choice([-1, 1], count)
    np.add.at(strikes, generator.integers(samples, size=count), sizes)
    return strikes


def _unit(audio: np.ndarray) -> np.ndarray:
    """Return audio at an RMS of 1; silence stays."""
    return audio / max(float(np.sqrt(np.mean(audio**2))), 1e-12)


def _log_uniform(generator: Generator, low: float, high: float) -> float:
    return float(np.exp(generator.uniform(math.log(low), math.log(high))))


# --- noises ---------------------------------------------------------------------------------


def _make_coloured(generator: Generator, samples: int, rate: int) -> np.ndarray:
    """White to brown, 1 / f^a."""
    return _coloured(generator, samples, rate, generator.uniform(0.0, 2.0))


def _make_band(generator: Generator, samples: int, rate: int) -> np.ndarray:
    """One to three bands of noise, as of a ventilator or a river."""
    audio = 0.1 * _coloured(generator, samples, rate, 1.0)
    for _ in range(int(generator.integers(1, 4))):
        centre, octaves = _log_uniform(generator, 100, 8000), generator.uniform(0.3, 3.0)
        audio += generator.uniform(0.3, 1.0) * _band(generator, samples, rate, centre, octaves)
    return audio


def _make_rain(generator: Generator, samples: int, rate: int) -> np.ndarray:
    """Drops on surfaces of several resonances, over a hiss."""
    audio = 0.3 * _band(generator, samples, rate, _log_uniform(generator, 2000, 8000), 3.0)
    for _ in range(3):
        drops = _random_strikes(generator, samples, rate, _log_uniform(generator, 30, 1000), 0.8)
        frequencies = np.exp(generator.uniform(math.log(600), math.log(7000), 3))
        ring = _rings(generator, rate, frequencies, generator.uniform(0.004, 0.03, 3))
        audio += generator.uniform(0.3, 1.0) * _unit(_strike(drops, ring))
    return audio


def _make_wind(generator: Generator, samples: int, rate: int) -> np.ndarray:
    """Gusts, low and broad, and a whistle that rises with them."""
    gust = _slow(generator, samples, rate, generator.uniform(0.2, 1.5))
    low = _coloured(generator, samples, rate, generator.uniform(1.5, 2.5))
    whistle = _band(generator, samples, rate, _log_uniform(generator, 300, 1500), 0.4)
    return np.exp(0.6 * gust) * low + generator.uniform(0.05, 0.5) * np.exp(gust) * whistle


def _make_crackle(generator: Generator, samples: int, rate: int) -> np.ndarray:
    """Pops of very unequal strength over a low roar, as of a fire."""
    pops = _random_strikes(generator, samples, rate, _log_uniform(generator, 5, 60), 1.2)
    frequencies = np.exp(generator.uniform(math.log(1000), math.log(9000), 4))
    ring = _rings(generator, rate, frequencies, generator.uniform(0.002, 0.02, 4))
    roar = _coloured(generator, samples, rate, 1.6)
    return _unit(_strike(pops, ring)) + generator.uniform(0.1, 0.5) * roar


def _make_babble(generator: Generator, samples: int, rate: int) -> np.ndarray:
    """Several voices of syllables: a gliding pitch through formants."""
    audio = 0.02 * _coloured(generator, samples, rate, 1.0)
    for _ in range(int(generator.integers(3, 9))):
        audio += generator.uniform(0.3, 1.0) * _unit(_voice(generator, samples, rate))
    return audio


def _voice(generator: Generator, samples: int, rate: int, late: float = 0.3) -> np.ndarray:
    """Return one voice, (samples,), with a pitch and a length of the vocal tract of its own.

    Its first syllable began up to ``late`` seconds before the first sample.
    """
    audio = np.zeros(samples)
    pitch, tract = _log_uniform(generator, 85, 250), generator.uniform(0.85, 1.2)
    at = -int(generator.uniform(0, late) * rate)
    while at < samples:
        length = int(generator.uniform(0.08, 0.3) * rate)
        syllable = _syllable(generator, length, rate, pitch, tract)
        start, stop = max(at, 0), min(at + length, samples)
        if stop > start:
            audio[start:stop] += syllable[start - at : stop - at]
        pause = generator.uniform(0.3, 0.8) if generator.random() < 0.12 else 0.02
        at += length + int(pause * rate)
    return audio


def _syllable(
    generator: Generator, length: int, rate: int, pitch: float, tract: float
) -> np.ndarray:
    """Return a syllable (length,): glottal pulses and breath, filtered by three formants."""
    begin, end = np.exp(0.15 * generator.standard_normal(2))
    glide = np.linspace(begin, end, length)
    phase = np.cumsum(pitch * glide / rate)
    pulses = np.diff(np.floor(phase), prepend=0.0)
    breath = generator.uniform(0.02, 0.3) * generator.standard_normal(length)
    formants = tract * generator.uniform([270, 850, 2300], [850, 2300, 3100])
    n = _length(length)
    frequencies = np.maximum(np.fft.rfftfreq(n, 1 / rate), rate / n)
    ratio = frequencies / formants[:, None]
    gains = (1 / (np.abs(1 - ratio**2 + 0.12j * ratio) + 0.02)).sum(axis=0)
    gains *= np.minimum(1, frequencies / 80) / (1 + (frequencies / 4000) ** 2)
    spectrum = np.fft.rfft(pulses + breath * math.sqrt(pitch / rate), n) * gains
    envelope = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** generator.uniform(0.5, 1.5)
    size = np.exp(0.4 * generator.standard_normal())
    return size * envelope * _unit(np.fft.irfft(spectrum, n)[:length])


def _make_hum(generator: Generator, samples: int, rate: int) -> np.ndarray:
    """A mains or motor tone with its harmonics, each beating slowly, over a hiss."""
    mains = (50.0, 60.0, _log_uniform(generator, 40, 300))
    fundamental = mains[int(generator.integers(3))]
    slope = generator.uniform(0.5, 2.0)
    times = np.arange(samples) / rate
    audio = generator.uniform(0.01, 0.2) * _coloured(generator, samples, rate, 0.8)
    for k in range(1, min(25, int(0.45 * rate / fundamental)) + 1):
        size = np.exp(0.7 * generator.standard_normal()) / k**slope
        beat = 1 + 0.3 * _slow(generator, samples, rate, 1.0)
        phase = generator.uniform(0, 2 * np.pi)
        audio += size * beat * np.sin(2 * np.pi * k * fundamental * times + phase)
    return audio


def _make_machine(generator: Generator, samples: int, rate: int) -> np.ndarray:
    """A machine's rhythm: strokes of a few kinds in turn, over its hum and rush."""
    rhythm = _log_uniform(generator, 1.0, 15.0)
    kinds = int(generator.integers(1, 5))
    audio = generator.uniform(0.05, 0.4) * _coloured(generator, samples, rate, 1.0)
    audio += generator.uniform(0.0, 0.3) * _unit(_make_hum(generator, samples, rate))
    count = math.ceil(samples / rate * rhythm) + 1
    first = generator.uniform(0, 1)
    jitter = generator.uniform(0, 0.05) * generator.standard_normal(count)
    moments = ((np.arange(count) - first + jitter) / rhythm * rate).astype(int)
    for kind in range(kinds):
        strikes = np.zeros(samples)
        mine = moments[kind::kinds]
        mine = mine[(mine >= 0) & (mine < samples)]
        strikes[mine] = np.exp(0.1 * generator.standard_normal(len(mine)))
        frequencies = np.exp(generator.uniform(math.log(80), math.log(6000), 6))
        ring = _rings(generator, rate, frequencies, generator.uniform(0.02, 0.3, 6))
        audio += _unit(_strike(strikes, ring))
    return audio


NOISES: dict[str, Maker] = {
    "coloured": _make_coloured,
    "band": _make_band,
    "rain": _make_rain,
    "wind": _make_wind,
    "crackle": _make_crackle,
    "babble": _make_babble,
    "hum": _make_hum,
    "machine": _make_machine,
}


# --- sounds ---------------------------------------------------------------------------------


def _edges(samples: int, rate: int) -> np.ndarray:
    """Return an envelope (samples,) that rises and falls within :data:`EDGE`."""
    ramp = (np.arange(samples) + 0.5) / (EDGE * rate)
    return np.minimum(1, np.minimum(ramp, ramp[::-1]))


def _add(audio: np.ndarray, sound: np.ndarray, start: int) -> None:
    """Add a sound to ``audio`` from a sample on; what lies beyond its end is left out."""
    count = min(len(sound), len(audio) - start)
    audio[start : start + count] += sound[:count]


def _decay(samples: int, rate: int, attack: float, fall: float) -> np.ndarray:
    """Return an envelope that rises in ``attack`` seconds and decays by 60 dB in ``fall``."""
    times = np.arange(samples) / rate
    return np.minimum(1, (times + 1 / rate) / attack) * np.exp(-6.9 * times / fall)


def _harmonics(phase: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the sum (samples,) of harmonics of a phase in cycles, each with its amplitude."""
    turn = np.exp(2j * np.pi * phase)
    harmonic, total = np.ones_like(turn), np.zeros(len(phase))
    for size in sizes:
        harmonic *= turn
        total += size * harmonic.imag
    return total


def _make_tone(generator: Generator, samples: int, rate: int) -> np.ndarray:
    """Notes of one instrument: harmonics, vibrato, and glides from note to note."""
    audio = np.zeros(samples)
    pitch = _log_uniform(generator, 80, 800)
    slope, attack = generator.uniform(0.6, 2.2), _log_uniform(generator, 0.005, 0.2)
    fall = _log_uniform(generator, 0.5, 8.0)
    vibrato, depth = generator.uniform(4, 8), generator.uniform(0, 0.5) * generator.integers(2)
    colour = np.exp(0.6 * generator.standard_normal(24)) / np.arange(1, 25) ** slope
    at = 0
    while at < samples:
        length = max(1, min(samples - at, int(_log_uniform(generator, 0.15, 2.0) * rate)))
        times = np.arange(length) / rate
        glide = generator.uniform(-4, 4) * generator.integers(2) * np.linspace(0, 1, length)
        wave = depth * np.sin(2 * np.pi * vibrato * times + generator.uniform(0, 6.28))
        note = pitch * 2 ** (generator.integers(-7, 8) / 12)
        hertz = note * 2 ** ((glide + wave) / 12)
        count = max(1, int(0.45 * rate / hertz.max()))
        sound = _harmonics(np.cumsum(hertz) / rate, colour[:count])
        _add(audio, sound * _decay(length, rate, attack, fall) * _edges(length, rate), at)
        at += length + int(generator.integers(2) * generator.uniform(0, 0.2) * rate)
    return audio


def _make_impact(generator: Generator, samples: int, rate: int) -> np.ndarray:
    """Something struck now and then: resonances of its own, and the noise of the blow."""
    modes = int(generator.integers(4, 13))
    lowest = _log_uniform(generator, 100, 1500)
    frequencies = lowest * np.concatenate([[1.0], generator.uniform(1.2, 9.0, modes - 1)])
    seconds = _log_uniform(generator, 0.03, 1.5) * np.sqrt(lowest / frequencies)
    ring = _unit(_rings(generator, rate, frequencies, seconds))
    blow = generator.standard_normal(len(ring)) * np.exp(-np.arange(len(ring)) / (0.003 * rate))
    sound = ring + generator.uniform(0.2, 2.0) * blow
    audio = np.zeros(samples)
    at = int(generator.uniform(0, 0.2) * samples)
    while at < samples:
        _add(audio, np.exp(0.4 * generator.standard_normal()) * sound, at)
        at += max(1, int(_log_uniform(generator, 0.08, 2.0) * rate))
    return audio


def _make_texture(generator: Generator, samples: int, rate: int) -> np.ndarray:
    """Noise of some colour or band whose level wanders, or beats."""
    if generator.integers(2):
        audio = _coloured(generator, samples, rate, generator.uniform(0.0, 2.0))
    else:
        centre, octaves = _log_uniform(generator, 150, 8000), generator.uniform(0.2, 2.0)
        audio = _band(generator, samples, rate, centre, octaves)
    if generator.integers(2):
        wander = _slow(generator, samples, rate, _log_uniform(generator, 0.5, 20.0))
        return audio * np.exp(generator.uniform(0.3, 1.2) * wander)
    beat = np.sin(2 * np.pi * _log_uniform(generator, 1, 30) * np.arange(samples) / rate)
    return audio * (1 + generator.uniform(0.3, 1.0) * beat)


def _make_speech(generator: Generator, samples: int, rate: int) -> np.ndarray:
    """One voice of syllables: a gliding pitch through formants."""
    return _voice(generator, samples, rate, late=0.0)


def _make_chirp(generator: Generator, samples: int, rate: int) -> np.ndarray:
    """Calls of a few sweeps, one after the other, that come again."""
    call = []
    for _ in range(int(generator.integers(1, 5))):
        length = max(2, int(_log_uniform(generator, 0.03, 0.5) * rate))
        low, high = _log_uniform(generator, 400, 3000), _log_uniform(generator, 800, 0.4 * rate)
        ends = (low, high) if generator.integers(2) else (high, low)
        phase = np.cumsum(np.geomspace(*ends, length)) / rate
        second = generator.uniform(0, 0.3) if max(ends) < 0.22 * rate else 0.0
        swell = np.sin(np.pi * (np.arange(length) + 0.5) / length)
        call += [swell * _harmonics(phase, np.array([1.0, second]))]
        call += [np.zeros(int(generator.uniform(0.01, 0.15) * rate))]
    sound = np.concatenate(call)
    audio = np.zeros(samples)
    at = 0
    while at < samples:
        _add(audio, np.exp(0.2 * generator.standard_normal()) * sound, at)
        at += len(sound) + int(_log_uniform(generator, 0.02, 1.0) * rate)
    return audio


def _make_rhythm(generator: Generator, samples: int, rate: int) -> np.ndarray:
    """A bar that is played over and over, by a few instruments that are struck or plucked."""
    step = 60 / generator.uniform(60, 180) / int(generator.integers(2, 5))  # seconds
    steps = int(generator.choice([6, 8, 12, 16]))
    count = math.ceil(samples / rate / step)
    audio = np.zeros(samples)
    for part in range(int(generator.integers(2, 5))):
        sound = _unit(_drum(generator, rate)) * generator.uniform(0.3, 1.0)
        bar = generator.random(steps) < generator.uniform(0.15, 0.6)
        bar[int(generator.integers(steps)) if part else 0] = True
        for k in range(count):
            if bar[k % steps]:
                _add(audio, sound, int(k * step * rate))
    return audio


def _drum(generator: Generator, rate: int) -> np.ndarray:
    """Return one stroke of an instrument: a drum, a cymbal, or a string."""
    length = int(_log_uniform(generator, 0.08, 0.5) * rate)
    envelope = _decay(length, rate, 0.002, length / rate) * _edges(length, rate)
    kind = int(generator.integers(3))
    if kind == 0:
        hertz = np.geomspace(
            _log_uniform(generator, 100, 400), _log_uniform(generator, 40, 90), length
        )
        return envelope * _harmonics(np.cumsum(hertz) / rate, np.array([1.0, 0.3]))
    if kind == 1:
        return envelope * _band(generator, length, rate, _log_uniform(generator, 800, 9000), 1.5)
    pitch = _log_uniform(generator, 100, 900)
    sizes = 1 / np.arange(1, 1 + min(12, int(0.45 * rate / pitch)))
    return envelope * _harmonics(np.arange(1, length + 1) * (pitch / rate), sizes)


SOUNDS: dict[str, Maker] = {
    "tone": _make_tone,
    "impact": _make_impact,
    "texture": _make_texture,
    "speech": _make_speech,
    "chirp": _make_chirp,
    "rhythm": _make_rhythm,
}
