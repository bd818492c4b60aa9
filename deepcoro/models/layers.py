"""Attention and feed-forward blocks that encoders and decoders share.

Letters: B clips, N tokens, M other tokens, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rotary = tuple[Tensor, Tensor]  # cosines and sines [1 or B, 1, N, D/H] that turn queries and keys


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

    def queries(self, x: Tensor, rotary: Rotary | None = None) -> Tensor:
        """Queries [B, H, N, D/H] of ``x`` [B, N, D]."""
        return rotate(self._split(self.query(x)), rotary)

    def keys_values(self, memory: Tensor, rotary: Rotary | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, M, D/H] of ``memory`` [B, M, D]; made once, used for many queries."""
        key, value = self.key_value(memory).chunk(2, dim=-1)
        return rotate(self._split(key), rotary), self._split(value)

    def forward(
        self,
        x: Tensor,
        keys_values: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        causal: bool = False,
        rotary: Rotary | None = None,
    ) -> Tensor:
        """``x`` [B, N, D] -> [B, N, D]. ``mask`` broadcasts to [B, H, N, M], true where attention may go."""
        return self.merge(self.attend(self.queries(x, rotary), *keys_values, mask, causal))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """What the heads gather, [B, H, N, D/H]."""
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, dropout_p=dropout)

    def weights(self, x: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        """Where each of ``x`` [B, N, D] looks among ``key`` [B, H, M, D/H]: [B, H, N, M], of which each row sums to 1.
        ``attend`` never makes them; this is for looking at."""
        query = self.queries(x)
        logits = full_precision(query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5)
        return (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(dim=-1)

    def merge(self, heads: Tensor) -> Tensor:
        """Heads [B, H, N, D/H] -> [B, N, D]."""
        return self.out(heads.transpose(1, 2).flatten(2))

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

    def __init__(self, width: int, num_heads: int, hidden: int, drop_path: float = 0.0, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, norm_eps), nn.LayerNorm(width, norm_eps)
        self.attention = Attention(width, num_heads)
        self.feed_forward = FeedForward(width, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, rotary: Rotary | None = None, mask: Tensor | None = None) -> Tensor:
        """``x`` [B, N, D] -> [B, N, D]. ``mask`` broadcasts to [B, H, N, N], true where attention may go."""
        normed = self.norm1(x)
        keys_values = self.attention.keys_values(normed, rotary)
        x = x + self.drop_path(self.attention(normed, keys_values, mask, rotary=rotary))
        return x + self.drop_path(self.feed_forward(self.norm2(x)))


class AttentionPool(nn.Module):
    """Tokens -> one vector by a learned probe (the MAP head of SigLIP, 2303.15343)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.attention = Attention(width, num_heads)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, 4 * width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """``tokens`` [B, N, D] -> [B, D]. ``mask`` [B, N] is true where a token is there; each row needs one."""
        seen = None if mask is None else mask[:, None, None]
        probe = self.probe.expand(len(tokens), -1, -1)
        pooled = self.attention(probe, self.attention.keys_values(tokens), seen)
        return (pooled + self.feed_forward(self.norm(pooled)))[:, 0]

    def weights(self, tokens: Tensor) -> Tensor:
        """Where the probe looks: [B, N], the mean over the heads; each row sums to 1."""
        key, _ = self.attention.keys_values(tokens)
        return self.attention.weights(self.probe.expand(len(tokens), -1, -1), key).mean(dim=1)[:, 0]


def rotate(x: Tensor, rotary: Rotary | None) -> Tensor:
    """Turn pairs of channels of ``x`` [B, H, N, D/H] by the angles of ``rotary``; ``None`` leaves them."""
    if rotary is None:
        return x
    cos, sin = rotary
    first, second = x.unflatten(-1, (-1, 2)).unbind(dim=-1)
    return x * cos.to(x.dtype) + torch.stack((-second, first), dim=-1).flatten(-2) * sin.to(x.dtype)


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
