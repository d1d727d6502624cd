"""Files in, blocks out: the numbers of the whole file, in one order, whatever else fails."""

import itertools
import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import gram_hear
import gram_hear.embed.files
from gram_hear import embed_files, get_scene_embeddings, get_timestamp_embeddings
from gram_hear.audio.files import SoundReader, read_audio
from gram_hear.embed.files import Block, FileDone, FileFailed, group_files

SOUNDS = Path(__file__).parent / "data" / "sounds"
RATE = 32000


@pytest.fixture(scope="module")
def model(small_model):
    return small_model(2, window_batch=4)


def write(path, seconds, rate=RATE, channels=1, seed=0, value=None):
    """Write quiet noise, or a constant; the subtype FLOAT holds any value."""
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, (round(seconds * rate), channels))
    if value is not None:
        samples[:] = value
    lossless = path.suffix in (".wav", ".aiff", ".w64", ".caf")
    soundfile.write(path, samples, rate, subtype="FLOAT" if lossless else None)
    return path


def embed(paths, model, **options):
    """Embed files: path -> (vectors, timestamps, FileDone), path -> error; checks the order."""
    blocks, done, failed = {}, {}, {}
    for event in embed_files(paths, model, **options):
        assert event.path not in done, "something came after the file's end"
        assert event.path not in failed
        if isinstance(event, Block):
            assert len(event.vectors) == len(event.timestamps) > 0
            blocks.setdefault(event.path, []).append(event)
        elif isinstance(event, FileDone):
            done[event.path] = event
        else:
            failed[event.path] = event.error
    whole = {}
    for path, end in done.items():
        vectors = np.concatenate([block.vectors for block in blocks[path]])
        timestamps = np.concatenate([block.timestamps for block in blocks[path]])
        assert len(vectors) == end.rows
        whole[path] = vectors, timestamps, end
    return whole, failed


def assert_as_the_whole_file(path, model, result):
    vectors, timestamps, end = result
    audio = read_audio(path, model.sample_rate).audio
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, times = get_timestamp_embeddings([audio], model)
        scene = get_scene_embeddings([audio], model)[0]
    assert vectors.dtype == end.scene.dtype == np.float32
    assert timestamps.dtype == np.float64
    assert vectors.shape == tuple(expected[0].shape)
    tolerance = 1e-6 * max(1.0, float(expected[0].abs().max()))  # sums are in the hundreds
    assert np.abs(vectors - expected[0].numpy()).max() <= tolerance
    assert np.array_equal(timestamps.astype(np.float32), times[0].numpy())
    assert np.abs(end.scene - scene.numpy()).max() <= tolerance


def assert_equal(results, others):
    assert set(results) == set(others)
    for path, (vectors, timestamps, end) in results.items():
        assert np.array_equal(vectors, others[path][0])
        assert np.array_equal(timestamps, others[path][1])
        assert np.array_equal(end.scene, others[path][2].scene)


# --- the numbers ----------------------------------------------------------------------------


def test_every_format_rate_and_layout_is_embedded_as_the_api_does(model):
    with pytest.warns(UserWarning, match="directions are lost"):  # of the Ambisonic file
        results, failed = embed(SOUNDS.iterdir(), model)
    assert failed == {}
    assert set(results) == set(SOUNDS.iterdir())
    for path, result in results.items():
        assert_as_the_whole_file(path, model, result)
        with SoundReader(path, model.sample_rate) as reader:
            assert (result[2].file_rate, result[2].channels) == (reader.file_rate, reader.channels)
        stat = path.stat()
        assert (result[2].modified, result[2].size) == (stat.st_mtime_ns, stat.st_size)


def test_scenes_with_deviation_are_those_of_the_api(tmp_path, small_model):
    model = small_model(2, scene="mean_std", window_batch=4)
    paths = [write(tmp_path / f"{i}.wav", seconds) for i, seconds in enumerate((0.02, 3.3, 17))]
    results, failed = embed(paths, model)
    assert failed == {}
    for path, result in results.items():
        assert result[2].scene.shape == (model.scene_embedding_size,)
        assert_as_the_whole_file(path, model, result)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "patching", "options"),
    [
        (2, "frame", {"strategy": "raw"}),
        (2, "time", {"strategy": "mean", "layer": 1}),
        (1, "frame", {"strategy": "cls"}),
        (7, "frame", {"strategy": "raw", "convention": "fuma"}),
        *((2, "frame", {"strategy": s, "parity": True}) for s in ("raw", "mean", "cls", "sum")),
        (7, "time", {"strategy": "raw", "parity": True}),
    ],
)
def test_long_and_short_files_are_as_whole(tmp_path, small_model, channels, patching, options):
    model = small_model(channels, patching, window_batch=3, **options)
    audio_channels = {1: 1, 2: 2, 7: 4}[channels]
    paths = [
        write(tmp_path / f"{seconds}.wav", seconds, channels=audio_channels, seed=i)
        for i, seconds in enumerate((0.01, 0.3, 1.0, 1.99, 2.0, 2.01, 5.0, 31.7))
    ]
    results, failed = embed(paths, model)
    assert failed == {}
    for path in paths:
        assert_as_the_whole_file(path, model, results[path])


def test_b_format_is_embedded_as_its_ambix_copy_and_said(small_model, b_format):
    for convention in (None, "fuma"):
        results, failed = embed(b_format[:1], small_model(7, convention=convention))
        assert failed == {}
        copy, _ = embed(b_format[1:], small_model(7))
        (vectors, _, end), (expected, _, copy_end) = *results.values(), *copy.values()
        assert np.array_equal(vectors, expected)
        assert (end.convention, copy_end.convention) == ("fuma", "ambix")
    assert_as_the_whole_file(b_format[0], small_model(7), results[b_format[0]])
    results, failed = embed(b_format, small_model(7, convention="ambix"))
    assert list(results) == [b_format[1]]
    assert "'fuma', and 'ambix' was asked for" in failed[b_format[0]]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_long_files_of_other_rates_are_as_whole(tmp_path, model, rate):
    paths = [write(tmp_path / f"long.{s}", 23.4, rate, 2) for s in ("flac", "wav", "aiff")]
    results, failed = embed(paths, model)
    assert failed == {}
    for path in paths:
        assert_as_the_whole_file(path, model, results[path])
        assert results[path][2].duration == pytest.approx(23.4, abs=1e-3)
        assert results[path][2].file_rate == rate


@pytest.mark.slow
@pytest.mark.parametrize("window_batch", [1, 2, 5, 100])
def test_the_batch_changes_nothing_but_rounding(tmp_path, small_model, window_batch):
    model = small_model(1, window_batch=window_batch)
    paths = [write(tmp_path / f"{i}.wav", 0.7 * i + 0.1, seed=i) for i in range(12)]
    results, _ = embed(paths, model)
    for path in paths:
        assert_as_the_whole_file(path, model, results[path])


def test_short_files_share_batches(tmp_path, small_model, monkeypatch):
    model = small_model(1, window_batch=8)
    paths = [write(tmp_path / f"{i}.wav", 1.0, seed=i) for i in range(20)]
    batches = []
    encode = type(model).encode

    def spy(self, windows):
        batches.append(len(windows))
        return encode(self, windows)

    monkeypatch.setattr(type(model), "encode", spy)
    results, _ = embed(paths, model)
    assert len(results) == 20
    assert batches == [8, 8, 4]


def test_groups_are_by_length_and_of_at_most_one_batch(tmp_path, model):
    seconds = [30.0, 0.5, 3.0, 1.0, 2.5, 0.7]
    paths = [write(tmp_path / f"{i}.wav", s) for i, s in enumerate(seconds)]
    (tmp_path / "no.wav").write_text("nothing to hear")
    groups = group_files([*paths, tmp_path / "no.wav"], model)
    names = [[path.name for path in group.paths] for group in groups]
    assert names == [["no.wav", "1.wav", "5.wav", "3.wav"], ["4.wav", "2.wav"], ["0.wav"]]
    assert [group.seconds for group in groups] == pytest.approx([2.2, 5.5, 30.0])


# --- the order ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_list_gives_the_same_events_bit_for_bit_whatever_the_jobs(tmp_path, model):
    paths = [write(tmp_path / f"{i}.flac", 0.4 * i + 0.1, 16000, seed=i) for i in range(14)]
    paths.append(write(tmp_path / "long.wav", 25.0))
    (tmp_path / "bad.wav").write_text("nothing to hear")
    paths.append(tmp_path / "bad.wav")
    runs = [
        list(embed_files(order, model, jobs=jobs))
        for order, jobs in ((paths, 1), (paths, 1), (paths[::-1], 4), (paths, 4))
    ]
    for run in runs[1:]:
        assert len(run) == len(runs[0])
        for event, other in zip(run, runs[0], strict=True):
            assert type(event) is type(other)
            assert event.path == other.path
            if isinstance(event, Block):
                assert np.array_equal(event.vectors, other.vectors)
                assert np.array_equal(event.timestamps, other.timestamps)
            elif isinstance(event, FileDone):
                assert np.array_equal(event.scene, other.scene)
            else:
                assert event.error == other.error


def test_blocks_of_a_long_file_come_before_it_is_read_to_its_end(tmp_path, model, monkeypatch):
    path = write(tmp_path / "long.wav", 120.0, 8000)
    read = []
    blocks = SoundReader.blocks

    def spy(self):
        for block in blocks(self):
            read.append(block.shape[1] / RATE)
            yield block

    monkeypatch.setattr(SoundReader, "blocks", spy)
    events = embed_files([path], model)
    assert isinstance(next(events), Block)
    assert sum(read) < 60
    events.close()


# --- what fails -----------------------------------------------------------------------------


@pytest.fixture
def flock(tmp_path):
    """Twelve good files of like length, each named by a letter."""
    return [write(tmp_path / f"{name}.wav", 1.0 + i / 9) for i, name in enumerate("abcdefghijkl")]


def test_bad_files_amid_a_group_do_not_stop_or_alter_the_others(tmp_path, model, flock):
    alone, _ = embed(flock, model)
    bad = {
        "no sound": tmp_path / "e1.wav",
        "empty": tmp_path / "e2.wav",
        "NaN": write(tmp_path / "e3.wav", 1.5, value=np.nan),
        "infinite": write(tmp_path / "e4.wav", 1.6, value=np.inf),
        "3 channels": write(tmp_path / "e5.wav", 1.5, channels=3),
        "There is no file": tmp_path / "e6.wav",
        "is a folder": tmp_path / "e7.wav",
        "damaged": write(tmp_path / "e8.flac", 1.5),
    }
    bad["no sound"].write_text("nothing to hear")
    bad["empty"].touch()
    bad["is a folder"].mkdir()
    os.truncate(bad["damaged"], bad["damaged"].stat().st_size // 2)
    results, failed = embed([*flock[:6], *bad.values(), *flock[6:]], model)
    assert set(results) == set(flock)
    assert set(failed) == set(bad.values())
    for path in flock:
        assert np.abs(results[path][0] - alone[path][0]).max() <= 1e-6
        assert np.abs(results[path][2].scene - alone[path][2].scene).max() <= 1e-6
    for reason, path in bad.items():
        assert failed[path].count(str(path)) == 1
        assert reason == "no sound" or reason in failed[path]


@pytest.mark.slow
def test_what_is_wrong_late_in_a_long_file_voids_its_blocks_alone(tmp_path, model, flock):
    late = write(tmp_path / "late.wav", 65.0, 8000)
    samples, _ = soundfile.read(late)
    samples[-100] = np.nan
    soundfile.write(late, samples, 8000, subtype="FLOAT")
    longer = write(tmp_path / "longer.wav", 70.0, 8000)
    alone, _ = embed([*flock, longer], model)
    events = list(embed_files([*flock, late, longer], model))
    own = [event for event in events if event.path == late]
    assert isinstance(own[0], Block)
    assert [type(event) for event in own].count(FileFailed) == 1
    assert isinstance(own[-1], FileFailed)
    assert "NaN" in own[-1].error
    results, _ = embed([*flock, late, longer], model)
    assert_equal(results, alone)


def after_the_header(monkeypatch, change):
    """Call ``change`` once the headers are read and before the files are."""
    group = gram_hear.embed.files.group_files

    def spy(paths, model):
        groups = group(paths, model)
        change()
        return groups

    monkeypatch.setattr(gram_hear.embed.files, "group_files", spy)


def test_a_file_that_is_removed_after_its_header_was_read(model, flock, monkeypatch):
    after_the_header(monkeypatch, flock[4].unlink)
    results, failed = embed(flock, model)
    assert set(results) == set(flock) - {flock[4]}
    assert list(failed) == [flock[4]]
    assert "There is no file" in failed[flock[4]]
    assert failed[flock[4]].count(str(flock[4])) == 1


@pytest.mark.parametrize("parity", [False, True])
def test_a_file_that_changes_while_it_is_read_fails(tmp_path, small_model, monkeypatch, parity):
    model = small_model(1, window_batch=4, parity=parity)
    growing = write(tmp_path / "growing.wav", 25.0)
    steady = write(tmp_path / "steady.wav", 26.0)
    blocks = SoundReader.blocks

    def grow(self):
        for block in blocks(self):
            if self.path == growing:
                with open(growing, "ab") as file:
                    file.write(b"more")
            yield block

    monkeypatch.setattr(SoundReader, "blocks", grow)
    results, failed = embed([growing, steady], model)
    assert list(results) == [steady]
    assert "changed while it was read" in failed[growing]


def test_a_file_without_permission_is_a_failure_with_its_reason(model, flock, monkeypatch):
    stat = Path.stat

    def refuse(self, **options):
        if self == flock[3]:
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    results, failed = embed(flock, model)
    assert len(results) == len(flock) - 1
    assert failed == {flock[3]: f"{flock[3]} cannot be read: Permission denied."}


def test_running_out_of_memory_in_decoding_is_a_failure_of_that_file(model, flock, monkeypatch):
    blocks = SoundReader.blocks

    def exhaust(self):
        if self.path == flock[3]:
            raise MemoryError
        yield from blocks(self)

    monkeypatch.setattr(SoundReader, "blocks", exhaust)
    results, failed = embed(flock, model)
    assert len(results) == len(flock) - 1
    assert failed == {flock[3]: f"{flock[3]}: MemoryError"}


def test_an_error_in_the_model_stops_and_is_no_failure_of_a_file(model, flock, monkeypatch):
    """Files share batches: no one of them could be named."""

    def fail(self, windows):
        raise MemoryError("of the model")

    monkeypatch.setattr(type(model), "encode", fail)
    with pytest.raises(MemoryError, match="of the model"):
        list(embed_files(flock, model))


def test_embeddings_that_are_not_finite_are_a_failure(tmp_path, small_model):
    model = small_model(2)
    broken = next(parameter for parameter in model.parameters() if parameter.ndim > 1)
    with torch.no_grad():
        broken.fill_(float("nan"))
    write(tmp_path / "a.wav", 1.0)
    events = list(embed_files([tmp_path / "a.wav"], model))
    assert isinstance(events[-1], FileFailed)
    assert "a.wav: its embeddings hold NaN or infinite values" in events[-1].error
    assert not any(isinstance(event, FileDone) for event in events)


def test_no_files_give_no_events(model):
    assert list(embed_files([], model)) == []


@pytest.mark.parametrize("parity", [False, True])
def test_loud_and_shortened_files_bring_one_warning_each(tmp_path, small_model, parity):
    model = small_model(1, window_batch=4, parity=parity)
    loud = [write(tmp_path / f"loud{i}.wav", 25.0, value=5.0 + i) for i in range(2)]
    write(tmp_path / "quiet.wav", 25.0)
    short = write(tmp_path / "short.wav", 25.0)
    os.truncate(short, short.stat().st_size // 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results, failed = embed(sorted(tmp_path.iterdir()), model)
    assert failed == {}
    messages = sorted(str(warning.message) for warning in caught)
    if parity:  # the file is read twice; Python itself shows a repeated warning once
        messages.remove(messages[-1])
    assert len(messages) == 3
    for message, path, reason in zip(
        messages, [*loud, short], ["up to 5", "up to 6", "ends before"], strict=True
    ):
        assert str(path) in message
        assert reason in message
    assert results[short][2].duration == pytest.approx(12.5, abs=0.01)


# --- threads --------------------------------------------------------------------------------


def test_a_consumer_that_stops_early_leaves_no_threads(model, flock):
    before = set(threading.enumerate())
    events = embed_files(flock, model, jobs=4)
    next(events)
    events.close()
    for event in embed_files(flock, model, jobs=2):
        if isinstance(event, FileDone):
            break
    del event
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


def test_four_threads_on_one_model_get_what_one_gets(small_model, noise):
    model = small_model(2, window_batch=4)
    clips = [noise(3, 2, samples, seed=samples) for samples in (9000, 40000, 64200, 150000)] * 3
    serial = [get_scene_embeddings(clip, model) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(get_scene_embeddings, clips, itertools.repeat(model)))
    for one, other in zip(serial, threaded, strict=True):
        assert torch.equal(one, other)
