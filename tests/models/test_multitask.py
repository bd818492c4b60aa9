"""Everything a step computes: padding and pads change nothing, and every parameter learns."""

import math

import pytest
import torch

from deepcoro.errors import ConfigError
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.video_encoder import VideoEncoder, patchify
from deepcoro.training.optim import build_optimizer, parameter_groups
from deepcoro.training.step import train_step

STUDY = ("data.unit=study", "data.num_videos=3")


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config()


@pytest.fixture(scope="module")
def model(tiny_model, config):
    return tiny_model(config).eval()


def test_shapes_of_everything(model, config, random_batch):
    out = model(random_batch(config, rows=3, length=9), config.num_visible)
    hidden = config.num_tokens - config.num_visible
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "video_embedding": (3, 12),
        "text_embedding": (3, 12),
        "logit_scale": (),
        "logit_bias": (),
        "caption_logits": (3, 8, config.captioning.vocab_size),
        "prediction": (3, hidden, 128),
        "target": (3, hidden, 128),
    }
    for name in ("video_embedding", "text_embedding"):
        assert torch.allclose(out[name].norm(dim=-1), torch.ones(3), atol=1e-6)
    assert "prediction" not in model(random_batch(config))


def test_no_output_is_a_bare_parameter(tiny_model, config, random_batch):
    """DDP that looks for unused parameters would take it for one of them."""
    out = tiny_model(config).train()(random_batch(config), config.num_visible)
    assert not [name for name, value in out.items() if value.requires_grad and value.grad_fn is None]


def test_scale_and_bias_start_where_the_config_says(tiny_config, tiny_model, config, random_batch):
    built = tiny_model(tiny_config("contrastive.logit_scale=7.0", "contrastive.logit_bias=-3.5"))
    out = built(random_batch(config))
    assert (out["logit_scale"].item(), out["logit_bias"].item()) == (pytest.approx(7.0), -3.5)


def test_pixels_are_normalised_by_the_dataset(model):
    clip = torch.tensor([[60, 100, 255]], dtype=torch.uint8)
    assert torch.allclose(model.normalise(clip), torch.tensor([[-1.0, 0.0, 155 / 40]]))


def test_the_target_is_that_of_the_hidden_pixels(model, config, random_batch):
    batch = random_batch(config, rows=2)
    out = model(batch, config.num_visible)
    clip = (batch["clip"][:, 0].double() - 100) / 40
    for row in range(2):
        for place, token in enumerate(batch["mask_order"][row, 0, config.num_visible :].tolist()):
            values = patchify(clip[row : row + 1], (2, 8, 8))[0, token]
            wanted = (values - values.mean()) / values.std(correction=0)
            assert torch.allclose(out["target"][row, place].double(), wanted, atol=1e-4)
    assert not out["target"].requires_grad
    assert out["prediction"].requires_grad


def test_views_that_are_not_there_change_nothing(tiny_config, tiny_model, random_batch):
    three = tiny_config(*STUDY)
    model, batch = tiny_model(three).eval(), random_batch(three, rows=2, views=3)
    batch["valid"] = torch.tensor([[True, False, False], [True, True, False]])
    before = model(batch)
    changed = dict(batch, clip=batch["clip"].clone())
    changed["clip"][~batch["valid"]] = 255 - changed["clip"][~batch["valid"]]
    after = model(changed)
    alone = model(
        {
            key: value[:1, :1] if key in ("clip", "valid", "angles", "view_index", "mask_order") else value[:1]
            for key, value in batch.items()
        }
    )
    for name in ("video_embedding", "caption_logits"):
        assert torch.allclose(after[name], before[name], atol=1e-6)
        assert torch.allclose(alone[name], before[name][:1], atol=1e-6)
    seen = dict(changed, valid=torch.ones(2, 3, dtype=torch.bool))
    assert not torch.allclose(model(seen)["video_embedding"], before["video_embedding"], atol=1e-4)


def test_the_order_of_views_does_not_matter(tiny_config, tiny_model, random_batch):
    three = tiny_config(*STUDY)
    model, batch = tiny_model(three).eval(), random_batch(three, rows=2, views=3)
    turned = dict(batch, clip=batch["clip"].flip(1))
    for name in ("video_embedding", "caption_logits"):
        assert torch.allclose(model(turned)[name], model(batch)[name], atol=1e-5)


def test_text_padding_changes_nothing(model, config, random_batch):
    batch = random_batch(config, rows=3, length=9)
    wide = dict(batch, input_ids=torch.cat([batch["input_ids"], torch.full((3, 6), 7)], dim=1))
    wide["input_ids"][batch["text_length"][:, None] <= torch.arange(15)] = 11
    before, after = model(batch), model(wide)
    assert torch.allclose(after["text_embedding"], before["text_embedding"], atol=1e-6)
    for row, length in enumerate(batch["text_length"].tolist()):
        logits = [out["caption_logits"][row, : length - 1] for out in (before, after)]
        assert torch.allclose(*logits, atol=1e-5)
    losses = [MultitaskLoss()(out, b) for out, b in ((before, batch), (after, wide))]
    assert torch.allclose(losses[0]["total"], losses[1]["total"], atol=1e-5)


def test_rows_do_not_see_each_other(model, config, random_batch):
    batch = random_batch(config, rows=3)
    alone = model({key: value[1:2] for key, value in batch.items()}, config.num_visible)
    together = model(batch, config.num_visible)
    for name in ("video_embedding", "text_embedding", "caption_logits", "prediction"):
        assert torch.allclose(alone[name], together[name][1:2], atol=1e-5)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize("extra", [(), ("masked_modeling.mask_token_learnable=false",), STUDY])
def test_every_trainable_parameter_receives_a_gradient_and_a_group(tiny_config, tiny_model, random_batch, kind, extra):
    config = tiny_config(f"contrastive.loss_type={kind}", *extra)
    model = tiny_model(config).train()
    optimizer = build_optimizer(model, config.optim)
    batch = random_batch(config, rows=4, views=config.data.num_videos)
    loss, weights = (
        MultitaskLoss(contrastive_loss_type=kind),
        {"contrastive": 1.0, "captioning": 1.0, "masked_modeling": 0.1},
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_step(model, loss, optimizer, [batch], weights, config.num_visible)

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, p in trained.items() if p.grad is None]
    idle = [name for name, p in trained.items() if not (p.grad != 0).any()]
    assert not [name for name in idle if not name.endswith("key.bias")]  # a softmax does not feel the bias of its keys
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} >= trained.keys() - set(
        idle
    )

    members = [id(p) for group in parameter_groups(model, config.optim) for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in trained.values())


def test_masked_modelling_alone_builds_nothing_for_text(tiny_config, random_batch):
    config = tiny_config("loss.weights.contrastive=0", "loss.weights.captioning=0", "text_encoder.name=/nowhere")
    model = MultitaskModel.from_sources(config)
    assert model.text_encoder is None
    assert model.captioning_decoder is None
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"video_encoder", "masked_video_modeling"}
    batch = {
        key: value
        for key, value in random_batch(config).items()
        if key in ("clip", "valid", "mask_order", "has_report")
    }
    assert set(model(batch, config.num_visible)) == {"prediction", "target"}
    optimizer = build_optimizer(model, config.optim)
    train_step(model, MultitaskLoss(), optimizer, [batch], {"masked_modeling": 0.1}, config.num_visible)
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_captioning_alone_builds_no_text_encoder(tiny_config, random_batch):
    config = tiny_config("loss.weights.contrastive=0", "loss.weights.masked_modeling=0", "text_encoder.name=/nowhere")
    model = MultitaskModel.from_sources(config)
    out = model(random_batch(config), config.num_visible)
    assert set(out) == {"caption_hidden", "caption_weight"}
    assert set(model.eval()(random_batch(config), config.num_visible)) == {"caption_logits"}
    model.train()
    optimizer = build_optimizer(model, config.optim)
    train_step(model, MultitaskLoss(), optimizer, [random_batch(config)], {"captioning": 1.0}, config.num_visible)
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_contrastive_alone_builds_no_decoders(tiny_config, tiny_model, random_batch):
    config = tiny_config("loss.weights.captioning=0", "loss.weights.masked_modeling=0")
    out = tiny_model(config)(random_batch(config), config.num_visible)
    assert set(out) == {"video_embedding", "text_embedding", "logit_scale", "logit_bias"}


def test_only_visible_tokens_cost_in_the_masked_pass(model, config, random_batch):
    seen = []
    hook = model.video_encoder.blocks[0].register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    model(random_batch(config), config.num_visible)
    hook.remove()
    assert sorted(seen) == [config.num_visible, config.num_tokens]


def test_in_training_the_logits_are_never_made(config, tiny_model, random_batch):
    """Hidden states and weight, whose product they are; the embedding is trained as input and as output."""
    model, plain, batch = tiny_model(config).double(), tiny_model(config).double(), random_batch(config)
    out, wanted = model.train()(batch), plain.eval()(batch)
    assert "caption_logits" not in out
    assert out["caption_weight"].data_ptr() == model.captioning_decoder.token_embedding.weight.data_ptr()  # no copy
    assert torch.allclose(out["caption_hidden"] @ out["caption_weight"].T, wanted["caption_logits"], atol=1e-12)
    totals = [MultitaskLoss(captioning_chunk_size=5)(o, batch)["captioning"] for o in (out, wanted)]
    assert totals[0].item() == pytest.approx(totals[1].item(), abs=1e-12)
    for total in totals:
        total.backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.allclose(ours.grad, theirs.grad, atol=1e-12), name
    assert model.captioning_decoder.token_embedding.weight.grad.abs().sum() > 0


def test_under_autocast_hidden_states_come_in_the_precision_of_the_product(config, tiny_model, random_batch):
    model, batch = tiny_model(config).train(), random_batch(config)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    assert out["caption_hidden"].dtype == torch.bfloat16
    assert out["caption_weight"].dtype == torch.float32
    assert model(batch)["caption_hidden"].dtype == torch.float32


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        (("contrastive",), {"video_embedding", "text_embedding", "logit_scale", "logit_bias"}),
        (("captioning",), {"caption_hidden", "caption_weight"}),
        (("masked_modeling",), {"prediction", "target"}),
        (("captioning", "masked_modeling"), {"caption_hidden", "caption_weight", "prediction", "target"}),
    ],
)
def test_a_loss_that_is_not_asked_for_is_not_computed(config, tiny_model, random_batch, asked, parts):
    model, called = tiny_model(config).train(), []
    model.video_encoder.register_forward_hook(lambda _, args, __: called.append(len(args)))
    for name in ("text_encoder", "captioning_decoder", "masked_video_modeling"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: called.append(name))
    assert set(model(random_batch(config), config.num_visible, asked)) == parts
    own = {"contrastive": [1, "text_encoder"], "captioning": [1, "captioning_decoder"]}
    own["masked_modeling"] = [2, "masked_video_modeling"]
    assert called == [part for name in asked for part in own[name]]


def test_a_batch_without_anything_valid_is_finite(model, config, random_batch):
    batch = random_batch(config)
    batch |= {"valid": torch.zeros(4, 1, dtype=torch.bool), "has_report": torch.zeros(4, dtype=torch.bool)}
    model.zero_grad()
    total = MultitaskLoss()(model(batch, config.num_visible), batch)["total"]
    total.backward()
    assert total.item() == 0
    for parameter in model.parameters():
        assert parameter.grad is None or (parameter.grad == 0).all()


def test_a_backbone_of_ones_own_is_taken_by_module_and_name(tiny_config, tiny_model):
    built = tiny_model(tiny_config("video_encoder.name=deepcoro.models.video_encoder:VideoEncoder.from_config"))
    assert type(built.video_encoder) is VideoEncoder
    for name in ("resnet", "nowhere.at_all:Net", "deepcoro.models.video_encoder:Nothing", ":Net"):
        with pytest.raises(ConfigError, match="none of tubelet"):
            tiny_model(tiny_config(f"video_encoder.name={name}"))


@pytest.mark.parametrize("bias", ["auto", -math.log(3)])  # of batches of 4
def test_the_sigmoid_starts_near_chance_with_the_bias_of_the_batch(tiny_config, tiny_model, random_batch, bias):
    """With bias -log(B - 1) and no similarity, a row costs log B + (B - 1) log(B / (B - 1))."""
    config = tiny_config(f"contrastive.logit_bias={bias}", "contrastive.logit_scale=1e-6")
    batch = random_batch(config)
    losses = MultitaskLoss()(tiny_model(config).eval()(batch), batch)
    assert losses["contrastive"].item() == pytest.approx(math.log(4) + 3 * math.log(4 / 3), rel=1e-4)
