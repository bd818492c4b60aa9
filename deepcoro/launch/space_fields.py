"""Which fields of a config a sweep cannot search, and which it cannot search for a metric.

Three kinds are refused: those that say what is measured, or what a trial takes of the machines; those that say how hard
the task of an objective is; and those that nothing reads in any trial of the space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from deepcoro.config import Config

# What is measured, when, or where it is written: trials that differ in these cannot be compared.
_FIXED = (
    *("name", "root", "data.path", "data.filter", "data.unit", "evaluation."),
    *("training.evaluate_every", "training.best_metric", "training.best_mode"),
)
# Read where loss weights follow a schedule, and nowhere else.
_OF_SCHEDULER = ("loss.initial.", "loss.final.", "loss.warmup_steps", "loss.total_steps", "loss.schedule_type")

# Fields that say how hard the task of a metric is, or which it is, and so move it without a better model. A truth is
# of the whole text whatever data.max_text_length says; that cuts the reports which videos are found by.
_CLIP = ("data.num_frames", "data.frame_size", "data.sample_fps", "video_encoder.tubelet")
_MASK = ("mask_ratio", "strategy", "block_min", "block_max", "motion_temperature", "motion_floor", "target")
_EASES = {
    "masked_modeling/": (*_CLIP, *(f"masked_modeling.{name}" for name in _MASK)),
    "retrieval/": ("contrastive.level", "data.max_text_length"),
    "captioning/": ("captioning.level",),
    "grounding/": (*_CLIP, "captioning.level", "captioning.tasks."),
    "data/": _CLIP,
}

# Fields (those that end in a dot: all below), where they are read, and that in words.
_READ: tuple[tuple[tuple[str, ...], Callable[[Config], bool], str], ...] = (
    (
        ("optim.mvm_lr", "optim.mvm_weight_decay", "loss.start_fraction.masked_modeling"),
        lambda config: config.loss.is_used("masked_modeling"),
        "a weight of masked_modeling above 0",
    ),
    (
        ("masked_modeling.",),
        lambda config: config.loss.is_used("masked_modeling") or config.shared_pass.enabled,
        "a weight of masked_modeling above 0, or shared_pass.enabled=true",
    ),
    (
        ("optim.captioning_lr", "optim.captioning_weight_decay", "loss.start_fraction.captioning", "captioning."),
        lambda config: config.loss.is_used("captioning"),
        "a weight of captioning above 0",
    ),
    (
        ("optim.text_lr", "optim.logit_lr", "loss.start_fraction.contrastive", "contrastive."),
        lambda config: config.loss.is_used("contrastive"),
        "a weight of contrastive above 0",
    ),
    (
        ("loss.start_fraction.grounding", "grounding."),
        lambda config: config.loss.is_used("grounding"),
        "a weight of grounding above 0",
    ),
    (
        ("loss.start_fraction.distillation", "distillation."),
        lambda config: config.loss.is_used("distillation"),
        "a weight of distillation above 0",
    ),
    (
        ("masked_modeling.mask_ratio",),
        lambda config: config.masked_modeling.mask_ratio_follows != "schedule",
        "masked_modeling.mask_ratio_follows=nothing or loss",
    ),
    (
        ("masked_modeling.ratio_schedule.",),
        lambda config: config.masked_modeling.mask_ratio_follows == "schedule",
        "masked_modeling.mask_ratio_follows=schedule",
    ),
    (
        ("masked_modeling.ratio_control.",),
        lambda config: config.masked_modeling.mask_ratio_follows == "loss",
        "masked_modeling.mask_ratio_follows=loss",
    ),
    (
        ("masked_modeling.motion_temperature", "masked_modeling.motion_floor"),
        lambda config: config.masked_modeling.strategy == "motion",
        "masked_modeling.strategy=motion",
    ),
    (
        ("masked_modeling.block_min", "masked_modeling.block_max"),
        lambda config: config.masked_modeling.strategy == "block",
        "masked_modeling.strategy=block",
    ),
    (
        ("masked_modeling.teacher_momentum", "masked_modeling.teacher_momentum_end"),
        lambda config: config.masked_modeling.target == "ema",
        "masked_modeling.target=ema",
    ),
    (
        ("masked_modeling.smooth_l1_beta",),
        lambda config: config.masked_modeling.loss_type == "smooth_l1",
        "masked_modeling.loss_type=smooth_l1",
    ),
    (
        ("masked_modeling.visible_warmup_steps", "masked_modeling.visible_ramp_steps"),
        lambda config: config.masked_modeling.visible_weight > 0,
        "masked_modeling.visible_weight above 0",
    ),
    (
        ("optim.milestones", "optim.milestone_factor"),
        lambda config: config.optim.schedule == "step",
        "optim.schedule=step",
    ),
    (("optim.warmup_steps",), lambda config: config.optim.warmup is None, "optim.warmup=null"),
)


def cannot_be_searched(fields: Set[str], stopping: str) -> list[str]:
    """Of ``fields`` those that no sweep may search, or none that stops trials by ``stopping``, with the reason."""
    found = []
    for name in sorted(fields):
        if _is_among(name, _FIXED):
            found.append(
                f"{name} cannot be searched: all trials must be measured on the same patients in the same way, in "
                "folders of their own; set it for the whole sweep, behind the experiment"
            )
        elif name.startswith("resources."):
            found.append(
                f"{name} cannot be searched: how many trials there is room for is counted once, before the first "
                "begins, and too many would wait for each other for ever; set it for the whole sweep, behind the "
                "experiment"
            )
        elif name == "training.num_steps" and stopping != "none":
            found.append(
                f"{name} cannot be searched with --stop {stopping}, which compares trials at the same step: it would "
                "stop those whose schedule is longer; leave one of them out"
            )
    return found


def without_effect(fields: Set[str], config: Config, trials: Sequence[Config]) -> list[str]:
    """Of ``fields`` those that nothing reads, with the reason.

    Args:
        config: over which the points are laid.
        trials: configs that the space makes of it.
    """
    found = []
    if "loss.use_scheduler" not in fields:
        idle = ("loss.weights.",) if config.loss.use_scheduler else _OF_SCHEDULER
        switch = str(not config.loss.use_scheduler).lower()
        for name in sorted(name for name in fields if name.startswith(idle)):
            found.append(
                f"{name} is without effect: it is read with loss.use_scheduler={switch} alone, which this config has "
                "not"
            )
    for name in sorted(fields):
        for kinds, is_read, where in _READ:
            if _is_among(name, kinds) and not any(map(is_read, trials)):
                found.append(f"{name} is without effect: it is read with {where} alone, which no trial of it has")
                break
    return found


def that_ease(metric: str, fields: Set[str]) -> list[str]:
    """Of ``fields`` those that move ``metric`` without a better model."""
    eases = next((eases for prefix, eases in _EASES.items() if metric.startswith(prefix)), ())
    return sorted(name for name in fields if _is_among(name, eases))


def _is_among(name: str, kinds: Sequence[str]) -> bool:
    return any(name == kind or (kind.endswith(".") and name.startswith(kind)) for kind in kinds)
