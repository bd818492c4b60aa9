"""Text that is part of the picture, suspected from the pixels of the corners, where machines write it.

It is a flag for a person to follow and not a judgement: nothing is dropped for it. Letters are thin strokes of strong
contrast that stand perfectly still while everything in the body moves and the noise of the X-rays flickers. Wires and
catheters are thin but move; the edge of a collimator stands still but is a step, not a stroke.
"""

from __future__ import annotations

import numpy as np

HEIGHT_SHARE, WIDTH_SHARE = 4, 3  # a corner is a quarter of the height by a third of the width
MAX_FLICKER = 24  # grey levels between the darkest and the brightest of one still pixel; lossy compression makes some
MIN_CONTRAST = 40  # grey levels of a stroke over what lies on both sides of it
REACH = 5  # pixels from the middle of a stroke to where both sides are looked at: strokes of up to 9 pixels
MIN_STROKES = 40  # pixels of strokes in both directions together; three letters of 8 pixels have some 60


class CornerWatch:
    """Sees every displayed frame once, and keeps two pictures of each corner."""

    def __init__(self) -> None:
        self.corners: list[tuple[np.ndarray, np.ndarray]] | None = None

    def add(self, frame: np.ndarray) -> None:
        """Look at a uint8 frame [H, W]."""
        height, width = max(1, frame.shape[0] // HEIGHT_SHARE), max(1, frame.shape[1] // WIDTH_SHARE)
        pieces = [frame[rows, columns] for rows in _ends(height) for columns in _ends(width)]
        if self.corners is None:
            self.corners = [(piece.copy(), piece.copy()) for piece in pieces]
        for (low, high), piece in zip(self.corners, pieces, strict=True):
            np.minimum(low, piece, out=low)
            np.maximum(high, piece, out=high)

    @property
    def suspected(self) -> bool:
        """Whether a corner holds what looks like text."""
        return any(looks_like_text(low, high) for low, high in self.corners or [])


def looks_like_text(low: np.ndarray, high: np.ndarray) -> bool:
    """Whether thin still strokes, upright and lying, are there in number.

    Args:
        low: Darkest value of each pixel over the cine, uint8 [H, W].
        high: Brightest value, likewise.
    """
    if min(low.shape) <= 2 * REACH:
        return False
    low, high = low.astype(np.int16), high.astype(np.int16)
    still = high - low <= MAX_FLICKER
    upright = _strokes(low, high) & still
    lying = _strokes(low.T, high.T).T & still
    # Letters have both; a line along the border, a ruler or a wire that happens to stand still has one.
    return min(int(upright.sum()), int(lying.sum())) >= MIN_STROKES // 4 and int((upright | lying).sum()) >= MIN_STROKES


def _strokes(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Pixels that are, in every frame, much brighter or much darker than what lies at one distance on both sides."""
    found = np.zeros(low.shape, bool)
    for reach in range(1, REACH + 1):
        middle, left, right = slice(reach, -reach), slice(None, -2 * reach), slice(2 * reach, None)
        bright = low[:, middle] - np.maximum(high[:, left], high[:, right]) >= MIN_CONTRAST
        dark = np.minimum(low[:, left], low[:, right]) - high[:, middle] >= MIN_CONTRAST
        found[:, middle] |= bright | dark
    return found


def _ends(length: int) -> tuple[slice, slice]:
    return slice(0, length), slice(-length, None)
