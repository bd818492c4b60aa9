"""Tokens -> where the lesions of a clip are and how far they reach, in which segment and how narrow: the head of the
grounding loss.

Where lesions lie is told to a large part by the view alone, and what little each cine adds is drowned if a network has
to learn both at once. So the former is learnt apart, by a small network that sees the view and no pixels, and its
logits are given as an offset to those of the tokens, which have only the rest to explain (as logit adjustment does with
class frequencies, 2007.07314). The tokens then tell what speaks for a lesion here, and not how often there is one.

Behind blocks of attention, evidence of a few pixels is found late. So tokens are asked twice, before the first block
and behind the last (deep supervision, 1409.5185); what is asked before them is the stem's work alone.

Letters: B clips, N tokens, D width, c cells of a token along its height and its width, C = N c c cells, S segments,
H levels of stenosis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepcoro.models.layers import full_precision
from deepcoro.reports.vocabulary import SEGMENTS, STENOSIS_LEVELS, TREES

_RARE = -5.0  # logit of a lesion in a cell, at first
_ANGLE = 45.0  # degrees that count 1
_HALF_A_BOX = 1.0  # cells from a lesion's middle to an edge of its box, at first


class GroundingHead(nn.Module):
    """Logits of a lesion in each cell of a clip, in two parts; and of one there the segment, how narrow it is, and its
    box.

    Args:
        width: D.
        grid: tokens along time, height and width, N together.
        cells_per_token: c.
        early: ask the embedded tokens too.
        hidden_size: of the network that sees the view alone.
    """

    def __init__(
        self,
        width: int,
        grid: tuple[int, int, int],
        cells_per_token: int = 1,
        early: bool = False,
        hidden_size: int = 64,
    ) -> None:
        super().__init__()
        self.grid, self.cells_per_token = grid, cells_per_token
        cells = cells_per_token**2
        self.early = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, cells)) if early else None
        self.evidence = nn.Linear(width, cells)
        self.segment = nn.Linear(width, cells * len(SEGMENTS))
        self.stenosis = nn.Linear(width, cells * len(STENOSIS_LEVELS))
        self.edges = nn.Linear(width, cells * 4)
        self.middles: Tensor  # [C, 4], of each cell, for each edge of a box, in cells
        self.register_buffer("middles", self._middles(), persistent=False)
        self.view_prior = nn.Sequential(
            nn.Linear(3 + len(TREES), hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, grid[0] * grid[1] * grid[2] * cells),
        )
        nn.init.zeros_(self.evidence.bias)
        nn.init.constant_(self.edges.bias, _HALF_A_BOX)
        nn.init.zeros_(self.view_prior[-1].weight)  # type: ignore[arg-type]
        nn.init.constant_(self.view_prior[-1].bias, _RARE)  # type: ignore[arg-type]

    def forward(
        self, tokens: Tensor, angles: Tensor, tree: Tensor, embedded: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What speaks for a lesion in each cell, and what is said of it.

        Args:
            tokens: [B, N, D] of the grid.
            angles: [B, 2] in degrees, NaN where unknown.
            tree: [B], which of ``TREES``, -1 where unknown.
            embedded: [B, N, D] before the first block, for ``early``.

        Returns:
            ``lesion_prior`` and ``lesion_evidence`` [B, C], whose sum is the logit of a lesion, and what ``found_in``
            says of one; for ``early`` also ``lesion_early`` [B, C], the evidence of the embedded tokens. Cells are
            numbered along time, then height, then width.
        """
        known = angles.isfinite().all(dim=1, keepdim=True)
        is_tree = tree.unsqueeze(1) == torch.arange(len(TREES), device=tree.device)
        view = torch.cat([torch.where(known, angles, 0) / _ANGLE, known, is_tree], dim=1)
        prior = full_precision(self.view_prior(view.to(self.evidence.weight.dtype)))
        out = {"lesion_prior": prior} | {f"lesion_{name}": said for name, said in self.found_in(tokens).items()}
        if self.early is not None:
            assert embedded is not None
            out["lesion_early"] = full_precision(self._in_cells(self.early(embedded))).squeeze(-1)
        return out

    def found_in(self, tokens: Tensor) -> dict[str, Tensor]:
        """What tokens [B, N, D] alone say of their cells: ``evidence`` [B, C] of a lesion; logits of its ``segment``
        [B, C, S], and that it narrows by each of ``STENOSIS_LEVELS`` or more, ``stenosis`` [B, C, H]; and left, upper,
        right and lower ``edges`` [B, C, 4] of its box, in cells from the left or upper edge of the clip."""
        parts = {"evidence": self.evidence, "segment": self.segment, "stenosis": self.stenosis, "edges": self.edges}
        said = {name: full_precision(self._in_cells(part(tokens))) for name, part in parts.items()}
        outwards = said["edges"].new_tensor([-1, -1, 1, 1])
        return said | {"evidence": said["evidence"].squeeze(-1), "edges": self.middles + outwards * said["edges"]}

    def _middles(self) -> Tensor:
        time, height, width = self.grid
        rows, columns = (torch.arange(size * self.cells_per_token) + 0.5 for size in (height, width))
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)  # across, then down
        return places.flatten(0, 1).repeat(time, 2)

    def _in_cells(self, x: Tensor) -> Tensor:
        """What tokens say of their cells, [B, N, c c k] -> [B, C, k]."""
        c = self.cells_per_token
        return x.unflatten(2, (c, c, -1)).unflatten(1, self.grid).transpose(3, 4).flatten(1, 5)
