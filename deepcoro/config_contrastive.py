"""What a config says of the alignment of videos and reports."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from deepcoro.config_section import Section

Positive = Annotated[int, Field(gt=0)]
Level = Literal["clip", "study"]

POSITIVES = ("text", "study", "text_or_study")


class ContrastiveConfig(Section):
    """Video <-> report alignment."""

    loss_type: Literal["sigmoid", "softmax"] = "sigmoid"
    # Which rows are positives of each other: those with equal text, of the same study (equal texts of two studies are
    # negatives then), or with either; or module:function, as deepcoro/losses/positives.py describes it.
    positives: str = "text"
    # A row counts 1 + severity_weight x s / 100 in the loss, s the highest percent of stenosis that its text is about
    # (data/text.py: severity). 0: every row counts 1.
    severity_weight: Annotated[float, Field(ge=0)] = 0.0
    level: Level | None = None  # what a text is paired with; None: the clip or the study, as data.unit says
    embedding_dim: Positive = 512
    logit_scale: Annotated[float, Field(gt=0)] = 10.0  # its start value
    # Its start value. auto: -log(negatives / positives) of the first batch of all workers.
    logit_bias: float | Literal["auto"] = -10.0
    chunk_size: Positive = 512  # texts compared at a time: memory grows with rows of a worker x chunk_size

    @model_validator(mode="after")
    def _check(self) -> ContrastiveConfig:
        module, _, function = self.positives.partition(":")
        written = all(part.isidentifier() for part in [*module.split("."), *function.split(".")])
        if self.positives not in POSITIVES and not written:
            raise ValueError(
                f"contrastive.positives must be {', '.join(POSITIVES)} or module:function, got {self.positives!r}"
            )
        return self

    def start_bias(self, num_rows: int) -> float:
        """Where the bias starts, as far as it can be told without data: ``auto`` is -log(B - 1) with one positive for
        each of the ``num_rows`` rows B of all workers in a batch; one row alone has no negatives, and gets 0."""
        return -math.log(max(num_rows - 1, 1)) if self.logit_bias == "auto" else self.logit_bias
