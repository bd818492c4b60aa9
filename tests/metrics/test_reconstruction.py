"""Errors against a plain loop, and interpolation on fields whose answer is known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepcoro.metrics.reconstruction import (
    interpolate_hidden,
    normalise,
    reconstruction_errors,
    squared_error,
    take_tokens,
)

GRID = (3, 4, 5)
N = 60


def split(num_clips: int, num_visible: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(N, generator=generator) for _ in range(num_clips)])
    return order[:, :num_visible], order[:, num_visible:]


def test_error_worked_by_hand():
    target = torch.zeros(2, 2, 2)
    prediction = torch.tensor([[[1.0, 1.0], [3.0, 3.0]], [[0.0, 2.0], [0.0, 0.0]]])
    assert squared_error(prediction, target).tolist() == [5, 1]
    only_second = torch.tensor([[False, True], [False, True]])
    assert squared_error(prediction, target, only_second).tolist() == [9, 0]
    assert squared_error(prediction, target, torch.zeros(2, 2, dtype=torch.bool)).isnan().all()


def test_perfect_prediction_has_no_error_in_either_space_and_the_patch_mean_has_one():
    tokens = torch.rand(2, N, 16)
    visible, hidden = split(2, 20)
    prediction, _, _ = normalise(take_tokens(tokens, hidden))
    errors = reconstruction_errors(prediction, tokens, visible, hidden, GRID)
    assert all(values.shape == (2,) for values in errors.values())
    torch.testing.assert_close(errors["normalised"], torch.zeros(2), atol=1e-9, rtol=0)
    torch.testing.assert_close(errors["pixels"], torch.zeros(2), atol=1e-9, rtol=0)
    torch.testing.assert_close(errors["normalised_patch_mean"], torch.ones(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(errors["patch_mean"], take_tokens(tokens, hidden).var(-1, correction=0).mean(-1))


def test_predicting_zero_is_the_patch_mean_in_both_spaces():
    tokens = torch.rand(3, N, 8)
    visible, hidden = split(3, 10)
    errors = reconstruction_errors(torch.zeros(3, 50, 8), tokens, visible, hidden, GRID)
    torch.testing.assert_close(errors["normalised"], errors["normalised_patch_mean"])
    torch.testing.assert_close(errors["pixels"], errors["patch_mean"])


def test_the_true_mean_never_harms_interpolation():
    tokens = torch.rand(4, N, 8)
    visible, hidden = split(4, 10)
    errors = reconstruction_errors(torch.zeros(4, 50, 8), tokens, visible, hidden, GRID)
    assert (errors["interpolation_same_mean"] <= errors["interpolation"]).all()


def test_a_still_scene_is_interpolated_almost_exactly_and_beats_the_patch_mean():
    tokens = torch.rand(2, 1, 20, 16).expand(2, 3, 20, 16).reshape(2, N, 16)  # one picture, three times
    visible = torch.arange(20, 40).expand(2, 20)  # all of the middle moment
    hidden = torch.cat([torch.arange(20), torch.arange(40, 60)]).expand(2, 40)
    errors = reconstruction_errors(torch.zeros(2, 40, 16), tokens, visible, hidden, GRID)
    assert (errors["interpolation"] < 0.3 * errors["patch_mean"]).all()


@given(st.integers(1, N - 1), st.integers(0, 1000))
def test_interpolation_keeps_what_is_visible_and_stays_within_its_range(num_visible, seed):
    tokens = torch.rand(2, N, 3, generator=torch.Generator().manual_seed(seed))
    visible, hidden = split(2, num_visible, seed)
    filled = interpolate_hidden(tokens, visible, GRID)
    assert torch.equal(take_tokens(filled, visible), take_tokens(tokens, visible))
    shown, guessed = take_tokens(tokens, visible), take_tokens(filled, hidden)
    assert (guessed <= shown.amax(1, keepdim=True) + 1e-6).all() and (
        guessed >= shown.amin(1, keepdim=True) - 1e-6
    ).all()


def test_interpolation_does_not_read_hidden_tokens():
    tokens = torch.rand(2, N, 3)
    visible, hidden = split(2, 15)
    blinded = tokens.scatter(1, hidden.unsqueeze(-1).expand(-1, -1, 3), float("nan"))
    assert torch.equal(interpolate_hidden(blinded, visible, GRID), interpolate_hidden(tokens, visible, GRID))


def test_interpolation_worked_by_hand():
    tokens = torch.tensor([[[0.0], [9.0], [9.0], [6.0]]])  # a row of four; the middle two are hidden
    filled = interpolate_hidden(tokens, torch.tensor([[0, 3]]), (1, 1, 4), power=2)
    assert filled.flatten().tolist() == pytest.approx([0, 6 * (1 / 4) / (1 + 1 / 4), 6 / (1 + 1 / 4), 6])


def test_time_is_nearer_than_space():
    tokens = torch.tensor([[[9.0], [1.0], [0.0], [9.0]]])  # grid (2, 1, 2); visible: beside (1) and a moment later (0)
    filled = interpolate_hidden(tokens, torch.tensor([[1, 2]]), (2, 1, 2), time_step=0.5, power=4)
    assert float(filled[0, 0]) == pytest.approx(1 / (1 + 2**4))


def test_mistakes_are_named():
    tokens = torch.rand(2, N, 4)
    visible, hidden = split(2, 10)
    with pytest.raises(ValueError, match=r"\(2, 50, 4\), got \(2, 49, 4\)"):
        reconstruction_errors(torch.zeros(2, 49, 4), tokens, visible, hidden, GRID)
    with pytest.raises(ValueError, match=r"t \* h \* w of \(3, 4, 4\)"):
        interpolate_hidden(tokens, visible, (3, 4, 4))
    with pytest.raises(ValueError, match="from 0 to 59, got 0 to 60"):
        take_tokens(tokens, torch.tensor([[0, 60], [0, 1]]))
    with pytest.raises(ValueError, match="K 1 or more"):
        interpolate_hidden(tokens, visible[:, :0], GRID)
    with pytest.raises(ValueError, match="not empty"):
        squared_error(torch.zeros(0, 2, 2), torch.zeros(0, 2, 2))
    with pytest.raises(ValueError, match="bool mask"):
        squared_error(tokens, tokens, torch.ones(2, N))
