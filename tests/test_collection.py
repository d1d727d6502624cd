"""A collection on disk: parts, resuming, what is in the way, Parquet, and kills."""

import builtins
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch

from gram_hear import embed_collection, embed_files
from gram_hear.embed import npz
from gram_hear.embed import parquet as parquet_module
from gram_hear.embed.collection import CollectionRun, FileOutcome, plan_files
from gram_hear.embed.files import Block, FileDone
from gram_hear.embed.npz import OutputError, describe_model, identity
from gram_hear.embed.parquet import parts_folder
from gram_hear.errors import OptionError
from gram_hear.jobs.job import Job
from gram_hear.jobs.locks import try_lock
from gram_hear.jobs.writing import temporary_prefix

SOUNDS = Path(__file__).parent / "data" / "sounds"
KILL = Path(__file__).parents[1] / "benchmarks" / "kill.py"
RATE = 32000


@pytest.fixture(scope="module")
def model_path(published_file):
    return published_file(1)


@pytest.fixture(scope="module")
def load(model_path):
    """Return a function: the small mono model, with options."""
    from gram_hear import load_model

    return lambda **options: load_model(model_path, **{"window_batch": 4, **options})


@pytest.fixture(scope="module")
def model(load):
    return load()


def write(path, seconds=1.0, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    soundfile.write(path, samples, RATE)
    return path


@pytest.fixture
def tree(tmp_path):
    """Ten files of 0.5 to 7.7 s in a tree of folders."""
    for i in range(10):
        write(tmp_path / "in" / ("", "a", "b/c")[i % 3] / f"{i}.wav", 0.5 + 0.8 * i, seed=i)
    return tmp_path / "in"


def arrays_of(folder):
    """Name of a part -> its arrays, without the metadata."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            assert path.suffix == ".npz", f"{path} was left behind"
            with np.load(path, allow_pickle=False) as arrays:
                found[path.relative_to(folder).as_posix()] = {
                    name: arrays[name] for name in arrays if name != "metadata"
                }
    return found


def assert_equal(found, others):
    assert set(found) == set(others)
    for name, arrays in found.items():
        assert set(arrays) == set(others[name])
        for key, array in arrays.items():
            assert np.array_equal(array, others[name][key]), (name, key)


def metadata_of(part):
    with np.load(part, allow_pickle=False) as arrays:
        return json.loads(str(arrays["metadata"]))


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}


def errors(outcomes):
    return {outcome.file.source.name: outcome.error for outcome in outcomes if outcome.error}


# --- plan -----------------------------------------------------------------------------------


def test_folders_are_mirrored_and_suffixes_kept(tmp_path):
    for name in ("in/a/x.wav", "in/b/x.wav", "in/x.wav", "in/x.flac"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files = plan_files([tmp_path / "in"], tmp_path / "out")
    outputs = {str(file.output.relative_to(tmp_path / "out")) for file in files}
    assert outputs == {"a/x.wav.npz", "b/x.wav.npz", "x.wav.npz", "x.flac.npz"}
    assert {file.name for file in files} == {"a/x.wav", "b/x.wav", "x.wav", "x.flac"}
    files = plan_files([tmp_path / "in"], tmp_path / "out.parquet")
    assert tmp_path / "out.parquet.parts" / "a" / "x.wav.npz" in {file.output for file in files}


def test_two_files_with_one_output_are_refused_before_any_work(tmp_path):
    with pytest.raises(OptionError, match="would both be written"):
        plan_files(["a/x.wav", "b/x.wav"], tmp_path)
    write(tmp_path / "a" / "x.wav")
    write(tmp_path / "b" / "x.wav")
    with pytest.raises(OptionError, match="Give the folder"):
        plan_files([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


@pytest.mark.parametrize(
    ("one", "other"),
    [("Take.wav", "take.wav"), ("A/x.wav", "a/x.wav"), ("caf\u00e9.wav", "cafe\u0301.wav")],
)
def test_outputs_that_are_one_file_on_some_systems_are_refused(tmp_path, one, other):
    paths = [tmp_path / folder / name for folder, name in (("1", one), ("2", other))]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(OptionError, match="one file on macOS and Windows") as caught:
        plan_files([tmp_path / "1", tmp_path / "2"], tmp_path / "out")
    assert all(str(path) in str(caught.value) for path in paths)
    assert len(plan_files([tmp_path], tmp_path / "out")) == 2  # other folders, other outputs


def test_what_is_left_out_of_a_folder_is_counted(tmp_path):
    names = ("a.WAVE", "b.amb", "c.txt", "d/e.TXT", "d/f.jpg", "g.m4a", "h.WebM", "README", ".i")
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    with pytest.warns(UserWarning, match="left out") as caught:
        files = plan_files([tmp_path / "in"], tmp_path / "out")
    assert {file.name for file in files} == {"a.WAVE", "b.amb"}
    unreadable, others, links = (str(each.message) for each in caught)
    assert "2 files (.m4a 1, .webm 1) left out" in unreadable
    assert "ffmpeg -i" in unreadable
    assert "4 files (.txt 2, without a suffix 1, .jpg 1) left out" in others
    assert "1 link to a folder left out" in links
    for path in (tmp_path / "in" / "a.WAVE", tmp_path / "in" / "b.amb"):
        path.unlink()
    with pytest.raises(OptionError, match="No sound file"), pytest.warns(match="left out"):
        plan_files([tmp_path / "in"], tmp_path / "out")


def test_a_file_named_twice_is_embedded_once(tmp_path, tree):
    sound = SOUNDS / "mono_impacts.ogg"
    assert len(plan_files([sound, sound], tmp_path)) == 1
    assert len(plan_files([tree, tree / "a" / "1.wav"], tmp_path / "out")) == 10
    assert len(plan_files([tree / "a" / "1.wav", tree, tree / "a"], tmp_path / "out")) == 10


def test_nothing_to_do_and_outputs_of_the_wrong_kind_are_refused(tmp_path):
    with pytest.raises(OptionError, match="No sound file"):
        plan_files([tmp_path], tmp_path / "out")
    (tmp_path / "taken").touch()
    with pytest.raises(OptionError, match="must be a folder"):
        plan_files([SOUNDS], tmp_path / "taken")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(OptionError, match=r"must be a \.parquet file"):
        plan_files([SOUNDS], tmp_path / "folder.parquet")
    (tmp_path / "set.parquet.parts").touch()
    with pytest.raises(OptionError, match="must be a folder"):
        plan_files([SOUNDS], tmp_path / "set.parquet")


@pytest.mark.slow
def test_folders_that_cannot_be_listed_are_reported_and_the_rest_done(
    tmp_path, tree, model, monkeypatch
):
    scandir = os.scandir

    def refuse(path="."):
        if str(path) in (str(tree / "a"), str(tmp_path / "locked")):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    outcomes = embed_collection([tree, tmp_path / "locked"], tmp_path / "out", model)
    assert errors(outcomes) == {
        "a": f"{tree / 'a'} cannot be read: Permission denied.",
        "locked": f"{tmp_path / 'locked'} cannot be read: Permission denied.",
    }
    assert len(arrays_of(tmp_path / "out")) == 7


# --- parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spool", [2**24, 1000])
def test_a_part_holds_what_embed_files_yields(tmp_path, tree, model, monkeypatch, spool):
    monkeypatch.setattr(npz, "SPOOL", spool)
    embed_collection([tree], tmp_path / "out", model)
    found = arrays_of(tmp_path / "out")
    vectors, stamps, scenes = {}, {}, {}
    for event in embed_files(sorted(tree.rglob("*.wav")), model):
        name = f"{event.path.relative_to(tree).as_posix()}.npz"
        if isinstance(event, Block):
            vectors.setdefault(name, []).append(event.vectors)
            stamps.setdefault(name, []).append(event.timestamps)
        elif isinstance(event, FileDone):
            scenes[name] = event.scene
    assert set(found) == set(scenes)
    for name, arrays in found.items():
        assert arrays["vectors"].dtype == arrays["scene"].dtype == np.float32
        assert arrays["timestamps"].dtype == np.float64
        assert np.array_equal(arrays["vectors"], np.concatenate(vectors[name]))
        assert np.array_equal(arrays["timestamps"], np.concatenate(stamps[name]))
        assert np.array_equal(arrays["scene"], scenes[name])


def test_metadata_says_what_made_the_embeddings(tmp_path, load):
    model = load(strategy="mean", layer=1)
    sound = SOUNDS / "mono_impacts.ogg"
    embed_collection([sound], tmp_path, model)
    metadata = metadata_of(tmp_path / "mono_impacts.ogg.npz")
    assert metadata["model"]["sha256"] == model.source.sha256()
    assert metadata["options"]["strategy"] == "mean"
    assert metadata["options"]["layer"] == 1
    assert metadata["holds"] == ["scene", "timestamps"]
    assert metadata["file"] == "mono_impacts.ogg"
    assert metadata["file_sample_rate"] == 16000
    assert (metadata["channels"], metadata["convention"]) == (1, None)
    assert metadata["duration_seconds"] == pytest.approx(1.8, abs=0.01)
    assert metadata["size_bytes"] == sound.stat().st_size
    assert metadata["modified_ns"] == sound.stat().st_mtime_ns


def test_metadata_says_the_convention_of_the_file(tmp_path, model, b_format):
    embed_collection(b_format, tmp_path / "out", model)
    for path, convention in zip(b_format, ("fuma", "ambix"), strict=True):
        assert metadata_of(tmp_path / "out" / f"{path.name}.npz")["convention"] == convention


@pytest.mark.parametrize(
    ("kept", "names"),
    [
        ({"scene": False}, {"vectors", "timestamps"}),
        ({"timestamps": False}, {"scene"}),
    ],
)
def test_scene_or_timestamps_can_be_left_out(tmp_path, model, kept, names):
    sound = SOUNDS / "mono_impacts.ogg"
    embed_collection([sound], tmp_path / "both", model)
    embed_collection([sound], tmp_path / "one", model, **kept)
    both, one = (arrays_of(tmp_path / n)["mono_impacts.ogg.npz"] for n in ("both", "one"))
    assert set(one) == names
    assert all(np.array_equal(one[name], both[name]) for name in names)


def test_a_collection_of_other_scenes_is_told_apart(tmp_path, model, small_model):
    sound, spread = SOUNDS / "mono_impacts.ogg", small_model(2, scene="mean_std")
    embed_collection([sound], tmp_path / "out", spread)
    [part] = arrays_of(tmp_path / "out").values()
    assert part["scene"].shape == (2 * part["vectors"].shape[1],)
    with pytest.raises(OptionError, match="other options"):
        embed_collection([sound], tmp_path / "out", model)


def test_parts_made_before_scenes_had_an_option_go_on(tmp_path, model):
    metadata = describe_model(model) | {"holds": ["scene"]}
    before = {**metadata, "options": {**metadata["options"]}}
    del before["options"]["scene"]
    assert identity(before) == identity(metadata)


def test_a_dataset_holds_vectors_of_one_length(tmp_path, small_model):
    sound, spread = SOUNDS / "mono_impacts.ogg", small_model(2, scene="mean_std")
    with pytest.raises(OptionError, match="all have one length"):
        embed_collection([sound], tmp_path / "out.parquet", spread)
    for kept in ("scene", "timestamps"):
        output = tmp_path / f"{kept}.parquet"
        left_out = {"scene": kept == "scene", "timestamps": kept == "timestamps"}
        embed_collection([sound], output, spread, **left_out)
        vectors = pyarrow.parquet.read_table(output).column("vector")
        assert {len(each) for each in vectors.to_pylist()} == {
            spread.scene_embedding_size if kept == "scene" else spread.timestamp_embedding_size
        }


def test_one_bad_file_does_not_stop_the_rest(tmp_path, model):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(SOUNDS / "mono_impacts.ogg", folder / "good.ogg")
    (folder / "bad.wav").write_text("nothing to hear")
    nan = np.full((1000, 1), np.nan, dtype=np.float32)
    soundfile.write(folder / "nan.wav", nan, RATE, subtype="FLOAT")
    late = np.zeros((RATE * 30, 1), dtype=np.float32)
    late[-1] = np.nan
    soundfile.write(folder / "late.wav", late, RATE, subtype="FLOAT")
    found = errors(embed_collection([folder], tmp_path / "out", model))
    assert set(found) == {"bad.wav", "nan.wav", "late.wav"}
    assert "bad.wav could not be read" in found["bad.wav"]
    assert "nan.wav" in found["nan.wav"]
    assert "NaN" in found["nan.wav"]
    assert "NaN" in found["late.wav"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.ogg.npz"]


@pytest.mark.parametrize("place", ["write", "spool", "folder"])
def test_an_output_that_cannot_be_written_stops_and_keeps_what_is_done(
    tmp_path, tree, model, monkeypatch, place
):
    whole = tmp_path / "whole"
    embed_collection([tree], whole, model)
    out = tmp_path / "out"
    last = sorted(tree.rglob("*.wav"), key=lambda path: path.stat().st_size)[-1]
    if place == "write":
        write_array = npz._write_array

        def fail(archive, name, array):
            write_array(archive, name, array)
            if name == "metadata" and last.name in str(array):
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(npz, "_write_array", fail)
    elif place == "spool":

        def fail_to_add(self, block):
            if self.file.source == last:
                raise OSError(28, "No space left on device")
            add(self, block)

        add = npz.PartWriter.add
        monkeypatch.setattr(npz.PartWriter, "add", fail_to_add)
    else:
        (tree / "d").mkdir()
        last = last.rename(tree / "d" / last.name)
        out.mkdir()
        (out / "d").write_text("a file where a folder should be")
    with pytest.raises(OutputError, match="finished is kept") as caught:
        embed_collection([tree], out, model)
    assert last.name in str(caught.value)
    if place == "folder":
        (out / "d").unlink()
    monkeypatch.undo()
    assert len(arrays_of(out)) == 9
    embed_collection([tree], out, model)
    expected = arrays_of(whole)
    if place == "folder":
        expected[f"d/{last.name}.npz"] = expected.pop(f"{last.name}.npz")
    assert_equal(arrays_of(out), expected)


@pytest.fixture
def disturb(monkeypatch):
    """Return a function: do something once, after so many parts are finished."""

    def after(count, action):
        finish, finished = npz.PartWriter.finish, []

        def finish_and_act(self, done):
            finish(self, done)
            finished.append(self.file.output)
            if len(finished) == count:
                action(finished)

        monkeypatch.setattr(npz.PartWriter, "finish", finish_and_act)

    return after


def remove_all(done, folder):
    shutil.rmtree(folder)


def remove_and_make(done, folder):
    shutil.rmtree(folder)
    folder.mkdir()


def replace_one(done, folder):
    done[1].write_bytes(b"precious")


def exchange_two(done, folder):
    shutil.copy(done[0], done[1])


def empty_one(done, folder):
    done[1].write_bytes(b"")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out", "out.parquet"])
@pytest.mark.parametrize(
    ("action", "count"),
    [(remove_all, 6), (remove_and_make, 6), (replace_one, 1), (exchange_two, 1), (empty_one, 1)],
)
def test_what_is_reported_as_done_is_there_at_the_end(
    tmp_path, tree, model, parquet, disturb, monkeypatch, name, action, count
):
    output = tmp_path / name
    folder = parts_folder(output)
    disturb(6, lambda done: action(done, folder))
    outcomes = embed_collection([tree], output, model)
    lost = errors(outcomes)
    assert (len(outcomes), len(lost)) == (10, count)
    for outcome in outcomes:
        if outcome.error:
            assert str(outcome.file.output) in outcome.error
            assert "run the same command again" in outcome.error.lower()
    held = {outcome.file.name for outcome in outcomes if not outcome.error}
    if name == "out.parquet":
        assert set(parquet.read_table(output).column("file").to_pylist()) == held
    monkeypatch.undo()
    for path in folder.rglob("*.npz"):
        if path.read_bytes() == b"precious":
            path.unlink()
    again = embed_collection([tree], output, model)
    assert {outcome.file.source.name for outcome in again} == set(lost)
    embed_collection([tree], tmp_path / "whole", model)
    assert_equal(arrays_of(folder), arrays_of(tmp_path / "whole"))


def test_parts_of_an_earlier_run_that_are_removed_during_this_one_are_reported(
    tmp_path, tree, model, disturb
):
    out = tmp_path / "out"
    embed_collection([tree / "a"], out, model)
    disturb(3, lambda done: (out / "1.wav.npz").unlink())
    shutil.copytree(tree / "a", tmp_path / "more")
    for path in (tmp_path / "more").iterdir():
        path.rename(path.with_name(f"new-{path.name}"))
    outcomes = embed_collection([tree / "a", tmp_path / "more"], out, model)
    assert list(errors(outcomes)) == ["1.wav"]


def test_a_part_that_is_only_touched_is_there(tmp_path, tree, model, disturb):
    disturb(6, lambda done: os.utime(done[1], (0, 0)))
    assert errors(embed_collection([tree], tmp_path / "out", model)) == {}


@pytest.mark.parametrize(
    ("owner", "name"), [(npz.PartWriter, "add"), (npz, "_write_array")], ids=["spool", "write"]
)
def test_a_folder_that_is_removed_while_a_part_is_made_is_made_again(
    tmp_path, tree, model, monkeypatch, owner, name
):
    monkeypatch.setattr(npz, "SPOOL", 1000)
    out, write, once = tmp_path / "out", getattr(owner, name), [True]

    def remove_and_write(*arguments):
        if once and once.pop():
            shutil.rmtree(out)
        write(*arguments)

    monkeypatch.setattr(owner, name, remove_and_write)
    assert errors(embed_collection([tree / "a" / "1.wav"], out, model)) == {}
    assert set(arrays_of(out)) == {"1.wav.npz"}


@pytest.mark.parametrize("what", ["part", "dataset"])
def test_a_dataset_that_does_not_hold_what_is_reported_is_an_error(
    tmp_path, tree, model, monkeypatch, what
):
    """Removed between the last look at the parts and the end."""
    output = tmp_path / "out.parquet"
    if what == "part":
        find_parts = parquet_module.find_parts

        def find_and_remove(*arguments):
            found = find_parts(*arguments)
            dict(found)["a/1.wav"].unlink(missing_ok=True)
            return found

        monkeypatch.setattr(parquet_module, "find_parts", find_and_remove)
    else:
        write_whole = parquet_module.write_whole

        def write_and_remove(path, write):
            write_whole(path, write)
            if path == output:
                path.unlink()

        monkeypatch.setattr(parquet_module, "write_whole", write_and_remove)
    with pytest.raises(OutputError, match=r"out\.parquet .*run the same command|Run the same"):
        embed_collection([tree], output, model)
    assert not output.exists()
    monkeypatch.undo()
    assert errors(embed_collection([tree], output, model)) == {}
    assert output.exists()


def test_a_name_that_is_no_utf8_is_written_and_found_again(tmp_path, model):
    write(tmp_path / "in" / "plain.wav")
    name = os.fsdecode(b"\xff\xfe.wav")
    shutil.copy(tmp_path / "in" / "plain.wav", tmp_path / "in" / name)
    for done in (2, 0):
        outcomes = embed_collection([tmp_path / "in"], tmp_path / "out.parquet", model)
        assert len(outcomes) == done
        assert errors(outcomes) == {}
    assert (tmp_path / "out.parquet.parts" / f"{name}.npz").exists()


# --- resuming -------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(tmp_path, tree, load, model):
    out = tmp_path / "out"
    assert len(embed_collection([tree], out, model)) == 10
    before = times(out)
    assert embed_collection([tree], out, model) == []
    # Neither the batch nor the device changes more than rounding.
    assert embed_collection([tree], out, load(window_batch=7, device="auto")) == []
    assert times(out) == before


def test_a_changed_source_and_a_new_one_are_embedded(tmp_path, tree, model):
    out = tmp_path / "out"
    embed_collection([tree], out, model)
    before = times(out)
    write(tree / "a" / "1.wav", 1.3, seed=99)
    write(tree / "a" / "new.wav", 1.1, seed=98)
    outcomes = embed_collection([tree], out, model)
    assert {outcome.file.name for outcome in outcomes} == {"a/1.wav", "a/new.wav"}
    after = times(out)
    assert {path for path in before if after[path] != before[path]} == {out / "a" / "1.wav.npz"}
    status = (tree / "a" / "1.wav").stat()
    metadata = metadata_of(out / "a" / "1.wav.npz")
    assert (metadata["size_bytes"], metadata["modified_ns"]) == (
        status.st_size,
        status.st_mtime_ns,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"strategy": "mean"}, {}),
        ({"layer": 1}, {}),
        ({"convention": "fuma"}, {}),
        ({"parity": True}, {}),
        ({"dtype": "bfloat16"}, {}),
        ({}, {"scene": False}),
        ({}, {"timestamps": False}),
    ],
)
def test_other_options_are_refused_without_force(tmp_path, tree, load, model, options, kept):
    out = tmp_path / "out"
    embed_collection([tree], out, model)
    before = times(out)
    with pytest.raises(OptionError, match=r"10 outputs are there already.*--force"):
        embed_collection([tree], out, load(**options), **kept)
    assert times(out) == before
    assert len(embed_collection([tree], out, load(**options), force=True, **kept)) == 10
    assert embed_collection([tree], out, load(**options), **kept) == []


def test_another_model_is_refused_and_a_copy_of_the_same_is_not(
    tmp_path, tree, load, model, model_path, published_file
):
    from gram_hear import load_model

    out = tmp_path / "out"
    embed_collection([tree], out, model)
    copy = shutil.copy(model_path, tmp_path / "renamed.safetensors")
    assert embed_collection([tree], out, load_model(copy)) == []
    with pytest.raises(OptionError, match="another model"):
        embed_collection([tree], out, load_model(published_file(1, seed=1)))


def test_force_embeds_all_again(tmp_path, tree, model):
    out = tmp_path / "out"
    embed_collection([tree], out, model)
    before, arrays = times(out), arrays_of(out)
    assert len(embed_collection([tree], out, model, force=True)) == 10
    assert all(time > before[path] for path, time in times(out).items())
    assert_equal(arrays_of(out), arrays)


def half(content):
    return content[: len(content) // 2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "half", "npy", "npz", "other metadata"])
def test_what_is_no_part_of_ours_is_kept_without_force(tmp_path, tree, model, kind):
    out = tmp_path / "out"
    embed_collection([tree], out, model)
    part = out / "a" / "1.wav.npz"
    if kind == "npy":
        with part.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "npz":
        np.savez(part, vectors=np.zeros(3))
    elif kind == "other metadata":
        keys = ("model", "options", "holds", "size_bytes", "modified_ns")
        np.savez(part, metadata=np.array(json.dumps(dict.fromkeys(keys, "x"))))
    else:
        part.write_bytes(b"precious" if kind == "text" else half(part.read_bytes()))
    before = part.read_bytes()
    with pytest.raises(OptionError, match="1 output is there already"):
        embed_collection([tree], out, model)
    assert part.read_bytes() == before
    embed_collection([tree], out, model, force=True)
    assert metadata_of(part)["file"] == "a/1.wav"


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 3, 6, 11])
def test_an_interrupted_run_ends_with_the_same_numbers(tmp_path, tree, model, stop):
    whole, out = tmp_path / "whole", tmp_path / "out"
    embed_collection([tree], whole, model)
    events = CollectionRun(plan_files([tree], out), out, model).run()
    for _ in range(stop):
        next(events)
    events.close()
    done = set(arrays_of(out)) if out.exists() else set()
    assert len(done) < 10
    outcomes = embed_collection([tree], out, model)
    assert {f"{outcome.file.name}.npz" for outcome in outcomes} == set(arrays_of(whole)) - done
    assert_equal(arrays_of(out), arrays_of(whole))


def test_one_missing_file_of_a_shared_batch_gets_the_same_numbers(tmp_path, tree, model):
    out = tmp_path / "out"
    embed_collection([tree], out, model)
    before, arrays = times(out), arrays_of(out)
    for name in ("1.wav", "4.wav"):
        (out / "a" / f"{name}.npz").unlink()
    outcomes = embed_collection([tree], out, model, jobs=3)
    assert {outcome.file.name for outcome in outcomes} == {"a/1.wav", "a/4.wav"}
    assert_equal(arrays_of(out), arrays)
    untouched = {path: time for path, time in before.items() if path.name[0] not in "14"}
    assert untouched.items() <= times(out).items()


def test_what_a_killed_run_left_behind_is_removed_and_nothing_else(tmp_path, tree, model):
    out = tmp_path / "out.parquet"
    parts = tmp_path / "out.parquet.parts"
    (parts / "a").mkdir(parents=True)
    hexadecimal = "0123456789abcdef" * 2
    targets = (parts / "a" / "1.wav.npz", out, tmp_path / "other.parquet")
    *left, other = [
        path.with_name(f"{temporary_prefix(path)}{hexadecimal}.partial") for path in targets
    ]
    others = [other, parts / "a" / ".1.wav.npz.partial"]
    for path in (*left, *others):
        path.write_bytes(b"half")
    embed_collection([tree], out, model)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


# --- Parquet --------------------------------------------------------------------------------


@pytest.fixture
def parquet():
    """Return pyarrow.parquet, one of the packages of the tests."""
    import pyarrow.parquet

    return pyarrow.parquet


def rows_of(folder):
    """The rows that a dataset of these parts should hold."""
    rows = []
    arrays = {name.removesuffix(".npz"): value for name, value in arrays_of(folder).items()}
    for name in sorted(arrays):
        if "scene" in arrays[name]:
            rows.append((name, None, arrays[name]["scene"]))
        if "vectors" in arrays[name]:
            pairs = zip(arrays[name]["timestamps"], arrays[name]["vectors"], strict=True)
            rows.extend((name, time, vector) for time, vector in pairs)
    return rows


@pytest.mark.parametrize("kept", [{}, {"scene": False}, {"timestamps": False}])
@pytest.mark.parametrize("rows", [4096, 50])
def test_a_dataset_holds_the_rows_of_its_parts_by_name(
    tmp_path, tree, model, parquet, monkeypatch, kept, rows
):
    monkeypatch.setattr(npz, "GROUP", rows * 4 * model.timestamp_embedding_size)
    output = tmp_path / "out.parquet"
    embed_collection([tree], output, model, **kept)
    table = parquet.read_table(output)
    expected = rows_of(tmp_path / "out.parquet.parts")
    assert table.column_names == ["file", "timestamp_ms", "vector"]
    assert [str(kind) for kind in table.schema.types] == [
        "string",
        "double",
        f"fixed_size_list<element: float>[{model.timestamp_embedding_size}]",
    ]
    assert table.column("file").to_pylist() == [name for name, _, _ in expected]
    assert table.column("timestamp_ms").to_pylist() == [time for _, time, _ in expected]
    vectors = np.stack(table.column("vector").to_numpy())
    assert np.array_equal(vectors, np.stack([vector for _, _, vector in expected]))
    described = json.loads(table.schema.metadata[b"gram_hear"])
    assert described["model"]["sha256"] == model.source.sha256()
    assert described["options"]["strategy"] == "raw"
    groups = parquet.ParquetFile(output).metadata
    counts = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    assert sum(counts) == len(expected)
    assert all(0 < count <= rows for count in counts)
    # Short files share a group: no two neighbours would fit into one.
    assert all(a + b > rows // 2 for a, b in itertools.pairwise(counts))


def test_a_dataset_is_read_by_pandas(tmp_path, tree, model, parquet):
    import pandas

    output = tmp_path / "out.parquet"
    embed_collection([tree], output, model)
    frame = pandas.read_parquet(output)
    scenes = frame[frame.timestamp_ms.isna()]
    assert list(scenes.file) == sorted(scenes.file)
    assert len(scenes) == 10
    one = frame[(frame.file == "a/1.wav") & frame.timestamp_ms.notna()]
    arrays = arrays_of(tmp_path / "out.parquet.parts")["a/1.wav.npz"]
    assert np.array_equal(np.stack(list(one.vector)), arrays["vectors"])
    assert np.array_equal(one.timestamp_ms.to_numpy(), arrays["timestamps"])


def test_a_dataset_is_assembled_again_only_where_its_parts_changed(tmp_path, tree, model, parquet):
    output = tmp_path / "out.parquet"
    embed_collection([tree], output, model)
    first, before = parquet.read_table(output), output.stat().st_mtime_ns
    assert embed_collection([tree], output, model) == []
    assert output.stat().st_mtime_ns == before
    output.unlink()
    assert embed_collection([tree], output, model) == []
    assert parquet.read_table(output).equals(first, check_metadata=True)
    write(tree / "added.wav", 1.0, seed=50)
    embed_collection([tree], output, model)
    names = {*first.column("file").to_pylist(), "added.wav"}
    grown = parquet.read_table(output)
    assert set(grown.column("file").to_pylist()) == names
    # It never loses files because fewer were given.
    embed_collection([tree / "a"], output, model)
    assert set(parquet.read_table(output).column("file").to_pylist()) >= names
    (tree / "added.wav").unlink()
    write(tree / "b" / "another.wav", 1.0, seed=51)
    embed_collection([tree], output, model)
    assert names < set(parquet.read_table(output).column("file").to_pylist())


def test_a_file_that_fails_is_left_out_even_where_an_old_part_of_it_is_there(
    tmp_path, tree, load, model, parquet
):
    output = tmp_path / "out.parquet"
    embed_collection([tree], output, model)
    (tree / "a" / "1.wav").write_text("nothing to hear now")
    assert list(errors(embed_collection([tree], output, model))) == ["1.wav"]
    files = set(parquet.read_table(output).column("file").to_pylist())
    assert len(files) == 9
    assert "a/1.wav" not in files
    # Its old part has rows of another length than the others now.
    outcomes = embed_collection([tree], output, load(strategy="mean"), force=True)
    assert list(errors(outcomes)) == ["1.wav"]
    assert set(parquet.read_table(output).column("file").to_pylist()) == files


def test_of_nothing_but_failures_no_dataset_is_made(tmp_path, model):
    (tmp_path / "bad.wav").write_text("nothing to hear")
    outcomes = embed_collection([tmp_path / "bad.wav"], tmp_path / "out.parquet", model)
    assert len(errors(outcomes)) == 1
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("kind", ["text", "foreign", "other options"])
def test_a_file_that_is_no_dataset_of_this_is_kept_without_force(
    tmp_path, tree, load, model, parquet, kind
):
    import pyarrow

    output = tmp_path / "out.parquet"
    if kind == "text":
        output.write_text("precious")
    elif kind == "foreign":
        parquet.write_table(pyarrow.table({"a": [1]}), output)
    else:
        embed_collection([tree], output, load(strategy="mean"))
        shutil.rmtree(tmp_path / "out.parquet.parts")
    before = output.read_bytes()
    with pytest.raises(OptionError, match="Use --force"):
        embed_collection([tree], output, model)
    assert output.read_bytes() == before
    embed_collection([tree], output, model, force=True)
    assert len(set(parquet.read_table(output).column("file").to_pylist())) == 10


def test_pyarrow_is_asked_for_before_any_work(tmp_path, tree, model, monkeypatch):
    imported = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("pyarrow"):
            raise ImportError(f"No module named {name!r}")
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OptionError, match=r'pip install "gram-hear\[parquet\]"'):
        embed_collection([tree], tmp_path / "out.parquet", model)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert len(embed_collection([tree], tmp_path / "out", model)) == 10


def test_an_assembly_that_breaks_off_leaves_the_old_dataset(
    tmp_path, tree, model, parquet, monkeypatch
):
    output = tmp_path / "out.parquet"
    embed_collection([tree], output, model)
    before = output.read_bytes()
    write(tree / "added.wav", 1.0, seed=50)
    rows, count = parquet_module.rows_of, iter(range(100))

    def fail(part):
        if next(count) == 5:
            raise OSError(28, "No space left on device")
        return rows(part)

    monkeypatch.setattr(parquet_module, "rows_of", fail)
    with pytest.raises(OutputError, match=r"No space left on device.*parts are kept"):
        embed_collection([tree], output, model)
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in",
        "out.parquet",
        "out.parquet.parts",
    ]
    monkeypatch.undo()
    assert embed_collection([tree], output, model) == []
    assert "added.wav" in parquet.read_table(output).column("file").to_pylist()


def test_progress_adds_up_to_the_sound_that_is_due(tmp_path, tree, model):
    out = tmp_path / "out"
    collection = CollectionRun(plan_files([tree], out), out, model)
    events = list(collection.run())
    sound = sum(event.seconds for event in events if not isinstance(event, FileOutcome))
    assert sound == pytest.approx(collection.seconds, abs=0.08 * 10)
    assert collection.due == set()
    again = CollectionRun(plan_files([tree], out), out, model)
    assert (again.seconds, again.groups, list(again.run())) == (0, [], [])


# --- several runs ---------------------------------------------------------------------------

RUN = """
import sys, time
from pathlib import Path
import torch
from gram_hear import embed_collection, load_model
from gram_hear.embed.npz import PartWriter

torch.set_num_threads(1)
model, sounds, output, log, pause = sys.argv[1:]
finish = PartWriter.finish

def finish_and_wait(self, done):
    finish(self, done)
    with open(log, "a") as file:
        print(self.file.name, file=file)
    time.sleep(float(pause))

PartWriter.finish = finish_and_wait
outcomes = embed_collection([sounds], output, load_model(model, window_batch=4))
sys.exit(any(outcome.error for outcome in outcomes))
"""


@pytest.fixture
def another_run(tmp_path, model_path, tree):
    """Return a function: start a run in a process, slow after each part; wait for its first."""
    log = tmp_path / "log"

    def start(output, pause):
        arguments = [str(each) for each in (model_path, tree, output, log, pause)]
        process = subprocess.Popen([sys.executable, "-P", "-c", RUN, *arguments])
        while not log.exists() and process.poll() is None:
            time.sleep(0.01)
        return process, lambda: log.read_text().split()

    return start


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_two_runs_of_one_collection_end_as_one(
    tmp_path, tree, model, another_run, disturb, parquet, name
):
    whole, output = tmp_path / f"whole-{name}", tmp_path / name
    embed_collection([tree], whole, model)
    made_here = []
    disturb(1, lambda done: made_here.append(done))  # the list grows
    other, made_there = another_run(output, 0.15)
    outcomes = embed_collection([tree], output, model)
    assert other.wait() == 0
    assert errors(outcomes) == {}
    assert made_here
    assert len(made_here[0]) + len(made_there()) == 10  # each part is made once
    assert_equal(arrays_of(parts_folder(output)), arrays_of(parts_folder(whole)))
    if name == "out.parquet":
        assert parquet.read_table(output).equals(parquet.read_table(whole))
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("in", "log", "out", "whole-out"),
        *("out.parquet", "out.parquet.parts", "whole-out.parquet", "whole-out.parquet.parts"),
    }


def test_a_run_ends_its_job_while_no_other_can_begin(tmp_path, tree, model, monkeypatch):
    locked = []

    def is_idle(job):
        with try_lock(job.state / "finish.lock") as is_mine:
            locked.append(not is_mine)
        return True

    monkeypatch.setattr(Job, "is_idle", is_idle)
    embed_collection([tree], tmp_path / "out", model)
    assert locked == [True]
    assert not (tmp_path / "out" / ".job").exists()


@pytest.mark.slow
def test_what_a_killed_run_held_is_made_by_the_one_that_waits(tmp_path, tree, model, another_run):
    embed_collection([tree], tmp_path / "whole", model)
    other, made_there = another_run(tmp_path / "out", 60)
    timer = threading.Timer(0.5, other.kill)
    timer.start()
    outcomes = embed_collection([tree], tmp_path / "out", model)
    other.wait()
    assert errors(outcomes) == {}
    assert len(outcomes) == 10 - len(made_there())
    assert_equal(arrays_of(tmp_path / "out"), arrays_of(tmp_path / "whole"))


@pytest.mark.slow
def test_a_run_with_other_options_waits_for_its_turn(tmp_path, tree, load, another_run):
    other, _ = another_run(tmp_path / "out", 60)
    strategy = load(strategy="mean")
    with pytest.raises(OptionError, match="Another run is at work"):
        embed_collection([tree], tmp_path / "out", strategy, force=True)
    other.kill()
    other.wait()
    assert len(embed_collection([tree], tmp_path / "out", strategy, force=True)) == 10
    assert len(arrays_of(tmp_path / "out")) == 10


@pytest.mark.slow
def test_runs_over_other_files_share_an_output(tmp_path, tree, model, another_run):
    other, _ = another_run(tmp_path / "out", 0.1)
    more = write(tmp_path / "more" / "late.wav", seed=99)
    assert errors(embed_collection([more], tmp_path / "out", model)) == {}
    assert other.wait() == 0
    assert len(arrays_of(tmp_path / "out")) == 11


# --- kills ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_or_wrong():
    command = [sys.executable, str(KILL), "--kills", "3", "--command", "embed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)["embed"]
    assert found["kills"] >= 3
    assert found["completed"] >= 1
    wrong = ("failed_runs", "broken_files", "unknown_files", "lost_files", "left_behind")
    assert {name: found[name] for name in wrong} == dict.fromkeys(wrong, 0)


def test_a_damaged_part_is_named_when_the_dataset_is_assembled(tmp_path, tree, model):
    output = tmp_path / "out.parquet"
    embed_collection([tree], output, model)
    before = output.read_bytes()
    part = tmp_path / "out.parquet.parts" / "a" / "1.wav.npz"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 0xFF
    part.write_bytes(content)
    with pytest.raises(OutputError, match=r"1\.wav\.npz is damaged.*Delete it"):
        embed_collection([tree], output, model)
    assert output.read_bytes() == before


def test_a_default_that_is_said_is_the_same_collection(tmp_path, tree, load, model):
    embed_collection([tree], tmp_path / "out", model)
    assert embed_collection([tree], tmp_path / "out", load(window_fill="repeat")) == []
    with pytest.raises(OptionError, match="other options"):
        embed_collection([tree], tmp_path / "out", load(window_fill="zero"))


def test_embeddings_of_before_they_changed_are_another_collection(
    tmp_path, tree, model, monkeypatch
):
    """A folder would hold both side by side, and nobody could tell."""
    monkeypatch.setattr(npz, "EMBEDDINGS", 1)
    embed_collection([tree], tmp_path / "out", model)
    monkeypatch.undo()
    with pytest.raises(OptionError, match=r"another program made.*Use --force"):
        embed_collection([tree], tmp_path / "out", model)
    assert len(embed_collection([tree], tmp_path / "out", model, force=True)) == 10


def test_a_model_that_was_trained_since_is_another_model(tmp_path, tree, load):
    model = load()
    embed_collection([tree], tmp_path / "out", model)
    with torch.no_grad():
        model.gram.patches.bias += 0.1
    with pytest.raises(OptionError, match="another model"):
        embed_collection([tree], tmp_path / "out", model)
