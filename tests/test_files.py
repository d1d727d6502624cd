"""Sound files: formats, rates, channels, and what is wrong with them."""

import os

import numpy as np
import pytest
import soundfile

from gram_hear.audio.files import SUFFIXES, UNREADABLE, SoundReader, find_audio, read_audio
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


FORMATS = {
    **dict.fromkeys(["wav", "wave", "bwf"], "WAV"),
    **dict.fromkeys(["wavex", "amb"], "WAVEX"),
    **dict.fromkeys(["nist", "sph"], "NIST"),
    **dict.fromkeys(["ogg", "oga", "opus"], "OGG"),
    **dict.fromkeys(["mp3", "mpga", "mpa"], "MP3"),
    **dict.fromkeys(["aif", "aiff", "aifc"], "AIFF"),
    **dict.fromkeys(["au", "snd"], "AU"),
    **dict.fromkeys(["sf", "ircam"], "IRCAM"),
    **dict.fromkeys(["svx", "8svx", "16svx", "iff"], "SVX"),
    **dict.fromkeys(["paf", "fap"], "PAF"),
    **{name: name.upper() for name in ("rf64", "w64", "flac", "caf", "voc", "pvf", "avr", "htk")},
    **{name: name.upper() for name in ("sds", "wve", "xi", "mpc2k", "sd2")},
}


@pytest.mark.parametrize("name", [*FORMATS, *(name.upper() for name in FORMATS)])
def test_all_formats_that_libsndfile_tells_by_their_header_are_found(tmp_path, name):
    path = tmp_path / f"sound.{name}"
    form = FORMATS[name.lower()]
    subtype = {"XI": "DPCM_16", "WVE": "ALAW"}.get(form)
    soundfile.write(path, tone(44100), 44100, subtype=subtype, format=form)
    assert list(find_audio(tmp_path)) == [path]
    assert read_audio(path, RATE).audio.shape[0] == 1


@pytest.mark.filterwarnings("ignore:.* does not say how long")
@pytest.mark.parametrize(
    ("name", "frame"),
    [  # silence: the header, and no bits allocated; 256 and 64 kbit/s at 44.1 kHz, one channel
        ("sound.mp1", b"\xff\xff\x80\xc0" + bytes(12 * 256000 // 44100 * 4 - 4)),
        ("sound.mp2", b"\xff\xfd\x40\xc0" + bytes(144 * 64000 // 44100 - 4)),
    ],
)
def test_earlier_layers_of_mpeg_are_found(tmp_path, name, frame):
    (tmp_path / name).write_bytes(frame * 100)
    [path] = find_audio(tmp_path)
    assert not read_audio(path, RATE).audio.any()


def test_no_suffix_is_both_read_and_not():
    assert not set(SUFFIXES) & set(UNREADABLE)
    suffixes = {f".{name}" for name in FORMATS} | {".mp1", ".mp2"}
    assert set(SUFFIXES) == suffixes


@pytest.mark.parametrize("name", ["a.au", "a.snd", "a.vox", "a.gsm"])
def test_sound_without_a_header_is_not_guessed_from_its_suffix(tmp_path, name):
    (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(3300))
    with pytest.raises(AudioError, match="has no header"):
        read_audio(tmp_path / name, RATE)


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


def test_files_that_libsndfile_cannot_make_sense_of_are_errors(tmp_path):
    (tmp_path / "samples.raw").write_bytes(bytes(1000))
    with pytest.raises(AudioError, match=r"samples\.raw could not be read"):
        read_audio(tmp_path / "samples.raw", RATE)


def test_a_header_that_promises_far_too_much_takes_no_memory(tmp_path):
    path = tmp_path / "liar.flac"
    soundfile.write(path, tone(RATE), RATE)
    content = bytearray(path.read_bytes())
    start = content.index(b"fLaC") + 8 + 13  # in STREAMINFO, the last 36 bits before the MD5
    content[start] |= 0x0F
    content[start + 1 : start + 5] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="ends before its header says"):
        recording = read_audio(path, RATE)
    assert recording.audio.shape == (1, RATE // 2)


def test_a_header_that_does_not_know_the_length_is_no_fault(tmp_path, recwarn):
    path = tmp_path / "piped.flac"
    soundfile.write(path, tone(RATE), RATE)
    content = bytearray(path.read_bytes())
    start = content.index(b"fLaC") + 8 + 13
    content[start] &= 0xF0
    content[start + 1 : start + 5] = bytes(4)
    path.write_bytes(content)
    with SoundReader(path, RATE) as reader:
        assert reader.duration == 0
        assert sum(block.shape[1] for block in reader.blocks()) == RATE // 2
        assert reader.duration == 0.5
    assert not recwarn.list


def test_a_name_that_is_no_utf8_is_read(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    soundfile.write(os.fsencode(path), tone(RATE), RATE, format="WAV")
    assert list(find_audio(tmp_path)) == [path]
    assert read_audio(path, RATE).audio.shape == (1, RATE // 2)


def test_less_than_one_sample_at_the_models_rate_is_an_error_that_says_so(tmp_path):
    soundfile.write(tmp_path / "one.wav", np.ones((1, 1)), 192000)
    with pytest.raises(AudioError, match="1 samples at 192000 Hz: less than one at 32000 Hz"):
        read_audio(tmp_path / "one.wav", RATE)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "w64", "mp3"])
def test_what_is_there_of_a_shortened_file_is_used_with_a_warning(tmp_path, suffix):
    path = tmp_path / f"short.{suffix}"
    soundfile.write(path, tone(44100, seconds=2), 44100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match="ends before its header says"):
        recording = read_audio(path, RATE)
    assert 0.8 < recording.duration < 1.1
    assert recording.audio.shape[1] == pytest.approx(recording.duration * RATE, abs=2)


def test_a_shortened_flac_is_an_error_and_a_shortened_ogg_is_silently_short(tmp_path):
    for suffix in ("flac", "ogg"):
        path = tmp_path / f"short.{suffix}"
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, (88200, 1))
        soundfile.write(path, noise, 44100)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"short\.flac is damaged"):
        read_audio(tmp_path / "short.flac", RATE)
    assert read_audio(tmp_path / "short.ogg", RATE).duration < 1.9


@pytest.mark.parametrize("rate", [8000, 32000, 44100])
def test_blocks_of_any_length_join_to_the_same_sound(tmp_path, rate):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(rate, seconds=1.3, channels=2), rate)
    whole = read_audio(path, RATE).audio
    for seconds in (0.01, 0.33, 2.0):
        with SoundReader(path, RATE) as reader:
            assert np.array_equal(np.concatenate(list(reader.blocks(seconds)), axis=1), whole)


def test_an_mp3_that_does_not_count_its_frames_warns(tmp_path, recwarn):
    path = tmp_path / "counted.mp3"
    soundfile.write(path, tone(44100, seconds=2), 44100)
    read_audio(path, RATE)
    assert not recwarn.list
    content = path.read_bytes()
    for mark in (b"Xing", b"Info"):
        content = content.replace(mark, bytes(4))
    tags = b"ID3\x04\x00\x00\x00\x00\x00\x05" + bytes(5)
    for name, start in (("plain.mp3", b""), ("tagged.mp3", tags)):
        (tmp_path / name).write_bytes(start + content)
        with pytest.warns(UserWarning, match="does not say how long it is"):
            read_audio(tmp_path / name, RATE)
