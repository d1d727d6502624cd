"""The weights that a new model starts from: those of the authors' GRAM-T and GRAM-M."""

import math

import torch
from torch import Tensor, nn

from gram_hear.nn.mae import Decoder
from gram_hear.nn.mamba import CausalConvolution, Mamba1Mixer, Mamba2Mixer, MambaEncoder, RMSNorm
from gram_hear.nn.patches import PatchEmbedding
from gram_hear.nn.transformer import Attention, Mlp
from gram_hear.nn.windowed_attention import WindowedAttention

CLS_DEVIATION = 1.0  # standard deviation of GRAM-T's CLS token
CAUSAL_CLS_DEVIATION = 0.02  # of GRAM-M's CLS token
TOKEN_DEVIATION = 0.02  # of the mask token and the relative bias tables


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Give a new model its weights, the same for the same seed, with a decoder or without.

    Patch embeddings, weight and bias, are drawn as PyTorch draws a convolution: uniform within
    1 / sqrt(inputs). Norms are at identity, and tokens and bias tables normal, with the standard
    deviations above.

    - GRAM-T: every linear layer is Xavier-uniform with zero bias.
    - GRAM-M: linear layers are drawn as PyTorch draws them, with zero bias. Where a layer ends a
      residual branch (the mixers' ``out_proj``, the second layer of the decoder's MLPs), it is
      divided by the square root of the encoder's depth. The decoder's attention is Xavier-uniform.
      Steps, decays and convolutions of the mixers are drawn as in mamba-ssm.
    """
    generator = torch.Generator().manual_seed(seed)
    depths = [len(each.blocks) for each in model.modules() if isinstance(each, MambaEncoder)]

    def draw(module: nn.Module) -> None:
        if depths:
            _draw_mamba(module, depths[0], generator)
        elif isinstance(module, nn.Linear):
            _xavier(module, generator)
        _draw_common(module, CAUSAL_CLS_DEVIATION if depths else CLS_DEVIATION, generator)

    model.apply(draw)  # parts come before what they are parts of, which may redraw them


def _draw_common(module: nn.Module, cls_deviation: float, generator: torch.Generator) -> None:
    """Draw what GRAM-T and GRAM-M draw alike, their CLS token's deviation aside."""
    if isinstance(module, PatchEmbedding):
        _like_pytorch(module.weight, generator)
        bound = 1 / math.sqrt(module.weight[0].numel())
        module.bias.uniform_(-bound, bound, generator=generator)
        module.cls_token.normal_(std=cls_deviation, generator=generator)
    elif isinstance(module, Decoder):
        module.mask_token.normal_(std=TOKEN_DEVIATION, generator=generator)
    elif isinstance(module, WindowedAttention):
        for table in module.bias_tables.values():
            table.normal_(std=TOKEN_DEVIATION, generator=generator)
    elif isinstance(module, (nn.LayerNorm, RMSNorm)):
        nn.init.ones_(module.weight)
        if isinstance(module, nn.LayerNorm):
            nn.init.zeros_(module.bias)


def _draw_mamba(module: nn.Module, depth: int, generator: torch.Generator) -> None:
    """Draw what GRAM-M draws in its own way; ``depth`` is that of the encoder."""
    if isinstance(module, nn.Linear):
        _like_pytorch(module.weight, generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (Attention, WindowedAttention)):
        _xavier(module.qkv, generator)
        _xavier(module.output, generator)
    elif isinstance(module, Mlp):
        module.reduce.weight.div_(math.sqrt(depth))
    elif isinstance(module, (Mamba2Mixer, Mamba1Mixer)):
        module.out_proj.weight.div_(math.sqrt(depth))
        module.reset(generator)
    elif isinstance(module, CausalConvolution):
        module.reset(generator)


def _like_pytorch(weight: Tensor, generator: torch.Generator) -> None:
    """Draw a weight as PyTorch's own linear and convolutional layers do."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)


def _xavier(layer: nn.Linear, generator: torch.Generator) -> None:
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
