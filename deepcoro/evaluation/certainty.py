"""How sure a model is of what the reports of units say and pass over.

Letters: B units, V views, N tokens of a clip, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepcoro.config import Config
from deepcoro.data.caption_tasks import TASKS
from deepcoro.data.text import ReportTokenizer
from deepcoro.models.multitask import MultitaskModel

if TYPE_CHECKING:
    from deepcoro.models.structured import TokenAutomaton
    from deepcoro.models.structured_probabilities import ReportProbabilities


@torch.no_grad()
def unit_probabilities(
    model: MultitaskModel,
    words: ReportTokenizer,
    tokens: Tensor,
    valid: Tensor,
    views_at: Tensor,
    texts: Sequence[str],
) -> list[ReportProbabilities | None]:
    """Of units with video ``tokens`` [B*V, N, D], views ``valid`` [B, V] taken as ``views_at`` [B, V, 3] what the model
    holds for true of each segment that ``texts`` [B] name or pass over (``models.structured_probabilities``).

    ``None`` where there is nothing to be sure of: no view is valid; the text says what no report of the canonical
    wording says, or is longer than the decoder has positions for; or the decoder reads the clips of a study by
    themselves, so that no one of them stands behind its text.

    Raises:
        ConfigError: the tokenizer cannot write canonical reports.
    """
    from deepcoro.models.structured_probabilities import decoder_scores, report_probabilities

    assert model.captioning_decoder is not None
    automaton = report_automaton(words, model.config)
    memory, mask = model.memory(tokens, valid, views_at)
    found: list[ReportProbabilities | None] = [None] * len(texts)
    if len(memory) != len(texts):
        return found
    for unit in torch.nonzero(valid.any(dim=1)).flatten().tolist():
        scores = decoder_scores(model.captioning_decoder, memory[unit : unit + 1], mask[unit : unit + 1])
        try:
            found[unit] = report_probabilities(automaton, texts[unit], scores)
        except ValueError:  # no report says that, or it is too long
            continue
    return found


def report_automaton(words: ReportTokenizer, config: Config) -> TokenAutomaton:
    """The reports of the canonical wording that a model of ``config`` may write.

    Raises:
        ConfigError: the tokenizer cannot write them.
    """
    from deepcoro.models.structured_writing import reports_of_units

    prefix = f"{TASKS['report']} " if config.captioning.tasks.in_use else ""
    return reports_of_units(words, config.level("captioning") == "study", prefix)
