"""A COCO segmentation -> a mask: polygons, run lengths, and run lengths in COCO's compressed text.

The format is that of the COCO data set (https://cocodataset.org/#format-data): run lengths go down the columns and
begin with a run of zeros; as text, each is written in groups of five bits with a sixth that says that more follow, the
lowest group first, from the third on as the difference to the one before the last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from data_prep.annotations.reasons import LeftOut

TOLERANCE = 1.0  # pixels of the annotated image by which a drawn line may leave the picture; it is then cut


def decode_segmentation(segmentation: Any, size: tuple[int, int], video_size: tuple[int, int]) -> np.ndarray:
    """The mask of a segmentation, bool [H, W] at the size of the video.

    Args:
        segmentation: a list of polygons [x0, y0, x1, y1, ...], or ``{"counts": list or text, "size": [h, w]}``.
        size: height and width of the annotated image.
        video_size: height and width of the mask.

    Raises:
        LeftOut: it cannot be read, has another size, or covers no pixel.
    """
    if isinstance(segmentation, dict):
        mask = _from_runs(segmentation, size)
        if size != video_size:
            height, width = video_size
            mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    else:
        mask = _from_polygons(segmentation, size, video_size)
    if not mask.any():
        raise LeftOut("empty_mask")
    return mask


def decode_counts(text: str) -> list[int]:
    """The run lengths of COCO's compressed text.

    Raises:
        ValueError: it is no such text.
    """
    counts: list[int] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            if at == len(text):
                raise ValueError("the text ends within a number")
            code = ord(text[at]) - 48
            if not 0 <= code < 64:
                raise ValueError(f"{text[at]!r} is no letter of a run-length code")
            value |= (code & 0x1F) << shift
            shift, at, more = shift + 5, at + 1, bool(code & 0x20)
        if code & 0x10:  # the highest group is negative
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


def _from_runs(segmentation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    counts, stated = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(stated, list) or tuple(stated) != size:
        raise LeftOut("other_mask_size")
    try:
        runs = decode_counts(counts) if isinstance(counts, str) else counts
    except ValueError as error:
        raise LeftOut("bad_segmentation") from error
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise LeftOut("bad_segmentation")
    height, width = size
    if sum(runs) != height * width:
        raise LeftOut("bad_segmentation")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _from_polygons(segmentation: Any, size: tuple[int, int], video_size: tuple[int, int]) -> np.ndarray:
    if not isinstance(segmentation, list) or not segmentation:
        raise LeftOut("bad_segmentation")
    mask = np.zeros(video_size, bool)
    limits = np.array([size[1], size[0]], float)
    for polygon in segmentation:
        try:
            points = np.array(polygon, float).reshape(-1, 2)
        except (TypeError, ValueError, OverflowError) as error:
            raise LeftOut("bad_segmentation") from error
        if len(points) < 3 or not np.isfinite(points).all():
            raise LeftOut("bad_segmentation")
        if (points < -TOLERANCE).any() or (points > limits + TOLERANCE).any():
            raise LeftOut("mask_outside")
        _fill(mask, np.clip(points, 0, limits) * (np.array(video_size[::-1]) / limits))
    return mask


def _fill(mask: np.ndarray, points: np.ndarray) -> None:
    """Set the pixels of ``mask`` [H, W] whose centres lie inside a polygon [P, 2] of x, y, by the even-odd rule.

    Not with a drawing library: those add the pixels that the line touches, a third of the width of a thin vessel.
    """
    left, top = np.floor(points.min(axis=0)).astype(int)
    right, bottom = np.ceil(points.max(axis=0)).astype(int)
    x = np.arange(left, right) + 0.5
    y = np.arange(top, bottom)[:, None] + 0.5
    inside = np.zeros((bottom - top, right - left), bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        crosses = (y0 <= y) != (y1 <= y)
        inside ^= crosses & (x < x0 + (y - y0) * ((x1 - x0) / (y1 - y0)))
    mask[top:bottom, left:right] |= inside
