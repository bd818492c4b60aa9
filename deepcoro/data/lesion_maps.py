"""Which findings lie at which token of a clip: what the grounding loss teaches.

Letters: N tokens of a clip.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deepcoro.data.caption_tasks import Region
from deepcoro.reports.vocabulary import SEGMENTS


def segments_at(regions: Sequence[Region], tubelet: tuple[int, int, int], grid: tuple[int, int, int]) -> NDArray:
    """The segments whose lesions touch each token, [N] int32: bit s is set where that of ``SEGMENTS[s]`` does.

    A lesion moves with the heart: in the frames of a token it lies where its boxes lie on average. One that has no box
    in them is not there.
    """
    found = np.zeros(grid, np.int32)
    of_lesion: dict[tuple[str, int], list[tuple[float, float, float, float]]] = {}
    for region in regions:
        of_lesion.setdefault((region.segment, region.frame // tubelet[0]), []).append(region.box)
    for (segment, time), boxes in of_lesion.items():
        left, top, right, bottom = np.clip(np.mean(boxes, axis=0), 0, 1)
        _, height, width = grid
        rows = slice(int(top * height), max(int(top * height) + 1, int(np.ceil(bottom * height))))
        columns = slice(int(left * width), max(int(left * width) + 1, int(np.ceil(right * width))))
        found[time, rows, columns] |= 1 << SEGMENTS.index(segment)
    return found.reshape(-1)
