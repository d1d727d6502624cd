"""The masked autoencoder: mask, encode the visible patches, decode all, compare the masked ones.

Data and optimizer are those of pretraining.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gram_hear.config import DecoderConfig, ModelConfig
from gram_hear.errors import ConfigError
from gram_hear.nn.encoder import make_encoder
from gram_hear.nn.patches import (
    PatchEmbedding,
    normalise_windows,
    patchify,
    position_table,
)
from gram_hear.nn.transformer import Attention, TransformerBlock
from gram_hear.nn.windowed_attention import WindowedAttention


@dataclass(frozen=True)
class Reconstruction:
    """The reconstruction of a batch of windows."""

    loss: Tensor  # scalar
    prediction: Tensor  # (windows, tokens, patch values)
    target: Tensor  # the same shape: the patches of the normalised windows


class Decoder(nn.Module):
    """Visible tokens to predicted patches, with multi-window or plain attention."""

    EPSILON = 1e-5

    positions: Tensor

    def __init__(self, config: ModelConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        self.keeps_cls = not decoder.windows
        self.tokens = config.tokens
        self.embedding = nn.Linear(config.encoder.width, decoder.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder.width))
        self.register_buffer("positions", position_table(decoder.width, config, self.keeps_cls))
        self.blocks = nn.ModuleList(
            TransformerBlock(
                WindowedAttention(decoder.width, decoder.windows)
                if decoder.windows
                else Attention(decoder.width, decoder.heads),
                decoder.width,
                decoder.mlp_width,
                self.EPSILON,
            )
            for _ in range(decoder.depth)
        )
        self.norm = nn.LayerNorm(decoder.width, eps=self.EPSILON)
        self.prediction = nn.Linear(decoder.width, config.patch_values)

    def forward(self, encoded: Tensor, visible: Tensor) -> Tensor:
        """Predict every patch.

        Args:
            encoded: (windows, 1 + kept, encoder width), the CLS token first.
            visible: (windows, kept) indices of the kept tokens.

        Returns:
            (windows, tokens, patch values).
        """
        embedded = self.embedding(encoded)
        cls, kept = embedded[:, :1], embedded[:, 1:]
        tokens = self.mask_token.to(kept.dtype).expand(len(kept), self.tokens, -1)
        tokens = tokens.scatter(1, visible[..., None].expand_as(kept), kept)
        if self.keeps_cls:
            tokens = torch.cat([cls, tokens], dim=1)
        tokens = tokens + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        predicted = self.prediction(self.norm(tokens))
        return predicted[:, 1:] if self.keeps_cls else predicted


class MaskedAutoencoder(nn.Module):
    """Patch embedding, encoder and decoder of a model, for pretraining.

    Its ``patches`` and ``encoder`` carry the same names as those of
    :class:`gram_hear.model.GramModel`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.decoder is None:
            raise ConfigError(
                "A masked autoencoder needs a decoder, and this configuration has none: it "
                "describes an encoder-only checkpoint. Set ModelConfig.decoder."
            )
        self.config = config
        self.patches = PatchEmbedding(config)
        self.encoder = make_encoder(config.encoder)
        self.decoder = Decoder(config, config.decoder)

    def forward(self, features: Tensor, visible: Tensor, hidden: Tensor) -> Reconstruction:
        """Reconstruct masked windows.

        :func:`gram_hear.nn.masks.split_mask` makes the indices of a mask. They must lie below the
        number of tokens, which is not checked here: on a GPU the host would wait for the answer.

        Args:
            features: (windows, feature channels, window frames, mels) of the front-end, not yet
                normalised.
            visible: (windows, kept) int64, the tokens that the encoder sees.
            hidden: (windows, masked) int64, all others.

        The loss is the mean over masked patches of the mean squared error of a patch, times the
        number of channels.

        Raises:
            ConfigError: for indices of another number of windows or tokens.
        """
        target = patchify(normalise_windows(features.float()), self.config.patch)
        windows, tokens = target.shape[:2]
        if (
            not len(visible) == len(hidden) == windows
            or visible.shape[1] + hidden.shape[1] != tokens
        ):
            raise ConfigError(
                f"The visible tokens are of shape {tuple(visible.shape)} and the hidden ones of "
                f"{tuple(hidden.shape)}; both need {windows} rows, one for each window, and "
                f"{tokens} columns together, one for each token."
            )
        prediction = self.decoder(self.encoder(self.patches(target, visible)), visible)
        error = F.mse_loss(prediction.float(), target, reduction="none").mean(dim=-1)
        loss = error.gather(1, hidden).mean() * self.config.front_end.feature_channels
        return Reconstruction(loss, prediction, target)
