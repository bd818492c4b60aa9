"""What a run is taught by besides its data: networks that look at a batch before the step does, and leave in it what
the model is to match. No Ray.

They are no part of the model: DDP and the optimizer do not know them, they are in evaluation mode, whole on every
worker also where the model is divided, and without gradients. What they need to go on exactly is in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from deepcoro.config import Config
from deepcoro.models.multitask import MultitaskModel
from deepcoro.training.distilling import LocalTeacher, RunTeacher
from deepcoro.training.feature_teacher import FeatureTeacher


class Teachers:
    """All teachers of a run; none where nothing is learnt from any.

    Args:
        model: on its device, and neither compiled nor divided yet.
    """

    def __init__(self, config: Config, model: MultitaskModel, device: torch.device) -> None:
        self.parts: dict[str, FeatureTeacher | RunTeacher | LocalTeacher] = {}
        if config.loss.is_used("masked_modeling") and config.masked_modeling.target != "pixels":
            self.parts["masked_modeling"] = FeatureTeacher(config, model, device)
        if config.loss.is_used("distillation") and config.distillation.teacher is not None:
            self.parts["distillation"] = RunTeacher(config, device)
        if config.loss.is_used("distillation") and config.distillation.local_views > 0:
            self.parts["distillation_local"] = LocalTeacher(config, model, device)
        for name, part in self.parts.items():
            model.loaded.append(f"teacher of {name}: {part.source}")

    def teach(self, batches: Sequence[dict[str, Any]], weights: Mapping[str, float]) -> None:
        """Put what the losses that weigh more than 0 compare with into ``batches``, the micro-batches of a step."""
        for part in self.parts.values():
            if weights[part.loss] > 0:
                part.teach(batches)

    def update(self, step: int) -> None:
        """Take up the model's weights after step ``step`` (1 is the first), which changed them."""
        for part in self.parts.values():
            part.update(step)

    def look(self, step: int) -> dict[str, float]:
        """What is told of the step ``step`` that was just taken. All workers see the same.

        Raises:
            TrainingError: what is taught has become worthless.
        """
        return {name: value for part in self.parts.values() for name, value in part.look(step).items()}

    def state_dict(self) -> dict[str, Any]:
        """Tensors on the CPU, numbers and words, by part."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            CheckpointError: it belongs to other teachers.
        """
        for name, part in self.parts.items():
            if name in state:
                part.load_state_dict(state[name])
