"""Fixtures that several test files share.

Everything runs on one thread: small models gain nothing from more, and lose much where the cores
are shared. The commands that tests start inherit it.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import gram_hear
from gram_hear.checkpoints import published
from gram_hear.config import (
    LAYOUT_OF_CHANNELS,
    PATCHINGS,
    DecoderConfig,
    EncoderConfig,
    FrontEndConfig,
    ModelConfig,
)
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mae import MaskedAutoencoder

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

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


def small_config(channels, patching="frame", decoder="multi_window"):
    """A model small enough for tests: width 64, one head, two layers."""
    patch, windows = PATCHINGS[patching]
    return ModelConfig(
        front_end=FrontEndConfig(
            layout=LAYOUT_OF_CHANNELS[channels], log_floor=1e-6 if channels == 7 else 1.1920929e-07
        ),
        patch=patch,
        encoder=EncoderConfig(width=64, depth=2, heads=1, mlp_width=128),
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
    seed=0)``; the shape is the published one too. Not only the recognised tensors: the derived
    ones that the authors' files carry are left out.
    """

    def make(channels, patching="frame", decoder="multi_window", seed=0):
        config = small_config(channels, patching, decoder or "multi_window")
        model = MaskedAutoencoder(config)
        initialise(model, seed)
        return {
            published.published_name(name, config.decoder): tensor.reshape(
                published.published_shape(name, tensor.shape)
            ).clone()
            for name, tensor in model.state_dict().items()
            if decoder is not None or not name.startswith("decoder.")
        }

    return make


@pytest.fixture(scope="session")
def published_file(published_tensors, tmp_path_factory):
    """Return a function that writes such tensors as a safetensors file and returns its path."""

    def write(channels, patching="frame", decoder="multi_window", seed=0):
        path = tmp_path_factory.mktemp("published") / "model.safetensors"
        save_file(published_tensors(channels, patching, decoder, seed), path)
        return path

    return write


@pytest.fixture(scope="session")
def small_model(published_file):
    """Return a function that loads a random small model: (channels, patching, **options)."""
    return lambda channels, patching="frame", **options: gram_hear.load_model(
        published_file(channels, patching), **options
    )


@pytest.fixture
def noise():
    """Return a function: reproducible noise (*shape) float32 in [-1, 1], from ``seed``."""

    def make(*shape, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(*shape, generator=generator) * 2 - 1

    return make
