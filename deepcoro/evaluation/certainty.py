"""How sure a model is of the findings of units: probabilities of what its reports say and pass over.

Letters: B units, V views, N tokens of a clip, D width, M tokens that the decoder looks at, S segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcoro.config import Config
from deepcoro.data.text import ReportTokenizer
from deepcoro.errors import ConfigError
from deepcoro.evaluation.units import report_automaton
from deepcoro.models.multitask import MultitaskModel
from deepcoro.reports.vocabulary import SEGMENTS

if TYPE_CHECKING:
    from deepcoro.models.structured import TokenAutomaton
    from deepcoro.models.structured_probabilities import ReportProbabilities, ReportQuestions

_INDEX = {segment: index for index, segment in enumerate(SEGMENTS)}


class Certainty(NamedTuple):
    """What was found of a unit; or ``None``, and ``why``."""

    found: ReportProbabilities | None
    why: str = ""


@torch.no_grad()
def unit_probabilities(
    model: MultitaskModel,
    words: ReportTokenizer,
    tokens: Tensor,
    valid: Tensor,
    views_at: Tensor,
    texts: Sequence[str],
) -> list[Certainty]:
    """Of units with video ``tokens`` [B*V, N, D], views ``valid`` [B, V] taken as ``views_at`` [B, V, 3] what the model
    holds for true of each segment that ``texts`` [B] name or pass over (``models.structured_probabilities``).

    Args:
        texts: reports of the units, such as those that ``write_texts`` wrote of the same arguments.

    Returns:
        [B]; without probabilities where there is nothing to be sure of: no view is valid; the text is none of the
        canonical wording, nor says just what one of them does (words that are no report, a contradiction, two trees of
        one clip); all that would be asked is longer than the decoder has positions for; or it is put together of
        several clips' (a study whose clips are written about by themselves), so that no one video stands behind it.
        Segments of which alone too long a text would be asked are ``left_out``.

    Raises:
        ConfigError: the tokenizer cannot write canonical reports.
    """
    from deepcoro.models.branches import branch_scores

    decoder = model.captioning_decoder
    assert decoder is not None
    if len(texts) != len(valid):
        raise ValueError(f"expected a text for each of {len(valid)} units, got {len(texts)}")
    automaton = report_automaton(words, model.config)
    memory, mask = model.memory(tokens, valid, views_at)
    if len(memory) != len(texts):
        return [Certainty(None, "it is put together of several clips' reports")] * len(texts)
    positions = decoder.position_embedding.num_embeddings
    of_text = {text: _questions(automaton, text, positions) for text in set(texts)}
    found, asked = [Certainty(None, "no video could be read")] * len(texts), {}
    for unit in torch.nonzero(valid.any(dim=1)).flatten().tolist():
        about = of_text[texts[unit]]
        if isinstance(about, str):
            found[unit] = Certainty(None, about)
        else:
            asked[unit] = about
    rows = torch.tensor(list(asked), dtype=torch.long, device=memory.device)
    answers = branch_scores(decoder, memory[rows], mask[rows], [about.questions for about in asked.values()])
    for (unit, about), of_unit in zip(asked.items(), answers, strict=True):
        found[unit] = Certainty(about.answered(of_unit))
    return found


def _questions(automaton: TokenAutomaton, text: str, positions: int) -> ReportQuestions | str:
    """What to ask about a text, or why nothing is."""
    from deepcoro.models.structured_probabilities import ReportQuestions

    try:
        asked = ReportQuestions(automaton, text, positions)
    except ValueError as error:  # no report says that, and nothing else
        return str(error)
    too_long = f"it is too long to be asked about in {positions} tokens (captioning.max_position_embeddings)"
    return too_long if asked.left_out and not asked.answers_some else asked


def segment_probabilities(found: ReportProbabilities) -> NDArray[np.float64] | None:
    """Probability of significant disease of each segment [S]; 0 of those that the report cannot name, such as those of
    the tree that it is not about. ``None`` where the model holds the report for impossible, or some are left out."""
    if found.left_out:
        return None
    table = np.zeros(len(SEGMENTS))
    for one in found.segments:
        table[_INDEX[one.segment]] = one.significant
    return None if np.isnan(table).any() else np.clip(table, 0, 1)  # a sum of shares may be 1 + 1e-16


def can_be_sure(config: Config, words: ReportTokenizer | None, *, training: bool) -> bool:
    """Whether an evaluation gives probabilities of findings, as ``evaluation.finding_probabilities`` has it.

    They are of a unit's own report. A study that is put together of its clips' reports has none: the probabilities of
    each clip hang on what is written of that clip.

    Args:
        training: whether the model is still being trained.

    Raises:
        ConfigError: they are asked for, and the tokenizer cannot write canonical reports.
    """
    wanted = config.evaluation.finding_probabilities
    together = not (config.needs_clip_texts and config.level("captioning") == "clip")
    if wanted == "never" or (training and wanted != "always") or words is None:
        return False
    if not config.loss.is_used("captioning") or not together:
        return False
    try:
        report_automaton(words, config)
    except ConfigError as error:
        if wanted == "always":
            raise ConfigError(f"evaluation.finding_probabilities is always, and {error}") from error
        print(f"There are no probabilities of findings: {error}")
        return False
    return True
