"""What a config says of the grounding loss."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from deepcoro.config_section import Section

Grid = tuple[int, int, int]
_BYTES = 22  # a cell, of a batch's maps: segments 4, known 1, stenosis 1, edges 16


class GroundingConfig(Section):
    """How finely the grounding loss (``loss.weights.grounding``) asks where lesions are, and who is told what it
    found."""

    # A token is asked about this many cells along its height and its width: a lesion is smaller than a token of 16
    # pixels, and its place is better told. (More than 4 would make the maps as large as the clips.)
    cells_per_token: Annotated[int, Field(ge=1, le=4)] = 2

    # Captions are written from what the head found of each segment too: one more memory token a segment and clip
    # (models/lesion_summary.py). A lesion is a few tokens out of hundreds, which a decoder by itself is slow to find.
    informs_captions: bool = False

    def cells(self, grid: Grid) -> Grid:
        """Of a clip of ``grid`` tokens, along time, height and width."""
        time, height, width = grid
        return time, height * self.cells_per_token, width * self.cells_per_token

    def bytes_of_maps(self, grid: Grid) -> int:
        """What a clip's maps of lesions add to its pixels in a batch."""
        return _BYTES * math.prod(self.cells(grid))

    def check_used(self, grounds: bool, captions: bool, shares_pass: bool) -> None:
        """Refuse what does not go together.

        Args:
            grounds, captions: whether the grounding and the captioning loss are in use.
            shares_pass: whether one masked pass serves all losses.

        Raises:
            ValueError: captions are to be informed and one of the two is not, or tokens are hidden.
        """
        if self.informs_captions and not (grounds and captions):
            raise ValueError(
                "grounding.informs_captions needs both losses in use; set loss.weights.grounding and "
                "loss.weights.captioning above 0, or grounding.informs_captions=false"
            )
        if grounds and shares_pass:
            raise ValueError(
                "loss.weights.grounding does not go with shared_pass.enabled=true: where a token is hidden nobody can "
                "tell whether a lesion is there; set one of them to 0 or false"
            )
