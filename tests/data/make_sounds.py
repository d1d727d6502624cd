"""Make tests/data/sounds: short synthetic sounds in several formats, rates and layouts.

    python tests/data/make_sounds.py

- mono_vowels.mp3 (22.05 kHz): three voiced syllables with gliding pitch.
- binaural_passing.flac (44.1 kHz): a buzz that passes from the left ear to the right.
- binaural_room.flac (32 kHz): the three syllables in three rooms, on the left, on the right and in
  front, as the KEMAR head hears them; azimuths 70, -50 and 0 degrees, 2.3 s each.
- ambix_circling.wav (48 kHz, ACN/SN3D): noise pulses that circle the listener counter-clockwise.
- mono_impacts.ogg (16 kHz): decaying knocks.
"""

from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from gram_hear.scenes.single import make_scene

FOLDER = Path(__file__).parent / "sounds"
Signal = NDArray[np.float64]


def harmonics(pitch: Signal, rate: int, formants: tuple[float, ...] = ()) -> Signal:
    """A buzz of up to 30 harmonics of a moving pitch, shaped by formants (Hz)."""
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    sound = np.zeros_like(pitch)
    for number in range(1, 31):
        frequency = number * pitch
        gain = sum(np.exp(-(((frequency - f) / 250) ** 2)) for f in formants) if formants else 1.0
        sound += np.where(frequency < rate / 2, gain / number, 0) * np.sin(number * phase)
    return sound


def mono_vowels(rate: int = 22050) -> Signal:
    syllables = []
    for start, end, formants in (
        (120, 150, (700, 1200)),
        (150, 140, (300, 2200)),
        (140, 95, (400, 800)),
    ):
        time = np.arange(int(0.5 * rate)) / rate
        envelope = np.sin(np.pi * time / 0.5) ** 2
        syllables += [envelope * harmonics(np.linspace(start, end, len(time)), rate, formants)]
        syllables += [np.zeros(int(0.15 * rate))]
    return np.concatenate(syllables)


def binaural_passing(rate: int = 44100, seconds: float = 4.0) -> Signal:
    time = np.arange(int(seconds * rate)) / rate
    source = harmonics(np.full_like(time, 180.0) * (1 + 0.02 * np.sin(2 * np.pi * 5 * time)), rate)
    side = np.sin(np.linspace(np.pi / 2, -np.pi / 2, len(time)))  # 1 left, -1 right
    ears = []
    for sign in (1, -1):
        delay = 0.00035 * (1 - sign * side)  # up to 0.7 ms at the far ear
        level = 10 ** (-8 * (1 - sign * side) / 2 / 20)  # up to 8 dB at the far ear
        ears.append(level * np.interp(time - delay, time, source))
    return np.stack(ears, axis=1)


def binaural_room(rate: int = 32000) -> Signal:
    vowels = soxr.resample(mono_vowels(), 22050, rate).astype(np.float32)
    heard = [
        make_scene(vowels, rate, seed=seed, azimuth=azimuth, elevation=0, distance=1.5, rt60=0.3)
        for seed, azimuth in enumerate((70.0, -50.0, 0.0))
    ]
    parts = [np.zeros((round(2.3 * rate), 2)) for _ in heard]  # not those of the models' windows
    for part, each in zip(parts, heard, strict=True):
        sound = each.audio[:, : len(part)].T
        part[: len(sound)] = sound
    return np.concatenate(parts)


def ambix_circling(rate: int = 48000, seconds: float = 2.0) -> Signal:
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(time))
    source = noise * (np.sin(2 * np.pi * 4 * time) > 0)
    azimuth = 2 * np.pi * time / seconds
    w, y, z, x = source, source * np.sin(azimuth), 0 * source, source * np.cos(azimuth)
    return np.stack([w, y, z, x], axis=1)


def mono_impacts(rate: int = 16000) -> Signal:
    time = np.arange(int(1.8 * rate)) / rate
    sound = np.zeros_like(time)
    for onset, frequency in ((0.1, 400), (0.6, 700), (0.9, 300), (1.3, 1100)):
        after = np.clip(time - onset, 0, None)
        sound += (time >= onset) * np.exp(-after / 0.06) * np.sin(2 * np.pi * frequency * after)
    return sound


def write(name: str, sound: Signal, rate: int) -> None:
    soundfile.write(FOLDER / name, 0.5 * sound / np.abs(sound).max(), rate)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    write("mono_vowels.mp3", mono_vowels(), 22050)
    write("binaural_passing.flac", binaural_passing(), 44100)
    write("binaural_room.flac", binaural_room(), 32000)
    write("ambix_circling.wav", ambix_circling(), 48000)
    write("mono_impacts.ogg", mono_impacts(), 16000)
