"""What a model that is taught has besides: a projection to where the teacher's embeddings lie, and a head that says to
which of a number of classes of its own making a clip belongs, or a part of it.

Letters: C clips, S local views, N tokens of a clip, n tokens of a local view, D width, E embedding, K prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcoro.config import Config
from deepcoro.models.draws import uniform
from deepcoro.models.layers import full_precision

_SALT = 0x6C6F  # of the draws of local views


class DistillationHead(nn.Sequential):
    """Pooled vectors [..., D] -> logits [..., K]: three layers, then cosines with prototypes (DINO, 2104.14294, section
    3.1: the projection head)."""

    def __init__(self, width: int, hidden: int, bottleneck: int, num_prototypes: int) -> None:
        super().__init__(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
            _Cosines(bottleneck, num_prototypes),
        )
        for part in self:
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)


class _Cosines(nn.Module):
    """[..., d] -> cosines [..., K] with K directions."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(number, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(full_precision(x), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class DistillationStudent(nn.Module):
    """The parts of a model that only distillation trains.

    Args:
        config: resolved: ``distillation.teacher_dim`` is a number where there is a teacher.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        part, self.seed, self.grid = config.distillation, config.seed, config.grid
        width = config.video_encoder.width
        assert width is not None
        self.projection = self.head = None
        self.parts, self.similarity = part.weights, part.similarity
        if "distillation_video" in self.parts:
            assert part.teacher_dim is not None, "it is filled in by resolve_architecture"
            if part.teacher_dim != config.contrastive.embedding_dim:
                self.projection = nn.Linear(config.contrastive.embedding_dim, part.teacher_dim, bias=False)
        self.num_views, self.size = part.local_views, part.block_size(config.grid)
        if self.num_views > 0:
            self.head = DistillationHead(width, part.head_hidden_size, part.head_bottleneck_size, part.num_prototypes)

    def distilled(self, compared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of what the contrastive loss compares, what a teacher's is held against: ``distilled_video`` and
        ``distilled_text`` [R, E'], the embeddings where the teacher's lie, of length 1; ``distilled_logits`` [R, R],
        how well each text goes with each video. Each only where it is in use: DDP takes what is put out for used."""
        out, video, text = {}, compared["video_embedding"], compared["text_embedding"]
        if "distillation_video" in self.parts:
            for name, embedding in (("distilled_video", video), ("distilled_text", text)):
                out[name] = embedding
                if self.projection is not None:
                    out[name] = F.normalize(full_precision(self.projection(embedding)), dim=-1)
        if "distillation_similarity" in self.parts:
            out["distilled_logits"] = compared["logit_scale"] * video @ text.T
            if self.similarity == "sigmoid":
                out["distilled_logits"] = out["distilled_logits"] + compared["logit_bias"]
        return out

    def local_logits(self, encoder: nn.Module, clip: Tensor, clips: Tensor) -> Tensor:
        """Logits [C, S, K] of ``local_views`` parts of each ``clip`` [C, T, H, W], whose numbers are ``clips`` [C].

        A local view is a block of neighbouring tokens, given to ``encoder`` as the visible ones. SILC crops pictures
        and makes them larger; here the grid of an encoder is fixed, and so the part keeps its scale, and knows where in
        the clip it lies. In return it costs n / N of a clip or less, no second decoding and no resampling, and a part
        is just what the encoder learns to read in masked modelling.
        """
        assert self.head is not None
        vectors = []
        for view in range(self.num_views):
            places = local_places(self.grid, self.size, self.seed, clips, view)
            vectors.append(encoder.pool(encoder(clip, places)))  # type: ignore[operator]
        return self.head(torch.stack(vectors, dim=1))


def local_places(grid: tuple[int, int, int], size: tuple[int, int, int], seed: int, clips: Tensor, view: int) -> Tensor:
    """Tokens [C, n] of a block of ``size`` (time, height, width) at a place in ``grid`` that is drawn for each of
    ``clips`` [C] (``draws.clip_numbers``) and ``view``."""
    device = clips.device
    room = torch.tensor([side - part + 1 for side, part in zip(grid, size, strict=True)], device=device)
    corner = (uniform(seed, _SALT + view, clips, 3) * room).long()  # [C, 3]
    axes = [corner[:, axis, None] + torch.arange(size[axis], device=device) for axis in range(3)]
    time, height, width = axes[0][:, :, None, None], axes[1][:, None, :, None], axes[2][:, None, None, :]
    return ((time * grid[1] + height) * grid[2] + width).flatten(1)
