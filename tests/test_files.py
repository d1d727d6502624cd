"""Sound files: formats, rates, channels, and what is wrong with them."""

import os
import re
import struct
import warnings

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gram_hear.audio.containers import Part
from gram_hear.audio.files import SUFFIXES, UNREADABLE, SoundReader, find_audio, read_audio
from gram_hear.errors import AudioError, OptionError

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


def test_a_shortened_flac_is_an_error_and_a_shortened_ogg_is_short_with_a_warning(tmp_path):
    for suffix in ("flac", "ogg"):
        path = tmp_path / f"short.{suffix}"
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, (88200, 1))
        soundfile.write(path, noise, 44100)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"short\.flac is damaged"):
        read_audio(tmp_path / "short.flac", RATE)
    with pytest.warns(UserWarning, match="broken at its end"):
        assert read_audio(tmp_path / "short.ogg", RATE).duration < 1.9


@pytest.mark.parametrize("rate", [8000, 32000, 44100])
def test_blocks_of_any_length_join_to_the_same_sound(tmp_path, rate):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(rate, seconds=1.3, channels=2), rate)
    whole = read_audio(path, RATE).audio
    for seconds in (0.01, 0.33, 2.0):
        with SoundReader(path, RATE) as reader:
            assert np.array_equal(np.concatenate(list(reader.blocks(seconds)), axis=1), whole)


# --- headers ----------------------------------------------------------------------------------


def read_silently(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_audio(path, RATE)


@pytest.mark.parametrize("rate", [1, 10, 999, 1_000_001, 2**31 - 1])
@pytest.mark.parametrize("any_channels", [True, False])
def test_an_impossible_sample_rate_is_an_error_that_names_it(tmp_path, rate, any_channels):
    soundfile.write(tmp_path / "a.wav", tone(RATE), RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[24:28] = struct.pack("<I", rate)
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(AudioError, match=rf"a\.wav states a sample rate of {rate} Hz; .* 1000 to"):
        SoundReader(tmp_path / "a.wav", RATE, any_channels=any_channels)


def test_recordings_of_ultrasound_and_of_low_rates_are_read(tmp_path):
    for rate in (1000, 384_000, 1_000_000):
        soundfile.write(tmp_path / "a.wav", tone(rate, seconds=0.1), rate)
        assert read_silently(tmp_path / "a.wav").audio.shape == (1, RATE // 10)


@pytest.mark.parametrize("stated", [16000, 64000])
def test_a_whole_file_that_misstates_its_bytes_per_second_brings_no_warning(tmp_path, stated):
    path = tmp_path / "adpcm.wav"
    soundfile.write(path, tone(44100, seconds=1), 44100, subtype="MS_ADPCM")
    content = bytearray(path.read_bytes())
    content[28:32] = struct.pack("<I", stated)
    path.write_bytes(content)
    assert read_silently(path).duration == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "MS_ADPCM"),
        ("WAVEX", "FLOAT"),
        ("AU", "PCM_16"),
        ("RF64", "PCM_16"),
        ("W64", "PCM_24"),
    ],
)
@pytest.mark.parametrize("start", [0.0, 0.5], ids=["silent", "loud"])
def test_sound_whose_size_was_never_written_is_read_to_the_end(tmp_path, format, subtype, start):
    path = tmp_path / "broken_off.wav"
    sound = tone(RATE, seconds=1)
    sound[:1000] = start
    soundfile.write(path, sound, RATE, format=format, subtype=subtype)
    whole = read_silently(path).audio
    content = bytearray(path.read_bytes())
    place = 8 if format == "AU" else content.index(b"data") + (16 if format == "W64" else 4)
    content[place : place + 4] = bytes(4)
    if format == "RF64":
        place = content.index(b"ds64")
        content[place + 8 : place + 32] = bytes(24)
    path.write_bytes(content)
    with SoundReader(path, RATE) as reader:
        assert reader.duration > 0.99
    with pytest.warns(UserWarning, match="does not say how much sound it holds"):
        assert np.array_equal(read_audio(path, RATE).audio, whole)


def test_a_file_without_samples_is_not_taken_for_one_that_was_broken_off(tmp_path):
    path = tmp_path / "empty.wav"
    soundfile.write(path, np.zeros((0, 1)), RATE)
    path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", 10) + b"INFOISFT  ")
    with pytest.raises(AudioError, match="holds no samples"):
        read_audio(path, RATE)


def test_what_libsndfile_does_not_read_is_named_with_what_to_do(tmp_path):
    page = b"OggS\0\2" + bytes(8) + b"abcd" + bytes(8) + b"\1\x33"
    cases = {
        "a.oga": (page + b"\x7fFLAC\1\0" + bytes(60), r"FLAC in Ogg.* ffmpeg -i a\.oga a\.flac"),
        "a.mp3": (bytes([0, 0, 0, 32]) + b"ftypM4A " + bytes(60), r"MP4 .* ffmpeg -i a\.mp3"),
        "a.aac": (b"\xff\xf1" + bytes(60), r"it is AAC, which .* ffmpeg -i a\.aac a\.flac"),
        "b.mp3": (np.random.default_rng(0).bytes(3000), "it is no MP3 file"),
        "a.wav": (b"something else altogether" * 9, "it is no WAV file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioError, match=message):
            read_audio(tmp_path / name, RATE)


# --- Ambisonic files ---------------------------------------------------------------------------


def test_b_format_is_fuma_by_the_files_own_word(b_format):
    path, ambix = b_format
    for convention in (None, "fuma"):
        recording = read_audio(path, RATE, convention=convention)
        assert recording.convention == "fuma"
        assert np.array_equal(recording.audio, read_audio(ambix, RATE).audio)
    for convention in ("ambix", "soundspaces"):
        with pytest.raises(AudioError, match=rf"b\.amb says .* 'fuma', and '{convention}'"):
            read_audio(path, RATE, convention=convention)
    with pytest.raises(OptionError, match=r"'fumas'; allowed are .* Did you mean 'fuma'"):
        read_audio(path, RATE, convention="fumas")


def test_b_format_and_its_ambix_copy_are_resampled_alike(b_format):
    first, second = (read_audio(path, 44100) for path in b_format)
    assert np.array_equal(first.audio, second.audio)
    assert (first.convention, second.convention) == ("fuma", "ambix")


def test_b_format_of_less_than_four_channels_is_an_error(tmp_path, write_wavex):
    write_wavex(tmp_path / "b.amb", tone(RATE, channels=2), b_format=True)
    with pytest.raises(AudioError, match="says that it is Ambisonic B-format and has 2 channels"):
        read_audio(tmp_path / "b.amb", RATE)


def test_a_caf_or_w64_file_that_says_b_format_is_fuma(tmp_path, b_format):
    path, ambix = b_format
    soundfile.write(tmp_path / "b.caf", *soundfile.read(path))
    content = (tmp_path / "b.caf").read_bytes()
    place = content.index(b"data")
    layout = b"chan" + struct.pack(">qIII", 12, 107 << 16 | 4, 0, 0)
    (tmp_path / "b.caf").write_bytes(content[:place] + layout + content[place:])
    content = path.read_bytes()
    rest = bytes.fromhex("f3acd3118cd100c04f8edb8a")
    samples = content[68:]
    body = b"wave" + rest + b"fmt " + rest + struct.pack("<q", 64) + content[20:60]
    body += b"data" + rest + struct.pack("<q", 24 + len(samples)) + samples
    riff = bytes.fromhex("726966662e91cf11a5d628db04c10000") + struct.pack("<q", 24 + len(body))
    (tmp_path / "b.w64").write_bytes(riff + body)
    for name in ("b.caf", "b.w64"):
        recording = read_audio(tmp_path / name, RATE)
        assert recording.convention == "fuma"
        assert np.array_equal(recording.audio, read_audio(ambix, RATE).audio)


@pytest.mark.parametrize("convention", ["fuma", "soundspaces"])
def test_a_convention_that_is_given_holds_where_the_file_says_none(
    tmp_path, write_wavex, b_format, convention
):
    ambix = read_audio(b_format[1], RATE).audio
    w, y, z, x = ambix
    forms = {
        "fuma": [w / 2**0.5, x, y, z],
        "soundspaces": [w, 3**0.5 * z, -(3**0.5) * x, -(3**0.5) * y],
    }
    form = np.stack(forms[convention], axis=1)
    soundfile.write(tmp_path / "plain.wav", form, RATE, subtype="FLOAT")
    write_wavex(tmp_path / "no_mask.wav", form)
    for name in ("plain.wav", "no_mask.wav"):
        recording = read_audio(tmp_path / name, RATE, convention=convention)
        assert recording.convention == convention
        np.testing.assert_allclose(recording.audio, ambix, atol=1e-4)
        assert read_audio(tmp_path / name, RATE).convention == "ambix"


@pytest.mark.parametrize("mask", [0x33, 0x107, 0x3, 0xF])
def test_four_loudspeakers_are_not_ambisonic(tmp_path, write_wavex, mask):
    write_wavex(tmp_path / "quad.wav", tone(RATE, channels=4), mask)
    for convention in (None, "ambix"):
        with pytest.raises(AudioError, match=r"quad\.wav .*loudspeakers .*FLAC"):
            read_audio(tmp_path / "quad.wav", RATE, convention=convention)
    with SoundReader(tmp_path / "quad.wav", RATE, any_channels=True) as reader:
        assert reader.convention is None
        assert np.concatenate(list(reader.blocks()), axis=1).shape == (4, RATE // 2)


def test_the_speakers_of_mono_and_stereo_are_no_fault(tmp_path, write_wavex):
    for channels, mask in ((1, 4), (2, 3)):
        write_wavex(tmp_path / "a.wav", tone(RATE, channels=channels), mask)
        recording = read_silently(tmp_path / "a.wav")
        assert (len(recording.audio), recording.convention) == (channels, None)


# --- MP3 --------------------------------------------------------------------------------------


def mp3(path, seconds=1.0, rate=44100, channels=1, seed=0):
    """Write an MP3 of noise and return its bytes."""
    noise = np.random.default_rng(seed).uniform(-0.3, 0.3, (int(seconds * rate), channels))
    soundfile.write(path, noise, rate, format="MP3")
    return path.read_bytes()


def without_count(content):
    return content.replace(b"Xing", bytes(4)).replace(b"Info", bytes(4))


ID3V1 = b"TAG" + b"Info Xing".ljust(125)
APE = b"APETAGEX" + struct.pack("<IIII", 2000, 82, 1, 1 << 31) + bytes(8) + bytes(82)
ID3V2 = b"ID3\x04\0\0\0\0\0\x14TIT2\0\0\0\x0a\0\0\x03Info Xing"


@pytest.mark.parametrize("between", [b"", ID3V1, ID3V2, APE + ID3V1 + ID3V2])
def test_joined_mp3s_are_read_whole(tmp_path, between):
    contents = [mp3(tmp_path / f"{i}.mp3", seconds=1 + i, seed=i) for i in range(3)]
    (tmp_path / "all.mp3").write_bytes(between.join(contents))
    recording = read_silently(tmp_path / "all.mp3")
    parts = []
    for i in range(3):
        with SoundReader(tmp_path / f"{i}.mp3", RATE) as reader:
            parts += list(reader.samples())
    with SoundReader(tmp_path / "all.mp3", RATE) as reader:
        assert np.array_equal(np.concatenate(list(reader.samples())), np.concatenate(parts))
    assert recording.duration == 6.0
    assert recording.audio.shape == (1, 6 * RATE)


@pytest.mark.parametrize("start", [b"", ID3V2])
@pytest.mark.parametrize("end", [b"", ID3V1, bytes(3000)])
def test_an_mp3_that_does_not_count_its_frames_is_read_whole(tmp_path, start, end):
    content = mp3(tmp_path / "counted.mp3", seconds=2)
    (tmp_path / "plain.mp3").write_bytes(start + without_count(content) + end)
    recording = read_silently(tmp_path / "plain.mp3")
    # With the frame that held the count, and what the count would have cut off at both ends.
    assert recording.duration == pytest.approx(2 + 3 * 1152 / 44100, abs=1152 / 44100)
    with SoundReader(tmp_path / "plain.mp3", RATE) as reader:
        assert reader.duration == recording.duration
    (tmp_path / "plain.mp3").write_bytes(2 * (start + without_count(content) + end))
    twice = read_silently(tmp_path / "plain.mp3")
    assert twice.duration == pytest.approx(2 * recording.duration, abs=0.03)


def test_what_follows_an_mp3_and_cannot_be_read_is_said(tmp_path):
    first = mp3(tmp_path / "first.mp3", seconds=1)
    others = {
        "rate": mp3(tmp_path / "rate.mp3", rate=48000),
        "channels": mp3(tmp_path / "channels.mp3", channels=2),
        "noise": np.random.default_rng(0).bytes(5000),
    }
    for name, other in others.items():
        path = tmp_path / f"{name}_follows.mp3"
        path.write_bytes(first + other)
        with pytest.warns(UserWarning, match=rf"{name}_follows\.mp3: no more .* after 1\.00 s"):
            assert read_audio(path, RATE).duration == 1


def test_an_mp3_without_a_count_that_is_cut_off_is_read_with_a_warning(tmp_path):
    content = without_count(mp3(tmp_path / "a.mp3", seconds=2))
    (tmp_path / "a.mp3").write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match=r"no more could be read after 0\.\d\d s"):
        assert 0.9 < read_audio(tmp_path / "a.mp3", RATE).duration < 1.2


# --- Ogg --------------------------------------------------------------------------------------


def ogg(path, subtype, seconds, rate=48000, channels=1):
    """Write noise as Ogg, and return its pages."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (int(seconds * rate), channels))
    soundfile.write(path, noise, rate, format="OGG", subtype=subtype)
    content, pages = path.read_bytes(), []
    while content:
        segments = content[26]
        size = 27 + segments + sum(content[27 : 27 + segments])
        pages.append(content[:size])
        content = content[size:]
    return pages


def seconds_before(pages, subtype, rate):
    granule = int.from_bytes(pages[-1][6:14], "little", signed=True)
    return max(0, granule) / (48000 if subtype == "OPUS" else rate)


@pytest.mark.slow
@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("damage", ["lost", "bit", "mark", "twice"])
def test_a_lost_or_damaged_ogg_page_is_an_error_that_says_where(tmp_path, subtype, damage):
    rate = 16000 if subtype == "VORBIS" else 24000
    pages = ogg(tmp_path / "a.ogg", subtype, 8, rate)
    assert len(pages) > 6
    for broken in range(2, len(pages) - 1):
        page = pages[broken]
        flipped = page[:100] + bytes([page[100] ^ 1]) + page[101:]
        new = {"lost": b"", "bit": flipped, "mark": b"oGgS" + page[4:], "twice": page + page}[
            damage
        ]
        content = b"".join(pages[:broken]) + new + b"".join(pages[broken + 1 :])
        (tmp_path / "a.ogg").write_bytes(content)
        with pytest.raises(AudioError, match="is damaged: a page") as caught:
            next(SoundReader(tmp_path / "a.ogg", RATE).blocks())
        found = float(re.search(r"about ([\d.]+) s", str(caught.value))[1])
        before = pages[: broken + (damage == "twice")]
        assert found == pytest.approx(seconds_before(before, subtype, rate), abs=0.01)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_streams_one_after_another_are_read_whole(tmp_path, subtype):
    for i, seconds in enumerate((1, 2.5, 0.7)):
        ogg(tmp_path / f"{i}.ogg", subtype, seconds)
    contents = [(tmp_path / f"{i}.ogg").read_bytes() for i in range(3)]
    (tmp_path / "all.ogg").write_bytes(b"".join(contents))
    parts = []
    for i in range(3):
        with SoundReader(tmp_path / f"{i}.ogg", RATE) as reader:
            parts += list(reader.samples())
    with SoundReader(tmp_path / "all.ogg", RATE) as reader:
        assert np.array_equal(np.concatenate(list(reader.samples())), np.concatenate(parts))
        assert reader.duration == pytest.approx(4.2)
    ogg(tmp_path / "stereo.ogg", subtype, 1, channels=2)
    (tmp_path / "both.ogg").write_bytes(contents[0] + (tmp_path / "stereo.ogg").read_bytes())
    with pytest.warns(UserWarning, match=r"no more could be read after 1\.00 s"):
        assert read_audio(tmp_path / "both.ogg", RATE).duration == 1


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    samples=st.integers(1, 200_000),
    form=st.sampled_from([("VORBIS", 8000), ("VORBIS", 44100), ("OPUS", 48000), ("OPUS", 12000)]),
    channels=st.sampled_from([1, 2, 4]),
)
def test_whole_ogg_files_of_any_length_bring_no_complaint(tmp_path, samples, form, channels):
    subtype, rate = form
    noise = np.random.default_rng(samples).uniform(-0.3, 0.3, (samples, channels))
    soundfile.write(tmp_path / "a.ogg", noise, rate, format="OGG", subtype=subtype)
    with SoundReader(tmp_path / "a.ogg", rate) as reader, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(len(block) for block in reader.samples()) == samples


# --- parts of files ---------------------------------------------------------------------------


def test_a_part_of_a_file_is_read_as_a_file_of_its_own(tmp_path, b_format):
    """With what follows the part being more of the same sound."""
    joined = mp3(tmp_path / "1.mp3") + ID3V1 + mp3(tmp_path / "2.mp3", seed=1)
    pages = ogg(tmp_path / "a.ogg", "VORBIS", 3)
    soundfile.write(tmp_path / "a.wav", tone(RATE), RATE)
    unsized = bytearray((tmp_path / "a.wav").read_bytes())
    unsized[40:44] = bytes(4)
    contents = {
        "whole.flac": (tmp_path / "a.wav").read_bytes(),
        "b_format.amb": b_format[0].read_bytes(),
        "joined.mp3": joined,
        "uncounted.mp3": without_count(joined),
        "unsized.wav": bytes(unsized),
        "joined.ogg": 2 * b"".join(pages),
        "broken.ogg": b"".join(pages[:3] + pages[4:]),
        "foreign.wav": b"\0\0\0 ftypM4A " + bytes(60),
        "empty.wav": b"",
    }

    def outcome(sound, name):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with SoundReader(sound, 16000, any_channels=True) as reader:
                    found = np.concatenate(list(reader.blocks()), axis=1).tobytes()
                    facts = (reader.duration, reader.convention, reader.is_plain, reader.file_rate)
            except AudioError as error:
                found, facts = str(error).replace(name, ""), ()
        return found, facts, [str(each.message).replace(name, "") for each in caught]

    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / "all").write_bytes(b"before" + content + content)
        part = Part(tmp_path / "all", name, 6, len(content))
        assert outcome(part, str(part)) == outcome(tmp_path / name, str(tmp_path / name)), name


def test_a_part_that_lies_past_the_end_of_its_file_is_an_error(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(RATE), RATE)
    size = (tmp_path / "a.wav").stat().st_size
    with pytest.raises(AudioError, match=r"a\.wav: b ends early"):
        SoundReader(Part(tmp_path / "a.wav", "b", 1, size), RATE)
