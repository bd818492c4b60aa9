"""What a model makes of units, whether its losses took their clips by themselves or together.

Letters: B units, V views, N tokens of a clip, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepcoro.config import Config
from deepcoro.config_writing import Writing
from deepcoro.data.caption_tasks import TASKS, prompt_ids
from deepcoro.data.text import ReportTokenizer
from deepcoro.levels import rows_at_level
from deepcoro.models.multitask import MultitaskModel
from deepcoro.reports.grammar import parse_report

if TYPE_CHECKING:
    from deepcoro.models.structured import TokenAutomaton
    from deepcoro.models.structured_writing import StructuredReports


def embed_unit_texts(model: MultitaskModel, batch: Mapping[str, Any]) -> Tensor:
    """The counterpart of ``MultitaskModel.embed_units``: a vector [B, E] of length 1 of each unit's text, or of the
    different texts of its clips."""
    rows = rows_at_level(batch, model.config.level("contrastive"))
    embedded = model.embed_text(rows["input_ids"], rows["text_length"])
    if rows is batch:
        return embedded
    key, told = batch["clip_report_key"], batch["clip_has_report"]
    said_before = ((key[:, :, None] == key[:, None]) & told[:, None]).tril(-1).any(dim=2)
    first = told & ~said_before
    of_clips = torch.where(first.unsqueeze(-1), embedded.unflatten(0, tuple(told.shape)), 0)
    return F.normalize(of_clips.sum(dim=1), dim=-1)


def unit_text_keys(batch: Mapping[str, Any], config: Config) -> list[tuple[int, ...]]:
    """Of each unit the keys of the texts that ``embed_unit_texts`` made its vector of; units with equal ones say the
    same. Empty where there is no text."""
    if rows_at_level(batch, config.level("contrastive")) is batch:
        pairs = zip(batch["report_key"].tolist(), batch["has_report"].tolist(), strict=True)
        return [(key,) if told else () for key, told in pairs]
    rows = zip(batch["clip_report_key"].tolist(), batch["clip_has_report"].tolist(), strict=True)
    return [tuple(sorted({key for key, told in zip(*row, strict=True) if told})) for row in rows]


def write_texts(
    model: MultitaskModel,
    words: ReportTokenizer,
    tokens: Tensor,
    valid: Tensor,
    views_at: Tensor,
    writing: Writing | None = None,
) -> list[str]:
    """Texts [B] of units with video ``tokens`` [B*V, N, D], views ``valid`` [B, V] taken as ``views_at`` [B, V, 3].

    Where the model writes about clips by themselves, a unit's text is that of its clips (``join_texts``).

    Args:
        writing: how; ``None``: as the config's captioning section says.
    """
    from transformers import LogitsProcessorList  # which takes seconds to load

    from deepcoro.models.generation import generate

    assert model.captioning_decoder is not None
    how = writing or model.config.captioning
    memory, mask = model.memory(tokens, valid, views_at)
    prompt = torch.tensor(prompt_ids(words, model.config.captioning), device=memory.device)
    keeper = keep_to_reports(words, model.config, how)
    ids = generate(
        model.captioning_decoder,
        memory,
        mask,
        prompt.expand(len(memory), -1),
        words.end_id,
        words.pad_id,
        how,
        None if keeper is None else LogitsProcessorList([keeper]),
    ).ids
    texts = [words.decode(row) for row in ids.tolist()]
    if len(texts) == len(valid):
        return texts
    views = valid.shape[1]
    kept = [text if there else None for text, there in zip(texts, valid.flatten().tolist(), strict=True)]
    return [join_texts(kept[begin : begin + views]) for begin in range(0, len(kept), views)]


def keep_to_reports(words: ReportTokenizer, config: Config, how: Writing) -> StructuredReports | None:
    """What keeps writing to the wording of reports, where the config asks for it (``captioning.structured``).

    Raises:
        ConfigError: the tokenizer cannot write them, or the shortest of them is longer than what may be written.
    """
    part = config.captioning
    if not part.structured:
        return None
    from deepcoro.models.structured_writing import StructuredReports

    room = part.max_position_embeddings - len(prompt_ids(words, part)) + 1
    return StructuredReports(report_automaton(words, config), min(how.max_generation_length, room))


def report_automaton(words: ReportTokenizer, config: Config) -> TokenAutomaton:
    """The reports of the canonical wording that a model of ``config`` may write.

    Raises:
        ConfigError: the tokenizer cannot write them.
    """
    from deepcoro.models.structured_writing import reports_of_units

    prefix = f"{TASKS['report']} " if config.captioning.tasks.in_use else ""
    return reports_of_units(words, config.level("captioning") == "study", prefix)


def join_texts(texts: Sequence[str | None]) -> str:
    """Texts of one study's clips -> one: of each tree what most of its clips say, or the first of what equally many
    say, so that no report contradicts itself. What names no tree is said as it stands, once."""
    said: dict[str, list[str]] = {}
    for text in texts:
        if text is not None:
            said.setdefault(parse_report(text).tree or text, []).append(text)
    return " ".join(max(of_tree, key=of_tree.count) for of_tree in said.values())
