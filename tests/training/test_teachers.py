"""A teacher of features: how it follows, that nothing trains it, what a run needs to go on, and when it is stopped."""

import numpy as np
import pytest
import torch

from deepcoro.errors import CheckpointError, TrainingError
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.training.checkpoint import load_training_state, load_weights, save_checkpoint
from deepcoro.training.feature_teacher import feature_deviations
from deepcoro.training.optim import build_optimizer, load_optimizer
from deepcoro.training.step import train_step
from deepcoro.training.teachers import Teachers

CPU = torch.device("cpu")
EMA = (
    "masked_modeling.target=ema", "masked_modeling.teacher_momentum=0.5", "masked_modeling.loss_type=smooth_l1",
    "masked_modeling.decoder_drop=0.4", "masked_modeling.visible_weight=0.5", "masked_modeling.visible_warmup_steps=1",
    "training.num_steps=6", "optim.lr=0.01",
)  # fmt: skip
WEIGHTS = {"contrastive": 1.0, "captioning": 1.0, "masked_modeling": 0.1}


class Run:
    """A training loop in small."""

    def __init__(self, config, model):
        self.config, self.model, self.step = config, model.train(), 0
        self.teachers = Teachers(config, self.model, CPU)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.loss, self.told = MultitaskLoss.from_config(config), []

    def take(self, batch, weights=WEIGHTS):
        batch = dict(batch) | {"position": batch["position"] + 4 * self.step}
        torch.manual_seed(self.step)
        self.teachers.teach([batch], weights)
        self.loss.visible_weight = self.config.masked_modeling.visible_weight_at(self.step)
        num_visible = self.config.num_visible
        result = train_step(self.model, self.loss, self.optimizer, [batch], weights, num_visible)
        self.step += 1
        self.teachers.update(self.step)
        self.told.append(self.teachers.look(self.step))
        return result

    def encoder(self):
        return {name: p.detach().clone() for name, p in self.model.video_encoder.named_parameters()}

    def taught(self):
        own = self.teachers.parts["masked_modeling"].teacher.encoder
        return {name: p.detach().clone() for name, p in own.named_parameters()}


@pytest.fixture
def run(tiny_config, tiny_model):
    return lambda *more: Run(tiny_config(*EMA, *more), tiny_model(tiny_config(*EMA, *more)))


def test_it_follows_by_the_formula(run, random_batch):
    made = run("masked_modeling.teacher_momentum_end=0.7")
    expected = {name: value.double() for name, value in made.encoder().items() if not name.startswith("pool.")}
    for step in range(4):
        made.take(random_batch(made.config, seed=step))
        momentum, weights = 0.5 + 0.2 * step / 5, made.encoder()
        for name in expected:
            expected[name] = momentum * expected[name] + (1 - momentum) * weights[name].double()
    found = made.taught()
    assert found.keys() == expected.keys()
    assert max((found[name].double() - expected[name]).abs().max() for name in expected) < 1e-6
    assert max((found[name] - made.encoder()[name]).abs().max() for name in expected) > 1e-3


def test_the_target_is_of_the_teacher_before_the_step(run, random_batch):
    made = run()
    batch = dict(random_batch(made.config))
    made.take(random_batch(made.config, seed=1))
    teacher = made.teachers.parts["masked_modeling"].teacher
    made.teachers.teach([batch], WEIGHTS)
    assert torch.equal(batch["teacher_tokens"], teacher(batch["clip"]))
    other = made.model.video_encoder(made.model.normalise(batch["clip"]).flatten(0, 1))
    assert not torch.allclose(batch["teacher_tokens"], torch.nn.functional.layer_norm(other, (24,)), atol=1e-3)


def test_nothing_but_following_changes_it(run, random_batch):
    made = run("masked_modeling.teacher_momentum=1")
    before = made.taught()
    made.take(random_batch(made.config))
    assert all(torch.equal(value, before[name]) for name, value in made.taught().items())
    teacher = made.teachers.parts["masked_modeling"].teacher
    own = {id(p) for p in teacher.parameters()}
    assert not own & {id(p) for p in made.model.parameters()}  # what DDP and FSDP are given
    assert not own & {id(p) for group in made.optimizer.param_groups for p in group["params"]}
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert any("teacher" in line for line in made.model.loaded)


def test_a_loss_that_begins_late_has_a_teacher_that_begins_then(run, random_batch):
    made = run("loss.start_fraction.masked_modeling=0.5", "masked_modeling.teacher_momentum=1")
    start = made.encoder()
    off = WEIGHTS | {"masked_modeling": 0.0}
    for step in range(3):
        made.take(random_batch(made.config, seed=step), off)
    assert "weights" not in made.teachers.state_dict()["masked_modeling"]
    assert made.told == [{}, {}, {}]
    before = made.encoder()
    made.take(random_batch(made.config, seed=3))
    taught = made.taught()
    assert all(torch.equal(value, before[name]) for name, value in taught.items())
    assert not any(torch.equal(taught[name], start[name]) for name in taught if name.endswith("weight"))


def test_a_run_that_goes_on_is_one_that_never_stopped(run, random_batch, tmp_path):
    whole, first = run(), run()
    for step in range(4):
        whole.take(random_batch(whole.config, seed=step))
    for step in range(2):
        first.take(random_batch(first.config, seed=step))
    state = {
        "optimizer": first.optimizer.state_dict(), "teachers": first.teachers.state_dict(), "step": 2,
    }  # fmt: skip
    place = save_checkpoint(tmp_path, 2, first.model, state, first.config, "d")
    again = run()
    load_weights(place, again.model)
    state = load_training_state(place)
    load_optimizer(again.optimizer, state["optimizer"])
    again.teachers.load_state_dict(state["teachers"])
    again.step = state["step"]
    for step in range(2, 4):
        again.take(random_batch(again.config, seed=step))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert all(torch.equal(value, again.taught()[name]) for name, value in whole.taught().items())
    assert whole.told[2:] == again.told


def test_a_step_asks_for_what_it_divides_by(run, random_batch):
    """The loss of a step is the mean over the tokens that were asked for, and of visible ones in their turn."""
    made, batch = run("masked_modeling.loss_type=mse"), None
    for step, weight in ((0, 0.0), (1, 0.5)):
        batch = random_batch(made.config, seed=step)
        batch["valid"][1] = False
        given = dict(batch) | {"position": batch["position"] + 4 * step}
        made.teachers.teach([given], WEIGHTS)
        with torch.no_grad():
            out = made.model(given, made.config.num_visible, ["masked_modeling"])
        kept = [0, 2, 3]
        assert out["target"].shape[1] == 8  # of 13 or 14 hidden ones 0.6
        hidden = (out["prediction"] - out["target"])[kept].square().mean()
        visible = (out["visible_prediction"] - out["visible_target"])[kept].square().mean()
        result = made.take(batch)
        assert result.losses["masked_modeling"].item() == pytest.approx((hidden + weight * visible).item(), rel=1e-5)


def test_the_deviation_is_over_tokens_and_clips():
    chance = np.random.default_rng(0)
    parts = [chance.normal(2, 3, (2, 5, 4)), chance.normal(-1, 1, (1, 5, 4))]
    wanted = np.concatenate([part.reshape(-1, 4) for part in parts]).std(axis=0).mean()
    found = feature_deviations([torch.from_numpy(part) for part in parts], 4)
    of_clips = parts[0].var(axis=0, ddof=1).mean() ** 0.5  # the other batch has one clip
    assert found.tolist() == pytest.approx([wanted, of_clips], rel=1e-12)
    both = feature_deviations([torch.from_numpy(parts[0]), torch.from_numpy(3 * parts[0][:, :, ::-1].copy())], 4)
    assert both[1].item() == pytest.approx(of_clips * 5**0.5, rel=1e-12)
    assert feature_deviations([torch.ones(3, 5, 4)], 4).tolist() == [0, 0]
    assert feature_deviations([torch.ones(0, 5, 4)], 4).isnan().all()
    places = torch.randn(1, 5, 4).expand(3, -1, -1)  # tells places apart, and no clips
    of_tokens, of_clips = feature_deviations([places], 4).tolist()
    assert of_tokens > 0.1 and of_clips == 0


def test_features_that_all_look_alike_stop_the_run(run, random_batch):
    made = run("masked_modeling.collapse_floor=0.1", "masked_modeling.collapse_steps=3")
    made.take(random_batch(made.config))
    healthy = made.told[0]["masked_modeling/target_std"]
    assert 0.2 < healthy <= 1
    encoder = made.teachers.parts["masked_modeling"].teacher.encoder
    with torch.no_grad():
        encoder.norm.weight.zero_()
        encoder.norm.bias.copy_(torch.randn(24))  # every token says this
    step = made.teachers
    for number in (2, 3):
        step.teach([random_batch(made.config)], WEIGHTS)
        assert step.look(number) == pytest.approx(
            {"masked_modeling/target_std": 0, "masked_modeling/target_std_of_clips": 0}, abs=1e-3
        )
    state = step.state_dict()["masked_modeling"]
    assert state["below"] == 2
    step.teach([random_batch(made.config)], WEIGHTS)
    with pytest.raises(TrainingError, match=r"collapsed: at 3 steps in a row, up to step 4.*collapse_floor=0.1.*lower"):
        step.look(4)


def test_one_healthy_step_ends_the_count(run, random_batch):
    made = run("masked_modeling.collapse_steps=2")
    made.teachers.parts["masked_modeling"].below = 1
    made.take(random_batch(made.config))
    assert made.teachers.parts["masked_modeling"].below == 0


def test_a_frozen_teacher_is_known_by_its_weights(tiny_config, tiny_model, tmp_path, random_batch):
    config = tiny_config()
    for name, seed in (("a", 1), ("b", 2)):
        save_checkpoint(tmp_path / name, 1, tiny_model(config, seed), {"step": 1}, config, "d")

    def taught_by(run):
        chosen = tiny_config("masked_modeling.target=frozen", f"masked_modeling.teacher={run}")
        model = tiny_model(chosen)
        return Teachers(model.config, model, CPU)

    teachers = taught_by(tmp_path / "a")
    state = teachers.state_dict()
    assert "weights" not in state["masked_modeling"]  # they are in the other run's checkpoint
    before = [p.clone() for p in teachers.parts["masked_modeling"].teacher.parameters()]
    teachers.update(1)
    assert all(torch.equal(p, q) for p, q in zip(before, teachers.parts["masked_modeling"].teacher.parameters()))
    taught_by(tmp_path / "a" / "checkpoints" / "1").load_state_dict(state)
    with pytest.raises(
        CheckpointError,
        match="other weights in .*b/checkpoints/1 than those that the run began with, of .*a/checkpoints/1",
    ):
        taught_by(tmp_path / "b").load_state_dict(state)


def test_its_precision_is_its_own(run, random_batch):
    seen = []
    for precision in ("fp32", "bf16"):
        made = run(f"masked_modeling.teacher_precision={precision}")
        made.teachers.parts["masked_modeling"].teacher.encoder.embed.register_forward_hook(
            lambda _, __, out: seen.append(out.dtype)
        )
        batch = dict(random_batch(made.config))
        with torch.autocast("cpu", torch.bfloat16):
            made.teachers.teach([batch], WEIGHTS)
        assert batch["teacher_tokens"].dtype == torch.float32
    assert seen == [torch.float32, torch.bfloat16]


def test_without_features_there_is_no_teacher(tiny_config, tiny_model, random_batch):
    model = tiny_model(tiny_config())
    teachers, batch = Teachers(model.config, model, CPU), random_batch(tiny_config())
    before = set(batch)
    teachers.teach([batch], WEIGHTS)
    teachers.update(1)
    assert (teachers.look(1), teachers.state_dict(), set(batch)) == ({}, {}, before)
