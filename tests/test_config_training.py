"""Lengths of a run, and which loss is computed when."""

import itertools

import pytest

from deepcoro.config import Config
from deepcoro.config_training import in_steps
from deepcoro.errors import ConfigError
from deepcoro.losses.multitask import LossWeightScheduler

SCHEDULED = ("loss.use_scheduler=true", "loss.warmup_steps=2")


@pytest.mark.parametrize(
    ("length", "steps"),
    # Of a run of 400 steps, 50 of them an epoch.
    [
        ("500 steps", 500), ("1 step", 1), ("0 steps", 0), ("7steps", 7), ("2 epochs", 100), ("1 epoch", 50),
        ("0.5 epochs", 25), ("0.05", 20), ("0.0", 0), ("1.0", 400), ("2.5e-2", 10),
    ],
)  # fmt: skip
def test_lengths_by_hand(length, steps):
    assert in_steps(length, 400, 50.0) == steps
    assert in_steps(length, 400) == (None if "epoch" in length else steps)


@pytest.mark.parametrize(
    "value",
    ["500", "1", "0", "-5 steps", "1.5", "-0.1", "2.5 steps", "2 weeks", "steps", "true", "[1]", "1.2.3 epochs"],
)
def test_a_length_that_says_nothing_is_refused(value):
    with pytest.raises(ConfigError, match="optim.warmup.*'500 steps', '2 epochs' or a share of the run such as 0.05"):
        Config().override([f"optim.warmup={value}"])


def test_lengths_survive_a_file(tmp_path):
    given = ["optim.warmup=0.05", "optim.schedule=step", "optim.milestones=[3000 steps, 0.5]", "optim.schedule_end=0.9"]
    config = Config().override(given)
    config.save(tmp_path / "config.yaml")
    assert Config.load(tmp_path / "config.yaml") == config
    assert config.optim.milestones_in(10000) == [3000, 5000]
    assert (config.optim.warmup_in(10000), config.optim.end_in(10000)) == (500, 9000)


def test_epochs_become_steps_once_they_are_known():
    config = Config().override(
        ["optim.warmup=2 epochs", "optim.schedule_end=100 epochs", "optim.milestones=[0.5, 90 epochs]"]
    )
    optim = config.optim
    assert (optim.warmup_in(10000), optim.end_in(10000), optim.milestones_in(10000)) == (None, None, None)
    changes = optim.in_step_counts(10000, 62.5)
    assert changes == {"warmup": "125 steps", "schedule_end": "6250 steps", "milestones": ["0.5", "5625 steps"]}
    taken = config.merge({"optim": changes})
    assert taken.optim.warmup_in(10000) == 125
    assert taken.optim.in_step_counts(10000, 62.5) == {}
    with pytest.raises(ConfigError, match=r"optim.warmup \(20000 steps\) 20000 must be below training.num_steps 10000"):
        config.merge({"optim": optim.in_step_counts(10000, 10000)})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["optim.warmup_steps=10000"], "optim.warmup_steps 10000 must be below training.num_steps 10000"),
        (["optim.warmup=10000 steps"], "10000 must be below training.num_steps 10000"),
        (["optim.warmup=1.0"], r"optim.warmup \(1.0\) 10000 must be below"),
        (["optim.warmup=0.5", "optim.schedule_end=0.5"], "5000 must be below optim.schedule_end, step 5000"),
        (["optim.schedule=step", "optim.milestones=[0.5, 0.4]"], r"must rise.*\[5000, 4000\]"),
        (["optim.schedule=step", "optim.milestones=[0.05]"], "follow after the warm-up of 1000"),
        (["optim.schedule=sine"], "optim.schedule"),
        (["optim.layer_decay=0"], "optim.layer_decay"),
        (["optim.layer_decay=1.1"], "optim.layer_decay"),
        (["optim.milestone_factor=1"], "optim.milestone_factor"),
        (["loss.start_fraction.captioning=1"], "loss.start_fraction.captioning.*less than 1"),
        (["loss.start_fraction.captioning=-0.1"], "loss.start_fraction.captioning"),
        (["loss.weights.captioning=-1"], "loss.weights.captioning"),
        (["captioning.chunk_size=0"], "captioning.chunk_size"),
    ],
)
def test_plans_that_cannot_be_are_refused(given, says):
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        Config().override(given)


def test_a_warm_up_by_length_is_the_one_that_counts():
    """The default of warmup_steps must not stand in the way of a short run that says its own."""
    config = Config().override(["training.num_steps=100", "optim.warmup=0.1"])
    assert config.optim.warmup_in(100) == 10


def test_schedules_may_end_after_the_run():
    Config().override(["optim.schedule_end=20000 steps"])
    Config().override(["optim.schedule=step", "optim.milestones=[5000 steps, 20000 steps]"])
    Config().override(["loss.use_scheduler=true", "loss.total_steps=20000"])


def test_when_a_loss_is_computed_is_when_its_weight_is_above_zero(tiny_config):
    """All 10 steps of every combination, against the scheduler's own weights."""
    seen = set()
    for kind, initial, final, start, total in itertools.product(
        ("linear", "cosine", "step"), (0, 1), (0, 1), (0.0, 0.35), (3, 8, 30)
    ):
        given = [*SCHEDULED, f"loss.schedule_type={kind}", f"loss.total_steps={total}"]
        given += [f"loss.initial.captioning={initial}", f"loss.final.captioning={final}"]
        given += [f"loss.start_fraction.captioning={start}"]
        try:
            config = tiny_config(*given)
        except ConfigError as error:
            assert "loss captioning weighs 0 at all 10 steps" in str(error)
            seen.add("refused")
            parts = {"captioning": float(initial)}, {"captioning": float(final)}
            scheduler = LossWeightScheduler(*parts, 2, total, kind, {"captioning": start}, 10)
            assert not any(scheduler.weights(step)["captioning"] for step in range(10))
            continue
        if not config.loss.is_used("captioning"):
            assert initial == final == 0
            continue
        scheduler = LossWeightScheduler.from_config(config)
        positive = [step for step in range(10) if scheduler.weights(step)["captioning"] > 0]
        assert list(config.loss.active_steps("captioning", 10)) == positive
        assert config.loss.has_idle_losses(10) == (len(positive) < 10)
        seen.add(len(positive) < 10)
    assert seen == {"refused", True, False}


def test_a_loss_without_any_step_and_a_step_without_any_loss_are_refused(tiny_config):
    with pytest.raises(ConfigError, match="loss captioning weighs 0 at all 10 steps"):
        tiny_config(*SCHEDULED, "loss.schedule_type=step", "loss.initial.captioning=0", "loss.total_steps=10")
    late = [f"loss.start_fraction.{name}=0.5" for name in ("contrastive", "captioning", "masked_modeling")]
    with pytest.raises(ConfigError, match="no loss weighs more than 0 at step 1:"):
        tiny_config(*late)
    assert tiny_config(*late[1:]).loss.has_idle_losses(10)
    between = ["loss.weights.masked_modeling=0", "loss.initial.masked_modeling=0", "loss.final.masked_modeling=0"]
    between += ["loss.final.contrastive=0", "loss.total_steps=4", "loss.start_fraction.captioning=0.6"]
    with pytest.raises(ConfigError, match="no loss weighs more than 0 at step 5:"):
        tiny_config(*SCHEDULED, *between)


def test_the_largest_weights_compute_every_loss():
    config = Config().override(["loss.use_scheduler=true", "loss.initial.captioning=0", "loss.final.contrastive=0"])
    assert config.loss.highest == {
        "contrastive": 1.0,
        "captioning": 1.0,
        "masked_modeling": 0.1,
        "grounding": 0.0,
        "distillation": 0.0,
    }
    assert config.loss.used == ["contrastive", "captioning", "masked_modeling"]
