"""Parameter groups, one learning rate a component, and the schedule in steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from deepcoro.config import OptimConfig
from deepcoro.errors import CheckpointError
from deepcoro.models.multitask import MultitaskModel


def parameter_groups(model: MultitaskModel, optim: OptimConfig) -> list[dict[str, object]]:
    """Every trainable parameter in exactly one group, named by its component; norms, biases, embeddings of position,
    tokens learnt by themselves and the logit scale and bias are not decayed.

    Raises:
        AssertionError: a parameter is in no group or in two. Only a change of the model can cause it.
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
        "masked_video_modeling": "masked_modeling",
        "logit_scale": "logit",
        "logit_bias": "logit",
    }
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            component = components[name.split(".")[0]]
            groups.setdefault((component, _is_decayed(name, parameter)), []).append(parameter)
    made = []
    for (component, decayed), parameters in groups.items():
        lr, decay = rates[component]
        made.append(
            {
                "params": parameters,
                "lr": lr,
                "peak_lr": lr,
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
    return torch.optim.AdamW(parameter_groups(model, optim), betas=optim.betas, eps=optim.eps)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up moments and step counts from ``state``, and keep the rates and decays that the config gives now.

    Raises:
        CheckpointError: the state belongs to other parameters.
    """
    given = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise CheckpointError(f"the optimizer's state does not fit this model: {error}") from error
    for group, kept in zip(optimizer.param_groups, given, strict=True):
        group.update(kept)


def lr_factor(step: int, warmup_steps: int, num_steps: int, min_ratio: float) -> float:
    """Share of the peak rate at ``step`` (0 is the first): linear up over ``warmup_steps``, then half a cosine down to
    ``min_ratio``, which the last step reaches."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    way = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * min(1.0, way))) / 2


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set each group to its peak times ``factor``; return the rates by component."""
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
        rates[group["component"]] = group["lr"]
    return rates


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    plain = ("probe", "mask_token", "class_token", "position_embedding", "logit_scale", "logit_bias")
    wrapped = ("cls_token", "time_embedding", "rel_pos")  # what backbones of others call such
    return parameter.ndim > 1 and not any(word in name for word in plain + wrapped)
