"""The multitask model: one video encoder, and on it contrastive, captioning and masked-modelling heads.

Everything a step computes goes through ``MultitaskModel.forward``, so that a wrapper around the model (DDP, FSDP,
compile) sees all of it. A part is built only if its loss is in use.

Letters: B rows, V views, T frames, H W pixels, N tokens of a clip, K visible, M hidden, P pixels of a tubelet, L text
tokens, D width, E embedding.
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.models.captioning_decoder import CaptioningDecoder
from deepcoro.models.layers import full_precision, gather_tokens
from deepcoro.models.masked_video_modeling import MaskedVideoModeling
from deepcoro.models.study_pooling import StudyPooling
from deepcoro.models.text_encoder import TextEncoder
from deepcoro.models.video_encoder import ENCODERS, patchify


class MultitaskModel(nn.Module):
    """Shared encoder and heads, as ``config`` describes them.

    Args:
        config: resolved: ``data.pixel_mean`` and ``pixel_std`` are numbers, ``captioning.vocab_size`` where text is
            used.
        text_encoder: ``None`` where no loss reads text.
    """

    def __init__(self, config: Config, text_encoder: TextEncoder | None = None) -> None:
        super().__init__()
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        data, loss = config.data, config.loss
        self.config = config
        self.register_buffer("pixel_mean", torch.tensor(float(data.pixel_mean or 0.0)))
        self.register_buffer("pixel_std", torch.tensor(float(data.pixel_std or 1.0)))
        self.video_encoder = _build_video_encoder(config)
        width = config.video_encoder.width
        assert width is not None
        self.study_pooling = self.video_projection = self.text_encoder = self.text_projection = None
        self.captioning_decoder = self.masked_video_modeling = None
        if loss.is_used("contrastive"):
            assert text_encoder is not None
            dim = config.contrastive.embedding_dim
            self.study_pooling = StudyPooling()
            self.video_projection = nn.Linear(width, dim)
            self.text_encoder = text_encoder
            self.text_projection = nn.Linear(text_encoder.width, dim)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(config.contrastive.logit_scale)))  # its logarithm
            self.logit_bias = nn.Parameter(torch.tensor(config.contrastive.logit_bias))
            self.logit_bias.requires_grad_(config.contrastive.loss_type == "sigmoid")  # softmax cannot feel a bias
        else:
            self.video_encoder.pool = None  # type: ignore[assignment]  # nothing would train it
        if loss.is_used("captioning"):
            part = config.captioning
            assert part.vocab_size is not None
            self.captioning_decoder = CaptioningDecoder(
                part.vocab_size,
                part.hidden_size,
                part.num_layers,
                part.num_heads,
                part.intermediate_size,
                part.max_position_embeddings,
                memory_size=width,
                dropout=part.dropout,
            )
        if loss.is_used("masked_modeling"):
            mvm = config.masked_modeling
            self.masked_video_modeling = MaskedVideoModeling(
                width,
                config.grid,
                math.prod(config.video_encoder.tubelet),
                mvm.mask_ratio,
                mvm.decoder_hidden_size,
                mvm.decoder_layers,
                mvm.decoder_heads,
                mvm.mask_token_learnable,
                mvm.norm_predict_loss,
            )

    def forward(self, batch: dict[str, Any], num_visible: int | None = None) -> dict[str, Tensor]:
        """What the losses need, for a batch of tensors (``data.schema.Batch``).

        Returns, where their loss is in use: ``video_embedding`` and ``text_embedding`` [B, E] of length 1,
            ``logit_scale``, ``logit_bias``; ``caption_logits`` [B, L-1, vocabulary]; ``prediction`` and ``target``
            [B*V, M, P]. With ``num_visible`` None the masked pass is left out.
        """
        out: dict[str, Tensor] = {}
        clip = self.normalise(batch["clip"]).flatten(0, 1)
        if self.config.needs_text:
            tokens = self.video_encoder(clip)
            if self.video_projection is not None:
                out["video_embedding"] = self.embed_video(tokens, batch["valid"])
                out["text_embedding"] = self.embed_text(batch["input_ids"], batch["text_length"])
                out["logit_scale"], out["logit_bias"] = self.logit_scale.exp(), self.logit_bias
            if self.captioning_decoder is not None:
                memory, mask = self.memory(tokens, batch["valid"])
                out["caption_logits"] = self.captioning_decoder(batch["input_ids"][:, :-1], memory, mask)
        if self.masked_video_modeling is not None and num_visible is not None:
            out["prediction"], out["target"] = self.reconstruct(clip, batch["mask_order"].flatten(0, 1), num_visible)
        return out

    def normalise(self, clip: Tensor) -> Tensor:
        """uint8 -> float with the training split's mean 0 and deviation 1, on the device the clip is on."""
        return (clip.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std

    def embed_video(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Tokens [B*V, N, D] of views ``valid`` [B, V] -> [B, E] of length 1."""
        views = self.video_encoder.pool(tokens).unflatten(0, tuple(valid.shape))  # type: ignore[operator]
        assert self.study_pooling is not None and self.video_projection is not None
        return F.normalize(full_precision(self.video_projection(self.study_pooling(views, valid))), dim=-1)

    def embed_text(self, input_ids: Tensor, text_length: Tensor) -> Tensor:
        """Ids [B, L] -> [B, E] of length 1."""
        assert self.text_encoder is not None and self.text_projection is not None
        return F.normalize(full_precision(self.text_projection(self.text_encoder(input_ids, text_length))), dim=-1)

    def memory(self, tokens: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B*V, N, D] -> what the decoder attends to: [B, V*N, D] and its mask [B, V*N]."""
        views = tokens.unflatten(0, tuple(valid.shape))
        return views.flatten(1, 2), valid.repeat_interleave(views.shape[2], dim=1)

    def reconstruct(self, clip: Tensor, mask_order: Tensor, num_visible: int) -> tuple[Tensor, Tensor]:
        """Predictions and targets [B*V, M, P] of the tokens of ``mask_order`` [B*V, N] after the first
        ``num_visible``."""
        assert self.masked_video_modeling is not None
        visible, hidden = mask_order[:, :num_visible], mask_order[:, num_visible:]
        prediction = self.masked_video_modeling(self.video_encoder(clip, visible), visible, hidden)
        tubelets = gather_tokens(patchify(clip, self.config.video_encoder.tubelet), hidden)
        return prediction, self.masked_video_modeling.target(tubelets)

    @classmethod
    def from_pretrained_text(cls, config: Config) -> MultitaskModel:
        """A model at the start of a run: the text encoder with the weights its source has, the rest at random."""
        text = TextEncoder.from_pretrained(config.text_encoder.source) if config.loss.is_used("contrastive") else None
        return cls(config, text)

    @classmethod
    def from_architecture(cls, config: Config, text_encoder_folder: Path) -> MultitaskModel:
        """A model whose weights a checkpoint will bring; nothing is fetched."""
        text = TextEncoder.from_config(text_encoder_folder) if config.loss.is_used("contrastive") else None
        return cls(config, text)


def _build_video_encoder(config: Config) -> nn.Module:
    part = config.video_encoder
    if part.name in ENCODERS:
        build: Any = ENCODERS[part.name]
    else:
        module, _, name = part.name.partition(":")
        try:
            build = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"video_encoder.name {part.name!r} is none of {', '.join(ENCODERS)} and no module:Name that can be "
                "imported: "
                f"{error}"
            ) from error
    return build(
        config.data.num_frames,
        config.data.frame_size,
        part.tubelet,
        part.width,
        part.depth,
        part.num_heads,
        part.drop_path,
        part.patch_norm,
    )
