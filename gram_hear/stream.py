"""A clip that arrives in blocks: its feature windows, each as soon as all of its frames are known.

The windows are those of the whole clip: a frame at the start or end of the clip sees the clip's
reflected end, one at the end of a block sees the sound that follows.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gram_hear.model import GramModel
from gram_hear.windows import WindowPlan, cut_windows, fill_of


class WindowStream:
    """Feature windows of one clip in blocks, in memory that does not grow with the clip.

    Args:
        model: whose front-end and window length are used.
        plan: the rule that says, for a number of samples, which windows there are.
        fill: what is asked to stand past the clip's end; see :func:`gram_hear.windows.fill_of`.
        shortest: samples below which a clip is padded with zeros to one frame.
    """

    def __init__(
        self, model: GramModel, plan: Callable[[int], WindowPlan], fill: str, shortest: int
    ) -> None:
        self.model = model
        self.plan = plan
        self.fill = fill
        self.shortest = shortest
        front_end = model.config.front_end
        self.samples = 0  # that have arrived
        self._emitted = 0  # windows
        self._half = front_end.n_fft // 2
        self._window = model.config.window_frames * front_end.hop  # samples from one to the next
        # From the start of a window to the end of its last frame, half frames included.
        self._reach = self._window - front_end.hop + front_end.n_fft
        # The sound that is still needed. Once its start is reflected, self._origin is where it
        # begins in the padded clip, where window w begins at w * self._window.
        self._held: Tensor | None = None
        self._reflected = False
        self._origin = 0

    def push(self, block: Tensor) -> Tensor:
        """Take the next samples, and return the windows that they complete.

        Args:
            block: (channels, samples) in the model's layout.

        Returns:
            (windows, feature channels, window frames, mels), possibly none.
        """
        self.samples += block.shape[-1]
        self._held = block if self._held is None else torch.cat([self._held, block], dim=-1)
        if not self._reflected:
            if self._held.shape[-1] <= self._half:
                return self._no_windows(block)
            self._reflect_start()
        end = self._origin + self._held.shape[-1]
        count = (end - self._reach) // self._window + 1 - self._emitted
        if count < 1:
            return self._no_windows(block)
        last = self._emitted + count - 1
        known = self._held[..., : last * self._window + self._reach - self._origin]
        frames = self.model.config.window_frames
        starts = range(self._emitted * frames, (last + 1) * frames, frames)
        windows = self._cut(known, starts, self.fill)  # they are full
        self._emitted += count
        self._forget()
        return windows

    def finish(self) -> Tensor:
        """Return the windows that remain at the clip's end, possibly none."""
        assert self._held is not None, "finish() before any push()"
        plan = self.plan(self.samples)
        starts = plan.window_starts(self._emitted)
        if not starts:
            return self._no_windows(self._held)
        if not self._reflected or self.samples < self.shortest:
            self._pad_short()
        end = self._held[..., -self._half - 1 : -1].flip(-1)
        held = torch.cat([self._held, end], dim=-1)
        return self._cut(held, starts, fill_of(plan.windows, self.fill))

    def _cut(self, held: Tensor, starts: Sequence[int], fill: str) -> Tensor:
        """Return the windows that begin at these frames, of what is held."""
        config, first = self.model.config, min(starts)
        stretch = held[..., first * config.front_end.hop - self._origin :]
        features = self.model.front_end.transform(stretch[None])
        within = torch.tensor([[start - first for start in starts]], device=features.device)
        return cut_windows(features, within, config, fill)

    def _pad_short(self) -> None:
        """Bring a clip shorter than ``shortest`` to one frame, and reflect its start."""
        assert self._held is not None
        if self.samples < self.shortest:
            self._held = F.pad(self._held, (0, 2 * self._half - self.samples))
        if not self._reflected:
            self._reflect_start()

    def _reflect_start(self) -> None:
        assert self._held is not None
        start = self._held[..., 1 : self._half + 1].flip(-1)
        self._held = torch.cat([start, self._held], dim=-1)
        self._reflected = True

    def _forget(self) -> None:
        """Keep what the next window needs, and one window before: the last may be moved back."""
        assert self._held is not None
        origin = (self._emitted - 1) * self._window
        self._held = self._held[..., origin - self._origin :].clone()
        self._origin = origin

    def _no_windows(self, like: Tensor) -> Tensor:
        config = self.model.config
        shape = (0, config.front_end.feature_channels, config.window_frames, config.front_end.mels)
        return torch.empty(shape, device=like.device)
