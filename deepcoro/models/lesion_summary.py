"""What a clip shows of each segment, drawn together from all its tokens: further memory for the captioning decoder.

A report goes through the segments one after another, while a lesion sits in a few tokens out of hundreds. To find these
by cross-attention alone a decoder needs far more reports than archives of modest size have. The grounding head has been
told by boxes where lesions are: so each segment gets a memory token of its own, in which the tokens that speak for a
lesion of this segment are weighted up (the attention pooling of multiple-instance learning, 1802.04712, with the head's
own logits for weights, without what the view alone tells), beside how strongly they speak, how narrow the lesion is and
where the edges of its box lie: how near each is to some marks.

Letters: B clips, N tokens, D width, c cells of a token along its height and its width, C = N c c cells, S segments, H
levels of stenosis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepcoro.reports.vocabulary import SEGMENTS, STENOSIS_LEVELS

_MARKS = 32  # along an axis of the frame
_TIMES = 4  # along the clip
_LOG_ODDS = 4.0  # that count 1


class LesionSummary(nn.Module):
    """Tokens and what ``GroundingHead`` says of their cells -> one memory token a segment.

    Args:
        width: D.
        grid: tokens along time, height and width, N together.
        cells_per_token: c.
    """

    def __init__(self, width: int, grid: tuple[int, int, int], cells_per_token: int = 1) -> None:
        super().__init__()
        self.grid, self.cells_per_token = grid, cells_per_token
        num_features = 1 + len(STENOSIS_LEVELS) + 4 * _MARKS + _TIMES
        self.segment_embedding = nn.Parameter(torch.randn(len(SEGMENTS), width) * 0.02)
        self.of_features = nn.Sequential(nn.Linear(num_features, width), nn.GELU(), nn.Linear(width, width))
        self.of_tokens = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, evidence: Tensor, segment: Tensor, stenosis: Tensor, edges: Tensor) -> Tensor:
        """``tokens`` [B, N, D] of the grid, and what ``GroundingHead.found_in`` them -> [B, S, D]."""
        speaks = evidence.unsqueeze(-1) + segment.log_softmax(dim=-1)  # [B, C, S]
        strength = speaks.logsumexp(dim=1)  # [B, S]
        weights = (speaks - strength.unsqueeze(1)).exp()
        narrow = torch.einsum("bcs,bch->bsh", weights, stenosis.sigmoid())
        places = self._as_shares(edges)
        # A sum and no product of matrices, which autocast would make in bfloat16.
        place = (weights.unsqueeze(-1) * places.unsqueeze(2)).sum(dim=1)  # [B, S, 5]
        features = torch.cat(
            [
                strength.unsqueeze(-1) / _LOG_ODDS,
                narrow,
                _nearness(place[..., :4], _MARKS).flatten(2),
                _nearness(place[..., 4], _TIMES),
            ],
            dim=-1,
        )
        pooled = torch.einsum("bns,bnd->bsd", self._of_tokens(weights).to(tokens.dtype), tokens)
        features = features.to(self.segment_embedding.dtype)
        return self.norm(self.segment_embedding + self.of_features(features) + self.of_tokens(pooled))

    def _as_shares(self, edges: Tensor) -> Tensor:
        """Edges in cells [B, C, 4] as shares of the frame, and when each cell is as a share of the clip: [B, C, 5]."""
        time, height, width = self.grid
        sizes = edges.new_tensor([width, height, width, height]) * self.cells_per_token
        when = (torch.arange(time, device=edges.device, dtype=edges.dtype) + 0.5) / time
        when = when.repeat_interleave(edges.shape[1] // time).expand(len(edges), -1)
        return torch.cat([edges / sizes, when.unsqueeze(-1)], dim=-1)

    def _of_tokens(self, weights: Tensor) -> Tensor:
        """Weights of cells [B, C, S], summed over the cells of each token: [B, N, S]."""
        (time, height, width), c = self.grid, self.cells_per_token
        return weights.unflatten(1, (time, height, c, width, c)).sum(dim=(3, 5)).flatten(1, 3)


def _nearness(place: Tensor, marks: int) -> Tensor:
    """Places in [0, 1] -> [..., marks]: 1 at a mark, 0.6 at the distance to the next one, and soon 0; so all are 0 of
    an edge far outside."""
    at = torch.arange(marks, device=place.device) + 0.5
    return (-0.5 * (place.unsqueeze(-1) * marks - at).square()).exp()
