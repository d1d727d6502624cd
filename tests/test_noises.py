"""Sets of noises: synthetic, folders and tars; draws depend on the seed alone."""

import tarfile
import warnings

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import encoded, npy, write_tar

from gram_hear.audio.archives import Member
from gram_hear.audio.containers import ByteView
from gram_hear.errors import OptionError, SceneError
from gram_hear.scenes.noises import open_noise

RATE = 32000


@pytest.fixture(scope="module")
def sounds():
    """Name -> (samples,): two long, one short."""
    generator = np.random.default_rng(0)
    lengths = {"a.wav": 5000, "deep/b.flac": 4000, "c.ogg": 1000}
    return {name: 0.3 * generator.standard_normal(n).clip(-2, 2) for name, n in lengths.items()}


@pytest.fixture
def folder(sounds, tmp_path):
    for name, audio in sounds.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, audio, RATE)
    return tmp_path


def draws(noises, count=40, samples=2000):
    return [noises.draw([seed], samples) for seed in range(count)]


# --- what is drawn --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["synthetic", "recorded"])
def test_draw_depends_on_the_seed_alone(folder, kind):
    path = None if kind == "synthetic" else folder
    first, again = open_noise(path, RATE), open_noise(path, RATE)
    again.draw([99], 500)
    one, other = first.draw([1, 2], 2000), again.draw([1, 2], 2000)
    np.testing.assert_array_equal(one.audio, other.audio)
    assert (one.name, one.offset, one.whole) == (other.name, other.offset, other.whole)
    assert first.identity == again.identity
    assert len({noise.name for noise in draws(first)}) >= 3


def test_synthetic_noise_fills_the_clip():
    noise = open_noise(None, 16000).draw([0], 1234)
    assert noise.audio.shape == (1234,)
    assert not noise.whole


def test_long_sounds_are_excerpts_and_short_ones_whole(folder, sounds):
    found = draws(open_noise(folder, RATE))
    assert {noise.name for noise in found} == set(sounds)
    for noise in found:
        source = sounds[noise.name]
        assert noise.whole == (len(source) <= 2000)
        assert len(noise.audio) == min(2000, len(source))
        if noise.name != "c.ogg":  # the others are lossless but for their bits
            expected = source[noise.offset : noise.offset + 2000]
            np.testing.assert_allclose(noise.audio, expected, atol=1e-4)
    assert len({noise.offset for noise in found}) > 10


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6000), st.lists(st.integers(0, 2**32), min_size=1, max_size=4))
def test_excerpts_lie_within_the_sound(tmp_path_factory, samples, seed):
    folder = tmp_path_factory.mktemp("noise")
    ramp = np.arange(5000, dtype=np.float32) / 8192
    write_tar(folder / "ramp.tar", {"ramp.npy": npy(ramp)})
    noise = open_noise(folder, RATE).draw(seed, samples)
    assert noise.whole == (samples >= 5000)
    expected = ramp[noise.offset : noise.offset + samples]
    np.testing.assert_array_equal(noise.audio, expected)
    assert len(noise.audio) == min(samples, 5000)


def test_first_channel_is_taken_and_resampled(tmp_path):
    times = np.arange(16000) / 16000
    surround = np.zeros((16000, 6))  # any number of channels
    surround[:, 0] = np.sin(2 * np.pi * 440 * times)
    soundfile.write(tmp_path / "tone.wav", surround, 16000, subtype="FLOAT")
    write_tar(tmp_path / "more.tar", {"tone.flac": encoded(surround, 16000)})
    for path in ("tone.wav", "more.tar"):
        noise = open_noise(tmp_path / path, RATE).draw([0], 10**6)
        assert noise.whole
        assert abs(len(noise.audio) - 32000) < 20
        tone = np.sin(2 * np.pi * 440 * np.arange(32000) / 32000)
        np.testing.assert_allclose(noise.audio[1000:30000], tone[1000:30000], atol=2e-3)


def test_tars_of_arrays_and_sounds(tmp_path, sounds):
    a, b = sounds["a.wav"].astype(np.float32), sounds["deep/b.flac"].astype(np.float32)
    write_tar(tmp_path / "one.tar", {"x/a.npy": npy(a), "b.npy": npy(np.stack([b, 0 * b]))})
    write_tar(tmp_path / "two.tar", {"c.flac": encoded(a)})
    found = draws(open_noise(tmp_path, RATE), samples=10**5)
    assert {noise.name for noise in found} == {
        "one.tar/x/a.npy",
        "one.tar/b.npy",
        "two.tar/c.flac",
    }
    expected = {"one.tar/x/a.npy": a, "one.tar/b.npy": b, "two.tar/c.flac": a}
    for noise in found:
        np.testing.assert_allclose(noise.audio, expected[noise.name], atol=1e-4)


PARTS = [  # format, subtype, rate
    ("WAV", "PCM_16", 44100),
    ("WAV", "FLOAT", 96000),
    ("FLAC", "PCM_16", 32000),
    ("FLAC", "PCM_24", 48000),
    ("AIFF", "PCM_16", 22050),
    ("OGG", "VORBIS", 44100),  # read whole
    ("MP3", "MPEG_LAYER_III", 44100),  # read whole
]


@pytest.mark.parametrize(("format", "subtype", "rate"), PARTS)
@pytest.mark.parametrize("in_tar", [False, True])
def test_excerpt_read_alone_equals_that_of_the_whole(tmp_path, format, subtype, rate, in_tar):
    audio = 0.2 * np.random.default_rng(1).standard_normal((rate * 2 + 5, 2)).clip(-3, 3)
    data = encoded(audio, rate, format, subtype=subtype)
    if in_tar:
        write_tar(tmp_path / "n.tar", {f"a.{format.lower()}": data})
    else:
        (tmp_path / f"a.{format.lower()}").write_bytes(data)
    whole, parts = open_noise(tmp_path, RATE), open_noise(tmp_path, RATE, in_parts=True)
    for seed in range(3):
        for samples in (10**6, 63999, 20000, 1):
            one, other = whole.draw([seed], samples), parts.draw([seed], samples)
            assert (one.name, one.offset, one.whole) == (other.name, other.offset, other.whole)
            assert one.audio.shape == other.audio.shape
            if rate == RATE:
                np.testing.assert_array_equal(other.audio, one.audio)
            else:
                np.testing.assert_allclose(other.audio, one.audio, atol=1e-6)


def test_no_more_of_a_long_sound_is_read_than_its_excerpt(tmp_path, monkeypatch):
    audio = np.random.default_rng(1).standard_normal(400_000).astype(np.float32)
    write_tar(tmp_path / "n.tar", {"a.npy": npy(audio), "b.wav": encoded(audio / 9, 32000, "WAV")})
    taken = []
    read, readinto = Member.read, ByteView.readinto

    def counted(self, start=0, size=None):
        data = read(self, start, size)
        taken.append(len(data))
        return data

    def counted_into(self, buffer):
        taken.append(readinto(self, buffer))
        return taken[-1]

    monkeypatch.setattr(Member, "read", counted)
    monkeypatch.setattr(ByteView, "readinto", counted_into)
    noises = open_noise(tmp_path, RATE, in_parts=True)
    for seed in range(10):
        taken.clear()
        noises.draw([seed], 1000)
        assert 0 < sum(taken) < 300_000  # of 800,000 and 1,600,000


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f2", "<f4", ">f4", "<f8"])
def test_excerpts_of_arrays_of_any_order(tmp_path, kind, order):
    array = np.asarray(np.random.default_rng(0).standard_normal((3, 5000)), kind, order=order)
    write_tar(tmp_path / "n.tar", {"a.npy": npy(array)})
    for in_parts in (False, True):
        noise = open_noise(tmp_path, RATE, in_parts=in_parts).draw([3], 100)
        expected = array[0, noise.offset : noise.offset + 100].astype(np.float32)
        np.testing.assert_array_equal(noise.audio, expected)


def test_damage_beyond_the_excerpt_is_noticed_by_reading_whole(tmp_path):
    audio = np.zeros(64000, np.float32)
    audio[-10:] = np.nan
    soundfile.write(tmp_path / "a.wav", audio, RATE, subtype="FLOAT")
    with pytest.raises(SceneError, match="NaN"):
        open_noise(tmp_path, RATE).draw([0], 100)
    noises = open_noise(tmp_path, RATE, in_parts=True)
    assert not noises.draw([0], 100).audio.any()
    with pytest.raises(SceneError, match="NaN"):
        noises.draw([0], 64000 - 1)


def test_arrays_are_at_32_khz(tmp_path):
    write_tar(tmp_path / "n.tar", {"a.npy": npy(np.ones(32000, np.float16))})
    assert abs(len(open_noise(tmp_path, 16000).draw([0], 10**6).audio) - 16000) < 20


def test_identity_tells_sets_apart(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    soundfile.write(other / "z.wav", np.ones(100), RATE)
    identities = [open_noise(path, RATE).identity for path in (None, folder, other)]
    assert len({str(identity) for identity in identities}) == 3


# --- what is wrong --------------------------------------------------------------------------


def test_unreadable_sound_is_named(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    with pytest.raises(SceneError, match=r"broken\.wav"):
        open_noise(tmp_path, RATE).draw([0], 100)


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"fLaC nothing", "a.flac", r"a\.flac could not be read"),
        (encoded(np.zeros(100), 1, "WAV"), "a.wav", "states a sample rate of 1 Hz"),
        (b"nothing", "a.npy", "no .npy file"),
        (npy(np.array([1.0, np.nan], np.float32)), "a.npy", "NaN"),
        (npy(np.zeros((3, 2), np.float32)), "a.npy", "channels must come first"),
        (npy(np.zeros((2, 2, 2), np.float32)), "a.npy", "shape"),
        (npy(np.zeros(0, np.float32)), "a.npy", "shape|no samples"),
        (npy(np.zeros(10, np.int16)), "a.npy", "int16"),
        (npy(np.array([{}], dtype=object)), "a.npy", "object"),  # nothing is unpickled
        (npy(np.zeros(10, np.float32))[:-1], "a.npy", "cut or damaged"),
    ],
)
@pytest.mark.parametrize("in_parts", [False, True])
def test_faulty_members_are_named(tmp_path, data, name, message, in_parts):
    write_tar(tmp_path / "n.tar", {name: data})
    with pytest.raises(SceneError, match=message) as caught:
        open_noise(tmp_path, RATE, in_parts=in_parts).draw([0], 100)
    assert f"n.tar: {name}" in str(caught.value)


def test_frames_that_only_the_header_has_are_not_waited_for(tmp_path):
    data = bytearray(encoded(np.full(4000, 0.5)))
    data[21] |= 15
    data[22:26] = b"\xff" * 4  # 2^36 - 1 samples: 256 GB
    write_tar(tmp_path / "n.tar", {"a.flac": bytes(data)})
    for in_parts in (False, True):
        with pytest.warns(UserWarning, match=r"n\.tar: a\.flac ends before its header says"):
            noise = open_noise(tmp_path, RATE, in_parts=in_parts).draw([0], 10**4)
        assert len(noise.audio) == 4000


def test_other_members_and_compressed_tars_are_refused(tmp_path):
    write_tar(tmp_path / "n.tar", {"a.txt": b"words"})
    with pytest.raises(SceneError, match=r"n\.tar holds a\.txt"):
        open_noise(tmp_path, RATE)
    with tarfile.open(tmp_path / "n.tar", "w:gz") as tar:
        tar.add(__file__, "a.npy")
    with pytest.raises(SceneError, match=r"n\.tar is compressed \(gzip\)"):
        open_noise(tmp_path, RATE)


def test_what_a_folder_has_beside_its_noises_is_counted(folder, sounds):
    write_tar(folder / "n.tar", {"a.npy": npy(np.ones(100, np.float32))})
    (folder / "prepared.json").write_text("{}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_noise(folder, RATE)) == len(sounds) + 1
    for name in ("a.m4a", "deep/b.m4a", "c.txt"):
        (folder / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="left out") as caught:
        assert len(open_noise(folder, RATE)) == len(sounds) + 1
    unreadable, others = (str(each.message) for each in caught)
    assert f"{folder}: 2 files (.m4a 2) left out" in unreadable
    assert "ffmpeg" in unreadable
    assert "1 file (.txt 1) left out" in others


def test_link_to_no_tar_is_an_error(tmp_path):
    (tmp_path / "a.tar").symlink_to(tmp_path / "nowhere.tar")
    with pytest.raises(SceneError, match="cannot be read as a tar"):
        open_noise(tmp_path, RATE)


def test_missing_and_empty_sets_are_errors(tmp_path):
    with pytest.raises(SceneError, match="There is no folder"):
        open_noise(tmp_path / "nowhere", RATE)
    with pytest.raises(SceneError, match="holds no noise"):
        open_noise(tmp_path, RATE)
    with pytest.raises(OptionError, match="rate"):
        open_noise(None, 0)
    with pytest.raises(OptionError, match="0 samples"):
        open_noise(None, RATE).draw([0], 0)
