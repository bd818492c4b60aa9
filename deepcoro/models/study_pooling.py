"""Vectors of a study's clips -> one vector, over the clips that are there.

A cine that is missing, or could not be read, is a place in the batch and nothing else: it takes part in no attention
and no mean. Where clips carry neither angle nor order, the order in which they stand changes nothing.

Letters: B studies, V views, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepcoro.models.layers import AttentionPool, Block, init_linear
from deepcoro.models.positions import sincos_positions

_MOST_VIEWS = 1024  # of a study, that an order tells apart


class ViewEmbedding(nn.Module):
    """What a clip is beside its pixels: where the detector stood, and which of the study's clips it is.

    An angle enters as its sine and cosine, so that no jump separates -180 from 180 degrees, with a mark that it is
    known. It begins small beside the vectors that it is added to.

    Args:
        angles: tell the primary and secondary angle.
        order: tell the place in acquisition order.
    """

    def __init__(self, width: int, angles: bool = True, order: bool = False) -> None:
        super().__init__()
        self.places: Tensor | None
        self.angles = nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.Linear(width, width)) if angles else None
        self.order = nn.Linear(width, width) if order else None
        table = sincos_positions((_MOST_VIEWS, 1, 1), width) if order else None
        self.register_buffer("places", table, persistent=False)
        init_linear(self)
        for last in (self.angles[-1] if self.angles is not None else None, self.order):
            if isinstance(last, nn.Linear):
                nn.init.normal_(last.weight, std=0.02)

    def forward(self, views: Tensor) -> Tensor:
        """``views`` [B, V, 3] (primary and secondary angle in degrees, NaN where unknown; place among the study's
        videos, from 0) -> [B, V, D] to be added."""
        if views.ndim != 3 or views.shape[-1] != 3:
            raise ValueError(f"expected views of shape [B, V, 3], received {tuple(views.shape)}")
        angles, parts = views[..., :2], []
        if self.angles is not None:
            known = ~angles.isnan()
            turn = torch.deg2rad(torch.where(known, angles, 0))
            told = torch.cat([torch.where(known, turn.sin(), 0), torch.where(known, turn.cos(), 0), known], dim=-1)
            parts.append(self.angles(told.to(next(self.angles.parameters()).dtype)))
        if self.order is not None:
            assert self.places is not None
            parts.append(self.order(self.places[views[..., 2].long().clamp(max=_MOST_VIEWS - 1)]))
        return torch.stack(parts).sum(dim=0)


class StudyPooling(nn.Module):
    """Attention pooling or the mean over valid views. A study with none valid is the zero vector.

    Args:
        width: D.
        kind: ``attention`` or ``mean``.
        num_heads: of the attention.
        num_layers: transformer blocks in which the views see each other first.

    Raises:
        ValueError: the views have another shape, or there is none.
    """

    def __init__(self, width: int, kind: str = "mean", num_heads: int = 4, num_layers: int = 0) -> None:
        super().__init__()
        if kind not in ("attention", "mean"):
            raise ValueError(f"kind must be attention or mean, got {kind!r}")
        self.width = width
        self.blocks = nn.ModuleList(Block(width, num_heads, 4 * width) for _ in range(num_layers))
        self.pool = AttentionPool(width, num_heads) if kind == "attention" else None
        init_linear(self)

    def forward(self, views: Tensor, valid: Tensor) -> Tensor:
        """``views`` [B, V, D], ``valid`` [B, V] bool -> [B, D]."""
        if views.ndim != 3 or views.shape[1] == 0 or views.shape[2] != self.width:
            raise ValueError(
                f"expected views of shape [B, V, {self.width}] with V of 1 or more, received {tuple(views.shape)}"
            )
        if valid.shape != views.shape[:2]:
            raise ValueError(f"expected valid of shape {tuple(views.shape[:2])}, received {tuple(valid.shape)}")
        # Where nothing is valid attention would have nothing to look at: it looks at zeros, and is left out at the end.
        some = valid.any(dim=1, keepdim=True)
        seen = valid | ~some
        views = torch.where(valid.unsqueeze(-1), views, 0)
        for block in self.blocks:
            views = block(views, mask=seen[:, None, None])
        if self.pool is not None:
            return torch.where(some, self.pool(views, seen), 0)
        kept = torch.where(valid.unsqueeze(-1), views, 0)
        return kept.sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1)


def drop_views(valid: Tensor, rate: float) -> Tensor:
    """Leave out each valid view of ``valid`` [B, V] with chance ``rate``, but never the last one of a study."""
    chance = torch.rand(valid.shape, device=valid.device).masked_fill(~valid, -1)
    last = chance == chance.amax(dim=1, keepdim=True)
    return valid & ((chance >= rate) | last)
