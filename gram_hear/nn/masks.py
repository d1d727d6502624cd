"""Masks of tokens: what the encoder does not see in pretraining."""

import torch
from torch import Tensor


def random_mask(windows: int, tokens: int, masked: int, generator: torch.Generator) -> Tensor:
    """Draw masks, (windows, tokens) bool on the generator's device, ``masked`` True in each row."""
    device = generator.device
    order = torch.rand(windows, tokens, generator=generator, device=device).argsort(dim=1)
    return order < masked
