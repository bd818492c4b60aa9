"""Cross-entropy of report tokens, with padding, prefix and rows without report left out.

Letters: B rows, L text tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
