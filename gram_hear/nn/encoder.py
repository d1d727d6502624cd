"""The encoder that a configuration names: the only module that chooses between backbones."""

from typing import TypeAlias

from gram_hear.config import EncoderConfig, TransformerConfig
from gram_hear.nn.mamba import MambaEncoder
from gram_hear.nn.transformer import TransformerEncoder

Encoder: TypeAlias = TransformerEncoder | MambaEncoder


def make_encoder(config: EncoderConfig) -> Encoder:
    """Return the encoder of this configuration, its weights not yet set.

    Every encoder takes embedded patches (batch, 1 + tokens, width), the CLS token first, and the
    number of blocks to apply (None: all), and returns the same shape.
    """
    if isinstance(config, TransformerConfig):
        return TransformerEncoder(config)
    return MambaEncoder(config)
