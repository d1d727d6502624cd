"""The authors' checkpoint layouts, recognised from their tensors alone.

Every size is read from the tensors; every tensor must be there, with its shape, and no other.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gram_hear.config import (
    AMBISONIC_LOG_FLOOR,
    LAYOUT_OF_CHANNELS,
    PUBLISHED_LOG_FLOOR,
    DecoderConfig,
    EncoderConfig,
    FrontEndConfig,
    ModelConfig,
    PatchConfig,
)
from gram_hear.errors import CheckpointError, ConfigError
from gram_hear.frontend import FrontEnd

ANCHOR = "patch_embed.proj.weight"  # every published model has it, so it shows the prefix
HEAD_WIDTH = 64  # of every published encoder; the number of heads leaves no trace in the tensors
DECODER_HEADS = 8  # of every published decoder; its global heads leave no trace either
WRAPPERS = re.compile(r"(^|\.)(?:(?:_orig_mod|module)\.)+")  # torch.compile, DataParallel

# Our name -> the published name. Exactly one pattern matches each of our names.
NAMES = [
    (r"patches\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"patches\.cls_token", r"cls_token"),
    (r"patches\.positions", r"encoder.pos_embedding"),
    (r"encoder\.norm\.(\w+)", r"encoder.ln.\1"),
    (r"encoder\.blocks\.(\d+)\.norm(\d)\.(\w+)", r"encoder.layers.encoder_layer_\1.ln_\2.\3"),
    (
        r"encoder\.blocks\.(\d+)\.attention\.qkv\.(\w+)",
        r"encoder.layers.encoder_layer_\1.self_attention.in_proj_\2",
    ),
    (
        r"encoder\.blocks\.(\d+)\.attention\.output\.(\w+)",
        r"encoder.layers.encoder_layer_\1.self_attention.out_proj.\2",
    ),
    (r"encoder\.blocks\.(\d+)\.mlp\.expand\.(\w+)", r"encoder.layers.encoder_layer_\1.mlp.0.\2"),
    (r"encoder\.blocks\.(\d+)\.mlp\.reduce\.(\w+)", r"encoder.layers.encoder_layer_\1.mlp.3.\2"),
    (r"decoder\.embedding\.(\w+)", r"decoder_embed.\1"),
    (r"decoder\.mask_token", r"mask_token"),
    (r"decoder\.positions", r"decoder_pos_embed"),
    (r"decoder\.norm\.(\w+)", r"decoder_norm.\1"),
    (r"decoder\.prediction\.(\w+)", r"spec_pred.0.\1"),
    (r"decoder\.blocks\.(\d+)\.norm(\d)\.(\w+)", r"decoder_blocks.\1.norm\2.\3"),
    (r"decoder\.blocks\.(\d+)\.attention\.qkv\.(\w+)", r"decoder_blocks.\1.ATTENTION.qkv.\2"),
    (r"decoder\.blocks\.(\d+)\.attention\.output\.(\w+)", r"decoder_blocks.\1.ATTENTION.proj.\2"),
    (
        r"decoder\.blocks\.(\d+)\.attention\.bias_tables\.(\d+)",
        r"decoder_blocks.\1.wmha.attn_heads.\2.relative_position_bias_table",
    ),
    (r"decoder\.blocks\.(\d+)\.mlp\.expand\.(\w+)", r"decoder_blocks.\1.mlp.fc1.\2"),
    (r"decoder\.blocks\.(\d+)\.mlp\.reduce\.(\w+)", r"decoder_blocks.\1.mlp.fc2.\2"),
]
BIAS_TABLE = "relative_position_bias_table"
BIAS_INDEX = "relative_position_index"
# Left behind when only the decoder_* tensors were removed from a file: known, and not needed.
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DECODER_REMAINS = {"mask_token", "spec_pred.0.weight", "spec_pred.0.bias"}


def published_name(name: str, decoder: DecoderConfig | None) -> str:
    """Return the authors' name of one of our tensors.

    Args:
        name: a name in the state dict of a GramModel or MaskedAutoencoder.
        decoder: the decoder's configuration; multi-window and plain attention differ in name.
    """
    for pattern, replacement in NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            attention = "wmha" if decoder is not None and decoder.windows else "attn"
            return match.expand(replacement).replace("ATTENTION", attention)
    raise KeyError(name)


def published_shape(name: str, shape: Iterable[int]) -> tuple[int, ...]:
    """Return the authors' shape of one of our tensors: theirs of bias tables has a last 1."""
    return (*shape, 1) if ".bias_tables." in name else tuple(shape)


def strip_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the wrappers' name parts and the model's prefix, whatever it is.

    Raises:
        CheckpointError: where no published model, or more than one, is in the file, or two
            names become one.
    """
    bare: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = WRAPPERS.sub(r"\1", name)
        if short in bare:
            raise CheckpointError(
                f"Two tensors are named {short!r} once _orig_mod. and module. are removed; the "
                "file must hold one model."
            )
        bare[short] = tensor
    anchors = [n for n in bare if n == ANCHOR or n.endswith("." + ANCHOR)]
    if not anchors:
        raise CheckpointError(
            f"No GRAM model was recognised: no tensor is named {ANCHOR!r} under any prefix. The "
            f"file holds {len(bare)} tensors{_examples(bare)}."
        )
    if len(anchors) > 1:
        raise CheckpointError(
            f"The file holds {len(anchors)} models ({', '.join(anchors)}); keep one of them."
        )
    prefix = anchors[0][: -len(ANCHOR)]
    return {n.removeprefix(prefix): tensor for n, tensor in bare.items()}


def _examples(names: Iterable[str]) -> str:
    first = sorted(names)[:5]
    return f", such as {', '.join(first)}" if first else ""


def _is_known(name: str) -> bool:
    """Whether the authors' layouts have tensors of this name (their numbers aside)."""
    if name.endswith(("mel_scale.fb", "spectrogram.window", "." + BIAS_INDEX)):
        return True
    for _, replacement in NAMES:
        pattern = re.escape(replacement).replace("ATTENTION", "(?:wmha|attn)")
        if re.fullmatch(re.sub(r"\\\\\d", r"\\w+", pattern), name):
            return True
    return False


def read_config(tensors: Mapping[str, Tensor], heads: int | None = None) -> ModelConfig:
    """Read a model's configuration from its tensors (bare published names).

    Args:
        tensors: what :func:`strip_names` returned.
        heads: the encoder's attention heads; None takes heads of width 64, as all published.

    Raises:
        CheckpointError: where the tensors describe no model that exists here; it lists the
            tensors of unknown name and those that are not finite besides.
    """
    try:
        return _read_config(tensors, heads)
    except CheckpointError as error:
        faults = [f"unexpected: {name}" for name in sorted(tensors) if not _is_known(name)]
        faults += [
            f"not finite: {name} holds NaN or infinite values"
            for name, tensor in sorted(tensors.items())
            if tensor.dtype in FLOATING and not tensor.is_meta and not tensor.isfinite().all()
        ]
        raise CheckpointError("\n  ".join([str(error), *faults])) from error


def _read_config(tensors: Mapping[str, Tensor], heads: int | None) -> ModelConfig:
    shape = tensors[ANCHOR].shape
    if len(shape) != 4 or shape[1] not in LAYOUT_OF_CHANNELS or 0 in shape:
        raise CheckpointError(
            f"{ANCHOR} has shape {tuple(shape)}; it must be (width, channels, mel, frames) with 1 "
            "(mono), 2 (binaural) or 7 (Ambisonic) channels."
        )
    width, channels, patch_mels, patch_frames = shape
    positions = _needed(tensors, "encoder.pos_embedding", dimensions=3)
    layout = LAYOUT_OF_CHANNELS[channels]
    floor = AMBISONIC_LOG_FLOOR if layout == "ambisonic" else PUBLISHED_LOG_FLOOR
    try:
        front_end = FrontEndConfig(layout=layout, log_floor=floor)
        frequency_patches = max(front_end.mels // patch_mels, 1)
        return ModelConfig(
            front_end=front_end,
            patch=PatchConfig(mels=patch_mels, frames=patch_frames),
            encoder=_encoder_config(tensors, width, heads),
            decoder=_decoder_config(tensors),
            window_frames=(positions.shape[1] - 1) // frequency_patches * patch_frames,
        )
    except ConfigError as error:
        raise CheckpointError(f"The tensors describe no valid model. {error}") from error


def _needed(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> Tensor:
    """Return a tensor that a size is read from."""
    if name not in tensors:
        raise CheckpointError(f"The tensor {name} is missing; a size of the model is read from it.")
    if tensors[name].dim() != dimensions:
        raise CheckpointError(
            f"{name} has shape {tuple(tensors[name].shape)}; it must have {dimensions} dimensions."
        )
    return tensors[name]


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Count the layers whose numbers ``pattern`` finds at the start of names: 0, 1, 2, ..."""
    found = (re.match(pattern, name) for name in tensors)
    numbers = {int(match[1]) for match in found if match}
    if numbers and max(numbers) >= len(numbers):
        gap = next(i for i in range(len(numbers)) if i not in numbers)
        example = pattern.replace("\\.", ".").replace(r"(\d+)", str(gap))
        raise CheckpointError(
            f"There are tensors of layer {max(numbers)} but none of layer {gap}: {example}* is "
            "missing, or a number is wrong."
        )
    return len(numbers)


def _encoder_config(tensors: Mapping[str, Tensor], width: int, heads: int | None) -> EncoderConfig:
    if heads is None:
        if width % HEAD_WIDTH:
            raise CheckpointError(
                f"The number of attention heads cannot be read from the tensors, and width {width} "
                f"is no multiple of {HEAD_WIDTH}, the head width of the published models. Give it: "
                "load_model(file, heads=...), or --heads on the command line."
            )
        heads = width // HEAD_WIDTH
    expand = _needed(tensors, "encoder.layers.encoder_layer_0.mlp.0.weight", dimensions=2)
    return EncoderConfig(
        width=width,
        depth=_count(tensors, r"encoder\.layers\.encoder_layer_(\d+)\."),
        heads=heads,
        mlp_width=expand.shape[0],
    )


def _decoder_config(tensors: Mapping[str, Tensor]) -> DecoderConfig | None:
    """Read the decoder's sizes; None where the file holds the encoder alone."""
    if not any(name.startswith("decoder_") for name in tensors):
        return None
    embedding = _needed(tensors, "decoder_embed.weight", dimensions=2)
    expand = _needed(tensors, "decoder_blocks.0.mlp.fc1.weight", dimensions=2)
    windows = [0] * DECODER_HEADS if any(".wmha." in name for name in tensors) else []
    for name, tensor in tensors.items():
        table = re.fullmatch(rf"decoder_blocks\.\d+\.wmha\.attn_heads\.([0-7])\.{BIAS_TABLE}", name)
        if table and tensor.dim():
            windows[int(table[1])] = (len(tensor) + 1) // 2
    return DecoderConfig(
        width=embedding.shape[0],
        depth=_count(tensors, r"decoder_blocks\.(\d+)\."),
        heads=DECODER_HEADS,
        mlp_width=expand.shape[0],
        windows=tuple(windows),
    )


def drop_derived(
    tensors: Mapping[str, Tensor], config: ModelConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors without those that follow from the config, and what is wrong with these.

    Those are the front-end's filterbank and window, under any prefix, and the index of the
    relative bias; and what stripping the decoder left behind. One that differs means that the
    model was made in a way that is not computed here.
    """
    front_end = FrontEnd(config.front_end)
    kept, wrong = {}, []
    for name, tensor in tensors.items():
        if name.endswith("mel_scale.fb"):
            expected = front_end.filterbank
        elif name.endswith("spectrogram.window"):
            expected = front_end.window
        elif name.endswith("." + BIAS_INDEX):
            place = torch.arange(tensor.shape[0] if tensor.dim() else 0)
            expected = place[:, None] - place + len(place) - 1
        elif config.decoder is None and name in DECODER_REMAINS:
            continue
        else:
            kept[name] = tensor
            continue
        tolerance = 1e-6 if tensor.dtype in (torch.float32, torch.float64) else 4e-3
        same = tensor.shape == expected.shape and torch.allclose(
            tensor.double(), expected.double(), rtol=0, atol=tolerance
        )
        if not same:
            wrong.append(f"different: {name} is not that of the published front-end or decoder")
    return kept, wrong
