"""Segmentations: against pixels set by hand, a plain point-in-polygon, and an encoder written from the format."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.annotations.masks import decode_counts, decode_segmentation
from data_prep.annotations.reasons import LeftOut


def runs_of(mask):
    """Run lengths down the columns, the first of zeros."""
    flat = np.asarray(mask, int).T.reshape(-1)
    runs, value = [0], 0
    for pixel in flat:
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return [int(run) for run in runs]


def text_of(counts):
    """COCO's text of run lengths: the lowest five bits first, a sixth bit where more follow."""
    text = ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        while True:
            low, value = value & 0x1F, value >> 5
            done = value == (-1 if low & 0x10 else 0)
            text += chr(48 + (low if done else low | 0x20))
            if done:
                break
    return text


def test_a_text_worked_out_by_hand():
    # 6 -> group 6, "6". 1 -> "1". 40 = 01000 and 1: 8 + 32 -> "X", 1 -> "1".
    # 4th: 3 against 1, two more -> "2". 5th: 39 against 40, one less = 11111 -> 31 -> "O".
    assert decode_counts("61X1") == [6, 1, 40]
    assert decode_counts("61X12O") == [6, 1, 40, 3, 39]


@given(st.lists(st.integers(0, 2**20), max_size=20))
def test_texts_of_any_run_lengths_are_read(counts):
    assert decode_counts(text_of(counts)) == counts


@given(st.data(), st.integers(1, 8), st.integers(1, 8), st.booleans())
def test_run_lengths_give_the_mask(data, height, width, as_text):
    pixels = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(pixels).reshape(height, width)
    counts = text_of(runs_of(mask)) if as_text else runs_of(mask)
    segmentation = {"counts": counts, "size": [height, width]}
    if mask.any():
        assert (decode_segmentation(segmentation, (height, width), (height, width)) == mask).all()
    else:
        with pytest.raises(LeftOut, match="empty_mask"):
            decode_segmentation(segmentation, (height, width), (height, width))


def test_a_rectangle_covers_the_pixels_between_its_lines():
    mask = decode_segmentation([[2, 3, 5, 3, 5, 7, 2, 7]], (10, 12), (10, 12))
    expected = np.zeros((10, 12), bool)
    expected[3:7, 2:5] = True
    assert (mask == expected).all()


def test_several_polygons_are_one_mask():
    mask = decode_segmentation([[0, 0, 2, 0, 2, 2, 0, 2], [6, 6, 8, 6, 8, 8, 6, 8]], (8, 8), (8, 8))
    assert mask.sum() == 8 and mask[:2, :2].all() and mask[6:, 6:].all()


COORDINATE = st.integers(0, 160).map(lambda n: n / 8 + 1 / 64)  # never on the centre of a pixel


@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=3, max_size=7))
def test_a_pixel_is_in_where_its_centre_is(points):
    try:
        mask = decode_segmentation([[c for point in points for c in point]], (21, 21), (21, 21))
    except LeftOut as error:
        assert error.reason == "empty_mask"
        mask = np.zeros((21, 21), bool)
    for row in range(21):
        for column in range(21):
            x, y, crossings = column + 0.5, row + 0.5, 0
            for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
                if (y0 > y) != (y1 > y) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0:
                    crossings += 1
            assert mask[row, column] == (crossings % 2 == 1)


def test_a_mask_takes_the_size_of_the_video():
    square = [[4, 4, 8, 4, 8, 8, 4, 8]]
    assert np.argwhere(decode_segmentation(square, (16, 16), (8, 8))).tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    mask = np.zeros((16, 16), bool)
    mask[4:8, 4:8] = True
    runs = {"counts": runs_of(mask), "size": [16, 16]}
    assert (decode_segmentation(runs, (16, 16), (8, 8)) == decode_segmentation(square, (16, 16), (8, 8))).all()


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 1, 5, 5]], "bad_segmentation"),
        ([[1, 1, 5, 5, 3]], "bad_segmentation"),
        ([["a", 1, 5, 5, 3, 3]], "bad_segmentation"),
        ([[float("nan"), 1, 5, 5, 3, 3]], "bad_segmentation"),
        ([[10**400, 1, 5, 5, 3, 3]], "bad_segmentation"),
        ("61X1", "bad_segmentation"),
        ([[0, 0, 12, 0, 12, 8]], "mask_outside"),
        ([[1.1, 1.1, 1.2, 1.1, 1.2, 1.2]], "empty_mask"),
        ({"counts": [10, 90], "size": [10, 10]}, "other_mask_size"),
        ({"counts": [10, 90]}, "other_mask_size"),
        ({"counts": [10, 50], "size": [8, 8]}, "bad_segmentation"),
        ({"counts": [70, -6], "size": [8, 8]}, "bad_segmentation"),
        ({"counts": "\x01", "size": [8, 8]}, "bad_segmentation"),
        ({"counts": "X", "size": [8, 8]}, "bad_segmentation"),
        ({"counts": 3, "size": [8, 8]}, "bad_segmentation"),
    ],
)
def test_what_is_no_segmentation_is_left_out(segmentation, reason):
    with pytest.raises(LeftOut) as caught:
        decode_segmentation(segmentation, (8, 8), (8, 8))
    assert caught.value.reason == reason
