"""Sigmoid and softmax alignment against plain loops of the papers' formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from deepcoro.config import Config
from deepcoro.config_contrastive import POSITIVES
from deepcoro.errors import ConfigError
from deepcoro.losses.contrastive import count_pairs, sigmoid_loss, softmax_loss
from deepcoro.losses.positives import find_match, keys_of, same_key


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


@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_loss])
def test_half_precision_is_computed_in_single_and_comes_back_in_half(loss):
    video, text, scale, bias = (x.detach().bfloat16().requires_grad_() for x in pairs())
    key, told = torch.arange(6), torch.ones(6, dtype=torch.bool)
    value = loss(video, text, key, told, scale, bias)
    wanted = loss(*(x.detach().double() for x in (video, text)), key, told, scale.double(), bias.double())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)
    value.backward()
    assert video.grad.dtype == scale.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_loss])
def test_without_gradients_the_value_is_the_same(loss):
    video, text, scale, bias = pairs()
    rest = (torch.arange(6), torch.ones(6, dtype=torch.bool), scale, bias)
    with torch.no_grad():
        value = loss(video, text, *rest)
    assert not value.requires_grad
    assert value.item() == pytest.approx(loss(video, text, *rest).item(), rel=1e-14)


@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_loss])
def test_a_row_of_weight_2_counts_twice_and_one_of_0_only_for_others(loss):
    """Where all terms are log 2: each pair of the sigmoid, and each row of two in the softmax."""
    one, told, scale, bias = torch.ones(2, 1).double(), torch.tensor([True, True]), torch.zeros(()), torch.zeros(())
    for weight, terms in (([1.0, 1.0], 2), ([2.0, 1.0], 3), ([2.0, 0.0], 2)):
        value = loss(one, one, torch.tensor([1, 2]), told, scale, bias, weight=torch.tensor(weight))
        # Pairs of the sigmoid count the mean of two rows' weights, and there are two pairs to a row.
        assert value.item() == pytest.approx(terms * math.log(2) * (2 if loss is sigmoid_loss else 1))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"text": torch.zeros(3, 4)}, r"\[3, 5\] and \[3, 4\]"),
        ({"key": torch.zeros(2)}, r"key of 3 rows, got \[2\]"),
        ({"has_report": torch.ones(4, dtype=torch.bool)}, r"has_report of 3 rows, got \[4\]"),
        ({"weight": torch.ones(1)}, r"weight of 3 rows, got \[1\]"),
        ({"chunk_size": 0}, "1 or more, got 0"),
    ],
)
@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_loss])
def test_what_does_not_belong_together_is_refused(loss, change, named):
    given = {
        "video": torch.zeros(3, 5),
        "text": torch.zeros(3, 5),
        "key": torch.zeros(3),
        "has_report": torch.ones(3, dtype=torch.bool),
        "logit_scale": torch.tensor(1.0),
        "logit_bias": torch.tensor(0.0),
    }
    with pytest.raises(ValueError, match=named):
        loss(**given | change)


def test_positives_by_name():
    rows = {"report_key": torch.tensor([1, 2, 1]), "study_key": torch.tensor([7, 7, 8])}
    wanted = {
        "text": [[1, 0, 1], [0, 1, 0], [1, 0, 1]],
        "study": [[1, 1, 0], [1, 1, 0], [0, 0, 1]],
        "text_or_study": [[1, 1, 1], [1, 1, 0], [1, 0, 1]],
    }
    assert wanted.keys() == set(POSITIVES)
    for name, expected in wanted.items():
        names, match = find_match(name)
        key = keys_of(rows, names)
        assert match(key, key).int().tolist() == expected
    names, match = find_match("deepcoro.losses.positives:same_key")
    assert (names, match) == (("report_key", "study_key"), same_key)


def test_positives_that_are_not_there_are_refused():
    for name in ("patient", "nowhere.at_all:match", "deepcoro.losses.positives:nothing"):
        with pytest.raises(ConfigError, match="none of text, study, text_or_study"):
            find_match(name)
    with pytest.raises(ValueError, match="no study_key"):
        keys_of({"report_key": torch.zeros(2)}, ("report_key", "study_key"))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_an_autocast_region_changes_nothing(kind, half):
    """Logits of scale 100 would be off by 0.4 in bfloat16; nor may backward, called in the region, round anything."""
    loss, key, told = (
        {"sigmoid": sigmoid_loss, "softmax": softmax_loss}[kind],
        torch.arange(40) // 2,
        torch.ones(40) > 0,
    )
    inside, outside = ([x.detach().float() for x in pairs(40, 8)] for _ in range(2))
    for x in (*inside, *outside):
        x.requires_grad_()
    with torch.autocast("cpu", half):
        value = loss(*inside[:2], key, told, 100 * inside[2], inside[3])
        value.backward()
    wanted = loss(*outside[:2], key, told, 100 * outside[2], outside[3])
    wanted.backward()
    assert value.dtype == torch.float32 and torch.equal(value, wanted)
    for x, y in zip(inside, outside, strict=True):
        assert (x.grad is None) == (y.grad is None) and (x.grad is None or torch.equal(x.grad, y.grad))


@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_loss])
def test_scale_and_bias_may_be_lists_of_one(loss):
    key, told = torch.arange(6), torch.ones(6) > 0
    ours, plain = pairs(), pairs()
    scale, bias = (x.detach().reshape(1).requires_grad_() for x in ours[2:])
    loss(*ours[:2], key, told, scale, bias).backward()
    loss(*plain[:2], key, told, *plain[2:]).backward()
    assert scale.grad.shape == (1,) and torch.equal(scale.grad[0], plain[2].grad)
    with pytest.raises(ValueError, match=r"one logit scale and one bias, got \[6, 1\]"):
        loss(*ours[:2], key, told, torch.ones(6, 1), bias)


@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_loss])
def test_a_second_derivative_is_refused(loss):
    video, text, scale, bias = pairs()
    value = loss(video, text, torch.arange(6), torch.ones(6) > 0, scale, bias)
    (slope,) = torch.autograd.grad(value * value, scale, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.backward()


@pytest.mark.parametrize(
    "match", [lambda rows, columns: rows[:, None] == rows[:, None], lambda rows, columns: torch.eye(6).double()]
)
@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_loss])
def test_positives_that_are_no_mask_of_the_pairs_are_refused(loss, match):
    video, text, scale, bias = pairs()
    with pytest.raises(ValueError, match=r"expected positives as bool \[6, 6\], got "):
        loss(video, text, torch.arange(6), torch.ones(6) > 0, scale, bias, match=match)


def test_weights_of_another_shape_are_refused():
    video, text, scale, _ = pairs()
    with pytest.raises(ValueError, match=r"one weight a row, \[6\], got \[6, 1\]"):
        softmax_loss(video, text, torch.arange(6), torch.ones(6) > 0, scale, weight=torch.ones(6, 1))


def test_pairs_are_counted():
    key = torch.tensor([1, 2, 1, 3, 3, 3])
    told = torch.tensor([True, True, True, True, True, False])
    assert [x.item() for x in count_pairs(key, told)] == [4 + 1 + 4, 25]
    assert [x.item() for x in count_pairs(key, told, chunk_size=2)] == [9, 25]
    assert [x.item() for x in count_pairs(key, ~told & False)] == [0, 0]


@pytest.mark.parametrize("given", ["os:sep", "os:nothing", "nowhere.at.all:thing"])
def test_pairs_of_ones_own_that_are_no_function_are_refused(given):
    with pytest.raises(ConfigError, match="no module:function that can be imported"):
        find_match(given)


@pytest.mark.parametrize("given", [":", "a:", ":b", "text:", "a b:c", "txt"])
def test_positives_that_name_nothing_are_refused_by_the_config(given):
    with pytest.raises(ConfigError, match=r"contrastive\.positives must be text, study, text_or_study or module:func"):
        Config(contrastive={"positives": given})
