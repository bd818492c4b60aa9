"""The ratio of hidden tokens from step to step: schedules by hand, a band that is held, and exact going on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.training.checkpoint import load_training_state, load_weights, save_checkpoint
from deepcoro.training.mask_ratio import MaskRatio
from deepcoro.training.optim import build_optimizer, load_optimizer
from deepcoro.training.plan import training_plan
from deepcoro.training.step import train_step

SCHEDULE = ("mask_ratio_follows=schedule", "ratio_schedule.start=0.5", "ratio_schedule.end=0.9")
CONTROL = ("mask_ratio_follows=loss", "ratio_control.low=0.4", "ratio_control.high=0.6")


def config_of(*assignments):
    return Config().override([f"masked_modeling.{assignment}" for assignment in assignments])


def ratio_of(*assignments):
    return MaskRatio(config_of(*assignments))


def feed(ratio, *losses):
    for loss in losses:
        ratio.look({"masked_modeling": torch.tensor(loss), "captioning": torch.tensor(9.0)})
    return ratio.ratio(0)


def test_a_fixed_ratio_stays():
    ratio = ratio_of("mask_ratio=0.9")
    assert feed(ratio, 0.0, 100.0) == 0.9
    assert {ratio.num_visible(step) for step in (0, 1, 10**6)} == {157}
    assert ratio.state_dict() == {}


@pytest.mark.parametrize(
    ("kind", "quarter"), [("linear", 0.5 + 0.4 * 0.25), ("cosine", 0.5 + 0.4 * (1 - math.sqrt(0.5)) / 2)]
)
def test_a_schedule_by_hand(kind, quarter):
    told = (*SCHEDULE, f"ratio_schedule.schedule_type={kind}")
    ratio = ratio_of(*told, "ratio_schedule.warmup_steps=10", "ratio_schedule.total_steps=50")
    for step, wanted in ((0, 0.5), (10, 0.5), (20, quarter), (30, 0.7), (50, 0.9), (999, 0.9)):
        assert ratio.ratio(step) == pytest.approx(wanted)
        assert ratio.num_visible(step) == 1568 - round(1568 * wanted)


def test_a_schedule_hides_whole_tubes():
    ratio = ratio_of(*SCHEDULE, "strategy=tube", "ratio_schedule.total_steps=1000")
    found = [ratio.num_visible(step) for step in range(1001)]
    assert found == sorted(found, reverse=True) and (found[0], found[-1]) == (98 * 8, 20 * 8)
    assert {number % 8 for number in found} == {0}


def test_control_by_hand():
    """Band 0.4 to 0.6, an average that keeps half, a change of 0.1 after every second loss, within 0.6 to 0.9."""
    told = ("ratio_control.every=2", "ratio_control.decay=0.5", "ratio_control.step=0.1")
    ratio = ratio_of(*CONTROL, *told, "mask_ratio=0.7", "ratio_control.lowest=0.6", "ratio_control.highest=0.9")
    assert feed(ratio, 0.2) == 0.7
    assert ratio.average == pytest.approx(0.2)
    assert feed(ratio, 0.4) == 0.8  # 0.3: too easy
    assert ratio.average is None
    assert feed(ratio, 0.5, 0.5) == 0.8  # in the band
    assert ratio.average == pytest.approx(0.5)
    assert feed(ratio, 0.9, 0.9) == 0.7  # 0.7, then 0.8: too hard
    assert feed(ratio, 0.9, 0.9) == 0.6
    assert feed(ratio, 0.9, 0.9) == 0.6  # no lower
    assert ratio.average == pytest.approx(0.9)
    assert ratio.num_visible(0) == 1568 - round(1568 * 0.6)
    assert feed(ratio, *[0.0] * 20) == 0.9  # and no higher


def test_a_loss_that_is_missing_or_not_finite_says_nothing():
    ratio = ratio_of(*CONTROL, "ratio_control.every=2")
    ratio.look({"captioning": torch.tensor(0.1)})
    feed(ratio, math.nan, math.inf)
    assert ratio.state_dict() == {"ratio": 0.75, "average": None, "seen": 0}


@settings(max_examples=30)
@given(st.lists(st.floats(0, 10), max_size=60), st.integers(0, 60))
def test_it_stays_within_its_limits_and_goes_on_exactly(losses, cut):
    told = (*CONTROL, "ratio_control.every=3", "ratio_control.step=0.07", "ratio_control.lowest=0.6")
    whole, first, second = (ratio_of(*told) for _ in range(3))
    ratios = [feed(whole, loss) for loss in losses]
    assert all(0.6 <= ratio <= 0.95 for ratio in ratios)
    before = [feed(first, loss) for loss in losses[:cut]]
    second.load_state_dict(first.state_dict())
    assert before + [feed(second, loss) for loss in losses[cut:]] == ratios
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("start", [0.5, 0.95])
def test_it_finds_the_ratio_whose_loss_lies_in_the_band(start):
    """A loss that grows with the ratio, and is noisy: 0.1 at 0.5 to 1 at 0.95."""
    chance = torch.Generator().manual_seed(0)
    ratio = ratio_of(*CONTROL, f"mask_ratio={start}", "ratio_control.every=20")
    for _ in range(2000):
        noise = 0.1 * torch.randn((), generator=chance).item()
        feed(ratio, max(0.0, 0.1 + 2 * (ratio.ratio(0) - 0.5) + noise))
    assert 0.4 - 0.05 <= 0.1 + 2 * (ratio.ratio(0) - 0.5) <= 0.6 + 0.05


def test_scalars_are_of_the_step_that_was_taken():
    ratio = ratio_of(*CONTROL)
    assert ratio.scalars(392) == {"masked_modeling/ratio": 0.75}
    feed(ratio, 0.5)
    assert ratio.scalars(157) == pytest.approx(
        {"masked_modeling/ratio": 1411 / 1568, "masked_modeling/loss_average": 0.5}
    )


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["mask_ratio_follows=loss"], "needs ratio_control.low and ratio_control.high.*None and None"),
        ([*CONTROL, "ratio_control.low=0.7"], "low 0.7 must be below high 0.6"),
        ([*CONTROL, "mask_ratio=0.3"], "mask_ratio 0.3.*lowest 0.5 to highest 0.95"),
        ([*CONTROL, "ratio_control.highest=0.4"], "lowest 0.5 must be below highest 0.4"),
        ([*CONTROL, "ratio_control.highest=0.9999"], "ratio_control.highest 0.9999 of 1568 .*leaves 0 to see"),
        ([*SCHEDULE, "ratio_schedule.end=0.9999"], "ratio_schedule.end 0.9999 of 1568 tokens .*leaves 0 to see"),
        ([*SCHEDULE, "ratio_schedule.start=1.0"], "ratio_schedule.start.*less than 1"),
        ([*SCHEDULE, "ratio_schedule.warmup_steps=10000"], "warmup_steps 10000 must be below total_steps 10000"),
        ([*SCHEDULE, "strategy=temporal", "ratio_schedule.end=0.95"], "end 0.95 .*temporal, 196 .*leaves 0"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_numbers(assignments, said):
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        config_of(*assignments)


def test_the_range_of_a_run_is_what_memory_and_masks_are_planned_for():
    assert config_of().visible_range == (392, 392)
    assert config_of(*SCHEDULE).visible_range == (1568 - 1411, 784)
    assert config_of(*SCHEDULE).num_visible == 392  # an evaluation masks as ever
    assert config_of(*CONTROL).visible_range == (1568 - 1490, 784)


def test_the_plan_tells_of_a_schedule(tiny_config):
    schedule = (f"masked_modeling.{x}" for x in (*SCHEDULE, "ratio_schedule.total_steps=9"))
    config = tiny_config(*schedule)  # 18 tokens, 10 steps
    (line,) = (line for line in training_plan(config, []) if line.strip().startswith("mask ratio"))
    assert line.split()[2:] == ["0.5", f"{13 / 18:.3g}", f"{16 / 18:.3g}"]


def test_a_run_goes_on_exactly_from_a_checkpoint(tiny_config, tiny_model, random_batch, tmp_path):
    """8 steps at a stretch, beside 5, a checkpoint, and 3 more: the ratio changes after every second one."""
    told = ("mask_ratio_follows=loss", "ratio_control.low=5", "ratio_control.high=6", "mask_ratio=0.5")
    more = ("ratio_control.every=2", "ratio_control.step=0.1")
    config = tiny_config(*(f"masked_modeling.{x}" for x in (*told, *more)))
    loss = MultitaskLoss.from_config(config)

    def steps(model, optimizer, ratio, which):
        shown = []
        for step in which:
            shown.append(ratio.num_visible(step))
            batch = random_batch(config, seed=step)
            result = train_step(model, loss, optimizer, [batch], loss.loss_weights, shown[-1])
            ratio.look(result.on_host().losses)
        return shown

    torch.manual_seed(0)
    whole = tiny_model(config)
    start = {name: value.clone() for name, value in whole.state_dict().items()}
    optimizer, ratio = build_optimizer(whole, config.optim), MaskRatio(config)
    shown = steps(whole, optimizer, ratio, range(8))
    assert len(set(shown)) == 4  # 9, 7, 5 and 4 of 18

    first = tiny_model(config)
    first.load_state_dict(start)
    optimizer, ratio = build_optimizer(first, config.optim), MaskRatio(config)
    assert steps(first, optimizer, ratio, range(5)) == shown[:5]
    state = {"step": 5, "optimizer": optimizer.state_dict(), "mask_ratio": ratio.state_dict()}
    place = save_checkpoint(tmp_path, 5, first, state, config, "dataset-1")

    second = tiny_model(config)
    load_weights(place, second)
    second.train()
    optimizer, ratio, state = build_optimizer(second, config.optim), MaskRatio(config), load_training_state(place)
    load_optimizer(optimizer, state["optimizer"])
    ratio.load_state_dict(state["mask_ratio"])
    assert steps(second, optimizer, ratio, range(5, 8)) == shown[5:]
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
