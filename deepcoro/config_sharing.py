"""One masked pass of the video encoder for all losses, as FLIP trains (2212.00794)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from deepcoro.config_section import Section
from deepcoro.config_training import Share, first_step

Rate = Annotated[float, Field(gt=0, lt=1)]


class SharedPassConfig(Section):
    """Whether contrastive and captioning learn from the same masked pass as masked modelling, in place of a pass of
    their own over all tokens: embeddings are pooled from the tokens that are shown, and the decoder of reports attends
    to those alone. What is hidden follows ``masked_modeling.strategy``, also where masked modelling weighs 0.

    The steps of the unmasked tail (FLIP, section 4.2, "unmasking") are those of a run without a shared pass:
    contrastive and captioning see all tokens, and masked modelling has a masked pass of its own. Evaluations never mask
    what they embed or describe.
    """

    enabled: bool = False
    mask_ratio: Rate | None = None  # hidden in the shared pass (FLIP: 0.5); None: what masked modelling would hide
    unmasked_tail: Share = 0.0  # share of the steps, the last of the run, rounded down to whole ones

    @model_validator(mode="after")
    def _check(self) -> SharedPassConfig:
        if not self.enabled and (self.mask_ratio is not None or self.unmasked_tail > 0):
            raise ValueError(
                f"shared_pass.mask_ratio {self.mask_ratio} and unmasked_tail {self.unmasked_tail} do nothing without "
                "shared_pass.enabled=true"
            )
        return self

    def num_steps(self, num_steps: int) -> int:
        """How many of a run's steps, the first ones, have the shared pass."""
        return first_step(1 - self.unmasked_tail, num_steps) if self.enabled else 0

    def check_steps(self, num_steps: int) -> None:
        """Raise ``ValueError`` for a tail that is no step of the run, or all of them."""
        shared = self.num_steps(num_steps)
        if self.unmasked_tail > 0 and shared in (0, num_steps):
            raise ValueError(
                f"shared_pass.unmasked_tail {self.unmasked_tail} of training.num_steps {num_steps} is "
                f"{num_steps - shared} whole steps; it must be some of them, and leave some"
            )
