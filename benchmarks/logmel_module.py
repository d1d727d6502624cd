"""A HEAR module without a network: mean and deviation over time of 128 log-mel bands at both ears.

    hear-eval --module logmel_module --tasks-dir tasks        # in this folder

The features are those that the models see: 32 kHz, a frame every 10 ms, log(mel power + 1e-5). A
sound of one channel is heard by both ears alike, as binaural models hear it.
"""

import torch
from torch import Tensor, nn

from gram_hear.config import FrontEndConfig
from gram_hear.errors import AudioError, OptionError
from gram_hear.frontend import FrontEnd

EARS = 2
ROW_FRAMES = 8  # of a timestamp embedding, as of the models' frame patches
FRAME_MS = 10.0


class LogMel(nn.Module):
    """The front-end alone, with what evaluators ask of a model."""

    sample_rate = 32000
    scene_embedding_size = 2 * EARS * 128  # mean and deviation
    timestamp_embedding_size = scene_embedding_size
    multichannel = "channels_first"

    def __init__(self) -> None:
        super().__init__()
        self.front_end = FrontEnd(FrontEndConfig("binaural", 1e-5))

    def forward(self, audio: Tensor) -> Tensor:
        """(n, samples) or (n, channels, samples) -> log-mel (n, 2, frames, 128).

        Raises:
            AudioError: for more channels than two.
        """
        if audio.dim() == 2:
            audio = audio[:, None]
        if audio.dim() != 3 or audio.shape[1] > EARS:
            raise AudioError(
                f"The log-mel baseline was given audio of shape {tuple(audio.shape)}; it takes "
                "(n, samples), or (n, channels, samples) of one or two channels."
            )
        missing = max(0, self.front_end.shortest - audio.shape[-1])
        return self.front_end(nn.functional.pad(audio.expand(-1, EARS, -1), (0, missing)))


def load_model(model_file_path: str = "") -> LogMel:
    """Return the baseline; there is no file to load.

    Raises:
        OptionError: for a file.
    """
    if model_file_path:
        raise OptionError(f"The log-mel baseline has no weights; {model_file_path!r} was given.")
    return LogMel()


def pool(frames: Tensor) -> Tensor:
    """(..., 2, frames, 128) -> (..., 512): mean and deviation over frames, ear by ear."""
    deviation, mean = torch.std_mean(frames, dim=-2, correction=0)
    return torch.cat([mean, deviation], dim=-1).flatten(-2)


def get_scene_embeddings(audio: Tensor, model: LogMel) -> Tensor:
    """(n, samples) or (n, channels, samples) -> (n, 512)."""
    return pool(model(audio))


def get_timestamp_embeddings(audio: Tensor, model: LogMel) -> tuple[Tensor, Tensor]:
    """The same over rows of 80 ms: (n, rows, 512), and their centres (n, rows) in milliseconds."""
    frames = model(audio)
    rows = max(1, frames.shape[2] // ROW_FRAMES)
    groups = frames[:, :, : rows * ROW_FRAMES].unflatten(2, (rows, -1)).transpose(1, 2)
    centre = (groups.shape[3] - 1) / 2
    times = (torch.arange(rows, device=audio.device) * ROW_FRAMES + centre) * FRAME_MS
    return pool(groups), times.expand(len(frames), -1)
