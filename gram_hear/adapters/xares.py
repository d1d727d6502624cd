"""X-ARES: an encoder class for each registered model, and a base for one of your own.

X-ARES takes a file in which exactly one name ends in ``Encoder``, a class that is made without
arguments. So one line is such a file:

    from gram_hear.adapters.xares import GramtMonoEncoder

X-ARES keeps embeddings, and the predictors that it trains on them, by the name of the encoder's
class, and takes them up again. So the class of an encoder that was made is a subclass whose name
holds a hash of what it is, such as ``GramtMono_0123456789ab_Encoder``.

Source of the interface: X-ARES (github.com/jimbozhang/xares), ``check_audio_encoder`` and
``XaresTask`` of 0.1.3.
"""

import hashlib
import json
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gram_hear.checkpoints.registry import Entry, list_models
from gram_hear.config import EMBEDDINGS
from gram_hear.errors import AudioError
from gram_hear.hear import HearModel, get_timestamp_embeddings, load_model

HASH = 12  # digits of the hash in the name of an encoder's class
BLOCK_SECONDS = 600  # of sound embedded at once: X-ARES hands over 64 clips, each of up to minutes


class XaresModel(nn.Module):
    """A GRAM model as X-ARES takes it; a subclass says which, and its name ends in ``Encoder``.

    Attributes:
        model_name: what :func:`gram_hear.load_model` takes: a registered name, a checkpoint file
            or folder, or a Hub repository.
        options: keywords of ``load_model``, such as ``{"strategy": "mean"}``.
        sampling_rate: of the audio it takes, in Hz.
        output_dim: D, the length of an embedding.
        hop_size_in_ms: from one embedding to the next.
    """

    model_name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.model = load_model(self.model_name, **self.options)
        self.sampling_rate = self.model.sample_rate
        self.output_dim = self.model.timestamp_embedding_size
        self.hop_size_in_ms = self.model.hop_ms
        self.eval()
        name = type(self).__name__.removesuffix("Encoder")
        self.__class__ = type(f"{name}_{_hash(self.model)}_Encoder", (type(self),), {})

    def train(self, mode: bool = True) -> "XaresModel":
        """Stay in evaluation mode, whatever is asked: the encoder is frozen in X-ARES."""
        super().train(False)
        return self

    def forward(self, audio: Tensor) -> Tensor:
        """Embed mono clips of one length over time, without gradients.

        Args:
            audio: (B, T) floating point in [-1, 1] at ``sampling_rate``, or one clip (T,).

        Returns:
            (B, T', D) float32 on the model's device.

        Raises:
            AudioError: for audio of another rank, without samples, or not finite.
        """
        clips = audio.unsqueeze(0) if audio.ndim == 1 else audio
        if clips.ndim != 2:
            raise AudioError(
                f"The audio has the shape {tuple(audio.shape)}; X-ARES hands over mono clips, "
                "(batch, samples)."
            )
        together = max(1, BLOCK_SECONDS * self.sampling_rate // max(1, clips.shape[-1]))
        parts = [get_timestamp_embeddings(part, self.model)[0] for part in clips.split(together)]
        return torch.cat(parts)


def _hash(model: HearModel) -> str:
    """Return the beginning of a hash of all that embeddings depend on: weights and options."""
    options = asdict(model.options) | {"window_fill": model.window_fill}
    del options["window_batch"], options["scene"]  # neither changes a row
    text = json.dumps([EMBEDDINGS, model.hash_weights(), options])
    return hashlib.sha256(text.encode()).hexdigest()[:HASH]


def class_name(model_name: str) -> str:
    """Return the name of a registered model's class: ``GramtMonoEncoder`` for ``gramt-mono``."""
    return "".join(part.capitalize() for part in model_name.split("-")) + "Encoder"


def _encoder(entry: Entry) -> type[XaresModel]:
    about = f"{entry.description}, for X-ARES."
    fields = {"model_name": entry.name, "__doc__": about, "__module__": __name__}
    return type(class_name(entry.name), (XaresModel,), fields)


# Made from the registry, so that a model that is registered there is here too.
ENCODERS = {entry.name: _encoder(entry) for entry in list_models()}
globals().update({each.__name__: each for each in ENCODERS.values()})
