"""The training step against plain references, its schedule, and how a batch is shared out."""

import math
import platform
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import get_float32_matmul_precision
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gram_hear.checkpoints.store import load_checkpoint, save_model
from gram_hear.devices import matmul_precision
from gram_hear.errors import CheckpointError, ConfigError, OptionError, TrainingError
from gram_hear.frontend import FrontEnd
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mae import MaskedAutoencoder
from gram_hear.nn.masks import random_mask, split_mask
from gram_hear.pretrain.datamodule import PretrainingData, accumulation
from gram_hear.pretrain.module import Pretraining, schedule_factor

SMALL = {"size": "tiny", "depth": 1, "decoder_depth": 1}
CHANNELS = {"mono": 1, "binaural": 2, "ambisonic": 4}
SAMPLES = 32000


def drawn(layout, dry=(False, True, False), seed=0):
    """A batch as the data side draws it: three clips of 1 s, two windows each."""
    generator = np.random.default_rng(seed)
    batch, channels = len(dry), CHANNELS[layout]
    start, length = np.array([0, 0, 5000][:batch]), np.array([SAMPLES, 0, 9000][:batch])
    noise = generator.standard_normal((batch, SAMPLES))
    for row, first, count in zip(noise, start, length, strict=True):
        row[:first], row[first + count :] = 0, 0
    decay = np.exp(-np.arange(3000) / 400)
    rirs = generator.standard_normal((batch, 2, channels, 3000)) * decay
    rirs[np.array(dry)] = 0
    if all(dry):
        rirs = rirs[..., :0]

    def tensor(array):
        return torch.from_numpy(np.asarray(array, np.float32))

    masks = random_mask(2 * batch, 200, 160, torch.Generator().manual_seed(seed))
    visible, hidden = split_mask(masks)
    return {
        "index": torch.arange(batch) + 7,
        "clip": 0.2 * tensor(generator.standard_normal((batch, SAMPLES))),
        "dry": torch.tensor(dry),
        "rirs": tensor(rirs),
        "noise": 0.1 * tensor(noise),
        "start": torch.from_numpy(start),
        "length": torch.from_numpy(length),
        "snr": torch.tensor([5.0, 20.0, 40.0][:batch]),
        "window_starts": torch.tensor([[0, 60], [3, 11], [30, 55]])[:batch],
        "masks": masks.view(batch, 2, 200),
        "visible": visible.reshape(batch, 2, 40),
        "hidden": hidden.reshape(batch, 2, 160),
        "skipped": torch.zeros(batch, dtype=torch.int64),
    }


def plain_windows(batch, config):
    """The same windows, one clip after another, by the formulas of the recipe in float64."""
    layout, windows = config.front_end.layout, []
    for i, clip in enumerate(batch["clip"].double().numpy()):
        if batch["dry"][i]:
            audio = np.stack([clip] * CHANNELS[layout])
        else:
            source, noise_rir = batch["rirs"][i].double().numpy()
            noise = batch["noise"][i].double().numpy()
            heard = np.stack([np.convolve(clip, rir)[:SAMPLES] for rir in source])
            disturbing = np.stack([np.convolve(noise, rir)[:SAMPLES] for rir in noise_rir])
            first, last = batch["start"][i], batch["start"][i] + batch["length"][i]
            energies = [np.square(sound[:, first:last]).sum() for sound in (heard, disturbing)]
            ratio = energies[0] / (energies[1] + 1e-9) * 10 ** (-float(batch["snr"][i]) / 10)
            audio = heard + math.sqrt(ratio) * disturbing
            if layout == "ambisonic":
                w, y, z, x = audio
                audio = np.stack([w, 3**0.5 * z, -(3**0.5) * x, -(3**0.5) * y])
        features = FrontEnd(config.front_end)(torch.from_numpy(audio).float()[None])[0]
        floor = math.log(config.front_end.log_floor) if config.window_fill == "silence" else 0.0
        end = torch.zeros(len(features), 300, 128)
        end[: CHANNELS[layout]] = floor
        padded = torch.cat([features, end], dim=1)
        starts = batch["window_starts"][i].tolist()
        windows += [padded[:, s : s + config.window_frames] for s in starts]
    return torch.stack(windows)


@pytest.mark.parametrize("fill", ["silence", "zero"])
@pytest.mark.parametrize("layout", ["binaural", "ambisonic"])
def test_scenes_are_mixed_and_cropped_by_the_recipe(layout, fill):
    module, batch = Pretraining(layout, window_fill=fill, **SMALL), drawn(layout)
    found, expected = module.log_mel_windows(batch), plain_windows(batch, module.config)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)  # logarithms of small powers
    assert (found - expected).abs().mean() < 1e-5


def test_dry_clips_are_copied_to_all_channels_exactly():
    module, batch = Pretraining("ambisonic", **SMALL), drawn("ambisonic", dry=(True, False, True))
    audio = module._mixtures(batch)
    for i in (0, 2):
        assert all(torch.equal(channel, batch["clip"][i]) for channel in audio[i])
    mono = Pretraining("mono", **SMALL)
    assert torch.equal(mono._mixtures(drawn("mono", dry=(True,) * 3))[:, 0], drawn("mono")["clip"])


@pytest.mark.parametrize("layout", ["mono", "binaural", "ambisonic"])
def test_loss_and_gradients_are_those_of_float64(layout):
    module, batch = Pretraining(layout, **SMALL), drawn(layout, dry=(layout == "mono",) * 3)
    reference = MaskedAutoencoder(module.config).double()
    reference.load_state_dict(module.autoencoder.state_dict())
    loss = module.training_step(batch, 0)
    loss.backward()

    class Doubles(torch.Tensor):
        """Features that stay what they are where the model asks for float32."""

        def float(self):
            return self

    with torch.no_grad():
        windows = module.log_mel_windows(batch).double()
    indices = (batch[name].flatten(0, 1) for name in ("visible", "hidden"))
    expected = reference(windows.as_subclass(Doubles), *indices)
    assert expected.prediction.dtype == expected.target.dtype == torch.float64
    error = (expected.prediction - expected.target).square().mean(dim=-1)
    mean = error[batch["masks"].flatten(0, 1)].mean() * module.config.front_end.feature_channels
    mean.backward()
    assert abs(loss.item() - mean.item()) < 1e-5
    pairs = zip(module.autoencoder.parameters(), reference.parameters(), strict=True)
    for found, wanted in pairs:
        scale = wanted.grad.abs().max()
        np.testing.assert_allclose(found.grad, wanted.grad, rtol=0, atol=float(2e-5 * scale + 1e-9))


def test_a_step_draws_nothing_and_making_a_model_leaves_the_random_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    module = Pretraining("binaural", **SMALL)
    first = module.training_step(drawn("binaural"), 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(module.training_step(drawn("binaural"), 0), first)


# --- on a GPU -------------------------------------------------------------------------------


class Crossings(TorchDispatchMode):
    """Counts the operations that bring values from one device to another."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.seen.append(str(function))
        return result


@pytest.mark.parametrize("backbone", ["transformer", "mamba2", "mamba1"])
@pytest.mark.parametrize("layout", ["mono", "binaural", "ambisonic"])
def test_a_batch_never_waits_for_the_device(monkeypatch, layout, backbone):
    """A tensor on meta has no values: what asks for one, as a GPU would have to answer, fails."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown on meta
    module = Pretraining(layout, backbone=backbone, **SMALL).to("meta")
    batch = {name: value.to("meta") for name, value in drawn(layout).items()}
    with Crossings() as crossings:
        for _ in range(2):
            module.training_step(batch, 0).backward()
    assert crossings.seen == []
    assert len(module._seen) == 2


def test_values_of_a_device_are_noticed():
    values = torch.ones(2, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(values.all())
    with pytest.raises((RuntimeError, NotImplementedError)):
        values.nonzero()
    with Crossings() as crossings:
        torch.zeros(2).to("meta")
    assert len(crossings.seen) == 1


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_asks_the_device_once(monkeypatch, fused):
    module = Pretraining("binaural", **SMALL)
    trainer = module._trainer = Mock(world_size=2, accumulate_grad_batches=2)
    trainer.precision_plugin.scaler = None
    trainer.strategy.reduce = lambda tensor, reduce_op: 2 * tensor  # as of two equal processes
    losses = [module.training_step(drawn("binaural"), i) / 2 for i in range(2)]
    sum(losses).backward()
    asked = []

    def note(name):
        real = getattr(torch.Tensor, name)

        def noted(*args, **options):
            asked.append(name)
            return real(*args, **options)

        return noted

    optimizer = torch.optim.AdamW(module.parameters(), fused=fused)
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
            patch.setattr(torch.Tensor, name, note(name))
        module.configure_gradient_clipping(optimizer, 5.0)
    assert asked == ["tolist"]
    assert module.step_loss == pytest.approx(sum(losses).item(), rel=1e-6)
    assert module.gradient_norm > 0
    assert module._seen == []


@pytest.mark.parametrize("layout", ["binaural", "ambisonic"])
def test_mixing_and_features_are_float32_under_autocast(layout):
    module, batch = Pretraining(layout, **SMALL), drawn(layout)
    expected = module.log_mel_windows(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = module.log_mel_windows(batch)
        reconstruction = module(batch)
    assert torch.equal(found, expected)
    assert found.dtype == reconstruction.target.dtype == reconstruction.loss.dtype == torch.float32


def test_features_have_the_highest_precision_whatever_the_products_have(monkeypatch):
    module, seen = Pretraining("binaural", **SMALL), []
    for part in (module.front_end, module.autoencoder):
        part.register_forward_pre_hook(lambda *_: seen.append(get_float32_matmul_precision()))
    with matmul_precision("medium"):
        module(drawn("binaural"))
    assert seen == ["highest", "medium"]
    assert get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("patching", ["frame", "time"])
@pytest.mark.parametrize("backbone", ["transformer", "mamba2", "mamba1"])
def test_every_parameter_has_a_gradient(backbone, patching):
    """So DistributedDataParallel need not look for parameters without one."""
    module = Pretraining("binaural", backbone=backbone, patching=patching, **SMALL)
    batch, tokens = drawn("binaural"), module.config.tokens
    masks = random_mask(6, tokens, 4 * tokens // 5, torch.Generator().manual_seed(0))
    visible, hidden = (indices.unflatten(0, (3, 2)) for indices in split_mask(masks))
    module.training_step(batch | {"visible": visible, "hidden": hidden}, 0).backward()
    parameters = dict(module.named_parameters())
    assert {"autoencoder.decoder.mask_token", "autoencoder.patches.cls_token"} <= parameters.keys()
    assert [n for n, p in parameters.items() if p.grad is None or not p.grad.any()] == []


def test_clips_whose_windows_are_not_finite_are_known():
    module, batch = Pretraining("binaural", **SMALL), drawn("binaural")
    batch["clip"][1, -1] = math.nan
    found = module(batch)
    assert not found.loss.isfinite()
    module.training_step(batch, 0)
    assert module._seen[0].finite.tolist() == [True, False, True]
    with pytest.raises(TrainingError, match="Samples 8 of the stream: the mixture overflows"):
        module.validation_step(batch, 0)


# --- schedule and first weights -------------------------------------------------------------


def test_training_on_a_cpu_keeps_the_memory_that_it_frees(monkeypatch):
    calls = []
    monkeypatch.setattr("gram_hear.pretrain.module.keep_freed_memory", lambda: calls.append(1))
    Pretraining("binaural", **SMALL).on_fit_start()
    assert calls == [1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of the GNU C library")
def test_memory_that_was_kept_is_not_asked_for_again():
    program = """
        import resource, numpy
        from gram_hear.pretrain.memory import keep_freed_memory

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            numpy.ones(1 << 23)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        returned = min(faults(), faults())
        keep_freed_memory()
        faults()
        print(returned, faults())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    returned, kept = map(int, done.stdout.split())
    assert kept < 10 <= returned / 2


def test_schedule():
    warm = [schedule_factor(step, 10, 110) for step in range(10)]
    np.testing.assert_allclose(warm, np.arange(1, 11) / 10)
    assert schedule_factor(10, 10, 110) == 1
    assert schedule_factor(60, 10, 110) == pytest.approx(0.5)
    assert schedule_factor(110, 10, 110) == pytest.approx(0, abs=1e-12)
    assert schedule_factor(0, 0, 1) == 1


@given(st.integers(0, 50), st.integers(1, 200), st.integers(0, 250))
def test_schedule_rises_then_falls(warmup, steps, step):
    now, then = schedule_factor(step, warmup, steps), schedule_factor(step + 1, warmup, steps)
    assert 0 <= now <= 1
    assert then > now if step + 1 < warmup else then <= 1
    assert step < warmup or then <= now


def test_first_weights_come_from_the_seed():
    one, same, other = (Pretraining("binaural", seed=s, **SMALL) for s in (3, 3, 4))
    expected = MaskedAutoencoder(one.config)
    initialise(expected, 3)
    for name, value in expected.state_dict().items():
        assert torch.equal(one.autoencoder.state_dict()[name], value)
        assert torch.equal(same.autoencoder.state_dict()[name], value)
    assert not torch.equal(one.autoencoder.patches.weight, other.autoencoder.patches.weight)


def test_first_weights_from_a_checkpoint(tmp_path):
    first = Pretraining("binaural", seed=3, log_floor=1e-4, window_fill="zero", **SMALL)
    path = save_model(first.autoencoder, tmp_path / "model.safetensors")
    found = Pretraining("binaural", init=str(path), **SMALL)
    same_weights(found, first.autoencoder.state_dict())
    assert found.config.front_end.log_floor == 1e-5  # as asked, not as in the file
    assert found.origin == f"Encoder and decoder from {path}."
    message = r"front_end.layout: binaural there, mono here.*\. Give --model.layout binaural\."
    with pytest.raises(CheckpointError, match=message):
        Pretraining("mono", init=str(path), **SMALL)
    message = r"encoder.depth: 1 there, 2 here\. Give --model.depth 1\."
    with pytest.raises(CheckpointError, match=message):
        Pretraining("binaural", init=str(path), **SMALL | {"depth": 2})


def same_weights(module, expected):
    """Check that a module has these weights, and return the names of its other tensors."""
    tensors = module.autoencoder.state_dict()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    return tensors.keys() - expected.keys()


def test_first_weights_from_a_bundled_model_which_has_no_decoder():
    options = {"size": "tiny", "depth": 6}
    module = Pretraining("binaural", init="gram-tiny", seed=4, **options)
    others = same_weights(module, load_checkpoint("gram-tiny").tensors)
    assert others == {n for n in module.autoencoder.state_dict() if n.startswith("decoder.")}
    anew = Pretraining("binaural", seed=4, **options).autoencoder.state_dict()
    assert all(torch.equal(module.autoencoder.state_dict()[n], anew[n]) for n in others)
    assert module.origin == (
        "Encoder from gram-tiny; its decoder is not in that file, so a new one is drawn from "
        "seed 4."
    )
    with pytest.raises(CheckpointError, match=r"Give --model.size tiny --model.depth 6\.$"):
        Pretraining("binaural", init="gram-tiny")
    with pytest.raises(CheckpointError, match=r"Give --model.backbone transformer\.$"):
        Pretraining("binaural", backbone="mamba2", init="gram-tiny", **options)


def test_first_weights_from_a_checkpoint_with_another_decoder(tmp_path):
    first = Pretraining("binaural", seed=3, **SMALL)
    path = save_model(first.autoencoder, tmp_path / "model.safetensors")
    module = Pretraining("binaural", init=str(path), **SMALL | {"decoder_depth": 2})
    encoder = {n: t for n, t in first.autoencoder.state_dict().items() if n[:7] != "decoder"}
    assert all(name.startswith("decoder.") for name in same_weights(module, encoder))
    assert "another shape (decoder.depth: 1 there, 2 here), so a new one" in module.origin


def test_first_weights_from_the_authors_checkpoint(published_file, monkeypatch):
    path = published_file(2)
    config = load_checkpoint(path).config
    monkeypatch.setattr("gram_hear.pretrain.new_model.named_config", lambda *_: config)
    module = Pretraining("binaural", init=str(path), log_floor=1e-5)
    assert not same_weights(module, load_checkpoint(path).tensors)
    assert module.config.window_fill == "silence"
    assert module.autoencoder.decoder.mask_token.requires_grad
    encoder = published_file(2, decoder=None, seed=1)
    module = Pretraining("binaural", init=str(encoder))
    others = same_weights(module, load_checkpoint(encoder).tensors)
    assert others
    assert all(name.startswith("decoder.") for name in others)
    monkeypatch.undo()  # no size is as narrow as that model
    with pytest.raises(CheckpointError, match="No options of model make such a model"):
        Pretraining("binaural", init=str(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "stereo"}, "Unknown layout 'stereo'"),
        ({"size": "huge"}, "Unknown size 'huge'"),
        ({"patching": "frames"}, "Unknown patching"),
        ({"backbone": "mamba3"}, "Unknown backbone"),
        ({"window_fill": "noise"}, "window_fill"),
        ({"log_floor": -1.0}, "log_floor"),
        ({"warmup": -1}, "warmup"),
        ({"matmul_precision": "tf32"}, "Unknown matmul_precision 'tf32'; allowed are highest"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_options_of_the_model_are_checked(options, message):
    with pytest.raises((OptionError, ConfigError), match=message):
        Pretraining(**SMALL | options)


@given(st.integers(1, 200), st.integers(1, 16), st.none() | st.integers(1, 200))
def test_a_batch_is_shared_out_whole(batch, devices, most):
    if batch % devices:
        with pytest.raises(OptionError, match="does not divide"):
            accumulation(batch, devices, most)
        return
    parts = accumulation(batch, devices, most)
    at_once = batch / devices / parts
    assert at_once == int(at_once)
    assert most is None or at_once <= most
    share = batch // devices
    fewer = [n for n in range(1, parts) if share % n == 0]
    assert all(most is not None and share / n > most for n in fewer)


class Opened(list):
    """What the state of a stream asks of a set that is open."""

    rooms = None
    clips = SimpleNamespace(shards_key=None)


def test_a_checkpoint_from_before_there_were_masks_has_random_ones():
    data, other = PretrainingData(), PretrainingData(masks="time")
    data.training = other.training = Opened([0])
    state = {"position": 96} | data._stream()
    del state["masks"]
    data.load_state_dict(state)
    assert data.position == 96
    with pytest.raises(CheckpointError, match="masks: random there, time here"):
        other.load_state_dict(state)


@pytest.mark.parametrize("name", ["batch", "rooms", "validation_batches", "validate_every"])
def test_options_of_the_data_are_checked(name):
    with pytest.raises(OptionError, match=f"data.{name} is 0; it must be at least 1"):
        PretrainingData(**{name: 0})
