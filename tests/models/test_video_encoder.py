"""Tubelets in order, and an encoder that computes only what it is shown."""

import numpy as np
import pytest
import torch

from deepcoro.models.layers import AttentionPool, DropPath, gather_tokens
from deepcoro.models.video_encoder import VideoEncoder, patchify, unpatchify

GRID, TUBELET = (2, 3, 3), (2, 8, 8)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return VideoEncoder(4, 24, TUBELET, width=24, depth=2, num_heads=2).double().eval()


def clips(rows=2, seed=0):
    return torch.randn(rows, 4, 24, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orders(rows=2, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(18, generator=chance) for _ in range(rows)])


def test_tubelets_are_numbered_along_time_then_height_then_width():
    clip = torch.arange(2 * 4 * 6 * 9, dtype=torch.float64).view(2, 4, 6, 9)
    tubelets = patchify(clip, (2, 3, 3))
    assert tubelets.shape == (2, 2 * 2 * 3, 18)
    number = 0
    for t in range(2):
        for y in range(2):
            for x in range(3):
                block = clip[:, 2 * t : 2 * t + 2, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3]
                assert torch.equal(tubelets[:, number], block.reshape(2, -1))
                number += 1


@pytest.mark.parametrize(("grid", "tubelet"), [((2, 3, 3), (2, 8, 8)), ((1, 2, 5), (3, 4, 2)), ((4, 1, 1), (1, 6, 7))])
def test_unpatchify_is_the_inverse(grid, tubelet):
    clip = torch.randn(2, *[g * t for g, t in zip(grid, tubelet, strict=True)])
    assert torch.equal(unpatchify(patchify(clip, tubelet), grid, tubelet), clip)
    tubelets = torch.randn(2, int(np.prod(grid)), int(np.prod(tubelet)))
    assert torch.equal(patchify(unpatchify(tubelets, grid, tubelet), tubelet), tubelets)


def test_showing_all_tokens_is_the_full_forward(encoder):
    clip = clips()
    whole = encoder(clip)
    assert whole.shape == (2, 18, 24)
    assert torch.allclose(encoder(clip, torch.arange(18).expand(2, -1)), whole, atol=1e-12)
    order = orders()
    assert torch.allclose(encoder(clip, order), gather_tokens(whole, order), atol=1e-12)


def test_hidden_pixels_cannot_reach_visible_tokens(encoder):
    clip, order = clips(), orders()
    visible, hidden = order[:, :5], order[:, 5:]
    tubelets = patchify(clip, TUBELET)
    noise = torch.randn_like(tubelets) * 100
    changed = unpatchify(tubelets.scatter(1, hidden.unsqueeze(-1).expand(-1, -1, 128), noise), GRID, TUBELET)
    assert torch.equal(encoder(changed, visible), encoder(clip, visible))
    assert not torch.allclose(encoder(changed), encoder(clip))


def test_visible_pixels_do_reach_each_other(encoder):
    clip, visible = clips(), orders()[:, :5]
    clip.requires_grad_()
    encoder(clip, visible)[0, 0, 0].backward()  # one number: the sum of a normalised token is constant
    reached = patchify(clip.grad, TUBELET).abs().sum(dim=-1) > 0
    assert set(reached[0].nonzero().flatten().tolist()) == set(visible[0].tolist())
    assert not reached[1].any()


def test_only_the_visible_tokens_are_computed(encoder):
    seen = []
    parts = [encoder.embed, *encoder.blocks]
    hooks = [part.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1])) for part in parts]
    encoder(clips(), orders()[:, :4])
    for hook in hooks:
        hook.remove()
    assert seen == [4, 4, 4]


def test_a_clip_of_another_shape_is_told_both_shapes(encoder):
    with pytest.raises(ValueError, match=r"expected clips of shape \(4, 24, 24\), received \(4, 24, 32\)"):
        encoder(torch.zeros(1, 4, 24, 32, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"5 frames of 24x24"):
        VideoEncoder(5, 24, TUBELET, 24, 1, 2)


def test_the_order_of_tokens_does_not_change_the_pooled_vector():
    torch.manual_seed(0)
    pool = AttentionPool(24, 2).double()
    tokens = torch.randn(2, 9, 24, dtype=torch.float64)
    assert pool(tokens).shape == (2, 24)
    assert torch.allclose(pool(tokens), pool(tokens[:, torch.randperm(9)]), atol=1e-12)


def test_drop_path_keeps_the_mean_and_rests_in_evaluation():
    torch.manual_seed(0)
    part, x = DropPath(0.25), torch.ones(20_000, 1)
    assert abs(part(x).mean().item() - 1) < 0.02
    assert part(x).unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(part.eval()(x), x)
