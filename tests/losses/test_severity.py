"""Rows of the contrastive loss that count by severity: against the formulas, written out in double precision."""

import math

import pytest
import torch
import torch.nn.functional as F

from deepcoro.losses.multitask import MultitaskLoss

KINDS = ("sigmoid", "softmax")
LEVELS = ("clip", "study")
SEVERITY_WEIGHT = 1.5
# Of three studies of two clips: clips are six rows, studies three.
SEVERITY = {"clip": [[80.0, 100.0], [0.0, 35.0], [70.0, 0.0]], "study": [100.0, 35.0, 70.0]}
TOLD = {"clip": [[True, True], [True, False], [True, True]], "study": [True, False, True]}
KEYS = {"clip": [[1, 2], [3, 4], [1, 5]], "study": [6, 7, 6]}


def small_case(level):
    """Outputs of the model and a batch, whose studies and clips have other severities, reports and keys."""
    chance = torch.Generator().manual_seed(0)
    rows = torch.tensor(KEYS[level]).numel()
    video, text = (F.normalize(torch.randn(rows, 4, generator=chance, dtype=torch.float64), dim=1) for _ in range(2))
    scale, bias = torch.tensor(3.0, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
    named = {"video_embedding": video, "text_embedding": text, "logit_scale": scale, "logit_bias": bias}
    out = {name: x.requires_grad_() for name, x in named.items()}
    batch = {"valid": torch.ones(3, 2, dtype=torch.bool)}
    for of, before in (("clip", "clip_"), ("study", "")):
        batch[f"{before}severity"] = torch.tensor(SEVERITY[of], dtype=torch.float64)
        batch[f"{before}has_report"] = torch.tensor(TOLD[of])
        batch[f"{before}report_key"] = torch.tensor(KEYS[of])
    return out, batch


def by_loops(kind, level, out):
    """The weighted mean as it is told in words, over Python's own lists: a row counts 1 + a s / 100."""
    severity, told, key = (torch.tensor(x[level]).flatten().tolist() for x in (SEVERITY, TOLD, KEYS))
    rows = [i for i in range(len(key)) if told[i]]
    counts = {i: 1 + SEVERITY_WEIGHT * severity[i] / 100 for i in rows}
    logit = out["logit_scale"] * out["video_embedding"] @ out["text_embedding"].T
    total = 0.0
    for i in rows:
        for j in rows:
            if kind == "sigmoid":
                z = 1 if key[i] == key[j] else -1
                term = -torch.log(1 / (1 + torch.exp(-z * (logit[i, j] + out["logit_bias"]))))
                total = total + (counts[i] + counts[j]) / 2 * term
            elif key[i] == key[j]:
                same = sum(key[i] == key[k] for k in rows)
                to_text = logit[i, j].exp() / sum(logit[i, k].exp() for k in rows)
                to_video = logit[j, i].exp() / sum(logit[k, i].exp() for k in rows)
                total = total - counts[i] * (torch.log(to_text) + torch.log(to_video)) / 2 / same
    return total / sum(counts.values())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_are_those_of_the_formula(kind, level):
    losses, gradients = [], []
    for mean in ("ours", "by hand"):
        out, batch = small_case(level)
        if mean == "ours":
            loss = MultitaskLoss(
                contrastive_loss_type=kind, levels={"contrastive": level}, severity_weight=SEVERITY_WEIGHT
            )
            losses.append(loss(out, batch)["contrastive"])
        else:
            losses.append(by_loops(kind, level, out))
        losses[-1].backward()
        gradients.append({name: x.grad for name, x in out.items()})
    assert losses[0].dtype == torch.float64
    assert abs(losses[0].item() - losses[1].item()) < 1e-12
    for name, grad in gradients[1].items():
        if grad is not None:  # the bias has no part in the softmax
            assert (gradients[0][name] - grad).abs().max() < 1e-12, name
            assert (grad != 0).any()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_alike_count_as_they_would_without(kind, level):
    """A mean over what rows count keeps its size, whatever each of them counts."""
    out, batch = small_case(level)
    column = "clip_severity" if level == "clip" else "severity"
    batch[column] = torch.full_like(batch[column], 70.0)
    plain, weighted = (
        MultitaskLoss(contrastive_loss_type=kind, levels={"contrastive": level}, severity_weight=a)(out, batch)
        for a in (0.0, SEVERITY_WEIGHT)
    )
    assert weighted["contrastive"].item() == pytest.approx(plain["contrastive"].item(), rel=1e-14)


def test_what_rows_count_by_hand():
    _, batch = small_case("study")
    counts = {a: MultitaskLoss(severity_weight=a).counts(batch, num_asked=4)["contrastive"] for a in (0.0, 0.5)}
    assert (counts[0.0].dtype, counts[0.0].item()) == (torch.int64, 2)
    assert counts[0.5].item() == pytest.approx(1.5 + 1.35)  # of 100 and 70 percent; 35 belongs to no report
    clips = MultitaskLoss(levels={"contrastive": "clip"}, severity_weight=0.5).counts(batch, num_asked=4)
    assert clips["contrastive"].item() == pytest.approx(1.4 + 1.5 + 1 + 1.35 + 1)


@pytest.mark.parametrize("severity_weight", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_no_report_at_all_is_zero_and_moves_nothing(kind, severity_weight):
    out, batch = small_case("study")
    batch["has_report"][:] = False
    loss = MultitaskLoss(contrastive_loss_type=kind, severity_weight=severity_weight)
    value = loss(out, batch)["contrastive"]
    value.backward()
    assert value.item() == 0
    assert all((x.grad == 0).all() for name, x in out.items() if name != "logit_bias" or kind == "sigmoid")


@pytest.mark.parametrize("severity_weight", [0.0, 0.5])
def test_one_row_by_hand(severity_weight):
    """Whatever it counts: of the sigmoid it is log(1 + exp(-(3 x 1 - 1))), and the softmax has nothing to choose."""
    for kind, wanted in (("sigmoid", math.log(1 + math.exp(-2.0))), ("softmax", 0.0)):
        out, batch = small_case("study")
        one = F.normalize(torch.ones(1, 4, dtype=torch.float64), dim=1)
        out |= {name: one.clone().requires_grad_() for name in ("video_embedding", "text_embedding")}
        batch = {name: x[:1] for name, x in batch.items()}
        loss = MultitaskLoss(contrastive_loss_type=kind, severity_weight=severity_weight)
        value = loss(out, batch)["contrastive"]
        value.backward()
        assert value.item() == pytest.approx(wanted, abs=1e-12)
        slope = -1 / (1 + math.exp(2.0)) if kind == "sigmoid" else 0.0  # of its logit
        assert out["logit_scale"].grad.item() == pytest.approx(slope, abs=1e-12)
        assert torch.allclose(out["video_embedding"].grad, 3 * slope * one, atol=1e-12)


@pytest.mark.parametrize(("level", "column"), [("study", "severity"), ("clip", "clip_severity")])
def test_a_batch_without_severity_is_refused(level, column):
    out, batch = small_case(level)
    del batch[column]
    loss = MultitaskLoss(levels={"contrastive": level}, severity_weight=0.5)
    with pytest.raises(ValueError, match=r"severity_weight 0.5 .* the batch has none"):
        loss(out, batch)
    MultitaskLoss(levels={"contrastive": level})(out, batch)  # where nothing asks for it, it need not be there


@pytest.mark.parametrize("severity_weight", [-0.1, math.nan])
def test_senseless_weights_are_refused(severity_weight):
    with pytest.raises(ValueError, match="severity_weight must be 0 or more"):
        MultitaskLoss(severity_weight=severity_weight)
