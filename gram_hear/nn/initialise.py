"""The weights that a new model starts from."""

import torch
from torch import nn

from gram_hear.nn.mamba import Mamba1Mixer, Mamba2Mixer, MambaEncoder

CLS_DEVIATION = 1.0  # standard deviation of GRAM-T's CLS token
CAUSAL_CLS_DEVIATION = 0.02  # of GRAM-M's CLS token
TOKEN_DEVIATION = 0.02  # of the mask token and the relative bias tables


def initialise(model: nn.Module, seed: int) -> None:
    """Give a new model its weights, the same for the same seed.

    Every linear layer, and the patch embedding, is Xavier-uniform with zero bias. Norms are at
    identity. The steps, decays and convolutions of a Mamba mixer are drawn as in mamba-ssm. All
    other tensors are normal, with the standard deviations above.
    """
    generator = torch.Generator().manual_seed(seed)
    causal = any(isinstance(module, MambaEncoder) for module in model.modules())
    for name, parameter in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        if kind == "cls_token":
            deviation = CAUSAL_CLS_DEVIATION if causal else CLS_DEVIATION
            nn.init.normal_(parameter, std=deviation, generator=generator)
        elif kind == "mask_token" or "bias_tables" in name:
            nn.init.normal_(parameter, std=TOKEN_DEVIATION, generator=generator)
        elif kind == "bias":
            nn.init.zeros_(parameter)
        elif parameter.dim() == 1:  # the weight of a norm
            nn.init.ones_(parameter)
        else:
            with torch.no_grad():  # flattened: a patch is one vector, not a convolution
                nn.init.xavier_uniform_(parameter.view(len(parameter), -1), generator=generator)
    for module in model.modules():
        if isinstance(module, (Mamba2Mixer, Mamba1Mixer)):
            module.reset(generator)
