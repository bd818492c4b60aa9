"""Vectors of a study's clips -> one vector, over the clips that are there.

Letters: B studies, V views, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StudyPooling(nn.Module):
    """Mean over valid views. A view that is not there changes nothing; a study with none is the zero vector."""

    def forward(self, views: Tensor, valid: Tensor) -> Tensor:
        """``views`` [B, V, D], ``valid`` [B, V] bool -> [B, D]."""
        kept = torch.where(valid.unsqueeze(-1), views, 0)
        return kept.sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1)
