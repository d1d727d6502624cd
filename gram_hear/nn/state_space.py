"""The state-space recurrences of Mamba, each as a plain loop and as a faster equivalent.

Mamba-2 (Dao and Gu 2024, arXiv 2405.21060), for each head, with a state of (state, head width):

    state_t = exp(dt_t A) state_{t-1} + B_t (dt_t x_t)^T,    y_t = C_t^T state_t + D x_t

Mamba-1 (Gu and Dao 2023, arXiv 2312.00752) is the same for each channel, with a row of ``A`` of its
own. In both ``A`` is negative, ``dt`` positive, and ``B`` and ``C`` are shared by all channels.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CPU_CHUNK = 32  # tokens of a chunk of the Mamba-2 scan: of 32, 64, 128, 256 the fastest on a CPU
GPU_CHUNK = 128  # tokens of a chunk on a GPU, which prefers fewer and larger steps
SCAN_CHUNK = 32  # tokens of a chunk of the Mamba-1 scan; it bounds the memory
LARGEST_DECAY = -200.0  # logarithm of a token's decay, after which nothing is left of the state
SMALLEST_STEP = 1e-30  # a smaller dt adds nothing in float32, and this one has a finite logarithm


def ssd_sequential(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Run the Mamba-2 recurrence token by token: the reference of :func:`ssd`.

    Args:
        x: (batch, tokens, heads, head width).
        dt: (batch, tokens, heads), positive.
        a: (heads,), negative.
        b, c: (batch, tokens, state).
        d: (heads,).

    Returns:
        (batch, tokens, heads, head width).
    """
    state = x.new_zeros(len(x), x.shape[2], x.shape[3], b.shape[2])
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * a)[..., None, None]
        inflow = (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, None, None, :]
        state = decay * state + inflow
        outputs.append((state * c[:, t, None, None, :]).sum(-1) + d[:, None] * x[:, t])
    return torch.stack(outputs, dim=1)


def ssd(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, chunk: int | None = None
) -> Tensor:
    """Run the Mamba-2 recurrence by its dual form: matrix products inside chunks of tokens.

    Inside a chunk it is attention with the decay as mask; between chunks the state is carried.
    The cost is linear in the number of tokens.

    Args:
        x, dt, a, b, c, d: as for :func:`ssd_sequential`, all of one type.
        chunk: about how many tokens a chunk has; it affects cost and rounding alone. None is
            :data:`CPU_CHUNK` or :data:`GPU_CHUNK`.

    Returns:
        (batch, tokens, heads, head width).
    """
    if chunk is None:
        chunk = CPU_CHUNK if x.device.type == "cpu" else GPU_CHUNK
    tokens = x.shape[1]
    length = -(-tokens // max(1, round(tokens / chunk)))  # chunks of one length
    future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    state, outputs = None, []
    for start in range(0, tokens, length):
        part = slice(start, start + length)
        last = start + length >= tokens
        y, state = _ssd_chunk(
            state, x[:, part], dt[:, part], a, b[:, part], c[:, part], d, future, last
        )
        outputs.append(y)
    return torch.cat(outputs, dim=1)


def exact_type(tensor: Tensor) -> torch.dtype:
    """Return the type in which logarithms of decays are added up: float64 where there is one."""
    return tensor.dtype if tensor.device.type == "mps" else torch.float64


def _ssd_chunk(
    state: Tensor | None,
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    future: Tensor,
    last: bool,
) -> tuple[Tensor, Tensor | None]:
    """Run one chunk, in as few passes over the large tensors as it takes.

    Args:
        state: what the tokens before left, (batch, state, heads * head width); None at first.
        x, dt, a, b, c, d: as for :func:`ssd`, of the tokens of the chunk.
        future: (chunk or longer, the same), True where a column is later than its row.
        last: no chunk follows, so no state is computed.

    Returns:
        (batch, chunk, heads, head width), and the state after the chunk.
    """
    length, _, head_width = x.shape[1:]
    # The logarithm of the decay so far, (batch, chunk, heads). It grows along the chunk, and only
    # its differences count, which float32 would lose after one large step.
    decayed = (dt * a).clamp_min(LARGEST_DECAY).to(exact_type(x)).cumsum(dim=1)
    steps = dt.clamp_min(SMALLEST_STEP).log()
    by_head = decayed.transpose(1, 2)
    between = (by_head[..., :, None] - by_head[..., None, :]).to(x.dtype)
    between = between.add_(steps.transpose(1, 2)[..., None, :])  # dt x enters, and decays
    mask = between.masked_fill_(future[:length, :length], -torch.inf).exp_()
    mixing = mask * (c @ b.transpose(1, 2))[:, None]  # (batch, heads, chunk, chunk)
    mixing.diagonal(dim1=2, dim2=3).add_(d[:, None])
    y = (mixing @ x.transpose(1, 2)).transpose(1, 2)
    if state is not None:
        arriving = (c @ state).unflatten(2, (-1, head_width))
        y = y.addcmul_(arriving, decayed.to(x.dtype).exp()[..., None])
    if last:
        return y, None
    end = decayed[:, -1:]
    left = (x * ((end - decayed).to(x.dtype) + steps).exp()[..., None]).flatten(2)
    added = b.transpose(1, 2) @ left
    if state is not None:
        added = added.addcmul_(state, end.to(x.dtype).exp().repeat_interleave(head_width, dim=2))
    return y, added


def selective_scan_sequential(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor
) -> Tensor:
    """Run the Mamba-1 recurrence token by token: the reference of :func:`selective_scan`.

    Args:
        x: (batch, tokens, channels).
        dt: (batch, tokens, channels), positive.
        a: (channels, state), negative.
        b: (batch, tokens, state).
        c: (batch, tokens, state).
        d: (channels,).

    Returns:
        (batch, tokens, channels).
    """
    state = x.new_zeros(len(x), *a.shape)
    outputs = []
    for t in range(x.shape[1]):
        inflow = (dt[:, t] * x[:, t])[..., None] * b[:, t, None, :]
        state = torch.exp(dt[:, t, :, None] * a) * state + inflow
        outputs.append((state * c[:, t, None, :]).sum(-1) + d * x[:, t])
    return torch.stack(outputs, dim=1)


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, chunk: int = SCAN_CHUNK
) -> Tensor:
    """Run the Mamba-1 recurrence with one operation for each token.

    What does not depend on the state is computed for a whole chunk at once; the backward pass
    computes the states again instead of keeping them.

    Args:
        x, dt, a, b, c, d: as for :func:`selective_scan_sequential`, all of one type.
        chunk: tokens of a chunk; it affects cost and memory alone.

    Returns:
        (batch, tokens, channels).
    """
    state = x.new_zeros(len(x), *a.shape)
    outputs = []
    for part in zip(*(each.split(chunk, dim=1) for each in (x, dt, b, c)), strict=True):
        if torch.is_grad_enabled():
            y, state = checkpoint(_scan_chunk, state, a, *part, use_reentrant=False)
        else:
            y, state = _scan_chunk(state, a, *part)
        outputs.append(y)
    return torch.cat(outputs, dim=1).addcmul_(d, x)


def _scan_chunk(
    state: Tensor, a: Tensor, x: Tensor, dt: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the outputs (batch, chunk, channels) and the state after a chunk."""
    decays = torch.exp(dt[..., None] * a).unbind(1)  # each (batch, channels, state)
    inflows = ((dt * x)[..., None] * b[:, :, None, :]).unbind(1)
    states = []
    for decay, inflow in zip(decays, inflows, strict=True):
        state = torch.addcmul(inflow, decay, state)
        states.append(state)
    return (torch.stack(states, dim=1) @ c[..., None]).squeeze(-1), state
