"""Embeddings equal those of the authors' code (parity), in every container."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gram_hear
from gram_hear.checkpoints.store import build_encoder, load_checkpoint
from gram_hear.config import Mamba2Config
from gram_hear.errors import CheckpointError
from gram_hear.hear import pool
from gram_hear.nn.patches import normalise_windows, patchify
from gram_hear.windows import reference_plan

CONTAINERS = [
    ("gramt_frame_2ch.safetensors", 2),
    ("gramt_frame_2ch_lightning.ckpt", 2),
    ("gramt_frame_2ch_runtime.safetensors", 2),
    ("gramt_frame_7ch.safetensors", 7),
]
EACH_CONTAINER = pytest.mark.parametrize(("container", "channels"), CONTAINERS)
EACH_MODEL = pytest.mark.parametrize(("container", "channels"), [CONTAINERS[0], CONTAINERS[3]])
EACH_STRATEGY = pytest.mark.parametrize("strategy", ["raw", "mean", "cls"])


@pytest.fixture
def load(golden_path):
    return lambda container, **options: gram_hear.load_model(
        golden_path(container), heads=4, parity=True, convention="soundspaces", **options
    )


@pytest.fixture
def stored(golden, channels):
    return golden(f"gramt_frame_{channels}ch.npz")


@pytest.fixture
def features(golden_audio, channels, load, container):
    return load(container).gram.front_end(golden_audio(channels))


def embed_windows(model, windows):
    """(windows, C, 200, mels) -> (windows, rows of a window, d)."""
    with torch.no_grad():
        tokens = model.gram(windows, model.options.layer)
    return pool(tokens, model.options.strategy, model.config, model.per_window)


def assert_golden(found, expected):
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


# --- whole clips ----------------------------------------------------------------------------


@EACH_CONTAINER
@EACH_STRATEGY
def test_timestamp_embeddings_are_golden(load, stored, golden_audio, container, channels, strategy):
    model = load(container, strategy=strategy)
    embeddings, _ = gram_hear.get_timestamp_embeddings(golden_audio(channels), model)
    assert_golden(embeddings, stored[f"encode_{strategy}"])


@EACH_CONTAINER
@EACH_STRATEGY
def test_scene_embeddings_are_golden(load, stored, golden_audio, container, channels, strategy):
    model = load(container, strategy=strategy)
    embeddings = gram_hear.get_scene_embeddings(golden_audio(channels), model)
    assert_golden(embeddings, stored[f"scene_{strategy}"])


@pytest.mark.parametrize(("container", "channels"), CONTAINERS[:3])
def test_timestamp_embeddings_of_layer_2_are_golden(
    load, stored, golden_audio, container, channels
):
    model = load(container, strategy="mean", layer=2)
    embeddings, _ = gram_hear.get_timestamp_embeddings(golden_audio(channels), model)
    assert_golden(embeddings, stored["encode_layer2_mean"])


# --- AudioSphere ----------------------------------------------------------------------------


class Flagged(torch.nn.Module):
    """A plain reference: windows through a patch embedding of 14 planes, flags given as planes."""

    def __init__(self, patches, weight, flag):
        super().__init__()
        self.patches, self.weight, self.flag = patches, weight, flag

    def forward(self, windows):
        """(windows, 7, frames, mels) -> (windows, tokens, width) without CLS."""
        windows = normalise_windows(windows).transpose(2, 3)
        planes = torch.cat([windows, torch.full_like(windows, self.flag)], dim=1)
        kernel = self.weight.shape[2:]
        grid = torch.nn.functional.conv2d(planes, self.weight, self.patches.bias, stride=kernel)
        return grid.flatten(2).transpose(1, 2) + self.patches.positions[:, 1:]


@pytest.fixture
def audiosphere(golden_path, tmp_path, noise):
    """Return a function that writes the golden Ambisonic model as AudioSphere would.

    It returns the path, and the weight of the patch embedding.
    """

    def write(flags=True, fill=True, decoder=True):
        tensors = load_file(golden_path("gramt_frame_7ch.safetensors"))
        weight = tensors["patch_embed.proj.weight"]
        if flags:
            weight = torch.cat([weight, noise(*weight.shape, seed=1)], dim=1)
            tensors["patch_embed.proj.weight"] = weight
        if fill:
            tensors["channel_fill"] = torch.arange(7.0)
        if not decoder:
            tensors = {n: t for n, t in tensors.items() if not n.startswith("decoder_")}
        path = tmp_path / "last.ckpt"
        torch.save({"state_dict": tensors, "global_step": 50_000}, path)
        return path, weight

    return write


@pytest.mark.parametrize("flags", [True, False])
@pytest.mark.parametrize("decoder", [True, False])
def test_a_model_with_masked_channels_embeds_as_with_all_present(
    audiosphere, golden, golden_audio, flags, decoder
):
    path, weight = audiosphere(flags=flags, decoder=decoder)
    options = {"heads": 4, "parity": True, "convention": "soundspaces", "strategy": "mean"}
    model = gram_hear.load_model(path, **options)
    assert model.config.front_end.layout == "ambisonic"
    assert model.config.decoder is None  # the file's fills in no hidden tokens
    embeddings = gram_hear.get_scene_embeddings(golden_audio(7), model)
    assert_golden(embeddings, golden("gramt_frame_7ch.npz")["scene_mean"])
    if flags:
        windows = model.gram.front_end(golden_audio(7))[:, :, :200]
        patches = model.gram.patches
        with torch.no_grad():
            found = patches(patchify(normalise_windows(windows), model.config.patch))[:, 1:]
            torch.testing.assert_close(found, Flagged(patches, weight, 0.0)(windows))
            masked = Flagged(patches, weight, 1.0)(windows)
        assert (found - masked).abs().max() > 1


def test_a_plain_audiosphere_is_an_ambisonic_model(audiosphere, golden_path):
    path, _ = audiosphere(flags=False, fill=False)
    found = load_checkpoint(path, heads=4)
    expected = load_checkpoint(golden_path("gramt_frame_7ch.safetensors"), heads=4)
    assert found.config == expected.config
    assert all(torch.equal(found.tensors[name], each) for name, each in expected.tensors.items())


def test_flags_belong_to_ambisonic_models_whole(audiosphere, tmp_path):
    path, weight = audiosphere()
    tensors = torch.load(path)["state_dict"]
    tensors["patch_embed.proj.weight"] = weight[:, :13].contiguous()
    save_file(tensors, tmp_path / "thirteen.safetensors")
    with pytest.raises(CheckpointError, match=r"\(48, 13, 16, 8\).*14 with flags"):
        load_checkpoint(tmp_path / "thirteen.safetensors", heads=4)


# --- one window -----------------------------------------------------------------------------


@EACH_CONTAINER
@pytest.mark.parametrize("strategy", ["mean", "cls"])
@pytest.mark.parametrize(("prefix", "layer"), [("rep", None), ("layer2", 2)])
def test_first_window_is_golden(
    load, stored, features, container, channels, strategy, prefix, layer
):
    model = load(container, strategy=strategy, layer=layer)
    found = embed_windows(model, features[:, :, :200])[:, 0]
    assert_golden(found, stored[f"{prefix}_{strategy}"])


@EACH_CONTAINER
@pytest.mark.parametrize(("prefix", "layer"), [("rep", None), ("layer2", 2)])
def test_raw_rows_of_the_first_window_are_golden(
    load, stored, features, container, channels, prefix, layer
):
    found = embed_windows(load(container, layer=layer), features[1:2, :, :200])[0]
    assert_golden(found, stored[f"{prefix}_raw_clip1"])


@EACH_CONTAINER
def test_sum_of_the_first_window_is_golden(load, stored, features, container, channels):
    model = load(container, strategy="sum")
    found = embed_windows(model, features[:, :, :200])[:, 0]
    assert_golden(found / 200, stored["rep_sum"] / 200)  # sums reach 529: float32 is coarse there


# --- an exact multiple of the window --------------------------------------------------------


@EACH_MODEL
@EACH_STRATEGY
def test_exact_multiple_gets_a_further_empty_window(
    load, stored, features, container, channels, strategy
):
    model = load(container, strategy=strategy)
    plan = reference_plan(399 * 320, model.config, model.per_window)  # 400 frames
    first = features[:, :, :400]
    filled = torch.cat([first, torch.zeros_like(first[:, :, :200])], dim=2)
    windows = filled.unflatten(2, (3, 200)).transpose(1, 2).flatten(0, 1)
    rows = embed_windows(model, windows).unflatten(0, (3, 3)).flatten(1, 2)[:, : plan.rows]
    assert plan.windows == 3
    assert list(rows.shape) == stored[f"encode400_{strategy}_shape"].tolist()
    if strategy == "raw":  # stored as its shape alone: two whole windows of the longer clips
        assert_golden(rows, stored["encode_raw"][:, :50])
    else:
        assert_golden(rows, stored[f"encode400_{strategy}"])


# --- GRAM-M ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_stack(published_tensors, golden_path, tmp_path_factory):
    """The authors' Mamba-2 stack, loaded inside a whole published checkpoint."""
    others = published_tensors(2, backbone="mamba2")
    tensors = {name: t for name, t in others.items() if not name.startswith("encoder_v.")}
    tensors |= load_file(golden_path("mamba2_stack.safetensors"))
    path = tmp_path_factory.mktemp("golden") / "gramm.safetensors"
    save_file(tensors, path)
    return load_checkpoint(path)


def test_sizes_of_the_golden_stack_are_read_from_its_tensors(golden_stack):
    assert golden_stack.config.encoder == Mamba2Config(width=64, depth=3)


@pytest.mark.parametrize("case", ["201", "57", "small_57"])
def test_the_stack_of_a_published_file_is_golden(golden_stack, golden, case):
    arrays = golden("mamba2_stack.npz")
    with torch.no_grad():
        found = build_encoder(golden_stack).encoder(torch.from_numpy(arrays[f"x_{case}"]))
    assert_golden(found, arrays[f"y_{case}"])
