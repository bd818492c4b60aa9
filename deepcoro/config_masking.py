"""Masked modelling: which tokens of a clip are hidden, how many, whether their number moves in a run, and what is
predicted of them.

Letters: T H W tokens of a clip along time, height and width; N all of them, K those that are shown, M hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from deepcoro.config_section import Section

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Grid = tuple[int, int, int]  # tokens along time, height, width
Size = tuple[Positive, Positive, Positive]


class RatioScheduleConfig(Section):
    """The share of hidden tokens as a function of the step, for ``mask_ratio_follows=schedule``: ``start`` up to step
    ``warmup_steps`` (0 is the first), ``end`` from ``total_steps`` on, and between them on a line or half a cosine."""

    start: Rate = 0.5
    end: Rate = 0.9
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    total_steps: Positive = 10000
    schedule_type: Literal["linear", "cosine"] = "linear"

    @model_validator(mode="after")
    def _check(self) -> RatioScheduleConfig:
        if self.warmup_steps >= self.total_steps:
            raise ValueError(
                f"masked_modeling.ratio_schedule.warmup_steps {self.warmup_steps} must be below total_steps "
                f"{self.total_steps}"
            )
        return self

    def ratio(self, step: int) -> float:
        """The ratio at ``step``."""
        way = min(1.0, max(0.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)))
        share = way if self.schedule_type == "linear" else (1 - math.cos(math.pi * way)) / 2
        return self.start + share * (self.end - self.start)


class RatioControlConfig(Section):
    """What holds the masked loss in a band, for ``mask_ratio_follows=loss``: every ``every`` steps the ratio rises by
    ``step`` where the average of the loss is below ``low`` (too easy), and falls by it where it is above ``high``."""

    low: Annotated[float, Field(ge=0)] | None = None  # of the average; both must be given
    high: Annotated[float, Field(gt=0)] | None = None
    step: Rate = 0.01  # of the ratio
    every: Positive = 50  # steps; the average begins anew with each change, so that it is of one ratio
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.95  # what the average keeps of itself at a step
    lowest: Rate = 0.5  # ratios that it stays within
    highest: Rate = 0.95

    @model_validator(mode="after")
    def _check(self) -> RatioControlConfig:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"masked_modeling.ratio_control.low {self.low} must be below high {self.high}")
        if self.lowest >= self.highest:
            raise ValueError(f"masked_modeling.ratio_control.lowest {self.lowest} must be below highest {self.highest}")
        return self


class MaskedModelingConfig(Section):
    """Reconstruction of what the encoder was not shown.

    ``strategy`` is what is hidden together (``deepcoro/data/masking.py``). Tubes (``tube`` and ``spatial``) are whole
    places, ``temporal`` whole times: their ratio is rounded to a multiple of them. All others hide any number.
    """

    mask_ratio: Rate = 0.75  # of the whole run, or where it starts if it follows the loss; evaluations always mask this
    strategy: Literal["random", "tube", "temporal", "spatial", "block", "motion"] = "random"
    # Smallest and largest block of the block strategy, in tokens along time, height and width. None: through all times,
    # with sides from a third to a half of the picture's (about the short-range blocks of V-JEPA).
    block_min: Size | None = None
    block_max: Size | None = None
    # The motion strategy draws hidden tokens with weights (motion_floor + m)^(1 / motion_temperature), m how much the
    # token changes in time over the mean of its clip. Hotter is more like random, colder hides what moves most.
    motion_temperature: Annotated[float, Field(ge=0.01)] = 1.0
    motion_floor: Annotated[float, Field(gt=0)] = 0.5  # above 0, so that what stands still is hidden now and then
    mask_ratio_follows: Literal["nothing", "schedule", "loss"] = "nothing"
    ratio_schedule: RatioScheduleConfig = RatioScheduleConfig()
    ratio_control: RatioControlConfig = RatioControlConfig()
    pretrained: bool = False  # begin with the decoder of the run of ours that video_encoder.pretrained names
    decoder_hidden_size: Positive = 256
    decoder_layers: Positive = 2
    decoder_heads: Positive = 8
    mask_token_learnable: bool = True
    norm_predict_loss: bool = True  # targets that are pixels: normalised within each tubelet
    # What is predicted. pixels; ema: the features of a teacher that sees the whole clip and follows the video encoder
    # as an average of its weights (V-JEPA, 2404.08471); frozen: those of the encoder of another run, that never moves.
    target: Literal["pixels", "ema", "frozen"] = "pixels"
    teacher: str | None = None  # with frozen: a run or a checkpoint of ours, which makes the same tokens of a clip
    teacher_width: Positive | None = None  # with frozen: of its features; None: as the teacher says
    teacher_precision: Literal["fp32", "bf16", "fp16"] | None = None  # it computes in; None: training.precision
    # With ema, of the teacher's weights t and the encoder's w after a step: t = m t + (1 - m) w (V-JEPA 2, 2506.09985).
    teacher_momentum: Annotated[float, Field(ge=0, le=1)] = 0.99925
    teacher_momentum_end: Annotated[float, Field(ge=0, le=1)] | None = None  # m at the last step; None: it stays
    # Features are watched: how much they differ from token to token, and at one place from clip to clip, is about 1 at
    # most, and 0 where all are alike, which a model can always predict. Below the floor at so many steps in a row, in
    # either, ends the run.
    collapse_floor: Annotated[float, Field(ge=0, lt=1)] = 0.02
    collapse_steps: Positive = 100
    loss_type: Literal["mse", "l1", "smooth_l1"] = "mse"
    smooth_l1_beta: Annotated[float, Field(gt=0)] = 1.0  # errors up to it are squared, larger ones are not
    # Share of the hidden tokens that a training step does not ask the decoder for (VideoMAE 2, 2303.16727): drawn anew
    # for each clip, an exact number. Evaluations ask for all.
    decoder_drop: Share = 0.0
    # Above 0 the visible tokens are predicted too, and the mean of their errors is added to that of the hidden ones,
    # times a weight that is 0 for visible_warmup_steps and rises to this in visible_ramp_steps more (V-JEPA 2.1).
    visible_weight: Annotated[float, Field(ge=0)] = 0.0
    visible_warmup_steps: Annotated[int, Field(ge=0)] = 0
    visible_ramp_steps: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check(self) -> MaskedModelingConfig:
        if self.decoder_hidden_size % self.decoder_heads:
            raise ValueError(
                f"masked_modeling.decoder_hidden_size {self.decoder_hidden_size} is not divisible by "
                f"decoder_heads {self.decoder_heads}"
            )
        if (self.target == "frozen") != (self.teacher is not None):
            raise ValueError(
                "masked_modeling.target=frozen and masked_modeling.teacher=RUN belong together; they are "
                f"{self.target} and {self.teacher}"
            )
        if self.mask_ratio_follows == "loss":
            control = self.ratio_control
            if control.low is None or control.high is None:
                raise ValueError(
                    "masked_modeling.mask_ratio_follows=loss needs ratio_control.low and ratio_control.high, the band "
                    f"of the masked loss; they are {control.low} and {control.high}"
                )
            if not control.lowest <= self.mask_ratio <= control.highest:
                raise ValueError(
                    f"masked_modeling.mask_ratio {self.mask_ratio}, where the ratio starts, lies outside of "
                    f"ratio_control.lowest {control.lowest} to highest {control.highest}"
                )
        return self

    @property
    def ratios(self) -> dict[str, float]:
        """The ratio of evaluations, and the lowest and the highest that a step can have, by the fields that say so."""
        ratios = {"mask_ratio": self.mask_ratio}
        if self.mask_ratio_follows == "schedule":
            ratios |= {f"ratio_schedule.{name}": getattr(self.ratio_schedule, name) for name in ("start", "end")}
        if self.mask_ratio_follows == "loss":
            ratios |= {f"ratio_control.{name}": getattr(self.ratio_control, name) for name in ("lowest", "highest")}
        return ratios

    @property
    def training_ratios(self) -> tuple[float, float]:
        """The lowest and the highest ratio that a step of training can have."""
        found = [x for name, x in self.ratios.items() if "." in name] or [self.mask_ratio]
        return min(found), max(found)

    def momentum_at(self, step: int, num_steps: int) -> float:
        """M of the teacher's step after ``step`` (0 is the first) of ``num_steps``: on a line to its last value."""
        end = self.teacher_momentum if self.teacher_momentum_end is None else self.teacher_momentum_end
        return self.teacher_momentum + (end - self.teacher_momentum) * step / max(1, num_steps - 1)

    def visible_weight_at(self, step: int) -> float:
        """What the errors of visible tokens count at ``step`` (0 is the first)."""
        since = step - self.visible_warmup_steps
        if since < 0:
            return 0.0
        return self.visible_weight * min(1.0, (since + 1) / (self.visible_ramp_steps + 1))

    def num_visible(self, grid: Grid, ratio: float | None = None) -> int:
        """Tokens that are shown at ``ratio`` (``None``: ``mask_ratio``), whole tubes or times where these are hidden
        together."""
        group = _group(self.strategy, grid)
        groups = math.prod(grid) // group
        return (groups - round(groups * (self.mask_ratio if ratio is None else ratio))) * group

    def block_sizes(self, grid: Grid) -> tuple[Grid, Grid]:
        """The smallest and the largest block."""
        times, height, width = grid
        third = (times, max(1, round(height / 3)), max(1, round(width / 3)))
        half = (times, max(1, round(height / 2)), max(1, round(width / 2)))
        smallest, largest = self.block_min or third, self.block_max or half
        # One that is given by itself takes the other with it.
        if self.block_max is None:
            largest = _three(max(pair) for pair in zip(smallest, largest, strict=True))
        if self.block_min is None:
            smallest = _three(min(pair) for pair in zip(smallest, largest, strict=True))
        return smallest, largest

    def check_ratios(self, grid: Grid) -> None:
        """Raise ``ValueError`` for a ratio that hides all of ``grid`` tokens, or nothing."""
        tokens, unit = math.prod(grid), _group(self.strategy, grid)
        for name, ratio in self.ratios.items():
            visible = self.num_visible(grid, ratio)
            if not 0 < visible < tokens:
                together = f", {unit} of them hidden together" if unit > 1 else ""
                raise ValueError(
                    f"masked_modeling.{name} {ratio} of {tokens} tokens ({self.strategy}{together}) leaves {visible} "
                    "to see; it must hide some and show some"
                )
            if num_asked(tokens - visible, self.decoder_drop) == 0:
                raise ValueError(
                    f"masked_modeling.decoder_drop {self.decoder_drop} of {tokens - visible} hidden tokens "
                    f"({name} {ratio} of {tokens}) leaves none to predict"
                )

    def check_blocks(self, grid: Grid) -> None:
        """Raise ``ValueError`` for blocks that do not fit into a clip of ``grid`` tokens."""
        if self.strategy == "block":
            smallest, largest = self.block_sizes(grid)
            for name, size in (("block_min", smallest), ("block_max", largest)):
                if any(side > most for side, most in zip(size, grid, strict=True)):
                    raise ValueError(
                        f"masked_modeling.{name} of {_times(size)} tokens (time, height, width) is larger than a clip, "
                        f"which has {_times(grid)}"
                    )
            if any(low > high for low, high in zip(smallest, largest, strict=True)):
                raise ValueError(
                    f"masked_modeling.block_min {_times(smallest)} is larger than block_max {_times(largest)}"
                )


def num_asked(num_hidden: int, decoder_drop: float) -> int:
    """Hidden tokens that a training step asks the decoder for."""
    return num_hidden - round(num_hidden * decoder_drop)


def _group(strategy: str, grid: Grid) -> int:
    """Tokens that are hidden together."""
    times, height, width = grid
    return {"tube": times, "spatial": times, "temporal": height * width}.get(strategy, 1)


def _three(numbers: Iterable[int]) -> Grid:
    a, b, c = numbers
    return a, b, c


def _times(size: Grid) -> str:
    return "x".join(map(str, size))
