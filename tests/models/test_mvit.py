"""torchvision's MViTv2-S gives its patch tokens, and hides what it is not to see."""

import math
import sys
from pathlib import Path

import pytest
import torch

from deepcoro.config_encoder import VideoEncoderConfig
from deepcoro.errors import ConfigError
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.layers import gather_tokens
from deepcoro.models.video_encoder import patchify, unpatchify
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import train_step

MVIT = ("video_encoder.name=mvit", "data.num_frames=16", "data.frame_size=224", "data.pixel_mean=100.0")


@pytest.fixture(scope="module")
def config(tiny_config):
    """The tiny config with MViT, which brings its own width and tubelet."""
    sizes = ("width", "depth", "num_heads", "tubelet", "class_token")
    return tiny_config(*MVIT, *[f"video_encoder.{size}=null" for size in sizes])


@pytest.fixture(scope="module")
def encoder(torchvision, config):
    from deepcoro.models.mvit import MViT

    torch.manual_seed(0)
    made = MViT.from_config(16, 224, config.video_encoder).eval()
    made.prepare_masking()
    for name, parameter in made.named_parameters():  # what starts at 0 or 1 could be left out unseen
        if parameter.ndim == 1 and "mask_token" not in name:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return made


@pytest.fixture(scope="module")
def clip():
    return torch.randn(1, 16, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def dense(encoder, clip):
    with torch.no_grad():
        return encoder(clip)


def test_the_tokens_are_those_that_torchvision_classifies_by(torchvision, encoder, clip, dense):
    theirs = torchvision.models.video.mvit_v2_s(weights=None).eval()
    theirs.load_state_dict(encoder.backbone.state_dict(), strict=False)
    seen = []
    theirs.norm.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        theirs(clip.unsqueeze(1).expand(-1, 3, -1, -1, -1))
    assert dense.shape == (1, 1 + 392, 768) and encoder.num_prefix_tokens == 1
    assert encoder.grid == (8, 7, 7) and math.prod(encoder.grid) == 392
    assert torch.allclose(dense, seen[0], atol=1e-5)


def test_three_channels_are_normalised_as_the_weights_were(encoder, clip, monkeypatch):
    grey = clip * 40 + 100
    rgb = []
    monkeypatch.setattr(encoder, "tokens", lambda x, _: rgb.append(x) or torch.zeros(1, 393, 768))
    encoder(clip)
    assert torch.equal(rgb[0], clip.unsqueeze(1).expand(-1, 3, -1, -1, -1))
    encoder.take_images_of(100.0, 40.0, (0.45, 0.3, 0.2), (0.225, 0.1, 0.5))
    try:
        encoder(clip)
    finally:
        encoder.take_images_of(0.0, 255.0, (0.0,) * 3, (1.0,) * 3)
    for channel, (mean, deviation) in enumerate(((0.45, 0.225), (0.3, 0.1), (0.2, 0.5))):
        assert torch.allclose(rgb[1][:, channel], (grey / 255 - mean) / deviation, atol=1e-4)


def test_hidden_pixels_cannot_reach_visible_tokens_and_visible_ones_do(encoder, clip):
    order = torch.randperm(392, generator=torch.Generator().manual_seed(2))[None]
    visible, hidden = order[:, :98], order[:, 98:]
    tubelets = patchify(clip, (2, 32, 32))

    def changed(places):
        noise = torch.randn(1, places.shape[1], 2048) * 100
        spread = places.unsqueeze(-1).expand(-1, -1, 2048)
        return unpatchify(tubelets.scatter(1, spread, noise), (8, 7, 7), (2, 32, 32))

    with torch.no_grad():
        before, other = encoder(clip, visible), encoder(changed(hidden), visible)
        assert before.shape == (1, 1 + 98, 768)
        assert torch.equal(before, other)
        assert not torch.allclose(encoder(changed(visible[:, :1]), visible), before, atol=1e-3)


def test_showing_all_tokens_in_any_order_is_the_dense_forward(encoder, clip, dense):
    order = torch.randperm(392, generator=torch.Generator().manual_seed(3))[None]
    with torch.no_grad():
        shown = encoder(clip, order)
    assert torch.allclose(shown[:, :1], dense[:, :1], atol=1e-5)
    assert torch.allclose(shown[:, 1:], gather_tokens(dense[:, 1:], order), atol=1e-5)


def test_a_hidden_token_is_eight_by_eight_of_the_stems(encoder, clip):
    """Behind the stem exactly those hold the mask token that lie in the tubelet of the hidden token."""
    seen = []

    def stop(_, args):
        seen.append(args[0])
        raise StopHere

    hook = encoder.backbone.pos_encoding.register_forward_pre_hook(stop)
    hidden = torch.tensor([2 * 49 + 3 * 7 + 5])  # time 2, row 3, column 5
    visible = torch.tensor([[n for n in range(392) if n != hidden]])
    with pytest.raises(StopHere), torch.no_grad():
        encoder(clip, visible)
    hook.remove()
    masked = (seen[0][0] == encoder.stem_mask_token).all(dim=-1).unflatten(0, (8, 56, 56)).nonzero()
    assert {tuple(place) for place in masked.tolist()} == {(2, y, x) for y in range(24, 32) for x in range(40, 48)}


class StopHere(Exception):
    pass


@pytest.mark.long
def test_every_trainable_parameter_learns(torchvision, config, tiny_model, random_batch):
    config = config.override(["video_encoder.checkpoint_activations=true"])
    model = tiny_model(config).train()
    optimizer = build_optimizer(model, config.optim)
    weights = {"contrastive": 1.0, "captioning": 1.0, "masked_modeling": 0.1}
    batch = random_batch(config, rows=1)
    result = train_step(model, MultitaskLoss(), optimizer, [batch], weights, config.num_visible)
    assert all(torch.isfinite(value) for value in result.losses.values())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, p in trained.items() if p.grad is None]
    idle = {name for name, p in trained.items() if not (p.grad != 0).any()}
    assert not [name for name in idle if not name.endswith("key.bias")]
    assert "video_encoder.stem_mask_token" in trained


def test_its_tokens_and_relative_positions_are_not_decayed(torchvision, config, tiny_model):
    model = tiny_model(config)
    groups = build_optimizer(model, config.optim).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    named = [(name, id(p) in decayed) for name, p in model.video_encoder.named_parameters()]
    assert not [name for name, is_decayed in named if is_decayed and ("rel_pos" in name or "token" in name)]
    assert ("backbone.blocks.0.attn.qkv.weight", True) in named


def test_the_lowest_blocks_may_be_frozen(torchvision, config, tiny_model):
    encoder = tiny_model(config.override(["video_encoder.freeze=0.25"])).video_encoder
    below = ("backbone.conv_proj.", "backbone.pos_encoding.", *[f"backbone.blocks.{n}." for n in range(4)])
    still = [name for name, p in encoder.named_parameters() if not p.requires_grad]
    assert still == [name for name, _ in encoder.named_parameters() if name.startswith(below)]
    assert encoder.stem_mask_token.requires_grad


def test_without_masked_modelling_there_is_no_mask_token(torchvision, config, tiny_model):
    model = tiny_model(config.override(["loss.weights.masked_modeling=0"]))
    assert model.video_encoder.stem_mask_token is None
    with pytest.raises(ValueError, match="prepare_masking"):
        model.video_encoder(torch.zeros(1, 16, 224, 224), torch.zeros(1, 3, dtype=torch.long))


def test_drop_path_rises_to_the_last_block(torchvision):
    from deepcoro.models.mvit import MViT

    blocks = MViT(drop_path=0.3, pool="mean").backbone.blocks
    assert [block.stochastic_depth.p for block in blocks] == pytest.approx([0.3 * n / 15 for n in range(16)])


def test_other_clips_are_refused_with_both_shapes(encoder):
    from deepcoro.models.mvit import MViT

    with pytest.raises(ValueError, match=r"expected clips of shape \(16, 224, 224\), received \(16, 112, 112\)"):
        encoder(torch.zeros(1, 16, 112, 112))
    with pytest.raises(ConfigError, match=r"16x224x224, and this config says 8x112x112"):
        MViT.from_config(8, 112, VideoEncoderConfig(name="mvit"))


def test_kinetics_weights_come_by_torchvisions_own_call(torchvision, encoder, tmp_path, monkeypatch):
    """From torch's cache, where the file lies as torchvision would have put it."""
    from deepcoro.models.mvit import MViT

    theirs = torchvision.models.video.mvit_v2_s(weights=None)
    published = torchvision.models.video.MViT_V2_S_Weights.KINETICS400_V1
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(theirs.state_dict(), tmp_path / "checkpoints" / published.url.rsplit("/")[-1])
    ours = MViT(pool="mean")
    lines = ours.load_weights("kinetics400", False, 100.0, 40.0)
    assert published.url in lines[0] and len(lines) == 1
    for name, value in ours.backbone.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])
    normalise = published.transforms()
    wanted = [(100 / 255 - m) / d for m, d in zip(normalise.mean, normalise.std)]
    assert ours.shift.tolist() == pytest.approx(wanted)
    assert ours.scale.tolist() == pytest.approx([40 / 255 / d for d in normalise.std])
    with pytest.raises(ConfigError, match="kinetics400 or a torch file, got 'imagenet'"):
        ours.load_weights("imagenet", False, 100.0, 40.0)


def test_weights_that_cannot_be_had_say_where_to_put_them(torchvision, encoder, tmp_path, monkeypatch):
    from urllib.error import URLError

    def closed(*_, **__):
        raise URLError("the network is closed")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", closed)
    with pytest.raises(ConfigError, match=rf"mvit_v2_s-.*the network is closed.*{tmp_path}/checkpoints"):
        encoder.load_weights("kinetics400", False, 100.0, 40.0)


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        (None, r"not installed: pip install 'deepcoro\[mvit\]'"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", r"torchvision::nms does not exist.*build"),
        ("raise ImportError('libcudart.so.13: cannot open')", r"libcudart.*build that belongs to this torch"),
    ],
)
def test_a_torchvision_that_is_missing_or_of_another_torch_is_told(tmp_path, monkeypatch, inside, said):
    from deepcoro.models.mvit import MViT

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    if inside is None:
        monkeypatch.setitem(sys.modules, "torchvision", None)  # as if there were none
    else:
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "__init__.py").write_text(inside)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=said):
        MViT()


def test_transformers_works_beside_it(torchvision):
    from transformers import BertConfig, BertModel, VideoMAEModel  # noqa: F401
    from transformers.utils import is_torchvision_available

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    out = BertModel(BertConfig(vocab_size=9, **sizes))(torch.ones(1, 3, dtype=torch.long)).last_hidden_state
    assert out.shape == (1, 3, 8)
    assert is_torchvision_available() == (Path(torchvision.__file__).parents[1] in map(Path, sys.path))


def test_memory_and_operations_are_about_those_of_the_model(torchvision, encoder, config, clip):
    from types import SimpleNamespace

    from torch.utils.flop_counter import FlopCounterMode

    from deepcoro.models.passes import passes

    alone = config.override(["loss.weights.contrastive=0", "loss.weights.masked_modeling=0"])
    stages = passes(alone, SimpleNamespace(text_encoder=None, captioning_decoder=None, masked_video_modeling=None), 9)
    own, kept = {p.untyped_storage().data_ptr() for p in encoder.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        encoder(clip)
    assert 0.6 < sum(stage.saved_values for stage in stages) * 4 / sum(size for size, _ in kept.values()) < 1.4
    assert 0.6 < sum(stage.step_flops for stage in stages) / 3 / counter.get_total_flops() < 1.4
