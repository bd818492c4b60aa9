"""Cross-entropy of the tokens that are asked for, and of no others."""

import pytest
import torch
import torch.nn.functional as F

from deepcoro.losses.captioning import caption_targets, captioning_loss

VOCABULARY = 11
IDS = torch.tensor([[2, 5, 6, 7, 3, 0], [2, 8, 3, 0, 0, 0], [2, 9, 10, 3, 0, 0]])
LENGTH = torch.tensor([5, 3, 4])
PREFIX = torch.ones(3, dtype=torch.long)
REPORT = torch.tensor([True, True, True])


def logits(seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, VOCABULARY, generator=chance, dtype=torch.float64).requires_grad_()


def test_targets_by_hand():
    wanted = [[5, 6, 7, 3, -100], [8, 3, -100, -100, -100], [9, 10, 3, -100, -100]]
    assert caption_targets(IDS, LENGTH, PREFIX, REPORT).tolist() == wanted
    without = caption_targets(IDS, LENGTH, PREFIX, torch.tensor([True, False, True]))
    assert without.tolist() == [wanted[0], [-100] * 5, wanted[2]]
    prefixed = caption_targets(IDS, LENGTH, torch.tensor([3, 1, 1]), REPORT, ignore_index=-1)
    assert prefixed[0].tolist() == [-1, -1, 7, 3, -1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_the_sum_over_unpadded_rows(smoothing):
    ours, plain = logits(), logits()
    value = captioning_loss(ours, caption_targets(IDS, LENGTH, PREFIX, REPORT), smoothing)
    wanted = sum(
        F.cross_entropy(plain[row, : n - 1], IDS[row, 1:n], reduction="sum", label_smoothing=smoothing)
        for row, n in enumerate(LENGTH.tolist())
    )
    assert torch.allclose(value, wanted, atol=1e-12)
    value.backward()
    wanted.backward()
    assert torch.allclose(ours.grad, plain.grad, atol=1e-12)


def test_label_smoothing_by_hand():
    x = logits().detach()[:1, :1]
    value = captioning_loss(x, torch.tensor([[4]]), 0.1)
    log = x[0, 0].log_softmax(0)
    assert torch.allclose(value, -(0.9 * log[4] + 0.1 * log.mean()), atol=1e-12)


def test_pads_get_no_gradient_and_their_content_changes_nothing():
    x = logits()
    targets = caption_targets(IDS, LENGTH, PREFIX, torch.tensor([True, True, False]))
    captioning_loss(x, targets).backward()
    assert (x.grad[targets == -100] == 0).all()
    assert (x.grad[targets != -100] != 0).any(dim=-1).all()
    padding = torch.arange(6) >= LENGTH[:, None]
    filled = torch.where(padding, 7, IDS)
    assert torch.equal(caption_targets(filled, LENGTH, PREFIX, REPORT), caption_targets(IDS, LENGTH, PREFIX, REPORT))


def test_a_pad_id_inside_the_text_is_asked_for():
    ids = torch.tensor([[2, 0, 3]])
    assert caption_targets(ids, torch.tensor([3]), PREFIX[:1], REPORT[:1]).tolist() == [[0, 3]]


def test_nothing_asked_is_no_loss():
    x = logits()
    value = captioning_loss(x, torch.full((3, 5), -100))
    value.backward()
    assert value.item() == 0
    assert (x.grad == 0).all()


def test_half_precision_logits_are_summed_in_single():
    value = captioning_loss(logits().detach().bfloat16(), caption_targets(IDS, LENGTH, PREFIX, REPORT))
    assert value.dtype == torch.float32
