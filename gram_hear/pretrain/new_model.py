"""The model that a run begins with: its configuration and its first weights."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from gram_hear.checkpoints.store import describe, load_checkpoint
from gram_hear.config import LAYOUTS, ModelConfig, named_config
from gram_hear.errors import CheckpointError, require_known
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mae import MaskedAutoencoder


def make_config(
    layout: str,
    size: str,
    patching: str,
    backbone: str,
    depth: int | None,
    decoder_depth: int | None,
    log_floor: float | None,
    window_fill: str,
) -> ModelConfig:
    """Return a model's configuration; the arguments are those of
    :class:`gram_hear.pretrain.module.Pretraining`."""
    require_known("layout", layout, LAYOUTS)
    named = named_config(size, LAYOUTS[layout][1], patching, backbone)
    front_end, encoder, decoder = named.front_end, named.encoder, named.decoder
    assert decoder is not None
    if log_floor is not None:
        front_end = replace(front_end, log_floor=log_floor)
    if depth is not None:
        encoder = replace(encoder, depth=depth)
    if decoder_depth is not None:
        decoder = replace(decoder, depth=decoder_depth)
    return ModelConfig(front_end, named.patch, encoder, decoder, named.window_frames, window_fill)


def first_weights(config: ModelConfig, seed: int, init: str | Path | None) -> MaskedAutoencoder:
    """Return a model with the weights that training begins with.

    Args:
        config: of the model.
        seed: of random weights, where ``init`` is None.
        init: a checkpoint, as :func:`gram_hear.checkpoints.store.load_checkpoint` takes it.

    Raises:
        CheckpointError: for a checkpoint of another model, or of an encoder alone. Its log floor
            and window fill, which have no weights, may be others.
    """
    with torch.random.fork_rng(devices=[]):  # the layers' own first weights are replaced below
        model = MaskedAutoencoder(config)
    if init is None:
        initialise(model, seed)
        return model
    checkpoint = load_checkpoint(init)
    front_end = replace(checkpoint.config.front_end, log_floor=config.front_end.log_floor)
    alike = replace(checkpoint.config, front_end=front_end, window_fill=config.window_fill)
    require_same(alike, config, f"The checkpoint {init}")
    model.load_state_dict(checkpoint.tensors)
    return model


def require_same(found: ModelConfig, wanted: ModelConfig, name: str) -> None:
    """Raise a CheckpointError that names what differs, unless nothing does."""
    here, there = flatten(asdict(wanted)), flatten(asdict(found))
    different = [
        f"{key}: {there.get(key)} there, {here.get(key)} here"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]
    if different:
        raise CheckpointError(
            f"{name} holds a {describe(found)}, and this run trains a {describe(wanted)}. What "
            f"differs: {'; '.join(different)}. Give the config that the checkpoint was made with."
        )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one, their keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat
