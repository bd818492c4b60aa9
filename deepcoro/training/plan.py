"""The plan of a run as a table: rates and loss weights at its first, middle and last step, and what is trained how.

A schedule that ends somewhere else than one thinks shows in no curve before it is too late; here it shows at the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deepcoro.config import Config
from deepcoro.losses.multitask import LossWeightScheduler
from deepcoro.training.mask_ratio import MaskRatio
from deepcoro.training.optim import highest_rates, lr_schedule


def training_plan(config: Config, groups: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of the plan; steps are counted from 1, as in the logs.

    Args:
        config: resolved: no length of it is in epochs any more.
        groups: as ``optim.parameter_groups`` makes them.

    Raises:
        ConfigError: a length is in epochs still.
    """
    made, num_steps = list(groups), config.training.num_steps
    steps = sorted({0, num_steps // 2, num_steps - 1})
    factor_at, weights_at = lr_schedule(config), LossWeightScheduler.from_config(config).weights
    rates = [highest_rates(made, factor_at(step)) for step in steps]
    weights = [weights_at(step) for step in steps]
    rows = [["step", *(str(step + 1) for step in steps)]]
    rows += [[f"learning rate, {name}", *(f"{rate[name]:.3g}" for rate in rates)] for name in rates[0]]
    rows += [[f"loss weight, {name}", *(_weight(weight[name]) for weight in weights)] for name in config.loss.used]
    masks_at_all = config.loss.is_used("masked_modeling") or config.shared_pass.enabled
    if masks_at_all and config.masked_modeling.mask_ratio_follows != "loss":
        masks = MaskRatio(config)
        rows.append(["mask ratio", *(f"{1 - masks.num_visible(step) / config.num_tokens:.3g}" for step in steps)])
    lines = [f"plan: {_schedule(config)}", *_align(rows)]
    lines += _loss_notes(config, num_steps)
    decay = config.optim.layer_decay
    if decay < 1:
        lines.append(f"layer decay {decay:g}: rates are those of the uppermost parts")
    return [*lines, *_align([["parameters", "tensors", "numbers", "peak rate", "weight decay"], *_group_rows(made)])]


def _schedule(config: Config) -> str:
    optim, num_steps = config.optim, config.training.num_steps
    warmup, end = optim.warmup_in(num_steps), optim.end_in(num_steps)
    told = f"{num_steps} steps, {warmup} of warm-up, then {optim.schedule}"
    if optim.schedule == "step":
        reached = [step for step in optim.milestones_in(num_steps) or [] if step < num_steps]
        beyond = len(optim.milestones) - len(reached)
        told += f": x {optim.milestone_factor:g} from steps {', '.join(str(step + 1) for step in reached) or 'none'}"
        return told + (f" ({beyond} more after the end of the run)" if beyond else "")
    if optim.schedule == "constant":
        return told
    told += f" to {optim.min_lr_ratio:g} of the peak"
    if end is not None and end > num_steps:
        return told + f" at step {end}: the run ends on the way there"
    return told if end == num_steps else told + f" at step {end}, and no change after it"


def _loss_notes(config: Config, num_steps: int) -> list[str]:
    """What of the loss weights three steps do not show."""
    notes = []
    for name in config.loss.used:
        active = config.loss.active_steps(name, num_steps)
        if len(active) < num_steps:
            notes.append(f"loss {name} is computed at steps {active.start + 1} to {active.stop} only")
    shared = config.shared_pass.num_steps(num_steps)
    if shared:
        told = "one masked pass of the video encoder serves all losses"
        notes.append(told + (f" up to step {shared}; from then on they see all tokens" if shared < num_steps else ""))
    part = config.loss
    if part.use_scheduler and part.total_steps >= num_steps and part.initial != part.final:
        notes.append(
            f"loss weights reach their final values at step {part.total_steps + 1}: the run ends on the way there"
        )
    return notes


def _group_rows(groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each component, decayed or not; groups that differ in their layer's rate alone stand together."""
    joined: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for group in groups:
        joined.setdefault((group["component"], group["weight_decay"]), []).append(group)
    rows = []
    for (component, decay), own in joined.items():
        parameters = [parameter for group in own for parameter in group["params"]]
        numbers = sum(parameter.numel() for parameter in parameters)
        low, high = (choose(group["peak_lr"] for group in own) for choose in (min, max))
        rate = f"{high:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        rows.append([component, str(len(parameters)), f"{numbers:,}", rate, f"{decay:g}"])
    return rows


def _weight(value: float) -> str:
    return f"{value:.3g}" if value > 0 else "0 (not computed)"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Indented lines; all columns but the first by their ends."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
