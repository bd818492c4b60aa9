"""The losses together: their sums and counts, their weights, and how the weights move."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deepcoro.config import Config
from deepcoro.config_masking import num_asked
from deepcoro.config_training import first_step
from deepcoro.levels import caption_text, rows_at_level
from deepcoro.losses.captioning import caption_targets, captioning_loss, chunked_captioning_loss
from deepcoro.losses.contrastive import CHUNK_SIZE, CONTRASTIVE_LOSSES, count_pairs
from deepcoro.losses.distillation import embedding_loss, local_loss, similarity_loss
from deepcoro.losses.grounding import grounding_loss
from deepcoro.losses.masked_modeling import LOSS_TYPES, masked_modeling_loss
from deepcoro.losses.positives import find_match, keys_of

DEFAULT_WEIGHTS: dict[str, float] = {
    "contrastive": 1.0,
    "captioning": 1.0,
    "masked_modeling": 0.1,
    "grounding": 0.0,
    "distillation": 0.0,
}
LOSSES = ("contrastive", "captioning", "masked_modeling", "grounding")


class MultitaskLoss(nn.Module):
    """Contrastive, captioning, masked-modelling and grounding losses of what ``MultitaskModel.forward`` returns.

    Args:
        loss_weights: multipliers by loss; those not named keep their default.
        contrastive_loss_type: ``sigmoid`` (SigLIP) or ``softmax`` (CLIP).
        label_smoothing, ignore_index: of the captioning cross-entropy.
        levels: ``clip`` or ``study`` by loss, of ``contrastive`` and ``captioning``: what a row is where units are
            studies.
        positives: which pairs of a video and a text are positives of each other, as ``contrastive.positives`` says.
        contrastive_chunk_size: texts that the contrastive loss compares at a time.
        captioning_chunk_size: tokens whose logits the captioning loss holds at once.
        severity_weight: a; a row of the contrastive loss counts 1 + a s / 100, 0 <= s <= 100 its ``severity``, and its
            mean is over what the rows count. 0: every row counts 1, and none needs a severity.
        masked_loss_type, smooth_l1_beta: of masked modelling (``masked_modeling_loss``).
        decoder_drop: share of the hidden tokens that it does not ask for.
        distillation: parts that are in use and what each counts (``DistillationConfig.weights``).
        similarity, student_temperature: of distillation.

    Attributes:
        visible_weight: what the mean error of visible tokens counts beside that of hidden ones, where they are
            predicted. It moves in the course of a run: whoever trains sets it.

    Raises:
        ValueError: an unknown loss or loss type, or a negative weight.
        ConfigError: unknown positives.
    """

    def __init__(
        self,
        loss_weights: Mapping[str, float] | None = None,
        contrastive_loss_type: str = "sigmoid",
        label_smoothing: float = 0.1,
        ignore_index: int = -100,
        levels: Mapping[str, str] | None = None,
        positives: str = "text",
        contrastive_chunk_size: int = CHUNK_SIZE,
        captioning_chunk_size: int = 1024,
        severity_weight: float = 0.0,
        masked_loss_type: str = "mse",
        smooth_l1_beta: float = 1.0,
        decoder_drop: float = 0.0,
        distillation: Mapping[str, float] | None = None,
        similarity: str = "softmax",
        student_temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.levels = {"contrastive": "study", "captioning": "study"} | dict(levels or {})
        self.loss_weights = DEFAULT_WEIGHTS | dict(loss_weights or {})
        check_weights(self.loss_weights)
        if contrastive_loss_type not in CONTRASTIVE_LOSSES:
            known = ", ".join(CONTRASTIVE_LOSSES)
            raise ValueError(f"contrastive_loss_type must be one of {known}, got {contrastive_loss_type!r}")
        self.contrastive = CONTRASTIVE_LOSSES[contrastive_loss_type]
        self.keys, self.match = find_match(positives)
        if not severity_weight >= 0:
            raise ValueError(f"severity_weight must be 0 or more, got {severity_weight}")
        self.severity_weight = severity_weight
        self.contrastive_chunk_size, self.captioning_chunk_size = contrastive_chunk_size, captioning_chunk_size
        self.label_smoothing, self.ignore_index = label_smoothing, ignore_index
        if masked_loss_type not in LOSS_TYPES:
            raise ValueError(f"masked_loss_type must be one of {', '.join(LOSS_TYPES)}, got {masked_loss_type!r}")
        self.masked = functools.partial(masked_modeling_loss, loss_type=masked_loss_type, smooth_l1_beta=smooth_l1_beta)
        self.decoder_drop, self.visible_weight = decoder_drop, 0.0
        self.distillation = dict(distillation or {})
        self.similarity, self.student_temperature = similarity, student_temperature

    @classmethod
    def from_config(cls, config: Config) -> MultitaskLoss:
        """The losses as a config describes them."""
        part, masked = config.captioning, config.masked_modeling
        weights = config.loss.weights.model_dump()
        levels = {name: config.level(name) for name in ("contrastive", "captioning")}
        return cls(
            weights,
            config.contrastive.loss_type,
            part.label_smoothing,
            part.ignore_index,
            levels,
            config.contrastive.positives,
            config.contrastive.chunk_size,
            part.chunk_size,
            config.contrastive.severity_weight,
            masked.loss_type,
            masked.smooth_l1_beta,
            masked.decoder_drop,
            config.distillation.weights if config.loss.is_used("distillation") else None,
            config.distillation.similarity,
            config.distillation.student_temperature,
        )

    def num_asked(self, num_hidden: int) -> int:
        """Of the hidden tokens of a clip, those that a training step asks for."""
        return num_asked(num_hidden, self.decoder_drop)

    def counts(self, batch: Mapping[str, Any], num_asked: int) -> dict[str, Tensor]:
        """What each sum of this batch is divided by: rows with report (or what they count), asked words, the hidden
        tokens of valid views that are asked for, valid views of which some is known."""
        rows = self._rows(batch, "contrastive")
        told, weight = rows["has_report"], self._row_weights(rows)
        pairs = told.sum() if weight is None else weight.where(told, 0).sum()
        counts = {"contrastive": pairs, "masked_modeling": batch["valid"].sum() * num_asked}
        if "input_ids" in batch:
            counts["captioning"] = (self._targets(batch) != self.ignore_index).sum()
        if "segments_at" in batch:
            counts["grounding"] = (batch["lesions_known"].any(dim=-1) & batch["valid"]).sum()
        if self.distillation:
            counts |= dict.fromkeys(self.distillation, told.sum())
            counts["distillation_video"] = self._rows_with_views(batch).sum()
            counts["distillation_local"] = batch["valid"].sum()
        return counts

    def sums(self, out: Mapping[str, Tensor], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The sum of each loss that ``out`` has the parts for, over this worker's rows."""
        sums: dict[str, Tensor] = {}
        if "video_embedding" in out:
            sums["contrastive"] = self.contrast([out], [batch])
        if "caption_hidden" in out:
            sums["captioning"] = chunked_captioning_loss(
                out["caption_hidden"],
                out["caption_weight"],
                self._targets(batch),
                self.label_smoothing,
                self.ignore_index,
                self.captioning_chunk_size,
            )
        elif "caption_logits" in out:
            sums["captioning"] = captioning_loss(
                out["caption_logits"], self._targets(batch), self.label_smoothing, self.ignore_index
            )
        if "prediction" in out:
            sums["masked_modeling"] = self.masked(out["prediction"], out["target"], batch["valid"])
        if "visible_prediction" in out:
            # Divided by the number of hidden tokens later on, and a mean all the same.
            share = self.visible_weight * out["prediction"].shape[1] / out["visible_prediction"].shape[1]
            visible = self.masked(out["visible_prediction"], out["visible_target"], batch["valid"])
            sums["masked_modeling"] = sums["masked_modeling"] + share * visible
        if "lesion_evidence" in out:
            sums["grounding"] = grounding_loss(
                out["lesion_prior"],
                out["lesion_evidence"],
                out["lesion_segment"],
                out["lesion_stenosis"],
                out["lesion_edges"],
                batch["segments_at"],
                batch["stenosis_at"],
                batch["edges_at"],
                batch["lesions_known"],
                batch["valid"],
                out.get("lesion_early"),
            )
        return sums | self._distil(out, batch)

    def _distil(self, out: Mapping[str, Tensor], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The sums of distillation's parts."""
        sums: dict[str, Tensor] = {}
        told = self._rows(batch, "contrastive")["has_report"]
        if "distilled_video" in out:
            there = self._rows_with_views(batch)
            sums["distillation_video"] = embedding_loss(out["distilled_video"], batch["teacher_video"], there)
            sums["distillation_text"] = embedding_loss(out["distilled_text"], batch["teacher_text"], told)
        if "distilled_logits" in out:
            logits = (out["distilled_logits"], batch["teacher_logits"])
            sums["distillation_similarity"] = similarity_loss(*logits, told, self.similarity)
        if "local_logits" in out:
            student, targets, valid = out["local_logits"], batch["global_targets"], batch["valid"].flatten()
            local = local_loss(student, targets, valid, self.student_temperature)
            sums["distillation_local"] = local / student.shape[1]
        return sums

    def with_parts(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Loss weights, with those of the parts that ``distillation`` is made of: what ``train_step`` takes."""
        parts = {name: share * weights["distillation"] for name, share in self.distillation.items()}
        return {**weights, **parts}

    def contrast(self, outs: Sequence[Mapping[str, Tensor]], batches: Sequence[Mapping[str, Any]]) -> Tensor:
        """The contrastive sum over this worker's rows, where the rows of all ``outs`` are compared with each other (and
        with those of other workers): as many exchanges as if they were one batch. Scale and bias are the last one's."""
        rows = [self._rows(batch, "contrastive") for batch in batches]
        weights = [weight for row in rows if (weight := self._row_weights(row)) is not None]
        return self.contrastive(
            torch.cat([out["video_embedding"] for out in outs]),
            torch.cat([out["text_embedding"] for out in outs]),
            torch.cat([keys_of(row, self.keys) for row in rows]),
            torch.cat([row["has_report"] for row in rows]),
            outs[-1]["logit_scale"],
            outs[-1]["logit_bias"],
            match=self.match,
            weight=torch.cat(weights) if weights else None,
            chunk_size=self.contrastive_chunk_size,
        )

    def start_bias(self, batches: Sequence[Mapping[str, Any]]) -> float | None:
        """-log(negatives / positives) of all workers' ``batches``: where a sigmoid whose logits are the bias alone
        costs least. ``None`` where they have not both. Every worker must take part."""
        rows = [self._rows(batch, "contrastive") for batch in batches]
        keys, told = (torch.cat(x) for x in zip(*((keys_of(r, self.keys), r["has_report"]) for r in rows), strict=True))
        found = count_pairs(keys, told, match=self.match, chunk_size=self.contrastive_chunk_size)
        positives, pairs = (number.item() for number in found)
        return math.log(positives / (pairs - positives)) if 0 < positives < pairs else None

    def forward(self, out: Mapping[str, Tensor], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Mean of each loss over one batch on one worker, and their weighted ``total``."""
        num_asked = out["prediction"].shape[1] if "prediction" in out else 0
        counts, sums = self.counts(batch, num_asked), self.sums(out, batch)
        means = {name: value / counts[name].clamp(min=1) for name, value in sums.items()}
        return {**means, "total": self.weigh(means, self.with_parts(self.loss_weights))}

    @staticmethod
    def weigh(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """Weighted sum of ``losses``."""
        return torch.stack([weights[name] * value for name, value in losses.items()]).sum()

    def _row_weights(self, rows: Mapping[str, Any]) -> Tensor | None:
        """What each row of the contrastive loss counts, [B], 1 or more; ``None``: 1 each."""
        if self.severity_weight == 0:
            return None
        if "severity" not in rows:
            raise ValueError(
                f"severity_weight {self.severity_weight} needs the severity of each row, and the batch has none: read "
                "it with contrastive.severity_weight above 0, or give its rows a column severity (clip_severity for "
                "clips of studies)"
            )
        return 1 + self.severity_weight * rows["severity"] / 100

    def _targets(self, batch: Mapping[str, Any]) -> Tensor:
        rows = self._rows(batch, "captioning")
        told = rows.get("has_caption", rows["has_report"])
        return caption_targets(*caption_text(rows), rows["prefix_length"], told, self.ignore_index)

    def _rows_with_views(self, batch: Mapping[str, Any]) -> Tensor:
        """[R] of the contrastive loss: whether anything of a row can be seen."""
        valid, of_clips = batch["valid"], self.levels["contrastive"] == "clip"
        return valid.flatten() if of_clips else valid.any(dim=1)

    def _rows(self, batch: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        return rows_at_level(batch, self.levels[name])


def reduce_counts(counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Counts of all workers together, in one exchange."""
    values = torch.stack([value.to(torch.float64) for value in counts.values()])
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        if values.device.type == "mps":
            values = values.float()
        dist.all_reduce(values)
    return dict(zip(counts, values.unbind(), strict=True))


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise ``ValueError`` for a loss that does not exist or a weight below 0."""
    for name, weight in weights.items():
        if name not in DEFAULT_WEIGHTS:
            raise ValueError(f"unknown loss {name!r}; known are {', '.join(DEFAULT_WEIGHTS)}")
        if not 0 <= weight < math.inf:
            raise ValueError(f"the weight of loss {name!r} must be 0 or more, and finite, got {weight}")


@dataclass(frozen=True)
class LossWeightScheduler:
    """Loss weights by step: ``initial`` up to ``warmup_steps``, ``final`` from ``total_steps`` on, and between them
    ``initial + f (final - initial)``, with x the share of the way:

    linear f = x, cosine f = (1 - cos(pi x)) / 2, step f = 0 until the end.

    A loss whose ``start_fraction`` is s weighs 0 at the first ceil(s ``num_steps``) steps of the run. Where
    ``total_steps`` lies beyond the run, the weights are on their way when it ends.

    Raises:
        ValueError: a negative weight, an unknown loss or schedule, steps that do not follow on each other, or a share
            outside [0, 1) or of a run of unknown length.
    """

    initial: Mapping[str, float]
    final: Mapping[str, float]
    warmup_steps: int = 1000
    total_steps: int = 10000
    schedule_type: str = "linear"
    start_fraction: Mapping[str, float] = field(default_factory=dict)
    num_steps: int | None = None  # of the run; only start_fraction needs it

    def __post_init__(self) -> None:
        check_weights(self.initial)
        check_weights(self.final)
        if self.initial.keys() != self.final.keys():
            raise ValueError(f"initial and final must name the same losses, got {[*self.initial]} and {[*self.final]}")
        if self.schedule_type not in ("linear", "cosine", "step"):
            raise ValueError(f"schedule_type must be linear, cosine or step, got {self.schedule_type!r}")
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(f"need 0 <= warmup_steps < total_steps, got {self.warmup_steps} and {self.total_steps}")
        for name, share in self.start_fraction.items():
            if name not in self.initial:
                raise ValueError(f"start_fraction names {name!r}, and initial does not")
            if not 0 <= share < 1:
                raise ValueError(f"the start_fraction of loss {name!r} must be from 0 to below 1, got {share}")
            if share > 0 and self.num_steps is None:
                raise ValueError(f"the start_fraction of loss {name!r} is a share of num_steps, which is not given")

    @classmethod
    def from_config(cls, config: Config) -> LossWeightScheduler:
        """As a config describes it; where it asks for no scheduler the weights do not move."""
        part = config.loss
        initial, final = (weights.model_dump() for weights in part.ends)
        starts = part.start_fraction.model_dump()
        num_steps = config.training.num_steps
        if not part.use_scheduler:
            return cls(initial, final, 0, 1, "linear", starts, num_steps)
        return cls(initial, final, part.warmup_steps, part.total_steps, part.schedule_type, starts, num_steps)

    def weights(self, step: int) -> dict[str, float]:
        """Weights at ``step`` (0 is the first)."""
        way = min(1.0, max(0.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)))
        share = {"linear": way, "cosine": (1 - math.cos(math.pi * way)) / 2, "step": float(way >= 1)}[
            self.schedule_type
        ]
        weights = {name: start + share * (self.final[name] - start) for name, start in self.initial.items()}
        return {name: 0.0 if step < self._start(name) else weight for name, weight in weights.items()}

    def _start(self, name: str) -> int:
        return first_step(self.start_fraction.get(name, 0.0), self.num_steps or 0)
