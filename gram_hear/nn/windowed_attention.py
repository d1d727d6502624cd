"""Multi-window attention: each head attends inside windows of its own length."""

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gram_hear.nn.transformer import split_heads


class WindowedAttention(nn.Module):
    """Self-attention whose head h attends inside contiguous windows of ``windows[h]`` tokens.

    The windows tile the flattened (frequency-major) sequence without shift; 0 is global. Windowed
    heads add a learned bias ``table[(i - j) + window - 1]`` to the scaled scores; global heads
    have none. Neighbouring heads of one window length are computed together.
    """

    def __init__(self, width: int, windows: tuple[int, ...]) -> None:
        super().__init__()
        self.windows = windows
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.bias_tables = nn.ParameterDict(
            {str(h): nn.Parameter(torch.empty(2 * w - 1)) for h, w in enumerate(windows) if w}
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same shape; the windows must divide the tokens."""
        batch, length, _ = tokens.shape
        groups = [list(g) for _, g in groupby(range(len(self.windows)), self.windows.__getitem__)]
        # Split once: a slice for each group would cost a gradient of full size each, backward.
        queries, keys, values = (
            states.split([len(heads) for heads in groups], dim=1)
            for states in split_heads(self.qkv(tokens), len(self.windows))
        )
        mixed = []
        for heads, *group in zip(groups, queries, keys, values, strict=True):
            window = self.windows[heads[0]]
            # each (batch, heads, tokens, d) -> (batch * windows, heads, window, d)
            query, key, value = (
                states.unflatten(2, (-1, window or length)).transpose(1, 2).flatten(0, 1)
                for states in group
            )
            bias = self._bias(heads) if window else None
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
            mixed.append(attended.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3))
        return self.output(torch.cat(mixed, dim=1).transpose(1, 2).flatten(2))

    def _bias(self, heads: list[int]) -> Tensor:
        """Return the relative bias of heads of one window length, (1, heads, window, window)."""
        window = self.windows[heads[0]]
        tables = torch.stack([self.bias_tables[str(h)] for h in heads])
        position = torch.arange(window, device=tables.device)
        bias = tables[None, :, position[:, None] - position + window - 1]
        return bias.to(self.qkv.weight.dtype)
