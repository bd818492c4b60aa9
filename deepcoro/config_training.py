"""What a config says of the losses' weights and of the optimizer, and how both move in the course of a run.

A length of a run is written in steps, in epochs or as a share of the run: ``500 steps``, ``2 epochs``, ``0.05``.

The rules of loss weights, for a run of N steps counted from 0. Fixed ones are ``weights``. Scheduled ones are
``initial`` up to step ``warmup_steps``, then move to ``final``, which they reach at ``total_steps`` (which may lie
beyond the run: then they are on their way when it ends). Either way a loss weighs 0 before step ceil(f N), with f its
``start_fraction``. A loss that weighs 0 is not computed.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from deepcoro.config_section import Section
from deepcoro.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]

_LENGTH = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?(?:e-?[0-9]+)?) *(?P<unit>steps?|epochs?|)")


def _length(value: Any) -> str:
    """A length as it is written, once it has been read."""
    text = str(value).strip()
    found = _LENGTH.fullmatch(text)
    if isinstance(value, bool) or found is None or not _means_something(found, text):
        raise ValueError("a length is written as '500 steps', '2 epochs' or a share of the run such as 0.05")
    return text


def _means_something(found: re.Match[str], text: str) -> bool:
    """Whole steps, any number of epochs, or a share from 0 to 1; a bare whole number could be any of them."""
    number, unit = float(found["number"]), found["unit"]
    if not math.isfinite(number):
        return False
    if not unit:
        return 0 <= number <= 1 and not text.isdigit()
    return unit.startswith("epoch") or number == int(number)


Length = Annotated[str, BeforeValidator(_length)]


def in_steps(length: str, num_steps: int, steps_per_epoch: float | None = None) -> int | None:
    """Steps of a ``Length`` in a run of ``num_steps``; ``None`` for epochs whose length is not known."""
    found = _LENGTH.fullmatch(length)
    assert found is not None
    number = float(found["number"])
    if found["unit"].startswith("step"):
        return int(number)
    if not found["unit"]:
        return round(number * num_steps)
    return None if steps_per_epoch is None else round(number * steps_per_epoch)


class LossWeights(Section):
    """Multipliers of the losses; a loss whose weight is 0 throughout is not built at all."""

    contrastive: NonNegative = 1.0
    captioning: NonNegative = 1.0
    masked_modeling: NonNegative = 0.1
    grounding: NonNegative = 0.0  # where lesions lie, from boxes; in nats a clip, so that 0.05 is much
    distillation: NonNegative = 0.0  # what it is from says the section distillation


class LossStarts(Section):
    """Share of the run before which a loss weighs 0, and is not computed."""

    contrastive: Share = 0.0
    captioning: Share = 0.0
    masked_modeling: Share = 0.0
    grounding: Share = 0.0
    distillation: Share = 0.0


class LossConfig(Section):
    """Loss weights, fixed or moving from ``initial`` to ``final``."""

    weights: LossWeights = LossWeights()
    use_scheduler: bool = False
    initial: LossWeights = LossWeights(captioning=0.5)
    final: LossWeights = LossWeights()
    warmup_steps: Annotated[int, Field(ge=0)] = 1000
    total_steps: Positive = 10000
    schedule_type: Literal["linear", "cosine", "step"] = "linear"
    start_fraction: LossStarts = LossStarts()

    @model_validator(mode="after")
    def _check(self) -> LossConfig:
        if self.use_scheduler and self.warmup_steps >= self.total_steps:
            raise ValueError(f"loss.warmup_steps {self.warmup_steps} must be below loss.total_steps {self.total_steps}")
        if not self.used:
            raise ValueError("every loss weight is 0: there is nothing to train")
        return self

    @property
    def ends(self) -> tuple[LossWeights, LossWeights]:
        """Weights at first, and those they move to."""
        return (self.initial, self.final) if self.use_scheduler else (self.weights, self.weights)

    def is_used(self, name: str) -> bool:
        """Whether loss ``name`` has a weight above 0 at any step."""
        return any(getattr(weights, name) > 0 for weights in self.ends)

    @property
    def used(self) -> list[str]:
        """The losses that have a weight above 0 at any step."""
        return [name for name in LossWeights.model_fields if self.is_used(name)]

    @property
    def highest(self) -> dict[str, float]:
        """The larger of both weights of each loss: a step with these computes all that any step of the run does."""
        return {name: max(getattr(weights, name) for weights in self.ends) for name in LossWeights.model_fields}

    def active_steps(self, name: str, num_steps: int) -> range:
        """The steps at which ``name``, a loss that is used, weighs more than 0: they follow on each other."""
        initial, final = (getattr(weights, name) for weights in self.ends)
        begin = first_step(getattr(self.start_fraction, name), num_steps)
        if initial == 0:
            begin = max(begin, self.total_steps if self.schedule_type == "step" else self.warmup_steps + 1)
        return range(min(begin, num_steps), num_steps if final > 0 else min(self.total_steps, num_steps))

    def has_idle_losses(self, num_steps: int) -> bool:
        """Whether some loss that is used weighs 0 at some step: its parameters then get no gradient."""
        return any(len(self.active_steps(name, num_steps)) < num_steps for name in self.used)

    def check_steps(self, num_steps: int) -> None:
        """Raise ``ValueError`` for a loss that no step computes, or a step that computes no loss."""
        active = {name: self.active_steps(name, num_steps) for name in self.used}
        for name, steps in active.items():
            if not steps:
                raise ValueError(
                    f"loss {name} weighs 0 at all {num_steps} steps (training.num_steps) as loss.start_fraction and "
                    "its schedule have it: let it begin earlier, or set its weights to 0"
                )
        reached = 0
        for steps in sorted(active.values(), key=lambda steps: steps.start):
            if steps.start > reached:
                break
            reached = max(reached, steps.stop)
        if reached < num_steps:
            raise ValueError(
                f"no loss weighs more than 0 at step {reached + 1}: there is nothing to train; change "
                "loss.start_fraction or the loss weights"
            )


class OptimConfig(Section):
    """AdamW, one learning rate a component, that rises over a warm-up and then follows ``schedule``."""

    lr: Rate = 6.171328778901703e-05  # video encoder, pooling and projections
    weight_decay: NonNegative = 0.01
    text_lr: Rate = 2e-5
    captioning_lr: Rate = 6.171328778901703e-05
    captioning_weight_decay: NonNegative = 0.01
    mvm_lr: Rate = 6.171328778901703e-06
    mvm_weight_decay: NonNegative = 0.01
    logit_lr: Rate | None = None  # logit_scale and logit_bias; None: lr
    # The rate of an encoder's block i of n, from the bottom, is that of its component times layer_decay^(n - i); what
    # lies below the blocks is i = 0. For the video and the text encoder; 1: the same rate everywhere.
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    betas: tuple[Share, Share] = (0.9, 0.98)
    eps: Rate = 1e-8
    warmup_steps: Annotated[int, Field(ge=0)] = 1000
    warmup: Length | None = None  # "500 steps", "2 epochs" or a share of the run such as 0.05; None: warmup_steps
    schedule: Literal["constant", "linear", "cosine", "step"] = "cosine"
    schedule_end: Length | None = None  # where linear and cosine reach min_lr_ratio; None: at the last step
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0  # no schedule but the warm-up goes below it, of the peak
    milestones: tuple[Length, ...] = ("0.6", "0.85")  # with step: from each of them on, the rate is multiplied by
    milestone_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1  # this
    max_grad_norm: Rate = 1.0

    def in_step_counts(self, num_steps: int, steps_per_epoch: float) -> dict[str, Any]:
        """The lengths that are written in epochs, as they are in steps; what is laid over this section."""

        def written(length: str) -> str:
            return f"{in_steps(length, num_steps, steps_per_epoch)} steps" if "epoch" in length else length

        fields: dict[str, Any] = {
            name: written(getattr(self, name))
            for name in ("warmup", "schedule_end")
            if getattr(self, name) is not None and "epoch" in getattr(self, name)
        }
        if any("epoch" in length for length in self.milestones):
            fields["milestones"] = [written(length) for length in self.milestones]
        return fields

    def warmup_in(self, num_steps: int) -> int | None:
        """Steps of warm-up in a run; ``None`` where it is in epochs that are not known yet."""
        return self.warmup_steps if self.warmup is None else in_steps(self.warmup, num_steps)

    def end_in(self, num_steps: int) -> int | None:
        """Steps of the whole schedule, the warm-up counted; ``None`` as above."""
        return num_steps if self.schedule_end is None else in_steps(self.schedule_end, num_steps)

    def milestones_in(self, num_steps: int) -> list[int] | None:
        """First step of each milestone; ``None`` as above."""
        steps = [in_steps(length, num_steps) for length in self.milestones]
        return None if None in steps else [step for step in steps if step is not None]

    def check_steps(self, num_steps: int) -> None:
        """Raise ``ValueError`` for a warm-up, an end or milestones that do not follow on each other in a run. What is
        in epochs is checked once it is known (``launch.train.resolve``)."""
        warmup, end, milestones = self.warmup_in(num_steps), self.end_in(num_steps), self.milestones_in(num_steps)
        name = "optim.warmup_steps" if self.warmup is None else f"optim.warmup ({self.warmup})"
        if warmup is not None and warmup >= num_steps:
            raise ValueError(f"{name} {warmup} must be below training.num_steps {num_steps}")
        if warmup is not None and end is not None and warmup >= end:
            raise ValueError(f"{name} {warmup} must be below optim.schedule_end, step {end} ({self.schedule_end})")
        if self.schedule != "step" or milestones is None or warmup is None:
            return
        if not milestones:
            raise ValueError(
                "optim.schedule=step needs optim.milestones; without any the rate is optim.schedule=constant"
            )
        if any(later <= earlier for earlier, later in pairwise([warmup, *milestones])):
            raise ValueError(
                f"optim.milestones must rise, and follow after the warm-up of {warmup} steps; they are steps "
                f"{milestones} of {num_steps}"
            )


def first_step(start_fraction: float, num_steps: int) -> int:
    """The step, counted from 0, at which a loss begins: ceil(f N), but for what floats add to a product."""
    return math.ceil(round(start_fraction * num_steps, 6))


def known(steps: Any, what: str) -> Any:
    """``steps``, unless they are in epochs whose length nobody has filled in.

    Raises:
        ConfigError: so it is.
    """
    if steps is None:
        raise ConfigError(f"{what} is given in epochs, and how many steps an epoch has is not known here; give steps")
    return steps
