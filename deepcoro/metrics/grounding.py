"""Grounding: does a model look, or point, where the lesion is?

Letters: N lesions, each with a true box; h, w cells of an attention map. A box is (x0, y0, x1, y1), as shares of the
picture in [0, 1], y downwards, as the ``boxes`` of ``videos.parquet``. A cell of a map stands for the point in its
middle.

Each measure has the level of chance beside it, of somebody who knows how lesions lie and not where this one is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

HIT = 0.5  # intersection over union from which a box counts as found
_BLOCK = 2**21  # pairs of boxes held at once


def box_iou(boxes: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of each pair of boxes: [N, 4] twice -> [N]. ``iou >= HIT`` is a hit.

    Raises:
        ValueError: shapes differ, or a box is not as said: a true one is empty, its ends are out of order or [0, 1].
    """
    boxes, true = _checked(boxes, "boxes", empty=True), _checked(true, "true boxes")
    if len(boxes) != len(true):
        raise ValueError(f"expected a box for each true box, got {len(boxes)} and {len(true)}")
    return _iou(boxes, true)


def chance_iou(true: ArrayLike) -> tuple[float, float]:
    """Mean intersection over union, and share of hits, of a box taken from another lesion: [N, 4], N 2 or more.

    The mean over all N * (N - 1) ordered pairs, some rows at a time.

    Raises:
        ValueError: as of ``box_iou``, or there is one box only.
    """
    true = _checked(true, "true boxes")
    if len(true) < 2:
        raise ValueError("expected 2 boxes or more: with one there is no other to take")
    total = np.zeros(2)
    for _, iou in _pairs(true):
        total += iou.sum(), (iou >= HIT).sum()
    mean, hits = (total - len(true)) / (len(true) * (len(true) - 1))  # each box is a full hit of itself
    return float(mean), float(hits)


def pointing_hits(attention: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """Pointing game (Zhang et al., 2018, 1608.00507): does the largest value of a map lie in the box? -> [N], 0 to 1.

    Equal maxima count by the share of them that do, so a map that is the same everywhere scores its level of chance.

    Args:
        attention: [N, h, w], finite.
        true: [N, 4].

    Raises:
        ValueError: shapes do not fit, a value is not finite, or a box is not as said.
    """
    maps, true = np.asarray(attention, dtype=float), _checked(true, "true boxes")
    if maps.ndim != 3 or len(maps) != len(true) or maps.size == 0 or not np.isfinite(maps).all():
        raise ValueError(f"expected finite maps [{len(true)}, h, w], got shape {maps.shape}")
    largest = maps == maps.max(axis=(1, 2), keepdims=True)
    inside = _cells_inside(true, maps.shape[1], maps.shape[2])
    share: NDArray[np.float64] = (largest & inside).sum(axis=(1, 2)) / largest.sum(axis=(1, 2))
    return share


def chance_pointing(true: ArrayLike, height: int, width: int) -> NDArray[np.float64]:
    """Share of the cells of a map [height, width] that lie in each box: [N, 4] -> [N], what a random cell hits.

    A box smaller than a cell may have none: then nothing can hit it at this size of map.

    Raises:
        ValueError: a size is below 1, or a box is not as said.
    """
    if height < 1 or width < 1:
        raise ValueError(f"expected a map of 1 cell or more, got {height} x {width}")
    return _cells_inside(_checked(true, "true boxes"), height, width).mean(axis=(1, 2))


def chance_pointing_elsewhere(attention: ArrayLike, true: ArrayLike) -> float:
    """Share of hits when each map is held against the boxes of the other lesions: [N, h, w], [N, 4], N 2 or more.

    It knows where models look and where lesions lie on the whole, such as the middle of the picture, which
    ``chance_pointing`` does not.

    Raises:
        ValueError: as of ``pointing_hits``, or there is one map only.
    """
    own = pointing_hits(attention, true)
    maps, true = np.asarray(attention, dtype=float), np.asarray(true, dtype=float)
    if len(maps) < 2:
        raise ValueError("expected 2 maps or more: with one there is no other box")
    largest = maps == maps.max(axis=(1, 2), keepdims=True)
    pointing = (largest / largest.sum(axis=(1, 2), keepdims=True)).sum(axis=0)  # [h, w], what all maps point at
    every = sum(float((pointing * _cells_inside(box[None], *pointing.shape)[0]).sum()) for box in true)
    return (every - float(own.sum())) / (len(maps) * (len(maps) - 1))


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes [..., 4] -> [...]."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = np.maximum(sides, 0).prod(axis=-1)
    areas = ((box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (a, b))
    iou: NDArray[np.float64] = both / (sum(areas) - both)
    return iou


def _pairs(true: NDArray[np.float64]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    step = max(1, _BLOCK // len(true))
    for start in range(0, len(true), step):
        rows = slice(start, start + step)
        yield rows, _iou(true[rows, None], true[None])


def _cells_inside(boxes: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Which cells' middles lie in each box: [N, 4] -> bool [N, height, width]."""
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    across = (boxes[:, 0, None] <= x) & (x <= boxes[:, 2, None])
    down = (boxes[:, 1, None] <= y) & (y <= boxes[:, 3, None])
    return down[:, :, None] & across[:, None, :]


def _checked(boxes: ArrayLike, name: str, empty: bool = False) -> NDArray[np.float64]:
    table = np.asarray(boxes, dtype=float)
    if table.ndim != 2 or table.shape[1] != 4 or len(table) == 0:
        raise ValueError(f"expected {name} [N, 4], 1 or more, got shape {table.shape}")
    sides = table[:, 2:] - table[:, :2]
    good = (table >= 0).all(axis=1) & (table <= 1).all(axis=1) & (sides >= 0 if empty else sides > 0).all(axis=1)
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            f"expected {name} as (x0, y0, x1, y1) in [0, 1], x0 < x1, y0 < y1; got {table[row]} in row {row}"
        )
    return table
