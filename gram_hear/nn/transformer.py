"""The pre-norm Transformer: GRAM-T's encoder, and the blocks of the decoders."""

import torch.nn.functional as F
from torch import Tensor, nn

from gram_hear.config import TransformerConfig


class Attention(nn.Module):
    """Global multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same shape."""
        query, key, value = split_heads(self.qkv(tokens), self.heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.output(mixed.transpose(1, 2).flatten(2))


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, tokens, 3 * width) -> query, key and value, each (batch, heads, tokens, d)."""
    # Unbound before transposing, so that backward writes one gradient in the order of ``qkv``.
    query, key, value = qkv.unflatten(-1, (3, heads, -1)).unbind(2)
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.reduce = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same shape."""
        return self.reduce(F.gelu(self.expand(tokens)))


class TransformerBlock(nn.Module):
    """One pre-norm block around any attention module."""

    def __init__(self, attention: nn.Module, width: int, mlp_width: int, epsilon: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.attention = attention
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = Mlp(width, mlp_width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same shape."""
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class TransformerEncoder(nn.Module):
    """GRAM-T's encoder: ViT blocks and a final LayerNorm, eps 1e-6."""

    EPSILON = 1e-6

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TransformerBlock(
                Attention(config.width, config.heads), config.width, config.mlp_width, self.EPSILON
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=self.EPSILON)

    def forward(self, tokens: Tensor, layer: int | None = None) -> Tensor:
        """(batch, tokens, width) -> the same shape.

        Args:
            tokens: embedded patches, the CLS token first.
            layer: the number of blocks to apply before the final norm; None is all of them.
        """
        for block in self.blocks[:layer]:
            tokens = block(tokens)
        return self.norm(tokens)
