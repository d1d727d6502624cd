"""Multi-window attention: each head attends inside windows of its own length."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Tokens up to which short windows are merged into one block, since products of small matrices are
# slow: on a CPU the fastest of 25, 50 and 100, on a GPU what fills a tile of its kernel.
CPU_BLOCK = 32
GPU_BLOCK = 64


class WindowedAttention(nn.Module):
    """Self-attention whose head h attends inside contiguous windows of ``windows[h]`` tokens.

    The windows tile the flattened (frequency-major) sequence without shift; 0 is global. Windowed
    heads add a learned bias ``table[(i - j) + window - 1]`` to the scaled scores; global heads
    have none.
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
        heads = len(self.windows)
        # Split once: in the backward pass every further split would write a gradient of full size.
        states = self.qkv(tokens).unflatten(-1, (3 * heads, -1)).unbind(2)
        mixed = [self._attend(h, *states[h::heads]) for h in range(heads)]
        return self.output(torch.stack(mixed, dim=2).flatten(2))

    def _attend(self, head: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend with one head; all are (batch, tokens, d)."""
        window, (batch, length) = self.windows[head], query.shape[:2]
        if not window:
            return fused_attention(query, key, value)
        written_out = prefers_products(query.device)
        block = block_length(window, length, CPU_BLOCK if written_out else GPU_BLOCK)
        bias = block_bias(self.bias_tables[str(head)], window, block).to(self.qkv.weight.dtype)
        # each (batch, tokens, d) -> (batch * blocks, block, d)
        query, key, value = (
            each.unflatten(1, (-1, block)).flatten(0, 1) for each in (query, key, value)
        )
        attend = attention_of_products if written_out else fused_attention
        return attend(query, key, value, bias).unflatten(0, (batch, -1)).flatten(1, 2)


def prefers_products(device: torch.device) -> bool:
    """Whether attention with a learned bias is faster written out as products.

    On a CPU it is: the fused kernel there has no gradient for the bias, and its substitute copies
    queries, keys and values.
    """
    return device.type == "cpu"


def block_length(window: int, tokens: int, longest: int) -> int:
    """Return how many tokens are attended to at once: whole windows, up to ``longest`` tokens.

    A window that is longer is a block by itself. Blocks divide the tokens, as windows do.
    """
    lengths = range(window, max(window, longest) + 1, window)
    return max(length for length in lengths if tokens % length == 0)


def block_bias(table: Tensor, window: int, block: int) -> Tensor:
    """Return what is added to the scores of a block, (block, block): -inf between windows.

    Args:
        table: (2 * window - 1,), the bias by difference of positions.
        window: tokens of a window.
        block: tokens of a block, a multiple of ``window``.
    """
    position = torch.arange(block, device=table.device)
    differences = position[:, None] - position
    bias = table[(differences + window - 1).clamp(0, 2 * window - 2)]
    apart = position[:, None] // window != position // window
    return bias.masked_fill(apart, -torch.inf)


def attention_of_products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attend by two products and a softmax; all (batch, tokens, d), the bias (tokens, tokens)."""
    scale = query.shape[-1] ** -0.5
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(dim=-1), value)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Attend by PyTorch's kernel of the device; shapes as for :func:`attention_of_products`."""
    # The kernels want a dimension of heads.
    query, key, value = (each[:, None] for each in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)[:, 0]
