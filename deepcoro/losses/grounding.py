"""Which findings lie at which token: a binary cross-entropy for each token and segment.

The report says that there is a stenosis, somewhere; a box says where. Where there are boxes, this tells the encoder so
directly, token by token, which from reports alone it finds out after very many cines.

Letters: B rows, V views, N tokens, S segments.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def grounding_loss(logits: Tensor, segments_at: Tensor, known: Tensor) -> Tensor:
    """Sum over clips whose boxes are ``known``: of its tokens the mean, of their segments the sum.

    ``logits`` [B*V, N, S]; ``segments_at`` [B, V, N] whole numbers whose bit s says whether a lesion of segment s is
    there; ``known`` [B, V] bool.
    """
    bits = torch.arange(logits.shape[-1], device=logits.device)
    there = (segments_at.flatten(0, 1).unsqueeze(-1) >> bits) & 1
    error = F.binary_cross_entropy_with_logits(logits, there.to(logits.dtype), reduction="none")
    return torch.where(known.flatten(), error.sum(dim=-1).mean(dim=-1), 0).sum()
