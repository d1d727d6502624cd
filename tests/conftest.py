"""Fixtures that several test files share.

Everything runs on one thread: small models gain nothing from more, and lose much where the cores
are shared. The commands that tests start inherit it.
"""

import os
import signal
import struct
import sys
import tarfile
import warnings
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import soundfile
import torch
from hub_server import Hub, close_session
from huggingface_hub import constants
from safetensors.torch import save, save_file

import gram_hear
from gram_hear.checkpoints import published
from gram_hear.commands.gram_hear import app as gram_hear_app
from gram_hear.config import (
    LAYOUT_OF_CHANNELS,
    PATCHINGS,
    DecoderConfig,
    FrontEndConfig,
    Mamba1Config,
    Mamba2Config,
    ModelConfig,
    TransformerConfig,
)
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mae import MaskedAutoencoder

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONSAFEPATH"] = "1"  # commands import the package that is tested, not this folder
torch.set_num_threads(1)
hypothesis.settings.register_profile("shared", deadline=None)  # of a machine that others load too
hypothesis.settings.load_profile("shared")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of some shells
    signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(__file__).parent / "data" / "golden"


@pytest.fixture(scope="session")
def golden():
    """Return a function from a file name in tests/data/golden to its arrays."""
    return lambda name: np.load(GOLDEN / name, allow_pickle=False)


@pytest.fixture(scope="session")
def golden_path():
    """Return a function from a file name in tests/data/golden to its path."""
    return lambda name: GOLDEN / name


@pytest.fixture(scope="session")
def golden_audio(golden):
    """Return a function: (3, channels, 134400) float32 for 2 (binaural) or 7 (Ambisonic)."""
    audio = torch.from_numpy(golden("gramt_audio.npz")["foa_int16"]).float() / 32768
    return lambda channels: audio[:, 1:3] if channels == 2 else audio


@pytest.fixture(scope="session")
def kit(golden_path, tmp_path_factory):
    """A folder with the embeddings that the original kit wrote."""
    folder = tmp_path_factory.mktemp("kit")
    for archive in sorted(golden_path("hear-eval/embeddings").glob("*.tar.xz")):
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return folder


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Return a function that runs gram-hear in this process, in tmp_path.

    It returns the exit code, and what was written to stdout and stderr.
    """

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gram-hear", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            gram_hear_app.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main replaces it
    monkeypatch.chdir(tmp_path)
    return run


SMALL_ENCODERS = {
    "transformer": TransformerConfig(width=64, depth=2, heads=1, mlp_width=128),
    "mamba2": Mamba2Config(width=64, depth=2, state=16, head_width=32),
    "mamba1": Mamba1Config(width=64, depth=2, state=4, expansion=3, step_rank=4),
}


def small_config(channels, patching="frame", decoder="multi_window", backbone="transformer"):
    """A model small enough for tests: width 64, two layers."""
    patch, windows = PATCHINGS[patching]
    return ModelConfig(
        front_end=FrontEndConfig(
            layout=LAYOUT_OF_CHANNELS[channels], log_floor=1e-6 if channels == 7 else 1.1920929e-07
        ),
        patch=patch,
        encoder=SMALL_ENCODERS[backbone],
        decoder={
            "multi_window": DecoderConfig(
                width=32, depth=1, heads=8, mlp_width=64, windows=windows
            ),
            "plain": DecoderConfig(width=32, depth=1, heads=8, mlp_width=64),
            None: None,
        }[decoder],
    )


@pytest.fixture(scope="session")
def make_config():
    """Return :func:`small_config`."""
    return small_config


@pytest.fixture(scope="session")
def published_tensors():
    """Return a function that makes a random small model's tensors under the authors' names.

    ``published_tensors(channels, patching="frame", decoder="multi_window" | "plain" | None,
    seed=0, backbone="transformer" | "mamba2" | "mamba1")``; the shape is the published one too. Not
    only the recognised tensors: the derived ones that the authors' files carry are left out.
    """

    def make(channels, patching="frame", decoder="multi_window", seed=0, backbone="transformer"):
        config = small_config(channels, patching, decoder or "multi_window", backbone)
        model = MaskedAutoencoder(config)
        initialise(model, seed)
        return {
            published.published_name(name, config): tensor.reshape(
                published.published_shape(name, tensor.shape)
            ).clone()
            for name, tensor in model.state_dict().items()
            if decoder is not None or not name.startswith("decoder.")
        }

    return make


@pytest.fixture(scope="session")
def published_file(published_tensors, tmp_path_factory):
    """Return a function that writes such tensors as a safetensors file and returns its path."""

    def write(channels, patching="frame", decoder="multi_window", seed=0, backbone="transformer"):
        path = tmp_path_factory.mktemp("published") / "model.safetensors"
        save_file(published_tensors(channels, patching, decoder, seed, backbone), path)
        return path

    return write


@pytest.fixture(scope="session")
def small_model(published_file):
    """Return a function that loads a random small model: (channels, patching, **options)."""

    def load(channels, patching="frame", backbone="transformer", **options):
        return gram_hear.load_model(
            published_file(channels, patching, backbone=backbone), **options
        )

    return load


@pytest.fixture
def noise():
    """Return a function: reproducible noise (*shape) float32 in [-1, 1], from ``seed``."""

    def make(*shape, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(*shape, generator=generator) * 2 - 1

    return make


@pytest.fixture
def write_wavex():
    """Return a function that writes WAVEX of 16 bits at 32 kHz from (samples, channels).

    ``mask`` holds positions of loudspeakers. ``b_format`` says that it is Ambisonic B-format.
    """

    def write(path, audio, mask=0, b_format=False):
        channels = audio.shape[1]
        sizes = (channels, 32000, 64000 * channels, 2 * channels, 16, 22, 16, mask)
        tail = "2107d3118644c8c1ca000000" if b_format else "00001000800000aa00389b71"
        subformat = struct.pack("<I", 1) + bytes.fromhex(tail)
        samples = np.rint(audio * 32767).astype("<i2").tobytes()
        body = b"WAVEfmt " + struct.pack("<IHHIIHHHHI", 40, 0xFFFE, *sizes) + subformat
        body += b"data" + struct.pack("<I", len(samples)) + samples
        path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
        return path

    return write


@pytest.fixture
def b_format(tmp_path, write_wavex):
    """A second of noise from the left front as ``b.amb`` and as AmbiX, ``ambix.wav``: the paths."""
    w = 0.1 * np.random.default_rng(0).standard_normal(32000)
    sound = np.stack([w / 2**0.5, 0.5 * w, 0.75**0.5 * w, 0 * w], axis=1)
    path = write_wavex(tmp_path / "b.amb", sound, b_format=True)
    w, x, y, z = soundfile.read(path, dtype="float32")[0].T
    ambix = np.stack([w * 2**0.5, y, z, x], axis=1)
    soundfile.write(tmp_path / "ambix.wav", ambix, 32000, subtype="FLOAT")
    return path, tmp_path / "ambix.wav"


def registered():
    return [entry for entry in gram_hear.list_models() if entry.repository]


@pytest.fixture(scope="session")
def small_files(published_tensors):
    """Each registered model's channels and patching -> the bytes of a small random one."""
    kinds = {(entry.channels, entry.patching) for entry in registered()}
    return {kind: save(published_tensors(*kind)) for kind in kinds}


@pytest.fixture
def hub(small_files, monkeypatch, tmp_path):
    """The server with every registered repository, and the client directed to it."""
    hub = Hub()
    for entry in registered():
        content = small_files[entry.channels, entry.patching]
        hub.repositories[entry.repository] = {"model.safetensors": content}
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    close_session()
    yield hub
    hub.stop()
