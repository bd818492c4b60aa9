"""Learning rates by component and by step."""

import math

import pytest
import torch

from deepcoro.errors import CheckpointError, ConfigError
from deepcoro.training.optim import (
    build_optimizer,
    check_groups,
    load_optimizer,
    lr_factor,
    lr_schedule,
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


@pytest.mark.parametrize(
    ("given", "factors"),
    # 15 steps: 0 and 1 warm up, 2 is the first of the schedule, 8 its middle, 14 its last.
    [
        (["constant"], {0: 0.5, 1: 1.0, 2: 1.0, 8: 1.0, 14: 1.0}),
        (["linear"], {0: 0.5, 1: 1.0, 2: 1.0, 8: 0.55, 11: 0.325, 14: 0.1}),
        (["cosine"], {0: 0.5, 1: 1.0, 2: 1.0, 5: 0.55 + 0.45 * math.sqrt(0.5), 8: 0.55, 14: 0.1}),
        (["step", "milestones=[8 steps, 0.8]", "milestone_factor=0.5"], {0: 0.5, 2: 1.0, 7: 1.0, 8: 0.5, 11: 0.5,
                                                                         12: 0.25, 14: 0.25}),
        (["step", "milestones=[8 steps, 0.8]", "milestone_factor=0.2"], {7: 1.0, 8: 0.2, 12: 0.1, 14: 0.1}),  # not 0.04
        (["step", "milestones=[20 steps]"], {0: 0.5, 2: 1.0, 14: 1.0}),
        (["linear", "schedule_end=9 steps"], {0: 0.5, 2: 1.0, 5: 0.55, 8: 0.1, 9: 0.1, 14: 0.1}),
        (["linear", "schedule_end=27 steps"], {2: 1.0, 14: 0.55}),  # the run ends half-way
        (["constant", "warmup=0.2"], {0: 1 / 3, 1: 2 / 3, 2: 1.0, 14: 1.0}),
        (["linear", "warmup=0 steps"], {0: 1.0, 7: 0.55, 14: 0.1}),
    ],
)  # fmt: skip
def test_every_schedule_by_hand(tiny_config, given, factors):
    given = [f"schedule={given[0]}", *given[1:], "warmup_steps=2", "min_lr_ratio=0.1"]
    config = tiny_config("training.num_steps=15", *(f"optim.{text}" for text in given))
    factor = lr_schedule(config)
    assert {step: factor(step) for step in factors} == pytest.approx(factors)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "step"])
def test_rates_never_rise_after_the_warm_up_nor_fall_in_it(tiny_config, kind):
    factor = lr_schedule(tiny_config("training.num_steps=50", "optim.warmup=0.2", f"optim.schedule={kind}"))
    factors = [factor(step) for step in range(50)]
    assert factors[:10] == sorted(factors[:10]) == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert factors[9] == 1.0


def test_epochs_that_nobody_has_counted_are_refused(tiny_config):
    for given in (["warmup=1 epochs"], ["schedule_end=1 epochs"], ["schedule=step", "milestones=[1 epochs]"]):
        with pytest.raises(ConfigError, match="given in epochs.*give steps"):
            lr_schedule(tiny_config(*(f"optim.{text}" for text in given)))


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="sine"):
        lr_factor(5, 2, 10, 0.0, "sine")


@pytest.fixture(scope="module")
def decayed(tiny_config, tiny_model):
    """Name of a parameter -> share of its component's rate; two blocks of video, one of text."""
    config = tiny_config(*RATES, *DECAYS, "optim.layer_decay=0.5", "video_encoder.positions=learned")
    model = tiny_model(config)
    names = {id(p): name for name, p in model.named_parameters()}
    whole = {"video": 1e-1, "text": 1e-2, "captioning": 1e-3, "masked_modeling": 1e-4, "logit": 1e-5}
    groups = parameter_groups(model, config.optim)
    return {names[id(p)]: g["peak_lr"] / whole[g["component"]] for g in groups for p in g["params"]}, groups, model


@pytest.mark.parametrize(
    ("prefix", "share"),
    [
        ("video_encoder.embed.", 0.25),
        ("video_encoder.patch_norm.", 0.25),
        ("video_encoder.position_embedding", 0.25),
        ("video_encoder.blocks.0.", 0.5),
        ("video_encoder.blocks.1.", 1.0),
        ("video_encoder.norm.", 1.0),
        ("video_encoder.pool.", 1.0),
        ("video_projection.", 1.0),
        ("text_encoder.transformer.embeddings.", 0.5),
        ("text_encoder.transformer.encoder.layer.0.", 1.0),
        ("text_projection.", 1.0),
        ("captioning_decoder.", 1.0),
        ("masked_video_modeling.", 1.0),
        ("logit_", 1.0),
    ],
)
def test_layer_decay_by_hand(decayed, prefix, share):
    found = [value for name, value in decayed[0].items() if name.startswith(prefix)]
    assert found == pytest.approx([share] * len(found))
    assert found


def test_layer_decay_leaves_nobody_out_and_decays_what_it_did(decayed, tiny_config):
    shares, groups, model = decayed
    assert shares.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    plain = parameter_groups(model, tiny_config(*DECAYS).optim)
    for weight_decay in (0.0, 0.1, 0.2, 0.3):
        ids = [{id(p) for g in gs if g["weight_decay"] == weight_decay for p in g["params"]} for gs in (groups, plain)]
        assert ids[0] == ids[1]
    assert {g["peak_lr"] for g in plain if g["component"] == "video"} == {6.171328778901703e-05}


def test_the_rate_that_is_told_is_that_of_the_uppermost_layers(decayed, tiny_config):
    _, _, model = decayed
    config = tiny_config(*RATES, "optim.layer_decay=0.5", "video_encoder.positions=learned")
    rates = set_learning_rates(build_optimizer(model, config.optim), 0.5)
    assert rates == pytest.approx(
        {"video": 5e-2, "text": 5e-3, "captioning": 5e-4, "masked_modeling": 5e-5, "logit": 5e-6}
    )


def test_norms_biases_positions_and_tokens_of_every_part_are_not_decayed(tiny_config, tiny_model):
    """By what a module is, not by what it is called; with all that a study brings."""
    given = ("data.unit=study", "data.num_videos=2", "study_pooling.num_layers=1", "study_pooling.order=true")
    told = ("loss.weights.grounding=0.05", "grounding.informs_captions=true")
    config = tiny_config(*DECAYS, *given, *told, "video_encoder.class_token=true", "video_encoder.positions=learned")
    model = tiny_model(config)
    free = {id(p) for m in model.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters(recurse=False)}
    free |= {id(m.bias) for m in model.modules() if isinstance(m, torch.nn.Linear) and m.bias is not None}
    alone = [
        "logit_scale", "logit_bias", "video_encoder.class_token", "video_encoder.position_embedding",
        "video_encoder.pool.probe", "study_pooling.pool.probe", "masked_video_modeling.mask_token",
        "captioning_decoder.position_embedding.weight", "lesion_summary.segment_embedding",
        "text_encoder.transformer.embeddings.position_embeddings.weight",
    ]  # fmt: skip
    free |= {id(model.get_parameter(name)) for name in alone}
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, config.optim)
    found = {names[id(p)] for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    assert found == {name for key, name in names.items() if key in free}
    decayed = {names[id(p)] for g in groups if g["weight_decay"] > 0 for p in g["params"]}
    for name in ("view_embedding.angles.0.weight", "view_embedding.order.weight", "video_projection.weight"):
        assert name in decayed
    assert any(name.startswith("study_pooling.blocks.0.") for name in decayed)


def test_a_norm_over_several_dimensions_is_not_decayed(tiny_config, tiny_model):
    config = tiny_config()
    model = tiny_model(config)
    model.video_encoder.norm = torch.nn.LayerNorm((3, 24))
    groups = parameter_groups(model, config.optim)
    (own,) = (g for g in groups for p in g["params"] if p is model.video_encoder.norm.weight)
    assert own["weight_decay"] == 0


def test_a_part_that_no_rate_is_given_for_is_noticed(tiny_config, tiny_model):
    model = tiny_model(tiny_config())
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(AssertionError, match="extra belongs to no component"):
        parameter_groups(model, tiny_config().optim)


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


@pytest.mark.parametrize("saved", [None, False])
def test_step_counts_of_an_optimizer_that_was_not_fused_go_where_a_fused_one_has_them(saved):
    """On the device of the parameters; torch decides it by the groups that it reads. ``meta`` stands for a GPU."""
    parameter = torch.nn.Parameter(torch.ones(3))
    before = torch.optim.AdamW([{"params": [parameter], "component": "video", "peak_lr": 1.0}], fused=saved)
    parameter.grad = torch.ones(3)
    before.step()
    there = torch.nn.Parameter(torch.ones(3, device="meta"))
    after = torch.optim.AdamW([{"params": [there], "component": "video", "peak_lr": 1.0}])
    after.param_groups[0]["fused"] = True  # which AdamW itself refuses on meta
    load_optimizer(after, before.state_dict())
    assert after.param_groups[0]["fused"] is True
    assert after.state[there]["step"].device == after.state[there]["exp_avg"].device == torch.device("meta")
