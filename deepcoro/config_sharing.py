"""One masked pass of the video encoder for all losses, as FLIP trains (2212.00794)."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, model_validator

from deepcoro.config_masking import Grid, MaskedModelingConfig
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

    def check_ratio(self, masked: MaskedModelingConfig, grid: Grid, has_masked_loss: bool) -> None:
        """Raise ``ValueError`` for two ratios of one pass, one that follows a loss that is not there, or one that hides
        all of ``grid`` tokens, or nothing."""
        follows = masked.mask_ratio_follows
        if follows == "loss" and not has_masked_loss:
            raise ValueError(
                "masked_modeling.mask_ratio_follows=loss follows the masked loss, which weighs 0: give "
                "shared_pass.mask_ratio, or a schedule"
            )
        if self.mask_ratio is None:
            return
        if follows != "nothing":
            raise ValueError(
                f"shared_pass.mask_ratio {self.mask_ratio} stays, and masked_modeling.mask_ratio_follows={follows} "
                "moves the ratio of the same pass; give one of them"
            )
        visible, tokens = masked.num_visible(grid, self.mask_ratio), math.prod(grid)
        if not 0 < visible < tokens:
            raise ValueError(
                f"shared_pass.mask_ratio {self.mask_ratio} of {tokens} tokens ({masked.strategy}) leaves {visible} to "
                "see; it must hide some and show some"
            )
