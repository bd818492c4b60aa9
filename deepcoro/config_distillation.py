"""Distillation: what the model learns from another one, or from an average of itself (``losses/distillation.py``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from deepcoro.config_section import Section

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, le=1)]
Grid = tuple[int, int, int]  # tokens along time, height, width


class DistillationConfig(Section):
    """Two kinds, of which either or both are in use: from the model of another run (``teacher``), and from an average
    of this one, which sees whole clips, to what it makes of parts of them (``local_views``). How much they weigh, and
    from when on, say ``loss.weights.distillation`` and ``loss.start_fraction.distillation``; SigLIP 2 (2502.14786)
    begins the second kind at 0.8 of the run."""

    teacher: str | None = None  # one of our runs or checkpoints, contrastive, of the same clips and tokenizer
    teacher_dim: Positive | None = None  # of its embeddings; None: as the teacher says
    teacher_precision: Literal["fp32", "bf16", "fp16"] | None = None  # teachers compute in; None: training.precision
    embedding_weight: NonNegative = 1.0  # of 1 - cosine of both models' embeddings, of videos and as much of texts
    similarity_weight: NonNegative = 1.0  # of the divergence of their similarities of the videos and texts of a batch
    # softmax: which text of the batch belongs to a video and the reverse; sigmoid: whether each pair belongs together.
    similarity: Literal["softmax", "sigmoid"] = "softmax"
    local_views: Annotated[int, Field(ge=0)] = 0  # blocks of tokens that the model is shown of each clip; 0: none
    # Tokens of a block along time, height and width. None: half of each, so that 8 blocks are as much as a clip.
    local_size: tuple[Positive, Positive, Positive] | None = None
    local_weight: NonNegative = 1.0
    teacher_momentum: Momentum = 0.996  # m of the average t of the weights w: t = m t + (1 - m) w (DINO, 2104.14294)
    teacher_momentum_end: Momentum | None = None  # m at the last step; None: it stays
    head_hidden_size: Positive = 2048  # of the network behind the pooled vector
    head_bottleneck_size: Positive = 256
    num_prototypes: Positive = 4096  # classes that the model makes up
    student_temperature: Rate = 0.1
    teacher_temperature: Rate = 0.04  # the lower, the surer
    center_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of the mean that is taken from the teacher's logits

    @model_validator(mode="after")
    def _check(self) -> DistillationConfig:
        if self.teacher is not None and self.embedding_weight == self.similarity_weight == 0:
            raise ValueError(
                "distillation.teacher with embedding_weight 0 and similarity_weight 0 teaches nothing; leave it out"
            )
        if self.local_views > 0 and self.local_weight == 0:
            raise ValueError(f"distillation.local_views {self.local_views} with local_weight 0 teach nothing")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The parts that are in use, and what each counts in the loss."""
        parts: dict[str, float] = {}
        if self.teacher is not None and self.embedding_weight > 0:
            parts |= {"distillation_video": self.embedding_weight, "distillation_text": self.embedding_weight}
        if self.teacher is not None and self.similarity_weight > 0:
            parts["distillation_similarity"] = self.similarity_weight
        if self.local_views > 0:
            parts["distillation_local"] = self.local_weight
        return parts

    def momentum_at(self, step: int, num_steps: int) -> float:
        """M of the teacher's step after ``step`` (0 is the first) of ``num_steps``: on a line to its last value."""
        end = self.teacher_momentum if self.teacher_momentum_end is None else self.teacher_momentum_end
        return self.teacher_momentum + (end - self.teacher_momentum) * step / max(1, num_steps - 1)

    def block_size(self, grid: Grid) -> Grid:
        """Tokens of a local view."""
        t, h, w = self.local_size or tuple((side + 1) // 2 for side in grid)
        return t, h, w

    def check_used(self, uses_contrastive: bool) -> None:
        """Raise ``ValueError`` for a loss that weighs something and has nothing to learn from."""
        if not self.weights:
            raise ValueError(
                "loss.weights.distillation is above 0, and there is nothing to learn from: set distillation.teacher to "
                "a run, or distillation.local_views to a number, or the weight to 0"
            )
        if self.teacher is not None and not uses_contrastive:
            raise ValueError(
                "distillation.teacher teaches the embeddings that the contrastive loss compares, and this run has no "
                "such loss: set loss.weights.contrastive above 0, or leave distillation.teacher out"
            )

    def check_block(self, grid: Grid) -> None:
        """Raise ``ValueError`` for local views that do not fit into a clip of ``grid`` tokens, or are all of it."""
        size = self.block_size(grid)
        shown, there = ("x".join(map(str, x)) for x in (size, grid))
        if any(side > most for side, most in zip(size, grid, strict=True)):
            raise ValueError(
                f"distillation.local_size of {shown} tokens (time, height, width) is larger than a clip, which has "
                f"{there}"
            )
        if self.local_views > 0 and size == grid:
            raise ValueError(f"distillation.local_size of {shown} tokens is a whole clip: nothing of it is local")
