"""Where a model sees what its report says: the decoder asked for the box of each finding (``data.caption_tasks``).

Letters: B units, V views, N tokens of a clip, D width, R questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepcoro.config_writing import Writing
from deepcoro.data.caption_tasks import Region, prompt_ids, read_region
from deepcoro.data.text import ReportTokenizer
from deepcoro.models.multitask import MultitaskModel
from deepcoro.reports.grammar import parse_report

_AT_ONCE = 128  # questions: each holds the keys and values of its clip
_PLACE_TOKENS = 40  # that an answer may have; "Frame 12: 120 444 180 497." has 24 where each digit is a token


@torch.no_grad()
def write_regions(
    model: MultitaskModel,
    words: ReportTokenizer,
    tokens: Tensor,
    valid: Tensor,
    views_at: Tensor,
    rows: Sequence[int],
    sentences: Sequence[str],
) -> list[Region | None]:
    """For each of R questions the place of a finding in a clip, or ``None`` where the model names none: what it wrote
    is no box with an inside, or of a frame that the clip has not, or the clip is not ``valid``, or the sentence leaves
    no room in the decoder's positions.

    All questions are written together, greedily. Their sentences differ in length, so none of them is given: every row
    begins with the task's prefix, and is then held to its own sentence, word by word. It writes what it would write
    after a prompt of its own.

    Args:
        tokens, valid, views_at: [B*V, N, D], [B, V] and [B, V, 3], as ``write_texts`` has them.
        rows: of each question the clip: view v of unit b is b * V + v.
        sentences: of each question the sentence of one finding (``render_finding``).

    Raises:
        ConfigError: the model was not trained on ``aref``.
        ValueError: no such clip, or a sentence does not tell one finding.
    """
    part, clips = model.config.captioning, valid.numel()
    start = prompt_ids(words, part, "aref")
    segments = [_segment(sentence, place) for place, sentence in enumerate(sentences)]
    if wrong := [row for row in rows if not 0 <= row < clips]:
        raise ValueError(f"clip {wrong[0]} is none of the {clips} that there are")
    memory, mask = model.memory(tokens, valid, views_at)
    asked = [prompt_ids(words, part, "aref", sentence)[len(start) :] for sentence in sentences]
    order = sorted(range(len(asked)), key=lambda number: len(asked[number]))  # those of one length end together
    found: list[Region | None] = [None] * len(asked)
    for begin in range(0, len(order), _AT_ONCE):
        some = order[begin : begin + _AT_ONCE]
        clip = torch.tensor([rows[number] for number in some], device=memory.device)
        texts = _answers(model, words, memory[clip], mask[clip], start, [asked[number] for number in some])
        for number, text in zip(some, texts, strict=True):
            place = read_region(text)
            if place is not None and place[0] < model.config.data.num_frames:
                found[number] = Region(segments[number], *place)
    return found


def _answers(
    model: MultitaskModel,
    words: ReportTokenizer,
    memory: Tensor,
    mask: Tensor,
    start: list[int],
    asked: list[list[int]],
) -> list[str]:
    """What is written of the clips ``memory`` [R, N, D] after ``start`` and the ids ``asked``."""
    from transformers import LogitsProcessorList  # which takes seconds to load

    from deepcoro.models.generation import generate

    assert model.captioning_decoder is not None
    longest = max(len(ids) for ids in asked)
    prompt = torch.tensor(start, device=memory.device).expand(len(asked), -1)
    ids = generate(
        model.captioning_decoder,
        memory,
        mask,
        prompt,
        words.end_id,
        words.pad_id,
        Writing(max_generation_length=longest + _PLACE_TOKENS),
        LogitsProcessorList([_Held(asked, len(start), memory.device)]),
    ).ids
    return [words.decode(row[len(given) :]) for row, given in zip(ids.tolist(), asked, strict=True)]


class _Held:
    """Lets each row write nothing but its own ids, until it has written them all.

    Args:
        ids: of each row what it is held to.
        begin: how many ids of the row stand before them.
    """

    def __init__(self, ids: list[list[int]], begin: int, device: torch.device) -> None:
        longest = max(len(own) for own in ids)
        padded = [own + [-1] * (longest - len(own)) for own in ids]
        self._ids, self._begin = torch.tensor(padded, device=device), begin

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        place = input_ids.shape[1] - self._begin
        if place >= self._ids.shape[1]:
            return scores
        own = self._ids[:, place : place + 1]
        alone = torch.full_like(scores, float("-inf")).scatter(1, own.clamp(min=0), 0.0)
        return torch.where(own >= 0, alone, scores)


def _segment(sentence: str, place: int) -> str:
    told = parse_report(sentence)
    if len(told.findings) != 1 or told.unread or told.trees or told.normal:
        raise ValueError(f"sentence {place}, {sentence!r}, does not tell one finding, as render_finding writes it")
    return told.findings[0].segment
