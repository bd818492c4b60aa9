"""Frames by time and views of a study."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcoro.data.sampling import choose_views, frame_indices


def test_a_cine_of_double_rate_gives_frames_at_the_same_times():
    slow = frame_indices(31, 15.0, 8, 7.5)  # both last from 0 to 2 s
    fast = frame_indices(61, 30.0, 8, 7.5)
    assert np.allclose(slow / 15.0, fast / 30.0, atol=1 / 30)
    assert np.allclose(np.diff(slow) / 15.0, 1 / 7.5)
    assert np.allclose(np.diff(fast) / 30.0, 1 / 7.5)


def test_times_by_hand_in_the_middle():
    # 30 frames at 15 a second end at 29/15 s; 4 frames at 7.5 take 3/7.5 s; half the rest, 11.5 frames, lies before.
    assert frame_indices(30, 15.0, 4, 7.5).tolist() == [11, 13, 15, 17]


def test_rates_that_do_not_divide_show_the_frame_on_screen():
    # At 12.5 a second the times 0, 1/7.5, 2/7.5, 3/7.5 fall on frames 0, 1.67, 3.33, 5.
    assert frame_indices(6, 12.5, 4, 7.5).tolist() == [0, 1, 3, 5]


@pytest.mark.parametrize("fps", [6.6, 8.33, 10.1, 14.985, 23.976, 29.97, 30.3])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_time_that_falls_on_a_frame_shows_that_frame(fps, every):
    assert frame_indices(9 * every, fps, 12, fps / every).tolist() == [min(every * t, 9 * every - 1) for t in range(12)]


def test_a_short_video_starts_at_its_first_frame_and_holds_its_last():
    for rng in (None, np.random.default_rng(0)):
        assert frame_indices(3, 15.0, 5, 15.0, rng=rng).tolist() == [0, 1, 2, 2, 2]
    assert frame_indices(1, 15.0, 4, 7.5).tolist() == [0, 0, 0, 0]


def test_evaluation_has_no_chance_and_training_has():
    fixed = [tuple(frame_indices(200, 15.0, 8, 7.5, time_jitter=0.1)) for _ in range(5)]
    assert len(set(fixed)) == 1
    rng = np.random.default_rng(0)
    assert len({tuple(frame_indices(200, 15.0, 8, 7.5, rng=rng)) for _ in range(50)}) > 20


def test_starts_are_spread_over_the_whole_cine():
    rng = np.random.default_rng(0)
    drawn = np.array([frame_indices(100, 15.0, 4, 15.0, rng=rng) for _ in range(600)])
    assert drawn[:, 0].min() <= 2
    assert drawn[:, -1].max() >= 97
    assert abs(drawn[:, 0].mean() - 48) < 5


def test_time_jitter_varies_the_rate_by_its_share():
    rng = np.random.default_rng(0)
    spans = [np.ptp(frame_indices(10_000, 100.0, 11, 1.0, time_jitter=0.1, rng=rng)) / 100.0 for _ in range(200)]
    assert 10 / 1.1 - 0.02 <= min(spans) < 9.3
    assert 10.9 < max(spans) <= 10 / 0.9 + 0.02


@given(
    num=st.integers(1, 500), fps=st.floats(1, 60), frames=st.integers(1, 32), rate=st.floats(1, 60),
    jitter=st.floats(0, 0.5), seed=st.none() | st.integers(0, 99),
)  # fmt: skip
def test_indices_lie_in_the_video_and_never_go_back(num, fps, frames, rate, jitter, seed):
    rng = None if seed is None else np.random.default_rng(seed)
    indices = frame_indices(num, fps, frames, rate, jitter, rng)
    assert indices.shape == (frames,)
    assert 0 <= indices.min() <= indices.max() <= num - 1
    assert (np.diff(indices) >= 0).all()


@pytest.mark.parametrize("values", [(0, 15.0, 4, 7.5), (10, 0.0, 4, 7.5), (10, 15.0, 4, 0.0)])
def test_a_video_without_frames_or_rate_is_refused(values):
    with pytest.raises(ValueError, match="above 0"):
        frame_indices(*values)


@given(num=st.integers(0, 20), views=st.integers(1, 8), seed=st.none() | st.integers(0, 99))
def test_views_are_different_and_in_order(num, views, seed):
    rng = None if seed is None else np.random.default_rng(seed)
    chosen = choose_views(num, views, rng).tolist()
    assert len(chosen) == (num if seed is None else min(num, views))
    assert chosen == sorted(set(chosen))
    assert all(0 <= view < num for view in chosen)


def test_evaluation_takes_all_views_and_training_any():
    assert choose_views(9, 3).tolist() == [*range(9)]
    rng = np.random.default_rng(0)
    assert {int(v) for _ in range(50) for v in choose_views(9, 3, rng)} == set(range(9))
