"""Pictures of windows and their reconstructions, for TensorBoard and PNG files."""

import io
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gram_hear.config import ModelConfig
from gram_hear.extras import need
from gram_hear.plots.reconstruction import reconstruction_figure, unpatchify

__all__ = ["Picture", "draw_reconstruction", "unpatchify"]

DPI = 100


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawing as a PNG file's bytes, and as pixels (height, width, 3) uint8."""

    png: bytes
    pixels: np.ndarray


def draw_reconstruction(
    target: Tensor, prediction: Tensor, hidden: Tensor, config: ModelConfig, title: str
) -> Picture:
    """Draw a window: see :func:`gram_hear.plots.reconstruction.reconstruction_figure`.

    Args:
        target, prediction: (feature channels, frames, mels), normalised as the model sees them.
        hidden: the same shape, bool.
        config: of the model.
        title: above all.

    Raises:
        OptionError: where matplotlib is not installed.
    """
    agg = need("matplotlib.backends.backend_agg", "pretrain")
    figure = reconstruction_figure(
        target.numpy(), prediction.numpy(), hidden.numpy(), config, title
    )
    figure.set_dpi(DPI)
    canvas = agg.FigureCanvasAgg(figure)
    png = io.BytesIO()
    canvas.print_png(png, metadata={"Software": None})
    return Picture(png.getvalue(), np.asarray(canvas.buffer_rgba())[..., :3].copy())
