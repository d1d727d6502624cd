"""What a checkpoint is, in words and figures."""

import dataclasses
from typing import Any

from gram_hear.checkpoints.store import Checkpoint
from gram_hear.config import DecoderConfig, EncoderConfig, Mamba2Config, TransformerConfig
from gram_hear.nn.mamba_kernels import find_kernels


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint's facts by name, ready for JSON: source, sizes, parameters, embeddings.

    Parameters are counted without the fixed positions.
    """
    config, source = checkpoint.config, checkpoint.source
    front_end, encoder = config.front_end, config.encoder
    sizes = {n: t.numel() for n, t in checkpoint.tensors.items() if not n.endswith(".positions")}
    in_decoder = sum(size for name, size in sizes.items() if name.startswith("decoder."))
    return {
        "name": source.name,
        "file": str(source.path) if source.path else None,
        "sha256": source.sha256(),
        "checkpoint_layout": source.layout,
        "repository": source.repository,
        "revision": source.revision,
        "commit": source.commit,
        "family": config.family,
        "backbone": encoder.backbone,
        "audio_layout": front_end.layout,
        "audio_channels": front_end.audio_channels,
        "feature_channels": front_end.feature_channels,
        "sample_rate": front_end.sample_rate,
        "patching": config.patching,
        "patch": f"{config.patch.mels} mel x {config.patch.frames} frames",
        "grid": f"{config.frequency_patches} x {config.time_patches} (frequency x time)",
        "width": encoder.width,
        "depth": encoder.depth,
        **_describe_backbone(encoder),
        "encoder_parameters": sum(sizes.values()) - in_decoder,
        "decoder_parameters": in_decoder,
        "decoder": _describe_decoder(config.decoder) if config.decoder else None,
        "window_ms": 1000 * config.window_frames * front_end.hop / front_end.sample_rate,
        "hop_ms": config.hop_ms,
        "embedding_size_raw": config.frequency_patches * encoder.width,
        "embedding_size_mean": encoder.width,
        "embedding_size_cls": encoder.width if config.family == "GRAM-T" else None,
        "log_floor": front_end.log_floor,
        "training_window_fill": config.window_fill,
    }


def _describe_backbone(encoder: EncoderConfig) -> dict[str, Any]:
    """Return the sizes that this backbone alone has, and for Mamba what its scan runs on here."""
    if isinstance(encoder, TransformerConfig):
        return {"heads": encoder.heads, "mlp_width": encoder.mlp_width}
    own = dataclasses.asdict(encoder)
    sizes = {k: v for k, v in own.items() if k not in ("width", "depth", "backbone")}
    if isinstance(encoder, Mamba2Config):
        sizes["heads"] = encoder.heads
    return {**sizes, "inner_width": encoder.inner_width, "scan": find_kernels().description}


def _describe_decoder(decoder: DecoderConfig) -> str:
    kind = f"windows {list(decoder.windows)}" if decoder.windows else "plain"
    return f"width {decoder.width}, {decoder.depth} blocks, {decoder.heads} heads, {kind}"
