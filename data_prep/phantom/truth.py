"""What is true of every pixel and frame of a cine: boxes around lesions, and masks of the vessels.

Shape letters: T frames, P points of the lumen.
"""

from typing import Any

import numpy as np

from data_prep.phantom.lumen import Lumen
from data_prep.phantom.opacity import Discs, draw
from deepcoro.reports.vocabulary import SEGMENTS

MARGIN = 1.5  # mm around a lesion's lumen
FILLED = 0.2  # concentration of contrast at a lesion's proximal end from which on there is something to see
MASKED = 0.25  # mm of contrast from which on a pixel belongs to a vessel


def lesion_boxes(
    lumen: Lumen, discs: Discs, concentration: np.ndarray, pixel: float, size: int
) -> list[dict[str, Any]]:
    """Return a box for every lesion in every frame in which contrast has come to it, as rows of BOX_TYPE.

    Args:
        lumen: of the cine.
        discs: where it is in the picture.
        concentration: of contrast at its points [T, P], 0 to 1.
        pixel: width of a pixel at the isocentre, mm.
        size: of the picture, pixels.

    A box holds the whole lesion (of an occlusion, the end of the open vessel); a lesion out of the picture has none.
    """
    boxes = []
    for segment, taken in lumen.extents:
        x, y, radius = discs.x[:, taken], discs.y[:, taken], lumen.tree.radius[taken] / pixel
        edge = radius + MARGIN / pixel
        seen = np.flatnonzero(concentration[:, taken[0]] * lumen.fill[taken[0]] >= FILLED)
        corners = np.stack(
            [(x - edge).min(axis=1), (y - edge).min(axis=1), (x + edge).max(axis=1), (y + edge).max(axis=1)], axis=1
        )
        corners = np.clip((corners + 0.5) / size, 0, 1)  # pixel centres are whole numbers
        for frame in seen:
            x0, y0, x1, y1 = (float(value) for value in corners[frame])
            if x1 > x0 and y1 > y0:
                boxes.append({"segment": segment, "frame": int(frame), "x0": x0, "y0": y0, "x1": x1, "y1": y1})
    return sorted(boxes, key=lambda box: box["frame"])


def vessel_mask(lumen: Lumen, discs: Discs, size: int) -> np.ndarray:
    """Return which segment every pixel shows, [T, size, size] uint8: 0 none, else 1 + its number in SEGMENTS.

    A pixel belongs to a vessel where contrast is at least a quarter of a millimetre thick; where vessels overlap, to
    the thicker one. Side branches count as the segment that they leave, collaterals are left out.
    """
    tree = lumen.tree
    best = np.full((len(discs.x), size, size), MASKED, np.float32)
    mask = np.zeros(best.shape, np.uint8)
    for number, name in enumerate(tree.names):
        own = np.zeros(discs.lumen, dtype=bool)
        own[: len(tree.segment)] = tree.segment == number
        path = draw(discs.lumen_only(own), size)
        thicker = path > best
        mask[thicker] = 1 + SEGMENTS.index(name)
        np.maximum(best, path, out=best)
    return mask
