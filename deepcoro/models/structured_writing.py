"""Masks the scores of a generation so that every row becomes a report of the canonical wording.

    automaton = TokenAutomaton(ReportAutomaton.of(trees=("left", "right")), tokenizer)
    writer = StructuredReports(automaton, max_new_tokens=128)
    model.generate(..., logits_processor=LogitsProcessorList([writer]), max_new_tokens=128)

It stands before whatever cuts scores (top-k, top-p), as ``transformers`` itself puts it: those may leave nothing of
what is allowed. What is sampled from is the model masked and renormalised at every step. That is not the model given
that it writes a report: a step doesn't know how likely the text that it begins would have stayed one.

Letters: R rows (beams and samples count), L tokens so far, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from deepcoro.models.structured import LOST, TokenAutomaton, TokenState, Words
from deepcoro.reports.automaton import ReportAutomaton
from deepcoro.reports.vocabulary import TREES


@functools.lru_cache(maxsize=8)
def reports_of_units(words: Words, whole_study: bool, prefix: str = "") -> TokenAutomaton:
    """What may be written where nothing is known beforehand: any dominance, and of clips either tree.

    Kept by the tokenizer (the object), since it takes a second to build.

    Args:
        words: the tokenizer.
        whole_study: whether a report is of a study; else of the tree that a clip shows.
        prefix: as of ``TokenAutomaton``.

    Raises:
        ConfigError: the tokenizer cannot write structured reports.
    """
    return TokenAutomaton(ReportAutomaton.of(trees=[None] if whole_study else TREES), words, prefix)


class StructuredReports(LogitsProcessor):
    """Scores [R, V] of the next token -> the same, and -inf for tokens after which no report can be written in time.

    States are kept by the ids of their rows, so that beams may be reordered, dropped and copied between steps; a row
    never seen is read from its beginning. Use one for one generation, or many after another.

    Args:
        automata: one for all rows, or one for each of the rows given to a generation, in their order: where the tree in
            view is known, its reports alone. With beams or several samples a row, R is a multiple of their number and
            the rows of one stand together.
        max_new_tokens: as of the generation: ids after the given ones, end token included.

    Raises:
        ConfigError: not even the shortest report fits into ``max_new_tokens``.
    """

    def __init__(self, automata: TokenAutomaton | Sequence[TokenAutomaton], max_new_tokens: int) -> None:
        self.automata = [automata] if isinstance(automata, TokenAutomaton) else list(automata)
        if not self.automata or len({automaton.prefix_ids for automaton in self.automata}) > 1:
            raise ValueError("expected 1 automaton or more, all with the same prefix")
        self.max_new_tokens = max_new_tokens
        self._prefix = list(self.automata[0].prefix_ids)
        self._states: dict[tuple[int, ...], TokenState] = {}  # by the number of the automaton and the ids
        for automaton in dict.fromkeys(self.automata):
            automaton.check_room(max_new_tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``input_ids`` [R, L] begin with the automata's ``prefix_ids``.

        A row that has ended may only be padded. A beam that was filled up with a forbidden token, as happens where
        fewer are allowed than there are beams, keeps its score of -inf and may only end.

        Raises:
            ValueError: R is no multiple of the automata, or a row begins with another text than the prefix and the
                beginning of a report.
        """
        rows, length = input_ids.shape
        if rows % len(self.automata):
            raise ValueError(f"{rows} rows and {len(self.automata)} automata: expected a whole number of rows for each")
        left = len(self._prefix) + self.max_new_tokens - length
        states: dict[tuple[int, ...], TokenState] = {}
        allowed: list[int] = []
        of_row: list[int] = []
        for row, ids in enumerate(input_ids.tolist()):
            number = row * len(self.automata) // rows
            automaton = self.automata[number]
            before = self._states.get((number, *ids[:-1]))
            state = self._read(automaton, row, ids) if before is None else automaton.step(before, ids[-1])
            states[(number, *ids)] = state
            tokens = automaton.allowed(state, left)
            allowed += tokens
            of_row += [row] * len(tokens)
        self._states = states
        forbidden = torch.ones_like(scores, dtype=torch.bool)
        forbidden[torch.tensor(of_row, device=scores.device), torch.tensor(allowed, device=scores.device)] = False
        return scores.masked_fill(forbidden, float("-inf"))

    def _read(self, automaton: TokenAutomaton, row: int, ids: list[int]) -> TokenState:
        given = len(self._prefix)
        state = automaton.run(ids[given:])
        if ids[:given] != self._prefix or state is LOST:
            raise ValueError(
                f"row {row} begins with the ids {ids[: given + 8]}: expected {self._prefix} and then nothing or the "
                "beginning of a report in the canonical wording"
            )
        return state
