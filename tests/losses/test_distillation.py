"""What is learnt from a teacher: values by loops and numpy, slopes by hand, and none towards the teacher."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit, log_softmax, softmax

from deepcoro.losses.distillation import embedding_loss, local_loss, similarity_loss


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_embeddings_by_hand():
    student, teacher = (F.normalize(draw(4, 6, seed=seed), dim=-1) for seed in (1, 2))
    student.requires_grad_()
    teacher.requires_grad_()
    loss = embedding_loss(student, teacher, torch.tensor([True, False, True, True]))
    loss.backward()
    wanted = sum(1 - sum(student[row, e].item() * teacher[row, e].item() for e in range(6)) for row in (0, 2, 3))
    assert abs(loss.item() - wanted) < 1e-12
    assert teacher.grad is None
    assert torch.allclose(student.grad[[0, 2, 3]], -teacher[[0, 2, 3]], atol=1e-15) and (student.grad[1] == 0).all()
    assert abs(embedding_loss(teacher, teacher, torch.ones(4, dtype=torch.bool)).item()) < 1e-12


def divergence(p, q):
    return (p * (np.log(p) - np.log(q))).sum()


@pytest.mark.parametrize("similarity", ["softmax", "sigmoid"])
def test_similarities_by_hand(similarity):
    """Row 2 has no text: neither its video nor its text takes part."""
    student, teacher = 3 * draw(4, 4, seed=3), 3 * draw(4, 4, seed=4)
    student.requires_grad_()
    teacher.requires_grad_()
    kept = [0, 1, 3]
    loss = similarity_loss(student, teacher, torch.tensor([True, True, False, True]), similarity)
    loss.backward()
    s, t = (x.detach().numpy()[np.ix_(kept, kept)] for x in (student, teacher))
    if similarity == "sigmoid":
        p, q = expit(t), expit(s)
        wanted = divergence(p, q) + divergence(1 - p, 1 - q)
        slope = q - p
    else:
        wanted = sum(divergence(softmax(t, axis), softmax(s, axis)) for axis in (0, 1)) / 2
        slope = sum(softmax(s, axis) - softmax(t, axis) for axis in (0, 1)) / 2
    assert abs(loss.item() - wanted) < 1e-12
    assert teacher.grad is None
    assert np.allclose(student.grad.numpy()[np.ix_(kept, kept)], slope, atol=1e-12)
    assert (student.grad[2] == 0).all() and (student.grad[:, 2] == 0).all()
    told = torch.ones(4, dtype=torch.bool)
    assert abs(similarity_loss(teacher, teacher, told, similarity).item()) < 1e-12


def test_an_unknown_similarity_is_refused():
    with pytest.raises(ValueError, match="one of softmax, sigmoid, got 'cosine'"):
        similarity_loss(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, dtype=torch.bool), "cosine")


def test_local_views_by_hand():
    logits, targets = draw(3, 2, 5, seed=5).requires_grad_(), draw(3, 5, seed=6).softmax(dim=-1).requires_grad_()
    loss = local_loss(logits, targets, torch.tensor([True, False, True]), 0.1)
    loss.backward()
    wanted, p = 0.0, targets.detach().numpy()
    for clip in (0, 2):
        for view in range(2):
            wanted -= (p[clip] * log_softmax(logits.detach().numpy()[clip, view] / 0.1)).sum()
            slope = (softmax(logits.detach().numpy()[clip, view] / 0.1) - p[clip]) / 0.1
            assert np.allclose(logits.grad[clip, view].numpy(), slope, atol=1e-12)
    assert abs(loss.item() - wanted) < 1e-9
    assert targets.grad is None and (logits.grad[1] == 0).all()


def test_a_batch_without_texts_costs_nothing():
    student = draw(2, 2).requires_grad_()
    for similarity in ("softmax", "sigmoid"):
        loss = similarity_loss(student, draw(2, 2, seed=1), torch.zeros(2, dtype=torch.bool), similarity)
        loss.backward()
        assert loss.item() == 0 and (student.grad == 0).all()
