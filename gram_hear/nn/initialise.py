"""The weights that a new model starts from."""

import torch
from torch import nn

CLS_DEVIATION = 1.0  # of GRAM-T's CLS token
TOKEN_DEVIATION = 0.02  # of the mask token and of the relative bias tables


def initialise(model: nn.Module, seed: int) -> None:
    """Give a new model its weights, the same for the same seed.

    Every linear layer (the patch embedding included) Xavier-uniform with zero bias, norms at
    identity; the standard deviations of the other tensors stand above.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        if kind == "cls_token":
            nn.init.normal_(parameter, std=CLS_DEVIATION, generator=generator)
        elif kind == "mask_token" or "bias_tables" in name:
            nn.init.normal_(parameter, std=TOKEN_DEVIATION, generator=generator)
        elif kind == "bias":
            nn.init.zeros_(parameter)
        elif parameter.dim() == 1:  # the weight of a norm
            nn.init.ones_(parameter)
        else:
            with torch.no_grad():  # flattened: a patch is one vector, not a convolution
                nn.init.xavier_uniform_(parameter.view(len(parameter), -1), generator=generator)
