"""Masks: which tokens of a window the encoder does not see in pretraining."""

import numpy as np
import torch
from torch import Tensor

from gram_hear.errors import ConfigError


def random_masks(windows: int, tokens: int, masked: int, generator: np.random.Generator) -> Tensor:
    """Draw masks (windows, tokens) bool on the CPU, True where a token is hidden.

    In each window ``masked`` tokens are, whatever the other windows hide.
    """
    order = generator.random((windows, tokens)).argsort(axis=1, kind="stable")
    return torch.from_numpy(order < masked)


def random_mask(windows: int, tokens: int, masked: int, generator: torch.Generator) -> Tensor:
    """Draw masks as :func:`random_masks`, with a generator of PyTorch and on its device."""
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
