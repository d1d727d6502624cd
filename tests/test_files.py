"""Sound files: formats, rates, channels, and what is wrong with them."""

import numpy as np
import pytest
import soundfile

from gram_hear.audio.files import find_audio, read_audio
from gram_hear.errors import AudioError

RATE = 32000


def tone(rate, seconds=0.5, channels=1, frequency=440.0):
    time = np.arange(int(rate * seconds)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * frequency * time + c) for c in range(channels)], 1)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 32000, 44100, 48000, 96000])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_lossless_files_of_any_rate_hold_their_sound(tmp_path, suffix, rate):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(rate, channels=2), rate, subtype="PCM_24")
    recording = read_audio(path, RATE)
    assert recording.audio.shape == (2, RATE // 2)
    assert recording.audio.dtype == np.float32
    assert recording.file_rate == rate
    assert recording.duration == pytest.approx(0.5, abs=1e-3)
    middle = slice(RATE // 8, -RATE // 8)
    assert np.abs(recording.audio.T - tone(RATE, channels=2))[middle].max() < 1e-3


@pytest.mark.parametrize(
    ("suffix", "channels"), [("ogg", 1), ("ogg", 2), ("ogg", 4), ("mp3", 1), ("mp3", 2)]
)
def test_lossy_files_hold_their_sound(tmp_path, suffix, channels):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(48000, channels=channels), 48000)
    audio = read_audio(path, RATE).audio
    assert audio.shape[0] == channels
    assert np.abs(audio).max() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_come_first_and_in_order(tmp_path, channels):
    path = tmp_path / "levels.wav"
    levels = np.tile(np.linspace(0.1, 0.4, channels), (1000, 1))
    soundfile.write(path, levels, RATE, subtype="FLOAT")
    assert np.allclose(read_audio(path, RATE).audio, levels.T)


def test_a_folder_is_searched_by_suffix_in_order_without_hidden_files(tmp_path):
    for name in ("b.WAV", "a/x.flac", "a/notes.txt", ".hidden.wav", ".cache/y.wav", "c.mp3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in find_audio(tmp_path)]
    assert found == ["b.WAV", "c.mp3", "a/x.flac"]


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not a sound at all, but long enough to look at")
    (tmp_path / "noise.mp3").write_bytes(bytes(range(256)) * 20)
    soundfile.write(tmp_path / "silent.wav", np.zeros((0, 1)), RATE)
    soundfile.write(tmp_path / "three.wav", np.zeros((100, 3)), RATE)
    cases = {
        "missing.wav": "no file",
        "empty.wav": "empty",
        "text.wav": "could not be read",
        "noise.mp3": "could not be read|no samples",
        "silent.wav": "no samples",
        "three.wav": "3 channels; allowed are 1",
        ".": "is a folder",
    }
    for name, message in cases.items():
        with pytest.raises(AudioError, match=message):
            read_audio(tmp_path / name, RATE)
