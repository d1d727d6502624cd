"""Checkpoints: every container of the published layout, faults, unsafe files, saving."""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import gram_hear
from gram_hear.checkpoints import published, store
from gram_hear.checkpoints.published import published_name
from gram_hear.checkpoints.store import build_autoencoder, load_checkpoint, save_checkpoint
from gram_hear.config import Mamba1Config, Mamba2Config, ModelConfig
from gram_hear.errors import CheckpointError, OptionError
from gram_hear.frontend import FrontEnd
from gram_hear.model import GramModel
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mae import MaskedAutoencoder
from gram_hear.nn.masks import split_mask

BACKBONES = ("transformer", "mamba2", "mamba1")
MAMBAS = ("mamba2", "mamba1")
MIXER = "encoder_v.layers.{}.mixer."  # of GRAM-M, the layer's number left open
PATCH_BIAS = "patch_embed.proj.bias"
WEIGHT_BIAS = ("weight", "bias")
BIAS_INDEX = "decoder_blocks.0.wmha.attn_heads.{}.relative_position_index"


class RunsCode:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


class HyperParameters:
    """A class that no loader of tensors should know."""


def load_tensors(tensors, path, **options):
    """Write tensors as ``path`` and load them."""
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return load_checkpoint(path, **options)


def assert_same(found, expected):
    """Two checkpoints have one configuration and equal tensors."""
    assert found.config == expected.config
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name
        assert found.tensors[name].dtype == torch.float32


def refusal(tensors, path, **options):
    """Return the message with which these tensors are refused; it names the file."""
    with pytest.raises(CheckpointError) as error:
        load_tensors(tensors, path, **options)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "checkpoint.safetensors"


# --- containers -----------------------------------------------------------------------------


def prefixed(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def wrapped(tensors):
    """Put the wrappers' parts at the front, inside, and twice in names."""
    compiled = {
        name.replace("encoder.layers.", "encoder._orig_mod.layers.")
        .replace("encoder_v.layers.1.", "encoder_v._orig_mod.layers.1.module.")
        .replace("mlp.", "mlp._checkpoint_wrapped_module.")
        .replace("mixer.", "_fsdp_wrapped_module.mixer.")
        .replace("encoder_layer_0.", "encoder_layer_0._fsdp_wrapped_module._orig_mod.")
        .replace("decoder_blocks.0.", "decoder_blocks.0._orig_mod.module.")
        .replace("decoder_v.0.", "decoder_v.0._orig_mod.module."): tensor
        for name, tensor in tensors.items()
    }
    return prefixed("module._orig_mod.model.module.")(compiled)


def with_unused_norm(tensors):
    """Add the norm that the authors' GRAM-M stores and never applies."""
    generator = torch.Generator().manual_seed(5)
    norm = {f"encoder_norm.{part}": torch.randn(64, generator=generator) for part in WEIGHT_BIAS}
    return tensors | norm


@pytest.mark.slow
@pytest.mark.parametrize(
    "rename",
    [
        prefixed(""),
        prefixed("model."),
        prefixed("encoder.model."),
        prefixed("encoder."),
        prefixed("a.b_2.model.c."),
        prefixed("_orig_mod."),
        prefixed("module."),
        prefixed("_fsdp_wrapped_module."),
        wrapped,
    ],
    ids=["bare", "model", "encoder.model", "encoder", "nested", "compile", "module", "fsdp", "all"],
)
@pytest.mark.parametrize("kind", ["safetensors", "pt", "state_dict", "model"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_containers_hold_one_model(
    rename, kind, backbone, published_tensors, published_file, tmp_path
):
    tensors = published_tensors(2, backbone=backbone)
    tensors = rename(tensors if backbone == "transformer" else with_unused_norm(tensors))
    content, name = {
        "safetensors": (tensors, "file.safetensors"),
        "pt": (tensors, "file.pt"),
        "state_dict": ({"epoch": 3, "state_dict": tensors, "lr": [0.1]}, "file.ckpt"),
        "model": ({"model": tensors, "optimizer": {"step": 1}}, "file.pth"),
    }[kind]
    expected = load_checkpoint(published_file(2, backbone=backbone))
    assert_same(load_tensors(content, tmp_path / name), expected)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["multi_window", "plain", None])
@pytest.mark.parametrize("patching", ["frame", "time"])
@pytest.mark.parametrize("channels", [1, 2, 7])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_tensors_alone_tell_the_model(
    channels, patching, decoder, backbone, published_file, make_config, file
):
    checkpoint = load_checkpoint(published_file(channels, patching, decoder, backbone=backbone))
    assert checkpoint.config == make_config(channels, patching, decoder, backbone)
    assert checkpoint.tensors.keys() == store.expected_shapes(checkpoint.config).keys()
    assert_same(load_checkpoint(save_checkpoint(checkpoint, file)), checkpoint)


@pytest.mark.parametrize(
    "encoder",
    [
        Mamba2Config(width=48, depth=1, state=5, head_width=12, expansion=1, convolution=2),
        Mamba2Config(width=32, depth=3, state=16, head_width=128, expansion=4, convolution=1),
        Mamba1Config(width=48, depth=1, state=5, expansion=1, convolution=2, step_rank=3),
        Mamba1Config(width=32, depth=11, state=1, expansion=4, convolution=5, step_rank=40),
    ],
    ids=lambda encoder: f"{encoder.backbone}-{encoder.depth}",
)
def test_every_size_of_a_mixer_is_read_from_the_tensors(encoder, make_config, file):
    config = dataclasses.replace(make_config(2, decoder=None), encoder=encoder)
    model = GramModel(config)
    initialise(model, 0)
    tensors = {published_name(name, config): each for name, each in model.state_dict().items()}
    checkpoint = load_tensors(tensors, file)
    assert checkpoint.config == config
    for name, tensor in model.state_dict().items():
        assert torch.equal(checkpoint.tensors[name], tensor), name


def test_published_names_are_the_authors_own(published_tensors):
    names = set(published_tensors(2))
    layer, block = "encoder.layers.encoder_layer_1.", "decoder_blocks.0."
    parts = WEIGHT_BIAS
    for expected in (
        "cls_token",
        "mask_token",
        "encoder.pos_embedding",
        "decoder_pos_embed",
        *(f"patch_embed.proj.{part}" for part in parts),
        *(f"encoder.ln.{part}" for part in parts),
        *(f"{layer}{name}.{part}" for name in ("ln_1", "ln_2", "mlp.0", "mlp.3") for part in parts),
        *(f"{layer}self_attention.in_proj_{part}" for part in parts),
        *(f"{layer}self_attention.out_proj.{part}" for part in parts),
        *(f"{block}{name}.{part}" for name in ("norm1", "norm2") for part in parts),
        *(f"{block}{name}.{part}" for name in ("mlp.fc1", "mlp.fc2") for part in parts),
        *(f"{block}wmha.{name}.{part}" for name in ("qkv", "proj") for part in parts),
        *(f"{block}wmha.attn_heads.{h}.relative_position_bias_table" for h in range(6)),
        *(f"decoder_{name}.{part}" for name in ("embed", "norm") for part in parts),
        *(f"spec_pred.0.{part}" for part in parts),
    ):
        assert expected in names
        names.discard(expected)
    assert all(name.startswith("encoder.layers.encoder_layer_0.") for name in names)


@pytest.mark.parametrize(
    ("backbone", "own"),
    [
        ("mamba2", ["dt_bias", "norm.weight"]),
        ("mamba1", ["x_proj.weight", "dt_proj.weight", "dt_proj.bias"]),
    ],
)
def test_published_names_of_gram_m_are_the_authors_own(backbone, own, published_tensors):
    names = set(published_tensors(2, backbone=backbone))
    mixer = [
        "A_log",
        "D",
        "in_proj.weight",
        "conv1d.weight",
        "conv1d.bias",
        "out_proj.weight",
        *own,
    ]
    layer = {"encoder_v.layers.1.norm.weight", *(MIXER.format(1) + name for name in mixer)}
    assert {name for name in names if name.startswith("encoder_v.layers.1.")} == layer
    rest = {name for name in names if not name.startswith("encoder_v.layers.")}
    encoder = {name for name in rest if not name.startswith(("decoder_", "mask_token", "spec_"))}
    patches = {"cls_token", *(f"patch_embed.proj.{part}" for part in WEIGHT_BIAS)}
    assert encoder == {"encoder_pos_embed", "encoder_v.norm_f.weight"} | patches
    renamed = {name.replace("decoder_v.", "decoder_blocks.") for name in rest - encoder}
    gram_t = set(published_tensors(2))
    assert renamed == {n for n in gram_t if n.startswith(("decoder_", "mask_token", "spec_"))}
    assert not any(name.startswith("decoder_blocks") for name in names)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_loads_as_float32(dtype, published_tensors, file):
    tensors = {name: tensor.to(dtype) for name, tensor in published_tensors(1).items()}
    checkpoint = load_tensors(tensors, file)
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {torch.float32}
    given = tensors["patch_embed.proj.weight"].float()
    assert torch.equal(checkpoint.tensors["patches.weight"], given)


def test_parameters_load_as_tensors(published_tensors, published_file, tmp_path):
    tensors = {name: torch.nn.Parameter(t) for name, t in published_tensors(2).items()}
    assert_same(load_tensors(tensors, tmp_path / "p.pt"), load_checkpoint(published_file(2)))


def test_a_file_of_old_torch_loads(published_tensors, published_file, tmp_path):
    path = tmp_path / "old.pt"
    torch.save(published_tensors(2), path, _use_new_zipfile_serialization=False)
    assert_same(load_checkpoint(path), load_checkpoint(published_file(2)))


def test_derived_tensors_are_checked_and_dropped(published_tensors, published_file, file):
    expected = load_checkpoint(published_file(2))
    front_end = FrontEnd(expected.config.front_end)
    place = torch.arange(5)
    derived = {
        "mel_spec.mel_scale.fb": front_end.filterbank,
        "mel_spec.spectrogram.window": front_end.window,
        "model.melspec.mel_scale.fb": front_end.filterbank.half(),
        "model." + BIAS_INDEX.format(1): place[:, None] - place + 4,
    }
    tensors = prefixed("model.")(published_tensors(2)) | derived
    assert_same(load_tensors(tensors, file), expected)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("mel_spec.mel_scale.fb", torch.zeros(513, 128)),
        ("mel_spec.mel_scale.fb", torch.zeros(513, 64)),
        ("mel_spec.spectrogram.window", torch.ones(1024)),
        (BIAS_INDEX.format(0), torch.zeros(2, 2, dtype=torch.long)),
    ],
)
def test_derived_tensors_that_differ_are_refused(name, tensor, published_tensors, file):
    assert name in refusal(published_tensors(2) | {name: tensor}, file)


# --- heads ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "gramt_frame_2ch.safetensors",
        "gramt_frame_2ch_lightning.ckpt",
        "gramt_frame_7ch.safetensors",
    ],
)
def test_heads_that_no_tensor_tells_must_be_given(name, golden_path):
    with pytest.raises(CheckpointError, match=r"heads=.*--heads"):
        load_checkpoint(golden_path(name))
    assert load_checkpoint(golden_path(name), heads=4).config.encoder.heads == 4


def test_heads_overrule_the_usual_width(published_file):
    assert load_checkpoint(published_file(1), heads=2).config.encoder.heads == 2


@pytest.mark.parametrize("heads", [0, 3, -1])
def test_heads_that_do_not_fit_are_refused(heads, published_file):
    with pytest.raises(CheckpointError, match="heads"):
        load_checkpoint(published_file(1), heads=heads)


def test_heads_contradict_a_file_of_ours(small_model, file):
    gram_hear.save_model(small_model(1), file)
    with pytest.raises(OptionError, match="own configuration"):
        load_checkpoint(file, heads=1)


# --- faults ---------------------------------------------------------------------------------


def test_all_faults_are_listed_at_once(published_tensors, file):
    tensors = published_tensors(2)
    del tensors["encoder.ln.weight"]
    del tensors["encoder.layers.encoder_layer_0.mlp.3.bias"]
    tensors["stranger.weight"] = torch.zeros(3)
    tensors[PATCH_BIAS] = torch.zeros(65)
    tensors["cls_token"] = torch.full((1, 1, 64), float("nan"))
    tensors["encoder.ln.bias"] = torch.full((64,), float("inf"))
    tensors["mask_token"] = torch.zeros(1, 1, 32, dtype=torch.int64)
    message = refusal(tensors, file)
    assert "missing: encoder.ln.weight (64,)" in message
    assert "missing: encoder.layers.encoder_layer_0.mlp.3.bias (64,)" in message
    assert "unexpected: stranger.weight" in message
    assert f"misshapen: {PATCH_BIAS} is (65,), must be (64,)" in message
    assert "not finite: cls_token" in message
    assert "not finite: encoder.ln.bias" in message
    assert "wrong type: mask_token is torch.int64" in message
    assert "7 of the tensors" in message


def test_all_faults_of_a_file_of_ours_are_listed_at_once(small_model, file):
    gram_hear.save_model(small_model(2), file)
    with safe_open(file, framework="pt") as content:
        metadata = content.metadata()
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    del tensors["patches.bias"]
    tensors |= {"decoder.norm.bias": torch.zeros(32), "encoder.norm.bias": torch.zeros(2)}
    save_file(tensors, file, metadata)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(file)
    for name in ("patches.bias", "decoder.norm.bias", "encoder.norm.bias"):
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("backbone", "without"),
    [
        *((b, w) for b in BACKBONES for w in ("decoder_norm.", "decoder_embed.", "mask_token")),
        *((b, "spec_pred.") for b in BACKBONES),
        ("transformer", "decoder_blocks."),
        ("mamba2", "decoder_v."),
        ("mamba1", "decoder_v."),
    ],
)
def test_half_a_decoder_is_refused(backbone, without, published_tensors, file):
    tensors = published_tensors(2, backbone=backbone)
    tensors = {n: t for n, t in tensors.items() if not n.startswith(without)}
    assert without in refusal(tensors, file)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_remains_of_a_removed_decoder_are_left(backbone, published_tensors, published_file, file):
    tensors = published_tensors(2, backbone=backbone)
    tensors = {n: t for n, t in tensors.items() if not n.startswith("decoder_")}
    assert {"mask_token", "spec_pred.0.weight"} <= tensors.keys()
    expected = load_checkpoint(published_file(2, decoder=None, backbone=backbone))
    assert_same(load_tensors(tensors, file), expected)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("patch_embed.proj.weight", (64, 3, 16, 8)),
        ("patch_embed.proj.weight", (64, 2, 16)),
        ("patch_embed.proj.weight", (64, 2, 24, 8)),
        ("patch_embed.proj.weight", (64, 2, 16, 7)),
        ("patch_embed.proj.weight", (64, 2, 0, 8)),
        ("patch_embed.proj.weight", (64, 2, 256, 8)),
        ("encoder.pos_embedding", (201, 64)),
        ("encoder.pos_embedding", (1, 1, 64)),
        ("encoder.pos_embedding", (1, 0, 64)),
        ("encoder.layers.encoder_layer_0.mlp.0.weight", (128,)),
        ("decoder_embed.weight", ()),
        ("decoder_blocks.0.wmha.attn_heads.0.relative_position_bias_table", (4, 1)),
        ("decoder_blocks.0.wmha.attn_heads.0.relative_position_bias_table", ()),
    ],
)
def test_tensors_of_no_model_are_refused(name, shape, published_tensors, file):
    refusal(published_tensors(2) | {name: torch.zeros(shape)}, file)


@pytest.mark.parametrize(
    ("backbone", "name", "shape"),
    [
        *((backbone, "encoder_pos_embed", (201, 64)) for backbone in MAMBAS),
        *((backbone, MIXER.format(0) + "A_log", (3,)) for backbone in MAMBAS),
        *((backbone, MIXER.format(0) + "A_log", (0,)) for backbone in MAMBAS),
        *((backbone, MIXER.format(0) + "A_log", (4, 4, 1)) for backbone in MAMBAS),
        *((backbone, MIXER.format(0) + "out_proj.weight", (64, 100)) for backbone in MAMBAS),
        *((backbone, MIXER.format(0) + "out_proj.weight", (64, 0)) for backbone in MAMBAS),
        *((backbone, MIXER.format(0) + "out_proj.weight", (64,)) for backbone in MAMBAS),
        *((backbone, MIXER.format(0) + "conv1d.weight", (161, 1, 4)) for backbone in MAMBAS),
        *((backbone, MIXER.format(0) + "conv1d.weight", (4, 1, 4)) for backbone in MAMBAS),
        *((backbone, MIXER.format(0) + "conv1d.weight", (160, 1, 0)) for backbone in MAMBAS),
        *((backbone, MIXER.format(1) + "conv1d.weight", (160, 1, 3)) for backbone in MAMBAS),
        *((backbone, MIXER.format(1) + "out_proj.weight", (64, 64)) for backbone in MAMBAS),
        ("mamba2", MIXER.format(0) + "conv1d.weight", (128, 1, 4)),  # no state is left
        ("mamba2", MIXER.format(0) + "in_proj.weight", (291, 64)),
        ("mamba2", MIXER.format(1) + "A_log", (8,)),
        ("mamba1", MIXER.format(0) + "A_log", (100, 4)),
        ("mamba1", MIXER.format(0) + "dt_proj.weight", (192, 0)),
        ("mamba1", MIXER.format(0) + "x_proj.weight", (13, 192)),
        ("mamba1", MIXER.format(1) + "dt_proj.weight", (192, 5)),
    ],
)
def test_mixers_of_no_model_are_refused_by_name(backbone, name, shape, published_tensors, file):
    tensors = published_tensors(2, backbone=backbone)
    assert name in refusal(tensors | {name: torch.zeros(shape)}, file)


MIXER_PARTS = ("A_log", "D", "conv1d.weight", "out_proj.weight")


@pytest.mark.parametrize("backbone", MAMBAS)
@pytest.mark.parametrize(
    ("without", "named"),
    [
        ("encoder_pos_embed", "encoder_pos_embed"),
        ("encoder_v.norm_f.weight", "encoder_v.norm_f.weight"),
        ("encoder_v.layers.0.norm.weight", "encoder_v.layers.0.norm.weight"),
        *((MIXER.format(0) + part, MIXER.format(0) + part) for part in MIXER_PARTS),
        (MIXER.format(1) + "in_proj.weight", MIXER.format(1) + "in_proj.weight"),
        ("encoder_v.layers.0.", "encoder_v.layers.0.* is missing"),
        ("encoder_v.layers.", "encoder_v.layers.0.mixer.A_log is missing"),
    ],
)
def test_what_is_missing_in_gram_m_is_named(backbone, without, named, published_tensors, file):
    tensors = published_tensors(2, backbone=backbone)
    tensors = {name: t for name, t in tensors.items() if not name.startswith(without)}
    assert named in refusal(tensors, file)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("backbone", "other"), [("mamba2", "mamba1"), ("mamba1", "mamba2")])
def test_two_kinds_of_mixer_in_one_stack_are_refused(
    backbone, other, layer, published_tensors, file
):
    mixer = MIXER.format(layer)
    stack, foreign = (published_tensors(2, backbone=each) for each in (backbone, other))
    tensors = {name: tensor for name, tensor in stack.items() if not name.startswith(mixer)}
    tensors |= {name: tensor for name, tensor in foreign.items() if name.startswith(mixer)}
    message = refusal(tensors, file)  # the first mixer says which kind; the second does not fit
    assert f"misshapen: {MIXER.format(1)}A_log" in message
    gone, left = (
        ("dt_bias", "dt_proj.weight")
        if (backbone == "mamba2") == (layer == 1)
        else (
            "dt_proj.weight",
            "dt_bias",
        )
    )
    assert f"missing: {MIXER.format(1)}{gone}" in message
    assert f"unexpected: {MIXER.format(1)}{left}" in message


@pytest.mark.parametrize(
    ("backbone", "stray"),
    [
        *((b, "encoder.layers.encoder_layer_0.ln_1.weight") for b in MAMBAS),
        *((b, "encoder.pos_embedding") for b in MAMBAS),
        *((b, "decoder_blocks.0.norm1.weight") for b in MAMBAS),
        ("transformer", "encoder_v.layers.0.norm.weight"),
        ("transformer", "decoder_v.0.norm1.weight"),
        ("transformer", "encoder_norm.weight"),  # GRAM-M's alone
    ],
)
def test_a_tensor_of_the_other_family_is_named(backbone, stray, published_tensors, file):
    tensors = published_tensors(2, backbone=backbone) | {stray: torch.ones(64)}
    message = refusal(tensors, file)
    assert f"unexpected: {stray}" in message
    assert "1 of the tensors" in message
    assert ("GRAM-T" if backbone == "transformer" else "GRAM-M") in message


@pytest.mark.parametrize("backbone", MAMBAS)
def test_heads_are_refused_with_gram_m(backbone, published_file):
    with pytest.raises(CheckpointError, match=r"heads=4.*GRAM-M.*Leave it out"):
        load_checkpoint(published_file(1, backbone=backbone), heads=4)


def test_two_models_in_one_file_are_refused(published_tensors, file):
    first, second = published_tensors(2), published_tensors(2, seed=1)
    message = refusal(prefixed("student.")(first) | prefixed("teacher.")(second), file)
    assert "student.patch_embed" in message
    assert "teacher.patch_embed" in message


def test_a_file_without_a_model_is_refused(file):
    message = refusal({"conv.weight": torch.zeros(3)}, file)
    assert "No GRAM model" in message
    assert "conv.weight" in message
    assert "0 tensors" in refusal({}, file)


def test_names_that_become_one_are_refused(published_tensors, file):
    message = refusal(published_tensors(2) | {"module.cls_token": torch.zeros(1, 1, 64)}, file)
    assert "Two tensors are named 'cls_token'" in message


def test_a_value_past_float32_is_refused(published_tensors, file):
    huge = torch.full((1, 1, 64), 1e300, dtype=torch.float64)
    assert "cls_token" in refusal(published_tensors(2) | {"cls_token": huge}, file)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.bool])
def test_other_types_of_tensor_are_refused(dtype, published_tensors, file):
    odd = torch.zeros(1, 1, 64).to(dtype)
    assert "cls_token" in refusal(published_tensors(2) | {"cls_token": odd}, file)


# --- files that are no checkpoints ----------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_code_is_refused(legacy, published_tensors, tmp_path):
    made, path = tmp_path / "made", tmp_path / "evil.pt"
    content = {"state_dict": published_tensors(2), "callback": RunsCode(made)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"system.*could run code"):
        load_checkpoint(path)
    assert not made.exists()


@pytest.mark.parametrize("name", ["model.pt", "last.ckpt"])
def test_classes_in_a_file_are_named(name, published_tensors, tmp_path):
    path = tmp_path / name
    torch.save(
        {
            "state_dict": published_tensors(2),
            "hyper_parameters": HyperParameters(),
            "args": argparse.Namespace(lr=0.1),
        },
        path,
    )
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert "HyperParameters" in str(error.value)
    assert "argparse.Namespace" in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([torch.zeros(2)], "list"),
        (torch.zeros(2), "Tensor"),
        ({"epoch": 1, "weights": {"a": torch.zeros(2)}}, "epoch, weights"),
        ({1: torch.zeros(2)}, "1"),
    ],
)
def test_torch_files_of_other_things_are_refused(content, told, tmp_path):
    assert told in refusal(content, tmp_path / "other.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt"])
@pytest.mark.parametrize("damage", ["empty", "garbage", "pointer", "start", "half", "end"])
def test_damaged_files_are_refused(suffix, damage, published_tensors, tmp_path):
    path = tmp_path / f"model{suffix}"
    load_tensors(published_tensors(1), path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "garbage": bytes(range(1, 256)) * 9,
            "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            "start": whole[:50],
            "half": whole[: len(whole) // 2],
            "end": whole[:-1],
        }[damage]
    )
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)
    assert ("is empty" if damage == "empty" else "not a whole") in str(error.value)
    assert "weights_only" not in str(error.value)  # nobody should be led to unsafe loading


@pytest.mark.parametrize(("given", "named"), [(".pt", ".safetensors"), (".safetensors", ".pt")])
def test_renamed_files_are_refused(given, named, published_tensors, tmp_path):
    path = tmp_path / f"model{given}"
    load_tensors(published_tensors(1), path)
    with pytest.raises(CheckpointError, match="not a whole"):
        load_checkpoint(path.rename(tmp_path / f"renamed{named}"))


@pytest.mark.parametrize("name", ["model.npz", "model", "model.safetensors.bak"])
def test_unknown_suffixes_are_refused(name, published_file, tmp_path):
    path = tmp_path / name
    path.write_bytes(published_file(1).read_bytes())
    with pytest.raises(CheckpointError, match=r"allowed are \.safetensors, \.ckpt, \.pt"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["absent.pt", "./absent", "~/absent/absent", "x/y/absent.ckpt"])
def test_an_absent_file_is_told(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no file or folder"):
        load_checkpoint(name)


def test_a_broken_link_is_told(tmp_path):
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match="no file or folder"):
        load_checkpoint(link)


def test_a_path_that_cannot_be_looked_up_is_refused():
    with pytest.raises((CheckpointError, OptionError)):
        load_checkpoint("a" * 5000 + ".pt")


def test_a_file_that_may_not_be_read_is_told(published_file, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    path = published_file(1)
    monkeypatch.setattr(store, "read_tensors", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        load_checkpoint(path)


# --- files that claim more than they hold ---------------------------------------------------


@contextlib.contextmanager
def bounded(seconds=1.0, mebibytes=200):
    """Fail where what is inside takes longer, or more memory, than an error may."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - start < seconds
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * unit < mebibytes << 20


def claim(path, **options):
    """Return the one line with which a file is refused, without time and memory."""
    with bounded(), pytest.raises(CheckpointError) as error:
        load_checkpoint(path, **options)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("front_end", "mels"), 1_000_000, "mels is 1000000; it must be"),
        (("front_end", "n_fft"), 1 << 24, "n_fft is 16777216; it must be"),
        (("front_end", "hop"), 100_000, "hop 100000 is longer than a frame"),
        (("front_end", "sample_rate"), 10**9, "sample_rate is 1000000000; it must be"),
        (("front_end", "log_floor"), 1e300, "log_floor is 1e+300; it must be"),
        (("front_end", "layout"), "x" * 20_000, "allowed are mono, binaural"),
        (("encoder", "depth"), 1_000, "but the file has"),
        (("encoder", "depth"), -3, "depth is -3; it must be"),
        (("encoder", "width"), 2**62, "width is 4611686018427387904; it must be"),
        (("encoder", "heads"), "4", "'4'; it must be of type int"),
        (("decoder", "depth"), 1_000, "but the file has"),
        (("decoder", "heads"), 2_000, "heads is 2000; it must be"),
        (("decoder", "windows"), [1] * 10_000, "10000 windows for 8 heads"),
        (("window_frames",), 10**9, "window_frames is 1000000000; it must be"),
        (("window_frames",), 10**101, "a number of 102 digits"),
        (("window_fill",), [[[[[[]]]]]] * 1_000, "must be of type str"),
    ],
)
def test_a_configuration_that_asks_for_too_much_is_one_line(
    place, value, said, published_file, file
):
    save_checkpoint(load_checkpoint(published_file(2)), file)
    with safe_open(file, framework="pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        config = json.loads(content.metadata()[store.CONFIG_KEY])
    part = config[place[0]] if len(place) > 1 else config
    part[place[-1]] = value
    save_file(tensors, file, {store.CONFIG_KEY: json.dumps(config)})
    message = claim(file)
    assert said in message
    assert len(message) < 1000


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, '{"a":' * 70, "1e999", "\ud83d", "{}"])
def test_a_configuration_that_is_no_plain_json_is_one_line(text, file):
    text = json.dumps(text) if text.startswith("\ud83d") else text
    save_file({"patches.weight": torch.zeros(1)}, file, {store.CONFIG_KEY: text})
    assert "configuration" in claim(file)


def write_header(path, header, values=b""):
    """Write a safetensors file whose header need not be true."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)


def test_two_tensors_of_one_name_are_refused(file):
    entry = b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    write_header(file, b"{" + entry + b", " + entry.replace(b"F32", b"I32") + b"}", bytes(4))
    assert "'a' stands twice" in claim(file)


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [((2**40,), (0, 2**42)), ((2**40,), (0, 8)), ((2,), (4, 12)), ((2**62, 2**62), (0, 8))],
)
def test_a_header_that_lies_is_one_line(shape, offsets, file):
    write_header(file, {"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}, bytes(8))
    assert "not a whole safetensors file" in claim(file)


def test_a_header_longer_than_the_file_is_one_line(file):
    file.write_bytes(b"\xff" * 7 + b"\x7f{}")
    assert "not a whole safetensors file" in claim(file)


def test_a_name_of_a_tensor_stays_on_its_line(file):
    save_file({"a\n\x1b[31m": torch.zeros(1)}, file)
    assert r"'a\n\x1b[31m', is not printable" in claim(file)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "mel_scale.fb", PATCH_BIAS])
def test_a_tensor_that_repeats_one_value_is_one_line(name, legacy, published_tensors, tmp_path):
    tensors = published_tensors(1) | {name: torch.zeros(1).expand(10**12)}
    torch.save(tensors, tmp_path / "expand.pt", _use_new_zipfile_serialization=not legacy)
    message = claim(tmp_path / "expand.pt")
    assert "4,000,00" in message
    assert f"{name}, (1000000000000,)" in message


def test_tensors_that_share_their_values_load(published_tensors, published_file, tmp_path):
    tensors = published_tensors(2)
    shared = torch.cat([tensors[PATCH_BIAS], tensors["cls_token"].flatten()])
    tensors |= {PATCH_BIAS: shared[:64], "cls_token": shared[64:].view(1, 1, 64)}
    assert_same(load_tensors(tensors, tmp_path / "p.pt"), load_checkpoint(published_file(2)))


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """Change the members of a PyTorch file: name -> content -> content."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def test_values_beyond_the_end_of_the_file_are_one_line(tmp_path):
    path = tmp_path / "beyond.pt"
    torch.save({PATCH_BIAS: torch.zeros(100)}, path)
    count, more = b"cpuq\x06Kd", b"cpuq\x06J\x00\x00\x00\x7f"  # of values, as BININT1 and BININT
    size, larger = b"Kd\x85", b"J\x00\x00\x00\x7f\x85"
    rewrite(path, lambda name, content: content.replace(count, more).replace(size, larger))
    assert "not a whole PyTorch checkpoint" in claim(path)


def test_a_compressed_archive_is_one_line(published_tensors, tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save(published_tensors(1), path)
    grow = bytes(64 << 20)
    rewrite(path, lambda n, c: grow if n.endswith("data/0") else c, zipfile.ZIP_DEFLATED)
    assert "compressed, or larger than the file" in claim(path)


def test_a_part_larger_than_the_file_is_one_line(published_tensors, tmp_path):
    path = tmp_path / "large.pt"
    torch.save(published_tensors(1), path)
    content = bytearray(path.read_bytes())
    entry = content.find(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = b"\xff\xff\xff\x7f" * 2  # both sizes of the first member
    path.write_bytes(content)
    assert "compressed, or larger than the file" in claim(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_that_is_cut_or_changed_anywhere_is_refused(legacy, tmp_path):
    path = tmp_path / "small.pt"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for place in range(0, len(whole), 1 if legacy else 7):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        for content in (whole[:place], bytes(changed)):
            path.write_bytes(content)
            with pytest.raises(CheckpointError):
                load_checkpoint(path)


@pytest.mark.parametrize("call", [b"__builtin__\nbytearray", b"builtins\nbytearray"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_fills_the_memory_is_one_line(call, legacy, tmp_path):
    path = tmp_path / "greedy.pt"
    evil = b"\x80\x02c" + call + b"\n\x8a\x05" + (10**11).to_bytes(5, "little") + b"\x85R."
    torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=not legacy)
    if legacy:
        path.write_bytes(path.read_bytes().replace(b"\x80\x02}q", evil + b"\x80\x02}q", 1))
    else:
        rewrite(path, lambda name, content: evil if name.endswith("data.pkl") else content)
    assert "could fill the memory" in claim(path)


@pytest.mark.parametrize("name", ["mel_scale.fb", "patch_embed.proj.weight", PATCH_BIAS])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, 3).to_sparse(),
        torch.zeros(3, 3).to_sparse_csr(),
        torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8),
        torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**9,) * 2),
        torch.zeros(10**15, device="meta"),
    ],
    ids=["sparse", "rows", "quantised", "large sparse", "meta"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_of_other_kinds_are_one_line(name, tensor, published_tensors, tmp_path):
    torch.save(published_tensors(1) | {name: tensor}, tmp_path / "odd.pt")
    assert f"wrong type: {name}" in claim(tmp_path / "odd.pt")


def test_a_bias_index_that_is_no_square_builds_none(published_tensors, file):
    tensors = published_tensors(1) | {
        BIAS_INDEX.format(0): torch.zeros(2_000_000, dtype=torch.int8)
    }
    save_file(tensors, file)
    with bounded(), pytest.raises(CheckpointError, match=r"different: decoder_blocks\.0"):
        load_checkpoint(file)


def test_a_large_configuration_beside_the_file_is_not_read(small_model, tmp_path):
    gram_hear.save_pretrained(small_model(1), tmp_path)
    with open(tmp_path / "config.json", "wb") as content:
        content.truncate(1 << 33)  # zeros that take no room
    assert "larger than 65,536 bytes" in claim(tmp_path)


def test_an_index_of_parts_is_not_followed(published_tensors, tmp_path):
    folder = tmp_path / "sharded"
    folder.mkdir()
    save_file(published_tensors(1), tmp_path / "outside.safetensors")
    index = {"weight_map": dict.fromkeys(published_tensors(1), "../outside.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(folder)


# --- folders --------------------------------------------------------------------------------


def test_a_folder_with_the_usual_file_loads(published_tensors, published_file, tmp_path):
    save_file(published_tensors(2), tmp_path / "model.safetensors")
    save_file(published_tensors(1), tmp_path / "another.safetensors")
    assert_same(load_checkpoint(tmp_path), load_checkpoint(published_file(2)))


@pytest.mark.parametrize("name", ["last.ckpt", "weights.safetensors"])
def test_a_folder_with_one_checkpoint_loads(name, published_tensors, published_file, tmp_path):
    load_tensors(published_tensors(2), tmp_path / name)
    (tmp_path / "README.md").write_text("A model.")
    checkpoint = load_checkpoint(tmp_path)
    assert_same(checkpoint, load_checkpoint(published_file(2)))
    assert checkpoint.source.path == tmp_path / name


def test_a_folder_with_several_checkpoints_is_refused(published_tensors, tmp_path):
    for name in ("a.pt", "b.ckpt"):
        torch.save(published_tensors(1), tmp_path / name)
    with pytest.raises(CheckpointError, match=r"a\.pt, b\.ckpt.*Name the file"):
        load_checkpoint(tmp_path)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_a_folder_in_place_of_the_file_is_refused(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", b"\xff\xfe"], ids=repr)
def test_a_folder_whose_config_cannot_be_read_is_refused(text, small_model, tmp_path):
    gram_hear.save_pretrained(small_model(1), tmp_path)
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(tmp_path)


def test_a_folder_whose_config_differs_is_refused(small_model, tmp_path):
    model = small_model(1)
    gram_hear.save_pretrained(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["front_end"]["log_floor"] = 1e-5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json differs"):
        load_checkpoint(tmp_path)


def test_the_config_of_a_foreign_folder_is_left_alone(published_tensors, tmp_path):
    save_file(published_tensors(1), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Code"}}')
    assert load_checkpoint(tmp_path).source.layout == "published"


# --- saving ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 7])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(
    ("save", "patching"), [(gram_hear.save_model, "frame"), (gram_hear.save_pretrained, "time")]
)
def test_a_saved_model_embeds_the_same_bits(
    save, channels, patching, backbone, small_model, noise, tmp_path
):
    model = small_model(channels, patching, backbone)
    place = save(model, tmp_path / "saved.safetensors")
    audio = noise(1, 20000)
    again = gram_hear.load_model(place)
    assert again.source.layout == "gram-hear"
    for embed in (gram_hear.get_timestamp_embeddings, gram_hear.get_scene_embeddings):
        for found, expected in zip(embed(audio, again), embed(audio, model), strict=True):
            assert torch.equal(found, expected)


def test_a_saved_model_holds_its_whole_configuration(small_model, file):
    model = small_model(2, "time")
    gram_hear.save_model(model, file)
    with safe_open(file, framework="pt") as content:
        metadata = content.metadata()
        names = set(content.keys())
    config = ModelConfig.from_json(metadata["gram_hear_config"])
    assert config.decoder is None
    assert config.front_end == model.config.front_end
    assert config.encoder == model.config.encoder
    assert (config.patch, config.window_fill) == (model.config.patch, model.config.window_fill)
    assert names == set(model.gram.state_dict())
    assert metadata["format"] == "pt"  # what other readers of safetensors ask for


@pytest.mark.parametrize("decoder", ["multi_window", "plain"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_saved_autoencoder_keeps_its_decoder(decoder, backbone, published_file, file):
    checkpoint = load_checkpoint(published_file(2, decoder=decoder, backbone=backbone))
    autoencoder = build_autoencoder(checkpoint)
    assert isinstance(autoencoder, MaskedAutoencoder)
    gram_hear.save_model(autoencoder, file)
    assert_same(load_checkpoint(file), checkpoint)
    again = build_autoencoder(load_checkpoint(file))
    features = torch.rand(1, 2, 200, 128)
    indices = split_mask(torch.arange(200)[None] % 5 > 0)
    assert torch.equal(again(features, *indices).loss, autoencoder(features, *indices).loss)


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_a_saved_model_is_as_readable_as_other_files(small_model, tmp_path):
    path = gram_hear.save_model(small_model(2), tmp_path / "model.safetensors")
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_saved_folder_has_its_config_to_read(small_model, tmp_path):
    model = small_model(7)
    assert gram_hear.save_pretrained(model, tmp_path / "a" / "b") == tmp_path / "a" / "b"
    written = (tmp_path / "a" / "b" / "config.json").read_text()
    assert ModelConfig.from_json(written) == load_checkpoint(tmp_path / "a" / "b").config


def test_a_half_precision_model_saves_as_float32(small_model, file):
    gram_hear.save_model(small_model(2, dtype="bfloat16"), file)
    saved, loaded = load_checkpoint(file), load_checkpoint(small_model(2).source.path)
    for name, tensor in saved.tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, loaded.tensors[name].bfloat16().float())


@pytest.mark.parametrize("save", [gram_hear.save_model, gram_hear.save_pretrained])
def test_saving_is_whole_or_not_at_all(save, small_model, tmp_path, monkeypatch):
    target = tmp_path / "model.safetensors"
    place = target if save is gram_hear.save_model else tmp_path
    save(small_model(1), place)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail_midway(path, data):
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(Path, "write_bytes", fail_midway)
        with pytest.raises(CheckpointError, match=r"could not be written: .*No space left"):
            save(small_model(2), place)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_saving_replaces_a_file(small_model, file):
    for channels in (1, 2):
        gram_hear.save_model(small_model(channels), file)
        assert load_checkpoint(file).config.front_end.feature_channels == channels
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("name", ["model.pt", "model", "model.safetensors.gz"])
def test_only_safetensors_are_saved(name, small_model, tmp_path):
    with pytest.raises(OptionError, match=r"must end in \.safetensors"):
        gram_hear.save_model(small_model(1), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", [gram_hear.save_model, gram_hear.save_pretrained])
def test_only_models_are_saved(save, tmp_path):
    with pytest.raises(OptionError, match="Linear"):
        save(torch.nn.Linear(2, 2), tmp_path / "linear.safetensors")


def test_saving_into_an_absent_folder_is_told(small_model, tmp_path):
    with pytest.raises((OSError, OptionError), match="absent"):
        gram_hear.save_model(small_model(1), tmp_path / "absent" / "model.safetensors")


def test_a_file_in_place_of_the_folder_is_refused(small_model, tmp_path):
    (tmp_path / "taken").write_text("here already")
    with pytest.raises(OptionError, match="is a file"):
        gram_hear.save_pretrained(small_model(1), tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "here already"


def test_the_hash_is_that_of_the_file(published_file):
    path = published_file(1)
    source = load_checkpoint(path).source
    assert source.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (source.layout, source.path) == ("published", path)
    assert load_checkpoint("gram-tiny-untrained").source.sha256() is None


def test_a_gap_in_the_layers_is_named_at_once(published_tensors, tmp_path):
    tensors = published_tensors(1)
    tensors["encoder.layers.encoder_layer_999999.ln_1.weight"] = torch.ones(64)
    message = refusal(tensors, tmp_path / "gap.safetensors")
    assert "layer 999999" in message
    assert "encoder.layers.encoder_layer_2.* is missing" in message


def test_a_bias_table_missing_in_the_first_block_is_named(published_tensors, tmp_path):
    tensors = published_tensors(1)
    block = {name: t for name, t in tensors.items() if name.startswith("decoder_blocks.0.")}
    second = {name.replace("blocks.0", "blocks.1"): t.clone() for name, t in block.items()}
    name = "decoder_blocks.0.wmha.attn_heads.0.relative_position_bias_table"
    del tensors[name]
    assert f"missing: {name}" in refusal({**tensors, **second}, tmp_path / "model.safetensors")


def test_a_folder_named_as_a_checkpoint_is_not_replaced(small_model, tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(OptionError, match="is a folder"):
        gram_hear.save_model(small_model(1), tmp_path / "model.safetensors")


def test_other_faults_are_listed_beside_a_missing_size(published_tensors, tmp_path):
    tensors = published_tensors(1)
    del tensors["encoder.pos_embedding"]
    tensors["cls_token"][0, 0, 0] = float("nan")
    tensors["encoder.layers.encoder_layer_0.mlp.1.weight"] = torch.ones(3)
    message = refusal(tensors, tmp_path / "model.safetensors")
    assert "encoder.pos_embedding is missing" in message
    assert "not finite: cls_token" in message
    assert "unexpected: encoder.layers.encoder_layer_0.mlp.1.weight" in message


@pytest.mark.parametrize("number", ["9" * 5000, "٣", "0000000"])
def test_layer_numbers_that_are_no_numbers_are_refused(published_tensors, file, number):
    tensors = published_tensors(2, backbone="mamba2")
    tensors[f"encoder_v.layers.{number}.mixer.D"] = torch.zeros(2)
    assert f"unexpected: encoder_v.layers.{number}.mixer.D" in refusal(tensors, file)


@pytest.mark.parametrize(
    ("backbone", "size", "value"),
    [
        ("transformer", "mlp_width", 10**19),
        ("mamba2", "state", 10**18),
        ("mamba2", "expansion", 10**19),
        ("mamba2", "depth", 20_000),
        ("mamba1", "step_rank", 2**62),
    ],
)
def test_sizes_beyond_all_measure_are_refused(make_config, file, backbone, size, value):
    data = json.loads(make_config(2, backbone=backbone).to_json())
    data["encoder"][size] = value
    save_file({"patches.weight": torch.zeros(1)}, file, {store.CONFIG_KEY: json.dumps(data)})
    with pytest.raises(CheckpointError, match=f"{size} is {value}; it must be .*at most"):
        load_checkpoint(file)


def test_an_error_shows_so_many_faults_and_counts_the_rest(published_tensors, file):
    tensors = published_tensors(2)
    tensors |= {f"extra.{i}": torch.zeros(1) for i in range(published.FAULTS_SHOWN + 7)}
    message = refusal(tensors, file)
    assert "and 7 more" in message
    assert len(message.splitlines()) < published.FAULTS_SHOWN + 5
