"""Masks: which tokens of a window the encoder does not see in pretraining."""

import numpy as np
import torch
from torch import Tensor

from gram_hear.errors import ConfigError

MASKS = ("random", "cluster", "frequency", "time")
CLUSTER_SIDES = (3, 4, 5)  # tokens


def draw_masks(
    kind: str, windows: int, tokens: int, rows: int, masked: int, generator: np.random.Generator
) -> Tensor:
    """Draw masks on the CPU, for each window by itself. All hide ``masked`` tokens.

    ``"cluster"``, ``"frequency"`` and ``"time"`` are those of the authors' AudioSphere.

    Args:
        kind: one of :data:`MASKS`. ``"random"`` hides tokens one by one. ``"frequency"`` hides
            whole rows of patches, and ``"time"`` whole columns; the last of them is hidden in part,
            at random, where their number does not come out even. ``"cluster"`` hides squares, see
            :func:`_draw_clusters`.
        windows: number of masks.
        tokens: of a window.
        rows: of frequency in the grid of patches; a row has ``tokens // rows`` columns of time.
        masked: number of hidden tokens, at least 1.
        generator: of the draws.

    Returns:
        (windows, tokens) bool, frequency-major, True where a token is hidden.
    """
    columns = tokens // rows
    if kind == "random":
        order = generator.random((windows, tokens)).argsort(axis=1, kind="stable")
        return torch.from_numpy(order < masked)
    if kind == "cluster":
        drawn = [_draw_clusters(tokens, columns, masked, generator) for _ in range(windows)]
        return torch.from_numpy(np.stack(drawn))
    # Lines in a random order, and the tokens of each in one of their own: the first are hidden.
    lines = generator.random((windows, rows, 1) if kind == "frequency" else (windows, 1, columns))
    lines = np.broadcast_to(lines, (windows, rows, columns)).reshape(windows, tokens)
    hidden = np.lexsort((generator.random(lines.shape), lines), axis=1)[:, :masked]
    mask = np.zeros(lines.shape, dtype=bool)
    np.put_along_axis(mask, hidden, True, axis=1)
    return torch.from_numpy(mask)


def _draw_clusters(
    tokens: int, columns: int, masked: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw squares of one size until enough tokens are hidden, (tokens,) bool.

    A square begins at a random token and extends to later ones and to higher frequencies. What
    exceeds its row goes on in the next one. Of too many tokens the last are left visible. So high
    and middle frequencies are hidden more often than low ones.

    All squares come in a random order, by keys. To draw them one by one, with repetitions, would
    hide the same tokens.
    """
    side = int(generator.choice(CLUSTER_SIDES))
    first = generator.random(tokens)  # the keys of the squares, by the token that they begin at
    for step in (1, columns):  # then, by each token, the key of the first one that holds it
        squares = first.copy()
        for offset in range(step, min(side * step, tokens), step):
            np.minimum(first[offset:], squares[:-offset], out=first[offset:])
    hidden = first <= np.partition(first, masked - 1)[masked - 1]
    return hidden & (hidden.cumsum() <= masked)


def random_mask(windows: int, tokens: int, masked: int, generator: torch.Generator) -> Tensor:
    """Draw random masks as :func:`draw_masks`, with a generator of PyTorch and on its device."""
    device = generator.device
    order = torch.rand(windows, tokens, generator=generator, device=device).argsort(dim=1)
    return order < masked


def split_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens that a mask leaves visible, and those that it hides, each in order.

    Args:
        mask: (windows, tokens) bool, True where a token is hidden; as many in every window.

    Returns:
        Indices (windows, kept) and (windows, masked), int64.

    Raises:
        ConfigError: for a mask of another type or rank, with unequal counts, or of all tokens or
            none.
    """
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise ConfigError(
            f"The mask is {mask.dtype} of shape {tuple(mask.shape)}; it must be bool, (windows, "
            "tokens), True where a token is masked."
        )
    counts = mask.sum(dim=1).unique().tolist()
    if len(counts) != 1 or counts[0] in (0, mask.shape[1]):
        raise ConfigError(
            f"The mask hides {counts} of {mask.shape[1]} tokens; every window must hide the same "
            "number, at least one and not all."
        )
    order = mask.byte().argsort(dim=1, stable=True)  # what is visible comes first
    kept = mask.shape[1] - counts[0]
    return order[:, :kept], order[:, kept:]
