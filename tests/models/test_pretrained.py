"""Published weights in our encoder give what transformers' own forward gives; what does not fit is told."""

import json
import re

import pytest
import torch
import transformers

from deepcoro.config import Config
from deepcoro.errors import CheckpointError, ConfigError
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.image_statistics import image_statistics
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.pretrained import resolve_architecture
from deepcoro.training.checkpoint import save_checkpoint
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import train_step

MEAN, STD = [0.485, 0.31, 0.606], [0.229, 0.35, 0.12]  # three channels that cannot be mixed up
PIXELS = ("data.pixel_mean=105.68", "data.pixel_std=38.95")
COMMON = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
}
VIDEOMAE = {
    "image_size": 24,
    "num_frames": 4,
    "intermediate_size": 40,
    "use_mean_pooling": False,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}
TIMESFORMER = {"image_size": 24, "num_frames": 4, "intermediate_size": 56}
VJEPA2 = {
    "crop_size": 24,
    "frames_per_clip": 4,
    "mlp_ratio": 3,
    "pred_hidden_size": 24,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
    "num_pooler_layers": 1,
}
# Name of the model -> class, config, and what is different from the common fields.
KINDS = {
    "videomae": ("VideoMAEModel", "VideoMAEConfig", VIDEOMAE),
    "videomae without a final norm": ("VideoMAEModel", "VideoMAEConfig", VIDEOMAE | {"use_mean_pooling": True}),
    "videomae without biases": ("VideoMAEModel", "VideoMAEConfig", VIDEOMAE | {"qv_bias": False}),
    "videomae with a decoder": ("VideoMAEForPreTraining", "VideoMAEConfig", VIDEOMAE),
    "videomae with classes": (
        "VideoMAEForVideoClassification",
        "VideoMAEConfig",
        VIDEOMAE | {"use_mean_pooling": True},
    ),
    "timesformer": ("TimesformerModel", "TimesformerConfig", TIMESFORMER),
    "timesformer, joint": (
        "TimesformerModel",
        "TimesformerConfig",
        TIMESFORMER | {"attention_type": "joint_space_time"},
    ),
    "timesformer without biases": ("TimesformerModel", "TimesformerConfig", TIMESFORMER | {"qkv_bias": False}),
    "timesformer with classes": ("TimesformerForVideoClassification", "TimesformerConfig", TIMESFORMER),
    "vjepa2": ("VJEPA2Model", "VJEPA2Config", VJEPA2),
    "vjepa2 without biases": ("VJEPA2Model", "VJEPA2Config", VJEPA2 | {"qkv_bias": False}),
    "vjepa2 with classes": ("VJEPA2ForVideoClassification", "VJEPA2Config", VJEPA2),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """``published(kind, **different)`` -> a checkpoint in the Hugging Face format with every weight at random, and the
    base model that is in it."""
    made = {}

    def make(kind, **different):
        key = (kind, *sorted(different.items()))
        if key not in made:
            model_class, config_class, fields = KINDS[kind]
            config = getattr(transformers, config_class)(**COMMON | fields | different)
            model = getattr(transformers, model_class)(config).eval()
            chance = torch.Generator().manual_seed(len(made))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    noise = torch.randn(parameter.shape, generator=chance)
                    norm = "norm" in name and name.endswith("weight")
                    parameter.copy_(1 + 0.3 * noise if norm else 0.2 * noise)
            folder = tmp_path_factory.mktemp("published")
            model.save_pretrained(folder)
            (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
            made[key] = (folder, getattr(model, model.base_model_prefix, model))
        return made[key]

    return make


@pytest.fixture(scope="module")
def of(tiny_config):
    """``of(source, "section.field=value", ...)`` -> a tiny config that starts from ``source``; nothing given of the
    architecture."""

    def make(source, *assignments):
        text = ("loss.weights.contrastive=0", "loss.weights.captioning=0", *PIXELS)
        pretrained = tiny_config(*text).override([f"video_encoder.pretrained={source}"])
        return pretrained.override(assignments)

    return make


def grey(frames=4, size=24, rows=2):
    return torch.randint(
        0, 256, (rows, frames, size, size), generator=torch.Generator().manual_seed(7), dtype=torch.uint8
    )


def theirs(model, clip):
    """What transformers makes of a grey clip as RGB; tokens along time, then height, then width."""
    mean, std = (torch.tensor(values).view(1, 1, 3, 1, 1) for values in (MEAN, STD))
    colours = (clip[:, :, None].expand(-1, -1, 3, -1, -1).double() / 255 - mean) / std
    with torch.no_grad():
        if model.config.model_type == "vjepa2":
            return model(colours.float(), skip_predictor=True).last_hidden_state
        tokens = model(colours.float()).last_hidden_state
    if model.config.model_type == "timesformer":  # a class token, then place by place
        grid = tokens[:, 1:].unflatten(1, (-1, clip.shape[1])).transpose(1, 2).flatten(1, 2)
        tokens = torch.cat([tokens[:, :1], grid], dim=1)
    return tokens


def ours(model, clip, visible=None):
    with torch.no_grad():
        return model.video_encoder.eval()(model.normalise(clip), visible)


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
        colours = (clip[:, :, None].expand(-1, -1, 3, -1, -1) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
            STD
        ).view(3, 1, 1)
        expected = model(colours, bool_masked_pos=hidden).last_hidden_state
        assert (ours(own, clip, visible) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (
            "videomae",
            {
                "tubelet": (2, 8, 8),
                "attention": "joint",
                "positions": "learned",
                "position_grid": (2, 3, 3),
                "mlp_ratio": 40 / 24,
            },
        ),
        (
            "timesformer",
            {
                "tubelet": (1, 8, 8),
                "attention": "divided",
                "positions": "learned",
                "position_grid": (4, 3, 3),
                "class_token": True,
            },
        ),
        ("timesformer, joint", {"tubelet": (1, 8, 8), "attention": "joint", "class_token": True, "mlp_ratio": 56 / 24}),
        ("vjepa2", {"tubelet": (2, 8, 8), "positions": "rotary_tiled", "position_grid": None, "mlp_ratio": 3.0}),
        ("videomae without a final norm", {"final_norm": False}),
    ],
)
def test_the_description_alone_gives_the_architecture(published, of, tmp_path, kind, fields):
    folder, _ = published(kind)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())  # and no weights
    part = resolve_architecture(of(tmp_path)).video_encoder
    common = {"width": 24, "depth": 2, "num_heads": 2, "patch_norm": False, "norm_eps": 1e-6}
    for key, value in (common | fields).items():
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


def test_values_that_were_given_and_differ_are_all_named(published, of):
    folder, _ = published("videomae")
    same = of(folder, "video_encoder.tubelet=[2, 8, 8]", "video_encoder.mlp_ratio=1.6666667", "video_encoder.pool=mean")
    assert resolve_architecture(same).video_encoder.depth == 2
    config = of(folder, "video_encoder.tubelet=[1, 8, 8]", "video_encoder.depth=3", "video_encoder.patch_norm=true")
    with pytest.raises(ConfigError) as error:
        resolve_architecture(config)
    lines = str(error.value).splitlines()
    assert f"video_encoder.tubelet is (1, 8, 8), and the checkpoint {folder} has (2, 8, 8)" in lines
    assert f"video_encoder.depth is 3, and the checkpoint {folder} has 2" in lines
    assert f"video_encoder.patch_norm is True, and the checkpoint {folder} has False" in lines and len(lines) == 4
    with pytest.raises(ConfigError, match="video_encoder.width is 192"):
        resolve_architecture(of(folder, "video_encoder.size=tiny"))


def test_a_clip_that_does_not_divide_into_the_checkpoints_tubelets(published, of):
    folder, _ = published("videomae")
    with pytest.raises(ConfigError, match=r"5 frames of 24x24 does not divide into tubelets of 2x8x8"):
        resolve_architecture(of(folder, "data.num_frames=5"))


def test_models_that_are_none_of_the_three(of, tmp_path, text_folder):
    with pytest.raises(ConfigError, match=r"'bert' model; videomae, timesformer, vjepa2 .*name=transformers"):
        resolve_architecture(of(text_folder))
    config = transformers.TimesformerConfig(**COMMON | TIMESFORMER | {"attention_type": "space_only"})
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"attention_type 'space_only'; divided_space_time and joint_space_time"):
        resolve_architecture(of(tmp_path))
    transformers.VideoMAEConfig(**COMMON | VIDEOMAE | {"hidden_act": "relu"}).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="hidden_act 'relu'"):
        resolve_architecture(of(tmp_path))


def test_nothing_there_and_torch_files(of, tmp_path):
    with pytest.raises(ConfigError, match=r"pretrained '.*empty'.*nothing could be loaded"):
        (tmp_path / "empty").mkdir()
        resolve_architecture(of(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="torch file of the predecessor.*name=mvit, got 'tubelet'"):
        resolve_architecture(of(tmp_path / "best.pt"))


def altered(folder, tmp_path, change):
    """A copy of a checkpoint whose weights ``change`` has had."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def drop(weights):
    del weights["encoder.layer.1.intermediate.dense.bias"]


def add(weights):
    weights["encoder.layer.1.gamma"] = torch.ones(3)


def reshape(weights):
    weights["encoder.layer.0.layernorm_after.weight"] = torch.ones(5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop, r"missing: encoder\.layer\.1\.intermediate\.dense\.bias"),
        (add, r"without a place here: encoder\.layer\.1\.gamma"),
        (reshape, r"of another shape: encoder\.layer\.0\.layernorm_after\.weight \(expected \(24,\), received \(5,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_unless_allowed(published, of, tmp_path, change, says):
    folder = altered(published("videomae")[0], tmp_path, change)
    with pytest.raises(ConfigError, match=says) as error:
        MultitaskModel.from_sources(of(folder))
    assert "allow_mismatch=true" in str(error.value)
    model = MultitaskModel.from_sources(of(folder, "video_encoder.allow_mismatch=true"))
    (line,) = [line for line in model.loaded if "WARNING" in line]
    assert re.search(says, line)
    assert ours(model, grey()).isfinite().all()


def test_damaged_weights_are_told_without_a_trace(published, of, tmp_path):
    folder = altered(published("videomae")[0], tmp_path, lambda weights: None)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="nothing could be loaded"):
        MultitaskModel.from_sources(of(folder))


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("videomae with a decoder", "decoder, encoder_to_decoder, mask_token"),
        ("videomae with classes", "classifier, fc_norm"),
        ("vjepa2 with classes", "classifier, pooler"),
        ("timesformer with classes", "classifier"),
    ],
)
def test_heads_of_another_task_are_left_out_and_said(published, of, kind, part):
    lines = MultitaskModel.from_sources(of(published(kind)[0])).loaded
    assert any(f"{part} of the checkpoint is for another task" in line for line in lines)


def test_where_means_and_deviations_come_from(published, tmp_path):
    folder, _ = published("videomae")
    mean, std, line = image_statistics(str(folder))
    assert mean == pytest.approx(MEAN) and std == pytest.approx(STD) and "as preprocessor_config.json" in line
    mean, std, line = image_statistics(str(tmp_path))
    assert mean == [0.485, 0.456, 0.406] and std == [0.229, 0.224, 0.225] and "ImageNet's" in line
    # Grey 100 by hand: 100 / 127.5 = 0.784..., less 1, over 0.5.
    said = {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1, 1], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(said))
    mean, std, line = image_statistics(str(tmp_path))
    assert (100 / 255 - mean[0]) / std[0] == pytest.approx((100 / 127.5 - 1) / 0.5)
    assert "as video_preprocessor_config.json" in line
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    mean, std, _ = image_statistics(str(tmp_path))
    assert [(100 / 255 - mean[c]) / std[c] for c in range(3)] == pytest.approx([100 / 255] * 3)
    (tmp_path / "video_preprocessor_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="needs image_mean and image_std"):
        image_statistics(str(tmp_path))


def test_as_many_statistics_as_channels(published, of, tmp_path):
    folder = altered(published("videomae")[0], tmp_path, lambda weights: None)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5], "image_std": [0.5]}))
    with pytest.raises(ConfigError, match="takes 3 channels, and there are 1 means and 1 deviations"):
        MultitaskModel.from_sources(of(folder))


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


@pytest.fixture
def trained(tiny_config, tmp_path):
    """``trained("section.field=value", ...)`` -> a run with a checkpoint whose weights are all at random, its model."""

    def make(*assignments):
        config = tiny_config(*assignments)
        model = MultitaskModel.from_sources(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        save_checkpoint(tmp_path / "first", 3, model, {"step": 3}, config, "made-for-tests")
        save_checkpoint(tmp_path / "first", 20, model, {"step": 20}, config, "made-for-tests")
        return tmp_path / "first", model.eval()

    return make


@pytest.mark.parametrize("where", [".", "checkpoints/3"])
def test_a_run_of_ours_is_a_source(trained, of, tiny_config, where):
    run, model = trained("video_encoder.attention=divided", "video_encoder.class_token=true", "video_encoder.depth=1")
    config = tiny_config().override([f"video_encoder.pretrained={run / where}"])
    own = MultitaskModel.from_sources(config)
    assert own.config.video_encoder.attention == "divided" and own.config.video_encoder.depth == 1
    assert torch.equal(ours(own, grey()), ours(model, grey()))
    tokens = ours(own, grey())
    assert torch.equal(own.video_encoder.pool(tokens), model.video_encoder.pool(tokens))
    step = "20" if where == "." else "3"
    assert own.loaded[0].endswith(f"weights of {run / 'checkpoints' / step}") and len(own.loaded) == 1
    with pytest.raises(ConfigError, match="video_encoder.depth is 2, and the checkpoint .* has 1"):
        resolve_architecture(config.override(["video_encoder.depth=2"]))


def test_its_pixels_are_taken_over(trained, of):
    run, model = trained("video_encoder.patch_norm=false")  # 100 and 40
    own = MultitaskModel.from_sources(of(run))  # 105.68 and 38.95
    assert (ours(own, grey()) - ours(model, grey())).abs().max() < 1e-4
    assert any("takes up exactly" in line for line in own.loaded)
    assert not torch.allclose(own.video_encoder.embed.bias, model.video_encoder.embed.bias)


def test_pixels_that_are_normalised_by_tubelet_hardly_need_to_be(trained, of):
    run, model = trained()
    own = MultitaskModel.from_sources(of(run))
    assert (ours(own, grey()) - ours(model, grey())).abs().max() < 1e-3
    assert any("almost flat" in line for line in own.loaded)


@pytest.mark.parametrize("positions", ["sincos", "learned", "rotary"])
def test_a_run_on_clips_of_another_size(trained, of, positions):
    run, _model = trained(f"video_encoder.positions={positions}")
    own = MultitaskModel.from_sources(of(run, "data.frame_size=48"))
    assert own.config.video_encoder.position_grid == (None if positions == "rotary" else (2, 3, 3))
    assert ours(own, grey(4, 48)).isfinite().all()


def test_another_way_of_pooling_begins_anew(trained, tiny_config):
    run, _ = trained("video_encoder.pool=mean")
    own = MultitaskModel.from_sources(tiny_config().override([f"video_encoder.pretrained={run}"]))
    assert any("pool begins at random" in line for line in own.loaded)


def test_a_run_without_checkpoints_and_a_damaged_one(trained, of, tmp_path):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="run without a checkpoint"):
        resolve_architecture(of(tmp_path / "empty"))
    run, _ = trained()
    path = run / "checkpoints" / "20" / "model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="is not what was saved"):
        MultitaskModel.from_sources(of(run))


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
