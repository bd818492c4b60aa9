"""A small classifier of clips: the platform's encoder with a linear head, trained from nothing; or a linear head on the
embedding of a trained run.

Letters: B clips, T frames, H W pixels, C classes, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.triage.clips import Shape
from deepcoro.inference.load import TrainedModel
from deepcoro.models.video_encoder import VideoEncoder

BATCH_SIZE = 32
_LARGEST_SHIFT = 6  # pixels of 96, each way
_INTENSITY = 0.2  # share by which brightness and contrast vary
_AT_ONCE = 64  # clips, where nothing is learned


@dataclass(frozen=True)
class Classifier:
    """Clips uint8 [B, T, H, W] -> probabilities [B, C] of ``classes``.

    ``temperature`` divides the logits: what a network says after training is too sure of itself, and a held-out split
    tells by how much (Guo et al., 1706.04599). It is 1 or more: a few good answers do not make it surer.
    """

    classes: tuple[str, ...]
    logits: Callable[[Tensor], Tensor]
    temperature: float = 1.0

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Probabilities, each row of sum 1."""
        return F.softmax(self._logits(clips) / self.temperature, dim=1).numpy()

    @torch.no_grad()
    def _logits(self, clips: np.ndarray) -> Tensor:
        pieces = torch.from_numpy(clips).split(_AT_ONCE)
        return torch.cat([torch.zeros(0, len(self.classes)), *(self.logits(piece).cpu() for piece in pieces)])

    def cooled(self, clips: np.ndarray, labels: np.ndarray) -> Classifier:
        """This classifier at the temperature at which ``labels`` [B], numbers of classes, of other clips are
        likeliest."""
        logits, truth = self._logits(clips), torch.from_numpy(labels)
        temperatures = np.geomspace(1, 10, 61).tolist()
        losses = [F.cross_entropy(logits / temperature, truth).item() for temperature in temperatures]
        return Classifier(self.classes, self.logits, temperatures[int(np.argmin(losses))])


class SmallNetwork(nn.Module):
    """The platform's encoder, small; a token sees its place over the whole clip, as contrast comes and goes there."""

    def __init__(self, shape: Shape, num_classes: int, mean: float, std: float) -> None:
        super().__init__()
        patch = shape.frame_size // 8
        self.encoder = VideoEncoder(shape.num_frames, shape.frame_size, (shape.num_frames, patch, patch), 96, 2, 4)
        self.head = nn.Linear(96, num_classes)
        self.mean, self.std = mean, std

    def forward(self, clips: Tensor) -> Tensor:
        """Clips [B, T, H, W], grey levels 0-255 -> logits [B, C]."""
        return self.head(self.encoder.pooled(self.encoder((clips.float() - self.mean) / self.std)))


def train_network(
    clips: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    shape: Shape,
    num_steps: int,
    seed: int,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Classifier:
    """Train ``SmallNetwork`` on clips [B, T, H, W] with ``labels`` [B]. One seed, one network.

    Shifts and intensities vary from step to step; nothing is mirrored, since left and right are what is asked for.

    Args:
        progress: called with the step and its loss.
    """
    torch.manual_seed(seed)
    chance = np.random.default_rng(seed)
    network = SmallNetwork(shape, len(classes), float(clips.mean()), float(max(clips.std(), 1)))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=num_steps, pct_start=0.1)
    order = np.zeros(0, np.int64)
    for step in range(1, num_steps + 1):
        while len(order) < BATCH_SIZE:
            order = np.concatenate([order, chance.permutation(len(clips))])
        batch, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        logits = network(_vary(torch.from_numpy(clips[batch]), chance))
        loss = F.cross_entropy(logits, torch.from_numpy(labels[batch]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step, loss.item())
    network.eval()
    return Classifier(classes, network)


def train_head(clips: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], trained: TrainedModel) -> Classifier:
    """A linear head on the frozen embedding of a trained run: softmax regression, which has one optimum.

    Raises:
        ConfigError: the run was trained without the contrastive loss and has no embedding.
    """

    def embed(piece: Tensor) -> Tensor:
        return trained.embed_videos(piece[:, None]).float().cpu()

    vectors = torch.cat([embed(piece) for piece in torch.from_numpy(clips).split(_AT_ONCE)])  # [B, E]
    centre, spread = vectors.mean(dim=0), vectors.std(dim=0, correction=0).clamp(min=1e-6)
    vectors, truth = (vectors - centre) / spread, torch.from_numpy(labels)
    head = nn.Linear(vectors.shape[1], len(classes))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(vectors), truth) + head.weight.square().sum() / len(vectors)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    head.requires_grad_(False)
    return Classifier(classes, lambda piece: head((embed(piece) - centre) / spread))


def _vary(clips: Tensor, chance: np.random.Generator) -> Tensor:
    """Clips [B, T, H, W] moved by some pixels and with other brightness and contrast, each its own; float."""
    edge, size = _LARGEST_SHIFT, clips.shape[-1]
    padded = F.pad(clips.float(), (edge, edge, edge, edge), mode="replicate")
    corners = chance.integers(0, 2 * edge + 1, (len(clips), 2)).tolist()
    moved = torch.stack(
        [clip[:, y : y + size, x : x + size] for clip, (y, x) in zip(padded, corners, strict=True)],
    )
    contrast, brightness = torch.from_numpy(chance.uniform(-_INTENSITY, _INTENSITY, (2, len(clips), 1, 1, 1))).float()
    return ((moved - 128) * (1 + contrast) + 128 * (1 + brightness)).clamp(0, 255)
