"""``deepcoro.load("runs/demo")``: the newest checkpoint of a run, with what turns clips and reports into numbers and
text.

Letters: B rows, V views, T frames, H W pixels, E embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcoro.config import Config
from deepcoro.config_writing import Writing
from deepcoro.data.caption_tasks import Region
from deepcoro.data.text import ReportTokenizer
from deepcoro.errors import CheckpointError, ConfigError
from deepcoro.evaluation.pointing import write_regions
from deepcoro.evaluation.units import write_texts
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.text_encoder import load_tokenizer
from deepcoro.training.checkpoint import Weights, choose_weights, find_checkpoint, load_model


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode with its config and, where it reads or writes text, its tokenizer.

    ``weights`` says whether it has the ``trained`` weights or their average (``ema``).
    """

    model: MultitaskModel
    config: Config
    tokenizer: ReportTokenizer | None
    checkpoint: Path
    weights: Weights = "trained"

    @torch.no_grad()
    def embed_videos(self, clip: Tensor, valid: Tensor | None = None, angles: Tensor | None = None) -> Tensor:
        """``clip`` [B, V, T, H, W] uint8 -> [B, E] of length 1. ``valid`` [B, V] marks the views that are there, of
        which each row needs one; ``angles`` [B, V, 2] are their primary and secondary angles in degrees, NaN where
        unknown."""
        self._need("contrastive")
        return self.model.embed_units(*self.look(clip, valid, angles))

    @torch.no_grad()
    def embed_reports(self, reports: Sequence[str]) -> Tensor:
        """Reports -> [B, E] of length 1."""
        self._need("contrastive")
        assert self.tokenizer is not None
        ids, lengths = (torch.from_numpy(x).long().to(self.device) for x in self.tokenizer.encode(reports))
        return self.model.embed_text(ids, lengths)

    def write_reports(
        self,
        clip: Tensor,
        valid: Tensor | None = None,
        angles: Tensor | None = None,
        *,
        writing: Writing | None = None,
    ) -> list[str]:
        """``clip`` [B, V, T, H, W] uint8 -> a report each, written as ``writing`` says, or the config's captioning
        section; ``valid`` and ``angles`` as for ``embed_videos``."""
        self._need("captioning")
        assert self.tokenizer is not None
        with torch.no_grad():
            return write_texts(self.model, self.tokenizer, *self.look(clip, valid, angles), writing)

    def point(
        self,
        clip: Tensor,
        rows: Sequence[int],
        sentences: Sequence[str],
        valid: Tensor | None = None,
        angles: Tensor | None = None,
    ) -> list[Region | None]:
        """Of each sentence on a finding (``render_finding``) where it is seen in its clip, as ``write_regions``; for a
        model that was trained on ``captioning.tasks.aref``. ``rows`` count the clips of all units through."""
        self._need("captioning")
        assert self.tokenizer is not None
        return write_regions(self.model, self.tokenizer, *self.look(clip, valid, angles), rows, sentences)

    def writing_as(self, num_beams: int | None = None, structured: bool | None = None) -> TrainedModel:
        """The same model, which writes otherwise than its run's config says: by beam search (1: greedily), and kept to
        the canonical wording or not. ``None`` leaves it.

        Raises:
            ConfigError: a number of beams out of range.
        """
        part: dict[str, Any] = {} if structured is None else {"structured": structured}
        if num_beams is not None:
            part |= {"num_beams": num_beams, "do_sample": False, "temperature": 1.0, "top_k": None, "top_p": None}
            part |= {} if num_beams > 1 else {"length_penalty": 1.0}
        config = self.config.merge({"captioning": part})
        model = copy.copy(self.model)  # the same weights; only the copy's config is another
        model.config = config
        return replace(self, model=model, config=config)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.pixel_mean.device

    @torch.no_grad()
    def look(
        self, clip: Tensor, valid: Tensor | None = None, angles: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What all else is made of, for who makes several things of the same clips: video tokens [B*V, N, D],
        ``valid`` [B, V] and what is known of each view [B, V, 3], on the model's device; arguments as for
        ``embed_videos``."""
        expected = (self.config.data.num_frames, self.config.data.frame_size, self.config.data.frame_size)
        if clip.ndim != 5 or clip.dtype != torch.uint8 or tuple(clip.shape[2:]) != expected:
            raise ValueError(
                f"expected clips [B, V, {', '.join(map(str, expected))}] of uint8, received {tuple(clip.shape)} of "
                f"{clip.dtype}"
            )
        valid = torch.ones(clip.shape[:2], dtype=torch.bool) if valid is None else valid
        if valid.dtype != torch.bool:
            raise ValueError(f"expected valid [B, V] of bool, true where there is a view, received {valid.dtype}")
        if valid.shape != clip.shape[:2] or not valid.any(dim=1).all():
            raise ValueError(
                f"expected valid [B, V] of shape {tuple(clip.shape[:2])} with a clip in each row, received "
                f"{tuple(valid.shape)} with {valid.sum(dim=-1).tolist()} clips"
            )
        angles = torch.full((*valid.shape, 2), torch.nan) if angles is None else angles
        index = torch.arange(valid.shape[1]).expand(valid.shape)
        views_at = self.model.views_at({"angles": angles, "view_index": index})
        tokens = self.model.video_encoder(self.model.normalise(clip.to(self.device)).flatten(0, 1))
        return tokens, valid.to(self.device), views_at.to(self.device)

    def _need(self, loss: str) -> None:
        if not self.config.loss.is_used(loss):
            raise ConfigError(f"{self.checkpoint} was trained without the {loss} loss and cannot do this")


def load(run: str | Path, checkpoint: str | int = "newest", weights: Weights | None = None) -> TrainedModel:
    """A checkpoint of a run's folder (``newest``, ``best`` or a step), or the checkpoint folder given. Nothing is
    fetched from anywhere.

    Args:
        weights: ``trained``, what training goes on from; ``ema``, their average (``training.ema_decay``); ``None``: the
            average where there is one, which is what the run itself measured.

    Raises:
        CheckpointError: there is none, it is damaged, or has no average of the weights; or one is chosen where
            ``run`` is one already.
    """
    folder = Path(run)
    if not (folder / "manifest.json").exists():
        folder = find_checkpoint(folder, checkpoint)
    elif checkpoint != "newest":
        raise CheckpointError(
            f"{folder} is a checkpoint itself, and {checkpoint!r} would choose one among those of a run; leave it out, "
            "or give the run's folder"
        )
    chosen = choose_weights(folder, weights)
    model, config = load_model(folder, chosen)
    tokenizer = None
    if config.needs_text:
        tokenizer = ReportTokenizer.from_pretrained(
            load_tokenizer(str(folder / "tokenizer")), config.data.max_text_length
        )
    return TrainedModel(model, config, tokenizer, folder, chosen)
