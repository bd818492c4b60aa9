"""Learning rates by component and by step."""

import math

import pytest
import torch

from deepcoro.errors import CheckpointError
from deepcoro.training.optim import (
    build_optimizer,
    check_groups,
    load_optimizer,
    lr_factor,
    parameter_groups,
    set_learning_rates,
)

RATES = ("optim.lr=1e-1", "optim.text_lr=1e-2", "optim.captioning_lr=1e-3", "optim.mvm_lr=1e-4", "optim.logit_lr=1e-5")
DECAYS = ("optim.weight_decay=0.1", "optim.captioning_weight_decay=0.2", "optim.mvm_weight_decay=0.3")


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config(*RATES, *DECAYS)


@pytest.fixture(scope="module")
def model(config, tiny_model):
    return tiny_model(config)


@pytest.fixture(scope="module")
def group_of(model, config):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group for group in parameter_groups(model, config.optim) for p in group["params"]}


@pytest.mark.parametrize(
    ("name", "lr", "decay"),
    [
        ("video_encoder.embed.weight", 1e-1, 0.1),
        ("video_encoder.embed.bias", 1e-1, 0.0),
        ("video_encoder.norm.weight", 1e-1, 0.0),
        ("video_encoder.pool.probe", 1e-1, 0.0),
        ("video_projection.weight", 1e-1, 0.1),
        ("text_projection.weight", 1e-1, 0.1),
        ("captioning_decoder.token_embedding.weight", 1e-3, 0.2),
        ("captioning_decoder.position_embedding.weight", 1e-3, 0.0),
        ("masked_video_modeling.mask_token", 1e-4, 0.0),
        ("masked_video_modeling.predict.weight", 1e-4, 0.3),
        ("logit_scale", 1e-5, 0.0),
        ("logit_bias", 1e-5, 0.0),
    ],
)
def test_a_parameter_has_the_rate_and_decay_of_its_component(group_of, name, lr, decay):
    group = group_of[name]
    assert (group["lr"], group["peak_lr"], group["weight_decay"]) == (lr, lr, decay)


def test_the_text_encoder_has_its_own_rate(group_of):
    found = {group["lr"] for name, group in group_of.items() if name.startswith("text_encoder.")}
    assert found == {1e-2}
    plain = {n for n, g in group_of.items() if n.startswith("text_encoder.") and g["weight_decay"] == 0}
    assert all(n.endswith("bias") or "LayerNorm" in n or "position_embedding" in n for n in plain)


def test_every_trainable_parameter_stands_once(model, group_of):
    assert group_of.keys() == {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_logit_rate_is_the_encoders_unless_given(tiny_config, model):
    groups = parameter_groups(model, tiny_config("optim.lr=0.5").optim)
    assert [g["lr"] for g in groups if g["component"] == "logit"] == [0.5]


def test_a_parameter_in_no_group_or_in_two_is_noticed(model):
    every = [p for p in model.parameters() if p.requires_grad]
    check_groups(model, [{"params": every}])
    with pytest.raises(AssertionError, match="no optimizer group"):
        check_groups(model, [{"params": every[1:]}])
    with pytest.raises(AssertionError, match="two optimizer groups"):
        check_groups(model, [{"params": every}, {"params": every[:1]}])
    with pytest.raises(AssertionError, match="not the model's"):
        check_groups(model, [{"params": [*every, torch.nn.Parameter(torch.zeros(1))]}])


@pytest.mark.parametrize(
    ("step", "factor"),
    # 4 steps of warm-up, 15 in all: the first of the cosine is 4, its middle 9, its last 14.
    [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (9, 0.55), (14, 0.1), (100, 0.1)],
)
def test_factors_by_hand(step, factor):
    assert lr_factor(step, 4, 15, 0.1) == pytest.approx(factor)


def test_factors_without_warm_up_and_to_zero():
    found = [lr_factor(step, 0, 5, 0.0) for step in range(5)]
    assert found == pytest.approx([1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0])


def test_no_step_of_a_short_run_is_wasted():
    assert lr_factor(0, 0, 1, 0.0) == 1.0
    assert lr_factor(1, 1, 2, 0.0) > 0


def test_rates_are_set_from_their_peaks(model, config):
    optimizer = build_optimizer(model, config.optim)
    set_learning_rates(optimizer, 0.5)
    rates = set_learning_rates(optimizer, 0.1)
    assert rates == pytest.approx(
        {"video": 1e-2, "text": 1e-3, "captioning": 1e-4, "masked_modeling": 1e-5, "logit": 1e-6}
    )
    assert {group["component"]: group["lr"] for group in optimizer.param_groups} == rates


def test_it_is_adamw_with_the_configs_betas(model, config):
    optimizer = build_optimizer(model, config.optim)
    assert type(optimizer) is torch.optim.AdamW
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.9, 0.98), 1e-8)}


def test_moments_go_on_and_rates_are_those_asked_for_now(model, config, tiny_config):
    before = build_optimizer(model, config.optim)
    for group in before.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    before.step()
    model.zero_grad(set_to_none=True)
    asked = tiny_config("optim.lr=0.7", "optim.weight_decay=0.5", "optim.betas=[0.5, 0.6]")
    after = build_optimizer(model, asked.optim)
    load_optimizer(after, before.state_dict())
    video = next(group for group in after.param_groups if group["component"] == "video" and group["weight_decay"])
    assert (video["peak_lr"], video["weight_decay"], video["betas"]) == (0.7, 0.5, (0.5, 0.6))
    assert set_learning_rates(after, 0.5)["video"] == 0.35
    for parameter, moments in before.state.items():
        assert torch.equal(after.state[parameter]["exp_avg"], moments["exp_avg"])
        assert after.state[parameter]["step"] == 1


def test_a_state_of_other_parameters_is_refused(model, config, tiny_config, tiny_model):
    other = build_optimizer(tiny_model(tiny_config("loss.weights.captioning=0")), config.optim)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_optimizer(build_optimizer(model, config.optim), other.state_dict())
