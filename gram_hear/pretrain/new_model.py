"""The model that a run begins with: its configuration and its first weights."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from gram_hear.checkpoints.store import describe, encoder_only, load_checkpoint
from gram_hear.config import LAYOUTS, WIDTHS, ModelConfig, named_config
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


def first_weights(
    config: ModelConfig, seed: int, init: str | Path | None
) -> tuple[MaskedAutoencoder, str]:
    """Return a model with the weights that training begins with, and a sentence on their origin.

    The encoder of a checkpoint is taken, and its decoder where it has one of the same shape.
    Otherwise a new decoder is drawn.

    Args:
        config: of the model.
        seed: of random weights: those of the decoder, or all where ``init`` is None.
        init: a checkpoint, as :func:`gram_hear.checkpoints.store.load_checkpoint` takes it.

    Returns:
        The model, and the sentence; it is empty where ``init`` is None.

    Raises:
        CheckpointError: for a checkpoint with another encoder, front-end or patches. Its log floor
            and window fill, which have no weights, may be others.
    """
    with torch.random.fork_rng(devices=[]):  # the layers' own first weights are replaced below
        model = MaskedAutoencoder(config)
    if init is None:
        initialise(model, seed)
        return model, ""
    if not str(init):  # which elsewhere stands for the default model
        raise CheckpointError(
            "model.init is empty; give a model, or leave it out. (A variable of the shell may not "
            "be set.)"
        )
    checkpoint = load_checkpoint(init)
    found = without_fills(checkpoint.config, config)
    require_same(replace(found, decoder=config.decoder), config, f"The checkpoint {init}")
    if found.decoder == config.decoder:
        model.load_state_dict(checkpoint.tensors)
        return model, f"Encoder and decoder from {init}."
    initialise(model, seed)
    model.load_state_dict(model.state_dict() | encoder_only(checkpoint).tensors)
    anew = f"so a new one is drawn from seed {seed}."
    if found.decoder is None:
        return model, f"Encoder from {init}; its decoder is not in that file, {anew}"
    other = "; ".join(differences(found, config))
    return model, f"Encoder from {init}; its decoder has another shape ({other}), {anew}"


def without_fills(found: ModelConfig, wanted: ModelConfig) -> ModelConfig:
    """Return a configuration with the log floor and the window fill of another."""
    front_end = replace(found.front_end, log_floor=wanted.front_end.log_floor)
    return replace(found, front_end=front_end, window_fill=wanted.window_fill)


def require_same(found: ModelConfig, wanted: ModelConfig, name: str) -> None:
    """Raise a CheckpointError that names what differs and what to give, unless nothing does."""
    different = differences(found, wanted)
    if different:
        options = " ".join(options_of(found, wanted))
        remedy = f"Give {options}." if options else "No options of model make such a model."
        raise CheckpointError(
            f"{name} holds a {describe(found)}, and this run trains a {describe(wanted)}. What "
            f"differs: {'; '.join(different)}. {remedy}"
        )


def differences(found: ModelConfig, wanted: ModelConfig) -> list[str]:
    """Return what differs between two configurations, such as "decoder.depth: 2 there, 8 here"."""
    here, there = flatten(asdict(wanted)), flatten(asdict(found))
    return [
        f"{key}: {there.get(key)} there, {here.get(key)} here"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]


def options_of(found: ModelConfig, wanted: ModelConfig) -> list[str]:
    """Return the options by which a run that trains ``wanted`` trains ``found`` instead.

    The list is empty where no options make such a model.
    """
    there, here = _arguments(found), _arguments(wanted)
    if there["size"] is None:
        return []
    made = make_config(**there)
    if replace(made, decoder=None) != replace(found, decoder=None):
        return []
    resized = there["size"] != here["size"]  # with it, the usual depth changes
    return [
        f"--model.{name} {value}"
        for name, value in there.items()
        if value != here[name] or (name == "depth" and resized)
    ]


def _arguments(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments of :func:`make_config`; the size is None where the width has no name."""
    sizes = {width: size for size, width in WIDTHS.items()}
    return {
        "layout": config.front_end.layout,
        "size": sizes.get(config.encoder.width),
        "patching": config.patching,
        "backbone": config.encoder.backbone,
        "depth": config.encoder.depth,
        "decoder_depth": None if config.decoder is None else config.decoder.depth,
        "log_floor": config.front_end.log_floor,
        "window_fill": config.window_fill,
    }


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one, their keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat
