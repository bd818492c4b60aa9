"""Where the lesions of a clip lie: the negative log likelihood of its map of lesions.

A report says that there is a stenosis; a box says where. Each cell of a clip has a lesion or has none (a binary
cross-entropy). In the cells that have one it is of one segment (a cross-entropy over segments), and it narrows by so
much of the diameter (a binary cross-entropy for each of some levels, where the percent is known), and its box has
four edges (how far what is said is from each, in cells: but for a constant the likelihood of a Laplace distribution one
cell wide).

Letters: B rows, V views, C cells, S segments, H levels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deepcoro.reports.vocabulary import STENOSIS_LEVELS


def grounding_loss(
    prior: Tensor,
    evidence: Tensor,
    segment: Tensor,
    stenosis: Tensor,
    edges: Tensor,
    segments_at: Tensor,
    stenosis_at: Tensor,
    edges_at: Tensor,
    known: Tensor,
    valid: Tensor,
    early: Tensor | None = None,
) -> Tensor:
    """Sum over valid clips, of the sum over a clip's known cells, in nats.

    ``prior`` and ``evidence`` [B*V, C] are added to the logit of a lesion; ``segment`` [B*V, C, S] are the logits of
    which; ``segments_at`` [B, V, C] are whole numbers whose bit s says whether segment s has a lesion there (of several
    any is right); ``stenosis`` [B*V, C, H] are logits that a lesion narrows by each of ``STENOSIS_LEVELS`` or more, and
    ``stenosis_at`` [B, V, C] what it does, -1 where that is not known; ``edges`` [B*V, C, 4] and ``edges_at``
    [B, V, C, 4] are those of its box, in cells; ``known`` [B, V, C] and ``valid`` [B, V] bool.

    The prior, which does not see the clip, is taught by a cross-entropy of its own, and by that alone. ``early``
    [B*V, C] is evidence too, with an error like that of ``evidence``.
    """
    segments_at = segments_at.flatten(0, 1)
    lesion, asked = (segments_at != 0).to(evidence.dtype), known.flatten(0, 1) & valid.reshape(-1, 1)
    segments = torch.arange(segment.shape[-1], device=segment.device)
    is_right = (segments_at.unsqueeze(-1) >> segments) & 1 == 1
    is_right |= (segments_at == 0).unsqueeze(-1)  # where there is no lesion, nothing is wrong, and nothing is learnt
    right = segment.log_softmax(dim=-1).masked_fill(~is_right, -torch.inf).logsumexp(dim=-1)
    logits = [prior, *(prior.detach() + found for found in (evidence, early) if found is not None)]
    error = -right
    for logit in logits:
        error = error + F.binary_cross_entropy_with_logits(logit, lesion, reduction="none")
    percent = stenosis_at.flatten(0, 1).unsqueeze(-1)
    reached = (percent >= percent.new_tensor(STENOSIS_LEVELS)).to(stenosis.dtype)
    of_percent = F.binary_cross_entropy_with_logits(stenosis, reached, reduction="none").sum(dim=-1)
    error = error + torch.where(percent.squeeze(-1) >= 0, of_percent, 0)
    apart = (edges - torch.where(lesion.unsqueeze(-1) > 0, edges_at.flatten(0, 1), 0)).abs().sum(dim=-1)
    error = error + torch.where(lesion > 0, apart, 0)
    return torch.where(asked, error, 0).sum()
