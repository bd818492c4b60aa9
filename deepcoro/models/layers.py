"""Attention, feed-forward blocks and position encodings that encoder and decoders share.

Letters: B clips, N tokens, M other tokens, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention on ``scaled_dot_product_attention``; to itself, or to ``memory`` of another width."""

    def __init__(self, width: int, num_heads: int, memory_width: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not divisible by {num_heads} heads")
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(memory_width or width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, M, D/H] of ``memory`` [B, M, D]; made once, used for many queries."""
        key, value = self.key_value(memory).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def forward(
        self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """``x`` [B, N, D] -> [B, N, D]. ``mask`` broadcasts to [B, H, N, M], true where attention may go."""
        key, value = keys_values
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(
            self._split(self.query(x)), key, value, attn_mask=mask, is_causal=causal, dropout_p=dropout
        )
        return self.out(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))


class DropPath(nn.Module):
    """Skip a residual branch for a share of the rows (stochastic depth, 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [B, ...], unchanged in evaluation."""
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class Block(nn.Module):
    """A pre-norm transformer block: attention, then feed-forward."""

    def __init__(self, width: int, num_heads: int, hidden: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.feed_forward = FeedForward(width, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [B, N, D] -> [B, N, D]."""
        normed = self.norm1(x)
        x = x + self.drop_path(self.attention(normed, self.attention.keys_values(normed)))
        return x + self.drop_path(self.feed_forward(self.norm2(x)))


class AttentionPool(nn.Module):
    """Tokens -> one vector by a learned probe (the MAP head of SigLIP, 2303.15343)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.attention = Attention(width, num_heads)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, 4 * width)

    def forward(self, tokens: Tensor) -> Tensor:
        """``tokens`` [B, N, D] -> [B, D]."""
        pooled = self.attention(self.probe.expand(len(tokens), -1, -1), self.attention.keys_values(tokens))
        return (pooled + self.feed_forward(self.norm(pooled)))[:, 0]


def sincos_positions(grid: tuple[int, int, int], width: int) -> Tensor:
    """Fixed positions [N, D] of a (time, height, width) grid: a third of the channels for each axis.

    Sine and cosine at geometric wavelengths as in "Attention is all you need" (1706.03762, section 3.5), per axis.
    """
    per_axis = width // 6 * 2
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in grid], indexing="ij")
    rates = torch.exp(torch.arange(0, per_axis, 2) * (-torch.log(torch.tensor(10000.0)) / per_axis))
    parts = []
    for axis in axes:
        angle = axis.reshape(-1, 1) * rates
        parts += [angle.sin(), angle.cos()]
    positions = torch.cat(parts, dim=1)
    return F.pad(positions, (0, width - positions.shape[1]))


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """``tokens`` [B, N, D] at ``indices`` [B, K] -> [B, K, D]."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def full_precision(x: Tensor) -> Tensor:
    """At least 32 bits: norms, losses and targets are not computed in the half precision of an autocast region."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every Linear below ``module``, as ViT has it."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
