"""Parameter groups, one learning rate a component, and how the rates move from step to step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from deepcoro.config import Config
from deepcoro.config_training import OptimConfig, known
from deepcoro.errors import CheckpointError
from deepcoro.models.multitask import MultitaskModel
from deepcoro.training.sharding import distribute_optimizer


def parameter_groups(model: MultitaskModel, optim: OptimConfig) -> list[dict[str, object]]:
    """Every trainable parameter in exactly one group, named by its component; norms, biases, embeddings of position,
    tokens learnt by themselves and the logit scale and bias are not decayed.

    With ``optim.layer_decay`` d, a parameter of part i of an encoder's ``bottom_up()`` parts 0 to n (0 what lies below
    the blocks, n the last block) has the rate of its component times ``d^(n - i)`` (BEiT, 2106.08254, appendix H, but
    that the last block is not slowed); parts of the component outside the blocks have it whole.

    Raises:
        AssertionError: a parameter is in no group or in two. Only a change of the model can cause it.
        ConfigError: a layer decay, and an encoder that has no list of blocks.
    """
    rates = {
        "video": (optim.lr, optim.weight_decay),
        "text": (optim.text_lr, optim.weight_decay),
        "captioning": (optim.captioning_lr, optim.captioning_weight_decay),
        "masked_modeling": (optim.mvm_lr, optim.mvm_weight_decay),
        "logit": (optim.logit_lr or optim.lr, 0.0),
    }
    components = {
        "video_encoder": "video",
        "view_embedding": "video",
        "study_pooling": "video",
        "video_projection": "video",
        "text_projection": "video",
        "text_encoder": "text",
        "captioning_decoder": "captioning",
        "lesion_summary": "captioning",
        "masked_video_modeling": "masked_modeling",
        "distillation": "video",
        "grounding_head": "video",
        "logit_scale": "logit",
        "logit_bias": "logit",
    }
    norms, shares = _norm_parameters(model), _layer_shares(model, optim.layer_decay)
    groups: dict[tuple[str, bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.split(".")[0]
            assert part in components, f"{part} belongs to no component: which learning rate has it?"
            decayed = id(parameter) not in norms and _is_decayed(name, parameter)
            groups.setdefault((components[part], decayed, shares.get(id(parameter), 1.0)), []).append(parameter)
    made = []
    for (component, decayed, share), parameters in groups.items():
        lr, decay = rates[component]
        made.append(
            {
                "params": parameters,
                "lr": lr * share,
                "peak_lr": lr * share,
                "weight_decay": decay if decayed else 0.0,
                "component": component,
            }
        )
    check_groups(model, made)
    return made


def check_groups(model: nn.Module, groups: list[dict[str, object]]) -> None:
    """Assert that each trainable parameter of ``model`` stands in exactly one of ``groups``."""
    seen = [id(p) for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    wanted = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    assert len(seen) == len(set(seen)), "a parameter stands in two optimizer groups"
    missing = [name for key, name in wanted.items() if key not in set(seen)]
    assert not missing, f"parameters in no optimizer group: {missing}"
    assert set(seen) <= wanted.keys(), "an optimizer group holds a parameter that is not the model's"


def build_optimizer(model: MultitaskModel, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW over ``parameter_groups``."""
    return torch.optim.AdamW(parameter_groups(model, optim), betas=optim.betas, eps=optim.eps, fused=True)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up moments and step counts from ``state``, and keep the rates and decays that the config gives now. Where
    the parameters are sharded each worker takes its part.

    Raises:
        CheckpointError: the state belongs to other parameters.
    """
    given = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    saved = state["param_groups"]
    if len(given) == len(saved):  # else torch says what does not fit
        # Before loading, not after it: by the groups that it reads torch decides where step counts have to lie.
        state = state | {"param_groups": [group | kept for group, kept in zip(saved, given, strict=True)]}
    try:
        optimizer.load_state_dict(distribute_optimizer(optimizer, state))
    except ValueError as error:
        raise CheckpointError(f"the optimizer's state does not fit this model: {error}") from error


def lr_factor(
    step: int,
    warmup_steps: int,
    num_steps: int,
    min_ratio: float,
    schedule: str = "cosine",
    milestones: Sequence[int] = (),
    milestone_factor: float = 0.1,
) -> float:
    """Share of the peak rate at ``step`` (0 is the first): linear up over ``warmup_steps``, whose last step has the
    peak, then as ``schedule`` says. With x the share of the way from step ``warmup_steps`` to step ``num_steps`` - 1,
    and 1 beyond it, and m ``min_ratio``:

    constant 1, linear ``1 - (1 - m) x``, cosine ``m + (1 - m) (1 + cos(pi x)) / 2`` (SGDR, 1608.03983, without
    restarts), step ``milestone_factor`` to the power of the number of ``milestones`` reached, but not below m.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    way = min(1.0, (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps))
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - (1 - min_ratio) * way
    if schedule == "cosine":
        return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * way)) / 2
    if schedule == "step":
        return max(min_ratio, milestone_factor ** sum(step >= milestone for milestone in milestones))
    raise ValueError(f"schedule must be constant, linear, cosine or step, got {schedule!r}")


def lr_schedule(config: Config) -> Callable[[int], float]:
    """Step -> share of the peak rate, as a config describes it.

    Raises:
        ConfigError: a length is in epochs still; ``launch.train.resolve`` fills in their steps.
    """
    optim, num_steps = config.optim, config.training.num_steps
    warmup = known(optim.warmup_in(num_steps), "optim.warmup")
    end = known(optim.end_in(num_steps), "optim.schedule_end")
    milestones = known(optim.milestones_in(num_steps), "optim.milestones") if optim.schedule == "step" else ()
    return lambda step: lr_factor(
        step, warmup, end, optim.min_lr_ratio, optim.schedule, milestones, optim.milestone_factor
    )


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set each group to its peak times ``factor``; return the rates by component, with layer decay the highest."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return highest_rates(optimizer.param_groups, factor)


def highest_rates(groups: Iterable[Mapping[str, Any]], factor: float = 1.0) -> dict[str, float]:
    """The highest rate of each component's ``groups`` at ``factor`` of the peak."""
    rates: dict[str, float] = {}
    for group in groups:
        component = group["component"]
        rates[component] = max(rates.get(component, 0.0), group["peak_lr"] * factor)
    return rates


# What is learnt as a vector by itself: positions, tokens, the scale and bias of the logits; ours and other libraries'.
_ALONE = (
    "probe", "mask_token", "class_token", "cls_token", "dist_token", "distillation_token", "register_token",
    "position", "pos_embed", "rel_pos", "spatial_pos", "temporal_pos", "class_pos", "time_embedding",
    "relative_attention_bias", "segment_embedding", "logit_scale", "logit_bias",
)  # fmt: skip


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not any(word in name for word in _ALONE)


def _norm_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters that norms hold themselves, whatever their shape and library."""
    norms = (module for module in model.modules() if "norm" in type(module).__name__.lower())
    return {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}


def _layer_shares(model: MultitaskModel, decay: float) -> dict[int, float]:
    """By id of a parameter, the share of its component's rate that it has, where that is below 1."""
    shares: dict[int, float] = {}
    for encoder in (model.video_encoder, model.text_encoder) if decay < 1 else ():
        parts = encoder.bottom_up() if encoder is not None else []  # type: ignore[operator]
        for number, part in enumerate(parts):
            shares |= {id(parameter): decay ** (len(parts) - 1 - number) for parameter in part}
    return shares
