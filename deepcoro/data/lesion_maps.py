"""Where the lesions of a clip lie, cell by cell: what the grounding loss teaches.

Cells divide a clip along time, height and width. A narrowing is a few pixels wide and sits in one place, while its box
may be several cells large: what tells of it is at the box's middle. So a lesion lies in the cells whose own middle is
no more than ``REACH`` cells away from that, in both directions. In the other cells that its box touches nothing is
asked, and neither is it where the annotation says nothing: in frames without a box of a video that has boxes elsewhere
(who drew them may have left these frames out).

Letters: T frames, C cells of a clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcoro.data.augment import Crop, place_in_crop
from deepcoro.reports.vocabulary import SEGMENTS

REACH = 0.75  # one or two cells each way, never none


class LesionMap(NamedTuple):
    """What is known of the cells of a clip."""

    segments: NDArray[np.int32]  # [C], bit s: a lesion of SEGMENTS[s]; all bits where its segment is not named
    known: NDArray[np.bool_]  # [C], whether that is known
    stenosis: NDArray[np.int8]  # [C], percent of the worst lesion there; -1: no lesion, or not known
    # [C, 4], left, upper, right and lower edge of the lesion's box, in cells from the crop's left or upper edge, also
    # beyond it; of several lesions there, that whose middle is nearest. NaN: no lesion.
    edges: NDArray[np.float32]


def lesion_map(
    indices: NDArray[Any],
    boxes: Sequence[dict[str, Any]] | None,
    height: int,
    width: int,
    crop: Crop,
    cells: tuple[int, int, int],
    percents: Mapping[str, int] | None = None,
) -> LesionMap:
    """Where the lesions of a clip lie.

    Args:
        indices: the sampled frames [T] of a video of ``height`` x ``width`` pixels.
        boxes: of the video, as its table has them. Empty: it has no lesions; ``None``: not known.
        crop: what of the video the clip shows.
        cells: along time, of which T is a multiple, height and width.
        percents: stenosis of the segments of which it is known.

    Within the frames of a cell a lesion, which moves with the heart, lies where its boxes lie on average. Where a
    segment has several boxes in one frame, nobody can tell which of them go together, and each counts by itself.
    """
    segments, known = np.zeros(cells, np.int32), np.full(cells, boxes is not None and not boxes)
    stenosis = np.full(cells, -1, np.int8)
    edges, nearest = np.full((*cells, 4), np.nan, np.float32), np.full(cells, np.inf)
    in_frames: dict[tuple[int, str | None], dict[int, list[list[float]]]] = {}
    for place, frame in enumerate(indices.tolist()):
        for box in boxes or ():
            if box["frame"] == frame:
                time = place * cells[0] // len(indices)
                corners = [box[name] for name in ("x0", "y0", "x1", "y1")]
                in_frames.setdefault((time, box["segment"]), {}).setdefault(place, []).append(corners)
                known[time] = True
    there: list[tuple[int, str | None, NDArray[np.bool_], list[float]]] = []
    for (time, segment), of_frames in in_frames.items():
        moved = place_in_crop(np.concatenate([np.array(found) for found in of_frames.values()]), height, width, crop)
        if len(moved) == len(of_frames):
            moved = moved.mean(axis=0, keepdims=True)
        for corners in moved.tolist():
            left, upper, right, lower = corners
            near_y, touched_y = _along(upper * cells[1], lower * cells[1], cells[1])
            near_x, touched_x = _along(left * cells[2], right * cells[2], cells[2])
            known[time] &= ~(touched_y[:, None] & touched_x)
            there.append((time, segment, near_y[:, None] & near_x, corners))
    rows, columns = np.mgrid[: cells[1], : cells[2]] + 0.5
    in_cells = np.array([cells[2], cells[1], cells[2], cells[1]])
    for time, segment, places, corners in there:  # after all: what one lesion only touches may be another's middle
        bits = 1 << SEGMENTS.index(segment) if segment is not None else (1 << len(SEGMENTS)) - 1
        segments[time] |= places * np.int32(bits)
        known[time] |= places
        percent = np.int8((percents or {}).get(segment or "", -1))
        stenosis[time] = np.where(places, np.maximum(stenosis[time], percent), stenosis[time])
        left, upper, right, lower = corners * in_cells
        away = np.hypot(rows - (upper + lower) / 2, columns - (left + right) / 2)
        nearer = places & (away < nearest[time])
        edges[time][nearer], nearest[time][nearer] = (left, upper, right, lower), away[nearer]
    return LesionMap(segments.reshape(-1), known.reshape(-1), stenosis.reshape(-1), edges.reshape(-1, 4))


def _along(begin: float, end: float, number: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of ``number`` cells, each 1 long, are near the middle of what reaches from ``begin`` to ``end``, and which
    it touches."""
    first = np.arange(number)
    return abs(first + 0.5 - (begin + end) / 2) <= REACH, (begin < first + 1) & (first < end)
