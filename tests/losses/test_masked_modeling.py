"""Squared error of hidden tubelets, by loops."""

import torch

from deepcoro.losses.masked_modeling import masked_modeling_loss


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
