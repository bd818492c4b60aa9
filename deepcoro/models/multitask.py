"""The multitask model: one video encoder, and on it contrastive, captioning and masked-modelling heads.

Everything a step computes goes through ``MultitaskModel.forward``, so that a wrapper around the model (DDP, FSDP,
compile) sees all of it. A part is built only if its loss is in use.

Letters: B rows, V views, T frames, H W pixels, N tokens of a clip, K visible, M hidden, P pixels of a tubelet, L text
tokens, D width, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.levels import caption_text, rows_at_level
from deepcoro.models.backbones import build_video_encoder, freeze_bottom
from deepcoro.models.captioning_decoder import CaptioningDecoder
from deepcoro.models.distillation import DistillationStudent
from deepcoro.models.draws import clip_numbers
from deepcoro.models.grounding import GroundingHead
from deepcoro.models.layers import full_precision, gather_tokens
from deepcoro.models.lesion_summary import LesionSummary
from deepcoro.models.masked_video_modeling import MaskedVideoModeling
from deepcoro.models.pretrained import load_pretrained, own_description, resolve_architecture
from deepcoro.models.study_pooling import StudyPooling, ViewEmbedding, drop_views
from deepcoro.models.text_encoder import TextEncoder
from deepcoro.models.video_encoder import VideoEncoder, patchify


class MultitaskModel(nn.Module):
    """Shared encoder and heads, as ``config`` describes them.

    Args:
        config: resolved: ``data.pixel_mean`` and ``pixel_std`` are numbers, ``captioning.vocab_size`` where text is
            used.
        text_encoder: ``None`` where no loss reads text.
        described_in: a folder that says what a backbone of transformers is; ``None`` for where its weights come from.
    """

    def __init__(
        self, config: Config, text_encoder: TextEncoder | None = None, described_in: Path | None = None
    ) -> None:
        super().__init__()
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        data, loss = config.data, config.loss
        self.config = config
        self.loaded: list[str] = []  # what was taken from where, in lines for a person
        self.register_buffer("pixel_mean", torch.tensor(float(data.pixel_mean or 0.0)))
        self.register_buffer("pixel_std", torch.tensor(float(data.pixel_std or 1.0)))
        self.video_encoder = build_video_encoder(config, described_in)
        if config.video_encoder.freeze > 0:
            freeze_bottom(self.video_encoder.bottom_up(), config.video_encoder.freeze)  # type: ignore[operator]
        if config.shared_pass.enabled and hasattr(self.video_encoder, "prepare_masking"):
            raise ConfigError(
                f"shared_pass.enabled needs an encoder that leaves hidden tokens out, and {config.video_encoder.name} "
                "replaces them (it has prepare_masking): nothing would be saved; set shared_pass.enabled=false"
            )
        width = config.video_encoder.width
        assert width is not None
        self.view_embedding = self.study_pooling = self.video_projection = None
        self.text_encoder = self.text_projection = self.captioning_decoder = self.masked_video_modeling = None
        self.grounding_head = self.lesion_summary = None
        if loss.is_used("grounding"):
            self.grounding_head = GroundingHead(
                width, config.grid, config.grounding.cells_per_token, type(self.video_encoder) is VideoEncoder
            )
        if config.grounding.informs_captions:
            self.lesion_summary = LesionSummary(width, config.grid, config.grounding.cells_per_token)
        self.distillation = DistillationStudent(config) if loss.is_used("distillation") else None
        learns_locally = self.distillation is not None and self.distillation.head is not None
        study = config.study_pooling
        if config.level_is_used("study") and (study.angles or study.order):
            self.view_embedding = ViewEmbedding(width, study.angles, study.order)
        if loss.is_used("contrastive"):
            assert text_encoder is not None
            if config.text_encoder.freeze > 0:
                freeze_bottom(text_encoder.bottom_up(), config.text_encoder.freeze)
            dim = config.contrastive.embedding_dim
            if config.level("contrastive") == "study":
                self.study_pooling = StudyPooling(width, study.kind, study.num_heads, study.num_layers)
            self.video_projection = nn.Linear(width, dim)
            self.text_encoder = text_encoder
            self.text_projection = nn.Linear(text_encoder.width, dim)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(config.contrastive.logit_scale)))  # its logarithm
            self.logit_bias = nn.Parameter(torch.tensor(config.logit_bias))
            self.logit_bias.requires_grad_(config.contrastive.loss_type == "sigmoid")  # softmax cannot feel a bias
        elif not learns_locally:
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
                parallel=part.parallel_share > 0,
            )
        if hasattr(self.video_encoder, "prepare_masking") and (learns_locally or loss.is_used("masked_modeling")):
            self.video_encoder.prepare_masking()  # type: ignore[operator]
        if loss.is_used("masked_modeling"):
            mvm = config.masked_modeling
            assert config.masked_target_size > 0, "a teacher's width is filled in by resolve_architecture"
            self.masked_video_modeling = MaskedVideoModeling(
                width,
                config.grid,
                config.masked_target_size,
                mvm.mask_ratio,
                mvm.decoder_hidden_size,
                mvm.decoder_layers,
                mvm.decoder_heads,
                mvm.mask_token_learnable,
                mvm.norm_predict_loss,
                mvm.target != "pixels",
                mvm.decoder_drop,
                mvm.visible_weight > 0,
            )

    def forward(
        self,
        batch: dict[str, Any],
        num_visible: int | None = None,
        losses: Collection[str] | None = None,
        shared_pass: bool = False,
    ) -> dict[str, Tensor]:
        """What the losses need, for a batch of tensors (``data.schema.Batch``): all that are in use, or of those only
        the ones that ``losses`` names. What the others alone would need is not computed.

        Rows R of a loss are the studies, or the clips, as ``config.level`` says; ``rows_at_level`` gives what belongs
        to them.

        Returns, where their loss is in use: ``video_embedding`` and ``text_embedding`` [R, E] of length 1,
            ``logit_scale``, ``logit_bias``; ``caption_logits`` [R, L-1, vocabulary], or in training mode
            ``caption_hidden`` [R, L-1, width of the decoder] and ``caption_weight`` [vocabulary, that width] whose
            product they are; what ``GroundingHead`` gives, for B*V clips; ``prediction`` and ``target`` [B*V, M, P], in
            training mode of the hidden tokens that are asked for, and ``visible_prediction`` and ``visible_target``
            [B*V, K, P] where those are predicted too. With ``num_visible`` None the masked pass is left out; with
            ``shared_pass`` it is the only one: embeddings are pooled from the ``num_visible`` tokens that each clip
            shows, and captions are read from those. Where features are predicted ``batch`` has them: ``teacher_tokens``
            [B*V, N, P]. For distillation what ``DistillationStudent.distilled`` gives, and ``local_logits``
            [B*V, local views, prototypes].

        Raises:
            ValueError: a shared pass without ``num_visible``.
        """
        if shared_pass and num_visible is None:
            raise ValueError("a shared pass is a masked one, and needs num_visible")
        out: dict[str, Tensor] = {}
        config = self.config
        contrasts, captions, reconstructs, grounds, distils = (
            part is not None and (losses is None or name in losses)
            for name, part in (
                ("contrastive", self.video_projection),
                ("captioning", self.captioning_decoder),
                ("masked_modeling", self.masked_video_modeling),
                ("grounding", self.grounding_head),
                ("distillation", self.distillation),
            )
        )
        clip, shown = self.normalise(batch["clip"]).flatten(0, 1), None
        embeds = contrasts or (distils and config.distillation.teacher is not None)
        if shared_pass and (embeds or captions):
            # Of a box task the box may lie where nothing is shown: its place is then to be told from what is around it,
            # as a hidden token is to be filled in. Boxes are not left out for it: which of them remained would tell.
            shown = self.video_encoder(clip, batch["mask_order"].flatten(0, 1)[:, :num_visible])
        if embeds or captions or grounds:
            tokens, embedded, views_at = shown, None, self.views_at(batch)
            if grounds and self.grounding_head is not None and self.grounding_head.early is not None:
                tokens, embedded = self.video_encoder(clip, with_embedded=True)
            elif shown is None:
                tokens = self.video_encoder(clip)
            assert tokens is not None
            valid = {"clip": batch["valid"], "study": batch["valid"]}
            if self.training and config.study_pooling.view_dropout > 0:
                valid["study"] = drop_views(batch["valid"], config.study_pooling.view_dropout)
            if embeds:
                level = config.level("contrastive")
                rows = rows_at_level(batch, level)
                compared = {
                    "video_embedding": self.embed_video(tokens, valid[level], views_at),
                    "text_embedding": self.embed_text(rows["input_ids"], rows["text_length"]),
                    "logit_scale": self.logit_scale.exp(),
                    "logit_bias": _as_output(self.logit_bias),
                }
                out |= compared if contrasts else {}
                if self.distillation is not None and distils:
                    out |= self.distillation.distilled(compared)
            if captions:
                assert self.captioning_decoder is not None
                level = config.level("captioning")
                rows = rows_at_level(batch, level)
                memory, mask = self.memory(tokens, valid[level], views_at)
                ids, length = caption_text(rows)
                words, parallel = ids[:, :-1], None
                if "parallel" in rows:
                    parallel = torch.where(rows["parallel"], length - 1, 0)
                if self.training:  # all logits at once are the largest thing of a step: the loss makes them in chunks
                    out["caption_hidden"] = self.captioning_decoder(words, memory, mask, True, parallel)
                    out["caption_weight"] = _as_output(self.captioning_decoder.output_weight)
                else:
                    out["caption_logits"] = self.captioning_decoder(words, memory, mask, num_parallel=parallel)
            if grounds:
                assert self.grounding_head is not None
                on_grid = tokens[:, self.video_encoder.num_prefix_tokens :]  # type: ignore[misc]
                out |= self.grounding_head(on_grid, batch["angles"].flatten(0, 1), batch["tree"].flatten(), embedded)
        if reconstructs and num_visible is not None:
            out |= self.masked_pass(clip, batch, num_visible, shown)
        if self.distillation is not None and self.distillation.head is not None and distils:
            clips = clip_numbers(batch["position"], batch["valid"].shape[1])
            out["local_logits"] = self.distillation.local_logits(self.video_encoder, clip, clips)
        return out

    def normalise(self, clip: Tensor) -> Tensor:
        """uint8 -> float with the training split's mean 0 and deviation 1, on the device the clip is on."""
        return (clip.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std

    @staticmethod
    def views_at(batch: Mapping[str, Any]) -> Tensor:
        """What is known of each view beside its pixels, for ``ViewEmbedding``: [B, V, 3]."""
        return torch.cat([batch["angles"], batch["view_index"].unsqueeze(-1).to(batch["angles"].dtype)], dim=-1)

    def embed_video(self, tokens: Tensor, valid: Tensor, views_at: Tensor) -> Tensor:
        """Tokens [B*V, c + N, D] of views ``valid`` [B, V] taken as ``views_at`` [B, V, 3] -> rows of the contrastive
        loss, of length 1: [B, E] of studies or [B*V, E] of clips."""
        assert self.video_projection is not None
        views = self.video_encoder.pool(tokens)  # type: ignore[operator]
        if self.study_pooling is not None:
            views = views.unflatten(0, tuple(valid.shape))
            if self.view_embedding is not None:
                views = views + self.view_embedding(views_at)
            views = self.study_pooling(views, valid)
        return F.normalize(full_precision(self.video_projection(views)), dim=-1)

    def embed_units(self, tokens: Tensor, valid: Tensor, views_at: Tensor) -> Tensor:
        """One vector [B, E] of length 1 for each unit: that of the study, or the mean of those of its clips."""
        rows = self.embed_video(tokens, valid, views_at)
        if self.study_pooling is None:
            kept = torch.where(valid.unsqueeze(-1), rows.unflatten(0, tuple(valid.shape)), 0)
            return F.normalize(kept.sum(dim=1), dim=-1)
        return rows

    def embed_text(self, input_ids: Tensor, text_length: Tensor) -> Tensor:
        """Ids [B, L] -> [B, E] of length 1."""
        assert self.text_encoder is not None and self.text_projection is not None
        return F.normalize(full_precision(self.text_projection(self.text_encoder(input_ids, text_length))), dim=-1)

    def memory(self, tokens: Tensor, valid: Tensor, views_at: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B*V, c + N, D] -> what the decoder attends to, and its mask: of studies [B, V*(c + N), D] and
        [B, V*(c + N)], of clips [B*V, c + N, D] and [B*V, c + N]. Where the grounding head informs captions, the
        summaries of the S segments come behind, so that a row has V * (c + N + S), or c + N + S."""
        parts = [tokens]
        if self.lesion_summary is not None:
            assert self.grounding_head is not None
            on_grid = tokens[:, self.video_encoder.num_prefix_tokens :]  # type: ignore[misc]
            parts.append(self.lesion_summary(on_grid, **self.grounding_head.found_in(on_grid)))
        rows = valid if self.config.level("captioning") == "study" else valid.reshape(-1, 1)
        parts = [part.unflatten(0, tuple(rows.shape)) for part in parts]  # [rows, views of a row, ...]
        if self.config.level("captioning") == "study" and self.view_embedding is not None:
            parts = [part + self.view_embedding(views_at).unsqueeze(2) for part in parts]
        masks = [rows.repeat_interleave(part.shape[2], dim=1) for part in parts]
        if len(parts) == 1:  # no copy
            return parts[0].flatten(1, 2), masks[0]
        return torch.cat([part.flatten(1, 2) for part in parts], dim=1), torch.cat(masks, dim=1)

    def masked_pass(
        self, clip: Tensor, batch: Mapping[str, Any], num_visible: int, shown: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the masked loss compares (``MaskedVideoModeling.pairs``), of ``clip`` [B*V, T, H, W]. ``shown``
        [B*V, c + K, D] is what the encoder makes of the visible tokens, where that is known."""
        part, mask_order = self.masked_video_modeling, batch["mask_order"].flatten(0, 1)
        assert part is not None
        visible, hidden = mask_order[:, :num_visible], mask_order[:, num_visible:]
        if self.training and part.decoder_drop > 0:
            clips = clip_numbers(batch["position"], batch["mask_order"].shape[1])
            hidden = part.asked(hidden, self.config.seed, clips)
        tokens = self.video_encoder(clip, visible) if shown is None else shown
        tokens = tokens[:, self.video_encoder.num_prefix_tokens :]  # type: ignore[misc]
        truth = batch["teacher_tokens"] if part.predicts_features else patchify(clip, self.config.tubelet)
        return part.pairs(tokens, visible, hidden, truth)

    def reconstruct(self, clip: Tensor, mask_order: Tensor, num_visible: int) -> tuple[Tensor, Tensor]:
        """Predictions and targets [B*V, M, P] of the tokens of ``mask_order`` [B*V, N] after the first
        ``num_visible``; of a model that predicts pixels."""
        assert self.masked_video_modeling is not None
        visible, hidden = mask_order[:, :num_visible], mask_order[:, num_visible:]
        tokens = self.video_encoder(clip, visible)[:, self.video_encoder.num_prefix_tokens :]  # type: ignore[misc]
        prediction = self.masked_video_modeling(tokens, visible, hidden)
        tubelets = gather_tokens(patchify(clip, self.config.tubelet), hidden)
        return prediction, self.masked_video_modeling.target(tubelets)

    @classmethod
    def from_sources(cls, config: Config) -> MultitaskModel:
        """A model at the start of a run: encoders with the weights that their sources have, the rest at random."""
        config = resolve_architecture(config)
        text = TextEncoder.from_pretrained(config.text_encoder.source) if config.loss.is_used("contrastive") else None
        model = cls(config, text, own_description(config))
        model.loaded = load_pretrained(model)
        return model

    @classmethod
    def from_architecture(cls, config: Config, checkpoint: Path) -> MultitaskModel:
        """A model whose weights will be those of ``checkpoint``, where its encoders are described; nothing is
        fetched."""
        uses_text = config.loss.is_used("contrastive")
        text = TextEncoder.from_config(checkpoint / "text_encoder") if uses_text else None
        return cls(config, text, checkpoint / "video_encoder")

    def save_descriptions(self, folder: Path) -> None:
        """Write what ``from_architecture`` reads, beside the config."""
        if self.text_encoder is not None:
            self.text_encoder.save_config(folder / "text_encoder")
        if hasattr(self.video_encoder, "save_config"):
            self.video_encoder.save_config(folder / "video_encoder")  # type: ignore[operator]

    def num_parameters(self) -> dict[str, tuple[int, int]]:
        """Parameters of each component, and how many of them are trained."""
        counts = {}
        for name, part in self.named_children():
            sizes = [(p.numel(), p.requires_grad) for p in part.parameters()]
            if sizes:
                counts[name] = (sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))
        return counts


def _as_output(parameter: Tensor) -> Tensor:
    """A view of a parameter that a loss multiplies with. Where DDP looks for unused parameters it follows the outputs'
    graphs, and a bare parameter has none: it would be taken for unused, and then have a gradient after all."""
    return parameter.view_as(parameter)
