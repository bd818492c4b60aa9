"""Errors of hidden tokens, by loops."""

import numpy as np
import pytest
import torch

from deepcoro.losses.masked_modeling import masked_modeling_loss
from deepcoro.losses.multitask import MultitaskLoss


def test_it_is_the_sum_of_each_tokens_mean_square():
    chance = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(4, 3, 5, generator=chance, dtype=torch.float64) for _ in range(2))
    valid = torch.tensor([[True, False], [True, True]])
    wanted = 0.0
    for view, is_there in enumerate([True, False, True, True]):
        for token in range(3):
            errors = [(prediction[view, token, p] - target[view, token, p]).item() ** 2 for p in range(5)]
            wanted += sum(errors) / 5 if is_there else 0
    assert abs(masked_modeling_loss(prediction, target, valid).item() - wanted) < 1e-12


def test_views_that_are_not_there_are_ignored():
    prediction = torch.ones(2, 3, 4, requires_grad=True)
    target = torch.zeros(2, 3, 4)
    target[1] = 1e6
    loss = masked_modeling_loss(prediction, target, torch.tensor([[True], [False]]))
    assert loss.item() == 3.0
    loss.backward()
    assert (prediction.grad[0] == 2 / 4).all()
    assert (prediction.grad[1] == 0).all()


def by_hand(d, kind, beta):
    """Error and slope of a difference."""
    if kind == "mse":
        return d * d, 2 * d
    if kind == "l1":
        return abs(d), (d > 0) - (d < 0)
    return (d * d / (2 * beta), d / beta) if abs(d) < beta else (abs(d) - beta / 2, (d > 0) - (d < 0))


@pytest.mark.parametrize(("kind", "beta"), [("mse", 1.0), ("l1", 1.0), ("smooth_l1", 1.0), ("smooth_l1", 0.25)])
def test_errors_and_slopes_of_each_kind(kind, beta):
    chance = torch.Generator().manual_seed(1)
    prediction, target = (torch.randn(2, 3, 5, generator=chance, dtype=torch.float64) for _ in range(2))
    prediction.requires_grad_()
    loss = masked_modeling_loss(prediction, target, torch.tensor([[True], [True]]), kind, beta)
    loss.backward()
    wanted = 0.0
    for place in np.ndindex(2, 3, 5):
        error, slope = by_hand((prediction[place] - target[place]).item(), kind, beta)
        wanted += error / 5
        assert abs(prediction.grad[place].item() - slope / 5) < 1e-12
    assert abs(loss.item() - wanted) < 1e-12


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"one of mse, l1, smooth_l1, got 'huber'"):
        masked_modeling_loss(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool), "huber")
    with pytest.raises(ValueError, match=r"one of mse, l1, smooth_l1, got 'huber'"):
        MultitaskLoss(masked_loss_type="huber")


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_visible_tokens_add_their_own_mean(weight):
    """4 hidden tokens that are asked for and 2 visible ones, one view of three not there; values and slopes."""
    chance = torch.Generator().manual_seed(2)
    names = {"prediction": 4, "target": 4, "visible_prediction": 2, "visible_target": 2}
    out = {name: torch.randn(3, n, 5, generator=chance, dtype=torch.float64) for name, n in names.items()}
    for name in ("prediction", "visible_prediction"):
        out[name].requires_grad_()
    batch = {"valid": torch.tensor([[True], [False], [True]]), "has_report": torch.zeros(3, dtype=torch.bool)}
    loss = MultitaskLoss(masked_loss_type="l1")
    loss.visible_weight = weight
    found = loss(out, batch)["masked_modeling"]
    found.backward()
    kept = [0, 2]
    hidden = (out["prediction"] - out["target"])[kept].detach().abs().mean()
    visible = (out["visible_prediction"] - out["visible_target"])[kept].detach().abs().mean()
    assert abs(found.item() - (hidden + weight * visible).item()) < 1e-12
    signs = (out["visible_prediction"] - out["visible_target"]).detach().sign() * weight / (2 * 2 * 5)
    signs[1] = 0
    assert torch.allclose(out["visible_prediction"].grad, signs, atol=1e-15)
