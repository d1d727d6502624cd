"""Configurations: JSON round trips, strictness, and the sizes that follow from others."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gram_hear.config import (
    DecoderConfig,
    EncoderConfig,
    FrontEndConfig,
    ModelConfig,
    PatchConfig,
    named_config,
)
from gram_hear.errors import ConfigError
from gram_hear.model import GramModel
from gram_hear.nn.mae import MaskedAutoencoder


def changed(*path, value):
    """Return the JSON of the base binaural model with the entry at ``path`` set to ``value``."""
    data = json.loads(named_config("base", 2).to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(data)


# --- JSON -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("channels", [1, 2, 7])
@pytest.mark.parametrize("patching", ["frame", "time"])
def test_named_configurations_survive_json(size, channels, patching):
    config = named_config(size, channels, patching)
    assert ModelConfig.from_json(config.to_json()) == config
    assert config.front_end.feature_channels == channels
    assert config.patching == patching


@st.composite
def configs(draw):
    small = st.integers(1, 4)
    heads, patch_mels, patch_frames = draw(small), draw(small), draw(small)
    layout = draw(st.sampled_from(["mono", "binaural", "ambisonic"]))
    floor = draw(st.floats(1e-12, 1.0))
    frequency_patches, time_patches = draw(small), draw(small)
    tokens = frequency_patches * time_patches
    lengths = st.sampled_from([0] + [n for n in range(1, tokens + 1) if tokens % n == 0])
    windows = draw(st.one_of(st.just([]), st.lists(lengths, min_size=heads, max_size=heads)))
    decoder = DecoderConfig(4 * heads, draw(small), heads, draw(small), tuple(windows))
    return ModelConfig(
        front_end=FrontEndConfig(layout, log_floor=floor, mels=frequency_patches * patch_mels),
        patch=PatchConfig(patch_mels, patch_frames),
        encoder=EncoderConfig(4 * heads * draw(small), draw(small), heads, draw(small)),
        decoder=draw(st.sampled_from([None, decoder])),
        window_frames=time_patches * patch_frames,
        window_fill=draw(st.sampled_from(["zero", "silence"])),
    )


@given(configs())
def test_any_configuration_survives_json(config):
    read = ModelConfig.from_json(config.to_json())
    assert read == config
    assert hash(read) == hash(config)


@pytest.mark.parametrize("path", [["decoder"], ["front_end", "log_floor"], ["encoder", "heads"]])
def test_a_field_left_out_is_named(path):
    data = json.loads(named_config("tiny", 2).to_json())
    part = data if len(path) == 1 else data[path[0]]
    del part[path[-1]]
    with pytest.raises(ConfigError, match=f"lacks {path[-1]}"):
        ModelConfig.from_json(json.dumps(data))


def test_whole_numbers_are_read_as_floats_where_floats_belong():
    config = ModelConfig.from_json(changed("front_end", "f_min", value=60))
    assert repr(config.front_end.f_min) == "60.0"


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        (["window_frame"], "window_frames"),
        (["front_end", "log_flor"], "log_floor"),
        (["patch", "frame"], "frames"),
        (["encoder", "head"], "heads"),
        (["decoder", "mlp_widht"], "mlp_width"),
    ],
)
def test_unknown_key_is_named_with_the_nearest(path, nearest):
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_json(changed(*path, value=1))
    assert f"unknown key '{path[-1]}'" in str(error.value)
    assert f"Did you mean '{nearest}'?" in str(error.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["window_frames"], "200"),
        (["window_frames"], 200.0),
        (["window_frames"], None),
        (["window_fill"], 0),
        (["front_end"], []),
        (["front_end"], None),
        (["front_end", "log_floor"], "1e-5"),
        (["front_end", "log_floor"], True),
        (["encoder", "depth"], True),
        (["decoder", "windows"], 2),
        (["decoder", "windows"], [2, 5, 10, 25, 50, 100, 0, "0"]),
    ],
)
def test_wrong_type_is_an_error_that_names_the_place(path, value):
    with pytest.raises(ConfigError, match=r"model\." + r"\.".join(path)):
        ModelConfig.from_json(changed(*path, value=value))


@pytest.mark.parametrize("marker", [None, "gram-hear/2", 1])
def test_another_format_is_an_error_that_names_both(marker):
    with pytest.raises(ConfigError, match="gram-hear/1") as error:
        ModelConfig.from_json(changed("format", value=marker))
    assert repr(marker) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"gram-hear/1"', "{}"])
def test_what_is_no_configuration_is_an_error(text):
    with pytest.raises(ConfigError):
        ModelConfig.from_json(text)


# --- impossible models ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (["front_end", "layout"], "binaurel", "Did you mean 'binaural'"),
        (["front_end", "log_floor"], 0.0, "log_floor"),
        (["front_end", "log_floor"], float("nan"), "log_floor"),
        (["front_end", "hop"], 0, "hop"),
        (["front_end", "f_max"], 17000.0, "half of 32000"),
        (["front_end", "f_min"], 16000.0, "must rise"),
        (["front_end", "f_min"], -1.0, "must rise"),
        (["front_end", "mels"], 120, "120 mel bands"),
        (["patch", "frames"], 7, "200 frames does not divide into patches of 7"),
        (["patch", "mels"], -16, "mels"),
        (["window_frames"], 0, "window_frames"),
        (["window_fill"], "silent", "Did you mean 'silence'"),
        (["encoder", "width"], 770, "not a multiple of 12 heads"),
        (["encoder", "depth"], 0, "depth"),
        (["encoder", "backbone"], "transformr", "Did you mean 'transformer'"),
        (["decoder", "width"], 510, "multiple"),
        (["decoder", "windows"], [2, 5, 10], "3 windows for 8 heads"),
        (["decoder", "windows"], [-2, 5, 10, 25, 50, 100, 0, 0], "negative"),
        (["decoder", "windows"], [3, 5, 10, 25, 50, 100, 0, 0], "window of 3 tokens"),
    ],
)
def test_impossible_model_is_an_error(path, value, complaint):
    with pytest.raises(ConfigError, match=complaint):
        ModelConfig.from_json(changed(*path, value=value))


def test_width_that_positions_cannot_share_is_an_error():
    with pytest.raises(ConfigError, match="multiple of 4"):
        EncoderConfig(width=6, heads=1)


@pytest.mark.parametrize(
    ("arguments", "given"),
    [(("huge", 2), "huge"), (("base", 4), "4"), (("base", 2, "patch"), "patch")],
)
def test_unknown_name_is_an_error_that_lists_the_allowed(arguments, given):
    with pytest.raises(ConfigError, match=f"{given}.*allowed are"):
        named_config(*arguments)


# --- what follows ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "patching", "grid", "hop_ms", "values"),
    [
        (1, "frame", (8, 25), 80.0, 128),
        (2, "frame", (8, 25), 80.0, 256),
        (7, "frame", (8, 25), 80.0, 896),
        (1, "time", (1, 100), 20.0, 256),
        (2, "time", (1, 100), 20.0, 512),
        (7, "time", (1, 100), 20.0, 1792),
    ],
)
def test_derived_sizes_of_base_are_the_published(channels, patching, grid, hop_ms, values):
    config = named_config("base", channels, patching)
    assert (config.frequency_patches, config.time_patches) == grid
    assert config.tokens == grid[0] * grid[1]
    assert config.hop_ms == hop_ms
    assert config.patch_values == values
    assert config.front_end.audio_channels == {1: 1, 2: 2, 7: 4}[channels]


def test_decoder_windows_of_named_configurations_are_the_published():
    assert named_config("base", 2, "frame").decoder.windows == (2, 5, 10, 25, 50, 100, 0, 0)
    assert named_config("base", 2, "time").decoder.windows == (2, 5, 10, 25, 50, 0, 0, 0)


@pytest.mark.parametrize(("channels", "floor"), [(1, 1e-5), (2, 1e-5), (7, 1e-6)])
def test_new_models_fill_with_silence_and_take_the_training_floor(channels, floor):
    config = named_config("base", channels)
    assert config.window_fill == "silence"
    assert config.front_end.log_floor == floor


def parameters(kind, config):
    with torch.device("meta"):
        return sum(each.numel() for each in kind(config).parameters())


def test_base_encoder_has_the_parameters_of_vit_base():
    width, hidden = 768, 3072
    attention = width * 3 * width + 3 * width + width * width + width
    mlp = width * hidden + hidden + hidden * width + width
    block = attention + mlp + 2 * 2 * width
    patches = 256 * width + width + width  # weight, bias, CLS
    assert parameters(GramModel, named_config("base", 2)) == 12 * block + 2 * width + patches
    assert 85e6 < 12 * block < 86e6


def test_decoder_adds_its_parameters_and_windows_only_bias_tables():
    config = named_config("base", 2)
    plain = replace(config, decoder=replace(config.decoder, windows=()))
    tables = sum(2 * window - 1 for window in (2, 5, 10, 25, 50, 100))
    with_tables, without = (parameters(MaskedAutoencoder, each) for each in (config, plain))
    assert with_tables - without == 8 * tables
    assert without > parameters(GramModel, config) + 8 * 12 * 512**2
