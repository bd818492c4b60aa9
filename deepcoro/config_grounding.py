"""What a config says of the grounding loss."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from deepcoro.config_section import Section

Grid = tuple[int, int, int]


class GroundingConfig(Section):
    """How finely the grounding loss (``loss.weights.grounding``) asks where lesions are."""

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
