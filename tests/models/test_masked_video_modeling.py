"""What is reconstructed, from what, and that nothing leaks."""

import numpy as np
import pytest
import torch

from deepcoro.losses.masked_modeling import masked_modeling_loss
from deepcoro.models.masked_video_modeling import MaskedVideoModeling
from deepcoro.models.video_encoder import VideoEncoder, patchify, unpatchify

GRID, TUBELET, K = (2, 3, 3), (2, 8, 8), 4


@pytest.fixture
def parts():
    torch.manual_seed(0)
    encoder = VideoEncoder(4, 24, TUBELET, 24, 1, 2).double()
    return encoder, MaskedVideoModeling(
        24, GRID, 128, decoder_hidden_size=24, decoder_layers=1, decoder_heads=2
    ).double()


@pytest.fixture
def case():
    chance = torch.Generator().manual_seed(1)
    clip = torch.randn(2, 4, 24, 24, generator=chance, dtype=torch.float64)
    order = torch.randperm(18, generator=chance).expand(2, -1)
    return clip, order[:, :K], order[:, K:]


def hidden_tubelets(clip, hidden):
    return patchify(clip, TUBELET).gather(1, hidden.unsqueeze(-1).expand(-1, -1, 128))


def test_hidden_pixels_change_the_target_and_not_the_prediction(parts, case):
    encoder, modeling = parts
    clip, visible, hidden = case
    noise = torch.randn(2, 18 - K, 128, dtype=torch.float64)
    changed = patchify(clip, TUBELET).scatter(1, hidden.unsqueeze(-1).expand(-1, -1, 128), noise)
    changed = unpatchify(changed, GRID, TUBELET)
    assert torch.equal(
        modeling(encoder(clip, visible), visible, hidden), modeling(encoder(changed, visible), visible, hidden)
    )
    targets = [modeling.target(hidden_tubelets(c, hidden)) for c in (clip, changed)]
    assert not torch.allclose(*targets)


def test_visible_pixels_and_places_do_change_the_prediction(parts, case):
    encoder, modeling = parts
    clip, visible, hidden = case
    prediction = modeling(encoder(clip, visible), visible, hidden)
    assert prediction.shape == (2, 18 - K, 128)
    assert not torch.allclose(prediction[0], prediction[1])
    assert not torch.allclose(prediction[:, 0], prediction[:, 1])
    swapped = hidden.flip(1)
    assert torch.allclose(modeling(encoder(clip, visible), visible, swapped), prediction.flip(1), atol=1e-12)


def test_the_target_is_normalised_in_each_tubelet(parts, case):
    clip, _, hidden = case
    tubelets = hidden_tubelets(clip * 3 + 5, hidden)
    target = parts[1].target(tubelets)
    values = tubelets.numpy()
    wanted = (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + 1e-6)
    assert np.allclose(target.numpy(), wanted, atol=1e-12)
    assert torch.allclose(parts[1].to_pixels(target, tubelets), tubelets, atol=1e-12)


def test_a_flat_tubelet_has_a_finite_target(parts):
    assert (parts[1].target(torch.full((1, 2, 128), 3.0)) == 0).all()


def test_without_normalisation_the_target_is_the_pixels(case):
    clip, _, hidden = case
    modeling = MaskedVideoModeling(24, GRID, 128, decoder_hidden_size=24, decoder_heads=2, norm_predict_loss=False)
    tubelets = hidden_tubelets(clip, hidden)
    assert torch.equal(modeling.target(tubelets), tubelets)
    assert torch.equal(modeling.to_pixels(tubelets, tubelets * 7), tubelets)


def test_the_target_gives_no_gradient(parts, case):
    clip, visible, hidden = case
    clip = clip.requires_grad_()
    target = parts[1].target(hidden_tubelets(clip, hidden))
    assert not target.requires_grad
    prediction = parts[1](parts[0](clip, visible), visible, hidden)
    masked_modeling_loss(prediction, target, torch.ones(2, 1, dtype=torch.bool)).backward()
    assert (hidden_tubelets(clip.grad, hidden) == 0).all()


def test_an_encoder_that_says_nothing_cannot_reach_zero(parts, case):
    encoder, modeling = parts
    clip, visible, hidden = case
    for parameter in (encoder.norm.weight, encoder.norm.bias):
        torch.nn.init.zeros_(parameter)
    prediction = modeling(encoder(clip, visible), visible, hidden)
    target = modeling.target(hidden_tubelets(clip, hidden))
    assert torch.equal(prediction[0], prediction[1])
    # Whatever one answer for two clips is, its squared errors are at least half the square of their difference.
    floor = ((target[0] - target[1]) ** 2).mean(-1).sum() / 2
    assert masked_modeling_loss(prediction, target, torch.ones(2, 1, dtype=torch.bool)) >= floor
    assert floor / (18 - K) > 0.5


@pytest.mark.parametrize("learnable", [True, False])
def test_the_mask_token_learns_if_it_may(case, learnable):
    _, visible, hidden = case
    modeling = MaskedVideoModeling(
        24, GRID, 128, decoder_hidden_size=24, decoder_heads=2, mask_token_learnable=learnable
    )
    modeling(torch.randn(2, K, 24), visible, hidden).sum().backward()
    assert (modeling.mask_token.grad is not None) == learnable
    assert (modeling.mask_token == 0).all() != learnable


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match=str(ratio)):
        MaskedVideoModeling(24, GRID, 128, mask_ratio=ratio)
