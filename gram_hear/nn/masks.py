"""Masks: which tokens of a window the encoder does not see in pretraining."""

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

MASKS = ("random", "cluster", "frequency", "time")
CLUSTER_SIDES = (3, 4, 5)  # tokens


def draw_masks(
    kind: str, windows: int, tokens: int, rows: int, masked: int, generator: np.random.Generator
) -> Tensor:
    """Draw masks on the CPU. In each window ``masked`` tokens are hidden, whatever the others hide.

    Args:
        kind: one of :data:`MASKS`. ``"random"`` hides tokens one by one. ``"frequency"`` hides
            whole rows of patches, and ``"time"`` whole columns; the last of them is hidden in part,
            at random, where their number does not come out even. ``"cluster"`` hides squares of 3,
            4 or 5 tokens a side, one size for each window. They may overlap and reach beyond the
            edge, so that every token is hidden equally often. The last one is hidden in part.
        windows: number of masks.
        tokens: of a window.
        rows: of frequency in the grid of patches; a row has ``tokens // rows`` columns of time.
        masked: number of hidden tokens.
        generator: of the draws.

    Returns:
        (windows, tokens) bool, frequency-major, True where a token is hidden.
    """
    if kind == "random":
        order = generator.random((windows, tokens)).argsort(axis=1, kind="stable")
        return torch.from_numpy(order < masked)
    grid = rows, tokens // rows
    # Tokens with the same key are hidden together, those with the lowest keys first.
    if kind == "cluster":
        keys = np.stack([_cluster_keys(grid, generator) for _ in range(windows)])
    else:
        lines = (windows, rows, 1) if kind == "frequency" else (windows, 1, tokens // rows)
        keys = np.broadcast_to(generator.random(lines), (windows, *grid))
    keys = keys.reshape(windows, -1)
    hidden = np.lexsort((generator.random(keys.shape), keys), axis=1)[:, :masked]
    mask = np.zeros(keys.shape, dtype=bool)
    np.put_along_axis(mask, hidden, True, axis=1)
    return torch.from_numpy(mask)


def _cluster_keys(grid: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Return for each token (rows, columns) the key of the first cluster that covers it.

    Clusters come in a random order of all their positions, by keys. To draw positions one by one,
    with repetitions, would cover the tokens in the same way.
    """
    side = int(generator.choice(CLUSTER_SIDES))
    clusters = generator.random([length + side - 1 for length in grid])
    return sliding_window_view(clusters, (side, side)).min(axis=(2, 3))


def random_mask(windows: int, tokens: int, masked: int, generator: torch.Generator) -> Tensor:
    """Draw random masks as :func:`draw_masks`, with a generator of PyTorch and on its device."""
    device = generator.device
    order = torch.rand(windows, tokens, generator=generator, device=device).argsort(dim=1)
    return order < masked
