"""Where lesions lie, cell by cell, by hand: 4 frames of 64 x 64, cells of 2 x 16 x 16."""

import numpy as np
import pytest

from deepcoro.data.augment import Crop
from deepcoro.data.lesion_maps import lesion_map
from deepcoro.reports.vocabulary import SEGMENTS

CELLS, FRAMES = (2, 4, 4), np.array([10, 12, 14, 16])
WHOLE = Crop(0, 0, 64)


def box(segment, frame, x0, y0, x1, y1):
    """Corners in pixels."""
    return {"segment": segment, "frame": frame, "x0": x0 / 64, "y0": y0 / 64, "x1": x1 / 64, "y1": y1 / 64}


def made(boxes, frames=FRAMES, crop=WHOLE, width=64):
    segments, known, stenosis, edges = lesion_map(frames, boxes, 64, width, crop, CELLS)
    assert (stenosis == -1).all()
    assert (np.isnan(edges) == (segments == 0)[:, None]).all()
    assert (segments.dtype, known.dtype, segments.shape, known.shape) == (np.int32, bool, (32,), (32,))
    return segments.reshape(CELLS), known.reshape(CELLS)


def places(segments, segment):
    return {tuple(map(int, place)) for place in np.argwhere(segments >> SEGMENTS.index(segment) & 1)}


def test_a_lesion_lies_at_the_cells_near_its_middle():
    # Middle (24, 24): that of cell (1, 1), and 1 cell from those beside it.
    segments, known = made([box("mid_lad", 14, 20, 20, 28, 28)])
    assert places(segments, "mid_lad") == {(1, 1, 1)}
    assert places(segments, "dist_lad") == set()
    assert known[1].all()
    # Middle (32, 24): half a cell from two.
    assert places(made([box("pda", 14, 28, 20, 36, 28)])[0], "pda") == {(1, 1, 1), (1, 1, 2)}


def test_frames_without_a_box_of_a_video_that_has_some_say_nothing():
    segments, known = made([box("mid_lad", 16, 20, 20, 28, 28), box("mid_lad", 11, 20, 20, 28, 28)])
    assert not segments[0].any()
    assert not known[0].any()
    assert known[1].all()


def test_no_boxes_are_no_lesions_and_none_given_is_nothing_known():
    segments, known = made([])
    assert known.all()
    assert not segments.any()
    segments, known = made(None)
    assert not known.any()
    assert not segments.any()


def test_what_a_box_touches_beside_its_middle_is_not_asked():
    # A box over 40 x 10 pixels, its middle at (26, 24): columns 0 to 2 are touched, column 1 has the middle (24).
    segments, known = made([box("d1", 10, 6, 19, 46, 29)])
    assert places(segments, "d1") == {(0, 1, 1)}
    assert {tuple(map(int, p)) for p in np.argwhere(~known[0])} == {(1, 0), (1, 2)}


def test_the_middle_of_one_lesion_counts_where_another_only_touches():
    segments, known = made([box("d1", 10, 6, 19, 46, 29), box("d2", 10, 36, 20, 44, 28)])
    assert places(segments, "d2") == {(0, 1, 2)}
    assert known[0, 1, 2]
    assert not known[0, 1, 0]


def test_lesions_of_two_segments_at_one_place():
    segments, _ = made([box("d1", 10, 52, 52, 60, 60), box("prox_rca", 10, 53, 52, 59, 60)])
    assert segments[0, 3, 3] == (1 << SEGMENTS.index("d1")) + (1 << SEGMENTS.index("prox_rca"))
    assert np.count_nonzero(segments) == 1


def test_a_lesion_that_moves_lies_at_the_mean_of_its_places():
    segments, _ = made([box("lvp", 10, 4, 4, 12, 12), box("lvp", 12, 36, 36, 44, 44)])  # mean (24, 24)
    assert places(segments, "lvp") == {(0, 1, 1)}


def test_two_boxes_of_a_segment_in_one_frame_are_two_lesions():
    two = [box("lvp", 10, 4, 4, 12, 12), box("lvp", 10, 36, 36, 44, 44), box("lvp", 12, 4, 4, 12, 12)]
    assert places(made(two)[0], "lvp") == {(0, 0, 0), (0, 2, 2)}


def test_a_lesion_of_no_named_segment_is_of_any():
    segments, _ = made([box(None, 10, 20, 20, 28, 28)])
    assert segments[0, 1, 1] == 2 ** len(SEGMENTS) - 1
    assert np.count_nonzero(segments) == 1


def test_the_worst_percent_of_the_lesions_in_a_cell_where_it_is_known():
    boxes = [box("d1", 10, 20, 20, 28, 28), box("d2", 10, 20, 20, 28, 28), box("pda", 10, 36, 20, 44, 28)]
    stenosis = lesion_map(FRAMES, boxes, 64, 64, WHOLE, CELLS, {"d1": 40, "d2": 75}).stenosis.reshape(CELLS)
    assert stenosis.dtype == np.int8
    assert stenosis[0, 1, 1] == 75
    assert (np.delete(stenosis.reshape(-1), 5) == -1).all()  # that of the PDA is not known


def test_edges_are_those_of_the_lesion_in_cells_of_several_the_nearest():
    # Middles (24, 24), that of cell (1, 1), and (28, 24), which is a quarter of a cell from it and 3/4 from the next.
    boxes = [box("d2", 10, 24, 20, 32, 28), box("d1", 10, 20, 16, 28, 32)]
    for some in (boxes, boxes[::-1]):
        edges = lesion_map(FRAMES, some, 64, 64, WHOLE, CELLS).edges
        assert (edges.dtype, edges.shape) == (np.float32, (32, 4))
        assert edges[5].tolist() == [20 / 16, 1, 28 / 16, 2]
        assert edges[6].tolist() == [1.5, 20 / 16, 2, 28 / 16]
        assert np.isnan(np.delete(edges, [5, 6], axis=0)).all()
    # It moves: the mean of both places; half of it is cut off by the crop, and it reaches beyond.
    moved = [box("lvp", 10, 0, 20, 8, 28), box("lvp", 12, 8, 20, 16, 28)]
    edges = lesion_map(FRAMES, moved, 64, 64, Crop(8, 8, 32), CELLS).edges.reshape(*CELLS, 4)
    assert edges[0, 1, 0].tolist() == edges[0, 2, 0].tolist() == pytest.approx([-0.5, 1.5, 0.5, 2.5])


def test_a_frame_that_was_sampled_twice_counts_at_both_places():
    segments, known = made([box("lvp", 10, 20, 20, 28, 28)], frames=np.array([8, 10, 10, 10]))
    assert places(segments, "lvp") == {(0, 1, 1), (1, 1, 1)}
    assert known.all()


def test_boxes_go_along_with_the_crop():
    # The right lower 32 x 32 of the video: a pixel of it is half a cell's sixteenth. (52, 44) lies at (40, 24) of 64.
    segments, _ = made([box("om1", 10, 48, 40, 56, 48)], crop=Crop(32, 32, 32))
    assert places(segments, "om1") == {(0, 1, 2)}
    # A video twice as wide as it is high, its middle shown: x = 0.5 is the middle of the crop.
    wide = {"segment": "om1", "frame": 10, "x0": 0.49, "x1": 0.52, "y0": 0.35, "y1": 0.4}  # x 32.3 of the crop's 64
    segments, *_ = lesion_map(FRAMES, [wide], 64, 128, Crop(32, 0, 64), CELLS)
    assert places(segments.reshape(CELLS), "om1") == {(0, 1, 1), (0, 1, 2)}


@pytest.mark.parametrize(("x0", "x1", "asked"), [(-12, -2, True), (-20, 10, False)])
def test_a_lesion_whose_middle_is_well_outside_is_nowhere_and_where_its_box_reaches_in_nothing_is_asked(x0, x1, asked):
    crop = Crop(32, 0, 64)
    corners = {"segment": "om2", "frame": 10, "x0": (32 + x0) / 128, "x1": (32 + x1) / 128, "y0": 0.3, "y1": 0.45}
    segments, known, *_ = lesion_map(FRAMES, [corners], 64, 128, crop, CELLS)
    assert not segments.any()
    assert known.reshape(CELLS)[0, 1, 0] == asked
    assert known.reshape(CELLS)[0, 1, 1:].all()
