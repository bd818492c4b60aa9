"""Pooling over the views that are there, and over nothing else."""

import pytest
import torch

from deepcoro.models.study_pooling import StudyPooling, ViewEmbedding, drop_views

KINDS = [("mean", 0), ("mean", 1), ("attention", 0), ("attention", 2)]


def pooling(kind="attention", num_layers=1, width=8):
    torch.manual_seed(0)
    return StudyPooling(width, kind, num_heads=2, num_layers=num_layers).eval()


def test_a_mean_by_hand():
    views = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]], [[5.0, 5.0], [7.0, 1.0], [0.0, 0.0]]])
    valid = torch.tensor([[True, True, False], [False, True, False]])
    assert StudyPooling(2, "mean")(views, valid).tolist() == [[2.0, 4.0], [7.0, 1.0]]


@pytest.mark.parametrize(("kind", "num_layers"), KINDS)
def test_what_is_not_there_changes_nothing_whatever_it_holds(kind, num_layers):
    part = pooling(kind, num_layers)
    torch.manual_seed(1)
    views, valid = (
        torch.randn(3, 3, 8),
        torch.tensor([[True, True, False], [False, False, False], [False, True, False]]),
    )
    alone = part(views[:1, :2], valid[:1, :2])
    views[0, 2], views[1], views[2, 0], views[2, 2] = torch.nan, torch.inf, -torch.inf, 1e30
    views.requires_grad_()
    pooled = part(views, valid)
    assert torch.allclose(pooled[:1], alone, atol=1e-6)
    assert torch.allclose(pooled[2:], part(views[2:, 1:2], valid[2:, 1:2]), atol=1e-6)
    assert (pooled[1] == 0).all()
    pooled.square().sum().backward()
    assert (views.grad[~valid] == 0).all()
    assert (views.grad[valid] != 0).any()
    assert all(torch.isfinite(p.grad).all() for p in part.parameters())


@pytest.mark.parametrize(("kind", "num_layers"), KINDS)
def test_the_order_of_views_changes_nothing(kind, num_layers):
    part, views = pooling(kind, num_layers), torch.randn(2, 4, 8)
    valid = torch.tensor([[True, True, True, True], [True, False, True, True]])
    turn = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(part(views[:, turn], valid[:, turn]), part(views, valid), atol=1e-6)


def test_attention_pooling_is_torchs_own_attention_with_a_padding_mask():
    part = pooling(num_layers=0)
    attention, pool = part.pool.attention, part.pool
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([attention.query.weight, attention.key_value.weight]))
        reference.in_proj_bias.copy_(torch.cat([attention.query.bias, attention.key_value.bias]))
        reference.out_proj.weight.copy_(attention.out.weight)
        reference.out_proj.bias.copy_(attention.out.bias)
    views, valid = torch.randn(2, 3, 8), torch.tensor([[True, False, True], [True, True, True]])
    seen, _ = reference(pool.probe.expand(2, -1, -1), views, views, key_padding_mask=~valid)
    wanted = (seen + pool.feed_forward(pool.norm(seen)))[:, 0]
    assert torch.allclose(part(views, valid), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 0, 8), r"expected views of shape \[B, V, 8\] with V of 1 or more, received \(2, 0, 8\)"),
        ((2, 3, 7), r"expected views of shape \[B, V, 8\].*received \(2, 3, 7\)"),
        ((2, 8), r"received \(2, 8\)"),
    ],
)
def test_a_study_without_clips_and_another_width_are_told(shape, message):
    with pytest.raises(ValueError, match=message):
        pooling()(torch.zeros(shape), torch.ones(shape[:2], dtype=torch.bool))
    with pytest.raises(ValueError, match=r"expected valid of shape \(2, 3\), received \(2, 2\)"):
        pooling()(torch.zeros(2, 3, 8), torch.ones(2, 2, dtype=torch.bool))


def test_angles_are_told_without_a_jump_and_unknown_ones_are_their_own_thing():
    torch.manual_seed(0)
    part = ViewEmbedding(8)
    angles = torch.tensor([[[180.0, 20.0], [-180.0, 20.0], [30.0, -20.0], [0.0, 0.0], [torch.nan, torch.nan]]])
    angles = torch.cat([angles, torch.arange(5.0).view(1, 5, 1)], dim=-1)
    told = part(angles)[0]
    assert told.shape == (5, 8)
    assert torch.allclose(told[0], told[1], atol=1e-6)
    assert torch.isfinite(told).all()
    distances = torch.cdist(told[1:], told[1:]) + torch.eye(4)
    assert distances.min() > 1e-3  # unknown is not 0 degrees
    assert torch.allclose(part(angles[:, [2, 0, 1, 3, 4]])[0], told[[2, 0, 1, 3, 4]], atol=1e-6)


def test_an_order_tells_places_in_the_study_apart_wherever_in_the_batch_they_stand():
    torch.manual_seed(0)
    part = ViewEmbedding(8, angles=False, order=True)
    views = torch.zeros(2, 4, 3)
    views[0, :, 2], views[1, :, 2] = torch.arange(4), torch.tensor([3, 9, 0, 1])
    told = part(views)
    assert torch.equal(told[0, [3, 0, 1]], told[1, [0, 2, 3]])
    assert (torch.cdist(told[0], told[0]) + torch.eye(4)).min() > 1e-3


def test_views_of_another_shape_are_told():
    with pytest.raises(ValueError, match=r"expected views of shape \[B, V, 3\], received \(2, 3\)"):
        ViewEmbedding(8)(torch.zeros(2, 3))


def test_view_dropout_keeps_its_share_and_never_all():
    torch.manual_seed(0)
    valid = torch.tensor([[True] * 4 + [False]] * 20_000)
    kept = drop_views(valid, 0.5)
    assert not (kept & ~valid).any()
    assert kept.any(dim=1).all()
    # Each is kept with chance 1/2, or as the last one where all four would go (1/16): 4 * 1/2 + 1/16.
    assert abs(kept.sum().item() / 20_000 - (2 + 1 / 16)) < 0.02
    assert torch.equal(drop_views(valid, 0.0), valid)
    assert not drop_views(torch.zeros(2, 3, dtype=torch.bool), 0.5).any()
