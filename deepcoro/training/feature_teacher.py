"""The teacher of masked modelling's features in a training run: how it moves, and whether it still teaches. No Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from deepcoro.config import Config
from deepcoro.errors import CheckpointError, TrainingError
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.video_teacher import following_teacher, frozen_teacher, teacher_checkpoint
from deepcoro.training.following import autocast, check_identity, copy_weights_of, follow, identity


class FeatureTeacher:
    """Makes the features that masked modelling predicts, and watches that they tell tokens apart.

    One that follows the model's encoder (``masked_modeling.target=ema``) begins with the encoder's weights at the first
    step at which the loss weighs more than 0. After each step that changed them, with m its momentum, weights t become
    ``m t + (1 - m) w``, in 32 bits. This is not the average that ``training.ema_decay`` keeps: that one holds the
    whole model, is divided where the model is, and would need to be put in the model's place at every step.
    """

    def __init__(self, config: Config, model: MultitaskModel, device: torch.device) -> None:
        self.loss = "masked_modeling"
        self.part, self.num_steps, self.device = config.masked_modeling, config.training.num_steps, device
        self.precision = self.part.teacher_precision or config.training.precision
        self.encoder = model.video_encoder
        self.checkpoint = None
        if self.part.target == "frozen":
            assert self.part.teacher is not None
            self.checkpoint = teacher_checkpoint(self.part.teacher, "masked_modeling.teacher")
            self.teacher = frozen_teacher(str(self.checkpoint), "masked_modeling.teacher")
        else:
            self.teacher = following_teacher(model.video_encoder, config)
        self.source = self.teacher.source
        self.teacher.to(device)
        self.follows, self.has_begun, self.below = self.checkpoint is None, False, 0
        self._deviations: Tensor | None = None  # of the features of this step

    def teach(self, batches: Sequence[dict[str, Any]]) -> None:
        """Add ``teacher_tokens`` [B*V, N, P] to each of ``batches``; those of all micro-batches are there at once."""
        if self.follows and not self.has_begun:
            copy_weights_of(self.encoder, self.teacher.encoder)
        self.has_begun = True
        for batch in batches:
            with autocast(self.precision, self.device):
                batch["teacher_tokens"] = self.teacher(batch["clip"])
        width = int(self.teacher.encoder.width)  # type: ignore[arg-type]
        valid = [batch["teacher_tokens"][batch["valid"].flatten()] for batch in batches]
        self._deviations = feature_deviations(valid, width)

    def update(self, step: int) -> None:
        """As ``Teachers`` has it."""
        if self.follows and self.has_begun:
            follow(self.encoder, self.teacher.encoder, self.part.momentum_at(step - 1, self.num_steps))

    def look(self, step: int) -> dict[str, float]:
        """As ``Teachers`` has it."""
        if self._deviations is None:
            return {}
        names = ("masked_modeling/target_std", "masked_modeling/target_std_of_clips")
        told = dict(zip(names, self._deviations.tolist(), strict=True))
        self._deviations = None
        known = {name: value for name, value in told.items() if math.isfinite(value)}
        if known:  # else no worker had a clip
            self.below = self.below + 1 if min(known.values()) < self.part.collapse_floor else 0
        if self.below >= self.part.collapse_steps:
            raise TrainingError(self._collapsed(step, known))
        return known

    def _collapsed(self, step: int, found: Mapping[str, float]) -> str:
        values = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
        told = (
            f"the features that masked modelling predicts have collapsed: at {self.below} steps in a row, up to step "
            f"{step}, their deviation was below masked_modeling.collapse_floor={self.part.collapse_floor:g} (now "
            f"{values}; 1 is about the most). All tokens, or all clips, look alike to the teacher, so that the loss "
            "falls and nothing is learnt. "
        )
        if self.checkpoint is not None:
            return (
                told + f"Give another masked_modeling.teacher than {self.checkpoint}, or masked_modeling.target=pixels"
            )
        return told + (
            "The encoder that the teacher follows is in the checkpoint too: begin under another name, with a lower "
            "optim.lr and optim.mvm_lr, a longer optim.warmup_steps, a higher masked_modeling.teacher_momentum, more "
            "weight on a loss that reads reports, or masked_modeling.target=pixels or frozen"
        )

    def state_dict(self) -> dict[str, Any]:
        """``below``, and the weights of a teacher that follows, or which ones those of a frozen teacher are."""
        state: dict[str, Any] = {"below": self.below}
        if self.checkpoint is not None:
            return state | identity(self.checkpoint)
        if self.has_begun:
            own = self.teacher.encoder.state_dict()
            state["weights"] = {name: x.detach().cpu().clone() for name, x in own.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As ``Teachers`` has it."""
        self.below = int(state["below"])
        if self.checkpoint is not None:
            check_identity(state, self.checkpoint, "masked_modeling.teacher")
        elif "weights" in state:
            try:
                self.teacher.encoder.load_state_dict(state["weights"])
            except RuntimeError as error:
                raise CheckpointError(f"the teacher's weights do not fit this encoder: {error}") from error
            self.has_begun = True


def feature_deviations(features: Sequence[Tensor], width: int) -> Tensor:
    """How much features [clips, N, P] each, of all workers, tell apart, [2]; every worker has to take part.

    First the standard deviation of each feature over all tokens, and its mean over the features: NaN where there is no
    token. It stays large where an encoder knows where a token stands and nothing of what is there. So second, the same
    place in different clips: the root of the mean variance over the clips that are together in one of ``features``,
    NaN where each has one clip at most.
    """
    sums = torch.zeros(2 * width + 3, dtype=torch.float64, device=features[0].device)
    for some in features:
        tokens, others = some.flatten(0, 1), len(some) - 1
        sums[0] += len(tokens)
        sums[1 : width + 1] += tokens.sum(dim=0, dtype=torch.float64)
        sums[width + 1 : -2] += tokens.square().sum(dim=0, dtype=torch.float64)
        if others > 0:
            sums[-2] += others * some.var(dim=0).mean()
            sums[-1] += others
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(sums)
    mean, square = (sums[1:-2] / sums[0]).unflatten(0, (2, width))
    of_tokens = (square - mean.square()).clamp(min=0).sqrt().mean()
    return torch.stack([of_tokens, (sums[-2] / sums[-1]).sqrt()])
