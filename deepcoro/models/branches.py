"""What a decoder gives to many texts that begin alike, each token read once: the report and all that could stand in its
place are a tree, and the tree is one row of tokens, of which each sees its own beginning alone.

Reading every text by itself (``structured_probabilities.decoder_scores``) gives the same and is what this is tested
against; a report with some 300 beginnings beside it is there 300 rows of its length, and here one row five times as
long.

Letters: B units, S tokens of a tree, M video tokens, D widths, Q questions, C choices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcoro.models.captioning_decoder import CaptioningDecoder

Question = tuple[tuple[int, ...], tuple[int, ...]]  # ids of a text, and the ids of which one follows
_MOST_TOKENS = 8192  # of trees that are read at once


@torch.no_grad()
def branch_scores(
    decoder: CaptioningDecoder, video_tokens: Tensor, video_mask: Tensor, questions: Sequence[Sequence[Question]]
) -> list[list[list[float]]]:
    """For each question of each unit the log-probability of each of its choices, which together have probability 1.

    Args:
        video_tokens, video_mask: of the units, [B, M, D] and [B, M].
        questions: for each of B units, 1 or more; no text longer than the decoder has positions for.
    """
    made = {id(of_unit): _Tree(of_unit) for of_unit in {id(of_unit): of_unit for of_unit in questions}.values()}
    trees = [made[id(of_unit)] for of_unit in questions]  # units of one text share theirs
    by_size = sorted(range(len(trees)), key=lambda unit: len(trees[unit].ids))
    found: list[list[list[float]]] = [[] for _ in trees]
    while by_size:
        largest = len(trees[by_size[-1]].ids)  # alike in size, so that little is padding
        some, by_size = by_size[-max(1, _MOST_TOKENS // largest) :], by_size[: -max(1, _MOST_TOKENS // largest)]
        rows = torch.tensor(some, device=video_tokens.device)
        hidden = _read(decoder, video_tokens[rows], video_mask[rows], [trees[unit] for unit in some])
        asked = [question for unit in some for question in questions[unit]]
        answers = iter(_log_shares(hidden, decoder.output_weight, [choices for _, choices in asked]))
        for unit in some:
            found[unit] = [next(answers) for _ in questions[unit]]
    return found


class _Tree:
    """Texts that begin alike: ``ids`` [S] of their tokens, each after its own beginning; ``places`` [S] in the text;
    ``seen`` [S, S], the tokens of its own beginning and itself; ``ends``, the last token of each text."""

    def __init__(self, questions: Sequence[Question]) -> None:
        known: dict[tuple[int, ...], int] = {}
        ids: list[int] = []
        before: list[int] = []
        for text, _ in questions:
            begin = len(text)
            while begin and text[:begin] not in known:
                begin -= 1
            for end in range(begin + 1, len(text) + 1):
                before.append(known[text[: end - 1]] if end > 1 else -1)
                known[text[:end]] = len(ids)
                ids.append(text[end - 1])
        self.ids, self.ends = np.array(ids), np.array([known[text] for text, _ in questions])
        self.seen: NDArray[np.bool_] = np.eye(len(ids), dtype=bool)
        for token, parent in enumerate(before):
            if parent >= 0:
                self.seen[token] |= self.seen[parent]
        self.places = self.seen.sum(axis=1) - 1


def _read(decoder: CaptioningDecoder, video_tokens: Tensor, video_mask: Tensor, trees: Sequence[_Tree]) -> Tensor:
    """The decoder's output [Q, D] at the end of each text of each tree."""
    size = max(len(tree.ids) for tree in trees)
    ids, places = (np.zeros((len(trees), size), np.int64) for _ in range(2))
    seen = np.broadcast_to(np.eye(size, dtype=bool), (len(trees), size, size)).copy()  # padding sees itself
    for row, tree in enumerate(trees):
        length = len(tree.ids)
        ids[row, :length], places[row, :length], seen[row, :length, :length] = tree.ids, tree.places, tree.seen
    own, at, visible = (torch.from_numpy(array).to(video_tokens.device) for array in (ids, places, seen))
    hidden = decoder.read_branches(own, at, visible, video_tokens, video_mask)
    ends = np.concatenate([row * size + tree.ends for row, tree in enumerate(trees)])
    return hidden.flatten(0, 1)[torch.from_numpy(ends).to(hidden.device)]


def _log_shares(hidden: Tensor, output_weight: Tensor, choices: Sequence[tuple[int, ...]]) -> list[list[float]]:
    """Log-probabilities of the choices of each question, of ``hidden`` [Q, D]: lists of their own lengths."""
    tokens, number = np.unique(np.concatenate(choices), return_inverse=True)
    scores = (hidden @ output_weight[torch.from_numpy(tokens).to(hidden.device)].T).double()  # [Q, different tokens]
    lengths = np.array([len(of_question) for of_question in choices])
    kept = np.arange(lengths.max()) < lengths[:, None]
    column = np.zeros(kept.shape, np.int64)
    column[kept] = number
    there = torch.from_numpy(kept).to(hidden.device)
    own = scores.gather(1, torch.from_numpy(column).to(hidden.device)).masked_fill(~there, float("-inf"))
    table = own.log_softmax(dim=1).tolist()
    return [row[:length] for row, length in zip(table, lengths.tolist(), strict=True)]
