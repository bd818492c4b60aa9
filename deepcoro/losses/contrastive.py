"""Video <-> report alignment: the sigmoid loss of SigLIP (2303.15343) and the softmax loss of CLIP (2103.00020).

Rows with equal report text are positives of each other, or what ``match`` says; rows without report take no part. Each
worker holds its own videos and sees the texts of all, which go round in a ring (section 3.3 of the SigLIP paper), in
pieces of ``chunk_size`` columns: no worker ever holds more than B x chunk logits. Those of the sigmoid give value and
gradients at once; the softmax has to see all of a row first, and computes them again in backward. What is to change in
the texts travels with them, and comes home to the worker they belong to. So both forward and backward are exchanges in
which every worker must take part.

Summed over all workers, values and gradients are those of the formula on the joint batch, however its rows are spread.
A worker's gradients of scale and bias are its part of the sum, which DDP adds up.

Letters: B rows of this worker, C columns (rows of the worker whose texts are here), c columns of a piece, E embedding,
K numbers that tell a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from deepcoro.losses.positives import Match, same_key
from deepcoro.losses.ring import Ring

_Computation = TypeVar("_Computation", bound=Callable[..., Any])

CHUNK_SIZE = 512
_LINEAR = 40.0  # from here on log(1 + exp(x)) is x, even in double precision


def sigmoid_loss(
    video: Tensor,
    text: Tensor,
    key: Tensor,
    has_report: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    match: Match = same_key,
    weight: Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """Sum over this worker's videos and all texts of ``-log sigmoid(z (scale <v, t> + bias))``; z is 1 for positives,
    else -1.

    Divided by the number of rows with report it is equation 1 of the paper, section 3.2. What comes from above in
    backward must be one number on all workers, as it is where a mean over all rows is taken; else gradients are NaN.

    Args:
        video, text: [B, E] of length 1.
        key: [B] or [B, K] int64, what ``match`` compares.
        has_report: [B] bool.
        logit_scale, logit_bias: one number each, of any shape.
        match: keys of rows and of columns -> which pairs are positives, bool [B, c].
        weight: [B], 0 or more, what the terms of a row count: a pair counts the mean of its video's and its text's. No
            gradient goes into it.
        chunk_size: columns at a time.

    Raises:
        ValueError: shapes that do not belong together, or ``chunk_size`` below 1.
    """
    video, text, pairs = _pair(video, text, key, has_report, match, weight, chunk_size)
    scale, bias = _number(logit_scale, video), _number(logit_bias, video)
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (video, text, scale, bias))
    return _SigmoidSum.apply(video, text, scale, bias, pairs, learns)


def softmax_loss(
    video: Tensor,
    text: Tensor,
    key: Tensor,
    has_report: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    *,
    match: Match = same_key,
    weight: Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """Half the sum, over this worker's rows and both directions, of the cross-entropy against a target that is uniform
    over a row's positives. Divided by the number of rows with report it is CLIP's loss.

    Arguments and errors are those of ``sigmoid_loss``, but: ``logit_bias`` has no part in it; a row's ``weight``
    multiplies its two terms; and a row for which ``match`` leaves no positive has no term.
    """
    video, text, pairs = _pair(video, text, key, has_report, match, weight, chunk_size)
    return _SoftmaxSum.apply(video, text, _number(logit_scale, video), pairs)


CONTRASTIVE_LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}


@torch.no_grad()
def count_pairs(
    key: Tensor, has_report: Tensor, *, match: Match = same_key, chunk_size: int = CHUNK_SIZE
) -> tuple[Tensor, Tensor]:
    """Positives, and all pairs, of the rows with report of all workers; every worker must take part.

    Arguments are those of ``sigmoid_loss``; the numbers are float64 [], the same on all workers.
    """
    key = key[has_report]
    pairs = _Pairs(key, None, match, chunk_size, Ring(len(key), key.device))
    counts = torch.zeros(2, dtype=torch.float64, device=key.device)

    def add(columns: Sequence[Tensor], _: Sequence[Tensor]) -> None:
        for (piece,) in pairs.pieces(columns):
            positive = pairs.positive(piece)
            counts.add_(torch.stack([positive.sum(), counts.new_tensor(positive.numel())]))

    pairs.ring.go_round([key], [], add)
    if pairs.ring.world > 1:
        dist.all_reduce(counts)
    return counts[0], counts[1]


@dataclass(frozen=True)
class _Pairs:
    """How this worker's rows are compared with columns."""

    key: Tensor  # [B] or [B, K]
    weight: Tensor | None  # [B]
    match: Match
    chunk_size: int
    ring: Ring

    def pieces(self, columns: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Columns of one worker, some at a time."""
        for begin in range(0, len(columns[0]), self.chunk_size):
            yield [x[begin : begin + self.chunk_size] for x in columns]

    def positive(self, key: Tensor) -> Tensor:
        """Which pairs of this worker's rows and of columns are positives, bool [B, c]."""
        found, expected = self.match(self.key, key), (len(self.key), len(key))
        if found.dtype != torch.bool or found.shape != expected:
            raise ValueError(f"expected positives as bool {[*expected]}, got {found.dtype} {[*found.shape]}")
        return found


def _pair(
    video: Tensor,
    text: Tensor,
    key: Tensor,
    has_report: Tensor,
    match: Match,
    weight: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor, _Pairs]:
    """Videos and texts of the rows with report, in single precision or better."""
    if video.ndim != 2 or text.shape != video.shape:
        raise ValueError(f"expected video and text alike, [B, E], got {[*video.shape]} and {[*text.shape]}")
    for name, x in (("key", key), ("has_report", has_report), ("weight", weight)):
        if x is not None and len(x) != len(video):
            raise ValueError(f"expected {name} of {len(video)} rows, got {[*x.shape]}")
    if weight is not None and weight.ndim != 1:
        raise ValueError(f"expected one weight a row, [{len(video)}], got {[*weight.shape]}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be 1 or more, got {chunk_size}")
    told = has_report.nonzero().squeeze(1)
    if len(told) < len(video):  # else nothing needs to be copied
        video, text, key = video[told], text[told], key[told]
        weight = None if weight is None else weight[told]
    precise = torch.promote_types(video.dtype, torch.float32)
    weight = None if weight is None else weight.detach().to(precise)
    pairs = _Pairs(key, weight, match, chunk_size, Ring(len(told), video.device))
    return video.to(precise), text.to(precise), pairs


def _number(x: Tensor, like: Tensor) -> Tensor:
    """One number, as a tensor [] in the precision of ``like``."""
    if x.numel() != 1:
        raise ValueError(f"expected one logit scale and one bias, got {[*x.shape]}")
    return x.to(like.dtype).reshape(())


def _outside_autocast(compute: _Computation) -> _Computation:
    """Products in the precision of what they are made of, whatever region the loss, or its backward, is called in."""

    @functools.wraps(compute)
    def run(ctx: Any, first: Tensor, *more: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return compute(ctx, first, *more)

    return cast(_Computation, run)


class _SigmoidSum(torch.autograd.Function):
    @staticmethod
    @_outside_autocast
    def forward(
        ctx: Any, video: Tensor, text: Tensor, scale: Tensor, bias: Tensor, pairs: _Pairs, learns: bool
    ) -> Tensor:
        scaled, half = scale * video, [] if pairs.weight is None else [pairs.weight / 2]
        total, grad_video, grad_bias = video.new_zeros(()), torch.zeros_like(video), torch.zeros_like(bias)

        def add(columns: Sequence[Tensor], carried: Sequence[Tensor]) -> None:
            for piece, key, *more in pairs.pieces([*columns, *carried]):
                away = torch.where(pairs.positive(key), -1.0, 1.0)  # -z
                miss = torch.addmm(bias, scaled, piece.T).mul_(away)
                terms = F.softplus(miss, threshold=_LINEAR)
                total.add_(half[0] @ terms.sum(dim=1) + terms.sum(dim=0) @ more[0] if half else terms.sum())
                if learns:
                    change = miss.sigmoid_().mul_(away)
                    if half:
                        change *= half[0][:, None] + more[0]
                    grad_bias.add_(change.sum())
                    grad_video.addmm_(change, piece)
                    more[-1].addmm_(change.T, scaled)

        start = [torch.zeros_like(text)] if learns else []
        grad_text = pairs.ring.go_round([text, pairs.key, *half], start, add)
        ctx.ring = pairs.ring
        grad_scale = grad_video.flatten() @ video.flatten()
        ctx.save_for_backward(grad_video.mul_(scale), *grad_text, grad_scale, grad_bias)
        return total

    @staticmethod
    @once_differentiable
    @_outside_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = ctx.ring.agreed(grad)
        return (*(grad * x for x in ctx.saved_tensors), None, None)


class _SoftmaxSum(torch.autograd.Function):
    """Both directions from the same logits: a row's log-sum-exp grows as columns pass by, and a column's travels with
    it from worker to worker."""

    @staticmethod
    @_outside_autocast
    def forward(ctx: Any, video: Tensor, text: Tensor, scale: Tensor, pairs: _Pairs) -> Tensor:
        scaled = scale * video

        def nothing_seen() -> list[Tensor]:
            """Log-sum-exp of a row's logits, the sum of those of its positives, and the number of these: [B] each."""
            zeros = video.new_zeros(len(video))
            return [torch.full_like(zeros, -torch.inf), zeros, zeros.clone()]

        def add(columns: Sequence[Tensor], carried: Sequence[Tensor]) -> None:
            for piece, key, *of_columns in pairs.pieces([*columns, *carried]):
                logits = scaled @ piece.T
                positive = pairs.positive(key).to(logits.dtype)
                true = logits * positive
                for dim, (seen, score, number) in ((1, of_rows), (0, of_columns)):
                    seen.copy_(torch.logaddexp(seen, logits.logsumexp(dim=dim)))
                    score.add_(true.sum(dim=dim))
                    number.add_(positive.sum(dim=dim))

        of_rows = nothing_seen()
        of_texts = pairs.ring.go_round([text, pairs.key], nothing_seen(), add)
        total = video.new_zeros(())
        for seen, score, number in (of_rows, of_texts):
            entropy = torch.where(number > 0, seen - score / number.clamp(min=1), 0)
            total += (entropy if pairs.weight is None else pairs.weight * entropy).sum() / 2
        ctx.pairs = pairs
        ctx.save_for_backward(video, text, scale, of_rows[0], of_rows[2], of_texts[0], of_texts[2])
        return total

    @staticmethod
    @once_differentiable
    @_outside_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pairs: _Pairs = ctx.pairs
        video, text, scale, seen_rows, num_rows, seen_texts, num_texts = ctx.saved_tensors
        scaled, grad_video = scale * video, torch.zeros_like(video)

        def counts(number: Tensor) -> list[Tensor]:
            """What a row's term counts in the total, and each of its positives in the term: [B] each."""
            factor = (grad / 2 if pairs.weight is None else grad / 2 * pairs.weight) * (number > 0)
            return [factor, factor / number.clamp(min=1)]

        factor, share = (x[:, None] for x in counts(num_rows))

        def add(columns: Sequence[Tensor], carried: Sequence[Tensor]) -> None:
            for piece, key, seen, other_factor, other_share, grad_text in pairs.pieces([*columns, *carried]):
                logits = scaled @ piece.T
                change = (logits - seen_rows[:, None]).exp_().mul_(factor)
                change += logits.sub_(seen).exp_().mul_(other_factor)
                change -= torch.where(pairs.positive(key), share + other_share, 0)
                grad_video.addmm_(change, piece)
                grad_text.addmm_(change.T, scaled)

        fixed = [text, pairs.key, seen_texts, *counts(num_texts)]
        (grad_text,) = pairs.ring.go_round(fixed, [torch.zeros_like(text)], add)
        grad_scale = grad_video.flatten() @ video.flatten()
        return grad_video.mul_(scale), grad_text, grad_scale, None
