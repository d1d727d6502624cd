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

    Attributes:
        windows: how many are computed, each ``window_frames`` long, contiguous from frame 0.
        rows: embedding rows that are kept, from the first on.
        start, step: milliseconds of the first row, and from one row to the next.
    """

    windows: int
    rows: int
    start: float
    step: float

    def timestamps(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Return the milliseconds of the kept rows, or of rows ``first`` to ``last - 1``, float64.

        float32 would be off by milliseconds after some hours.
        """
        return self.start + self.step * np.arange(first, self.rows if last is None else last)


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
        return WindowPlan(windows=1, rows=1, start=samples * milliseconds / 2, step=config.hop_ms)
    start = (frames - 1) / 2 * front_end.hop * milliseconds
    return WindowPlan(-(-rows // config.time_patches), rows, start, config.hop_ms)


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
    return WindowPlan(windows, rows, 0.0, duration / rows)
