"""Mask orders: every token once; a tube shows a place at all times."""

import numpy as np
import pytest

from deepcoro.data.masking import mask_order

GRIDS = [(2, 3, 3), (8, 14, 14), (1, 1, 1), (4, 2, 5)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("strategy", ["random", "tube"])
def test_every_token_stands_once(grid, strategy):
    order = mask_order(strategy, grid, np.random.default_rng(0))
    assert order.dtype == np.uint16
    assert np.array_equal(np.sort(order), np.arange(np.prod(grid)))


@pytest.mark.parametrize("grid", GRIDS)
def test_a_tube_shows_a_place_at_all_times(grid):
    times, height, width = grid
    order = mask_order("tube", grid, np.random.default_rng(1))
    for places in range(1, height * width + 1):
        shown = {np.unravel_index(int(token), grid) for token in order[: places * times]}
        columns = {(y, x) for _, y, x in shown}
        assert len(columns) == places
        assert shown == {(t, y, x) for t in range(times) for y, x in columns}


def test_a_random_mask_breaks_tubes():
    order = mask_order("random", (8, 6, 6), np.random.default_rng(0))
    assert len({int(token) % 36 for token in order[:36]}) > 15


@pytest.mark.parametrize("strategy", ["random", "tube"])
def test_one_generator_one_mask(strategy):
    def draw(seed):
        return mask_order(strategy, (4, 6, 6), np.random.default_rng(seed))

    assert np.array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))


@pytest.mark.parametrize("strategy", ["random", "tube"])
def test_every_place_is_shown_equally_often(strategy):
    counts, draws = np.zeros(18), 3000
    for seed in range(draws):
        counts[mask_order(strategy, (2, 3, 3), np.random.default_rng(seed))[:4]] += 1
    assert np.abs(counts / draws - 4 / 18).max() < 0.035


def test_the_largest_clip_sixteen_bits_can_number():
    assert mask_order("random", (1, 256, 256), np.random.default_rng(0)).max() == 65535
    with pytest.raises(ValueError, match="65536"):
        mask_order("random", (1, 256, 257), np.random.default_rng(0))
    with pytest.raises(ValueError, match="spiral.*random, tube"):
        mask_order("spiral", (2, 2, 2), np.random.default_rng(0))
