"""int8: close to float32, each window on its own, for embedding on the CPU alone."""

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F

import gram_hear
from gram_hear import get_scene_embeddings, get_timestamp_embeddings
from gram_hear.checkpoints.store import save_model
from gram_hear.errors import OptionError

AUDIO_CHANNELS = {1: 1, 2: 2, 7: 4}
STRATEGIES = ("raw", "mean", "cls")
CLOSE = 0.99  # cosine, for every row


@pytest.fixture(scope="module")
def weights(published_file):
    """Return a function: the file of a random small model (channels, patching), kept."""
    files = {}

    def file(channels, patching="frame"):
        if (channels, patching) not in files:
            files[channels, patching] = published_file(channels, patching)
        return files[channels, patching]

    return file


@pytest.fixture(scope="module")
def model(weights):
    """A small binaural model in int8."""
    return gram_hear.load_model(weights(2), dtype="int8")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("patching", ["frame", "time"])
@pytest.mark.parametrize("channels", AUDIO_CHANNELS)
def test_close_to_float32(weights, noise, channels, patching, strategy):
    file = weights(channels, patching)
    fast = gram_hear.load_model(file, dtype="int8", strategy=strategy)
    exact = gram_hear.load_model(file, strategy=strategy)
    audio = noise(2, AUDIO_CHANNELS[channels], 150_000)
    rows, timestamps = get_timestamp_embeddings(audio, fast)
    expected, expected_timestamps = get_timestamp_embeddings(audio, exact)
    scenes, expected_scenes = (get_scene_embeddings(audio, each) for each in (fast, exact))
    assert torch.equal(timestamps, expected_timestamps)
    assert not torch.equal(rows, expected)
    assert F.cosine_similarity(rows, expected, dim=-1).min() > CLOSE
    assert F.cosine_similarity(scenes, expected_scenes, dim=-1).min() > CLOSE


def test_the_linear_layers_of_the_encoder_are_quantised(model):
    for block in model.gram.encoder.blocks:
        for layer in (block.attention.qkv, block.attention.output, *block.mlp.children()):
            assert layer.weight().dtype == torch.qint8


@pytest.mark.parametrize("layer", [1, 2])
def test_a_layer_may_be_chosen(weights, noise, layer):
    audio = noise(1, 2, 70_000)
    rows = [
        get_timestamp_embeddings(audio, gram_hear.load_model(weights(2), dtype=dtype, layer=layer))
        for dtype in ("float32", "int8")
    ]
    assert F.cosine_similarity(rows[0][0], rows[1][0], dim=-1).min() > CLOSE


@pytest.mark.parametrize("window_batch", [1, 2, 5])
def test_the_batch_size_does_not_change_embeddings(weights, model, noise, window_batch):
    audio = noise(3, 2, 200_000)
    other = gram_hear.load_model(weights(2), dtype="int8", window_batch=window_batch)
    rows = get_timestamp_embeddings(audio, model)[0]
    assert torch.equal(get_timestamp_embeddings(audio, other)[0], rows)


def test_neighbours_and_order_do_not_change_embeddings(model, noise):
    quiet, loud = 1e-3 * noise(2, 90_000, seed=1), noise(2, 150_000, seed=2)
    alone = get_timestamp_embeddings([quiet], model)[0][0]
    for clips in ([quiet, loud], [loud, quiet], [loud, quiet, loud]):
        rows = get_timestamp_embeddings(clips, model)[0]
        at = next(i for i, clip in enumerate(clips) if clip is quiet)
        assert torch.equal(rows[at], alone)


def test_embeddings_are_float32(model, noise):
    for audio in (noise(1, 2, 40_000), noise(1, 2, 40_000).double()):
        embeddings, timestamps = get_timestamp_embeddings(audio, model)
        assert embeddings.dtype == timestamps.dtype == torch.float32
        assert get_scene_embeddings(audio, model).dtype == torch.float32


def test_silence_is_embedded(model):
    assert get_timestamp_embeddings(torch.zeros(1, 2, 70_000), model)[0].isfinite().all()


def test_another_device_than_the_cpu_is_refused(weights, monkeypatch):
    monkeypatch.setattr("gram_hear.hear.find_device", torch.device)
    for device in ("cuda", "mps"):
        with pytest.raises(OptionError, match=rf"int8.*CPU alone, not on {device}"):
            gram_hear.load_model(weights(2), dtype="int8", device=device)


@pytest.mark.parametrize("backbone", ["mamba2", "mamba1"])
def test_gram_m_is_refused_with_the_reason(backbone, published_file, tmp_path):
    path = published_file(2, backbone=backbone)
    with pytest.raises(OptionError, match=r"int8.*GRAM-T alone.*GRAM-M.*Use 'float32'"):
        gram_hear.load_model(path, dtype="int8")


def test_it_cannot_be_saved(model, tmp_path):
    for output in (tmp_path / "model.safetensors", tmp_path / "folder"):
        with pytest.raises(OptionError, match="int8"):
            save_model(model, output)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_embedding_with_gradients_is_refused(model, noise):
    with pytest.raises(OptionError, match=r"int8.*gradients"):
        model(noise(1, 2, 70_000))


def test_the_command_takes_it(weights, noise, tmp_path, command):
    sound, output = tmp_path / "sound.wav", tmp_path / "output"
    soundfile.write(sound, noise(60_000, 2).numpy() / 2, 32000)
    options = ("-m", weights(2), "--dtype", "int8", "--device", "cpu")
    code, _, said = command("embed", sound, "-o", output, *options)
    assert code == 0, said
    assert "warning" not in said
    model = gram_hear.load_model(weights(2), dtype="int8")
    audio = torch.from_numpy(soundfile.read(sound, dtype="float32", always_2d=True)[0].T)
    with np.load(output / "sound.wav.npz") as arrays:
        rows = get_timestamp_embeddings(audio[None], model)[0][0]
        np.testing.assert_allclose(arrays["vectors"], rows, atol=1e-6)
        assert '"dtype": "int8"' in str(arrays["metadata"])
