"""The registered models, and the one that needs no network."""

import json
import warnings
from importlib.resources import files

import pytest
import torch

import gram_hear
from gram_hear.checkpoints import registry, store
from gram_hear.checkpoints.store import load_checkpoint
from gram_hear.errors import CheckpointError, OptionError

PUBLISHED = {
    "gramt-mono": (1, "frame"),
    "gramt-binaural": (2, "frame"),
    "gramt-binaural-frame": (2, "frame"),
    "gramt-binaural-time": (2, "time"),
    "gramt-ambisonics": (7, "frame"),
}
OFFLINE = "gram-tiny-untrained"
# With the channels of their features.
BUNDLED = {"gram-tiny": 2, "gram-tiny-ambisonics": 7, "gramm-tiny": 2}
UNTRAINED = {OFFLINE: "transformer", "gramm-tiny-untrained": "mamba2"}
EACH_UNTRAINED = pytest.mark.parametrize("name", UNTRAINED)


@pytest.fixture(scope="module")
def two_tones():
    """(1, 2, 64000): 440 Hz at the left ear, 1 kHz at half the level at the right."""
    seconds = torch.arange(64000) / 32000
    left, right = (torch.sin(2 * torch.pi * f * seconds) for f in (440, 1000))
    return torch.stack([left, 0.5 * right])[None]


def load_offline(name=OFFLINE, **options):
    with pytest.warns(UserWarning, match="untrained"):
        return gram_hear.load_model(name, **options)


def test_a_dated_name_loads_the_same_weights():
    for entry in gram_hear.list_models():
        dated = entry.layout == "bundled"
        assert (entry.dated_name is not None) == dated
        if dated:
            assert entry.dated_name == f"{entry.name}-2026-11"
            found = gram_hear.load_model(entry.dated_name).hash_weights()
            assert found == gram_hear.load_model(entry.name).hash_weights()


# --- data -----------------------------------------------------------------------------------


def test_the_published_models_are_registered():
    entries = {entry.name: entry for entry in gram_hear.list_models()}
    assert list(entries) == [*PUBLISHED, *BUNDLED, *UNTRAINED]
    for name, backbone in UNTRAINED.items():
        entry = entries[name]
        assert (entry.layout, entry.trained, entry.backbone) == ("seed", False, backbone)
        assert (entry.repository, entry.file, entry.revision) == (None, None, None)
        assert "random weights" in entry.description
    for name, (channels, patching) in PUBLISHED.items():
        entry = entries[name]
        assert (entry.channels, entry.patching) == (channels, patching)
        assert entry.repository == f"labhamlet/{name}"
        assert entry.file == "model.safetensors"
        assert (entry.layout, entry.trained) == ("published", True)
        assert entry.backbone == "transformer"
        assert entry.revision
        assert entry.seed is None


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_is_the_registered_file(name, two_tones, monkeypatch, tmp_path):
    entry = registry.find_entry(name)
    assert (entry.layout, entry.trained, entry.repository) == ("bundled", True, None)
    checkpoint = load_checkpoint(name)
    assert checkpoint.source.sha256() == entry.sha256
    assert checkpoint.config.decoder is None
    front_end = checkpoint.config.front_end
    assert entry.channels == front_end.feature_channels == BUNDLED[name]
    model = gram_hear.load_model(name)
    audio = two_tones[:, :1].expand(-1, front_end.audio_channels, -1)
    assert gram_hear.get_scene_embeddings(audio, model).shape == (1, 1536)
    changed = tmp_path / entry.file
    changed.write_bytes(registry.bundled_file(entry).read_bytes()[:-1] + b"x")
    monkeypatch.setattr(store, "bundled_file", lambda entry: changed)
    with pytest.raises(CheckpointError, match="missing or was changed"):
        load_checkpoint(name)
    with pytest.raises(OptionError, match="comes with this package"):
        load_checkpoint(name, revision="main")


def test_every_entry_says_what_it_is():
    for entry in gram_hear.list_models():
        assert entry.description
        assert entry.licence
        assert entry.channels in (1, 2, 7)
        assert entry.patching in ("frame", "time")


def test_the_registry_is_package_data():
    data = json.loads((files("gram_hear.weights") / "registry.json").read_text(encoding="utf-8"))
    assert [fields["name"] for fields in data["models"]] == [*PUBLISHED, *BUNDLED, *UNTRAINED]
    assert data["offline"] == next(iter(BUNDLED))
    assert {data["default"], data["offline"]} <= {fields["name"] for fields in data["models"]}


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("binaural", "gram-tiny"),
        ("ambisonic", "gram-tiny-ambisonics"),
        ("mono", "gram-tiny"),  # heard at both ears
    ],
)
def test_the_model_without_a_network_has_the_layout_where_one_is_bundled(layout, name):
    assert registry.offline_name(layout) == name


def test_a_registered_name_comes_before_a_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / OFFLINE).mkdir()
    assert load_checkpoint(OFFLINE).source.layout == "seed"


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("gramt-binaral", "gramt-binaural"),
        ("gramt_mono", "gramt-mono"),
        ("gram-tny", "gram-tiny"),
        ("gramm-tiny-untraind", "gramm-tiny-untrained"),
        ("gramt-ambisonic", "gramt-ambisonics"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(given, nearest):
    with pytest.raises(OptionError, match=f"no model '{given}'.*Did you mean '{nearest}'"):
        gram_hear.load_model(given)


def test_a_name_like_no_other_lists_all():
    with pytest.raises(OptionError) as error:
        gram_hear.load_model("whisper")
    for name in (*PUBLISHED, *UNTRAINED):
        assert name in str(error.value)
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize("name", [None, 3, b"gramt-mono"])
def test_a_name_that_is_no_text_is_refused(name):
    with pytest.raises((OptionError, TypeError), match=r"str|text|path"):
        gram_hear.load_model(name)


# --- the offline models ---------------------------------------------------------------------


@EACH_UNTRAINED
def test_an_offline_model_says_that_it_is_untrained(name):
    with pytest.warns(UserWarning, match=f"{name} is untrained.*random") as caught:
        gram_hear.load_model(name)
    assert caught[0].filename == __file__  # the line that loads it, not one of ours


def test_a_file_does_not_say_that_it_is_untrained(small_model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_model(2)


@pytest.mark.slow
@EACH_UNTRAINED
def test_an_offline_model_is_the_same_each_time(name, two_tones):
    first, second = load_checkpoint(name), load_checkpoint(name)
    assert first.config == second.config
    for key, tensor in first.tensors.items():
        assert torch.equal(second.tensors[key], tensor), key
    torch.rand(3)  # the global seed has no say
    embeddings = [gram_hear.get_scene_embeddings(two_tones, load_offline(name)) for _ in range(2)]
    assert torch.equal(*embeddings)


@EACH_UNTRAINED
def test_loading_leaves_the_global_seed_alone(name):
    state = torch.get_rng_state()
    load_offline(name)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "strategy", "size", "first", "last", "norm"),
    [
        (OFFLINE, "raw", 1536, [-0.961640, 2.062012, 0.075028, -0.059775], 0.056165, 38.406239),
        (OFFLINE, "mean", 192, [-0.922152, 1.341017, 0.343759, 0.012091], 0.218258, 12.971638),
        (OFFLINE, "cls", 192, [-1.586172, 1.771456, 0.963116, -0.558739], -0.138854, 13.856405),
        (
            "gramm-tiny-untrained",
            "raw",
            1536,
            [0.455354, 1.498175, -0.358971, 0.550454],
            1.316631,
            35.800724,
        ),
        (
            "gramm-tiny-untrained",
            "mean",
            192,
            [0.476416, 0.136390, -0.158431, -0.085222],
            1.014701,
            10.070109,
        ),
    ],
)
def test_an_offline_model_keeps_its_numbers(name, strategy, size, first, last, norm, two_tones):
    model = load_offline(name, strategy=strategy)
    embedding = gram_hear.get_scene_embeddings(two_tones, model)[0]
    assert embedding.shape == (size,)
    torch.testing.assert_close(embedding[:4], torch.tensor(first), atol=1e-4, rtol=0)
    assert float(embedding[-1]) == pytest.approx(last, abs=1e-4)
    assert float(embedding.norm()) == pytest.approx(norm, abs=1e-3)


@EACH_UNTRAINED
@pytest.mark.parametrize("option", [{"revision": "main"}, {"heads": 3}])
def test_an_offline_model_takes_no_options_of_files(name, option):
    with pytest.raises(OptionError, match="comes with this package"):
        gram_hear.load_model(name, **option)
