"""Boxes and pointing by hand and by counting cells; chance by trying every pair."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcoro.metrics.grounding import (
    HIT,
    box_iou,
    chance_iou,
    chance_pointing,
    chance_pointing_elsewhere,
    pointing_hits,
)

SIDE = 10
ends = st.tuples(st.integers(0, SIDE), st.integers(0, SIDE)).filter(lambda p: p[0] != p[1]).map(sorted)
boxes = st.tuples(ends, ends).map(lambda b: np.array([b[0][0], b[1][0], b[0][1], b[1][1]]) / SIDE)


def painted(box):
    """The box on a grid of 10 x 10."""
    x0, y0, x1, y1 = np.rint(np.asarray(box) * SIDE).astype(int)
    grid = np.zeros((SIDE, SIDE), bool)
    grid[y0:y1, x0:x1] = True
    return grid


@given(boxes, boxes)
def test_iou_counts_what_is_painted(a, b):
    one, other = painted(a), painted(b)
    assert box_iou([a], [b])[0] == pytest.approx((one & other).sum() / (one | other).sum())
    assert box_iou([a], [b])[0] == pytest.approx(box_iou([b], [a])[0]) and box_iou([a], [a])[0] == pytest.approx(1)


def test_iou_by_hand():
    true = [[0, 0, 0.5, 0.5]] * 4
    said = [[0, 0, 0.5, 0.25], [0.5, 0.5, 1, 1], [0.25, 0, 0.75, 0.5], [0.1, 0.1, 0.1, 0.1]]
    assert box_iou(said, true) == pytest.approx([0.5, 0, 1 / 3, 0])
    assert (box_iou(said, true) >= HIT).tolist() == [True, False, False, False]


@given(st.lists(boxes, min_size=2, max_size=6))
def test_chance_takes_a_box_of_another(true):
    pairs = [box_iou([a], [b])[0] for i, a in enumerate(true) for j, b in enumerate(true) if i != j]
    assert chance_iou(true) == pytest.approx((np.mean(pairs), np.mean(np.array(pairs) >= HIT)))


def test_chance_of_many_boxes_is_taken_in_blocks(monkeypatch):
    generator = np.random.default_rng(0)
    corner, size = generator.random((40, 2)) / 2, 0.1 + generator.random((40, 2)) / 3
    true = np.concatenate([corner, corner + size], axis=1)
    whole = chance_iou(true)
    monkeypatch.setattr("deepcoro.metrics.grounding._BLOCK", 70)
    assert chance_iou(true) == pytest.approx(whole)


def test_pointing_by_hand():
    maps = np.zeros((4, 4, 4))
    maps[0, 1, 2] = 1  # row 1, column 2: the point (0.625, 0.375)
    maps[1, 2, 1] = 1
    maps[2, 1, 2] = maps[2, 3, 3] = 5  # one of two equal ones
    box = [0.5, 0.25, 0.75, 0.5]
    assert pointing_hits(maps, [box] * 4).tolist() == [1, 0, 0.5, 1 / 16]  # the last is the same everywhere
    assert chance_pointing([box, [0, 0, 1, 0.5], [0.3, 0.3, 0.31, 0.31]], 4, 4).tolist() == [1 / 16, 0.5, 0]


@given(st.lists(boxes, min_size=2, max_size=5), st.integers(0, 99))
def test_pointing_in_the_box_always_hits_and_a_flat_map_is_at_chance(true, seed):
    inside = np.stack([painted(box) for box in true]).astype(float)
    assert pointing_hits(inside, true).tolist() == [1] * len(true)
    flat = np.ones((len(true), SIDE, SIDE))
    assert pointing_hits(flat, true) == pytest.approx(chance_pointing(true, SIDE, SIDE))
    maps = np.random.default_rng(seed).integers(0, 3, (len(true), SIDE, SIDE))
    others = [pointing_hits([m], [b])[0] for i, m in enumerate(maps) for j, b in enumerate(true) if i != j]
    assert chance_pointing_elsewhere(maps, true) == pytest.approx(np.mean(others))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"true boxes \[N, 4\], 1 or more, got shape \(0,\)"):
        box_iou([[0, 0, 1, 1]], [])
    with pytest.raises(ValueError, match="got 2 and 1"):
        box_iou([[0, 0, 1, 1]] * 2, [[0, 0, 1, 1]])
    for wrong in ([0, 0, 96, 96], [0.5, 0, 0.4, 1], [0, 0, 0, 1], [0, 0, np.nan, 1]):
        with pytest.raises(ValueError, match="in row 1"):
            chance_iou([[0, 0, 1, 1], wrong])
    with pytest.raises(ValueError, match="2 boxes or more"):
        chance_iou([[0, 0, 1, 1]])
    with pytest.raises(ValueError, match="2 maps or more"):
        chance_pointing_elsewhere(np.ones((1, 2, 2)), [[0, 0, 1, 1]])
    with pytest.raises(ValueError, match=r"finite maps \[1, h, w\], got shape \(1, 4\)"):
        pointing_hits([[1, 2, 3, 4]], [[0, 0, 1, 1]])
    with pytest.raises(ValueError, match="got 0 x 4"):
        chance_pointing([[0, 0, 1, 1]], 0, 4)
