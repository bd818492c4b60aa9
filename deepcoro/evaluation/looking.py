"""What a model answers to "where is this lesion?": the box that it writes when asked, and where its cross-attention
lies while it reads the true report.

Where a decoder reads summaries of segments too (``models/lesion_summary.py``), what it attends to in those has no place
and counts nowhere: pointing is then of the rest of its attention, and no measure beside a decoder without them.

Letters: B units, V views, N tokens of a clip's grid, c tokens before them, D width, L text tokens, M video tokens that
the decoder sees, t h w tokens of a clip along time, height, width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcoro.data.text import ReportTokenizer
from deepcoro.evaluation.pointing import write_regions
from deepcoro.evaluation.shown import Box, ShownLesion
from deepcoro.levels import caption_text, rows_at_level
from deepcoro.models.multitask import MultitaskModel

_TEXTS_AT_ONCE = 8  # whose attention is held, a layer at a time: of 128 words, 8 heads and 1,568 tokens 50 MB


@dataclass(frozen=True)
class Looked:
    """What was found for one lesion that a unit shows.

    Args:
        segment, view: which lesion in which of the unit's clips.
        asked: whether its box was asked for.
        answer: frame and box that the model wrote; ``None`` where that is no box.
        attention: [t, h, w], where the decoder looked at the words that name the lesion in the true report: the mean
            over their tokens, all layers and all heads. ``None`` where the report does not have them.
    """

    segment: str
    view: int
    asked: bool
    answer: tuple[int, Box] | None
    attention: NDArray[np.float32] | None


@torch.no_grad()
def look_for(
    model: MultitaskModel,
    words: ReportTokenizer,
    batch: Mapping[str, Any],
    tokens: Tensor,
    lesions: Sequence[Sequence[ShownLesion]],
) -> list[list[Looked]]:
    """Ask a model for the lesions that each unit of a batch shows (``shown_lesions``).

    Args:
        model: in evaluation mode.
        batch: as ``UnitReader`` reads it in evaluation.
        tokens: [B*V, c + N, D], of its clips.
        lesions: of each unit; those of a clip that could not be read are left out.
    """
    valid, views = batch["valid"], batch["valid"].shape[1]
    there = valid.tolist()
    asked = [(unit, lesion) for unit, own in enumerate(lesions) for lesion in own if there[unit][lesion.view]]
    asks_boxes = model.config.captioning.tasks.aref > 0
    boxes: list[tuple[int, Box] | None] = [None] * len(asked)
    if asks_boxes and asked:
        clips = [unit * views + lesion.view for unit, lesion in asked]
        sentences = [lesion.finding for _, lesion in asked]
        regions = write_regions(model, words, tokens, valid, model.views_at(batch), clips, sentences)
        boxes = [None if region is None else (region.frame, region.box) for region in regions]
    maps = _attention(model, words, batch, tokens, asked)
    found: list[list[Looked]] = [[] for _ in lesions]
    for (unit, lesion), box, attention in zip(asked, boxes, maps, strict=True):
        found[unit].append(Looked(lesion.segment, lesion.view, asks_boxes, box, attention))
    return found


def _attention(
    model: MultitaskModel,
    words: ReportTokenizer,
    batch: Mapping[str, Any],
    tokens: Tensor,
    asked: Sequence[tuple[int, ShownLesion]],
) -> list[NDArray[np.float32] | None]:
    """Of each lesion of ``asked``, of a unit, the map of ``Looked.attention``."""
    assert model.captioning_decoder is not None
    level, views = model.config.level("captioning"), batch["valid"].shape[1]
    rows = rows_at_level(batch, level)
    ids, length = caption_text(rows)
    memory, mask = model.memory(tokens, batch["valid"], model.views_at(batch))
    prefix, of_clip = int(model.video_encoder.num_prefix_tokens), tokens.shape[1]  # type: ignore[arg-type]
    found: list[NDArray[np.float32] | None] = [None] * len(asked)
    wanted: dict[int, list[tuple[int, list[int], int]]] = defaultdict(list)  # text -> lesion, places, its first token
    for number, (unit, lesion) in enumerate(asked):
        text = unit if level == "study" else unit * views + lesion.view
        places = _places(words, lesion, int(rows["prefix_length"][text]), int(length[text]))
        if places:
            wanted[text].append((number, places, of_clip * lesion.view if level == "study" else 0))
    texts = [*wanted]
    for begin in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[begin : begin + _TEXTS_AT_ONCE]
        layers = model.captioning_decoder.attention(ids[some, :-1], memory[some], mask[some])
        total, num_layers = torch.zeros(()), 0
        for weights in layers:
            total, num_layers = total + weights.mean(dim=1).cpu(), num_layers + 1
        for own, text in zip(total / num_layers, some, strict=True):
            for number, places, first in wanted[text]:
                seen = own[places].mean(dim=0)[first + prefix : first + of_clip]
                found[number] = seen.view(model.config.grid).numpy()
    return found


def _places(words: ReportTokenizer, lesion: ShownLesion, prefix_length: int, text_length: int) -> list[int]:
    """The places of a text from which the tokens of ``lesion.name`` are said: the one before each. Empty where the
    report does not have these words, or lost them for its length."""
    begin = -1 if lesion.report is None else lesion.report.find(lesion.name)
    if begin < 0:
        return []
    assert lesion.report is not None
    end = begin + len(lesion.name)
    tokens = [
        prefix_length + place
        for place, (first, last) in enumerate(words.offsets(lesion.report))
        if first < end and last > begin
    ]
    return [token - 1 for token in tokens] if tokens and tokens[-1] < text_length - 1 else []
