"""What is told of a run before it starts."""

import json

import pytest

from deepcoro.errors import ConfigError
from deepcoro.launch.progress import model_lines
from deepcoro.training.board import MODEL_FILE, describe_model
from deepcoro.training.optim import parameter_groups
from deepcoro.training.plan import training_plan

RATES = ("optim.lr=1e-1", "optim.text_lr=1e-2", "optim.captioning_lr=1e-3", "optim.mvm_lr=1e-4", "optim.logit_lr=1e-5")


@pytest.fixture(scope="module")
def plan_of(tiny_config, tiny_model):
    def plan(*given):
        config = tiny_config(*RATES, *given)
        return training_plan(config, parameter_groups(tiny_model(config), config.optim))

    return plan


def cells(lines, name):
    """What stands in the line that begins with ``name``."""
    (line,) = (line for line in lines if line.strip().startswith(name + " "))
    return line.strip().removeprefix(name).split()


def test_first_middle_and_last_step_by_hand(plan_of):
    """9 steps of which 2 warm up: half the peak at step 1, and step 5 is a third of the way from step 3 to step 9."""
    lines = plan_of("training.num_steps=9", "optim.schedule=linear", "loss.weights.captioning=0.25")
    assert lines[0] == "plan: 9 steps, 2 of warm-up, then linear to 0 of the peak"
    assert cells(lines, "step") == ["1", "5", "9"]
    assert cells(lines, "learning rate, video") == ["0.05", "0.0667", "0"]
    assert cells(lines, "learning rate, logit") == ["5e-06", "6.67e-06", "0"]
    assert cells(lines, "loss weight, captioning") == ["0.25"] * 3
    assert cells(lines, "loss weight, masked_modeling") == ["0.1"] * 3
    assert not [line for line in lines if "distillation" in line or "only" in line]


def test_groups_with_their_counts(plan_of, tiny_config, tiny_model):
    config = tiny_config()
    model = tiny_model(config)
    lines = plan_of("optim.weight_decay=0.5")
    rows = [line.split() for line in lines[lines.index(next(x for x in lines if "peak rate" in x)) + 1 :]]
    assert sum(int(row[1]) for row in rows) == sum(p.requires_grad for p in model.parameters())
    assert sum(int(row[2].replace(",", "")) for row in rows) == sum(p.numel() for p in model.parameters())
    assert rows[-1][0] == "masked_modeling" or rows[-1][0] == "logit"
    (logit,) = (row for row in rows if row[0] == "logit")
    assert logit == ["logit", "2", "2", "1e-05", "0"]
    assert {row[-1] for row in rows if row[0] == "video"} == {"0.5", "0"}


def test_layer_decay_shows_its_lowest_and_highest_rate(plan_of):
    lines = plan_of("optim.layer_decay=0.5")
    assert "layer decay 0.5: rates are those of the uppermost parts" in " ".join(lines)
    assert cells(lines, "learning rate, video")[0] == "0.05"  # the first of two steps of warm-up
    assert [line for line in lines if line.strip().startswith("video ") and "0.025 to 0.1" in line]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["optim.schedule=constant"], "10 steps, 2 of warm-up, then constant"),
        (["optim.warmup=0.3"], "10 steps, 3 of warm-up, then cosine"),
        (["optim.schedule_end=20 steps"], "to 0 of the peak at step 20: the run ends on the way there"),
        (["optim.schedule_end=5 steps"], "to 0 of the peak at step 5, and no change after it"),
        (
            ["optim.schedule=step", "optim.milestones=[0.5, 30 steps]"],
            "step: x 0.1 from steps 6 (1 more after the end of the run)",
        ),
        (["loss.start_fraction.captioning=0.4"], "loss captioning is computed at steps 5 to 10 only"),
        (
            ["loss.use_scheduler=true"],
            "loss weights reach their final values at step 10001: the run ends on the way there",
        ),
        (
            ["loss.use_scheduler=true", "loss.warmup_steps=1", "loss.total_steps=6", "loss.final.contrastive=0"],
            "loss contrastive is computed at steps 1 to 6 only",
        ),
    ],
)
def test_what_one_might_not_expect_is_said(plan_of, given, says):
    assert says in "\n".join(plan_of(*given))


def test_a_loss_that_is_left_out_at_a_step_is_marked(plan_of):
    line = next(x for x in plan_of("loss.start_fraction.captioning=0.4") if "loss weight, captioning" in x)
    assert line.split("captioning")[1].split("  ") and "0 (not computed)" in line
    assert line.rstrip().endswith("1")


def test_epochs_must_be_known_by_then(plan_of):
    with pytest.raises(ConfigError, match="optim.warmup is given in epochs"):
        plan_of("optim.warmup=1 epochs")


def test_a_run_of_one_step_has_a_plan(plan_of):
    assert cells(plan_of("training.num_steps=1", "optim.warmup=0 steps"), "step") == ["1"]


def test_the_plan_is_told_with_the_model(tmp_path, tiny_config, tiny_model, plan_of):
    lines = plan_of()
    describe_model(tmp_path, tiny_model(tiny_config()), lines)
    assert model_lines(json.loads((tmp_path / MODEL_FILE).read_text()))[-len(lines) :] == lines
