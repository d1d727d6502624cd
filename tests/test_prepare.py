"""Sound files into tars of clips: cut, checked, resumed; what cannot be read is told at the end."""

import hashlib
import io
import json
import os
import shutil
import tarfile

import fsspec
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import encoded, npy, write_tar
from test_sources import write_parquet

from gram_hear import preparation as module
from gram_hear.audio import shards, sources
from gram_hear.audio.shards import ShardCache
from gram_hear.errors import AudioError, OptionError, SceneError
from gram_hear.preparation import Preparation, prepare
from gram_hear.pretrain.clips import open_clips

pytestmark = pytest.mark.slow

LEFTOVER = f".0123456789ab.{32 * '0'}.partial"  # of a run that was killed
RATE = 32000


def steps(samples, channels=1, seed=0):
    """Noise on the grid of 16 bits, (samples, channels)."""
    return np.random.default_rng(seed).integers(-9000, 9000, (samples, channels)) / 32768


@pytest.fixture
def sounds(tmp_path):
    """A folder of sounds: 2.5 s, 0.5 s in six channels, 1.25 s at 44.1 kHz, and 3 s deeper down."""
    folder = tmp_path / "sounds"
    (folder / "deep").mkdir(parents=True)
    soundfile.write(folder / "a.b c.wav", steps(80000, 1, 1), RATE, subtype="PCM_16")
    soundfile.write(folder / "b.flac", steps(16000, 6, 2), RATE, subtype="PCM_16")
    soundfile.write(folder / "c.ogg", 0.3 * np.sin(np.arange(55125) / 20), 44100)
    soundfile.write(folder / "deep" / "d.wav", steps(96000, 1, 4), RATE, subtype="FLOAT")
    return folder


def tone(samples):
    return (0.1 * np.sin(np.arange(samples) / 20)).astype(np.float32)


def run(inputs, output, jobs=1, force=False, progress=None, cache=None, **options):
    options = {"seconds": 1.0} | options
    inputs = inputs if isinstance(inputs, list) else [inputs]
    return prepare(
        inputs,
        output,
        Preparation(**options),
        jobs=jobs,
        force=force,
        progress=progress,
        cache=cache,
    )


def members(output):
    """Name -> bytes of all members of all tars."""
    found = {}
    for path in sorted(output.glob("*.tar")):
        with tarfile.open(path) as tar:
            for each in tar:
                found[each.name] = tar.extractfile(each).read()
    return found


def decode(data):
    audio, rate = soundfile.read(io.BytesIO(data))
    return audio, rate


def digests(output):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in output.glob("*.tar")}


def test_b_format_gives_the_clips_of_its_ambix_copy(tmp_path, b_format):
    clips = [run(path, tmp_path / path.stem) and members(tmp_path / path.stem) for path in b_format]
    assert list(clips[0].values()) == list(clips[1].values())
    assert len(clips[0]) == 1


def test_files_are_cut_into_clips(tmp_path, sounds):
    summary = run(sounds, tmp_path / "out")
    found = {name: decode(data) for name, data in members(tmp_path / "out").items()}
    lengths = {name: len(audio) for name, (audio, _) in found.items()}
    assert lengths == {
        "00000000_a-b-c_0000.flac": 32000,
        "00000000_a-b-c_0001.flac": 32000,  # the half second that remains is left out
        "00000001_b_0000.flac": 16000,  # kept: it is all there is
        "00000002_c_0000.flac": 32000,
        "00000003_d_0000.flac": 32000,
        "00000003_d_0001.flac": 32000,
        "00000003_d_0002.flac": 32000,
    }
    assert {rate for _, rate in found.values()} == {RATE}
    assert (summary["files"], summary["clips"], summary["sound_seconds"]) == (4, 7, 6.5)
    assert summary["failed"] == []
    first = np.concatenate([found[f"00000000_a-b-c_000{i}.flac"][0] for i in range(2)])
    np.testing.assert_array_equal(first, steps(80000, 1, 1)[:64000, 0])
    np.testing.assert_array_equal(found["00000001_b_0000.flac"][0], steps(16000, 6, 2)[:, 0])


def test_files_are_kept_whole(tmp_path, sounds):
    summary = run(sounds, tmp_path / "out", seconds=None)
    lengths = [len(decode(data)[0]) for data in members(tmp_path / "out").values()]
    assert lengths == [80000, 16000, 40000, 96000]
    assert summary["seconds"] is None
    assert summary["sound_seconds"] == pytest.approx(7.25)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=6), st.integers(10, 200), st.integers(1, 100)
)
def test_cutting_keeps_all_but_a_short_rest(blocks, samples, least):
    sound = np.arange(sum(blocks), dtype=np.float32)
    parts = np.split(sound, np.cumsum(blocks)[:-1])
    short = []
    pieces = list(module._cut(parts, samples, least, short))
    joined = np.concatenate(pieces)
    np.testing.assert_array_equal(joined, sound[: len(joined)])
    assert all(len(piece) == samples for piece in pieces[:-1])
    lost = len(sound) - len(joined)
    assert lost == sum(short) < least
    assert lost == 0 or len(pieces[-1]) == samples


def test_summary_is_in_the_folder_and_true(tmp_path, sounds):
    summary = run(sounds, tmp_path / "out", tar_size=0.2)
    assert json.loads((tmp_path / "out" / "prepared.json").read_text()) == summary
    assert (summary["format"], summary["rate"]) == ("gram-hear clips", RATE)
    assert sum(tar["clips"] for tar in summary["tars"]) == len(members(tmp_path / "out")) == 7
    for tar in summary["tars"]:
        assert (tmp_path / "out" / tar["name"]).stat().st_size == tar["bytes"]


def test_tars_are_of_bounded_size(tmp_path, sounds):
    summary = run(sounds, tmp_path / "out", tar_size=0.15)
    assert len(summary["tars"]) > 3
    assert max(tar["bytes"] for tar in summary["tars"]) <= 150_000
    assert len(members(tmp_path / "out")) == 7


def test_clip_larger_than_a_tar_may_be_is_alone_in_one(tmp_path, sounds):
    summary = run(sounds, tmp_path / "out", seconds=None, tar_size=0.1)
    assert [tar["clips"] for tar in summary["tars"]] == [1, 1, 1, 1]


def test_same_bytes_whatever_the_number_of_jobs(tmp_path, sounds):
    one = run(sounds, tmp_path / "one", tar_size=0.15)
    two = run(sounds, tmp_path / "two", tar_size=0.15, jobs=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert one == two


def test_training_reads_what_was_made(tmp_path, sounds):
    run(sounds, tmp_path / "out", tar_size=0.15)
    clips = open_clips(tmp_path / "out")
    assert len(clips) == 7
    assert [len(clips.read(i, 50000, RATE, [0])) for i in range(7)].count(32000) == 6


# --- going on -------------------------------------------------------------------------------


class Stop(Exception):
    pass


def fail(*_):
    raise AssertionError("written again")


def test_interrupted_run_goes_on(tmp_path, sounds, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    expected = run(sounds, whole, tar_size=0.15)

    def stop(done, total):
        if done >= 2:
            raise Stop

    with pytest.raises(Stop):
        run(sounds, out, tar_size=0.15, progress=stop)
    before = digests(out)
    assert 0 < len(before) < len(digests(whole))
    assert not (out / "prepared.json").exists()
    (out / LEFTOVER).write_bytes(b"left by a killed run")
    seen = []
    write = module.write_group
    monkeypatch.setattr(
        module,
        "write_group",
        lambda *given: seen.append(given[-1].number) or write(*given),
    )
    assert run(sounds, out, tar_size=0.15) == expected
    assert seen
    assert 0 not in seen
    assert digests(out) == digests(whole)
    assert not list(out.rglob("*.partial"))


def test_finished_run_does_nothing_again(tmp_path, sounds, monkeypatch):
    first = run(sounds, tmp_path / "out")
    monkeypatch.setattr(module, "write_group", fail)
    told = []
    assert run(sounds, tmp_path / "out", progress=lambda *at: told.append(at)) == first
    assert told == [(4, 4)]


def test_new_files_are_added(tmp_path, sounds):
    run(sounds, tmp_path / "out")
    before = digests(tmp_path / "out")
    soundfile.write(sounds / "a.wav", steps(40000, 1, 9), RATE)

    def look(done, total):  # what says that all is done is not there until it is again
        assert not (tmp_path / "out" / "prepared.json").exists()

    summary = run(sounds, tmp_path / "out", progress=look)
    assert (summary["files"], summary["clips"]) == (5, 8)
    assert before.items() < digests(tmp_path / "out").items()
    assert "00000004_a_0000.flac" in members(tmp_path / "out")


def test_lost_tar_is_made_again(tmp_path, sounds):
    run(sounds, tmp_path / "out", tar_size=0.15)
    before = digests(tmp_path / "out")
    next((tmp_path / "out").glob("*.tar")).unlink()
    run(sounds, tmp_path / "out", tar_size=0.15)
    assert digests(tmp_path / "out") == before


def test_tar_that_is_not_as_written_is_not_kept(tmp_path, sounds, monkeypatch):
    """As with a disk that loses what it was given."""
    read = module.index_tar
    monkeypatch.setattr(module, "index_tar", lambda *args: read(*args)[:-1])
    with pytest.raises(OptionError, match="1 of 7 clips were not read back"):
        run(sounds, tmp_path / "out")
    assert not digests(tmp_path / "out")
    monkeypatch.undo()
    assert run(sounds, tmp_path / "out")["clips"] == 7


def test_full_disk(tmp_path, sounds, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", refuse)
    with pytest.raises(OptionError, match="cannot be written: No space left"):
        run(sounds, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.partial"))


# --- what cannot be read --------------------------------------------------------------------


@pytest.fixture
def damaged(sounds):
    (sounds / "aa.flac").write_bytes(b"no sound")
    data = (sounds / "deep" / "d.wav").read_bytes()
    soundfile.write(sounds / "bb.flac", steps(96000), RATE)
    data = (sounds / "bb.flac").read_bytes()
    (sounds / "bb.flac").write_bytes(data[: len(data) // 2])
    soundfile.write(sounds / "cc.wav", np.array([0.1, np.nan]), RATE, subtype="FLOAT")
    return sounds


def test_unreadable_files_are_listed_and_the_rest_is_done(tmp_path, damaged):
    summary = run(damaged, tmp_path / "out")
    failed = {os.path.basename(each["file"]): each["reason"] for each in summary["failed"]}
    assert set(failed) == {"aa.flac", "bb.flac", "cc.wav"}
    assert "could not be read as sound" in failed["aa.flac"]
    assert "NaN" in failed["cc.wav"]
    assert (summary["files"], summary["clips"]) == (4, 7)
    assert not [name for name in members(tmp_path / "out") if "_bb_" in name]


def test_file_that_was_repaired_is_taken(tmp_path, damaged, monkeypatch):
    run(damaged, tmp_path / "out")
    soundfile.write(damaged / "aa.flac", steps(32000), RATE)
    summary = run(damaged, tmp_path / "out")
    assert (summary["files"], summary["clips"], len(summary["failed"])) == (5, 8, 2)
    assert len(members(tmp_path / "out")) == 8
    monkeypatch.setattr(module, "write_group", fail)  # what is broken still is not tried again
    assert run(damaged, tmp_path / "out") == summary


def test_truncated_wav_is_used_with_a_warning(tmp_path, sounds):
    path = sounds / "deep" / "d.wav"
    path.write_bytes(path.read_bytes()[:-100_000])
    summary = run(sounds, tmp_path / "out")
    assert summary["clips"] == 6
    assert "ends before its header says" in summary["warnings"][0]


def test_all_files_unreadable(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    summary = run(tmp_path / "a.wav", tmp_path / "out")
    assert (summary["clips"], summary["tars"], len(summary["failed"])) == (0, [], 1)


# --- options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0.5}, r"seconds is 0\.5"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"rate": 100}, "rate is 100"),
        ({"tar_size": 0.0}, "tar_size is 0"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(OptionError, match=message):
        Preparation(**options)


def test_inputs_that_cannot_be(tmp_path):
    with pytest.raises(AudioError, match=r"no folder or file .*missing"):
        run(tmp_path / "missing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match="No sound file was found in"):
        run(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_outputs_that_cannot_be(tmp_path, sounds):
    with pytest.raises(OptionError, match="holds other files"):
        run(sounds, sounds)
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="is a file; give a folder"):
        run(sounds, tmp_path / "file")
    with pytest.raises(OptionError, match="jobs is 0"):
        run(sounds, tmp_path / "out", jobs=0)


def test_other_options_need_force(tmp_path, sounds):
    run(sounds, tmp_path / "out", tar_size=0.15)
    open_clips(tmp_path / "out")
    with pytest.raises(OptionError, match=r"seconds 1\.0, not 2\.0.*--force"):
        run(sounds, tmp_path / "out", seconds=2.0)
    run(sounds, tmp_path / "out", seconds=2.0, force=True)
    fresh = run(sounds, tmp_path / "fresh", seconds=2.0)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")
    assert len(fresh["tars"]) == len(open_clips(tmp_path / "out")._tars) == 1
    assert not list((tmp_path / "out").glob(".clips-000001*"))


def test_a_run_that_begins_while_another_works_shares_the_output(tmp_path, sounds):
    summaries = []

    def second(done, total):
        if done == 1 and not summaries:
            with pytest.raises(Stop):  # once it has to wait for the group that is being made
                run(sounds, tmp_path / "out", tar_size=0.15, progress=stop_at_the_last)
            summaries.append(None)

    def stop_at_the_last(done, total):
        if done == total - 1:
            raise Stop

    summary = run(sounds, tmp_path / "out", tar_size=0.15, progress=second)
    assert summary == run(sounds, tmp_path / "whole", tar_size=0.15)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_files_that_another_run_adds_meanwhile_are_in_the_summary(tmp_path, sounds):
    def add(done, total):
        if total == 4 and done == 4 and not (sounds / "e.wav").exists():
            soundfile.write(sounds / "e.wav", steps(40000, 1, 9), RATE)
            assert run(sounds, tmp_path / "out")["files"] == 5

    summary = run(sounds, tmp_path / "out", progress=add)
    assert (summary["files"], summary["clips"]) == (5, 8)
    assert json.loads((tmp_path / "out" / "prepared.json").read_text()) == summary


def test_other_options_are_refused_while_a_run_is_at_work(tmp_path, sounds, monkeypatch):
    write = module.write_group

    def meanwhile(output, preparation, cache, group):
        with pytest.raises(OptionError, match="Another run is at work"):
            run(sounds, tmp_path / "out", seconds=2.0, force=True)
        return write(output, preparation, cache, group)

    monkeypatch.setattr(module, "write_group", meanwhile)
    run(sounds, tmp_path / "out")
    assert len(open_clips(tmp_path / "out")) == 7  # clips of 1 s, as the first run has them


def test_an_output_that_another_run_began_anew_meanwhile_is_left_to_it(tmp_path, sounds):
    other = sounds / "deep"

    def meanwhile(done, total):
        if not (tmp_path / "out" / "prepared.json").exists():
            run(other, tmp_path / "out", force=True)

    with pytest.raises(OptionError, match=r"Another run has begun .* anew"):
        run(sounds, tmp_path / "out", progress=meanwhile)
    assert run(other, tmp_path / "out") == run(other, tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_tar_that_is_removed_meanwhile_is_named_and_made_again(tmp_path, sounds):
    def remove(done, total):
        if done == total:
            next((tmp_path / "out").glob("*.tar")).unlink(missing_ok=True)

    with pytest.raises(OptionError, match=r"clips-00000\d of .*removed or altered"):
        run(sounds, tmp_path / "out", progress=remove)
    summary = run(sounds, tmp_path / "out")
    assert summary == run(sounds, tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


# --- what gram-hear 0.1.0 left ----------------------------------------------------------------


def turn_old(output, unfinished=()):
    """Give an output the state that gram-hear 0.1.0 kept, without some of its groups."""
    state = output / ".job"
    old = output / ".preparing"
    old.mkdir()
    (old / "lock").touch()
    groups = json.loads((state / "groups.json").read_text())
    plan = {"options": json.loads((state / "made_of.json").read_text()), "groups": groups}
    (old / "plan.json").write_text(json.dumps(plan))
    for note in (state / "done").iterdir():
        found = json.loads(note.read_text())
        number = int(found["part"].removeprefix("clips-"))
        if number not in unfinished:
            (old / f"group-{number:06d}.json").write_text(json.dumps(found["record"]))
    for number in unfinished:
        for tar in output.glob(f"clips-{number:06d}-*.tar"):
            tar.unlink()
        (output / "prepared.json").unlink()
    shutil.rmtree(state)


def test_a_folder_of_0_1_0_is_added_to(tmp_path, sounds, monkeypatch):
    first = run(sounds, tmp_path / "out", tar_size=0.15)
    turn_old(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_group", fail)
        assert run(sounds, tmp_path / "out", tar_size=0.15) == first
    assert not (tmp_path / "out" / ".preparing").exists()
    turn_old(tmp_path / "out")
    before = digests(tmp_path / "out")
    soundfile.write(sounds / "a.wav", steps(40000, 1, 9), RATE)
    assert run(sounds, tmp_path / "out", tar_size=0.15)["files"] == 5
    assert before.items() < digests(tmp_path / "out").items()


def test_what_0_1_0_left_unfinished_is_gone_on_with(tmp_path, sounds):
    first = run(sounds, tmp_path / "out", tar_size=0.15)
    before = digests(tmp_path / "out")
    turn_old(tmp_path / "out", unfinished=[1])
    with pytest.raises(OptionError, match=r"tar_size 0\.15, not 2\.0.*--force"):
        run(sounds, tmp_path / "out", tar_size=2.0)
    assert run(sounds, tmp_path / "out", tar_size=0.15) == first
    assert digests(tmp_path / "out") == before


def test_what_0_1_0_only_just_began_is_gone_on_with(tmp_path, sounds):
    (tmp_path / "out" / ".preparing").mkdir(parents=True)
    (tmp_path / "out" / ".preparing" / "lock").touch()
    assert run(sounds, tmp_path / "out")["clips"] == 7
    assert not (tmp_path / "out" / ".preparing").exists()


# --- the command ----------------------------------------------------------------------------


def test_command_prints_the_folder(sounds, command):
    code, out, err = command("prepare", sounds, "-o", "out", "--seconds", 1, "--jobs", 1)
    assert (code, out) == (0, "out\n")
    assert "7 clips, 0.00 hours of sound, of 4 files in 1 tar." in err


def test_what_is_left_out_of_a_folder_is_counted(tmp_path, sounds):
    for name in ("a.m4a", "b.txt", "deep/c.TXT"):
        (sounds / name).touch()
    with pytest.warns(UserWarning, match="left out") as caught:
        run(sounds, tmp_path / "out")
    unreadable, others = (str(each.message) for each in caught)
    assert "1 file (.m4a 1) left out" in unreadable
    assert "2 files (.txt 2) left out" in others


def test_command_lists_failures_at_the_end(damaged, command):
    arguments = ("prepare", damaged, "-o", "out", "--whole", "--jobs", 1)
    code, out, err = command(*arguments, "--json")
    assert code == 1
    summary = json.loads(out)
    assert (summary["clips"], summary["seconds"]) == (4, None)
    assert "3 files failed:" in err
    assert "cc.wav holds NaN" in err.strip().splitlines()[-1]
    assert command(*arguments)[0] == 1


def test_tars_and_parquet_files_give_the_clips_of_their_sounds(tmp_path, sounds):
    files = {path.name: path.read_bytes() for path in sounds.rglob("*") if path.is_file()}
    tar = write_tar(tmp_path / "in" / "a.tar", files | {"b.json": b"{}", "e.npy": npy(tone(48000))})
    write_parquet(tmp_path / "in" / "p.parquet", list(files.values()), paths=list(files))
    (tmp_path / "in" / "notes.txt").write_text("")
    memory = fsspec.filesystem("memory")
    memory.pipe("/prepare/a.tar", tar.read_bytes())
    cache = ShardCache(tmp_path / "cache", 1.0)
    inputs = [tmp_path / "in", "memory://prepare/*.tar"]
    with pytest.warns(UserWarning, match=r"\.txt 1\) left out"):
        summary = run(inputs, tmp_path / "out", cache=cache)
    run(sounds, tmp_path / "plain")

    def by_sound(output):
        """Return the sets of clips, each set of one input."""
        found = {}
        for name, data in members(output).items():
            found.setdefault(name[:8], {})["_".join(name.split("_")[1:])] = data
        return found

    plain = {k: v for part in by_sound(tmp_path / "plain").values() for k, v in part.items()}
    parquet, first, second = (part for part in by_sound(tmp_path / "out").values())
    strip = {"_".join(name.split("_")[1:]): data for name, data in parquet.items()}
    assert strip == plain
    assert first == second == plain | {k: v for k, v in first.items() if k.startswith("e_")}
    assert (summary["files"], len(summary["tars"])) == (4 + 5 + 5, 3)
    assert summary["left_out"] == {
        "files_by_suffix": {".txt": 1},
        "beside_sounds_by_suffix": {".json": 2},
        "short_rests": 3 * 2 + 2,
        "short_seconds": pytest.approx(3 * 0.75 + 2 * 0.5),
        "unreadable": 0,
    }
    with pytest.warns(UserWarning, match="left out"):
        again = run(inputs, tmp_path / "out", cache=cache)
    assert again == summary


def test_what_is_left_out_is_counted(tmp_path, sounds):
    (sounds / "a.txt").write_text("")
    (sounds / "broken.wav").write_bytes(b"RIFF")
    with pytest.warns(UserWarning, match="left out"):
        summary = run(sounds, tmp_path / "out")
    assert summary["left_out"] == {
        "files_by_suffix": {".txt": 1},
        "beside_sounds_by_suffix": {},
        "short_rests": 2,  # of 2.5 s and of 1.25 s
        "short_seconds": pytest.approx(0.75),
        "unreadable": 1,
    }


def test_shards_that_cannot_be_fetched_are_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PAUSES", ())
    memory = fsspec.filesystem("memory")
    tar = write_tar(tmp_path / "a.tar", {"a.wav": encoded(tone(32000), format="WAV")})
    memory.pipe("/retry/a.tar", tar.read_bytes())
    cache = ShardCache(tmp_path / "cache", 1.0)

    def fail(shard, file):
        raise SceneError("the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "download", fail)
        summary = run("memory://retry/*.tar", tmp_path / "out", cache=cache)
    assert summary["failed"] == [{"file": "memory:///retry/a.tar", "reason": "the network is down"}]
    assert run("memory://retry/*.tar", tmp_path / "out", cache=cache)["clips"] == 1
