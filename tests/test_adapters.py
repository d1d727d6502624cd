"""The adapters, held to what X-ARES checks and to what MTEB asks of an audio encoder.

Neither package is needed: the checks are written out here. ``docs/how-to/adapters.md`` says
which versions of the packages themselves the adapters were run with.
"""

import importlib
import inspect
import re
import shutil
import sys
import types
from typing import ClassVar

import numpy as np
import pytest
import soxr
import torch

import gram_hear
from gram_hear.adapters import xares
from gram_hear.adapters.mteb import GramEncoder
from gram_hear.checkpoints.registry import list_models
from gram_hear.errors import AudioError, OptionError

TINY = "gram-tiny-untrained"
SEEDED = [entry.name for entry in list_models() if entry.layout == "seed"]
# What mteb 2.26 asks of ModelMeta without a default, and what else is given.
META = {
    *("loader", "name", "revision", "release_date", "languages", "n_parameters"),
    *("memory_usage_mb", "max_tokens", "embed_dim", "license", "open_weights"),
    *("public_training_code", "public_training_data", "framework", "similarity_fn_name"),
    *("use_instructions", "training_datasets"),
}
GIVEN = {"modalities", "experiment_kwargs"}

pytestmark = pytest.mark.filterwarnings("ignore:.* is untrained")


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).clamp(-3, 3) / 3


# --- X-ARES ---------------------------------------------------------------------------------


def check_audio_encoder(encoder):
    """What X-ARES 0.1.3 asks of an encoder."""
    assert type(encoder).__name__.endswith("Encoder")
    assert isinstance(encoder, torch.nn.Module)
    for name in ("output_dim", "sampling_rate", "hop_size_in_ms"):
        assert hasattr(encoder, name)
    audio = torch.randn(2, 50000, generator=torch.Generator().manual_seed(0))
    encoded = encoder(audio)
    assert isinstance(encoded, torch.Tensor)
    assert encoded.ndim == 3
    assert encoded.size(0) == audio.size(0)
    assert encoded.size(2) == encoder.output_dim
    milliseconds = 1000 * audio.size(1) / encoder.sampling_rate
    assert abs(encoded.size(1) - milliseconds / encoder.hop_size_in_ms) <= 1


@pytest.fixture(scope="module")
def encoder():
    return xares.ENCODERS[TINY]()


@pytest.mark.parametrize("name", SEEDED)
def test_encoders_pass_the_check_of_xares(name):
    check_audio_encoder(xares.ENCODERS[name]())


def test_a_published_model_takes_mono_whatever_its_channels(hub):
    check_audio_encoder(xares.GramtAmbisonicsEncoder())


def test_there_is_one_class_for_each_registered_model():
    names = [entry.name for entry in gram_hear.list_models()]
    assert list(xares.ENCODERS) == names
    classes = [name for name in dir(xares) if name.endswith("Encoder")]
    assert sorted(classes) == sorted(map(xares.class_name, names))
    for name, encoder in xares.ENCODERS.items():
        assert encoder.model_name == name
        assert getattr(xares, encoder.__name__) is encoder
        assert not [
            each
            for each in inspect.signature(encoder).parameters.values()
            if each.default is each.empty
        ]


def test_a_line_is_a_file_for_xares(tmp_path, monkeypatch):
    (tmp_path / "gram_tiny.py").write_text(
        f"from gram_hear.adapters.xares import {xares.class_name(TINY)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("gram_tiny")
    assert [name for name in dir(module) if name.endswith("Encoder")] == [xares.class_name(TINY)]


def test_an_encoder_is_the_hear_api_and_stays_frozen(encoder):
    audio = noise(2, 40000)
    expected, _ = gram_hear.get_timestamp_embeddings(audio, encoder.model)
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    encoded = encoder(audio)
    assert torch.equal(encoded, expected)
    assert not encoded.requires_grad
    assert torch.equal(encoder(audio[0]), expected[:1])
    assert list(encoder.parameters())  # so that .to(device) moves it


def test_long_batches_are_embedded_in_parts(encoder, monkeypatch):
    audio = noise(3, 70000)
    whole = encoder(audio)
    sizes = []
    embed = xares.get_timestamp_embeddings
    monkeypatch.setattr(xares, "BLOCK_SECONDS", 4)
    monkeypatch.setattr(
        xares, "get_timestamp_embeddings", lambda a, m: sizes.append(len(a)) or embed(a, m)
    )
    torch.testing.assert_close(encoder(audio), whole, rtol=1e-4, atol=1e-4)
    assert sizes == [1, 1, 1]  # 2.2 s each


def test_x_ares_keeps_encoders_apart_by_the_name_of_their_class(tmp_path, published_file):
    class MineEncoder(xares.XaresModel):
        model_name = str(tmp_path / "best.safetensors")
        options: ClassVar = {}

    def name(seed=0, **options):
        shutil.copy(published_file(1, seed=seed), MineEncoder.model_name)
        MineEncoder.options = options
        mine = MineEncoder()
        assert isinstance(mine, MineEncoder)
        return type(mine).__name__

    names = [name(), name(seed=1), name(strategy="mean"), name(dtype="bfloat16")]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("Mine_[0-9a-f]{12}_Encoder", each) for each in names)
    assert name(window_batch=3, window_fill="repeat") == names[0]


def test_an_encoder_of_your_own():
    class MineEncoder(xares.XaresModel):
        model_name = TINY
        options = {"strategy": "mean"}  # noqa: RUF012

    mine = MineEncoder()
    check_audio_encoder(mine)
    assert mine.output_dim == mine.model.config.encoder.width


@pytest.mark.parametrize("shape", [(2, 2, 8000), (2, 0)])
def test_what_is_no_batch_of_mono_clips(encoder, shape):
    with pytest.raises(AudioError):
        encoder(torch.zeros(shape))


# --- MTEB -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return GramEncoder(TINY, device="cpu", strategy="mean")


def batches(*clips, size=2):
    """What MTEB's loader yields: batches of clips (array, rate)."""
    items = [{"array": array, "sampling_rate": rate} for array, rate in clips]
    for i in range(0, len(items), size):
        yield {"audio": items[i : i + size], "label": [0] * len(items[i : i + size])}


def encode(model, loader):
    return model.encode(
        loader,
        task_metadata=None,
        hf_split="test",
        hf_subset="default",
        prompt_type=None,
        batch_size=2,
        show_progress_bar=False,
    )


def test_clips_of_any_length_and_rate_become_rows_in_order(model):
    rate = model.model.sample_rate
    clips = [(noise(rate + 300 * i, seed=i).numpy(), rate) for i in range(5)]
    other = noise(9000, seed=9).double().numpy()
    embeddings = encode(model, batches(*clips, (other, 8000)))
    assert embeddings.dtype == np.float32
    resampled = soxr.resample(other.astype(np.float32), 8000, rate, quality="HQ")
    expected = gram_hear.get_scene_embeddings(
        [*(array for array, _ in clips), resampled], model.model
    )
    np.testing.assert_allclose(embeddings, expected.numpy(), rtol=1e-3, atol=1e-4)
    assert encode(model, iter(())).shape == (0, model.model.scene_embedding_size)


def test_two_channels_stay_two(model):
    rate = model.model.sample_rate
    both = noise(2, rate).numpy()
    (row,) = encode(model, batches((both, rate)))
    expected = gram_hear.get_scene_embeddings(both[None], model.model)[0]
    np.testing.assert_allclose(row, expected.numpy(), rtol=1e-3, atol=1e-4)
    half = soxr.resample(both.T, rate, rate // 2).T
    assert encode(model, batches((half, rate // 2))).shape == (1, len(row))


class Decoder:
    """Audio as datasets 5.2 hands it over, on torchcodec 0.17: ["array"] is the mean."""

    def __init__(self, data, rate):
        self.samples = types.SimpleNamespace(data=data, sample_rate=rate)

    def get_all_samples(self):
        return self.samples

    def __getitem__(self, key):
        found = {"array": self.samples.data.numpy().mean(axis=0)}
        return (found | {"sampling_rate": self.samples.sample_rate})[key]


@pytest.mark.parametrize("factor", [1, 2])
def test_all_channels_of_a_decoder_are_heard(model, factor):
    rate = model.model.sample_rate // factor
    source = noise(rate)
    silent = torch.zeros(rate)
    left, right = torch.stack([source, silent]), torch.stack([silent, source])
    loader = [{"audio": [Decoder(left, rate), Decoder(right, rate), Decoder(source[None], rate)]}]
    found = encode(model, loader)
    expected = encode(model, batches(*((clip.numpy(), rate) for clip in (left, right, source))))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_clips_may_be_lists_of_numbers(model):
    clip = noise(9000).numpy()
    [row] = encode(model, batches((clip.tolist(), 8000)))
    np.testing.assert_allclose(row, encode(model, batches((clip, 8000)))[0], rtol=1e-5, atol=1e-5)


def test_similarity_is_the_cosine(model):
    a, b = noise(3, 8), noise(2, 8, seed=1).numpy()
    cosines = model.similarity(a, b)
    for i, j in np.ndindex(3, 2):
        angle = float(a[i] @ torch.tensor(b[j])) / float(a[i].norm()) / np.linalg.norm(b[j])
        assert float(cosines[i, j]) == pytest.approx(angle, abs=1e-6)
    pairs = model.similarity_pairwise(a[:2], b)
    torch.testing.assert_close(pairs, cosines[:2].diagonal())
    assert model.similarity(a[0], b[0]).shape == (1, 1)


def test_the_interface_is_that_of_mteb(model):
    parameters = inspect.signature(model.encode).parameters
    assert next(iter(parameters)) == "inputs"
    for name in ("task_metadata", "hf_split", "hf_subset", "prompt_type"):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    made = inspect.signature(GramEncoder).parameters
    assert list(made)[:3] == ["model_name", "revision", "device"]


def test_metadata_is_true_and_loads_the_same_model(model, monkeypatch):
    module = types.ModuleType("mteb.models")
    module.ModelMeta = types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "mteb", types.ModuleType("mteb"))
    monkeypatch.setitem(sys.modules, "mteb.models", module)
    meta = GramEncoder(TINY, device="cpu", strategy="mean").mteb_model_meta
    assert set(vars(meta)) == META | GIVEN
    assert meta.name == f"gram-hear/{TINY}"
    assert meta.embed_dim == model.model.scene_embedding_size
    assert meta.n_parameters == sum(each.numel() for each in model.model.parameters())
    assert (meta.license, meta.modalities) == ("apache-2.0", ["audio"])
    again = meta.loader(meta.name, revision=meta.revision, device="cpu", **meta.experiment_kwargs)
    assert again.options == {"strategy": "mean"}
    assert again.model_name == TINY
    audio = noise(1, 20000)
    assert torch.equal(
        gram_hear.get_scene_embeddings(audio, again.model),
        gram_hear.get_scene_embeddings(audio, model.model),
    )


def test_published_models_have_the_name_of_their_repository(hub, tmp_path):
    model = GramEncoder("gramt-mono", device="cpu")
    about = model.describe()
    assert about["name"] == "labhamlet/gramt-mono"
    assert about["license"] == "not specified"
    again = GramEncoder(about["name"], about["revision"], device="cpu")
    assert again.model_name == "gramt-mono"
    gram_hear.save_model(model.model, tmp_path / "mine.safetensors")
    mine = GramEncoder(str(tmp_path / "mine.safetensors"), device="cpu").describe()
    assert mine["name"] == f"gram-hear/mine.safetensors-{mine['revision'][:12]}"
    assert about["revision"] == model.model.source.commit


def keys(model):
    """What MTEB keeps results by, for models of the same options."""
    about = model.describe()
    return about["name"], about["revision"]


def test_results_of_other_weights_are_kept_apart(tmp_path, published_file, monkeypatch):
    names = [tmp_path / folder / "best.safetensors" for folder in ("a", "b", "c")]
    for name, seed in zip(names, (0, 1, 0), strict=True):
        name.parent.mkdir()
        shutil.copy(published_file(1, seed=seed), name)
    a, b, c = (GramEncoder(str(name), device="cpu") for name in names)
    assert all(one != other for one, other in zip(keys(a), keys(b), strict=True))
    assert keys(a) == keys(c)
    for name, revision in map(keys, (a, b)):
        assert revision[:12] in name
        assert name.count("/") == 1
    monkeypatch.chdir(tmp_path)  # "a/best.safetensors" looks like a repository
    assert keys(GramEncoder("a/best.safetensors", device="cpu")) == keys(a)


def test_a_model_that_was_trained_since_has_other_results(hub):
    for name in ("gramt-mono", TINY):
        model = GramEncoder(name, device="cpu")
        before = keys(model)
        with torch.no_grad():
            next(model.model.parameters()).add_(0.1)
        assert all(one != other for one, other in zip(before, keys(model), strict=True))


def test_metadata_of_other_weights_than_ship_with_this_version_are_refused():
    assert GramEncoder(TINY, revision="none", device="cpu").describe()["revision"] != "none"
    with pytest.raises(OptionError, match=r"have the hash .*, not 0123"):
        GramEncoder(TINY, revision="0123", device="cpu")


def test_without_mteb_the_metadata_says_what_is_missing(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.delitem(sys.modules, "mteb.models", raising=False)
    with pytest.raises(OptionError, match="pip install mteb"):
        _ = model.mteb_model_meta


@pytest.mark.parametrize(
    ("batch", "error", "words"),
    [
        ({"text": ["a"]}, OptionError, "embeds audio alone"),
        ({"audio": [{"array": np.zeros(9, "int16"), "sampling_rate": 8000}]}, AudioError, "int16"),
        ({"audio": [{"array": np.zeros(0), "sampling_rate": 8000}]}, AudioError, "sample"),
        ({"audio": [{"path": "a.wav", "bytes": b""}]}, AudioError, r"path, bytes.*cast_column"),
        ({"audio": ["a.wav"]}, AudioError, r"a str; .*cast_column"),
        ({"audio": [Decoder(torch.zeros(6, 9000), 8000)]}, AudioError, "6 channels"),
        (
            {"audio": [{"array": np.ma.zeros(9000), "sampling_rate": 8000}]},
            AudioError,
            r"masked.*filled",
        ),
        (
            {"audio": [{"array": np.full(9000, np.nan), "sampling_rate": 8000}]},
            AudioError,
            "finite",
        ),
    ],
)
def test_batches_that_cannot_be_embedded(model, batch, error, words):
    with pytest.raises(error, match=words):
        encode(model, [batch])


def test_an_unknown_option_is_refused():
    with pytest.raises(OptionError, match="strategy"):
        GramEncoder(TINY, stratgy="mean")
