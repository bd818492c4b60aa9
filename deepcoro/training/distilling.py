"""The teachers of distillation in a training run: a model of another run, and an average of this one. No Ray.

Letters: B rows, V views, R rows of the contrastive loss, E embedding of the teacher, K prototypes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deepcoro.config import Config
from deepcoro.errors import CheckpointError
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.video_teacher import teacher_checkpoint
from deepcoro.training.checkpoint import load_model
from deepcoro.training.following import autocast, check_identity, copy_weights_of, follow, identity

FIELD = "distillation.teacher"


class RunTeacher:
    """A model of another run: with its averaged weights, where it has them, and without what only other losses use.

    Raises:
        ConfigError, CheckpointError: it is not there, or damaged.
    """

    loss = "distillation"

    def __init__(self, config: Config, device: torch.device) -> None:
        assert config.distillation.teacher is not None
        self.checkpoint = teacher_checkpoint(config.distillation.teacher, FIELD)
        self.teacher, _ = load_model(self.checkpoint)
        self.teacher.captioning_decoder = self.teacher.masked_video_modeling = self.teacher.distillation = None
        self.teacher.to(device).requires_grad_(False)
        self.source, self.device, self.similarity = str(self.checkpoint), device, config.distillation.similarity
        self.precision = config.distillation.teacher_precision or config.training.precision

    @torch.no_grad()
    def teach(self, batches: Sequence[dict[str, Any]]) -> None:
        """Add to each of ``batches`` ``teacher_video`` and ``teacher_text`` [R, E], of length 1, and ``teacher_logits``
        [R, R], how well each text goes with each video."""
        model = self.teacher
        for batch in batches:
            with autocast(self.precision, self.device):
                out = model(batch, None, ["contrastive"])
            batch["teacher_video"], batch["teacher_text"] = out["video_embedding"], out["text_embedding"]
            logits = out["logit_scale"] * out["video_embedding"] @ out["text_embedding"].T
            batch["teacher_logits"] = logits + out["logit_bias"] if self.similarity == "sigmoid" else logits

    def update(self, step: int) -> None:
        """It never moves."""

    def look(self, step: int) -> dict[str, float]:
        """Nothing is told of it."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Which weights they are."""
        return dict(identity(self.checkpoint))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As ``Teachers`` has it."""
        check_identity(state, self.checkpoint, FIELD)


class LocalTeacher:
    """An average of the encoder and of the distillation head, which is shown whole clips (DINO, 2104.14294; SILC,
    2310.13355; as SigLIP 2, 2502.14786, section 2.3, adds it late).

    It begins with the weights of the first step at which the loss weighs more than 0. Its probabilities are the softmax
    of its logits less their ``center``, over its temperature; the center is an average of the mean logits of steps
    (DINO, equation 4), and moves after it was used.
    """

    loss = "distillation"

    def __init__(self, config: Config, model: MultitaskModel, device: torch.device) -> None:
        assert model.distillation is not None and model.distillation.head is not None
        self.part, self.num_steps, self.device = config.distillation, config.training.num_steps, device
        self.precision = self.part.teacher_precision or config.training.precision
        self.model = model
        self.teacher = nn.ModuleDict(
            {"encoder": copy.deepcopy(model.video_encoder), "head": copy.deepcopy(model.distillation.head)}
        )
        self.teacher.to(device).requires_grad_(False).eval()
        dtype = torch.promote_types(next(self.teacher.parameters()).dtype, torch.float32)
        self.center = torch.zeros(self.part.num_prototypes, device=device, dtype=dtype)
        self.source, self.has_begun = "the model's average", False
        self._told: Tensor | None = None

    @torch.no_grad()
    def teach(self, batches: Sequence[dict[str, Any]]) -> None:
        """Add ``global_targets`` [B*V, K] to each of ``batches``."""
        if not self.has_begun:
            self._follow(copies=True)
        self.has_begun = True
        encoder, head = self.teacher["encoder"], self.teacher["head"]
        sums = torch.zeros(self.part.num_prototypes + 2, device=self.device, dtype=torch.float64)
        for batch in batches:
            with autocast(self.precision, self.device):
                clip = self.model.normalise(batch["clip"]).flatten(0, 1)
                logits = head(encoder.pool(encoder(clip))).to(self.center.dtype)  # type: ignore[operator]
            targets = ((logits - self.center) / self.part.teacher_temperature).softmax(dim=-1)
            batch["global_targets"], valid = targets, batch["valid"].flatten()
            sums[:-2] += logits[valid].sum(dim=0, dtype=torch.float64)
            sums[-2] += torch.special.entr(targets[valid]).sum(dtype=torch.float64)
            sums[-1] += valid.sum()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        mean = sums[:-1] / sums[-1]
        if sums[-1] > 0:
            self.center.lerp_(mean[:-1].to(self.center.dtype), 1 - self.part.center_momentum)
        self._told = mean[-1] / math.log(self.part.num_prototypes)

    def update(self, step: int) -> None:
        """As ``Teachers`` has it."""
        if self.has_begun:
            self._follow(step=step)

    def look(self, step: int) -> dict[str, float]:
        """``distillation/target_entropy`` of the teacher's probabilities, from 0, where each clip has one class, to 1,
        where it has all alike."""
        if self._told is None:
            return {}
        told, self._told = self._told.item(), None
        return {"distillation/target_entropy": told}

    def state_dict(self) -> dict[str, Any]:
        """Center and weights, once it has begun."""
        if not self.has_begun:
            return {}
        weights = {name: x.detach().cpu().clone() for name, x in self.teacher.state_dict().items()}
        return {"weights": weights, "center": self.center.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As ``Teachers`` has it."""
        if not state:
            return
        try:
            self.teacher.load_state_dict(state["weights"])
        except RuntimeError as error:
            raise CheckpointError(f"the weights of distillation's teacher do not fit this model: {error}") from error
        self.center.copy_(state["center"])
        self.has_begun = True

    def _follow(self, step: int = 0, copies: bool = False) -> None:
        assert self.model.distillation is not None and self.model.distillation.head is not None
        own = {"encoder": self.model.video_encoder, "head": self.model.distillation.head}
        for name, source in own.items():
            average = self.teacher[name]
            if copies:
                copy_weights_of(source, average)
            else:
                follow(source, average, self.part.momentum_at(step - 1, self.num_steps))
