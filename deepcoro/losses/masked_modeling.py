"""Error of the tokens that were asked for, over views that are there.

Letters: B rows, V views, M tokens, P numbers of a token: its pixels, or features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOSS_TYPES = ("mse", "l1", "smooth_l1")


def masked_modeling_loss(
    prediction: Tensor, target: Tensor, valid: Tensor, loss_type: str = "mse", smooth_l1_beta: float = 1.0
) -> Tensor:
    """Sum over tokens of the mean error of their numbers.

    Of a difference d the error is d^2 (``mse``), |d| (``l1``), or (``smooth_l1``, with b ``smooth_l1_beta``)
    d^2 / 2b up to b and |d| - b/2 beyond it.

    ``prediction`` and ``target`` [B*V, M, P] (the target without gradient), ``valid`` [B, V] bool.

    Raises:
        ValueError: no such loss type.
    """
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"masked modelling's loss_type must be one of {', '.join(LOSS_TYPES)}, got {loss_type!r}")
    prediction = prediction.to(target.dtype)
    if loss_type == "mse":
        error = (prediction - target).square()
    elif loss_type == "l1":
        error = (prediction - target).abs()
    else:
        error = F.smooth_l1_loss(prediction, target, reduction="none", beta=smooth_l1_beta)
    return torch.where(valid.flatten(), error.mean(dim=-1).sum(dim=-1), 0).sum()
