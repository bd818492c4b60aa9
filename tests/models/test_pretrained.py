"""Published weights in our encoder give what transformers' own forward gives."""

import json

import pytest
import torch

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.pretrained import resolve_architecture
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import train_step
from tests.models.published import KINDS, PIXELS, colours, grey, ours, theirs


@pytest.mark.parametrize("kind", KINDS)
def test_our_forward_is_theirs(published, of, kind):
    folder, model = published(kind)
    own = MultitaskModel.from_sources(of(folder))
    expected, received = theirs(model, grey()), ours(own, grey())
    assert received.shape == expected.shape
    assert expected.std() > 0.1 and (expected[0] - expected[1]).abs().max() > 0.1
    assert (received - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["videomae", "timesformer", "timesformer, joint", "vjepa2"])
def test_visible_tokens_of_a_loaded_encoder(published, of, kind):
    """All of them give the whole forward; of some, VideoMAE's own masked forward is the reference."""
    folder, model = published(kind)
    own = MultitaskModel.from_sources(of(folder))
    clip, prefix = grey(), own.video_encoder.num_prefix_tokens
    whole = ours(own, clip)
    order = torch.stack([torch.randperm(own.video_encoder.num_tokens) for _ in range(2)])
    shown = ours(own, clip, order)
    assert torch.allclose(shown[:, :prefix], whole[:, :prefix], atol=1e-5)
    taken = whole[:, prefix:].gather(1, order[:, :, None].expand(-1, -1, 24))
    assert torch.allclose(shown[:, prefix:], taken, atol=1e-5)
    if kind == "videomae":
        visible = order[:, :7].sort(dim=1).values
        hidden = torch.ones(2, 18, dtype=torch.bool).scatter(1, visible, False)
        with torch.no_grad():
            expected = model(colours(clip), bool_masked_pos=hidden).last_hidden_state
        assert (ours(own, clip, visible) - expected).abs().max() < 1e-4


def test_one_that_takes_grey_clips(published, of, tmp_path):
    folder, model = published("videomae", num_channels=1)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.4, "image_std": 0.3}))
    own = MultitaskModel.from_sources(of(folder))
    with torch.no_grad():
        expected = model((grey()[:, :, None] / 255 - 0.4) / 0.3).last_hidden_state
    assert (ours(own, grey()) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["videomae", "timesformer", "vjepa2"])
def test_another_size_and_length(published, of, kind):
    """Interpolated positions of a table that is affine in the coordinates, by hand; turning ones go on."""
    folder, _ = published(kind)
    model = MultitaskModel.from_sources(of(folder, "data.num_frames=8", "data.frame_size=48"))
    encoder = model.video_encoder
    assert encoder.grid == ((8 if kind == "timesformer" else 4), 6, 6)
    assert ours(model, grey(8, 48)).shape == (2, encoder.num_prefix_tokens + encoder.num_tokens, 24)
    if kind == "vjepa2":
        assert not any("interpolated" in line for line in model.loaded)
        return
    t = 4 if kind == "timesformer" else 2
    assert any(f"made for a grid of ({t}, 3, 3), are interpolated to {encoder.grid}" in line for line in model.loaded)
    with torch.no_grad():
        place = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float32) for n in (t, 3, 3)])
        encoder.position_embedding.zero_()
        encoder.position_embedding[:, :3] = place
        # Twice as many tokens: their middles lie at -0.25, 0.25, 0.75, ... of the old ones, held at the edges.
        axes = [(torch.arange(2 * n) / 2 - 0.25).clamp(0, n - 1) for n in (t, 3, 3)]
        assert torch.allclose(encoder._added_positions()[:, :3], torch.cartesian_prod(*axes), atol=1e-6)


ARCHITECTURES = {
    "videomae": {"tubelet": (2, 8, 8), "positions": "learned", "position_grid": (2, 3, 3), "mlp_ratio": 40 / 24},
    "videomae without a final norm": {"final_norm": False, "class_token": False},
    "timesformer": {"tubelet": (1, 8, 8), "attention": "divided", "position_grid": (4, 3, 3), "class_token": True},
    "timesformer, joint": {"tubelet": (1, 8, 8), "attention": "joint", "class_token": True, "mlp_ratio": 56 / 24},
    "vjepa2": {"tubelet": (2, 8, 8), "positions": "rotary_tiled", "position_grid": None, "mlp_ratio": 3.0},
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_description_alone_gives_the_architecture(published, of, tmp_path, kind):
    folder, _ = published(kind)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())  # and no weights
    part = resolve_architecture(of(tmp_path)).video_encoder
    common = {"width": 24, "depth": 2, "num_heads": 2, "patch_norm": False, "norm_eps": 1e-6}
    for key, value in (common | ARCHITECTURES[kind]).items():
        assert getattr(part, key) == value, key
    assert part.is_resolved and not of(tmp_path).video_encoder.is_resolved


def test_a_config_without_a_source_stays_as_it_is(tiny_config):
    config = tiny_config()
    assert resolve_architecture(config) is config


def test_a_resolved_config_needs_its_source_no_longer_and_survives_being_saved(published, of, tmp_path):
    folder, _ = published("timesformer")
    config = resolve_architecture(of(folder))
    assert resolve_architecture(config) == config
    config.save(tmp_path / "config.yaml")
    assert Config.load(tmp_path / "config.yaml") == config
    fields = config.video_encoder.model_dump()
    gone = config.merge({"video_encoder": fields | {"pretrained": "/nowhere"}})
    assert resolve_architecture(gone) == gone
    another = config.merge({"video_encoder": fields | {"pretrained": str(published("vjepa2")[0])}})
    with pytest.raises(ConfigError, match=r"video_encoder.tubelet is \(1, 8, 8\), and the checkpoint"):
        resolve_architecture(another)


def test_gradients_reach_all_loaded_weights(published, of):
    for kind in ("videomae", "timesformer", "vjepa2"):
        model = MultitaskModel.from_sources(of(published(kind)[0])).train()
        encoder = model.video_encoder
        (encoder(model.normalise(grey())) * torch.randn(24)).square().mean().backward()
        without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert without == []


def test_a_whole_model_starts_from_a_folder_and_trains(published, tiny_config, random_batch):
    folder, reference = published("timesformer with classes")
    config = tiny_config(*PIXELS).override([f"video_encoder.pretrained={folder}", "optim.lr=0.001"])
    model = MultitaskModel.from_sources(config)
    config = model.config
    assert any("pool begins at random" in line for line in model.loaded)
    assert (ours(model, grey()) - theirs(reference, grey())).abs().max() < 1e-4
    before = {name: value.clone() for name, value in model.video_encoder.state_dict().items()}
    loss, optimizer = MultitaskLoss.from_config(config), build_optimizer(model, config.optim)
    batch = random_batch(config)
    result = train_step(model.train(), loss, optimizer, [batch], loss.loss_weights, config.num_visible)
    assert result.total.isfinite()
    assert all(not torch.equal(before[name], value) for name, value in model.video_encoder.state_dict().items())


def test_a_wrapped_backbone_reads_its_own_weights(tiny_config, monkeypatch):
    from deepcoro.models import backbones
    from deepcoro.models.video_encoder import VideoEncoder

    class Wrapped(VideoEncoder):
        def load_weights(self, source, allow_mismatch, pixel_mean, pixel_std):
            return [f"{source} {allow_mismatch} {pixel_mean:.2f} {pixel_std:.2f}"]

    monkeypatch.setattr(backbones, "Wrapped", Wrapped, raising=False)
    config = tiny_config(*PIXELS).merge(
        {"video_encoder": {"name": "deepcoro.models.backbones:Wrapped.from_config", "pretrained": "mine"}}
    )
    tiny = {"width": 24, "depth": 2, "num_heads": 2, "tubelet": (2, 8, 8)}
    model = MultitaskModel.from_sources(config.merge({"video_encoder": tiny}))
    assert model.loaded == ["video encoder: mine False 105.68 38.95"]
    plain = {"name": "deepcoro.models.video_encoder:VideoEncoder.from_config", "pretrained": "mine"}
    with pytest.raises(ConfigError, match="no method load_weights"):
        MultitaskModel.from_sources(tiny_config().merge({"video_encoder": tiny | plain}))
