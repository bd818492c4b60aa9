"""Features as the target of masked modelling: what a teacher gives, what is asked of the decoder, and that a target
which does not follow the model cannot be met by saying the same of every clip."""

import pytest
import torch

from deepcoro.config import Config
from deepcoro.config_masking import num_asked
from deepcoro.errors import CheckpointError, ConfigError
from deepcoro.losses.masked_modeling import masked_modeling_loss
from deepcoro.models.draws import clip_numbers
from deepcoro.models.masked_video_modeling import MaskedVideoModeling
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.pretrained import resolve_architecture
from deepcoro.models.video_teacher import following_teacher, frozen_teacher
from deepcoro.training.checkpoint import save_checkpoint

MASKED_ONLY = ("loss.weights.contrastive=0", "loss.weights.captioning=0", "loss.weights.masked_modeling=1")
GRID, K = (2, 3, 3), 4


@pytest.fixture(scope="module")
def other_run(tiny_config, tiny_model, tmp_path_factory):
    """A run of a wider encoder with the same tokens, trained on other grey levels."""
    run = tmp_path_factory.mktemp("runs") / "other"
    config = tiny_config(*MASKED_ONLY, "video_encoder.width=36", "data.pixel_mean=90.0", "data.pixel_std=30.0")
    model = tiny_model(config, seed=3)
    save_checkpoint(run, 2, model, {"step": 2}, config, "d")
    return run, model.eval()


def frozen_config(tiny_config, run, *more):
    return tiny_config(*MASKED_ONLY, "masked_modeling.target=frozen", f"masked_modeling.teacher={run}", *more)


def test_a_teacher_sees_all_tokens_and_gives_them_normalised(tiny_config, tiny_model, random_batch):
    config = tiny_config("data.num_videos=2", "data.unit=study")
    model, batch = tiny_model(config), random_batch(config, rows=3, views=2)
    torch.nn.init.normal_(model.video_encoder.norm.weight, mean=2.0)  # else its tokens are normalised already
    teacher = following_teacher(model.video_encoder, config)
    found = teacher(batch["clip"])
    tokens = model.video_encoder((batch["clip"].flatten(0, 1).float() - 100) / 40).detach().double().numpy()
    centred = tokens - tokens.mean(-1, keepdims=True)
    wanted = centred / (tokens.var(-1, keepdims=True) + 1e-5) ** 0.5
    assert found.shape == (6, 18, 24) and not found.requires_grad
    assert abs(found.numpy() - wanted).max() < 1e-4
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.train().training and not teacher.encoder.blocks[0].training
    assert model.video_encoder.pool is not None  # the model has kept its own


def test_features_at_the_hidden_places_are_the_target(tiny_config, tiny_model, random_batch):
    config = tiny_config(*MASKED_ONLY, "masked_modeling.target=ema")
    model, batch = tiny_model(config), random_batch(config)
    tokens = torch.randn(4, 18, 24, requires_grad=True)
    out = model(batch | {"teacher_tokens": tokens}, 5)
    for row in range(4):
        for place, token in enumerate(batch["mask_order"][row, 0, 5:].tolist()):
            assert torch.equal(out["target"][row, place], tokens[row, token])
    assert out["prediction"].shape == (4, 13, 24)
    masked_modeling_loss(out["prediction"], out["target"], batch["valid"]).backward()
    assert tokens.grad is None and model.video_encoder.embed.weight.grad is not None


def test_the_encoder_of_another_run_teaches_as_it_was_trained(tiny_config, other_run, random_batch):
    run, theirs = other_run
    config = resolve_architecture(frozen_config(tiny_config, run))
    assert config.masked_modeling.teacher_width == 36
    batch = random_batch(config)
    tokens = theirs.video_encoder((batch["clip"].flatten(0, 1).float() - 90) / 30)
    wanted = torch.nn.functional.layer_norm(tokens, (36,))
    assert torch.allclose(frozen_teacher(str(run), "f")(batch["clip"]), wanted, atol=1e-6)
    assert MultitaskModel.from_sources(config).masked_video_modeling.predict.out_features == 36


def test_a_teacher_of_other_tokens_is_refused_with_both_numbers(tiny_config, other_run):
    for other in ("data.num_frames=8", "data.frame_size=48", "video_encoder.tubelet=[1, 8, 8]"):
        with pytest.raises(
            ConfigError, match=r"makes other tokens.*2x3x3 .*4 frames of 24x24 there, \d+x\d+x\d+ .* here"
        ):
            resolve_architecture(frozen_config(tiny_config, other_run[0], other))
    with pytest.raises(ConfigError, match="teacher_width is 24, and the teacher .* has 36"):
        resolve_architecture(frozen_config(tiny_config, other_run[0], "masked_modeling.teacher_width=24"))


def test_a_teacher_that_is_not_there_is_refused(tiny_config, tmp_path):
    with pytest.raises(ConfigError, match="masked_modeling.teacher .*nowhere' is no folder of a run"):
        resolve_architecture(frozen_config(tiny_config, tmp_path / "nowhere"))
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="masked_modeling.teacher .*empty' is a run without a checkpoint"):
        resolve_architecture(frozen_config(tiny_config, tmp_path / "empty"))


@pytest.mark.parametrize(
    ("assignments", "says"),
    [
        (("masked_modeling.target=frozen",), "belong together; they are frozen and None"),
        (("masked_modeling.teacher=x",), "belong together; they are pixels and x"),
        (("masked_modeling.decoder_drop=1",), "less than 1"),
        (
            ("masked_modeling.mask_ratio=0.05", "masked_modeling.decoder_drop=0.9"),
            "0.9 of 1 hidden tokens .*leaves none",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_config, assignments, says):
    with pytest.raises(ConfigError, match=says):
        tiny_config(*assignments)


def test_momentum_and_visible_weight_move_as_they_say():
    part = Config().masked_modeling.model_copy(
        update={
            "teacher_momentum": 0.9,
            "teacher_momentum_end": 1.0,
            "visible_weight": 2.0,
            "visible_warmup_steps": 3,
            "visible_ramp_steps": 3,
        }
    )
    assert [part.momentum_at(step, 11) for step in (0, 5, 10)] == pytest.approx([0.9, 0.95, 1.0])
    assert [part.visible_weight_at(step) for step in range(8)] == [0, 0, 0, 0.5, 1, 1.5, 2, 2]
    assert Config().masked_modeling.momentum_at(7, 11) == 0.99925  # V-JEPA 2


def test_a_share_of_the_hidden_tokens_is_asked_for(tiny_config, tiny_model, random_batch):
    """An exact number, others for each clip, the same wherever the clip stands in a batch; all in an evaluation."""
    config = tiny_config(*MASKED_ONLY, "masked_modeling.decoder_drop=0.5", "data.unit=study", "data.num_videos=2")
    part = tiny_model(config).masked_video_modeling
    assert [num_asked(13, share) for share in (0, 0.5, 0.3)] == [13, 7, 9]
    hidden = torch.stack([torch.randperm(18)[:13] for _ in range(200)])
    clips = clip_numbers(torch.arange(100), 2)
    found = part.asked(hidden, 0, clips)
    assert found.shape == (200, 7)
    assert all(len(set(row)) == 7 and set(row) <= set(of.tolist()) for row, of in zip(found.tolist(), hidden))
    assert torch.equal(part.asked(hidden[[5, 3]], 0, clips[[5, 3]]), found[[5, 3]])
    assert not torch.equal(part.asked(hidden, 1, clips), found)
    kept = torch.isin(
        torch.arange(13).expand(200, -1) + 13 * torch.arange(200)[:, None],
        ((hidden[:, None] == found[:, :, None]).int().argmax(-1) + 13 * torch.arange(200)[:, None]),
    )
    assert (kept.float().mean(0) - 7 / 13).abs().max() < 0.15  # no place is preferred
    model, batch = tiny_model(config).train(), random_batch(config, views=2)
    asked = model(batch, 5)["target"].shape[1]
    assert (asked, model.eval()(batch, 5)["target"].shape[1]) == (7, 13)


def test_visible_tokens_are_predicted_by_the_same_pass():
    torch.manual_seed(0)
    shape = {"decoder_hidden_size": 24, "decoder_layers": 1, "decoder_heads": 2}
    plain, more = (MaskedVideoModeling(24, GRID, 8, **shape, predicts_visible=v) for v in (False, True))
    more.load_state_dict(plain.state_dict())
    order = torch.stack([torch.randperm(18) for _ in range(2)])
    tokens, truth = torch.randn(2, K, 24), torch.randn(2, 18, 8)
    few, all_of_them = (x.pairs(tokens, order[:, :K], order[:, K:], truth) for x in (plain, more))
    assert few.keys() == {"prediction", "target"}
    assert torch.equal(few["prediction"], all_of_them["prediction"])
    assert torch.equal(few["target"], all_of_them["target"])
    assert all_of_them["visible_prediction"].shape == all_of_them["visible_target"].shape == (2, K, 8)
    shown = truth.gather(1, order[:, :K, None].expand(-1, -1, 8))
    wanted = (shown - shown.mean(-1, keepdim=True)) / (shown.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(all_of_them["visible_target"], wanted, atol=1e-6)


def fitted(model, batch, teach, steps):
    """The masked loss that a model reaches whose encoder says the same of every clip, and the least it could reach:
    what is asked for at a place differs from clip to clip, and one answer is given to all (with mse, its variance)."""
    encoder, optimizer = model.video_encoder, torch.optim.Adam(model.parameters(), lr=0.01)
    encoder.register_forward_pre_hook(lambda _, args: (torch.zeros_like(args[0]), *args[1:]))
    losses = []
    for _ in range(steps):
        out = model(teach(batch), model.config.num_visible)
        loss = (out["prediction"] - out["target"]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return min(losses), out["target"].var(dim=0, correction=0).mean().item()


@pytest.mark.parametrize("target", ["pixels", "frozen", "ema"])
def test_a_constant_encoder_cannot_reach_zero_loss(tiny_config, other_run, random_batch, target):
    """Of four clips under one mask. With a teacher that follows the model it can: that is why features are watched."""
    if target == "frozen":
        config = resolve_architecture(frozen_config(tiny_config, other_run[0]))
    else:
        config = tiny_config(*MASKED_ONLY, f"masked_modeling.target={target}")
    torch.manual_seed(0)
    model, batch = MultitaskModel.from_sources(config).train(), random_batch(config)
    batch["mask_order"] = batch["mask_order"][:1].expand(4, -1, -1)
    frozen = frozen_teacher(str(other_run[0]), "f") if target == "frozen" else None

    def teach(batch):
        if target == "pixels":
            return batch
        # The other is what a teacher becomes that follows a model which says the same of every clip.
        return batch | {"teacher_tokens": (frozen or following_teacher(model.video_encoder, config))(batch["clip"])}

    reached, floor = fitted(model, batch, teach, 250 if target == "ema" else 60)
    if target == "ema":
        assert floor < 1e-9 and reached < 0.05
    else:
        assert floor > 0.2 and reached >= floor - 1e-6
