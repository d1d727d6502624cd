"""The gram-hear command, run as a person runs it."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile

import gram_hear
from gram_hear.console import progress_bar
from gram_hear.embed import npz
from gram_hear.errors import OptionError
from gram_hear.nn.mamba_kernels import find_kernels

SOUNDS = Path(__file__).parent / "data" / "sounds"
COMMAND = Path(sys.executable).parent / "gram-hear"


def run(*arguments):
    """Run the command in a process of its own."""
    return subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_embed_writes_files_says_so_and_warns_that_the_model_is_untrained(tmp_path):
    done = run("embed", SOUNDS, "-o", tmp_path / "out", "--model", "gram-tiny-untrained")
    assert done.returncode == 0, done.stderr
    outputs = sorted(done.stdout.split())
    assert outputs == sorted(str(tmp_path / "out" / f"{s.name}.npz") for s in SOUNDS.iterdir())
    assert "untrained" in done.stderr
    assert "5 of 5 files are embedded" in done.stderr
    assert "s of sound" in done.stderr
    vectors = np.load(tmp_path / "out" / "mono_vowels.mp3.npz", allow_pickle=False)["vectors"]
    assert vectors.shape == (24, 8 * 192)


def test_embed_passes_its_options_on(tmp_path, published_file, command):
    code, _, err = command(
        *("embed", SOUNDS / "ambix_circling.wav", "-o", tmp_path, "--model", published_file(7)),
        *("--strategy", "mean", "--layer", 1, "--convention", "fuma", "--device", "cpu"),
        *("--dtype", "bfloat16", "--window-batch", 4, "--parity", "--window-fill", "zero"),
    )
    assert code == 0, err
    arrays = np.load(tmp_path / "ambix_circling.wav.npz", allow_pickle=False)
    assert json.loads(str(arrays["metadata"]))["options"] == {
        "strategy": "mean",
        "scene": "mean",
        "layer": 1,
        "convention": "fuma",
        "parity": True,
        "window_fill": "zero",
        "window_batch": 4,
        "dtype": "bfloat16",
    }
    assert arrays["vectors"].shape == (2, 64)


def test_embed_reports_failures_and_exits_with_1(tmp_path, published_file, command):
    shutil.copy(SOUNDS / "mono_impacts.ogg", tmp_path / "good.ogg")
    (tmp_path / "bad.wav").write_text("no sound")
    arguments = ("-o", tmp_path / "out", "--model", published_file(1))
    code, out, err = command("embed", tmp_path / "good.ogg", tmp_path / "bad.wav", *arguments)
    assert code == 1
    assert "failed:" in err
    assert "bad.wav could not be read" in err
    assert "1 of 2 files are embedded" in err
    assert out == f"{tmp_path / 'out' / 'good.ogg.npz'}\n"
    assert (tmp_path / "out" / "good.ogg.npz").exists()


@pytest.mark.parametrize("backbone", ["mamba2", "mamba1"])
def test_embed_of_gram_m_writes_what_python_gives(tmp_path, published_file, command, backbone):
    sound, path = tmp_path / "sound.wav", published_file(2, backbone=backbone)
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 70000)).astype(np.float32)
    soundfile.write(sound, audio.T, 32000, subtype="FLOAT")
    code, _, err = command("embed", sound, "-o", tmp_path / "out", "-m", path, "--device", "cpu")
    assert code == 0, err
    model = gram_hear.load_model(path)
    rows, timestamps = gram_hear.get_timestamp_embeddings(audio[None], model)
    arrays = np.load(tmp_path / "out" / "sound.wav.npz", allow_pickle=False)
    np.testing.assert_allclose(arrays["vectors"], rows[0], atol=1e-5)
    np.testing.assert_allclose(arrays["timestamps"], timestamps[0], atol=1e-3)
    scene = gram_hear.get_scene_embeddings(audio[None], model)[0]
    np.testing.assert_allclose(arrays["scene"], scene, atol=1e-5)


@pytest.mark.parametrize("suffix", ["", ".parquet"])
def test_embed_skips_what_is_done_and_says_how_much(tmp_path, published_file, command, suffix):
    folder, output = tmp_path / "in", tmp_path / f"out{suffix}"
    shutil.copytree(SOUNDS, folder)
    arguments = ("embed", folder, "-o", output, "-m", published_file(1), "--jobs", 2)
    parts = tmp_path / ("out.parquet.parts" if suffix else "out")
    code, out, err = command(*arguments)
    assert (code, len(out.splitlines())) == (0, 5)
    assert f"5 of 5 files are embedded in {output}." in err
    assert "done already" not in err
    (folder / "bad.wav").write_text("no sound")
    code, out, err = command(*arguments)
    assert (code, out) == (1, "")
    assert "5 of 6 files are done already." in err
    assert f"5 of 6 files are embedded in {output}." in err
    assert "1 failed:\n" in err
    assert len(list(parts.iterdir())) == 5
    (folder / "bad.wav").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = command(*arguments)
    assert (code, out) == (0, "")
    assert "5 of 5 files are done already." in err
    unchanged = {path: path.stat().st_mtime_ns for path in before if path.suffix != ".parquet"}
    assert unchanged.items() <= before.items()
    code, out, err = command(*arguments, "--strategy", "mean")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "--force" in err
    code, out, err = command(*arguments, "--strategy", "mean", "--force")
    assert (code, len(out.splitlines())) == (0, 5)


def test_embed_into_parquet_leaves_out_what_failed(tmp_path, published_file, command):
    shutil.copy(SOUNDS / "mono_impacts.ogg", tmp_path / "good.ogg")
    (tmp_path / "bad.wav").write_text("no sound")
    output = tmp_path / "out.parquet"
    for flag, nulls in (("--no-scene", 0), ("--no-timestamps", 1)):
        code, _, err = command(
            *("embed", tmp_path, "-o", output, "-m", published_file(1), flag, "--force")
        )
        assert code == 1
        assert "bad.wav could not be read as sound" in err
        table = pyarrow.parquet.read_table(output)
        assert set(table.column("file").to_pylist()) == {"good.ogg"}
        assert table.column("timestamp_ms").null_count == nulls
        assert (table.num_rows == 1) == bool(nulls)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--jobs", 0), "jobs is 0; it must be at least 1."),
        (("--no-scene", "--no-timestamps"), "keep at least one"),
        (("--window-batch", 0), "window_batch is 0"),
        (("--device", "tpu9"), "is not available here"),
        (("--layer", 9), "layer is 9; this model has layers 1 to 2"),
    ],
)
def test_embed_refuses_wrong_options_and_writes_nothing(
    tmp_path, published_file, command, arguments, message
):
    code, out, err = command(
        *("embed", SOUNDS, "-o", tmp_path / "out", "-m", published_file(1), *arguments)
    )
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("embed", "missing.wav", "-o", "out", "-m", "gram-tiny-untraind"), "Did you mean"),
        (("embed", ".", "-o", "out"), "No sound file"),
        (("info", "missing.safetensors"), "There is no file or folder"),
        (("convert", "gram-tiny-untrained", "out.ckpt"), "must end in .safetensors"),
        (("info", "gram-tiny-untrained", "--heads", "3"), "takes no revision or heads"),
    ],
)
def test_errors_are_one_message_without_a_traceback(command, arguments, message):
    code, out, err = command(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


def test_an_error_of_a_process_is_its_message_alone():
    done = run("convert", "gram-tiny-untrained", "out.ckpt")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: out.ckpt must end in .safetensors, or be a folder.\n"


def test_a_wrong_command_line_exits_with_2(command):
    assert run("embed", "x.wav").returncode == 2
    assert command("embed", "x.wav", "-o", "out", "--stratgy", "mean")[0] == 2
    code, out, err = command("embed", "x.wav", "-o", "out", "--dtype", "float31")
    assert (code, out) == (2, "")
    assert "'float31' is not one of 'float32', 'bfloat16', 'float16', 'int8'" in err


def test_models_lists_the_registry(command):
    names = [entry["name"] for entry in json.loads(command("models", "--json")[1])]
    assert names == [entry.name for entry in gram_hear.list_models()]
    assert "gramm-tiny-untrained" in names
    table = command("models")[1]
    assert all(name in table for name in names)


def test_models_shows_the_channels_that_a_file_has(command):
    entries = json.loads(command("models", "--json")[1])
    channels = {each["name"]: (each["channels"], each["audio_channels"]) for each in entries}
    assert channels["gram-tiny-ambisonics"] == (7, 4)
    assert channels["gram-tiny"] == (2, 2)
    cells = {row.split()[0]: row.split()[1] for row in command("models")[1].splitlines()}
    assert (cells["gram-tiny-ambisonics"], cells["gram-tiny"]) == ("4", "2")


def test_info_reads_sizes_from_a_published_file(golden_path, command):
    path = golden_path("gramt_frame_7ch.safetensors")
    facts = json.loads(command("info", path, "--heads", 4, "--json")[1])
    expected = {
        "checkpoint_layout": "published",
        "audio_layout": "ambisonic",
        "audio_channels": 4,
        "feature_channels": 7,
        "patching": "frame",
        "width": 48,
        "depth": 3,
        "heads": 4,
        "mlp_width": 96,
        "hop_ms": 80.0,
        "embedding_size_raw": 384,
        "embedding_size_mean": 48,
    }
    assert {name: facts[name] for name in expected} == expected
    assert len(facts["sha256"]) == 64
    table = command("info", path, "--heads", 4)[1]
    assert "ambisonic" in table


def test_info_shows_what_gram_m_is_made_of(command):
    expected = {
        "family": "GRAM-M",
        "backbone": "mamba2",
        "width": 192,
        "depth": 24,
        "state": 128,
        "heads": 6,
        "head_width": 64,
        "expansion": 2,
        "convolution": 4,
        "inner_width": 384,
        "embedding_size_raw": 1536,
        "embedding_size_cls": None,
    }
    code, out, _ = command("info", "gramm-tiny-untrained", "--json")
    facts = json.loads(out)
    assert code == 0
    assert {name: facts[name] for name in expected} == expected
    assert facts["scan"] == find_kernels().description
    assert "mlp_width" not in facts
    code, out, _ = command("info", "gramm-tiny-untrained")
    lines = [re.split("  +", line) for line in out.splitlines()]
    for name, value in (expected | {"scan": facts["scan"]}).items():
        assert [name.replace("_", " "), "-" if value is None else str(value)] in lines


def test_convert_keeps_the_numbers_and_the_decoder(tmp_path, golden_path, golden_audio, command):
    source = golden_path("gramt_frame_2ch_lightning.ckpt")
    for output, option in ((tmp_path / "one.safetensors", ["-o"]), (tmp_path / "folder", [])):
        code, out, err = command("convert", source, *option, output, "--heads", 4)
        assert code == 0, err
        assert out.strip() == str(output)
        facts = json.loads(command("info", output, "--json")[1])
        assert facts["checkpoint_layout"] == "gram-hear"
        assert facts["decoder_parameters"] > 0
        before = gram_hear.load_model(source, heads=4)
        after = gram_hear.load_model(output)
        audio = golden_audio(2)
        assert gram_hear.get_scene_embeddings(audio, before).equal(
            gram_hear.get_scene_embeddings(audio, after)
        )


def test_convert_refuses_to_overwrite_and_can_leave_out_the_decoder(
    tmp_path, published_file, command
):
    output = tmp_path / "model.safetensors"
    output.write_bytes(b"precious")
    code, _, err = command("convert", published_file(2), output)
    assert code == 1
    assert "--force" in err
    assert output.read_bytes() == b"precious"
    assert command("convert", published_file(2), output, "--force", "--encoder-only")[0] == 0
    assert json.loads(command("info", output, "--json")[1])["decoder"] is None


@pytest.mark.parametrize("suffix", ["", ".parquet"])
def test_embed_says_what_is_not_there_at_the_end(
    tmp_path, published_file, command, monkeypatch, suffix
):
    output = tmp_path / f"out{suffix}"
    finish, finished = npz.PartWriter.finish, []

    def finish_and_remove(self, done):
        finish(self, done)
        finished.append(self.file.output)
        if len(finished) == 3:
            shutil.rmtree(self.file.output.parent)

    monkeypatch.setattr(npz.PartWriter, "finish", finish_and_remove)
    code, _, err = command("embed", SOUNDS, "-o", output, "-m", published_file(1))
    assert code == 1
    assert f"2 of 5 files are embedded in {output}." in err
    assert "3 failed:\n" in err
    for path in finished[:3]:
        assert f"{path} was removed after it was done. Run the same command again" in err
    monkeypatch.undo()
    code, out, err = command("embed", SOUNDS, "-o", output, "-m", published_file(1))
    assert (code, len(out.splitlines())) == (0, 3)
    assert f"5 of 5 files are embedded in {output}." in err


def test_embed_counts_what_it_leaves_out(tmp_path, published_file, command):
    shutil.copy(SOUNDS / "mono_impacts.ogg", tmp_path / "good.OGG")
    for name in ("a.m4a", "b.txt", "c.txt"):
        (tmp_path / name).touch()
    code, _, err = command("embed", tmp_path, "-o", tmp_path / "out", "-m", published_file(1))
    assert code == 0
    assert "1 file (.m4a 1) left out" in err
    assert "2 files (.txt 2) left out" in err
    assert "1 of 1 files are embedded" in err


def test_embed_says_that_an_output_cannot_be_written(tmp_path, published_file, command):
    (tmp_path / "taken").write_text("a file")
    output = tmp_path / "taken" / "out"
    code, out, err = command("embed", SOUNDS, "-o", output, "-m", published_file(1))
    assert (code, out) == (1, "")
    assert "could not be written" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("fails", [False, True])
def test_the_bar_of_a_step_that_fails_vanishes(capsys, fails):
    with suppress(OptionError), progress_bar("make sounds", "files") as move:
        move(1, 2)
        if fails:
            raise OptionError("bad")
    shown = capsys.readouterr().err
    assert shown == "" if fails else "make sounds" in shown
