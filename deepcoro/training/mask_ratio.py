"""How many tokens the masked pass shows at a step: a share that is fixed, follows a schedule, or follows the loss; and
whether that pass is the one that all losses share.

The workers ship the order of the tokens, so only the step knows of this. Every worker of a run comes to the same
number: a schedule is a function of the step, and the loss is that of all workers together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, SupportsFloat

from deepcoro.config import Config


class MaskRatio:
    """The ratio of a run, from step to step.

    Where it follows the loss (``masked_modeling.ratio_control``), with l_s the masked loss of a step, its average is
    ``a = decay a + (1 - decay) l_s``, beginning with the first loss. After every ``every`` losses the ratio rises by
    ``step`` if a < low, falls by it if a > high, and stays within ``lowest`` and ``highest``; where it changed, the
    average begins anew.

    ``state_dict`` is all that a run needs to go on exactly.
    """

    def __init__(self, config: Config) -> None:
        self.part, self.grid, self.shared = config.masked_modeling, config.grid, config.shared_pass
        self._shared_steps = config.shared_pass.num_steps(config.training.num_steps)
        self.follows = self.part.mask_ratio_follows
        self.average: float | None = None  # of the masked loss, since the ratio last changed
        self._controlled, self._seen = self.part.mask_ratio, 0

    def is_shared(self, step: int) -> bool:
        """Whether one masked pass serves all losses at ``step`` (0 is the first)."""
        return step < self._shared_steps

    def ratio(self, step: int) -> float:
        """What is asked for at ``step`` (0 is the first)."""
        if self.shared.mask_ratio is not None and self.is_shared(step):
            return self.shared.mask_ratio
        if self.follows == "schedule":
            return self.part.ratio_schedule.ratio(step)
        return self._controlled

    def num_visible(self, step: int) -> int:
        """Tokens that are shown at ``step``: of whole tubes or times, as many as come nearest to the ratio."""
        return self.part.num_visible(self.grid, self.ratio(step))

    def look(self, losses: Mapping[str, SupportsFloat]) -> None:
        """Take notice of the losses of a step, if the masked one is among them. One that is not finite says nothing."""
        if self.follows != "loss" or "masked_modeling" not in losses:
            return
        loss = float(losses["masked_modeling"])
        if not math.isfinite(loss):
            return
        control = self.part.ratio_control
        assert control.low is not None and control.high is not None
        decay = 0.0 if self.average is None else control.decay
        self.average = decay * (self.average or 0.0) + (1 - decay) * loss
        self._seen += 1
        if self._seen < control.every:
            return
        self._seen = 0
        change = control.step * ((self.average < control.low) - (self.average > control.high))
        # Rounded, so that steps up and down meet again.
        ratio = round(min(control.highest, max(control.lowest, self._controlled + change)), 9)
        if ratio != self._controlled:
            self._controlled, self.average = ratio, None

    def scalars(self, num_visible: int) -> dict[str, float]:
        """What is told of a step that showed ``num_visible`` tokens: the share that it hid, and the average of the loss
        before it."""
        told = {"masked_modeling/ratio": 1 - num_visible / math.prod(self.grid)}
        if self.average is not None:
            told["masked_modeling/loss_average"] = self.average
        return told

    def state_dict(self) -> dict[str, Any]:
        """Numbers only; empty where the ratio does not follow the loss."""
        if self.follows != "loss":
            return {}
        return {"ratio": self._controlled, "average": self.average, "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint. An empty state leaves everything at its start."""
        if self.follows == "loss" and state:
            self._controlled, self.average, self._seen = state["ratio"], state["average"], state["seen"]
