"""Reconstruction: how well are hidden tokens predicted, and is that better than not looking?

Shapes: B clips, N tokens on a grid (t, h, w) in row-major order, K visible, M hidden, P pixels of a token.

Two spaces. *Normalised*: each token less its mean, over its standard deviation; what the loss sees, where a flat token
weighs as much as a vessel and the patch mean scores 1. *Pixels*: intensities in [0, 1]; there a model that predicts
normalised tokens needs the true mean and standard deviation to be put back. That is knowledge about what is hidden, so
its opponents get it as well:

- ``patch_mean``: every pixel of a hidden token is that token's true mean.
- ``interpolation``: from the visible tokens alone; nothing of what is hidden is known.
- ``interpolation_same_mean``: the interpolated pattern, moved to the true mean: the fair and usually strongest one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reconstruction_errors(
    prediction: Tensor,
    tokens: Tensor,
    visible: Tensor,
    hidden: Tensor,
    grid: tuple[int, int, int],
    *,
    mask: Tensor | None = None,
    eps: float = 1e-6,
) -> dict[str, Tensor]:
    """Mean squared error of each clip, the model's and its opponents'.

    Args:
        prediction: normalised values of the hidden tokens [B, M, P], in the order of ``hidden``.
        tokens: the true tokens in pixels, [B, N, P], values in [0, 1].
        visible: indices into N of the tokens that were shown, int64 [B, K].
        hidden: indices into N of the tokens that were predicted, int64 [B, M].
        grid: (t, h, w) with t * h * w = N.
        mask: hidden tokens that count, bool [B, M] (vessel tokens, say); all by default.
        eps: what ``normalise`` adds to the variance; the same that the model was trained with.

    Returns:
        float [B] each, NaN where ``mask`` selects nothing: ``normalised``, ``pixels`` (the model), and, in pixels,
        ``patch_mean``, ``interpolation``, ``interpolation_same_mean``; ``normalised_patch_mean`` is the first one's
        opponent in its own space (1, less where tokens are flat).

    Raises:
        ValueError: shapes do not fit, or an index is out of range.
    """
    target = take_tokens(tokens, hidden)
    normalised_target, mean, std = normalise(target, eps)
    if prediction.shape != target.shape:
        raise ValueError(f"expected prediction [B, M, P] of {tuple(target.shape)}, got {tuple(prediction.shape)}")
    interpolated = take_tokens(interpolate_hidden(tokens, visible, grid), hidden)
    same_mean = interpolated - interpolated.mean(dim=-1, keepdim=True) + mean
    return {
        "normalised": squared_error(prediction, normalised_target, mask),
        "normalised_patch_mean": squared_error(torch.zeros_like(target), normalised_target, mask),
        "pixels": squared_error(prediction * std + mean, target, mask),
        "patch_mean": squared_error(mean.expand_as(target), target, mask),
        "interpolation": squared_error(interpolated, target, mask),
        "interpolation_same_mean": squared_error(same_mean, target, mask),
    }


def squared_error(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of each clip over tokens and pixels: [B, M, P] twice -> [B].

    Args:
        prediction, target: [B, M, P].
        mask: tokens that count, bool [B, M]; all by default. A clip without any is NaN.

    Raises:
        ValueError: shapes differ or are empty.
    """
    if prediction.ndim != 3 or prediction.shape != target.shape or 0 in target.shape:
        raise ValueError(
            "expected prediction and target of one shape [B, M, P], not empty; "
            f"got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    per_token = (prediction.float() - target.float()).square().mean(dim=-1)
    if mask is None:
        return per_token.mean(dim=1)
    if mask.shape != per_token.shape or mask.dtype != torch.bool:
        raise ValueError(f"expected a bool mask {tuple(per_token.shape)}, got {mask.dtype} {tuple(mask.shape)}")
    return torch.where(mask, per_token, 0).sum(dim=1) / mask.sum(dim=1)  # 0 / 0 is NaN: nothing was measured


def normalise(tokens: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Give each token mean 0 and variance 1: ``(normalised [B, M, P], mean [B, M, 1], std [B, M, 1])``.

    ``std`` is the root of the biased variance plus ``eps``; ``normalised * std + mean`` undoes it. (MAE, arXiv
    2111.06377, section 4: normalised pixels as the target.)
    """
    tokens = tokens.float()
    mean = tokens.mean(dim=-1, keepdim=True)
    std = (tokens.var(dim=-1, correction=0, keepdim=True) + eps).sqrt()
    return (tokens - mean) / std, mean, std


def interpolate_hidden(
    tokens: Tensor, visible: Tensor, grid: tuple[int, int, int], *, time_step: float = 0.5, power: float = 4.0
) -> Tensor:
    """Fill hidden tokens from the visible ones: what anybody could do without learning.

    Inverse-distance weighting (Shepard, 1968) over all visible tokens of the clip: a hidden token is their mean with
    weights ``distance ** -power``, pixel by pixel. All take part, rather than the nearest few, because on a grid many
    are equally near, and which of them a sort picks would be chance.

    Args:
        tokens: [B, N, P]; what stands at hidden places is not read.
        visible: indices into N of what may be read, int64 [B, K], K at least 1.
        grid: (t, h, w) with t * h * w = N.
        time_step: distance between neighbours in time, where neighbours in space are 1 apart. Below 1, as the same
            place a moment later resembles a token more than the place beside it.
        power: above 3, the number of dimensions, or far tokens together outweigh near ones.

    Returns:
        float [B, N, P], visible tokens as they were.

    Raises:
        ValueError: shapes do not fit, or an index is out of range.
    """
    if tokens.ndim != 3 or len(grid) != 3 or tokens.shape[1] != grid[0] * grid[1] * grid[2]:
        raise ValueError(f"expected tokens [B, N, P] with N = t * h * w of {tuple(grid)}, got {tuple(tokens.shape)}")
    tokens = tokens.float()
    shown = take_tokens(tokens, visible)  # [B, K, P]
    axes = [torch.arange(size, dtype=torch.float32, device=tokens.device) for size in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)  # [N, 3]
    places[:, 0] *= time_step
    filled = torch.empty_like(tokens)
    for clip in range(len(tokens)):  # one clip's N x K weights at a time
        squared = (places[:, None] - places[visible[clip]][None]).square().sum(dim=-1)
        weights = squared.clamp_min(1e-12) ** (-power / 2)
        filled[clip] = (weights / weights.sum(dim=1, keepdim=True)) @ shown[clip]
    return filled.scatter(1, visible.unsqueeze(-1).expand_as(shown), shown)


def take_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Gather tokens by index: [B, N, P] and int64 [B, K] -> [B, K, P].

    Raises:
        ValueError: shapes do not fit, there are none to take, or an index is out of range.
    """
    if tokens.ndim != 3 or indices.ndim != 2 or len(tokens) != len(indices) or 0 in indices.shape:
        raise ValueError(
            "expected tokens [B, N, P] and indices [B, K], K 1 or more; "
            f"got {tuple(tokens.shape)} and {tuple(indices.shape)}"
        )
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= tokens.shape[1]:
        raise ValueError(f"expected indices from 0 to {tokens.shape[1] - 1}, got {low} to {high}")
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
