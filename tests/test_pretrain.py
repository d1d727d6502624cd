"""``python -m gram_hear.pretrain``: trains, stops, resumes, is seen, and refuses what is wrong."""

import dataclasses
import inspect
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import slurm
import torch
import yaml
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from packed import encoded, npy, write_tar
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch.utils.data import DataLoader
from typer.testing import CliRunner

import gram_hear
from gram_hear.commands.gram_hear.app import app
from gram_hear.errors import AudioError, OptionError
from gram_hear.jobs.locks import locked
from gram_hear.pretrain import callbacks, cli, datamodule, module, pools, stopping, trust
from gram_hear.pretrain.__main__ import _load, main
from gram_hear.pretrain.callbacks import Curves, Pictures
from gram_hear.pretrain.checkpoints import read_best
from gram_hear.pretrain.curve_file import CurveFile, read_curves
from gram_hear.pretrain.module import Pretraining
from gram_hear.pretrain.samples import SampleSet

RATE = 32000
TINY = {
    "model.depth": 1,
    "model.decoder_depth": 1,
    "model.warmup": 50,
    "data.clean_fraction": 0.0,
    "data.seconds": 1.0,
    "data.clip_frames": 201,
    "data.batch": 4,
    "data.windows": 2,
    "data.workers": 0,
    "data.validation_batches": 1,
    "data.validate_every": 100,
    "checkpoints.every": 100,
    "trainer.accelerator": "cpu",
    "trainer.log_every_n_steps": 1,
    "trainer.max_steps": 6,
    "trainer.default_root_dir": "run",
}
NAMES = [
    f"{family}-{layout}{time_}"
    for family in ("gramt", "gramm")
    for layout in ("mono", "binaural", "ambisonic")
    for time_ in ("", "-time")
]
TOYS = ["tiny", "tiny-mono", "tiny-ambisonic", "tiny-time", "tiny-gramm"]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Data in the published layouts: flac, RIRs and noise in WebDataset tars."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)

    def noise(*shape):
        return generator.standard_normal(shape, dtype=np.float32)

    def tones(seconds, rate):
        t = np.arange(round(seconds * rate)) / rate
        return 0.3 * np.sin(2 * np.pi * t * generator.uniform(200, 4000)) * np.exp(-3 * t)

    clips = {f"{i}.flac": encoded(tones(0.6 + 0.1 * i, 16000), 16000) for i in range(6)}
    write_tar(folder / "audioset" / "000.tar", clips)
    noises = {f"{i}.npy": npy(noise(20000 + 20000 * i)) for i in range(3)}
    write_tar(folder / "wham" / "000.tar", noises)
    for layout, channels in {"binaural": 2, "ambisonic": 4}.items():
        for split in ("train", "test"):
            shape, decay = (3, channels, 2000), np.exp(-np.arange(2000, dtype=np.float32) / 300)
            rirs = {f"{i}.npy": npy(noise(*shape) * decay) for i in range(3)}
            write_tar(folder / layout / split / "000.tar", rirs)
    return folder


def published(data, layout="binaural"):
    return {
        "data.clips": data / "audioset",
        "data.rirs": data / layout,
        "data.noises": data / "wham",
    }


def arguments(config, options, *more, command="fit"):
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [command, "--config", config, *given, *more]


@pytest.fixture
def fit(tmp_path, monkeypatch, data):
    """Return a function that trains in this process: (config, *more, **options) -> exit code.

    Its pictures are empty; those of :func:`whole` are drawn.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_NAME", raising=False)
    empty = (b"", np.zeros((1, 1, 3), dtype=np.uint8))
    monkeypatch.setattr(callbacks, "reconstruction_figure", lambda *arguments: None)
    monkeypatch.setattr(callbacks, "rasterise", lambda figure: empty)

    def run(*more, config="tiny", base=None, command="fit", **options):
        base = TINY | published(data) if base is None else base
        options = base | {name.replace("__", "."): value for name, value in options.items()}
        given = arguments(config, options, *more, command=command)
        monkeypatch.setattr(sys, "argv", ["pretrain", *given])
        return cli.run()

    return run


def curve(folder, tag):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars(tag)}
    return dict(sorted(found.items()))  # files of one second come in the order of their names


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(one, other):
    """That two checkpoints are equal to the bit: weights, optimizer, schedule and position."""
    for key in ("state_dict", "lr_schedulers", "global_step", "PretrainingData"):
        assert same(one[key], other[key]), key
    for here, there in zip(one["optimizer_states"], other["optimizer_states"], strict=True):
        assert same(here, there)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def stop_at(monkeypatch, step, number=signal.SIGTERM):
    """Have this process signalled in the midst of training."""
    on_step = Curves.on_step

    def patched(self, trainer, module, now):
        on_step(self, trainer, module, now)
        if now == step:
            signal.raise_signal(number)

    monkeypatch.setattr(Curves, "on_step", patched)


# --- configs --------------------------------------------------------------------------------


def test_all_configs_are_shipped():
    assert sorted(path.stem for path in cli.CONFIGS.glob("*.yaml")) == sorted(NAMES + TOYS)


@pytest.mark.parametrize("name", NAMES)
def test_published_configs_are_the_published_recipe(name):
    found = yaml.safe_load((cli.CONFIGS / f"{name}.yaml").read_text())
    model, data, trainer = found["model"], found["data"], found["trainer"]
    family, layout = name.split("-")[:2]
    time_patches, mono = name.endswith("-time"), layout == "mono"
    assert model == {
        "layout": layout,
        "size": "base",
        "patching": "time" if time_patches else "frame",
        "backbone": "transformer" if family == "gramt" else "mamba2",
        "log_floor": 1e-6 if layout == "ambisonic" else 1e-5,
        "window_fill": "silence",
        "learning_rate": 2e-4,
        "betas": [0.9, 0.95],
        "weight_decay": 0.01,
        "warmup": 10_000,
    }
    assert (data["seconds"], data["level"], data["snr"]) == (10, -14, [5, 40])
    assert (data["windows"], data["clip_frames"]) == (16, 1024)
    assert data["masked"] == (80 if time_patches else 160)
    assert data["batch"] == (96 if family == "gramt" else 32)
    assert data["clean_fraction"] == (1 if mono else 0)
    assert (trainer["max_steps"], trainer["gradient_clip_val"]) == (500_000, 5)
    assert trainer["default_root_dir"] == f"runs/{name}"


@pytest.mark.parametrize("name", NAMES + TOYS)
def test_shipped_configs_are_understood(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pretrain", "fit", "--config", name, "--print_config"])
    with pytest.raises(SystemExit) as leaving:
        cli.run()
    assert leaving.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load((cli.CONFIGS / f"{name}.yaml").read_text())
    for section, values in given.items():
        assert {key: shown[section][key] for key in values} == values
    assert shown["data"]["clips"] is None  # the defaults are shown too


def test_configs_are_found_here_first_then_among_the_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.find_config("tiny") == str(cli.CONFIGS / "tiny.yaml")
    (tmp_path / "tiny.yaml").write_text("model: {size: tiny}")
    assert cli.find_configs(["fit", "--config", "tiny"]) == ["fit", "--config", "tiny.yaml"]
    assert cli.find_configs(["fit", "--config=tiny"]) == ["fit", "--config=tiny.yaml"]
    assert cli.find_configs(["fit", "-c", "tiny.yaml"])[-1] == "tiny.yaml"


def test_the_command_and_the_toy_config_may_be_left_out():
    toy = ["fit", "--config", "tiny"]
    assert cli.complete([]) == toy
    assert cli.complete(["--ckpt_path", "last"]) == [*toy, "--ckpt_path", "last"]
    assert cli.complete(["--config=mine"]) == ["fit", "--config=mine"]
    assert cli.complete(["--help"]) == ["--help"]
    assert cli.complete(["fit", "--config", "mine"]) == ["fit", "--config", "mine"]


def test_unknown_configs_and_keys_are_errors(fit, tmp_path, capsys):
    assert fit(config="gramt-binural") == 1
    assert "Did you mean 'gramt-binaural'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as leaving:
        fit("--data.window", "3")
    assert leaving.value.code == 2
    assert "data.window" in capsys.readouterr().err
    with pytest.raises(SystemExit) as leaving:  # as of a pattern that was not quoted
        fit("--data.clips", "000.tar", "001.tar")
    assert leaving.value.code == 2
    assert "001.tar belongs to no option: quote {000..003}" in capsys.readouterr().err
    (tmp_path / "mine.yaml").write_text("model: {sise: tiny}")
    with pytest.raises(SystemExit) as leaving:
        fit(config="mine")
    assert leaving.value.code == 2
    assert "sise" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gramt-binaural", "gramm-ambisonic-time", "gramt-mono"])
def test_published_configs_start_on_published_data(fit, data, name):
    layout = name.split("-")[1]
    base = published(data, layout) if layout != "mono" else {"data.clips": data / "audioset"}
    smaller = {"model.depth": 1, "model.decoder_depth": 1, "data.windows": 1, "data.workers": 0}
    options = base | smaller | {"data.batch": 2, "trainer.accelerator": "cpu"}
    assert fit("--trainer.fast_dev_run", "true", config=name, base=options) == 0


# --- training -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def whole(tmp_path_factory, data):
    """The folder of a run of six steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("alone")
    options = TINY | published(data) | {"data.validate_every": 3, "checkpoints.keep_every": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["pretrain", *arguments("tiny", options)])
        assert cli.run() == 0
    return folder / "run"


def test_a_run_is_seen(whole):
    loss, validation = curve(whole, "train/loss"), curve(whole, "validation/loss")
    assert sorted(loss) == [1, 2, 3, 4, 5, 6]
    assert len(validation) == 2
    assert loss[6] < loss[1]
    assert min(validation.values()) == list(validation.values())[-1]
    rates = curve(whole, "train/learning_rate")
    np.testing.assert_allclose(list(rates.values()), 1e-3 * np.arange(1, 7) / 50, rtol=1e-5)
    assert all(norm > 0 for norm in curve(whole, "train/gradient_norm").values())
    hours, windows = (
        curve(whole, f"speed/{name}") for name in ("audio_hours_per_hour", "windows_per_second")
    )
    np.testing.assert_allclose(
        list(windows.values()), 2 * np.array(list(hours.values())), rtol=1e-5
    )
    assert all(0 <= share <= 1 for share in curve(whole, "speed/data_wait").values())
    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    assert [image.step for image in events.Images("validation/reconstruction")] == [3, 6]
    pictures = sorted(path.name for path in (whole / "pictures").iterdir())
    assert pictures == ["step-000000003.png", "step-000000006.png"]


def test_curves_are_a_table_too(whole):
    rows = read_curves(whole / "curves.csv")
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    for tag in set(rows[0]) - {"step", "time"}:
        logged = curve(whole, tag)
        written = {int(row["step"]): float(row[tag]) for row in rows if row[tag]}
        assert written == pytest.approx(logged)
    assert [row["step"] for row in rows if row["validation/loss"]] == ["3", "6"]
    assert float(rows[-1]["speed/hours_to_go"]) == 0


def test_a_table_is_gone_on_with_after_the_step_of_its_checkpoint(tmp_path):
    path = tmp_path / "curves.csv"
    table = CurveFile(path, ["loss", "speed"], 0)
    for step in (1, 2, 3):
        table.add(step, {"loss": step / 10})
        assert [row["step"] for row in read_curves(path)] == [str(n + 1) for n in range(step)]
    with open(path, "a") as file:
        file.write("4,0.")  # as by a crash of the machine
    table = CurveFile(path, ["loss", "rate"], 2)
    table.add(3, {"rate": 5})
    assert path.read_text() == "step,loss,rate\n1,0.1,\n2,0.2,\n3,,5\n"
    with pytest.raises(ValueError, match="unknown"):
        table.add(4, {"unknown": 1})


@pytest.mark.parametrize(
    "damage", ["x" * 200_000, f"{'9' * 5000},b", '2,"b', "\0\0", "²,b", "-1,b", ",,,,,"]
)
def test_a_damaged_table_is_gone_on_with(tmp_path, damage):
    path = tmp_path / "curves.csv"
    path.write_text(f"step,time\n1,a\n{damage}\n3,c\n4,d", encoding="utf-8")
    CurveFile(path, ("time",), 5)
    found = {row["step"]: row["time"] for row in read_curves(path)}
    assert (found["1"], found["3"]) == ("a", "c")
    assert "4" not in found


@pytest.mark.parametrize("text", ["NaN", "null", "[" * 100_000, '"1"}x', "1e999"])
def test_a_damaged_note_of_the_best_checkpoint_is_none(tmp_path, text):
    (tmp_path / "best.json").write_text(f'{{"validation/loss": {text}}}')
    assert read_best(tmp_path) is None


def test_a_run_shows_its_options_in_tensorboard(whole):
    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()

    def content(tag):
        metadata = events.SummaryMetadata(f"_hparams_/{tag}")
        return plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)

    shown = content("session_start_info").session_start_info.hparams
    assert shown["data.windows"].number_value == 2
    assert shown["model.layout"].string_value == "binaural"
    (metric,) = content("experiment").experiment.metric_infos
    assert metric.name.tag == "validation/loss"


def test_without_a_logger_there_is_still_a_table(fit, tmp_path):
    assert fit(trainer__logger="false", trainer__max_steps=1) == 0
    assert [row["step"] for row in read_curves(tmp_path / "run" / "curves.csv")] == ["1"]
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_other_loggers_get_the_options_too(fit, tmp_path):
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "logs"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    assert fit("--config", "mine", trainer__max_steps=1) == 0
    (options,) = tmp_path.rglob("hparams.yaml")
    assert yaml.safe_load(options.read_text())["data.windows"] == 2


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.9, "1 min"), (40, "40 s"), (3600, "1 h 0 min"), (205_000, "2 d 8 h")],
)
def test_times_to_go(seconds, said):
    assert callbacks.spoken_time(seconds) == said


def test_the_time_to_go_leaves_out_the_first_step(fit, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: clock[0])

    def work(self, trainer, pl_module, batch, batch_idx):
        clock[0] += 100 if batch_idx == 0 else 7

    monkeypatch.setattr(Pictures, "on_train_batch_start", work)
    assert fit(trainer__log_every_n_steps=2) == 0
    said = capsys.readouterr().err
    assert "The first step of this run took 2 min." in said
    assert "0.0187 steps/s, 0.1 windows/s, 0 % of the time waiting for data, 28 s to go" in said
    assert "0.143 steps/s, 1.1 windows/s, 0 % of the time waiting for data, 14 s to go" in said
    assert " to go" not in said.partition("step 6 of 6")[2]


# --- validating -----------------------------------------------------------------------------


def test_validate_prints_what_training_did(fit, whole, tmp_path, capsys, data):
    loss = curve(whole, "validation/loss")
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    options = {"trainer__default_root_dir": whole, "data__clips": "away"}  # not needed
    options |= {"data__validation_clips": data / "audioset", "trainer__max_steps": -1}
    for name in ("last", "best"):
        assert fit("--ckpt_path", name, command="validate", **options) == 0
        assert capsys.readouterr().out == f"step 6: validation loss {loss[6]:.7g}\n"
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_kept_checkpoint_and_a_model_are_validated_too(fit, whole, capsys, data):
    kept = str(whole / "checkpoints" / "step-000000004.ckpt")
    assert fit("--ckpt_path", kept, command="validate") == 0
    step, loss = re.fullmatch(
        r"step (\d): validation loss (\S+)\n", capsys.readouterr().out
    ).groups()
    losses = curve(whole, "validation/loss")
    assert step == "4"
    assert losses[6] < float(loss) < losses[3]
    assert fit(command="validate", model__init=whole / "checkpoints" / "last.ckpt") == 0
    assert capsys.readouterr().out == f"step 0: validation loss {losses[6]:.7g}\n"


@pytest.mark.slow
def test_validate_says_what_is_wrong(fit, whole, capsys, tmp_path):
    last = ["--ckpt_path", str(whole / "checkpoints" / "last.ckpt")]
    for given, message in (
        ([], "Give --ckpt_path best, --ckpt_path last or"),
        (["--ckpt_path", "best"], "There is no checkpoint run/checkpoints/best.ckpt to validate"),
        ([*last, "--model.depth", "2"], "depth: 1 there, 2 here"),
        ([*last, "--data.validation_rirs", "nowhere"], "nowhere"),
    ):
        assert message in wrong(fit, capsys, *given, command="validate")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_sounds_that_cannot_be_read_are_counted(fit, data, whole, capsys, tmp_path):
    assert set(curve(whole, "data/skipped").values()) == {0}
    clips = tmp_path / "clips"
    for tar in (data / "audioset").iterdir():
        if tar.suffix == ".tar":
            clips.mkdir()
            (clips / tar.name).write_bytes(tar.read_bytes())
    (clips / "broken.flac").write_bytes(b"no sound")  # one of seven, at least once in 24
    assert fit(data__clips=clips) == 0
    counts = list(curve(tmp_path / "run", "data/skipped").values())
    assert counts == sorted(counts)
    assert counts[-1] in (3, 4)  # 24 samples are 3 epochs of 7, and 3 more
    assert f"{counts[-1]:.0f} sounds or rooms could not be read" in capsys.readouterr().err


def test_checkpoints_are_kept(whole):
    names = {path.name for path in (whole / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "best.ckpt", "best.json", "step-000000004.ckpt"}
    steps = {n: load(whole / "checkpoints" / n)["global_step"] for n in names if n.endswith("t")}
    assert steps == {"last.ckpt": 6, "best.ckpt": 6, "step-000000004.ckpt": 4}
    best = json.loads((whole / "checkpoints" / "best.json").read_text())
    assert best["validation/loss"] == pytest.approx(curve(whole, "validation/loss")[best["step"]])
    assert load(whole / "checkpoints" / "last.ckpt")["PretrainingData"]["position"] == 24


def test_a_checkpoint_converts_and_embeds(whole, tmp_path):
    last, model = whole / "checkpoints" / "last.ckpt", tmp_path / "model.safetensors"
    done = CliRunner().invoke(app, ["convert", str(last), str(model)], catch_exceptions=False)
    assert done.exit_code == 0
    loaded = gram_hear.load_model(model)
    assert loaded.config.front_end.log_floor == 1e-5
    assert loaded.config.window_fill == "silence"
    weights = load(last)["state_dict"]
    trained = weights["autoencoder.patches.weight"]
    assert torch.equal(loaded.gram.patches.weight, trained)
    audio = torch.randn(1, 2, 30000, generator=torch.Generator().manual_seed(0)) / 8
    scene = gram_hear.get_scene_embeddings(audio, loaded)
    assert torch.equal(scene, gram_hear.get_scene_embeddings(audio, gram_hear.load_model(last)))
    assert scene.isfinite().all()


def test_the_mask_token_is_trained(whole):
    four, six = (load(whole / "checkpoints" / n) for n in ("step-000000004.ckpt", "last.ckpt"))
    name = "autoencoder.decoder.mask_token"
    assert not torch.equal(four["state_dict"][name], six["state_dict"][name])


# --- stopping and resuming ------------------------------------------------------------------


@pytest.mark.slow
def test_stopped_at_a_validated_step_the_validation_is_kept(fit, whole, tmp_path, monkeypatch):
    options = {"data__validate_every": 3, "checkpoints__keep_every": 4}
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert fit(**options) == 143
    assert fit("--ckpt_path", "last", **options) == 0
    assert curve(tmp_path / "run", "validation/loss") == curve(whole, "validation/loss")
    assert (tmp_path / "run" / "pictures" / "step-000000003.png").exists()


def test_a_run_that_ends_early_is_saved(fit, tmp_path, monkeypatch):
    def stop(self, trainer, module, step):
        trainer.should_stop = step == 2  # as Lightning does when trainer.max_time is over

    monkeypatch.setattr(Curves, "on_step", stop)
    assert fit() == 0
    assert load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2


def test_a_finished_run_says_so(fit, whole, capsys, tmp_path):
    last = whole / "checkpoints" / "last.ckpt"
    assert fit("--ckpt_path", str(last), data__validate_every=3) == 0
    assert "has all 6 steps of this run already; nothing was done" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_end_of_a_run_says_what_to_do_with_it(fit, capsys):
    assert fit(trainer__max_steps=1) == 0
    said = capsys.readouterr().err
    assert "Trained 1 steps; run/checkpoints/last.ckpt is saved" in said
    assert "gram-hear convert run/checkpoints/last.ckpt -o model.safetensors" in said


def test_best_alone_is_not_overwritten_by_a_run_that_begins_anew(fit, capsys, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "best.ckpt").write_bytes(b"three weeks of work")
    assert fit("--ckpt_path", "last") == fit() == 1
    assert capsys.readouterr().err.count("Go on with it: --ckpt_path best") == 2
    assert (folder / "best.ckpt").read_bytes() == b"three weeks of work"


@pytest.mark.parametrize(
    "option", [{"trainer__max_epochs": 0}, {"trainer__max_time": "00:00:00:00"}]
)
def test_a_run_without_a_step_says_so(fit, capsys, tmp_path, option):
    assert fit(**option) == 1
    assert "No step was made: trainer.max_time" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_ended_in_the_midst_of_a_step_and_resumed(fit, whole, tmp_path, monkeypatch):
    options = {"data__batch_per_device": 1, "data__validate_every": 3}

    def stop(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = batch_idx == 5  # of the 24: as trainer.max_time does

    with monkeypatch.context() as patch:
        patch.setattr(Pictures, "on_train_batch_end", stop)
        assert fit(**options) == 0
    assert load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 1
    assert fit("--ckpt_path", "last", **options) == 0
    found, expected = (list(curve(f, "train/loss").values()) for f in (tmp_path / "run", whole))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_curves_of_the_last_step_alone(fit, tmp_path):
    assert fit(trainer__max_steps=2, trainer__log_every_n_steps=0) == 0
    assert [*curve(tmp_path / "run", "train/loss")] == [2]


def test_validation_on_clips_that_are_learned_from_is_said(fit, capsys):
    assert fit("--trainer.fast_dev_run", "true", model__layout="mono", data__clean_fraction=1) == 0
    assert "loss will be of clips that are learned from" in capsys.readouterr().err


def test_a_run_says_where_its_first_weights_are_from(fit, capsys):
    options = {"model__depth": 6, "model__init": "gram-tiny"}
    assert fit("--trainer.fast_dev_run", "true", **options) == 0
    said = capsys.readouterr().err
    assert "Encoder from gram-tiny; its decoder is not in that file" in said
    assert "nothing is written" in said


def test_a_picture_that_cannot_be_written_is_no_traceback(fit, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gram_hear.pretrain.callbacks.write_whole", full)
    assert fit(data__validate_every=2) == 1
    assert "No space left on device. What was saved is kept" in capsys.readouterr().err


@pytest.fixture
def stopped(fit, tmp_path, monkeypatch, capsys):
    """Return a function that stops a run by a signal at its second step; it returns the folder."""

    def run(number, **options):
        before = signal.getsignal(number)
        with monkeypatch.context() as patch:
            stop_at(patch, 2, number)
            assert fit("--ckpt_path", "last", **options) == 128 + number
        assert signal.getsignal(number) is before
        assert "Stopped after step 2" in capsys.readouterr().err
        assert load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2

    return run


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_each_signal_stops_a_run(stopped, number):
    stopped(number)


@pytest.mark.slow
def test_stopped_and_resumed_is_the_same_to_the_bit(fit, stopped, whole, tmp_path):
    options = {"data__validate_every": 3, "checkpoints__keep_every": 4}
    stopped(signal.SIGTERM, **options)
    assert fit("--ckpt_path", "last", data__workers=2, **options) == 0  # workers change nothing
    names = ("last.ckpt", "best.ckpt", "step-000000004.ckpt")
    for name in names:
        assert_same(*(load(f / "checkpoints" / name) for f in (tmp_path / "run", whole)))
    assert curve(tmp_path / "run", "train/loss") == curve(whole, "train/loss")
    assert list(curve(tmp_path / "run", "validation/loss").values()) == list(
        curve(whole, "validation/loss").values()
    )


def was_saved_at(folder, step):
    """Whether last.ckpt of a run is whole, and of this step."""
    return load(folder / "run" / "checkpoints" / "last.ckpt")["global_step"] == step


def test_further_signals_while_it_saves_do_not_stop_the_saving(fit, tmp_path, monkeypatch, capfd):
    save = torch.save

    def signalled(content, file):
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.raise_signal(number)
        save(content, file)

    monkeypatch.setattr(torch, "save", signalled)
    stop_at(monkeypatch, 2)
    assert fit() == 143
    assert was_saved_at(tmp_path, 2)
    assert capfd.readouterr().err.count("SIGTERM: the run stops after this step") == 1


@pytest.mark.slow
def test_ctrl_c_again_ends_a_run_at_once_but_not_within_a_checkpoint(
    fit, tmp_path, monkeypatch, capsys
):
    save = torch.save

    def interrupted(content, file):
        signal.raise_signal(signal.SIGINT)
        save(content, file)

    stop_at(monkeypatch, 2, signal.SIGINT)
    monkeypatch.setattr(stopping, "AGAIN", -1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        assert fit() == 130
    assert was_saved_at(tmp_path, 2)

    def pressed_twice(self, trainer, pl_module, batch, batch_idx):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Pictures, "on_train_batch_start", pressed_twice)
    assert fit("--ckpt_path", "last") == 130
    assert was_saved_at(tmp_path, 2)
    assert "Interrupted, without saving" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["first step", "validation", "loading"])
def test_whenever_it_is_asked_to_stop_a_run_is_saved(fit, whole, tmp_path, monkeypatch, moment):
    def ask(process=None):
        os.kill(process or os.getpid(), signal.SIGTERM)

    def patched(function):
        return lambda *arguments: (ask(), function(*arguments))[1]

    if moment == "loading":  # its processes have begun, and do not ignore signals yet
        leave = datamodule.leave_signals
        monkeypatch.setattr(
            datamodule, "leave_signals", lambda: (ask(), ask(os.getppid()), leave())
        )
    else:
        name = "training_step" if moment == "first step" else "validation_step"
        monkeypatch.setattr(Pretraining, name, patched(getattr(Pretraining, name)))
    options = {"data__workers": 1} if moment == "loading" else {}
    assert fit(data__validate_every=3, **options) == 143
    assert was_saved_at(tmp_path, 3 if moment == "validation" else 1)
    if moment == "validation":
        assert curve(tmp_path / "run", "validation/loss")[3] == curve(whole, "validation/loss")[3]


@pytest.mark.parametrize(
    ("where", "code", "said"),
    [
        ("setup", 143, "Interrupted, without saving"),
        ("train_dataloader", 143, "Stopped at step 0, as it began"),
    ],
)
def test_asked_to_stop_before_its_first_step_a_run_ends(
    fit, tmp_path, monkeypatch, capsys, where, code, said
):
    prepare = getattr(datamodule.PretrainingData, where)

    def asked(self, **arguments):
        signal.raise_signal(signal.SIGTERM)
        return prepare(self, **arguments)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(datamodule.PretrainingData, where, asked)
    assert fit() == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_loading_process_that_pytorch_did_not_stop_is_ended_with_the_program(monkeypatch):
    registered = []
    monkeypatch.setattr("atexit.register", registered.append)
    _load()
    assert registered[-1] is stopping.end_children
    handler = signal.getsignal(signal.SIGCHLD)
    loader = DataLoader(
        range(2),
        num_workers=1,
        persistent_workers=True,
        worker_init_fn=datamodule._leave_signals,
    )
    samples = iter(loader)
    try:
        next(samples)
        (process,) = samples._workers
        process.terminate()
        process.join(0.1)
        assert process.is_alive()  # where Python would wait for it at exit
        stopping.end_children()
        process.join(10)
        assert process.exitcode == -signal.SIGKILL
    finally:
        signal.signal(signal.SIGCHLD, handler)


def test_under_slurm_no_other_checkpoint_is_written(fit, tmp_path, monkeypatch):
    slurm = {"NTASKS": "1", "JOB_NAME": "gramt", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    (environment,) = cli._cluster()
    assert not environment.auto_requeue
    with monkeypatch.context() as patch:  # torchrun inside a job counts its own processes
        patch.setenv("TORCHELASTIC_RUN_ID", "gramt")
        assert cli._cluster() == []
    stop_at(monkeypatch, 2, signal.SIGUSR1)
    assert fit(trainer__devices=1, trainer__num_nodes=1) == 128 + signal.SIGUSR1
    assert sorted(path.name for path in (tmp_path / "run").rglob("*.ckpt")) == ["last.ckpt"]


@pytest.mark.slow
def test_accumulated_batches_and_resuming_with_others(fit, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert fit(data__batch_per_device=2, data__validate_every=3) == 143
    assert fit("--ckpt_path", "last", data__batch_per_device=1, data__validate_every=3) == 0
    for tag in ("train/loss", "validation/loss"):
        found, expected = (list(curve(f, tag).values()) for f in (tmp_path / "run", whole))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_resuming_from_any_checkpoint_and_further(fit, whole, tmp_path):
    path = whole / "checkpoints" / "best.ckpt"
    assert fit("--ckpt_path", str(path), trainer__max_steps=8, data__validate_every=4) == 0
    assert sorted(curve(tmp_path / "run", "train/loss")) == [7, 8]
    assert load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 8
    assert len(curve(tmp_path / "run", "validation/loss")) == 1


@pytest.mark.slow
def test_resuming_with_another_learning_rate_and_length(fit, whole, tmp_path):
    path = whole / "checkpoints" / "step-000000004.ckpt"
    options = {"model__learning_rate": 1e-4, "model__warmup": 4, "trainer__max_steps": 12}
    assert fit("--ckpt_path", str(path), **options) == 0
    rates = curve(tmp_path / "run", "train/learning_rate")
    expected = {step + 1: 5e-5 * (1 + math.cos(math.pi * (step - 4) / 8)) for step in range(4, 12)}
    assert rates == pytest.approx(expected)
    (group,) = load(tmp_path / "run" / "checkpoints" / "last.ckpt")["optimizer_states"][0][
        "param_groups"
    ]
    assert group["lr"] == pytest.approx(0, abs=1e-12)  # of the step after the last


@pytest.mark.slow
def test_a_process_that_is_terminated_saves_and_ends_cleanly(data, tmp_path):
    options = TINY | published(data) | {"trainer.max_steps": 100_000, "data.workers": 1}
    command = [sys.executable, "-m", "gram_hear.pretrain", *arguments("tiny", options)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("step 2 "):
            os.killpg(process.pid, signal.SIGTERM)  # the loading process too, as clusters do
    assert process.wait(30) == 143
    assert "Stopped after step" in said[-1]
    assert "Traceback" not in "".join(said)
    saved = load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert saved["global_step"] >= 2
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


# --- several processes ----------------------------------------------------------------------


TWO = {"data.validate_every": 3, "pictures.every": 2, "trainer.strategy": "ddp"}


@pytest.fixture(scope="session")
def two(tmp_path_factory, data):
    """The folder of a run of six steps in two processes, which Lightning started."""
    folder = tmp_path_factory.mktemp("two")
    options = TINY | published(data) | TWO | {"trainer.devices": 2}
    command = [sys.executable, "-m", "gram_hear.pretrain", *arguments("tiny", options)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^process [01]: ready on .*, cpu; it waits", done.stderr, re.M)) == 2
    return folder / "run"


def agent(rank, nodes, per_node):
    """Return the beginning of a command that torchrun starts on one of some nodes."""
    port = str(29500 + os.getpid() % 2000)
    start = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes)]
    start += ["--nproc_per_node", str(per_node), "--node_rank", str(rank)]
    start += ["--master_addr", "127.0.0.1", "--master_port", port]
    return [*start, "-m", "gram_hear.pretrain"]


def assert_alike(folder, other):
    """That runs whose gradients were summed in another order have the same curves."""
    for tag in ("train/loss", "validation/loss", "train/gradient_norm"):
        found, expected = (list(curve(f, tag).values()) for f in (folder, other))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    saved = load(folder / "checkpoints" / "last.ckpt")
    assert saved["PretrainingData"]["position"] == 24


@pytest.mark.slow
def test_two_processes_learn_what_one_does(two, whole):
    assert_alike(two, whole)


@pytest.mark.slow
def test_two_nodes_of_torchrun_learn_what_one_process_does(data, whole, tmp_path):
    options = TINY | published(data) | TWO | {"trainer.devices": 1, "trainer.num_nodes": 2}
    processes = [
        subprocess.Popen(
            [*agent(rank, 2, 1), *arguments("tiny", options)],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert_alike(tmp_path / "run", whole)


@pytest.mark.slow
def test_terminated_with_torchrun_a_run_is_saved_and_nothing_hangs(data, tmp_path):
    options = TINY | published(data) | TWO | {"trainer.devices": 2, "trainer.max_steps": 100_000}
    log = tmp_path / "log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [*agent(0, 1, 2), *arguments("tiny", options)], cwd=tmp_path, stderr=file
        )
    wait_for(lambda: "step 2 of" in log.read_text() or process.poll() is not None)
    workers = children(process.pid)
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    time.sleep(0.1)
    process.terminate()  # it sends the workers SIGTERM once more
    assert process.wait(25) == 1  # torchrun's own, whatever its workers return
    said = log.read_text()
    assert "forcefully exiting" not in said
    assert said.count("Traceback") == 1  # torchrun's
    assert "Stopped after step" in said
    assert load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] >= 2
    wait_for(lambda: not any(os.path.exists(f"/proc/{worker}") for worker in workers))


def wait_for(condition, seconds=120):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def children(process):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True)
    return [int(each) for each in listed.stdout.split()]


@pytest.mark.slow
def test_a_killed_run_leaves_no_process(data, tmp_path):
    options = TINY | published(data) | {"trainer.max_steps": 100_000, "data.workers": 1}
    command = [sys.executable, "-m", "gram_hear.pretrain", *arguments("tiny", options)]
    log = tmp_path / "log"
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=tmp_path, stderr=file)
    wait_for(lambda: "step 1 of" in log.read_text() or process.poll() is not None)
    loading = children(process.pid)
    assert loading
    process.kill()
    process.wait()
    wait_for(lambda: not any(os.path.exists(f"/proc/{each}") for each in loading), 20)


# --- SLURM ----------------------------------------------------------------------------------

SCRIPT = Path(__file__).parent.parent / "docs" / "how-to" / "pretrain.sbatch"


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Return a function that runs the documented script: (when its time is up) -> code and log."""
    (tmp_path / "bin").mkdir()
    slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)

    def run(time_up, *options):
        monkeypatch.setenv("TIME_UP", time_up)
        code = subprocess.run(["sbatch", *options, str(SCRIPT)], check=False).returncode
        (log,) = tmp_path.glob("gramt-binaural-*.log")
        return code, log.read_text()

    return run


@pytest.mark.slow
def test_a_job_is_queued_again_until_its_run_is_complete(job, data, two, tmp_path):
    options = yaml.safe_load((cli.CONFIGS / "tiny.yaml").read_text())
    for name, value in (TINY | published(data) | TWO).items():
        section, option = name.split(".")
        options.setdefault(section, {})[option] = str(value) if isinstance(value, Path) else value
    options["trainer"] |= {"devices": "auto"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(options))
    code, log = job("step 2 of", "--nodes=2", "--ntasks-per-node=1")
    assert code == 0, log
    assert log.count("SIGUSR1: the run stops after this step") <= 1  # the other task may be first
    assert log.count("Stopped after step") == 1
    assert "Trained 6 steps" in log
    assert "Traceback" not in log
    for name in ("last.ckpt", "best.ckpt"):
        assert_same(*(load(f / "checkpoints" / name) for f in (tmp_path / "run", two)))
    found, expected = (read_curves(f / "curves.csv") for f in (tmp_path / "run", two))
    for name in ("step", "train/loss", "validation/loss", "train/gradient_norm"):
        assert [row[name] for row in found] == [row[name] for row in expected]


@pytest.mark.parametrize(("codes", "starts"), [("0", 1), ("1", 1), ("143", 1), ("138 138 0", 3)])
def test_only_a_job_whose_time_was_up_is_queued_again(job, tmp_path, codes, starts):
    given = " ".join(f"[ $n = {n} ] && exit {code};" for n, code in enumerate(codes.split()))
    slurm.write_program(
        tmp_path / "bin" / "python", f"echo start >> starts; n=$(($(wc -l < starts) - 1)); {given}"
    )
    code, _ = job("never", "--nodes=1", "--ntasks-per-node=1")
    assert code == int(codes.split()[-1])
    assert (tmp_path / "starts").read_text().count("start") == starts


# --- what goes wrong ------------------------------------------------------------------------


def wrong(fit, capsys, *more, **options):
    """Return the message of a run that fails, having left no checkpoint."""
    assert fit(*more, **options) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.partition("error: ")[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data__masked": 200}, "masked is 200 of 200 tokens"),
        ({"model__patching": "time"}, "masked is 160 of 100 tokens"),
        ({"data__clip_frames": 60}, "windows no longer than clip_frames"),
        ({"data__clips": "nowhere"}, "There is no folder or file nowhere"),
        ({"data__clips": ""}, "data.clips is empty"),
        ({"model__init": ""}, "model.init is empty"),
        ({"data__clips": "."}, "holds no clips"),
        ({"data__rirs": "."}, "holds no RIRs"),
        ({"model__layout": "ambisonic"}, "has binaural RIRs; ambisonic was asked for"),
        ({"model__layout": "mono"}, "Mono models learn from dry clips"),
        ({"model__betas": "[0.9,2]"}, "betas is [0.9, 2.0]"),
        ({"trainer__limit_train_batches": 0}, "limit_train_batches is 0"),
        ({"trainer__limit_train_batches": 2}, "limit_train_batches is 2; it would begin"),
        ({"trainer__overfit_batches": 1}, "overfit_batches is 1"),
        ({"data__batch_per_device": 0}, "data.batch_per_device is 0"),
        ({"trainer__accumulate_grad_batches": 3}, "accumulate_grad_batches is computed"),
        ({"trainer__max_steps": -1}, "max_steps is -1"),
        ({"trainer__gradient_clip_val": -1}, "gradient_clip_val is -1; it must be above 0"),
        ({"trainer__gradient_clip_algorithm": "value"}, "clipped by their norm"),
        ({"model__init": "nowhere.ckpt"}, "There is no file or folder nowhere.ckpt"),
        ({"trainer__accelerator": "quantum"}, "invalid accelerator name"),
        ({"checkpoints__every": 0}, "checkpoints.every is 0"),
        ({"pictures__every": 0}, "pictures.every is 0"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_step(fit, capsys, tmp_path, options, message):
    assert message in wrong(fit, capsys, **options)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_warnings_are_printed_as_by_the_other_commands(fit, capsys, tmp_path):
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "a.m4a").write_bytes(b"")
    assert fit(data__clips="sounds") == 1
    said = capsys.readouterr().err.splitlines()
    assert any(line.startswith("warning: sounds: 1 file (.m4a 1) left out") for line in said)
    assert not any("UserWarning" in line for line in said)


@pytest.mark.slow
def test_without_a_config_nothing_is_left_behind(fit, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pretrain", "fit"])
    assert main() == 1
    assert "max_steps is -1; the schedule needs it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"SLURM_NTASKS": "2"}, "Use `--ntasks-per-node=2` instead"),
        (
            {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"},
            "2 processes were started, and the trainer uses 1",
        ),
    ],
)
def test_slurm_that_does_not_fit_is_said(fit, capsys, monkeypatch, tasks, message):
    slurm = {"JOB_NAME": "gramt", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0"}
    for name, value in {f"SLURM_{k}": v for k, v in slurm.items()}.items() | tasks.items():
        monkeypatch.setenv(name, value)
    assert message in wrong(fit, capsys, trainer__devices=1, trainer__num_nodes=1)


def test_torchrun_that_does_not_fit_is_said(fit, capsys, monkeypatch):
    started = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "gramt"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    said = wrong(fit, capsys, trainer__devices=1)
    assert "2 processes were started" in said
    assert "--nproc_per_node as trainer.devices" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "message"),
    [("raise", "clip 9 cannot be read."), ("kill", "a process that loads data ended by itself")],
)
def test_what_goes_wrong_in_a_loading_process_is_one_line(
    fit, capsys, monkeypatch, failure, message
):
    draw = SampleSet.__getitem__

    def failing(self, i):
        if i == 9 and torch.utils.data.get_worker_info() is not None:
            if failure == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise AudioError("clip 9 cannot be read.")
        return draw(self, i)

    monkeypatch.setattr(SampleSet, "__getitem__", failing)
    said = wrong(fit, capsys, data__workers=1)
    assert said.startswith(message)
    assert said.count("\n") == 1


@pytest.mark.slow
def test_rooms_are_simulated_once_before_the_first_step(fit, capsys, tmp_path, monkeypatch):
    def simulated(room):  # in no time
        rng = np.random.default_rng(room)
        return SimpleNamespace(rirs=rng.standard_normal((3, 2, 99)).astype(np.float32))

    made = []
    monkeypatch.setattr(pools, "draw_room_and_scene", lambda room: made.append(room) or room)
    monkeypatch.setattr(pools, "tune", lambda room: room)
    monkeypatch.setattr(pools, "render", lambda room, layout, rate: simulated(room))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    base = TINY | {"data.rooms": 3, "data.noise_gain": "channel"}
    assert fit("--trainer.fast_dev_run", "true", base=base) == 0
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not (tmp_path / "run" / "simulated").exists()
    made.clear()
    capsys.readouterr()
    assert fit(base=base, trainer__max_steps=3) == 0
    said = capsys.readouterr().err
    assert re.search(r"(?s)Simulating \d rooms.*\n\d of \d rooms are simulated\..*\nstep 1", said)
    assert len(made) == len({tuple(room) for room in made})
    rooms = [path.name for path in (tmp_path / "run" / "simulated").glob("room-*")]
    assert len(rooms) == len(made)
    assert fit("--ckpt_path", "last", base=base, trainer__max_steps=4) == 0
    assert "Simulating" not in capsys.readouterr().err
    assert len(rooms) == len(made)
    kept = sorted(tmp_path.rglob("*"))
    assert fit("--ckpt_path", "last", command="validate", base=base) == 0
    assert sorted(tmp_path.rglob("*")) == kept


@pytest.mark.slow
def test_rooms_that_are_not_held_out_are_not_validated_on(fit, capsys, data):
    alone = data / "binaural" / "train"
    assert "data.validation_rirs" in wrong(fit, capsys, data__rirs=alone)
    rirs = {"data__rirs": alone, "data__validation_rirs": data / "binaural" / "test"}
    assert fit(trainer__max_steps=1, data__validate_every=1, **rirs) == 0


@pytest.mark.slow
def test_a_checkpoint_of_another_model_or_run_is_refused(fit, whole, capsys, tmp_path):
    last = ["--ckpt_path", str(whole / "checkpoints" / "last.ckpt")]
    said = wrong(fit, capsys, *last, model__depth=2)
    assert "depth: 1 there, 2 here. Give --model.depth 1." in said
    assert "seed: 0 there, 5 here" in wrong(fit, capsys, *last, data__seed=5)
    others = {"data__snr": "[0, 10]", "data__level": -20, "data__clean_fraction": 0.5}
    others |= {"data__clip_frames": 301, "data__noise_gain": "channel", "data__masks": "time"}
    said = wrong(fit, capsys, *last, **others)
    assert "snr: [5.0, 40.0] there, [0.0, 10.0] here" in said
    assert "level: -14.0 there, -20.0 here" in said
    assert "clean_fraction: 0.0 there, 0.5 here" in said
    assert "clip_frames: 201 there, 301 here" in said
    assert "noise_gain: scene there, channel here" in said
    assert "masks: random there, time here" in said
    assert "There is no checkpoint nowhere" in wrong(fit, capsys, "--ckpt_path", "nowhere")
    (tmp_path / "broken.ckpt").write_bytes(b"not a checkpoint")
    assert "not a whole checkpoint" in wrong(fit, capsys, "--ckpt_path", "broken.ckpt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "bare.ckpt")
    assert "--model.init" in wrong(fit, capsys, "--ckpt_path", "bare.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["PretrainingData"], None, "no checkpoint of a run"),  # or it would begin the data anew
        (["lr_schedulers"], None, "no checkpoint of a run"),
        (["PretrainingData", "position"], None, "at sample None of the stream"),
        (["PretrainingData", "position"], 6, "at sample 6 of the stream, in batches of 4"),
        (
            ["state_dict", "autoencoder.patches.weight"],
            None,
            "1 tensor .*autoencoder.patches.weight",
        ),
        (["state_dict", "autoencoder.patches.weight"], torch.zeros(3), "1 tensor .*another shape"),
        (["state_dict", "other"], torch.zeros(3), "1 tensor .*such as other"),
    ],
)
def test_a_checkpoint_without_a_part_is_refused(fit, whole, capsys, tmp_path, path, value, message):
    content = load(whole / "checkpoints" / "last.ckpt")
    *outer, name = path
    part = content
    for key in outer:
        part = part[key]
    part.pop(name, None)
    if value is not None:
        part[name] = value
    torch.save(content, tmp_path / "part.ckpt")
    assert re.search(message, wrong(fit, capsys, "--ckpt_path", "part.ckpt"))


def test_a_run_is_not_begun_in_the_place_of_another(fit, capsys, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"three weeks of work")
    assert "--ckpt_path last" in wrong(fit, capsys)
    assert path.read_bytes() == b"three weeks of work"


def test_two_runs_never_write_into_one_folder(fit, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        assert "Another run is writing run; wait for it" in wrong(fit, capsys)
        assert wrong(fit, capsys, "--ckpt_path", "last")  # nor does one that would go on
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_that_another_one_overtook_does_not_begin(fit, capsys, tmp_path, monkeypatch):
    def overtaken(folder):
        path = folder / "checkpoints" / "last.ckpt"
        path.parent.mkdir()
        path.write_bytes(b"three weeks of work")
        return nullcontext()

    monkeypatch.setattr(cli, "locked", overtaken)
    assert "written checkpoints" in wrong(fit, capsys, "--ckpt_path", "last")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == b"three weeks of work"


def test_a_full_disk_keeps_the_last_good_checkpoint(fit, capsys, tmp_path, monkeypatch):
    save = torch.save

    def fail(content, file):
        if content["global_step"] >= 3:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", fail)
    assert "No space left on device" in wrong(fit, capsys, checkpoints__every=2)
    folder = tmp_path / "run" / "checkpoints"
    assert load(folder / "last.ckpt")["global_step"] == 2
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [4, 2])
def test_a_loss_that_is_not_finite_stops_with_its_samples(
    fit, capsys, tmp_path, monkeypatch, accumulated
):
    forward = Pretraining.forward

    def spoilt(self, batch):
        found = forward(self, batch)
        wrong = 13 in batch["index"]  # the second of the fourth step
        return dataclasses.replace(found, loss=found.loss * (math.nan if wrong else 1))

    monkeypatch.setattr(Pretraining, "forward", spoilt)
    said = wrong(fit, capsys, checkpoints__every=1, data__batch_per_device=accumulated)
    samples = "12, 13, 14, 15" if accumulated == 4 else "12, 13"
    assert "The loss of step 4 is not finite" in said
    assert f"in it: {samples}." in said
    last = load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 3
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_a_mixture_that_overflows_names_its_samples(fit, capsys, monkeypatch):
    collate = datamodule.collate

    def loud(samples):
        return collate([sample | {"clip": sample["clip"] * 1e38} for sample in samples])

    monkeypatch.setattr(datamodule, "collate", loud)
    assert "Samples 0, 1, 2, 3 of the stream: the mixture overflows" in wrong(fit, capsys)


def test_a_gradient_that_is_not_finite_stops_too(fit, capsys, monkeypatch):
    forward = Pretraining.forward

    def steep(self, batch):
        found = forward(self, batch)
        loss = found.loss + (found.prediction.mean() * 0).sqrt()  # 0, with an infinite slope
        return dataclasses.replace(found, loss=loss)

    monkeypatch.setattr(Pretraining, "forward", steep)
    assert "The gradient of step 1 is not finite" in wrong(fit, capsys)


# --- 16-mixed, on the CPU -------------------------------------------------------------------


@pytest.fixture
def in_float16(monkeypatch):
    """Train with a scaler and the fused AdamW, as 16-mixed does on a GPU."""

    def plugin(self):
        return MixedPrecision("16-mixed", "cpu")

    monkeypatch.setattr(Pretraining, "fused", True)
    monkeypatch.setattr(_AcceleratorConnector, "_check_and_init_precision", plugin)


def overflow_at(monkeypatch, *samples):
    """Have the gradient of the batches with these samples overflow, and not the loss."""
    forward = Pretraining.forward

    def steep(self, batch):
        found = forward(self, batch)
        if not set(samples) & set(batch["index"].tolist()):
            return found
        loss = found.loss + (found.prediction.float().mean() * 0).sqrt()
        return dataclasses.replace(found, loss=loss)

    monkeypatch.setattr(Pretraining, "forward", steep)


@pytest.mark.slow
def test_in_float16_a_step_that_overflows_is_passed_over(
    fit, whole, in_float16, tmp_path, monkeypatch
):
    options = {"data__validate_every": 3, "data__batch_per_device": 2}
    overflow_at(monkeypatch, 9)  # in the third step
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        assert fit(**options) == 143
    stopped = load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert stopped["MixedPrecision"]["scale"] == 2.0**15
    assert stopped["MixedPrecision"]["_growth_tracker"] == 1
    assert {float(s["step"]) for s in stopped["optimizer_states"][0]["state"].values()} == {3}
    assert fit("--ckpt_path", "last", **options) == 0

    norms, expected = (curve(run, "train/gradient_norm") for run in (tmp_path / "run", whole))
    assert not math.isfinite(norms.pop(3))
    assert norms[1] == pytest.approx(expected[1], rel=1e-2)  # not 65,536 times as large
    rates, expected = (curve(run, "train/learning_rate") for run in (tmp_path / "run", whole))
    assert rates == expected  # the schedule goes on
    losses = curve(tmp_path / "run", "train/loss")
    assert losses[6] < losses[1] == pytest.approx(curve(whole, "train/loss")[1], rel=1e-2)

    resumed = load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert fit(trainer__default_root_dir="other", **options) == 0
    undisturbed = load(tmp_path / "other" / "checkpoints" / "last.ckpt")
    assert_same(resumed, undisturbed)
    assert same(resumed["MixedPrecision"], undisturbed["MixedPrecision"])
    assert undisturbed["PretrainingData"]["position"] == 24


@pytest.mark.slow
def test_in_float16_gradients_that_always_overflow_are_an_error(
    fit, in_float16, capsys, monkeypatch
):
    monkeypatch.setattr(module, "MOST_OVERFLOWS", 2)
    overflow_at(monkeypatch, 3, 9, 13, 17)  # the first step, then three in a row
    assert "The gradient of step 5 is not finite" in wrong(fit, capsys)


@pytest.mark.slow
def test_in_float16_a_loss_that_is_not_finite_is_an_error(fit, in_float16, capsys, monkeypatch):
    forward = Pretraining.forward

    def spoilt(self, batch):
        found = forward(self, batch)
        return dataclasses.replace(found, loss=found.loss * math.inf)

    monkeypatch.setattr(Pretraining, "forward", spoilt)
    assert "The loss of step 1 is not finite" in wrong(fit, capsys)


@pytest.mark.slow
def test_in_float16_a_checkpoint_of_another_kind_of_device_goes_on(
    fit, whole, in_float16, tmp_path, monkeypatch
):
    overflow_at(monkeypatch, 25)  # in the one step that is left
    last = str(whole / "checkpoints" / "last.ckpt")
    assert fit("--ckpt_path", last, trainer__max_steps=7, data__validate_every=3) == 0
    before, after = load(last), load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    groups = [each["optimizer_states"][0]["param_groups"][0]["fused"] for each in (before, after)]
    assert groups == [False, True]
    assert same(before["state_dict"], after["state_dict"])
    assert after["MixedPrecision"]["scale"] == 2.0**15


# --- matrix products ------------------------------------------------------------------------


def test_float32_products_have_their_precision_during_a_run_on_a_gpu(monkeypatch):
    seen = []
    run = Mock(found=None, model=Mock(matmul_precision="medium"))
    run._products = lambda: cli.PretrainingCLI._products(run)
    for train in (run.trainer.fit, run.trainer.validate):
        train.side_effect = lambda **_: seen.append(torch.get_float32_matmul_precision())
    run.trainer.callback_metrics = {"validation/loss": 1.0}
    monkeypatch.setattr(cli, "_rank", lambda: 1)
    for device in ("cuda", "cpu"):
        run.trainer.strategy.root_device = torch.device(device)
        cli.PretrainingCLI.fit(run)
        cli.PretrainingCLI.validate(run)
        assert torch.get_float32_matmul_precision() == "highest"
    assert seen == ["medium", "medium", "highest", "highest"]


def test_without_its_packages_the_command_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lightning", None)
    assert main() == 1
    assert "gram-hear[pretrain]" in capsys.readouterr().err


# --- what configurations may do -------------------------------------------------------------


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module in the current folder that says when it is imported: the file that it makes."""
    made = tmp_path / "imported"
    code = "from lightning.pytorch import Callback\nclass Evil(Callback): pass\n"
    (tmp_path / "evil.py").write_text(f"open({str(made)!r}, 'w').close()\n{code}")
    monkeypatch.syspath_prepend(tmp_path)
    return made


SHELL = {"class_path": "lightning.pytorch.callbacks.LambdaCallback"}
SHELL |= {"init_args": {"setup": "os.system"}}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"callbacks": [{"class_path": "evil.Evil"}]}, "evil.Evil"),
        ({"callbacks": "evil.Evil"}, "evil.Evil"),
        ({"logger": "nested.yaml"}, "evil.Evil"),
        ({"profiler": {"class_path": "evil.Evil", "dict_kwargs": {}}}, "evil.Evil"),
        ({"callbacks": SHELL}, "lightning.pytorch.callbacks.LambdaCallback"),
        ({"callbacks": "LambdaCallback"}, "lightning.pytorch.callbacks.LambdaCallback"),
        ({"logger": "os.system"}, "os.system"),
        ({"plugins": "gram_hear.pretrain.cli.os.system"}, "posix.system"),
    ],
)
def test_configs_import_nothing_that_is_not_allowed(fit, capsys, tmp_path, evil, config, name):
    (tmp_path / "nested.yaml").write_text("class_path: evil.Evil\n")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"trainer": config}))
    said = wrong(fit, capsys, "--config", "mine", "--print_config")
    assert said.startswith(f"{name} may not be named in a configuration")
    assert "--trust-config" in said
    assert said.count("\n") == 1
    assert not evil.exists()


@pytest.mark.parametrize(
    "option",
    [
        "--trainer.callbacks.class_path=evil.Evil",
        "--trainer.callbacks+=evil.Evil",
        "--trainer.logger=evil.Evil",
        "--trainer.callbacks.help=evil.Evil",
        "--trainer={callbacks: [{class_path: evil.Evil}]}",
    ],
)
def test_nor_do_options(fit, capsys, evil, option):
    assert "evil.Evil may not be named" in wrong(fit, capsys, option)
    assert not evil.exists()


def test_nor_does_the_environment(fit, capsys, evil, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    monkeypatch.setenv("PL_FIT__TRAINER__CALLBACKS", "evil.Evil")
    assert "evil.Evil may not be named" in wrong(fit, capsys)
    assert not evil.exists()


@pytest.mark.slow
def test_a_trusted_config_may_name_any_class(tmp_path, evil, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "mine.yaml").write_text("trainer: {callbacks: {class_path: evil.Evil}}")
    command = [sys.executable, "-m", "gram_hear.pretrain", "--trust-config", "--print_config"]
    command += ["--config", "tiny", "--config", "mine"]  # what is trusted is so for a process
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["trainer"]["callbacks"]["class_path"] == "evil.Evil"
    assert evil.exists()


def test_allowed_classes_are_known_by_all_their_names(fit, tmp_path, capsys):
    callbacks = [
        {"class_path": "lightning.pytorch.callbacks.EarlyStopping"},
        "LearningRateMonitor",
        "lightning.pytorch.callbacks.model_summary.ModelSummary",
        "gram_hear.pretrain.callbacks.Curves",
    ]
    callbacks[0]["init_args"] = {"monitor": "validation/loss"}
    options = {"callbacks": callbacks, "profiler": "SimpleProfiler"}
    options["logger"] = {"class_path": "CSVLogger", "init_args": {"save_dir": "logs"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"trainer": options}))
    with pytest.raises(SystemExit) as leaving:
        fit("--config", "mine", "--print_config")
    assert leaving.value.code == 0
    found = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert [each["class_path"].split(".")[-1] for each in found["callbacks"]] == [
        *("EarlyStopping", "LearningRateMonitor", "ModelSummary", "Curves"),
    ]


def test_no_allowed_class_takes_a_function():
    for allowed in trust.ALLOWED:
        types = [str(each.annotation) for each in inspect.signature(allowed).parameters.values()]
        assert not [each for each in types if "Callable" in each], allowed


def nines(line, count):
    return "".join(f"a{i + 1}: &a{i + 1} {line(', '.join([f'*a{i}'] * 9))}\n" for i in range(count))


BOMBS = {
    "aliases": "a0: &a0 [x]\n" + nines(lambda each: f"[{each}]", 9),
    "merged": "a0: &a0 {x: 1}\n" + nines(lambda each: f"{{<<: [{each}]}}", 9),
    "nested": "a: " + "[" * 100_000,
    "in a string": "a: '" + "[" * 4000 + "'",
    "itself": "a: &a [*a]",
    "long value": "a: " + "x" * 5000,
    "long number": "a: 0x" + "f" * 4000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_that_explodes_is_refused(fit, capsys, tmp_path, name):
    with pytest.raises(OptionError):
        trust.check_yaml(BOMBS[name])
    (tmp_path / "mine.yaml").write_text(BOMBS[name])
    assert "configuration" in wrong(fit, capsys, "--config", "mine", "--print_config")


def test_patterns_of_urls_are_values():
    for text in ("s3://bucket/clips-{000..869}.tar", "hf://datasets/o/n/*.parquet", "a&b{"):
        trust.check_yaml(text)
        assert trust.load_yaml(text) == text


def test_configs_that_are_too_long_or_no_text(fit, capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("# " + "x" * 2**20)
    assert f"at most {2**20}" in wrong(fit, capsys, "--config", "mine")
    (tmp_path / "mine.yaml").write_bytes("data: {clips: T\xf6ne}".encode("latin-1"))
    assert "Save it as UTF-8" in wrong(fit, capsys, "--config", "mine")


def test_aliases_that_do_not_explode_are_read(fit, capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("data: {batch: &n 6, windows: *n, snr: [1, 2]}")
    with pytest.raises(SystemExit):
        fit("--print_config", config="mine", base={})
    found = yaml.safe_load(capsys.readouterr().out)["data"]
    assert (found["batch"], found["windows"]) == (6, 6)
