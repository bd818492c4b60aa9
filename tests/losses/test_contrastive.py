"""Sigmoid and softmax alignment against plain loops of the papers' formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from deepcoro.losses.contrastive import sigmoid_loss, softmax_loss


def pairs(rows=6, dim=5, seed=0):
    """Unit vectors of rows videos and texts, and learnable scale and bias, all in double precision."""
    chance = torch.Generator().manual_seed(seed)
    video, text = (torch.randn(rows, dim, generator=chance, dtype=torch.float64) for _ in range(2))
    scale, bias = torch.tensor(7.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    return [x.requires_grad_() for x in (F.normalize(video, dim=1), F.normalize(text, dim=1), scale, bias)]


def sigmoid_by_loops(video, text, key, has_report, scale, bias):
    """2303.15343, equation 1: -1/|B| sum_i sum_j log 1 / (1 + exp(z_ij (-t x_i . y_j - b)))."""
    total, rows = 0.0, [i for i in range(len(key)) if has_report[i]]
    for i in rows:
        for j in rows:
            z = 1.0 if key[i] == key[j] else -1.0
            dot = sum(video[i, e] * text[j, e] for e in range(video.shape[1]))
            total = total + torch.log(1 / (1 + torch.exp(z * (-scale * dot - bias))))
    return -total / max(1, len(rows))


def softmax_by_loops(video, text, key, has_report, scale):
    """2103.00020, figure 3, with the target spread evenly over the texts that are equal."""
    rows = [i for i in range(len(key)) if has_report[i]]
    total = 0.0
    for one, other in ((video, text), (text, video)):
        for i in rows:
            powers = {j: torch.exp(scale * (one[i] @ other[j])) for j in rows}
            same = [j for j in rows if key[j] == key[i]]
            total = total - sum(torch.log(powers[j] / sum(powers.values())) for j in same) / len(same)
    return total / 2 / max(1, len(rows))


CASES = {
    "all different": ([1, 2, 3, 4, 5, 6], [True] * 6),
    "equal texts": ([1, 2, 1, 2, 1, 6], [True] * 6),
    "rows without report": ([1, 0, 3, 0, 1, 6], [True, False, True, False, True, True]),
    "no report but the same key": ([1, 1, 1, 4, 5, 6], [True, False, True, True, True, True]),
    "one report": ([1, 0, 0, 0, 0, 0], [True] + [False] * 5),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_value_and_gradients_are_those_of_the_formula(case, kind):
    key, has_report = (torch.tensor(x) for x in CASES[case])
    ours, plain = pairs(), pairs()
    loss, loops = {"sigmoid": (sigmoid_loss, sigmoid_by_loops), "softmax": (softmax_loss, softmax_by_loops)}[kind]
    value = loss(ours[0], ours[1], key, has_report, ours[2], ours[3]) / has_report.sum()
    wanted = loops(plain[0], plain[1], key, has_report, *plain[2 : 4 if kind == "sigmoid" else 3])
    assert abs(value.item() - wanted.item()) < 1e-12
    value.backward()
    wanted.backward()
    for one, other in zip(ours, plain, strict=True):
        if other.grad is None:
            assert one.grad is None  # the bias has no part in the softmax
        else:
            assert torch.allclose(one.grad, other.grad, atol=1e-12)


def test_softmax_of_different_texts_is_the_cross_entropy_of_the_diagonal():
    video, text, scale, bias = pairs()
    value = softmax_loss(video, text, torch.arange(6), torch.ones(6, dtype=torch.bool), scale, bias) / 6
    logits = scale * video @ text.T
    wanted = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    assert torch.allclose(value, wanted, atol=1e-12)


@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_loss])
def test_rows_without_report_change_nothing(loss):
    video, text, scale, bias = pairs()
    key, has_report = torch.tensor([1, 2, 3, 9, 9, 9]), torch.tensor([True] * 3 + [False] * 3)
    value = loss(video, text, key, has_report, scale, bias)
    value.backward()
    assert (video.grad[3:] == 0).all()
    assert (text.grad[3:] == 0).all()
    less = loss(video[:3].detach(), text[:3].detach(), key[:3], has_report[:3], scale.detach(), bias.detach())
    assert torch.allclose(value, less, atol=1e-12)


@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_loss])
def test_no_report_at_all_is_no_loss_and_no_gradient(loss):
    video, text, scale, bias = pairs()
    value = loss(video, text, torch.zeros(6, dtype=torch.long), torch.zeros(6, dtype=torch.bool), scale, bias)
    value.backward()
    assert value.item() == 0
    for x in (video, text, scale):
        assert (x.grad == 0).all()


def test_one_pair_by_hand():
    one, key, yes = torch.ones(1, 1, dtype=torch.float64), torch.tensor([1]), torch.tensor([True])
    value = sigmoid_loss(one, one, key, yes, torch.tensor(3.0), torch.tensor(-1.0))
    assert value.item() == pytest.approx(math.log(1 + math.exp(-2.0)), abs=1e-7)


def test_large_logits_stay_finite():
    video, text, _, bias = pairs()
    for loss in (sigmoid_loss, softmax_loss):
        value = loss(
            video.float(), text.float(), torch.arange(6), torch.ones(6, dtype=torch.bool), torch.tensor(1e4), bias
        )
        assert torch.isfinite(value)
