"""Cross-entropy of report tokens, with padding, prefix and rows without report left out.

Logits of a vocabulary are the largest thing a captioning step would hold: 64 reports of 256 tokens over 30,522 words
are 2 GB in single precision, and several times that with what their gradient needs. Training therefore never has them
all at once (``chunked_captioning_loss``).

Letters: B rows, L text tokens, V vocabulary, D width, A asked tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST_IN_FP16 = 1024  # tokens: a sum of more slopes of one word could go beyond what 16 bits hold


def caption_targets(
    input_ids: Tensor, text_length: Tensor, prefix_length: Tensor, has_report: Tensor, ignore_index: int = -100
) -> Tensor:
    """What the logits at ``input_ids[:, :-1]`` should say, [B, L-1]; ``ignore_index`` where nothing is asked.

    Asked are the tokens from ``prefix_length`` [B] up to ``text_length`` [B], the end token included.
    """
    place = torch.arange(1, input_ids.shape[1], device=input_ids.device)
    asked = (place >= prefix_length[:, None]) & (place < text_length[:, None]) & has_report[:, None]
    return torch.where(asked, input_ids[:, 1:], ignore_index)


def captioning_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.1, ignore_index: int = -100) -> Tensor:
    """Sum over asked tokens of the cross-entropy of ``logits`` [B, L-1, V] and ``targets`` [B, L-1]."""
    return F.cross_entropy(
        logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)),
        targets.flatten(),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="sum",
    )


def chunked_captioning_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.1,
    ignore_index: int = -100,
    chunk_size: int = 1024,
) -> Tensor:
    """``captioning_loss`` of the logits ``hidden @ weight.T``, from ``chunk_size`` asked tokens at a time.

    Tokens that are not asked are left out before anything is computed. A chunk's logits are made, and at once turned
    into its share of the loss and of both gradients: they are neither kept nor made a second time, so that time is that
    of the plain way. Memory beyond inputs and gradients is that of two blocks [chunk_size, V] in single precision, of
    two more matrices [V, D] (a product that is added to the weight's gradient, and the weight in half precision), and
    of the asked rows of ``hidden``. In fp16 no more than 1,024 tokens are taken at a time: their sum in the weight's
    gradient is made in 16 bits.

    ``hidden`` [B, L-1, D], normalised, in the precision that logits are to be multiplied in; ``weight`` [V, D];
    ``targets`` [B, L-1]. Softmax and sum are in single precision or better. It can be differentiated once.

    Raises:
        ValueError: the shapes do not belong together, ``chunk_size`` is below 1, ``label_smoothing`` outside [0, 1], or
            a target that is asked is no word of the vocabulary.
    """
    if hidden.shape[:-1] != targets.shape or hidden.shape[-1:] != weight.shape[1:]:
        raise ValueError(
            f"expected hidden [..., D], weight [V, D] and targets [...], received {tuple(hidden.shape)}, "
            f"{tuple(weight.shape)} and {tuple(targets.shape)}"
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be 1 or more, got {chunk_size}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be from 0 to 1, got {label_smoothing}")
    asked = targets != ignore_index
    words = targets[asked]
    if len(words) and not 0 <= (ends := torch.stack(words.aminmax()).tolist())[0] <= ends[1] < len(weight):
        raise ValueError(
            f"targets are words {ends[0]} to {ends[1]}, and the vocabulary has {len(weight)}; the tokenizer and "
            f"captioning.vocab_size do not belong together, or ignore_index is not {ignore_index}"
        )
    if not torch.is_grad_enabled():  # which the function below cannot see
        hidden, weight = hidden.detach(), weight.detach()
    if hidden.dtype == torch.float16:
        chunk_size = min(chunk_size, _MOST_IN_FP16)
    total: Tensor = _ChunkedCrossEntropy.apply(hidden[asked], weight, words, label_smoothing, chunk_size)
    return total


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Of ``hidden`` [A, D], ``weight`` [V, D], ``targets`` [A]. With e the smoothing, a token costs
    ``-(1 - e) log p_target - e mean_v log p_v``, and its logits get the gradient ``p - (1 - e) one_hot - e / V``."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float, chunk_size: int
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        matrix = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        for_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for first in range(0, len(hidden), chunk_size):
            rows, target = hidden[first : first + chunk_size], targets[first : first + chunk_size, None]
            logs = (rows @ matrix.T).log_softmax(dim=1, dtype=wide)
            total -= (1 - label_smoothing) * logs.gather(1, target).sum()
            if label_smoothing > 0:
                total -= label_smoothing * logs.mean(dim=1).sum()
            if for_hidden is None and for_weight is None:
                continue
            slope = logs.exp_()
            if label_smoothing > 0:
                slope -= label_smoothing / len(weight)
            slope.scatter_add_(1, target, slope.new_full(target.shape, label_smoothing - 1))
            slope = slope.to(hidden.dtype)
            if for_hidden is not None:
                for_hidden[first : first + chunk_size] = slope @ matrix
            if for_weight is not None and for_weight.dtype == hidden.dtype:
                torch.addmm(for_weight, slope.T, rows, out=for_weight)
            elif for_weight is not None:
                for_weight += slope.T @ rows
            del logs, slope  # or they would live on beside those of the next chunk
        ctx.save_for_backward(for_hidden, for_weight)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        for_hidden, for_weight = ctx.saved_tensors
        return (
            None if for_hidden is None else for_hidden * grad,
            None if for_weight is None else for_weight * grad,
            None,
            None,
            None,
        )
