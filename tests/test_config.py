"""Configurations: JSON round trips, strictness, and the sizes that follow from others."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gram_hear.config import (
    DecoderConfig,
    FrontEndConfig,
    Mamba1Config,
    Mamba2Config,
    ModelConfig,
    PatchConfig,
    TransformerConfig,
    named_config,
    require_rate,
)
from gram_hear.errors import ConfigError, OptionError
from gram_hear.model import GramModel
from gram_hear.nn.mae import MaskedAutoencoder

BACKBONES = ("transformer", "mamba2", "mamba1")


def changed(*path, value, backbone="transformer"):
    """Return the JSON of the base binaural model with the entry at ``path`` set to ``value``."""
    data = json.loads(named_config("base", 2, backbone=backbone).to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(data)


def test_sample_rates_out_of_range_are_refused():
    require_rate(8000)
    require_rate(1000, (1000, 2000))
    for rate in (7999, 192_001, 16000.5, float("nan"), float("inf"), True):
        with pytest.raises(OptionError, match=f"The rate is {rate}; it must be 8000 to 192000 Hz"):
            require_rate(rate)


# --- JSON -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("channels", [1, 2, 7])
@pytest.mark.parametrize("patching", ["frame", "time"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_named_configurations_survive_json(size, channels, patching, backbone):
    config = named_config(size, channels, patching, backbone)
    assert ModelConfig.from_json(config.to_json()) == config
    assert config.encoder.backbone == backbone
    assert config.family == ("GRAM-T" if backbone == "transformer" else "GRAM-M")
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
    width, depth, expansion = 4 * heads * draw(small), draw(small), draw(small)
    taps, state, rank = draw(small), draw(small), draw(small)
    encoders = [
        TransformerConfig(width, depth, heads, draw(small)),
        Mamba2Config(width, depth, state, heads, expansion, taps),
        Mamba1Config(width, depth, state, expansion, taps, rank),
    ]
    return ModelConfig(
        front_end=FrontEndConfig(layout, log_floor=floor, mels=frequency_patches * patch_mels),
        patch=PatchConfig(patch_mels, patch_frames),
        encoder=draw(st.sampled_from(encoders)),
        decoder=draw(st.sampled_from([None, decoder])),
        window_frames=time_patches * patch_frames,
        window_fill=draw(st.sampled_from(["zero", "silence"])),
    )


@given(configs())
def test_any_configuration_survives_json(config):
    read = ModelConfig.from_json(config.to_json())
    assert read == config
    assert hash(read) == hash(config)


@pytest.mark.parametrize(
    ("backbone", "path"),
    [
        ("transformer", ["decoder"]),
        ("transformer", ["front_end", "log_floor"]),
        ("transformer", ["encoder", "heads"]),
        ("mamba2", ["encoder", "head_width"]),
        ("mamba1", ["encoder", "step_rank"]),
    ],
)
def test_a_field_left_out_is_named(backbone, path):
    data = json.loads(named_config("tiny", 2, backbone=backbone).to_json())
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
    ("backbone", "key", "allowed", "nearest"),
    [
        ("mamba2", "heads", "state, head_width, expansion, convolution", "head_width"),
        ("mamba2", "mlp_width", "state, head_width, expansion, convolution", "width"),
        ("mamba2", "step_rank", "state, head_width, expansion, convolution", None),
        ("mamba1", "heads", "state, expansion, convolution, step_rank", None),
        ("mamba1", "head_width", "state, expansion, convolution, step_rank", "width"),
        ("mamba1", "expansio", "state, expansion, convolution, step_rank", "expansion"),
        ("transformer", "head_width", "heads, mlp_width", None),
        ("transformer", "state", "heads, mlp_width", None),
    ],
)
def test_a_key_of_another_backbone_is_named(backbone, key, allowed, nearest):
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_json(changed("encoder", key, value=4, backbone=backbone))
    message = str(error.value)
    assert f"'model.encoder' has the unknown key '{key}'" in message
    assert f"allowed are width, depth, {allowed}, backbone." in message
    assert nearest is None or f"Did you mean '{nearest}'?" in message


@pytest.mark.parametrize("backbone", ["mamba", "mamba3", "Mamba2", None, 2, ["mamba2"], ""])
def test_an_unknown_backbone_lists_the_allowed(backbone):
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_json(changed("encoder", "backbone", value=backbone))
    message = str(error.value)
    assert f"'model.encoder' has backbone {backbone!r}" in message
    assert "allowed are transformer, mamba2, mamba1." in message
    if backbone in ("mamba3", "Mamba2"):
        assert "Did you mean 'mamba2'?" in message


def test_a_backbone_does_not_take_the_sizes_of_another():
    with pytest.raises(ConfigError, match=r"unknown key 'heads'; allowed are width, depth, state"):
        ModelConfig.from_json(changed("encoder", "backbone", value="mamba2"))
    for kind, other in ((Mamba2Config, "mamba1"), (Mamba1Config, "mamba2")):
        with pytest.raises(ConfigError, match=f"backbone is '{other}'; allowed are mamba"):
            kind(backbone=other)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["window_frames"], "200"),
        (["encoder"], []),
        (["encoder"], None),
        (["encoder"], "mamba2"),
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
        (["front_end", "log_floor"], float("nan"), "NaN is not finite"),
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


@pytest.mark.parametrize(
    ("backbone", "key", "value", "complaint"),
    [
        ("mamba2", "head_width", 100, r"inner width 1536 \(2 x 768\).*head_width 100"),
        ("mamba2", "head_width", 0, "head_width is 0"),
        *((b, key, 0, f"{key} is 0") for b in ("mamba2", "mamba1") for key in ("state", "depth")),
        *((b, "expansion", -1, "expansion is -1") for b in ("mamba2", "mamba1")),
        *((b, "convolution", 0, "convolution is 0") for b in ("mamba2", "mamba1")),
        *((b, "state", "16", r"model\.encoder\.state") for b in ("mamba2", "mamba1")),
        ("mamba1", "step_rank", 0, "step_rank is 0"),
        ("mamba1", "width", 766, "multiple of 4"),
    ],
)
def test_an_impossible_mixer_is_an_error(backbone, key, value, complaint):
    with pytest.raises(ConfigError, match=complaint):
        ModelConfig.from_json(changed("encoder", key, value=value, backbone=backbone))


@pytest.mark.parametrize(
    "make",
    [
        lambda: TransformerConfig(width=6, heads=1),
        lambda: Mamba2Config(width=6, head_width=2),
        lambda: Mamba1Config(width=6),
    ],
)
def test_width_that_positions_cannot_share_is_an_error(make):
    with pytest.raises(ConfigError, match="multiple of 4"):
        make()


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (("huge", 2), "huge"),
        (("base", 4), "4"),
        (("base", 2, "patch"), "patch"),
        (("base", 2, "frame", "mamba"), "mamba"),
    ],
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


def test_base_encoders_of_gram_m_have_the_parameters_of_their_mixers():
    width, depth = 768, 24
    inner, state, heads = 2 * width, 128, 24
    wide = inner + 2 * state
    mamba2 = width * (inner + wide + heads) + 5 * wide + 3 * heads + inner + inner * width
    patches = 256 * width + width + width  # weight, bias, CLS
    config = named_config("base", 2, backbone="mamba2")
    assert (config.encoder.inner_width, config.encoder.heads) == (inner, heads)
    assert parameters(GramModel, config) == depth * (mamba2 + width) + width + patches
    inner, state, rank = 3 * width, 24, 48
    steps = inner * (rank + 2 * state) + (rank + 1) * inner
    mamba1 = width * 2 * inner + 5 * inner + steps + inner * state + inner + inner * width
    config = named_config("base", 2, backbone="mamba1")
    assert config.encoder.inner_width == inner
    assert parameters(GramModel, config) == depth * (mamba1 + width) + width + patches


def test_decoder_adds_its_parameters_and_windows_only_bias_tables():
    config = named_config("base", 2)
    plain = replace(config, decoder=replace(config.decoder, windows=()))
    tables = sum(2 * window - 1 for window in (2, 5, 10, 25, 50, 100))
    with_tables, without = (parameters(MaskedAutoencoder, each) for each in (config, plain))
    assert with_tables - without == 8 * tables
    assert without > parameters(GramModel, config) + 8 * 12 * 512**2
