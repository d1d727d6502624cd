"""Windows of a clip: where they begin, which rows of theirs are kept, and when these are.

A clip's frames are cut into windows, and each window gives a fixed number of rows. A row is one
embedding vector: that of the clip at one time. Two rules say which windows there are, which rows
are kept and when they are:
:func:`corrected_plan`, the default, and :func:`reference_plan`, the authors' (``parity=True``).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gram_hear.config import ModelConfig

# What stands in a window past the end of its clip; see :func:`cut_windows`.
FILLS = ("repeat", "mirror", "silence", "zero")


@dataclass(frozen=True)
class WindowPlan:
    """How one clip is windowed."""

    windows: int  # how many are computed
    rows: int  # embedding rows that are kept of the whole clip
    start: float  # milliseconds of the first row
    step: float  # milliseconds from one row to the next
    window_frames: int
    overlap: int = 0  # frames by which the last window is moved back, over those before

    def window_starts(self, first: int = 0) -> list[int]:
        """Return the frames at which windows ``first`` and on begin."""
        starts = [i * self.window_frames for i in range(first, self.windows)]
        if starts:
            starts[-1] -= self.overlap
        return starts

    def timestamps(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Return the milliseconds of the kept rows, or of rows ``first`` to ``last - 1``, float64.

        float32 would be off by milliseconds after some hours.
        """
        return self.start + self.step * np.arange(first, self.rows if last is None else last)

    def keep(self, rows: Tensor, first: int = 0) -> Tensor:
        """Return the kept rows (kept, ...) of some windows, one after the other.

        Of the last window those that the one before has already are left out.

        Args:
            rows: (n, rows of a window, ...) of windows ``first`` to ``first + n - 1``.
            first: number of the first of them.
        """
        if self.overlap and len(rows) and first + len(rows) == self.windows:
            again = self.overlap * rows.shape[1] // self.window_frames
            return torch.cat([rows[:-1].flatten(0, 1), rows[-1, again:]])
        return rows.flatten(0, 1)[: self.rows - first * rows.shape[1]]


def corrected_plan(samples: int, config: ModelConfig) -> WindowPlan:
    """Keep each row whose centre is not past the clip's end, and compute no other window.

    Frame k is centred at sample k * hop, so row i, of p frames, at (i p + (p - 1) / 2) * hop
    samples. A clip too short for any centre keeps one row, stamped at half its duration.

    Windows follow each other, but the last of several is moved back until its last row is the
    clip's: it hears sound where silence would stand (but for half a row at most, whose centre is
    inside). It moves by whole rows, which keeps all of them on one grid of time.

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
        return WindowPlan(1, 1, samples * milliseconds / 2, config.hop_ms, config.window_frames)
    start = (frames - 1) / 2 * front_end.hop * milliseconds
    windows = -(-rows // config.time_patches)
    overlap = (windows * config.time_patches - rows) * frames if windows > 1 else 0
    return WindowPlan(windows, rows, start, config.hop_ms, config.window_frames, overlap)


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
    return WindowPlan(windows, rows, 0.0, duration / rows, config.window_frames)


def fill_of(windows: int, fill: str) -> str:
    """Return what stands past the end in the last of so many windows, where ``fill`` is asked for.

    A clip shorter than a window is repeated. The last window of a longer one lacks half a row at
    most, and its own start would be sound from elsewhere: what is just before the end is mirrored.
    """
    return "mirror" if fill == "repeat" and windows > 1 else fill


def cut_windows(features: Tensor, starts: Tensor, config: ModelConfig, fill: str) -> Tensor:
    """Cut windows out of clips.

    Args:
        features: (clips, feature channels, frames, mels) of the front-end.
        starts: (clips, windows) int64, the first frame of each.
        config: of the model.
        fill: what stands past a clip's last frame: ``"repeat"``, the window's own frames from its
            start, again and again; ``"mirror"``, the same frames back and forth (for both a window
            must begin inside the clip); ``"silence"``, the log-mel of silence; ``"zero"``, the
            value 0.

    Returns:
        (clips * windows, feature channels, window frames, mels), clip by clip.
    """
    offsets = torch.arange(config.window_frames, device=starts.device).expand(*starts.shape, -1)
    own = features.shape[2] - starts[:, :, None]
    if fill == "repeat":
        offsets = offsets % own
    elif fill == "mirror":
        period = (2 * (own - 1)).clamp(min=1)
        offsets = torch.minimum(offsets % period, period - offsets % period)
    frames = starts[:, :, None] + offsets
    clips = torch.arange(len(features), device=features.device)[:, None, None]
    # (clips, windows, window frames, channels, mels), as the indices stand apart
    cut = features[clips, :, frames.clamp(max=features.shape[2] - 1)]
    if fill in ("silence", "zero"):  # always: to ask whether it is needed would wait for a GPU
        filling = features.new_zeros(features.shape[1], 1)
        if fill == "silence":  # the log-mels hold the log of the floor; intensities stay 0
            filling[: config.front_end.audio_channels].fill_(config.front_end.log_floor).log_()
        cut = torch.where((frames < features.shape[2])[..., None, None], cut, filling)
    return cut.flatten(0, 1).transpose(1, 2)
