"""Divided space-time attention (TimeSformer, 2102.05095, section 3): each token looks along time at its own place, and
then at the other places of its frame. A class token looks at each frame, and takes the mean of what it saw.

TimeSformer puts a second linear layer behind the attention over time; two of them in a row are one, as here.

Letters: B clips, T tokens along time, P places of a frame, N = T P tokens, K visible, H heads, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepcoro.models.layers import Attention, Block, Rotary


@dataclass(frozen=True)
class Frames:
    """How the tokens of a forward pass lie in frames.

    Where all are there, attention runs in dense groups. Where some are hidden, the visible ones attend to each other
    under a mask: groups of unequal size, of which nothing but the visible tokens is computed.

    Args:
        num_frames: T.
        same_place: [B, 1, K, K] bool, ``None`` where no token is hidden.
        same_frame: [B, 1, T + K, 1 + K] bool, with a class token that looks at each frame; else [B, 1, K, K].
    """

    num_frames: int
    same_place: Tensor | None = None
    same_frame: Tensor | None = None

    @classmethod
    def of(cls, num_frames: int, num_places: int, visible: Tensor | None, class_token: bool) -> Frames:
        """Of all tokens, or of those at ``visible`` [B, K]."""
        if visible is None:
            return cls(num_frames)
        frame, place = visible // num_places, visible % num_places
        same_frame = frame[:, :, None] == frame[:, None]
        if class_token:
            looks = torch.arange(num_frames, device=visible.device)[:, None] == frame[:, None]  # [B, T, K]
            same_frame = torch.cat([looks, same_frame], dim=1)
            same_frame = torch.cat([torch.ones_like(same_frame[:, :, :1]), same_frame], dim=2)
        return cls(num_frames, (place[:, :, None] == place[:, None]).unsqueeze(1), same_frame.unsqueeze(1))


class DividedBlock(Block):
    """A pre-norm block with two attentions, over time and over space, each with its own norm.

    Args:
        class_token: whether the first token is one.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden: int,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        class_token: bool = False,
    ) -> None:
        super().__init__(width, num_heads, hidden, drop_path, norm_eps)
        self.norm_time = nn.LayerNorm(width, norm_eps)
        self.attention_time = Attention(width, num_heads)
        self.num_prefix = int(class_token)

    def forward(  # type: ignore[override]  # it has to know which tokens share a frame
        self, x: Tensor, rotary: Rotary | None, frames: Frames
    ) -> Tensor:
        """``x`` [B, N, D] (with a class token first: [B, 1 + N, D]) -> the same shape; or K for N."""
        prefix, tokens = x[:, : self.num_prefix], x[:, self.num_prefix :]
        tokens = tokens + self.drop_path(self._over_time(self.norm_time(tokens), rotary, frames))
        x = torch.cat([prefix, tokens], dim=1)
        x = x + self.drop_path(self._over_space(self.norm1(x), rotary, frames))
        return x + self.drop_path(self.feed_forward(self.norm2(x)))

    def _over_time(self, tokens: Tensor, rotary: Rotary | None, frames: Frames) -> Tensor:
        attention = self.attention_time
        parts = (attention.queries(tokens, rotary), *attention.keys_values(tokens, rotary))
        if frames.same_place is not None:
            return attention.merge(attention.attend(*parts, mask=frames.same_place))
        # [B, H, T P, D/H] -> [B P, H, T, D/H] and back
        parts = tuple(x.unflatten(2, (frames.num_frames, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1) for x in parts)
        heads = attention.attend(*parts).unflatten(0, (len(tokens), -1))
        return attention.merge(heads.permute(0, 2, 3, 1, 4).flatten(2, 3))

    def _over_space(self, x: Tensor, rotary: Rotary | None, frames: Frames) -> Tensor:
        attention, c = self.attention, self.num_prefix
        turned = with_prefix(rotary, c)
        query, (key, value) = attention.queries(x, turned), attention.keys_values(x, turned)
        if frames.same_frame is not None:
            looks = [query[:, :, :c].expand(-1, -1, frames.num_frames, -1)] if c else []
            heads = attention.attend(torch.cat([*looks, query[:, :, c:]], dim=2), key, value, frames.same_frame)
        else:
            grouped = attention.attend(
                self._by_frame(query, frames.num_frames),
                self._by_frame(key, frames.num_frames),
                self._by_frame(value, frames.num_frames),
            )
            split = grouped.unflatten(0, (len(x), -1)).transpose(1, 2)  # [B, H, T, c + P, D/H]
            heads = torch.cat([split[:, :, :, :c].flatten(2, 3), split[:, :, :, c:].flatten(2, 3)], dim=2)
        if c:
            first = frames.num_frames
            heads = torch.cat([heads[:, :, :first].mean(dim=2, keepdim=True), heads[:, :, first:]], dim=2)
        return attention.merge(heads)

    def _by_frame(self, x: Tensor, num_frames: int) -> Tensor:
        """[B, H, c + T P, D/H] -> [B T, H, c + P, D/H]: the class token stands in every frame."""
        c = self.num_prefix
        split = x[:, :, c:].unflatten(2, (num_frames, -1))
        if c:
            split = torch.cat([x[:, :, :c].unsqueeze(2).expand(-1, -1, num_frames, -1, -1), split], dim=3)
        return split.transpose(1, 2).flatten(0, 1)


def with_prefix(rotary: Rotary | None, num_prefix: int) -> Rotary | None:
    """``rotary`` with ``num_prefix`` tokens in front that do not turn."""
    if rotary is None or num_prefix == 0:
        return rotary
    cos, sin = rotary
    still = torch.ones_like(cos[:, :, :num_prefix])
    return torch.cat([still, cos], dim=2), torch.cat([torch.zeros_like(still), sin], dim=2)
