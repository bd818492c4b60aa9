"""What a person looks at while a run trains: clips filled in by the model, reports it writes, and which video it finds
alike to which report. Nothing here is measured; the metrics are in ``evaluation``.

Letters: B rows, V views, T frames, H W pixels, N tokens of a clip, K visible, M hidden, P pixels of a tubelet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcoro.config import Config
from deepcoro.data.text import ReportTokenizer
from deepcoro.evaluation.units import embed_unit_texts, write_texts
from deepcoro.losses.positives import find_match, keys_of
from deepcoro.models.layers import AttentionPool, gather_tokens
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.video_encoder import patchify, unpatchify

_NUM_FRAMES = 8  # of a strip, at most
_GAP = 1  # white pixels around each frame of a strip
_HIDDEN_GREY = 128
_CELL = 24  # pixels of a similarity's square
_MOST_RED = 0.7  # of a pixel's colour, where a token has the clip's largest weight
_OUTLINE = 2  # pixels of the black line around a positive

# Cosine -1, 0 and 1 as blue, white and red; the scale never moves, so that pictures of two steps can be compared.
_COLOURS = np.array([[33, 102, 172], [247, 247, 247], [178, 24, 43]], np.float64)


@dataclass(frozen=True)
class Pictures:
    """What was drawn of a few rows; a part that the model does not have is absent."""

    strips: np.ndarray | None = None  # uint8 [rows, H', W'], grey
    reports: list[tuple[str, str, str]] = field(default_factory=list)  # unit_id, true, written
    similarity: np.ndarray | None = None  # uint8 [h, w, 3]
    attention: np.ndarray | None = None  # uint8 [rows, H', W', 3]


@torch.no_grad()
def draw_pictures(
    model: MultitaskModel, config: Config, batch: dict[str, Any], tokenizer: ReportTokenizer | None
) -> Pictures:
    """Draw the rows of ``batch`` that have a valid view.

    Args:
        model: in whatever mode; it is evaluated, and left as it was.
        batch: a ``Batch`` of tensors on the model's device, as ``data.collate.to_torch`` gives it. All its rows are
            computed at once, so they should be few.
        tokenizer: needed where the model writes reports.

    Returns:
        ``strips``, where pixels are what masked modelling predicts: a row's first valid view in up to 8 evenly spaced
            frames, and below one another the original, what the model was shown of it (the rest flat grey), and the
            same with the hidden tokens as the model predicts them. Where predictions are normalised
            (``norm_predict_loss``) each hidden tubelet has its own true mean and deviation put back, which the model
            does not know: what is the model's own is the pattern inside a tubelet, and not its brightness or contrast.
        ``reports``, where captioning is in use: the true text as the decoder is trained on it (empty where there is
            none), and the one that it writes, greedily.
        ``similarity``, where contrastive is in use and a row has a report: cosine of each video (down) with each
            report (across) from blue (-1) over white (0) to red (1), pairs of equal reports outlined in black.
        ``attention``, where contrastive is in use and tokens are pooled by attention: a row's first valid view, and
            below it where the pooled vector comes from.
    """
    kept = batch["valid"].any(dim=1)
    names = [str(unit) for unit, keep in zip(batch["unit_id"], kept.tolist(), strict=True) if keep]
    if not names:
        return Pictures()
    batch = {key: value[kept] for key, value in batch.items() if isinstance(value, Tensor)}
    with _evaluated(model):
        clip = model.normalise(batch["clip"])
        strips = _strips(model, config, batch, clip) if config.measures_reconstruction else None
        if not config.needs_text:
            return Pictures(strips)
        tokens = model.video_encoder(clip.flatten(0, 1))
        reports = _reports(model, batch, tokens, tokenizer, names) if model.captioning_decoder else []
        if model.video_projection is None:
            return Pictures(strips, reports)
        similarity = _similarity(model, batch, tokens)
        attention = None
        if isinstance(model.video_encoder.pool, AttentionPool):
            rows, view = torch.arange(len(clip), device=clip.device), batch["valid"].int().argmax(dim=1)
            weights = model.video_encoder.pool.weights(tokens).unflatten(0, tuple(batch["valid"].shape))[rows, view]
            of_grid = weights[:, model.video_encoder.num_prefix_tokens :].unflatten(1, config.grid)  # type: ignore[misc]
            attention = attention_picture(batch["clip"][rows, view].cpu().numpy(), of_grid.cpu().numpy())
    return Pictures(strips, reports, similarity, attention)


@contextlib.contextmanager
def _evaluated(model: MultitaskModel) -> Iterator[None]:
    """In evaluation mode, and every module back in its own afterwards: a part may be frozen in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _strips(model: MultitaskModel, config: Config, batch: dict[str, Any], clip: Tensor) -> np.ndarray:
    """``clip`` [B, V, T, H, W], normalised -> uint8 [B, H', W']."""
    assert model.masked_video_modeling is not None
    rows, view = torch.arange(len(clip), device=clip.device), batch["valid"].int().argmax(dim=1)
    original, clip = batch["clip"][rows, view], clip[rows, view]  # [B, T, H, W]
    order, k = batch["mask_order"][rows, view], config.num_visible
    prediction, _ = model.reconstruct(clip, order, k)
    tubelets, places = patchify(clip, config.tubelet), order[:, k:, None]
    pixels = model.masked_video_modeling.to_pixels(prediction, gather_tokens(tubelets, order[:, k:]))
    is_hidden = torch.zeros_like(tubelets, dtype=torch.bool).scatter(1, places.expand_as(pixels), True)
    filled = tubelets.scatter(1, places.expand_as(pixels), pixels.to(tubelets.dtype))
    is_hidden, filled = (unpatchify(x, config.grid, config.tubelet) for x in (is_hidden, filled))
    grey = (filled * model.pixel_std + model.pixel_mean).round().clamp(0, 255).to(torch.uint8)
    masked = original.masked_fill(is_hidden, _HIDDEN_GREY)
    lines = torch.stack([original, masked, torch.where(is_hidden, grey, original)], dim=1)  # [B, 3, T, H, W]
    frames = np.linspace(0, clip.shape[1] - 1, min(_NUM_FRAMES, clip.shape[1])).round().astype(int)
    shown = np.pad(lines.cpu().numpy()[:, :, frames], [(0, 0)] * 3 + [(_GAP, _GAP)] * 2, constant_values=255)
    num, _, _, height, width = shown.shape
    return shown.transpose(0, 1, 3, 2, 4).reshape(num, 3 * height, len(frames) * width)


def _reports(
    model: MultitaskModel, batch: dict[str, Any], tokens: Tensor, tokenizer: ReportTokenizer | None, names: list[str]
) -> list[tuple[str, str, str]]:
    assert model.captioning_decoder is not None and tokenizer is not None
    writing = model.config.captioning.without_luck()
    written = write_texts(model, tokenizer, tokens, batch["valid"], model.views_at(batch), writing)
    return [
        (name, tokenizer.decode(true), own)
        for name, true, own in zip(names, batch["input_ids"].tolist(), written, strict=True)
    ]


def _similarity(model: MultitaskModel, batch: dict[str, Any], tokens: Tensor) -> np.ndarray | None:
    told = batch["has_report"]
    if not told.any():
        return None
    video = model.embed_units(tokens, batch["valid"], model.views_at(batch))[told]
    text = embed_unit_texts(model, batch)[told]
    names, match = find_match(model.config.contrastive.positives)
    keys = keys_of(batch, names)[told]
    return similarity_picture((video @ text.T).cpu().numpy(), match(keys, keys).cpu().numpy())


def attention_picture(clips: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``clips`` [B, T, H, W] uint8 and ``weights`` [B, t, h, w] of their tokens -> uint8 [B, H', W', 3]: up to 8 evenly
    spaced frames, and below them the same, the redder the more weight a token has; full red is the clip's largest."""
    frames = np.linspace(0, clips.shape[1] - 1, min(_NUM_FRAMES, clips.shape[1])).round().astype(int)
    scale = [pixels // tokens for pixels, tokens in zip(clips.shape[1:], weights.shape[1:], strict=True)]
    for axis, times in enumerate(scale, start=1):
        weights = weights.repeat(times, axis=axis)
    share = (_MOST_RED * weights / weights.max(axis=(1, 2, 3), keepdims=True))[:, frames, ..., None]
    grey = clips[:, frames, ..., None].repeat(3, axis=-1).astype(np.float64)
    lit = grey * (1 - share) + np.array([255, 0, 0]) * share
    lines = np.stack([grey, lit], axis=1).round().astype(np.uint8)  # [B, 2, frames, H, W, 3]
    edge = [(0, 0)] * 3 + [(_GAP, _GAP)] * 2 + [(0, 0)]
    shown = np.pad(lines, edge, constant_values=255)
    num, _, _, height, width, _ = shown.shape
    return shown.transpose(0, 1, 3, 2, 4, 5).reshape(num, 2 * height, len(frames) * width, 3)


def similarity_picture(cosine: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """``cosine`` [n, m] from -1 to 1 as coloured squares uint8 [h, w, 3]; those of ``positive`` [n, m] bool are
    outlined."""
    levels = np.linspace(-1, 1, len(_COLOURS))
    cells = np.stack([np.interp(cosine, levels, channel) for channel in _COLOURS.T], axis=-1).round().astype(np.uint8)
    picture = cells.repeat(_CELL, axis=0).repeat(_CELL, axis=1)
    edge = np.ones((_CELL, _CELL), bool)
    edge[_OUTLINE:-_OUTLINE, _OUTLINE:-_OUTLINE] = False
    picture[np.kron(positive, edge).astype(bool)] = 0
    return picture
