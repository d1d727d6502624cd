"""What embeds: front-end, patches and encoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gram_hear.config import ModelConfig
from gram_hear.errors import AudioError
from gram_hear.frontend import FrontEnd
from gram_hear.nn.encoder import make_encoder
from gram_hear.nn.patches import PatchEmbedding, normalise_windows, patchify
from gram_hear.windows import cut_windows, fill_of


class GramModel(nn.Module):
    """A GRAM encoder with its front-end: waveforms to features, windows to tokens.

    It knows nothing of channel conventions, clip lengths or pooling: :mod:`gram_hear.hear`
    brings those.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.front_end = FrontEnd(config.front_end)
        self.patches = PatchEmbedding(config)
        self.encoder = make_encoder(config.encoder)

    def windows_of(self, waveform: Tensor, starts: Sequence[int], fill: str) -> Tensor:
        """Return windows of each clip's features.

        Args:
            waveform: (clips, channels, samples), as the front-end takes it.
            starts: the frames at which windows begin, the same in each clip.
            fill: what is asked to stand past the clip's end; see :func:`gram_hear.windows.fill_of`.

        Returns:
            (clips * windows, feature channels, window frames, mels) float32, clip by clip.
        """
        features = self.front_end(waveform)
        first = torch.tensor(starts, device=features.device).expand(len(features), -1)
        return cut_windows(features, first, self.config, fill_of(len(starts), fill))

    def forward(self, windows: Tensor, layer: int | None = None) -> Tensor:
        """Encode feature windows.

        Args:
            windows: (windows, feature channels, window frames, mels), not yet normalised.
            layer: blocks to apply before the final norm, 1 to depth; None is all.

        Returns:
            (windows, 1 + tokens, width) in the encoder's type, the CLS token first and the
            patches frequency-major.
        """
        front_end = self.config.front_end
        shape = (front_end.feature_channels, self.config.window_frames, front_end.mels)
        if tuple(windows.shape[1:]) != shape:
            raise AudioError(
                f"The encoder was given windows of shape {tuple(windows.shape)}; this model takes "
                f"(windows, {', '.join(map(str, shape))}), as windows_of makes them."
            )
        patches = patchify(normalise_windows(windows.float()), self.config.patch)
        return self.encoder(self.patches(patches), layer)
