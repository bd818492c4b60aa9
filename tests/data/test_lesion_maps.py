"""Which tokens a lesion's boxes touch, by hand."""

import numpy as np

from deepcoro.data.caption_tasks import Region
from deepcoro.data.lesion_maps import segments_at
from deepcoro.reports.vocabulary import SEGMENTS

TUBELET, GRID = (2, 16, 16), (2, 4, 4)  # 4 frames of 64 x 64


def places(segment, *regions):
    found = segments_at(regions, TUBELET, GRID).reshape(GRID)
    return {tuple(map(int, place)) for place in np.argwhere((found >> SEGMENTS.index(segment)) & 1)}


def test_the_tokens_that_a_box_touches_in_its_own_frames():
    box = Region("mid_lad", 2, (0.26, 0.1, 0.6, 0.24))  # pixels 17 to 38, and 6 to 15: columns 1 and 2 of row 0
    assert places("mid_lad", box) == {(1, 0, 1), (1, 0, 2)}
    assert places("dist_lad", box) == set()


def test_a_lesion_that_moves_lies_at_its_mean_box():
    first, second = Region("pda", 0, (0.0, 0.0, 0.2, 0.2)), Region("pda", 1, (0.6, 0.6, 0.8, 0.8))
    assert places("pda", first, second) == {(0, 1, 1)}  # 0.3 to 0.5


def test_lesions_at_one_place_have_a_bit_each_and_edges_stay_inside():
    found = segments_at(
        [Region("d1", 0, (0.9, 0.9, 1.0, 1.0)), Region("d2", 0, (0.95, 0.95, 1.0, 1.0))], TUBELET, GRID
    ).reshape(GRID)
    assert found[0, 3, 3] == (1 << SEGMENTS.index("d1")) + (1 << SEGMENTS.index("d2"))
    assert np.count_nonzero(found) == 1
    assert not segments_at([], TUBELET, GRID).any()
