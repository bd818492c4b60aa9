"""A mean over the views that are there."""

import torch

from deepcoro.models.study_pooling import StudyPooling


def test_a_mean_by_hand():
    views = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]], [[5.0, 5.0], [7.0, 1.0], [0.0, 0.0]]])
    valid = torch.tensor([[True, True, False], [False, True, False]])
    assert StudyPooling()(views, valid).tolist() == [[2.0, 4.0], [7.0, 1.0]]


def test_what_is_not_there_changes_nothing_whatever_it_holds():
    views, valid = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [False, False, False]])
    views[0, 2], views[1] = torch.nan, torch.inf
    views.requires_grad_()
    pooled = StudyPooling()(views, valid)
    assert torch.allclose(pooled[0], views[0, :2].mean(dim=0))
    assert (pooled[1] == 0).all()
    pooled.sum().backward()
    assert (views.grad[~valid] == 0).all()
