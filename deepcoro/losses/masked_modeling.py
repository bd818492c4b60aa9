"""Squared error of the hidden tubelets, over views that are there.

Letters: B rows, V views, M hidden tokens, P pixels of a tubelet.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_modeling_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Sum over hidden tokens of the mean squared error of their pixels.

    ``prediction`` and ``target`` [B*V, M, P] (the target without gradient), ``valid`` [B, V] bool.
    """
    error = (prediction.to(target.dtype) - target).square().mean(dim=-1).sum(dim=-1)
    return torch.where(valid.flatten(), error, 0).sum()
