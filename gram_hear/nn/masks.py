"""Masks: which tokens of a window the encoder does not see in pretraining."""

import numpy as np
import torch
from torch import Tensor


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
