"""Tokens by convolutions: halving by hand, nothing of what is hidden, and the background taken out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import uniform_filter
from torch.utils.flop_counter import FlopCounterMode

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.models.conv_stem import ConvStem, multiply_adds, normalise_locally, saved_values
from deepcoro.models.layers import gather_tokens
from deepcoro.models.video_encoder import VideoEncoder

TUBELET = (2, 8, 8)


def make_stem(seed=0, **options):
    torch.manual_seed(seed)
    stem = ConvStem(TUBELET, 24, 8, **options).double()
    with torch.no_grad():
        for parameter in stem.parameters():  # also those that begin at 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    return stem


def clips(rows=2, size=32, seed=0):
    return torch.randn(rows, 4, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orders(rows=2):
    chance = torch.Generator().manual_seed(1)
    return torch.stack([torch.randperm(32, generator=chance) for _ in range(rows)])


def test_tokens_stand_along_time_then_height_then_width_and_come_from_their_own_frames():
    stem = make_stem(local_norm=False)
    clip = clips()
    tokens = stem(clip)
    assert tokens.shape == (2, 2 * 4 * 4, 24)
    for group in range(2):  # frames 0 and 1, then 2 and 3, as two pictures of two channels
        x = clip[:, 2 * group : 2 * group + 2]
        x = F.gelu(F.group_norm(F.conv2d(x, stem.first.weight, stride=2, padding=1), 8, *stem.norm.parameters()))
        for stage in stem.stages:
            y = F.conv2d(x, stage.conv1.weight, stride=2, padding=1)
            y = F.conv2d(F.gelu(F.group_norm(y, 8, *stage.norm1.parameters())), stage.conv2.weight, padding=1)
            y = F.group_norm(y, 8, *stage.norm2.parameters())
            x = F.gelu(y + F.conv2d(x[:, :, ::2, ::2], stage.shortcut.weight))
        for row in range(4):
            for column in range(4):
                assert torch.allclose(tokens[:, 16 * group + 4 * row + column], x[:, :, row, column], atol=1e-10)


def test_showing_all_tokens_is_the_plain_stem():
    stem, clip, order = make_stem(), clips(), orders()
    assert torch.allclose(stem(clip, order), gather_tokens(stem(clip), order), atol=1e-10)


@pytest.mark.parametrize("local_norm", [True, False])
def test_hidden_pixels_cannot_reach_visible_tokens(local_norm):
    stem, clip, order = make_stem(local_norm=local_norm), clips().requires_grad_(), orders()
    visible, hidden = order[:, :9], order[:, 9:]
    stem(clip, visible).square().sum().backward()
    of_pixels = clip.grad.view(2, 2, 2, 4, 8, 4, 8).abs().sum(dim=(2, 4, 6)).flatten(1)
    assert (of_pixels.gather(1, hidden) == 0).all()
    assert (of_pixels.gather(1, visible) > 0).all()


def test_a_still_background_is_taken_out_and_its_contrast_with_it():
    """Beside a mean of the same size taken by scipy: what is left of a vessel does not depend on the ground's level
    or on the exposure."""
    rows, columns = np.mgrid[0:64, 0:64]
    ground = 2 * np.sin(rows / 20) + columns / 32
    vessel = np.exp(-((columns - 30 - 5 * np.sin(rows / 9)) ** 2) / 4)
    picture = torch.from_numpy(ground - 0.5 * vessel)[None, None]
    found = normalise_locally(picture, 4)[0, 0].numpy()
    outside = picture[0, 0].numpy() - uniform_filter(picture[0, 0].numpy(), 9, mode="nearest")
    inner = np.s_[8:-8, 8:-8]
    assert np.corrcoef(found[inner].ravel(), outside[inner].ravel())[0, 1] > 0.9
    assert abs(np.corrcoef(picture[0, 0].numpy().ravel(), vessel.ravel())[0, 1]) < 0.2
    assert np.corrcoef(found[inner].ravel(), vessel[inner].ravel())[0, 1] < -0.6
    brighter = normalise_locally(3 * picture + 7, 4)[0, 0].numpy()
    assert np.abs(brighter - found)[inner].max() < 0.2 * np.abs(found[inner]).max()  # the floor alone tells them apart
    flat = normalise_locally(torch.full((1, 1, 32, 32), 3.0, dtype=torch.float64), 4)
    assert flat.abs().max() < 1e-9


def test_what_is_hidden_makes_no_edges_in_what_is_seen():
    flat, order = torch.full((2, 4, 32, 32), 1.5, dtype=torch.float64), orders()
    seen = make_stem()._seen(flat, order[:, :16])
    assert normalise_locally(flat * seen, 4, seen).abs().max() < 1e-9
    # A slope with noise looks nearly the same, whatever else is hidden.
    rows, columns = np.mgrid[0:32, 0:32]
    noise = np.random.default_rng(0).normal(size=(2, 4, 32, 32))
    slope = torch.from_numpy(rows / 4 + columns / 8 + noise)
    whole = normalise_locally(slope, 4)
    found = normalise_locally(slope * seen, 4, seen)
    at = seen.bool()
    assert np.corrcoef(whole[at].numpy(), found[at].numpy())[0, 1] > 0.85
    assert (found[~at] == 0).all()


def test_what_the_backward_pass_keeps_is_counted():
    stem, clip = ConvStem((2, 16, 16), 48, 16), torch.randn(1, 4, 64, 64)
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in {p.data_ptr() for p in stem.parameters()}:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stem(clip).sum().backward()
    assert 0.6 < saved_values((2, 16, 16), 48, 16, 32) / sum(kept.values()) < 1.5


def test_a_run_that_was_described_before_there_were_stems_has_the_linear_one():
    part = Config().video_encoder.model_dump()
    before = {key: value for key, value in part.items() if not key.startswith("stem")} | {"pretrained": "some/run"}
    found = Config(video_encoder=before).video_encoder
    assert (found.stem, found.stem_width, found.is_resolved) == ("linear", 32, True)
    assert Config(video_encoder={"pretrained": "some/run"}).video_encoder.stem is None  # its source says


def test_an_encoder_with_it_shows_and_hides_as_the_linear_one():
    torch.manual_seed(0)
    encoder = VideoEncoder(4, 32, TUBELET, 24, 2, 2, stem="convolutional", stem_width=8).double().eval()
    clip, order = clips(), orders()
    whole = encoder(clip)
    assert whole.shape == (2, 32, 24)
    assert torch.allclose(encoder(clip, order), gather_tokens(whole, order), atol=1e-9)
    changed = clip.clone().view(2, 2, 2, 4, 8, 4, 8)
    mask = torch.zeros(2, 32).scatter_(1, order[:, 9:], 1).view(2, 2, 1, 4, 1, 4, 1)
    changed = (changed + 5 * mask).reshape(clip.shape)
    assert torch.allclose(encoder(changed, order[:, :9]), encoder(clip, order[:, :9]), atol=1e-9)
    assert sum(len(part) for part in encoder.bottom_up()) == sum(
        not name.startswith(("pool.", "norm.")) for name, _ in encoder.named_parameters()
    )


def test_its_multiply_adds_are_those_that_torch_counts():
    stem, clip = ConvStem((2, 16, 16), 48, 16), torch.randn(1, 4, 64, 64)
    with FlopCounterMode(display=False) as counter:
        stem(clip)
    assert multiply_adds((2, 16, 16), 48, 16, 32) == counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"tubelet": [2, 8, 16]}, r"as high as wide.*\[2, 8, 16\]"),
        ({"tubelet": [2, 14, 14]}, r"4, 8, 16 or 32.*\[2, 14, 14\]"),
        ({"tubelet": [2, 64, 64]}, r"4, 8, 16 or 32.*\[2, 64, 64\]"),
        ({"stem_width": 12}, "divisible by 8.*stem_width 12"),
    ],
)
def test_a_stem_that_cannot_be_made_is_told_before_anything_starts(part, words):
    with pytest.raises(ConfigError, match=words):
        Config().merge({"video_encoder": {"stem": "convolutional", **part}})
