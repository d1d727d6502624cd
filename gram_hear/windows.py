"""Pure arithmetic of windows, rows and time: no tensors of sound, no model.

A clip's frames are cut into windows, and each window gives a fixed number of embedding rows.
Two rules say how many windows there are, which rows are kept and when they are:
:func:`corrected_plan`, the default, and :func:`reference_plan`, the authors' (``parity=True``).
"""

from dataclasses import dataclass

import numpy as np

from gram_hear.config import ModelConfig


@dataclass(frozen=True)
class WindowPlan:
    """How one clip is windowed.

    ``timestamps`` are the (rows,) float32 milliseconds of the kept rows; ``windows`` the number
    of windows that are computed, each ``window_frames`` long, contiguous from frame 0.
    """

    windows: int
    timestamps: np.ndarray

    @property
    def rows(self) -> int:
        """Number of embedding rows that are kept, from the first on."""
        return len(self.timestamps)


def corrected_plan(samples: int, config: ModelConfig) -> WindowPlan:
    """Keep each row whose centre is not past the clip's end, and compute no other window.

    Frame k is centred at sample k * hop, so row i, of p frames, at (i p + (p - 1) / 2) * hop
    samples. A clip too short for any centre keeps one row, stamped at half its duration.

    Args:
        samples: the clip's true length, before any padding.
        config: the model's configuration.
    """
    front_end, frames = config.front_end, config.patch.frames
    # The centre of row i is (2 i p + p - 1) half-hops: compare in whole numbers, without rounding.
    half_hops = 2 * samples // front_end.hop
    rows = (half_hops - (frames - 1)) // (2 * frames) + 1
    milliseconds = 1000 / front_end.sample_rate
    if rows < 1:
        return WindowPlan(1, np.array([samples * milliseconds / 2], dtype=np.float32))
    centres = np.arange(rows, dtype=np.float64) * frames + (frames - 1) / 2
    timestamps = centres * front_end.hop * milliseconds
    return WindowPlan(-(-rows // config.time_patches), timestamps.astype(np.float32))


def reference_plan(samples: int, config: ModelConfig, per_window: bool) -> WindowPlan:
    """Follow the authors' rule: always fill up to a further window, and stretch the timestamps.

    ``window - frames % window`` frames are appended, so that an exact multiple gets a whole
    empty window. With ``per_window`` (mean, sum, cls) every window gives one row; otherwise
    ``int(time_patches * appended / window)`` rows are cut from the end. Row i is stamped
    ``i * duration / rows``.

    Args:
        samples: the clip's true length.
        config: the model's configuration.
        per_window: one row for each window instead of ``time_patches``.
    """
    front_end = config.front_end
    frames = 1 + samples // front_end.hop
    windows = frames // config.window_frames + 1
    appended = windows * config.window_frames - frames
    rows = windows
    if not per_window:
        cut = config.time_patches * appended // config.window_frames
        rows = windows * config.time_patches - cut
    duration = 1000 * samples / front_end.sample_rate
    timestamps = np.arange(rows, dtype=np.float64) * (duration / rows)
    return WindowPlan(windows, timestamps.astype(np.float32))
