"""Mask orders: every token once, and every mask of its kind; motion prefers what moves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcoro.config import Config
from deepcoro.config_masking import MaskedModelingConfig
from deepcoro.data.masking import STRATEGIES, Masking, motion
from deepcoro.errors import ConfigError

GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 7))
SEEDS = st.integers(0, 2**32 - 1)
KINDS = st.sampled_from(list(STRATEGIES))


def clip_of(grid, seed=0):
    """Noise, a token of 2 frames of 4x8 pixels."""
    t, h, w = grid
    return np.random.default_rng(seed).integers(0, 256, (2 * t, 4 * h, 8 * w), dtype=np.uint8)


def draw(strategy, grid, seed, **more):
    masking = Masking.of(MaskedModelingConfig(strategy=strategy, **more), grid)
    return masking.order(np.random.default_rng(seed), clip_of(grid))


def places(tokens, grid):
    """(time, row, column) of each token."""
    return {tuple(map(int, np.unravel_index(int(token), grid))) for token in tokens}


@given(KINDS, GRIDS, SEEDS, st.floats(0.01, 0.99))
def test_shown_and_hidden_are_all_tokens_and_none_twice_in_exact_numbers(strategy, grid, seed, ratio):
    order = draw(strategy, grid, seed)
    number = int(np.prod(grid))
    assert order.dtype == np.uint16 and order.shape == (number,)
    config = MaskedModelingConfig(strategy=strategy, mask_ratio=ratio)
    visible = config.num_visible(grid)
    shown, hidden = set(order[:visible].tolist()), set(order[visible:].tolist())
    assert len(shown) == visible and len(hidden) == number - visible
    assert not shown & hidden and shown | hidden == set(range(number))
    # Within half of what is hidden together of the ratio that was asked for.
    together = {"tube": grid[0], "spatial": grid[0], "temporal": grid[1] * grid[2]}.get(strategy, 1)
    assert abs(len(hidden) - ratio * number) <= together / 2 + 1e-6


@given(KINDS, GRIDS, SEEDS)
def test_one_generator_one_mask(strategy, grid, seed):
    assert np.array_equal(draw(strategy, grid, seed), draw(strategy, grid, seed))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_another_generator_another_mask(strategy):
    assert not np.array_equal(draw(strategy, (4, 6, 6), 3), draw(strategy, (4, 6, 6), 4))


@given(st.sampled_from(["tube", "spatial"]), GRIDS, SEEDS, st.floats(0.01, 0.99))
def test_a_tube_is_the_same_at_all_times(strategy, grid, seed, ratio):
    order = draw(strategy, grid, seed)
    visible = MaskedModelingConfig(strategy=strategy, mask_ratio=ratio).num_visible(grid)
    mask = np.zeros(grid, bool)
    mask.reshape(-1)[order[visible:]] = True
    assert (mask == mask[:1]).all()


@given(GRIDS, SEEDS, st.floats(0.01, 0.99))
def test_temporal_hides_whole_times(grid, seed, ratio):
    order = draw("temporal", grid, seed)
    visible = MaskedModelingConfig(strategy="temporal", mask_ratio=ratio).num_visible(grid)
    mask = np.zeros(grid, bool)
    mask.reshape(-1)[order[visible:]] = True
    assert set(mask.reshape(grid[0], -1).mean(axis=1).tolist()) <= {0.0, 1.0}


@st.composite
def blocks(draw):
    """A grid with the sizes of its blocks."""
    grid = draw(GRIDS)
    smallest = tuple(draw(st.integers(1, side)) for side in grid)
    return grid, smallest, tuple(draw(st.integers(low, side)) for low, side in zip(smallest, grid))


@settings(max_examples=50)
@given(blocks(), SEEDS, st.floats(0.05, 0.95))
def test_hidden_tokens_are_whole_blocks_but_for_the_last(sizes, seed, ratio):
    """By brute force: all but less than one block of the hidden tokens lie in blocks of the smallest size or more that
    are hidden as a whole."""
    grid, smallest, largest = sizes
    visible = MaskedModelingConfig(mask_ratio=ratio).num_visible(grid)
    order = draw("block", grid, seed, block_min=smallest, block_max=largest)
    hidden = places(order[visible:], grid)
    t, h, w = smallest
    in_blocks = set()
    for t0, y0, x0 in hidden:
        block = {(t0 + a, y0 + b, x0 + c) for a in range(t) for b in range(h) for c in range(w)}
        if block <= hidden:
            in_blocks |= block
    assert len(hidden - in_blocks) < np.prod(largest)


def test_blocks_of_one_size_can_be_told_one_by_one():
    """3x3 places through all times: the last tokens of an order are one such block, and so on from there."""
    masking = Masking("block", (4, 9, 9), 1, (4, 3, 3), (4, 3, 3))
    order = masking.order(np.random.default_rng(5))
    last = places(order[-36:], masking.grid)
    y, x = min((y, x) for _, y, x in last)
    assert last == {(t, y + b, x + c) for t in range(4) for b in range(3) for c in range(3)}
    # Cut, it loses its columns one after the other, each with all its times.
    assert len({(y, x) for _, y, x in places(order[-20:], masking.grid)}) == 5


def test_blocks_lie_closer_together_than_random_tokens():
    """Neighbours of a hidden token that are hidden too, at ratio 0.5."""

    def share(strategy):
        found = []
        for seed in range(20):
            mask = np.zeros((8, 14, 14), bool)
            mask.reshape(-1)[draw(strategy, mask.shape, seed)[784:]] = True
            found.append((mask[:, :, 1:] & mask[:, :, :-1]).sum() / mask[:, :, 1:].sum())
        return np.mean(found)

    assert share("random") == pytest.approx(0.5, abs=0.02)
    assert share("block") > 0.8


@pytest.mark.parametrize("strategy", ["random", "tube", "spatial", "temporal"])
def test_every_place_is_shown_equally_often(strategy):
    counts, draws, shown = np.zeros(18), 3000, 9 if strategy == "temporal" else 4
    for seed in range(draws):
        counts[draw(strategy, (2, 3, 3), seed)[:shown]] += 1
    assert np.abs(counts / draws - shown / 18).max() < 0.035


def test_a_random_mask_breaks_tubes():
    assert len({int(token) % 36 for token in draw("random", (8, 6, 6), 0)[:36]}) > 15


def test_motion_of_a_token_by_hand():
    """One token of 2 in width goes from 10 to 30 between the second and third of 4 frames, in half of its pixels."""
    clip = np.full((4, 4, 8), 10, np.uint8)
    clip[2:, :, 4:] = 30  # the right token, all of it
    clip[2:, :, 4:6] = 10  # but its left half
    found = motion(clip, (2, 1, 2))
    # Cells are 4x4: 0, 10, 0 between frames; each frame takes the mean of its neighbours: 0, 5, 5, 0.
    assert found.tolist() == [[[0.0, 2.5]], [[0.0, 2.5]]]


@given(GRIDS.filter(lambda g: g[0] > 1), st.integers(0, 100), st.sampled_from([3, 4, 6, 8]))
def test_motion_as_a_loop_has_it(grid, seed, side):
    t, h, w = grid
    clip = np.random.default_rng(seed).integers(0, 256, (2 * t, side * h, side * w), dtype=np.uint8)
    cell = {3: 1, 4: 4, 6: 2, 8: 4}[side]
    found = motion(clip, grid)
    step, y, x = (np.random.default_rng(seed + 1).integers(0, n) for n in grid)
    changes = []
    for frame in (2 * step, 2 * step + 1):
        here = []
        for other in (frame - 1, frame + 1):
            if not 0 <= other < 2 * t:
                continue
            for cy in range(y * side, (y + 1) * side, cell):
                for cx in range(x * side, (x + 1) * side, cell):
                    one, two = (clip[f, cy, cx : cx + cell].astype(float).mean() for f in (frame, other))
                    here.append(abs(one - two))
        changes.append(np.mean(here))
    assert found[step, y, x] == pytest.approx(np.mean(changes), rel=1e-4)


def test_of_a_long_clip_every_second_frame_tells():
    """8 tokens along time of 2 frames each: the odd frames are not looked at, and of 7 pairs there are as many."""
    clip = np.zeros((16, 4, 8), np.uint8)
    clip[1::2] = 255
    assert not motion(clip, (8, 1, 1)).any()
    clip[6:] = 40
    assert motion(clip, (8, 1, 1)).reshape(-1).tolist() == [0, 0, 20, 20, 0, 0, 0, 0]


def test_what_moves_is_hidden_in_the_share_of_its_weight():
    """One of 4 tokens moves. Weights are 0.1 + 4 and 0.1 three times, temperature 1: the first token to be hidden is
    that one in 4.1 / 4.4 of all draws."""
    clip = np.zeros((2, 4, 16), np.uint8)
    clip[1, :, 4:8] = 80
    masking = Masking("motion", (1, 1, 4), motion_temperature=1.0, motion_floor=0.1)
    rng, draws = np.random.default_rng(0), 4000
    hidden = np.bincount([masking.order(rng, clip)[-1] for _ in range(draws)], minlength=4) / draws
    assert hidden == pytest.approx([0.1 / 4.4, 4.1 / 4.4, 0.1 / 4.4, 0.1 / 4.4], abs=0.015)


def test_a_clip_in_which_nothing_moves_is_masked_at_random():
    masking, rng, draws = Masking("motion", (1, 1, 4)), np.random.default_rng(0), 3000
    clip = np.full((2, 4, 16), 7, np.uint8)
    hidden = np.bincount([masking.order(rng, clip)[-1] for _ in range(draws)], minlength=4) / draws
    assert np.abs(hidden - 0.25).max() < 0.035


@pytest.mark.parametrize("temperature", [0.05, 5.0])
def test_hotter_is_more_like_random(temperature):
    clip = np.zeros((2, 4, 16), np.uint8)
    clip[1, :, 4:8] = 80
    masking = Masking("motion", (1, 1, 4), motion_temperature=temperature)
    rng = np.random.default_rng(0)
    share = np.mean([masking.order(rng, clip)[-1] == 1 for _ in range(500)])
    assert share == 1.0 if temperature < 1 else 0.25 < share < 0.5


def test_motion_needs_a_clip_that_fits():
    with pytest.raises(ValueError, match="motion needs the clip"):
        Masking("motion", (1, 1, 4)).order(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"\(2, 4, 15\) pixels.*\(1, 1, 4\) tokens"):
        motion(np.zeros((2, 4, 15), np.uint8), (1, 1, 4))


def test_the_largest_clip_sixteen_bits_can_number():
    assert Masking("random", (1, 256, 256)).order(np.random.default_rng(0)).max() == 65535
    with pytest.raises(ValueError, match="65536"):
        Masking("random", (1, 256, 257))
    with pytest.raises(ValueError, match="spiral.*random, tube"):
        Masking("spiral", (2, 2, 2))


@pytest.mark.parametrize(
    ("assignments", "said"),  # 8 x 14 x 14 tokens
    [
        (["strategy=temporal", "mask_ratio=0.95"], "mask_ratio 0.95 of 1568 tokens .temporal, 196 .*leaves 0 to see"),
        (["strategy=temporal", "mask_ratio=0.05"], "leaves 1568 to see"),
        (["strategy=tube", "mask_ratio=0.001"], "0.001 of 1568 tokens .tube, 8 of them.*leaves 1568 to see"),
        (["mask_ratio=0.0001"], "leaves 1568 to see"),
        (["strategy=block", "block_max=[9, 14, 14]"], "block_max of 9x14x14 tokens.*8x14x14"),
        (["strategy=block", "block_min=[1, 15, 1]"], "block_min of 1x15x1 tokens.*8x14x14"),
        (["strategy=block", "block_min=[2, 2, 2]", "block_max=[1, 4, 4]"], "block_min 2x2x2.*block_max 1x4x4"),
        (["strategy=block", "block_min=[0, 2, 2]"], "greater than 0"),
        (["motion_temperature=0"], "motion_temperature.*greater than or equal to 0.01"),
        (["motion_floor=0"], "motion_floor.*greater than 0"),
        (["strategy=spiral"], "'random', 'tube', 'temporal', 'spatial', 'block' or 'motion'"),
    ],
)
def test_what_cannot_be_masked_is_refused_with_its_numbers(assignments, said):
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        Config().override([f"masked_modeling.{assignment}" for assignment in assignments])


def test_motion_of_a_single_frame_is_refused():
    one = ["data.num_frames=1", "video_encoder.tubelet=[1, 16, 16]"]
    assert Config().override(one).grid == (1, 14, 14)
    with pytest.raises(ConfigError, match="num_frames of 2 or more, got 1"):
        Config().override([*one, "masked_modeling.strategy=motion"])


def test_sizes_of_blocks_by_hand():
    def sizes(**given):
        return MaskedModelingConfig(strategy="block", **given).block_sizes((8, 14, 12))

    assert sizes() == ((8, 5, 4), (8, 7, 6))
    assert sizes(block_max=(2, 3, 12)) == ((2, 3, 4), (2, 3, 12))
    assert sizes(block_min=(1, 9, 2)) == ((1, 9, 2), (8, 9, 6))
