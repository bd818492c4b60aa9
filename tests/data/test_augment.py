"""Crops take their boxes along, intensities keep their order, and nothing is mirrored."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcoro.data.augment import Crop, choose_crop, crop_and_resize, jitter_intensity, move_boxes


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (80, 48)])
def test_a_box_still_bounds_its_bright_square(seed, height, width):
    rng = np.random.default_rng(seed)
    x, y, side = int(rng.integers(width // 3, width // 2)), int(rng.integers(height // 3, height // 2)), 9
    frame = np.zeros((1, height, width), np.uint8)
    frame[:, y : y + side, x : x + side] = 255
    box = np.array([[x / width, y / height, (x + side) / width, (y + side) / height]])

    size = 96
    crop = choose_crop(height, width, (0.8, 1.0), rng)
    bright = np.argwhere(crop_and_resize(frame, crop, size)[0] > 127)
    found = np.array([bright[:, 1].min(), bright[:, 0].min(), bright[:, 1].max() + 1, bright[:, 0].max() + 1])
    assert np.abs(move_boxes(box, height, width, crop)[0] * size - found).max() <= 1.0


def test_a_box_by_hand_is_cut_at_the_edge_or_gone():
    crop = Crop(x0=50.0, y0=0.0, side=100.0)  # of a video of 100 x 200 pixels (height x width)
    boxes = np.array([[0.5, 0.2, 0.6, 0.4], [0.2, 0.0, 0.35, 0.5], [0.0, 0.0, 0.2, 1.0], [0.8, 0.0, 0.9, 1.0]])
    moved = move_boxes(boxes, 100, 200, crop)
    assert np.allclose(moved[0], [0.5, 0.2, 0.7, 0.4])
    assert np.allclose(moved[1], [0.0, 0.0, 0.2, 0.5])
    assert np.isnan(moved[2:]).all()


@given(height=st.integers(8, 600), width=st.integers(8, 600), seed=st.integers(0, 99), low=st.floats(0.05, 1.0))
def test_crops_are_squares_inside_the_picture(height, width, seed, low):
    short = min(height, width)
    crop = choose_crop(height, width, (low, 1.0), np.random.default_rng(seed))
    assert low * short - 1e-9 <= crop.side <= short
    assert 0 <= crop.x0 <= width - crop.side + 1e-9
    assert 0 <= crop.y0 <= height - crop.side + 1e-9
    assert choose_crop(height, width, (low, 1.0), None) == Crop((width - short) / 2, (height - short) / 2, short)


def test_left_stays_left_and_up_stays_up():
    frame = np.tile(np.linspace(0, 120, 64), (64, 1)) + np.linspace(0, 120, 64)[:, None]
    frames = frame.round().astype(np.uint8)[None]
    for seed in range(30):
        rng = np.random.default_rng(seed)
        shown = crop_and_resize(frames, choose_crop(64, 64, (0.5, 1.0), rng), 32)
        shown = jitter_intensity(shown, 0.2, rng).astype(int)[0]
        assert shown[:, -4:].mean() > shown[:, :4].mean()
        assert shown[-4:].mean() > shown[:4].mean()


def test_every_frame_is_cut_alike():
    frame = np.random.default_rng(0).integers(0, 256, (40, 40)).astype(np.uint8)
    shown = crop_and_resize(np.stack([frame] * 3), Crop(3.5, 2.0, 30.0), 16)
    assert shown.shape == (3, 16, 16)
    assert shown.dtype == np.uint8
    assert (shown == shown[:1]).all()


def test_halving_the_size_averages_as_antialiasing_does():
    stripes = np.tile(np.array([0, 200], np.uint8), (1, 64, 32))  # one pixel wide: naive sampling keeps one colour
    shown = crop_and_resize(stripes, Crop(0, 0, 64), 16)[:, 4:-4, 4:-4]
    assert abs(shown.astype(float).mean() - 100) < 3
    assert shown.std() < 10


def test_a_whole_picture_of_the_right_size_is_untouched():
    frames = np.random.default_rng(0).integers(0, 256, (2, 24, 24)).astype(np.uint8)
    assert np.array_equal(crop_and_resize(frames, Crop(0, 0, 24), 24), frames)


@given(share=st.floats(0, 0.9), seed=st.integers(0, 999))
def test_brighter_stays_brighter(share, seed):
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    changed = jitter_intensity(levels, share, np.random.default_rng(seed))
    assert changed.dtype == np.uint8
    assert (np.diff(changed.reshape(-1).astype(int)) >= 0).all()


def test_no_share_changes_nothing_and_a_share_something():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert np.array_equal(jitter_intensity(levels, 0.0, np.random.default_rng(0)), levels)
    moved = jitter_intensity(levels, 0.2, np.random.default_rng(0)).astype(int) - levels
    assert 5 < np.abs(moved).max() < 110
