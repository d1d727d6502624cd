"""Sets of clips: tars, folders, synthetic sounds; excerpts, decoding, and what cannot be read."""

import gzip
import os
import pickle
import tarfile
import warnings

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed import encoded, npy, write_tar

from gram_hear.audio import archives
from gram_hear.audio.containers import ByteView
from gram_hear.errors import AudioError, OptionError, SceneError
from gram_hear.pretrain.clips import open_clips

RATE = 32000


def tone(samples, seed=0):
    """Smooth noise (samples,) float32, which resampling and 16 bits keep."""
    noise = np.random.default_rng(seed).standard_normal(samples + 63)
    return (0.2 * np.convolve(noise, np.hanning(64) / 32, "valid")).astype(np.float32)


def read(clips, i=0, samples=RATE, rate=RATE, seed=0):
    return clips.read(i, samples, rate, [seed])


@pytest.fixture
def tar(tmp_path):
    members = {
        "a.flac": encoded(tone(8000, 1)),
        "b.wav": encoded(np.stack([tone(8000, 2), tone(8000, 3)], axis=1), format="WAV"),
        "c.ogg": encoded(tone(8000, 4), format="OGG"),
        "d.mp3": encoded(tone(8000, 5), format="MP3"),
        "e.npy": npy(np.stack([tone(8000, 6), tone(8000, 7)])),
        "f.npy": npy(tone(8000, 8)),
    }
    return write_tar(tmp_path / "clips.tar", members)


def test_members_of_every_kind_give_their_first_channel(tar):
    clips = open_clips(tar)
    assert [clips.name(i) for i in range(len(clips))] == [f"{tar}: {n}" for n in names(tar)]
    for i, (seed, tolerance) in enumerate([(1, 4e-5), (2, 4e-5), (4, 0.1), (5, 0.1)]):
        audio = read(clips, i)
        assert audio.dtype == np.float32
        if i < 2:
            np.testing.assert_allclose(audio, tone(8000, seed), atol=tolerance)
        else:  # lossy, and an MP3 has a lead
            assert abs(len(audio) - 8000) < 2500
            assert np.abs(np.correlate(audio, tone(8000, seed), "full")).max() > 0.9 * (
                np.linalg.norm(audio) * np.linalg.norm(tone(8000, seed))
            )
    np.testing.assert_array_equal(read(clips, 4), tone(8000, 6))
    np.testing.assert_array_equal(read(clips, 5), tone(8000, 8))


def names(tar):
    with tarfile.open(tar) as file:
        return file.getnames()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 9000), st.integers(0, 2**32), st.sampled_from(["a.flac", "f.npy"]))
def test_longer_sound_gives_an_excerpt_that_is_in_it(tar, samples, seed, name):
    clips = open_clips(tar)
    i = names(tar).index(name)
    whole = read(clips, i)
    excerpt = read(clips, i, samples, seed=seed)
    assert len(excerpt) == min(samples, 8000)
    places = np.flatnonzero(whole[: 8001 - len(excerpt)] == excerpt[0])
    assert any(np.array_equal(whole[p : p + len(excerpt)], excerpt) for p in places)
    np.testing.assert_array_equal(excerpt, read(open_clips(tar), i, samples, seed=seed))


def test_excerpts_come_from_everywhere(tar):
    whole = tone(8000, 8)
    found = [np.flatnonzero(whole == read(open_clips(tar), 5, 100, seed=s)[0]) for s in range(60)]
    starts = np.concatenate(found)
    assert starts.min() < 800
    assert starts.max() > 7100


def test_other_rates_are_resampled_and_excerpts_are_full(tmp_path):
    times = np.arange(3 * 44100) / 44100
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 1000 * times), 44100)
    clips = open_clips(tmp_path)
    for seed in range(5):
        audio = read(clips, 0, 2 * RATE, seed=seed)
        assert len(audio) == 2 * RATE
        spectrum = np.abs(np.fft.rfft(audio[1000:33000]))
        assert spectrum.argmax() == 1000
    assert abs(len(read(clips, 0, 10 * RATE)) - 3 * RATE) <= 1


def test_excerpt_of_a_long_member_reads_little(tmp_path, monkeypatch):
    long = write_tar(tmp_path / "a.tar", {"a.wav": encoded(tone(2_000_000), format="WAV")})
    count = 0
    readinto = ByteView.readinto

    def counted(self, buffer):
        nonlocal count
        count += (read := readinto(self, buffer))
        return read

    monkeypatch.setattr(ByteView, "readinto", counted)
    read(open_clips(long), 0, 10000, seed=3)
    assert 0 < count < 400_000


def test_flac_that_does_not_know_its_length(tmp_path):
    """As an encoder writes it into a pipe: from its start."""
    data = bytearray(encoded(tone(8000)))
    data[21] &= 0xF0  # the number of samples, 36 bits
    data[22:26] = bytes(4)
    clips = open_clips(write_tar(tmp_path / "a.tar", {"a.flac": bytes(data)}))
    np.testing.assert_allclose(read(clips, 0, 5000, seed=9), tone(8000)[:5000], atol=4e-5)


def test_folders_tars_and_files_together_in_sorted_order(tmp_path, tar):
    folder = tmp_path / "more"
    (folder / "deep").mkdir(parents=True)
    for name in ("z.wav", "deep/y.flac", ".hidden.wav"):
        soundfile.write(folder / name, tone(1000), RATE)
    (folder / "notes.txt").write_text("not sound")
    write_tar(folder / "b.tar", {"q.flac": encoded(tone(500))})
    clips = open_clips([folder, tar])
    expected = [f"{folder}/z.wav", f"{folder}/deep/y.flac", f"{folder}/b.tar: q.flac"]
    assert [clips.name(i) for i in range(3)] == expected
    assert len(clips) == 3 + 6
    assert len(read(clips, 2)) == 500


@pytest.mark.skipif(os.name != "posix", reason="names are Unicode elsewhere")
def test_names_that_are_not_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.wav"
    try:
        with open(path, "wb") as file:
            file.write(encoded(tone(100), format="WAV"))
    except OSError:
        pytest.skip("the file system takes no such name")
    assert len(read(open_clips(tmp_path))) == 100


def test_index_is_kept_and_follows_the_tar(tmp_path, tar, monkeypatch):
    first = open_clips(tar)
    assert (tmp_path / ".clips.tar.index.npz").is_file()

    def fail(*_):
        raise AssertionError("indexed again")

    with monkeypatch.context() as patch:
        patch.setattr(archives, "index_tar", fail)
        again = open_clips(tmp_path)
    assert [again.name(i) for i in range(6)] == [first.name(i) for i in range(6)]
    np.testing.assert_array_equal(read(again, 5), read(first, 5))
    write_tar(tar, {"new.flac": encoded(tone(700))})
    changed = open_clips(tar)
    assert len(changed) == 1
    assert len(read(changed)) == 700


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04."])
def test_broken_kept_index_is_made_anew(tmp_path, tar, content):
    open_clips(tar)
    kept = tmp_path / ".clips.tar.index.npz"
    kept.write_bytes(content)
    assert len(open_clips(tar)) == 6
    assert kept.stat().st_size > 100


def test_folder_that_cannot_be_written_to_is_read(tar, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(archives, "write_whole", refuse)
    assert len(open_clips(tar)) == 6


def test_empty_tar_beside_others_is_passed_over(tmp_path, tar):
    write_tar(tmp_path / "empty.tar", {})
    assert len(open_clips(tmp_path)) == 6
    assert len(open_clips(tmp_path)) == 6  # from the kept index too


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: write_tar(p / "a.tar", {}), "holds no clips"),
        (lambda p: write_tar(p / "a.tar", {"a.json": b"{}", "a.cls": b"1"}), r"a\.json; its mem"),
        (lambda p: write_tar(p / "a.tar", {"a.pkl": pickle.dumps(1)}), r"a\.pkl; its members"),
        (lambda p: (p / "a.tar").write_bytes(b"x" * 2000), "cannot be read as a tar"),
        (lambda p: (p / "a.txt").write_text("x"), "holds no clips"),
    ],
)
def test_sets_that_cannot_be(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(SceneError, match=message):
        open_clips(tmp_path)


def test_webdataset_shards_have_labels_beside_their_clips(tmp_path, recwarn):
    sound = encoded(tone(8000, 1))
    members = {
        "./a.cls": b"3",
        "./a.flac": sound,
        "./a.b.txt": b"a dog",
        "./._a.flac": b"not sound",
        "deep/b.json": b"{}",
        "deep/b.FLAC": sound,
    }
    shard = write_tar(tmp_path / "000.tar", members)
    for _ in range(2):  # the second time from the kept index
        clips = open_clips(shard)
        assert [clips.name(i) for i in range(len(clips))] == [
            f"{shard}: ./a.flac",
            f"{shard}: deep/b.FLAC",
        ]
    np.testing.assert_allclose(read(clips, 1), tone(8000, 1), atol=4e-5)
    assert not recwarn.list


def test_members_that_are_left_out_without_a_clip_are_counted(tmp_path):
    members = {"a.flac": encoded(tone(8000)), "b.m4a": b"", "b.json": b"{}", "c.json": b"{}"}
    with pytest.warns(UserWarning, match=r"3 files left out, .* b\.m4a"):
        assert len(open_clips(write_tar(tmp_path / "000.tar", members))) == 1


@pytest.mark.parametrize("name", ["clips.tar.gz", "clips.tgz", "clips.tar"])
def test_compressed_tars_are_named_as_such(tmp_path, tar, name):
    packed = tmp_path / "packed" / name
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(SceneError, match=rf"is compressed \(gzip\).*gzip -dc {name}"):
        open_clips(packed)
    if name != "clips.tar":
        (packed.parent / "more.tar").write_bytes(tar.read_bytes())
        with pytest.warns(UserWarning, match=rf"{name} is left out: .* \.tar first \(gzip -d\)"):
            assert len(open_clips(packed.parent)) == 6


def test_nothing_there(tmp_path):
    with pytest.raises(SceneError, match=r"no folder or file .*missing"):
        open_clips(tmp_path / "missing")
    with pytest.raises(SceneError, match="An empty list"):
        open_clips([])


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("unpickled",))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.flac", b"not flac", "could not be read as sound"),
        ("a.flac", b"", "could not be read as sound"),
        ("a.wav", encoded(np.zeros(0), format="WAV"), "holds no samples"),
        ("a.wav", encoded(np.zeros(9), rate=1, format="WAV"), "states a sample rate of 1 Hz"),
        ("a.wav", encoded(np.array([0.1, np.nan]), format="WAV", subtype="FLOAT"), "holds NaN"),
        ("a.npy", npy(np.zeros((8000, 2), np.float32)), "channels must come first"),
        ("a.npy", npy(np.zeros((1, 2, 8000), np.float32)), "has the shape"),
        ("a.npy", npy(np.zeros(0, np.float32)), "has the shape"),
        ("a.npy", npy(np.zeros(9, np.int16)), "holds int16"),
        ("a.npy", npy(np.array([Bomb()], dtype=object)), "holds object"),
        ("a.npy", pickle.dumps(Bomb()), "is no .npy file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",  # bytes hold the time of day
)
def test_what_cannot_be_decoded(tmp_path, monkeypatch, name, data, message):
    monkeypatch.chdir(tmp_path)
    clips = open_clips(write_tar(tmp_path / "a.tar", {name: data}))
    with pytest.raises(AudioError, match=message) as caught:
        read(clips)
    assert "a.tar: a." in str(caught.value)
    assert not (tmp_path / "unpickled").exists()


def test_damaged_flac_is_an_error(tmp_path):
    data = encoded(tone(200_000))
    clips = open_clips(write_tar(tmp_path / "a.tar", {"a.flac": data[: len(data) // 3]}))
    with pytest.raises(AudioError):
        read(clips, 0, 200_000)


def test_file_that_vanishes_is_an_error(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1000), RATE)
    clips = open_clips(tmp_path)
    (tmp_path / "a.wav").unlink()
    with pytest.raises(AudioError, match="No such file"):
        read(clips)


def test_set_survives_pickling_as_a_worker_gets_it(tar):
    clips = open_clips(tar)
    np.testing.assert_array_equal(read(pickle.loads(pickle.dumps(clips)), 5), read(clips, 5))


def test_reading_warns_of_nothing(tar):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(6):
            read(open_clips(tar), i, 4000, 16000)


def test_synthetic_clips_depend_on_seed_and_number_alone():
    clips = open_clips(None, seed=3, count=5)
    assert len(clips) == 5
    np.testing.assert_array_equal(read(clips, 2, seed=0), read(open_clips(None, 3, 9), 2, seed=1))
    others = [read(clips, 3), read(open_clips(None, seed=4), 2)]
    assert all(abs(np.corrcoef(read(clips, 2), other)[0, 1]) < 0.5 for other in others)
    assert clips.name(2) == "synthetic clip 2"


def test_synthetic_clips_that_cannot_be():
    with pytest.raises(OptionError, match="0 synthetic clips"):
        open_clips(None, count=0)
