"""Video <-> report alignment: the sigmoid loss of SigLIP (2303.15343) and the softmax loss of CLIP (2103.00020).

Rows with equal report text are positives of each other; rows without report take no part. Each worker holds its own
rows and sees the columns of all; gradients reach the workers the columns came from.

Letters: B rows of this worker, C columns (rows of all workers), E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Columns:
    """Embeddings of all workers with what tells their pairs apart, and where this worker's own rows begin."""

    video: Tensor  # [C, E]
    text: Tensor  # [C, E]
    key: Tensor  # [C]
    has_report: Tensor  # [C]


def gather_columns(video: Tensor, text: Tensor, key: Tensor, has_report: Tensor) -> Columns:
    """Join the rows [B, ...] of all workers; alone, they are this worker's own. Every worker brings the same B."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Columns(video, text, key, has_report)
    return Columns(_Gather.apply(video), _Gather.apply(text), _gather(key), _gather(has_report))


def sigmoid_loss(
    video: Tensor, text: Tensor, key: Tensor, has_report: Tensor, logit_scale: Tensor, logit_bias: Tensor
) -> Tensor:
    """Sum over this worker's videos and all texts of ``-log sigmoid(z (scale <v, t> + bias))``; z is 1 for positives,
    else -1.

    Divided by the number of rows with report it is equation 1 of the paper, section 3.2.
    ``video``, ``text`` [B, E] of length 1, ``key`` [B] int, ``has_report`` [B] bool.
    """
    columns = gather_columns(video, text, key, has_report)
    logits = logit_scale * video @ columns.text.T + logit_bias
    sign = torch.where(key[:, None] == columns.key, 1.0, -1.0)
    pairs = has_report[:, None] & columns.has_report
    return -torch.where(pairs, F.logsigmoid(sign * logits), 0).sum()


def softmax_loss(
    video: Tensor, text: Tensor, key: Tensor, has_report: Tensor, logit_scale: Tensor, logit_bias: Tensor
) -> Tensor:
    """Half the sum, over this worker's rows and both directions, of the cross-entropy against a target that is uniform
    over a row's positives. Divided by the number of rows with report it is CLIP's loss. ``logit_bias`` has no part in
    it."""
    columns = gather_columns(video, text, key, has_report)
    positives = ((key[:, None] == columns.key) & columns.has_report).to(video.dtype)
    target = positives / positives.sum(dim=1, keepdim=True).clamp(min=1)
    total = video.new_zeros(())
    for rows, others in ((video, columns.text), (text, columns.video)):
        logits = (logit_scale * rows @ others.T).masked_fill(~columns.has_report, torch.finfo(rows.dtype).min)
        entropy = -(target * logits.log_softmax(dim=1)).sum(dim=1)
        total = total + torch.where(has_report, entropy, 0).sum() / 2
    return total


CONTRASTIVE_LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}


def _gather(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """All workers' rows; backward, each worker gets the sum of what all of them want changed in its own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return _gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        first = dist.get_rank() * ctx.rows
        return total[first : first + ctx.rows]
