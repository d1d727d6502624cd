"""What a GPU computes, where there is one; and the program that measures it, here on the CPU."""

import importlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from gram_hear.checkpoints.store import CheckpointSource
from gram_hear.config import named_config
from gram_hear.hear import HearModel, Options
from gram_hear.model import GramModel
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mae import MaskedAutoencoder
from gram_hear.nn.mamba_kernels import PLAIN
from gram_hear.pretrain.batches import collate
from gram_hear.pretrain.clips import open_clips
from gram_hear.pretrain.module import Pretraining
from gram_hear.pretrain.pools import open_noises, open_rooms
from gram_hear.pretrain.samples import SampleRecipe, SampleSet

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
SMALL = {"size": "tiny", "depth": 2, "decoder_depth": 2}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


# --- on CUDA --------------------------------------------------------------------------------


def batch_of(clips):
    """A batch as it is loaded, of clips of 1 s with two windows each."""
    recipe = SampleRecipe(seconds=1.0, clip_frames=260, windows=2)
    rooms, noises = open_rooms(None, "binaural", 32000, count=1), open_noises(None, 32000)
    samples = SampleSet(open_clips(None), rooms, noises, recipe, "binaural", seed=0)
    return collate([samples[i % 2] for i in range(clips)])


def to_cuda(batch):
    return {name: value.cuda() for name, value in batch.items()}


@needs_cuda
@pytest.mark.parametrize("backbone", ["transformer", "mamba2", "mamba1"])
@pytest.mark.parametrize("channels", [1, 2, 7])
def test_embeddings_on_cuda_equal_those_of_the_cpu(channels, backbone):
    gram = GramModel(named_config("tiny", channels, backbone=backbone)).eval()
    initialise(gram, seed=0)
    if backbone != "transformer":
        gram.encoder.kernels = PLAIN
    model = HearModel(gram, Options(), CheckpointSource("random", "seed"))
    generator = torch.Generator().manual_seed(0)
    audio = gram.config.front_end.audio_channels
    clips = [0.1 * torch.randn(audio, n, generator=generator) for n in (9000, 64000, 170000)]
    with torch.inference_mode():
        expected = model.embed(clips)
        found = model.cuda().embed(clips)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=1e-4)


@needs_cuda
@pytest.mark.parametrize("backbone", ["transformer", "mamba2"])
def test_a_training_step_on_cuda_equals_that_of_the_cpu(backbone):
    batch, losses, gradients = batch_of(3), [], []
    for device in ("cpu", "cuda"):
        module = Pretraining("binaural", backbone=backbone, **SMALL).to(device)
        if backbone != "transformer":
            module.autoencoder.encoder.kernels = PLAIN
        loss = module.training_step({n: v.to(device) for n, v in batch.items()}, 0)
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad.cpu() for name, p in module.named_parameters()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for name, expected in gradients[0].items():
        tolerance = 1e-3 * float(expected.abs().max()) + 1e-8
        torch.testing.assert_close(gradients[1][name], expected, rtol=0, atol=tolerance)


@needs_cuda
def test_a_training_step_on_cuda_never_waits():
    module, batch = Pretraining("binaural", **SMALL).cuda(), to_cuda(batch_of(3))
    module.training_step(batch, 0).backward()  # loads what is loaded at the first use
    torch.cuda.set_sync_debug_mode("error")
    try:
        module.training_step(batch, 0).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
def test_steps_of_each_precision_on_cuda_are_finite(precision, tmp_path):
    module, batch = Pretraining("binaural", warmup=0, **SMALL), batch_of(2)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer = Trainer(
        accelerator="cuda",
        devices=1,
        precision=precision,
        max_steps=2,
        gradient_clip_val=5.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one loading process is few
        trainer.fit(module, DataLoader([batch] * 2, batch_size=None))
    assert 0 < module.step_loss < 10
    assert 0 < module.gradient_norm < 100  # 16-mixed once clipped it 65,536 times too large
    assert all(p.isfinite().all() for p in module.parameters())
    assert all(not torch.equal(p.cpu(), before[n]) for n, p in module.named_parameters())


@needs_cuda
@pytest.mark.parametrize("patching", ["frame", "time"])
def test_attention_takes_48_clips_on_cuda(patching):
    """48 clips of 16 windows: blocks of attention beyond what a grid of CUDA counts in 16 bits."""
    config = named_config("tiny", 2, patching)
    model = MaskedAutoencoder(config).cuda()
    initialise(model, seed=0)
    decoder, windows = model.decoder, 48 * 16
    tokens = torch.randn(windows, config.tokens, config.decoder.width, device="cuda")
    attention = decoder.blocks[0].attention
    with torch.autocast("cuda", torch.bfloat16):
        found = attention(tokens)
        found.float().square().mean().backward()
        few = torch.cat([attention(part) for part in tokens[:64].split(16)])
    similarity = F.cosine_similarity(found[:64].float(), few.float(), dim=-1)
    assert similarity.min() > 0.99
    assert all(p.grad.isfinite().all() for p in attention.parameters())


# --- benchmarks/gpu.py ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpu():
    """The program's module, which finds those beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROGRAM.parent)
        yield importlib.import_module("gpu")


@pytest.mark.slow
def test_every_part_measures_without_a_gpu(gpu, tmp_path, monkeypatch, capsys):
    ran = subprocess.CompletedProcess([], 0, stdout="17 skipped in 1 s\n")
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: ran)
    monkeypatch.setattr("pretrain.POOL", 1)
    setup = gpu.Setup(torch.device("cpu"), small=True, workers=1, sets=(None,) * 3)
    for name in gpu.PARTS:
        gpu.measure(name, setup, tmp_path)
    rows = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in gpu.PARTS}
    assert all(rows.values())
    assert all(row.get("right", True) for each in rows.values() for row in each)
    assert rows["equality"][0]["largest difference"] < 1e-4
    assert rows["tests"][0]["what"] == "pytest: 17 skipped in 1 s"
    assert len(rows["training"]) == 4
    assert len({row["what"] for row in rows["embedding"]}) == 6
    assert "mamba" in rows["kernels"][0]["what"]
    for step in rows["training"]:
        assert step["windows a second"] == pytest.approx(2 * step["clips a second"])
        hours = 500_000 * 4 / step["clips a second"] / 3600
        assert step["hours for 500,000 steps"] == pytest.approx(hours)
    parts = [
        {"part": name, "state": "done", "seconds": 1.0, "rows": rows[name]} for name in gpu.PARTS
    ]
    gpu.report(parts, tmp_path)
    text = (tmp_path / "gpu.txt").read_text()
    assert "  torch.mm in bfloat16: TFLOP/s" in text
    assert "500,000 steps would take" in text
    assert "one loading process: " in text.splitlines()[-1]
    assert all(line in text + capsys.readouterr().out for line in map(gpu.line_of, rows["data"]))


@pytest.mark.slow
def test_a_part_that_fails_or_hangs_leaves_the_others_alone(gpu, tmp_path, monkeypatch, capsys):
    options = ["--device", "cpu", "--small", "--only", "data", "machine", "kernels"]
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "-o", str(tmp_path), *options, "--clips", str(tmp_path / "none")]
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PROGRAM.parent), *sys.path]))
    monkeypatch.setitem(gpu.PARTS, "machine", gpu.Part(gpu.describe_machine, limit=0.1))
    monkeypatch.setattr(gpu, "LEAST", 0)
    assert gpu.main() == 1
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    states = {part["part"]: part["state"] for part in found}
    assert list(states) == ["data", "machine", "kernels"]
    assert states["data"].startswith("failed with exit code 1")
    assert "none" in states["data"]
    assert states["machine"] == "stopped after its 0 s"
    assert states["kernels"] == "done"
    assert found[2]["rows"]
    assert "data: failed with exit code 1" in capsys.readouterr().out
