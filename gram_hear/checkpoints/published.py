"""The authors' checkpoint layouts, recognised from their tensors alone.

Every size is read from the tensors; every tensor must be there, with its shape, and no other.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import Tensor

from gram_hear.config import (
    AMBISONIC_LOG_FLOOR,
    LAYOUT_OF_CHANNELS,
    LAYOUTS,
    PUBLISHED_LOG_FLOOR,
    DecoderConfig,
    FrontEndConfig,
    Mamba1Config,
    Mamba2Config,
    ModelConfig,
    PatchConfig,
    TransformerConfig,
)
from gram_hear.errors import CheckpointError, ConfigError
from gram_hear.frontend import FrontEnd

ANCHOR = "patch_embed.proj.weight"  # every published model has it, so it shows the prefix
HEAD_WIDTH = 64  # of every published encoder; the number of heads leaves no trace in the tensors
DECODER_HEADS = 8  # of every published decoder; its global heads leave no trace either
# What torch.compile, DataParallel, FSDP and activation checkpointing put into names.
WRAPPER_NAMES = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
WRAPPERS = re.compile(rf"(^|\.)(?:(?:{'|'.join(WRAPPER_NAMES)})\.)+")

# Our name -> the published name. Exactly one pattern of a model's tables matches each of our names.
GRAM_T = [
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
]
GRAM_M = [
    (r"patches\.positions", r"encoder_pos_embed"),
    (r"encoder\.norm\.weight", r"encoder_v.norm_f.weight"),
    (r"encoder\.blocks\.(\d+)\.norm\.weight", r"encoder_v.layers.\1.norm.weight"),
    (r"encoder\.blocks\.(\d+)\.mixer\.([\w.]+)", r"encoder_v.layers.\1.mixer.\2"),
]
BOTH = [
    (r"patches\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"patches\.cls_token", r"cls_token"),
    (r"decoder\.embedding\.(\w+)", r"decoder_embed.\1"),
    (r"decoder\.mask_token", r"mask_token"),
    (r"decoder\.positions", r"decoder_pos_embed"),
    (r"decoder\.norm\.(\w+)", r"decoder_norm.\1"),
    (r"decoder\.prediction\.(\w+)", r"spec_pred.0.\1"),
    (r"decoder\.blocks\.(\d+)\.norm(\d)\.(\w+)", r"DECODER.\1.norm\2.\3"),
    (r"decoder\.blocks\.(\d+)\.attention\.qkv\.(\w+)", r"DECODER.\1.ATTENTION.qkv.\2"),
    (r"decoder\.blocks\.(\d+)\.attention\.output\.(\w+)", r"DECODER.\1.ATTENTION.proj.\2"),
    (
        r"decoder\.blocks\.(\d+)\.attention\.bias_tables\.(\d+)",
        r"DECODER.\1.wmha.attn_heads.\2.relative_position_bias_table",
    ),
    (r"decoder\.blocks\.(\d+)\.mlp\.expand\.(\w+)", r"DECODER.\1.mlp.fc1.\2"),
    (r"decoder\.blocks\.(\d+)\.mlp\.reduce\.(\w+)", r"DECODER.\1.mlp.fc2.\2"),
]
ENCODERS = {True: "encoder_v.", False: "encoder.layers."}  # is it GRAM-M? -> its blocks' names
MAMBA_LAYERS = "encoder_v.layers."
DECODERS = {True: "decoder_v", False: "decoder_blocks"}  # is it GRAM-M? -> its decoder's blocks
UNUSED_NORM = {"encoder_norm.weight", "encoder_norm.bias"}  # stored with GRAM-M, never applied
BIAS_TABLE = "relative_position_bias_table"
BIAS_INDEX = "relative_position_index"
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FAULTS_SHOWN = 200  # of the tensors, in one error
# Left behind when only the decoder_* tensors were removed from a file: known, and not needed.
DECODER_REMAINS = {"mask_token", "spec_pred.0.weight", "spec_pred.0.bias"}
# Of AudioSphere's variant that masks feature channels: what stands in for those, and the planes
# that its patches may have, the features of an Ambisonic model and then a flag for each.
CHANNEL_FILL = "channel_fill"
FLAGGED_PLANES = 2 * LAYOUTS["ambisonic"][1]


def published_name(name: str, config: ModelConfig) -> str:
    """Return the authors' name of a tensor of a GramModel or MaskedAutoencoder of this config.

    GRAM-T, GRAM-M and the two kinds of decoder differ in names.
    """
    mamba = config.family == "GRAM-M"
    attention = "wmha" if config.decoder is not None and config.decoder.windows else "attn"
    for pattern, replacement in (GRAM_M if mamba else GRAM_T) + BOTH:
        match = re.fullmatch(pattern, name)
        if match:
            given = match.expand(replacement)
            return given.replace("DECODER", DECODERS[mamba]).replace("ATTENTION", attention)
    raise KeyError(name)


def published_shape(name: str, shape: Iterable[int]) -> tuple[int, ...]:
    """Return the authors' shape of one of our tensors: theirs of bias tables has a last 1."""
    return (*shape, 1) if ".bias_tables." in name else tuple(shape)


def strip_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what torch.compile, data parallelism and the like put into names.

    Raises:
        CheckpointError: where two names become one.
    """
    bare: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = WRAPPERS.sub(r"\1", name)
        if short in bare:
            raise CheckpointError(
                f"Two tensors are named {short!r} once the names of wrappers are removed "
                f"({', '.join(WRAPPER_NAMES)}); the file must hold one model."
            )
        bare[short] = tensor
    return bare


def strip_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the wrappers' name parts and the model's prefix, whatever it is.

    Raises:
        CheckpointError: where no published model, or more than one, is in the file, or two
            names become one.
    """
    bare = strip_wrappers(tensors)
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


def masks_channels(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are of AudioSphere's variant that masks feature channels.

    Its decoder never filled in a hidden token, and is of no use here.
    """
    return CHANNEL_FILL in tensors or _has_flags(tensors[ANCHOR])


def without_flags(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors whose patch embedding takes the features alone.

    A flag is 1 where a channel is masked. In embedding none is, and the flags, all 0, add nothing:
    their planes of the patch embedding can be left out.
    """
    weight = tensors[ANCHOR]
    return {**tensors, ANCHOR: weight[:, : FLAGGED_PLANES // 2] if _has_flags(weight) else weight}


def _has_flags(weight: Tensor) -> bool:
    return weight.dim() == 4 and weight.shape[1] == FLAGGED_PLANES


def _examples(names: Iterable[str]) -> str:
    first = sorted(names)[:5]
    return f", such as {', '.join(first)}" if first else ""


@cache
def _known_names() -> re.Pattern:
    """Return the pattern of all names in the authors' layouts (their numbers aside)."""
    names = "|".join(re.escape(replacement) for _, replacement in GRAM_T + GRAM_M + BOTH)
    names = names.replace("ATTENTION", "(?:wmha|attn)")
    names = names.replace("DECODER", f"(?:{'|'.join(DECODERS.values())})")
    return re.compile(re.sub(r"\\\\\d", r"[\\w.]+", names))


def _is_known(name: str) -> bool:
    derived = ("mel_scale.fb", "spectrogram.window", "." + BIAS_INDEX)
    unused = name in UNUSED_NORM or name == CHANNEL_FILL
    return unused or name.endswith(derived) or bool(_known_names().fullmatch(name))


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
            if tensor.dtype in FLOATING and not tensor.isfinite().all()
        ]
        raise CheckpointError("\n  ".join([str(error), *shorten(faults)])) from error


def shorten(faults: list[str]) -> list[str]:
    """Return as many faults as one error shows, and how many more there are."""
    more = [f"and {len(faults) - FAULTS_SHOWN} more"] if len(faults) > FAULTS_SHOWN else []
    return faults[:FAULTS_SHOWN] + more


def _read_config(tensors: Mapping[str, Tensor], heads: int | None) -> ModelConfig:
    shape = tensors[ANCHOR].shape
    if len(shape) != 4 or shape[1] not in LAYOUT_OF_CHANNELS or 0 in shape:
        raise CheckpointError(
            f"{ANCHOR} has shape {tuple(shape)}; it must be (width, channels, mel, frames) with 1 "
            "(mono), 2 (binaural) or 7 (Ambisonic; 14 with flags of masked ones) channels."
        )
    width, channels, patch_mels, patch_frames = shape
    mamba = _is_mamba(tensors)
    table = "encoder_pos_embed" if mamba else "encoder.pos_embedding"
    positions = _needed(tensors, table, dimensions=3)
    layout = LAYOUT_OF_CHANNELS[channels]
    floor = AMBISONIC_LOG_FLOOR if layout == "ambisonic" else PUBLISHED_LOG_FLOOR
    try:
        front_end = FrontEndConfig(layout=layout, log_floor=floor)
        frequency_patches = max(front_end.mels // patch_mels, 1)
        return ModelConfig(
            front_end=front_end,
            patch=PatchConfig(mels=patch_mels, frames=patch_frames),
            encoder=_mamba_config(tensors, width, heads)
            if mamba
            else _transformer_config(tensors, width, heads),
            decoder=_decoder_config(tensors),
            window_frames=(positions.shape[1] - 1) // frequency_patches * patch_frames,
        )
    except ConfigError as error:
        raise CheckpointError(f"The tensors describe no valid model. {error}") from error


def _is_mamba(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the encoder is GRAM-M's: by majority, so that a stray tensor is told as such."""
    count = {key: sum(n.startswith(start) for n in tensors) for key, start in ENCODERS.items()}
    return count[True] > count[False]


def _needed(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> Tensor:
    """Return a tensor that a size is read from."""
    if name not in tensors:
        raise CheckpointError(f"The tensor {name} is missing; a size of the model is read from it.")
    if tensors[name].dim() != dimensions or 0 in tensors[name].shape:
        raise CheckpointError(
            f"{name} has shape {tuple(tensors[name].shape)}; it must have "
            f"{dimensions} dimensions, none of them empty."
        )
    return tensors[name]


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Count the layers whose numbers ``pattern`` finds at the start of names: 0, 1, 2, ..."""
    found = (re.match(pattern, name) for name in tensors)
    numbers = {int(match[1]) for match in found if match}
    if numbers and max(numbers) >= len(numbers):
        gap = next(i for i in range(len(numbers)) if i not in numbers)
        example = pattern.replace("\\.", ".").replace("([0-9]{1,6})", str(gap))
        raise CheckpointError(
            f"There are tensors of layer {max(numbers)} but none of layer {gap}: {example}* is "
            "missing, or a number is wrong."
        )
    return len(numbers)


def _transformer_config(
    tensors: Mapping[str, Tensor], width: int, heads: int | None
) -> TransformerConfig:
    if heads is None:
        if width % HEAD_WIDTH:
            raise CheckpointError(
                f"The number of attention heads cannot be read from the tensors, and width {width} "
                f"is no multiple of {HEAD_WIDTH}, the head width of the published models. Give it: "
                "load_model(file, heads=...), or --heads on the command line."
            )
        heads = width // HEAD_WIDTH
    expand = _needed(tensors, "encoder.layers.encoder_layer_0.mlp.0.weight", dimensions=2)
    return TransformerConfig(
        width=width,
        depth=_count(tensors, r"encoder\.layers\.encoder_layer_([0-9]{1,6})\."),
        heads=heads,
        mlp_width=expand.shape[0],
    )


def _mamba_config(
    tensors: Mapping[str, Tensor], width: int, heads: int | None
) -> Mamba2Config | Mamba1Config:
    """Read the sizes of a Mamba stack from its first mixer: only Mamba-1 has a dt_proj.

    Groups of a Mamba-2 mixer leave no trace in the tensors: one is assumed, as in all published.
    """
    if heads is not None:
        raise CheckpointError(
            f"heads={heads} was given, but this is a GRAM-M checkpoint, whose sizes all stand in "
            "its tensors. Leave it out."
        )
    first = f"{MAMBA_LAYERS}0.mixer."
    depth = _count(tensors, r"encoder_v\.layers\.([0-9]{1,6})\.")
    is_mamba1 = first + "dt_proj.weight" in tensors
    a_log = _needed(tensors, first + "A_log", dimensions=2 if is_mamba1 else 1)
    output = _needed(tensors, first + "out_proj.weight", dimensions=2)
    taps = _needed(tensors, first + "conv1d.weight", dimensions=3)
    inner = output.shape[1]
    if inner % width:
        raise CheckpointError(
            f"{first}out_proj.weight is {tuple(output.shape)}: the mixer, {inner} wide, must be a "
            f"whole number of times as wide as the model, {width}."
        )
    if is_mamba1:
        step = _needed(tensors, first + "dt_proj.weight", dimensions=2)
        return Mamba1Config(
            width=width,
            depth=depth,
            state=a_log.shape[1],
            expansion=inner // width,
            convolution=taps.shape[2],
            step_rank=step.shape[1],
        )
    state, rest = divmod(taps.shape[0] - inner, 2)
    if rest or state < 1 or inner % len(a_log):
        raise CheckpointError(
            f"{first}conv1d.weight is {tuple(taps.shape)} and {first}A_log {tuple(a_log.shape)}: a "
            f"Mamba-2 mixer {inner} wide has {inner} + 2 x state channels there, and heads that "
            f"divide {inner}."
        )
    return Mamba2Config(
        width=width,
        depth=depth,
        state=state,
        head_width=inner // len(a_log),
        expansion=inner // width,
        convolution=taps.shape[2],
    )


def _decoder_config(tensors: Mapping[str, Tensor]) -> DecoderConfig | None:
    """Read the decoder's sizes; None where the file holds the encoder alone."""
    if not any(name.startswith("decoder_") for name in tensors):
        return None
    embedding = _needed(tensors, "decoder_embed.weight", dimensions=2)
    blocks = DECODERS[_is_mamba(tensors)]
    expand = _needed(tensors, f"{blocks}.0.mlp.fc1.weight", dimensions=2)
    windows = [0] * DECODER_HEADS if any(".wmha." in name for name in tensors) else []
    for name, tensor in tensors.items():
        table = re.fullmatch(rf"{blocks}\.\d+\.wmha\.attn_heads\.([0-7])\.{BIAS_TABLE}", name)
        if table and tensor.dim():
            windows[int(table[1])] = (len(tensor) + 1) // 2
    return DecoderConfig(
        width=embedding.shape[0],
        depth=_count(tensors, rf"{blocks}\.([0-9]{{1,6}})\."),
        heads=DECODER_HEADS,
        mlp_width=expand.shape[0],
        windows=tuple(windows),
    )


def drop_derived(
    tensors: Mapping[str, Tensor], config: ModelConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors without those that follow from the config, and what is wrong with these.

    Those are the front-end's filterbank and window, under any prefix, and the index of the
    relative bias; what stripping the decoder left behind; the norm that GRAM-M never applies; and
    what stands in for masked channels of Ambisonic models.
    One of the first two that differs means that the model was made in a way that is not computed
    here.
    """
    front_end = FrontEnd(config.front_end)
    unused = DECODER_REMAINS if config.decoder is None else set()
    if config.family == "GRAM-M":
        unused = unused | UNUSED_NORM
    if config.front_end.layout == "ambisonic":
        unused = unused | {CHANNEL_FILL}
    kept, wrong = {}, []
    for name, tensor in tensors.items():
        if name.endswith("mel_scale.fb"):
            expected = front_end.filterbank
        elif name.endswith("spectrogram.window"):
            expected = front_end.window
        elif name.endswith("." + BIAS_INDEX):
            square = tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]
            positions = torch.arange(tensor.shape[0] if square else 0)
            expected = positions[:, None] - positions + len(positions) - 1
        elif name in unused:
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
