"""Video backbones of transformers, wrapped: the same numbers as their own forward, and the contract of an encoder."""

import json

import pytest
import torch
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    TimesformerModel,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEModel,
    ViTConfig,
    ViTModel,
    VivitConfig,
    VivitForVideoClassification,
    VivitModel,
    VJEPA2Config,
)

from deepcoro.config_encoder import VideoEncoderConfig
from deepcoro.errors import ConfigError
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.image_statistics import image_statistics
from deepcoro.models.layers import gather_tokens
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.video_encoder import patchify, unpatchify
from deepcoro.models.wrapped import TransformersEncoder, architecture
from deepcoro.training.checkpoint import load_model, save_checkpoint
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import train_step

SMALL = {
    "image_size": 24,
    "num_frames": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 36,
}
MADE = {
    "vivit": (VivitModel, VivitConfig(tubelet_size=[2, 8, 8], **SMALL)),
    "videomae": (VideoMAEModel, VideoMAEConfig(tubelet_size=2, patch_size=8, use_mean_pooling=False, **SMALL)),
    "timesformer": (TimesformerModel, TimesformerConfig(patch_size=8, **SMALL)),
}
MEAN, STD = [0.48, 0.4, 0.3], [0.23, 0.2, 0.4]
PIXEL_MEAN, PIXEL_STD = 100.0, 40.0


def shaken(model, seed=0):
    """With weights of which none is 0 or 1, so that none could be left out unseen."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=chance) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Small checkpoints by kind, each with what its preprocessor does."""
    made = {}
    for kind, (build, description) in MADE.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        shaken(build(description)).save_pretrained(made[kind])
        (made[kind] / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return made


def wrapped(folder, **fields):
    """A wrapper with the weights of ``folder``, in evaluation mode, ready to hide tokens."""
    part = VideoEncoderConfig(name="transformers", pretrained=str(folder), pool="mean", **fields)
    encoder = TransformersEncoder.from_config(4, 24, part)
    encoder.load_weights(str(folder), False, PIXEL_MEAN, PIXEL_STD)
    encoder.prepare_masking()
    return encoder.eval()


def grey_clips(rows=2, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, 4, 24, 24), generator=chance).float()


def normalised(grey):
    return (grey - PIXEL_MEAN) / PIXEL_STD


@pytest.mark.parametrize("kind", MADE)
def test_tokens_are_those_of_transformers_on_rgb_normalised_channel_by_channel(folders, kind):
    grey = grey_clips()
    rgb = torch.stack([(grey / 255 - m) / s for m, s in zip(MEAN, STD)], dim=2)
    theirs = MADE[kind][0].from_pretrained(folders[kind]).eval()
    encoder = wrapped(folders[kind])
    with torch.no_grad():
        wanted, ours = theirs(pixel_values=rgb).last_hidden_state, encoder(normalised(grey))
    if kind == "timesformer":  # its tokens go along the places first
        assert encoder.grid == (4, 3, 3)
        wanted = torch.stack([wanted[:, 0], *[wanted[:, 1 + p * 4 + t] for t in range(4) for p in range(9)]], dim=1)
    else:
        assert encoder.grid == (2, 3, 3)
    assert encoder.num_prefix_tokens == (0 if kind == "videomae" else 1)
    assert torch.allclose(ours, wanted, atol=1e-4)


@pytest.mark.parametrize("kind", MADE)
def test_hidden_pixels_cannot_reach_visible_tokens_and_visible_ones_do(folders, kind):
    encoder, clip = wrapped(folders[kind]), normalised(grey_clips())
    tubelet = tuple(a // b for a, b in zip(encoder.clip_shape, encoder.grid))
    tubelets = patchify(clip, tubelet)
    n = tubelets.shape[1]
    order = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(row)) for row in range(2)])
    visible, hidden = order[:, : n // 3], order[:, n // 3 :]

    def changed(places):
        spread = places.unsqueeze(-1).expand(-1, -1, tubelets.shape[2])
        return unpatchify(tubelets.scatter(1, spread, torch.randn(tubelets.shape) * 100), encoder.grid, tubelet)

    with torch.no_grad():
        before = encoder(clip, visible)
        assert before.shape == (2, encoder.num_prefix_tokens + n // 3, 24)
        assert torch.equal(encoder(changed(hidden), visible), before)
        # That token itself changes most: the wrapper hides and gathers by the same numbers as it takes pixels apart.
        moved = (encoder(changed(visible[:, 2:3]), visible) - before)[:, encoder.num_prefix_tokens :].norm(dim=-1)
    assert moved.argmax(dim=1).tolist() == [2, 2]


@pytest.mark.parametrize("kind", MADE)
def test_showing_all_tokens_in_any_order_is_the_dense_forward(folders, kind):
    encoder, clip = wrapped(folders[kind]), normalised(grey_clips())
    c = encoder.num_prefix_tokens
    with torch.no_grad():
        dense = encoder(clip)
        order = torch.stack([torch.randperm(dense.shape[1] - c) for _ in range(2)])
        shown = encoder(clip, order)
    assert torch.equal(shown[:, :c], dense[:, :c])
    assert torch.equal(shown[:, c:], gather_tokens(dense[:, c:], order))


@pytest.mark.parametrize("kind", MADE)
def test_the_description_gives_the_architecture(folders, kind):
    found = architecture(str(folders[kind]))
    assert {key: found[key] for key in ("width", "depth", "num_heads", "mlp_ratio", "tubelet", "class_token")} == {
        "width": 24,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 1.5,
        "tubelet": (1 if kind == "timesformer" else 2, 8, 8),
        "class_token": kind != "videomae",
    }


@pytest.fixture(scope="module")
def multitask_config(tiny_config, folders):
    """``multitask_config(kind, ...)`` -> the tiny config with that backbone."""

    def make(kind, *assignments):
        encoder = {"name": "transformers", "pretrained": str(folders[kind]), **architecture(str(folders[kind]))}
        return tiny_config().merge({"video_encoder": encoder}).override(assignments)

    return make


@pytest.mark.parametrize("extra", [(), ("video_encoder.checkpoint_activations=true",)])
@pytest.mark.parametrize("kind", MADE)
def test_every_trainable_parameter_learns(multitask_config, tiny_model, random_batch, kind, extra):
    config = multitask_config(kind, *extra)
    model = tiny_model(config).train()
    optimizer = build_optimizer(model, config.optim)
    weights = {"contrastive": 1.0, "captioning": 1.0, "masked_modeling": 0.1}
    train_step(model, MultitaskLoss(), optimizer, [random_batch(config)], weights, config.num_visible)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert "video_encoder.stem_mask_token" in trained
    assert not [name for name, p in trained.items() if p.grad is None]
    idle = {name for name, p in trained.items() if not (p.grad != 0).any()}
    assert not [name for name in idle if not name.endswith("key.bias")]
    undecayed = [p for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]]
    spared = {name for name, p in trained.items() if any(p is other for other in undecayed)}
    assert {name for name in trained if "cls_token" in name or "mask_token" in name or "_embeddings" in name} <= (
        spared | {"video_encoder.backbone.embeddings.patch_embeddings.projection.weight"}
        | {name for name in trained if name.startswith("text_encoder")}
    )  # fmt: skip


def test_activation_checkpointing_changes_no_gradient(folders):
    gradients = []
    for saves in (False, True):
        torch.manual_seed(0)  # the mask token
        encoder = wrapped(folders["vivit"], checkpoint_activations=saves).train()
        encoder(normalised(grey_clips()), torch.arange(5).expand(2, -1)).square().sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-5)


def test_without_masked_modelling_there_is_no_mask_token(multitask_config, tiny_model):
    model = tiny_model(multitask_config("vivit", "loss.weights.masked_modeling=0"))
    assert model.video_encoder.stem_mask_token is None
    assert not [name for name, _ in model.named_parameters() if "pooler" in name]
    with pytest.raises(ValueError, match="prepare_masking"):
        model.video_encoder(torch.zeros(1, 4, 24, 24), torch.zeros(1, 3, dtype=torch.long))


def test_freezing_goes_from_the_pixels_upwards(multitask_config, tiny_model):
    model = tiny_model(multitask_config("vivit", "video_encoder.freeze=0.5"))
    still = {name for name, p in model.video_encoder.named_parameters() if not p.requires_grad}
    names = [name for name, _ in model.video_encoder.named_parameters()]
    assert still == {name for name in names if name.startswith(("backbone.embeddings.", "backbone.layers.0."))}
    assert still < set(names)


def test_a_checkpoint_brings_the_same_model_back_without_the_source(
    multitask_config, folders, tiny_model, random_batch, tmp_path
):
    config = multitask_config("timesformer")
    model = tiny_model(config).eval()
    model.video_encoder.load_weights(str(folders["timesformer"]), False, PIXEL_MEAN, PIXEL_STD)
    gone = config.merge({"video_encoder": {**config.video_encoder.model_dump(), "pretrained": "/gone/by/then"}})
    place = save_checkpoint(tmp_path, 1, model, {"step": 1}, gone, "dataset-1")
    loaded, loaded_config = load_model(place)
    assert loaded_config == gone
    batch = random_batch(config)
    with torch.no_grad():
        before, after = model(batch, config.num_visible), loaded(batch, config.num_visible)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value)


@pytest.mark.parametrize(
    ("kind", "build", "head"),
    [
        ("vivit", VivitForVideoClassification, "classifier"),
        ("videomae", VideoMAEForPreTraining, "decoder, encoder_to_decoder, mask_token"),
        ("timesformer", TimesformerForVideoClassification, "classifier"),
    ],
)
def test_heads_of_other_tasks_are_left_out_and_named(tmp_path, kind, build, head):
    description = MADE[kind][1]
    if kind == "videomae":
        small = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
        description = VideoMAEConfig(**(description.to_dict() | small | {"decoder_intermediate_size": 8}))
    theirs = shaken(build(description), seed=3)
    theirs.save_pretrained(tmp_path)
    part = VideoEncoderConfig(name="transformers", pretrained=str(tmp_path), pool="mean")
    encoder = TransformersEncoder.from_config(4, 24, part)
    lines = encoder.load_weights(str(tmp_path), False, PIXEL_MEAN, PIXEL_STD)
    assert lines[2:] == [f"left out, of its head: {head}"]
    assert "ImageNet" in lines[1]  # no preprocessor's description there
    for name, value in getattr(theirs, theirs.base_model_prefix).state_dict().items():
        assert torch.equal(encoder.backbone.state_dict()[name], value)
    assert encoder.shift.tolist() == pytest.approx(
        [(PIXEL_MEAN / 255 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )


def test_pixels_are_those_of_vivits_own_processor(folders, tmp_path):
    """Its factor and its offset count, as it applies them itself."""
    from transformers import VivitImageProcessor

    processor = VivitImageProcessor(do_resize=False, do_center_crop=False, image_mean=MEAN, image_std=STD)
    processor.save_pretrained(tmp_path)
    encoder, grey, rgb = wrapped(folders["vivit"]), grey_clips(1), []
    encoder.load_weights(str(folders["vivit"]), False, PIXEL_MEAN, PIXEL_STD)
    mean, deviation, said = image_statistics(str(tmp_path))
    assert "preprocessor_config.json" in said
    encoder.take_images_of(PIXEL_MEAN, PIXEL_STD, mean, deviation)
    encoder.tokens = lambda x, _: rgb.append(x)
    encoder(normalised(grey))
    frames = [frame.expand(3, -1, -1).to(torch.uint8).numpy() for frame in grey[0]]
    theirs = processor(frames, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    assert torch.allclose(rgb[0].transpose(1, 2), theirs.float(), atol=1e-4)


def test_weights_that_do_not_fit_are_named_with_their_shapes(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    MADE["vivit"][1].save_pretrained(tmp_path)
    weights = load_file(folders["vivit"] / "model.safetensors")
    description = json.loads((folders["vivit"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(description))
    del weights["layernorm.bias"]
    weights["layernorm.weight"] = torch.ones(7)
    weights["layers.7.more"] = torch.ones(2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    encoder = wrapped(folders["vivit"])
    with pytest.raises(ConfigError) as caught:
        encoder.load_weights(str(tmp_path), False, PIXEL_MEAN, PIXEL_STD)
    for line in (
        "missing: layernorm.bias",
        "has no place here: layers.7.more",
        "layernorm.weight: expected shape (24,), received (7,)",
        "allow_mismatch",
    ):
        assert line in str(caught.value)
    lines = encoder.load_weights(str(tmp_path), True, PIXEL_MEAN, PIXEL_STD)
    assert "missing: layernorm.bias" in lines and len(lines) == 5


def test_what_cannot_be_wrapped_says_why(folders, tmp_path):
    def made(source, frames=4, size=24, **fields):
        part = VideoEncoderConfig(name="transformers", pretrained=source, pool="mean", **fields)
        return TransformersEncoder.from_config(frames, size, part)

    with pytest.raises(
        ConfigError, match=r"takes clips of 4x24x24, and this config says 8x32x32; set data.num_frames=4"
    ):
        made(str(folders["vivit"]), 8, 32)
    with pytest.raises(ConfigError, match="needs video_encoder.pretrained"):
        made(None)
    with pytest.raises(ConfigError, match=r"'/nowhere/at/all': no description"):
        made("/nowhere/at/all")
    with pytest.raises(ConfigError, match="drop_path is not for"):
        made(str(folders["vivit"]), drop_path=0.1)
    ViTModel(ViTConfig(**{key: value for key, value in SMALL.items() if key != "num_frames"})).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="'vit' is no video backbone"):
        made(str(tmp_path))
    small = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    small |= {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    for more in ({}, {"num_frames": 4, "image_size": 24}):  # it calls them otherwise, and calls its input otherwise too
        VJEPA2Config(crop_size=24, frames_per_clip=4, **small, **more).save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match="V-JEPA 2 is read by video_encoder.name=tubelet"):
            made(str(tmp_path))
    MADE["vivit"][1].save_pretrained(tmp_path / "empty")
    with pytest.raises(ConfigError, match="no weights could be loaded"):
        made(str(tmp_path / "empty")).load_weights(str(tmp_path / "empty"), False, 0.0, 1.0)


def test_clips_of_another_shape_are_refused_with_both(folders):
    with pytest.raises(ValueError, match=r"expected clips of shape \(4, 24, 24\), received \(4, 24, 16\)"):
        wrapped(folders["vivit"])(torch.zeros(1, 4, 24, 16))


def test_masked_modelling_is_refused_where_the_stem_is_not_found(folders):
    encoder = wrapped(folders["vivit"])
    encoder.backbone.embeddings.stem = encoder.backbone.embeddings.patch_embeddings
    del encoder.backbone.embeddings.patch_embeddings
    with pytest.raises(ConfigError, match="no embeddings.patch_embeddings; set loss.weights.masked_modeling=0"):
        encoder.prepare_masking()


def test_tokens_in_another_order_are_refused(folders, monkeypatch):
    """Before the blocks, and behind the stem, where hidden ones are replaced."""
    inside = wrapped(folders["vivit"]).backbone.embeddings
    embeddings, stem = type(inside), type(inside.patch_embeddings)
    straight, of_stem = embeddings.forward, stem.forward
    part = VideoEncoderConfig(name="transformers", pretrained=str(folders["vivit"]), pool="mean")
    monkeypatch.setattr(embeddings, "forward", lambda *args, **more: straight(*args, **more).flip(1))
    with pytest.raises(ConfigError, match="VivitModel cannot be wrapped: the tubelets .* became the tokens"):
        TransformersEncoder.from_config(4, 24, part)
    monkeypatch.setattr(embeddings, "forward", lambda *args, **more: straight(*args, **more)[:, 1:])
    with pytest.raises(ConfigError, match="expected 19 tokens before the first block, received .*18"):
        TransformersEncoder.from_config(4, 24, part)
    monkeypatch.setattr(embeddings, "forward", straight)
    encoder = TransformersEncoder.from_config(4, 24, part)
    monkeypatch.setattr(stem, "forward", lambda *args: of_stem(*args).flip(1))
    with pytest.raises(ConfigError, match="its patch embedding gives no tokens along time"):
        encoder.prepare_masking()


def test_nothing_is_fetched_or_computed_for_a_model_without_weights(multitask_config):
    """The size of a run is estimated from shapes alone."""
    from deepcoro.launch.estimate import empty_model

    config = multitask_config("timesformer")
    assert empty_model(config).num_parameters() == MultitaskModel.from_sources(config).num_parameters()


def test_an_estimate_counts_that_hidden_tokens_are_computed_too(multitask_config, tiny_config):
    from deepcoro.launch.estimate import empty_model
    from deepcoro.models.passes import passes

    plain = tiny_config()
    for config, wanted in ((multitask_config("vivit"), [19, 19]), (plain, [18, plain.num_visible])):
        of_encoder = [p.tokens for p in passes(config, empty_model(config), 9) if p.width == 24 and p.layers == 2]
        assert of_encoder == wanted
