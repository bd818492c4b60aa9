"""The losses together, and how their weights move."""

import math

import pytest
import torch

from deepcoro.losses.multitask import LossWeightScheduler, MultitaskLoss, reduce_counts


def small_case():
    """Outputs of a model with uniform captions, orthogonal embeddings and an error of 2 everywhere."""
    batch = {
        "input_ids": torch.tensor([[2, 5, 3], [2, 3, 0]]),
        "text_length": torch.tensor([3, 2]),
        "prefix_length": torch.tensor([1, 1]),
        "has_report": torch.tensor([True, True]),
        "report_key": torch.tensor([1, 2]),
        "valid": torch.tensor([[True], [False]]),
    }
    out = {
        "video_embedding": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "text_embedding": torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
        "logit_scale": torch.tensor(2.0),
        "logit_bias": torch.tensor(-1.0),
        "caption_logits": torch.zeros(2, 2, 8),
        "prediction": torch.full((2, 4, 3), 2.0),
        "target": torch.zeros(2, 4, 3),
    }
    return out, batch


def softplus(x):
    return math.log(1 + math.exp(x))


# Positives score -1, negatives 2 - 1 = 1; a uniform caption costs log 8 a token, smoothed or not; errors are 4.
CONTRASTIVE = (2 * softplus(1) + 2 * softplus(1)) / 2
CAPTIONING = math.log(8)
MASKED = 4.0


def test_means_and_default_total_by_hand():
    losses = MultitaskLoss()(*small_case())
    assert losses["contrastive"].item() == pytest.approx(CONTRASTIVE, rel=1e-6)
    assert losses["captioning"].item() == pytest.approx(CAPTIONING, rel=1e-6)
    assert losses["masked_modeling"].item() == pytest.approx(MASKED)
    assert losses["total"].item() == pytest.approx(CONTRASTIVE + CAPTIONING + 0.1 * MASKED, rel=1e-6)
    assert set(losses) == {"contrastive", "captioning", "masked_modeling", "total"}


def test_given_weights_replace_their_own_only():
    losses = MultitaskLoss({"captioning": 3.0})(*small_case())
    assert losses["total"].item() == pytest.approx(CONTRASTIVE + 3 * CAPTIONING + 0.1 * MASKED, rel=1e-6)


def test_softmax_is_chosen_by_name():
    losses = MultitaskLoss(contrastive_loss_type="softmax")(*small_case())
    assert losses["contrastive"].item() == pytest.approx(-math.log(1 / (1 + math.exp(2))), rel=1e-6)


def test_positives_are_chosen_by_name():
    out, batch = small_case()
    batch["study_key"] = torch.tensor([3, 3])
    losses = MultitaskLoss(positives="study", contrastive_chunk_size=1)(out, batch)
    assert losses["contrastive"].item() == pytest.approx((2 * softplus(1) + 2 * softplus(-1)) / 2, rel=1e-6)
    softmax = MultitaskLoss(contrastive_loss_type="softmax", positives="study")(out, batch)
    # Of logits 0 and 2, both are asked for: half of log(1 + e^2) and log(1 + e^-2) each.
    assert softmax["contrastive"].item() == pytest.approx((softplus(2) + softplus(-2)) / 2, rel=1e-6)


def test_counts_by_hand():
    _, batch = small_case()
    counts = MultitaskLoss().counts(batch, num_asked=4)
    assert {name: int(n) for name, n in counts.items()} == {"contrastive": 2, "captioning": 3, "masked_modeling": 4}
    batch["has_report"][0] = False
    assert int(MultitaskLoss().counts(batch, num_asked=4)["captioning"]) == 1


def test_a_loss_without_its_parts_is_left_out():
    out, batch = small_case()
    only = {name: out[name] for name in ("prediction", "target")}
    losses = MultitaskLoss()(only, {"valid": batch["valid"], "has_report": batch["has_report"]})
    assert set(losses) == {"masked_modeling", "total"}
    assert losses["total"].item() == pytest.approx(0.1 * MASKED)


def test_a_batch_of_nothing_is_zero_and_not_nan():
    out, batch = small_case()
    batch |= {"has_report": torch.tensor([False, False]), "valid": torch.tensor([[False], [False]])}
    assert MultitaskLoss()(out, batch)["total"].item() == 0


def test_counts_of_one_worker_are_its_own():
    assert {k: float(v) for k, v in reduce_counts({"a": torch.tensor(3), "b": torch.tensor(2**40)}).items()} == {
        "a": 3.0,
        "b": 2.0**40,
    }


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"loss_weights": {"contrast": 1.0}}, "contrast"),
        ({"loss_weights": {"captioning": -1.0}}, "captioning"),
        ({"loss_weights": {"captioning": math.nan}}, "captioning"),
        ({"contrastive_loss_type": "hinge"}, "sigmoid, softmax"),
    ],
)
def test_unknown_losses_and_bad_weights_are_refused(values, named):
    with pytest.raises(ValueError, match=named):
        MultitaskLoss(**values)


INITIAL, FINAL = {"contrastive": 1.0, "captioning": 0.5}, {"contrastive": 0.0, "captioning": 1.5}


@pytest.mark.parametrize(
    ("kind", "step", "captioning"),
    [
        ("linear", 0, 0.5), ("linear", 100, 0.5), ("linear", 150, 0.75), ("linear", 300, 1.5), ("linear", 9999, 1.5),
        ("cosine", 0, 0.5), ("cosine", 150, 0.5 + (1 - math.sqrt(0.5)) / 2), ("cosine", 200, 1.0), ("cosine", 300, 1.5),
        ("step", 0, 0.5), ("step", 200, 0.5), ("step", 299, 0.5), ("step", 300, 1.5), ("step", 301, 1.5),
    ],
)  # fmt: skip
def test_weights_by_hand(kind, step, captioning):
    weights = LossWeightScheduler(INITIAL, FINAL, 100, 300, kind).weights(step)
    assert weights["captioning"] == pytest.approx(captioning)
    assert weights["contrastive"] == pytest.approx(1.5 - captioning)


@pytest.mark.parametrize("kind", ["linear", "cosine", "step"])
def test_a_weight_that_should_rise_never_falls(kind):
    scheduler = LossWeightScheduler(INITIAL, FINAL, 100, 300, kind)
    rising = [scheduler.weights(step)["captioning"] for step in range(400)]
    assert rising == sorted(rising)
    assert (rising[0], rising[-1]) == (0.5, 1.5)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"schedule_type": "sine"}, "sine"),
        ({"warmup_steps": 300}, "300"),
        ({"warmup_steps": -1}, "-1"),
        ({"initial": {"captions": 1.0}}, "captions"),
        ({"final": {"captioning": -1.0}}, "captioning"),
        ({"start_fraction": {"captions": 0.1}, "num_steps": 9}, "captions"),
        ({"start_fraction": {"captioning": 1.0}, "num_steps": 9}, "from 0 to below 1, got 1.0"),
        ({"start_fraction": {"captioning": -0.1}, "num_steps": 9}, "from 0 to below 1, got -0.1"),
        ({"start_fraction": {"captioning": 0.1}}, "num_steps, which is not given"),
    ],
)
def test_schedules_that_cannot_be_are_refused(values, named):
    with pytest.raises(ValueError, match=named):
        LossWeightScheduler(**({"initial": INITIAL, "final": FINAL, "warmup_steps": 100, "total_steps": 300} | values))


@pytest.mark.parametrize(
    ("step", "captioning"),
    # Captioning begins at a tenth of 300 steps, contrastive at two thirds; both move from step 100 to step 300.
    [(0, 0.0), (29, 0.0), (30, 0.5), (100, 0.5), (199, 0.5 + 99 / 200), (200, 1.0), (299, 0.5 + 199 / 200)],
)
def test_a_loss_that_starts_late_weighs_nothing_before(step, captioning):
    starts = {"captioning": 0.1, "contrastive": 2 / 3}
    scheduler = LossWeightScheduler(INITIAL, FINAL, 100, 300, "linear", starts, num_steps=300)
    weights = scheduler.weights(step)
    assert weights["captioning"] == pytest.approx(captioning)
    assert weights["contrastive"] == (pytest.approx(1.5 - captioning) if step >= 200 else 0.0)


def test_a_start_counts_whole_steps_and_no_rounding_of_floats():
    starts = {"captioning": 0.1}
    for num_steps, first in ((30, 3), (70, 7), (10, 1), (11, 2)):  # 0.1 * 30 and 0.1 * 70 are a little above, as floats
        scheduler = LossWeightScheduler(INITIAL, INITIAL, 0, 1, "linear", starts, num_steps)
        weights = [scheduler.weights(step)["captioning"] for step in range(num_steps)]
        assert weights == [0.0] * first + [0.5] * (num_steps - first)


def test_a_schedule_longer_than_the_run_is_on_its_way_when_that_ends():
    scheduler = LossWeightScheduler(INITIAL, FINAL, 0, 300, "linear")
    assert scheduler.weights(149)["captioning"] == pytest.approx(0.5 + 149 / 300)


def test_fixed_weights_of_a_config_do_not_move(tiny_config):
    config = tiny_config("loss.weights.captioning=0.25", "loss.start_fraction.contrastive=0.5")
    weights = [LossWeightScheduler.from_config(config).weights(step) for step in (0, 4, 5, 9)]
    assert [w["captioning"] for w in weights] == [0.25] * 4
    assert [w["contrastive"] for w in weights] == [0.0, 0.0, 1.0, 1.0]


def test_captions_in_chunks_are_those_of_logits():
    _, batch = small_case()
    chance = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 2, 3, generator=chance), torch.randn(8, 3, generator=chance)
    logits = {"caption_logits": hidden @ weight.T}
    parts = {"caption_hidden": hidden, "caption_weight": weight}
    found = [MultitaskLoss(captioning_chunk_size=2)(o, batch)["captioning"].item() for o in (logits, parts)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] != pytest.approx(CAPTIONING, rel=1e-2)


def test_both_ends_of_a_schedule_name_the_same_losses():
    with pytest.raises(ValueError, match=r"same losses, got \['captioning'\] and \['contrastive'\]"):
        LossWeightScheduler({"captioning": 0.5}, {"contrastive": 2.0})


def test_the_bias_starts_where_it_alone_costs_least():
    """-log(negatives / positives) of the pairs of several micro-batches: 6 rows, two of which share a text."""
    parts = [
        {"report_key": torch.tensor(keys), "has_report": torch.tensor(told)}
        for keys, told in (([1, 2, 3, 9], [True, True, True, False]), ([4, 1, 5], [True, True, True]))
    ]
    loss = MultitaskLoss()
    bias = loss.start_bias(parts)
    assert bias == pytest.approx(-math.log((36 - 8) / 8))

    def cost(b):
        return 8 * math.log(1 + math.exp(-b)) + 28 * math.log(1 + math.exp(b))

    assert cost(bias) < min(cost(bias - 0.01), cost(bias + 0.01))
    one = [{"report_key": torch.tensor([1, 1]), "has_report": torch.tensor([True, True])}]
    assert loss.start_bias(one) is None  # no negatives
    assert loss.start_bias([one[0] | {"has_report": torch.tensor([False, False])}]) is None
