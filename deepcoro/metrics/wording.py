"""Wording: how many words, and runs of words, a written text has in common with the true one (BLEU, ROUGE).

Letters: B rows, T different texts, N = 4 the longest runs of words (n-grams).

- BLEU (Papineni et al., 2002) is that of sacrebleu with ``tokenize="none"`` (smoothing ``exp``), from 0 to 1. It is a
  function of sums over rows, so a bootstrap over patients adds up the rows of each patient. Its words are those of
  ``metrics.text``, as for exact match: case and the spacing around punctuation do not count.
- ROUGE (Lin, 2004) is the F measure of rouge-score without stemming, a number for each row. Its words are rouge-score's
  own: letters a to z of either case and digits; punctuation and accents part words and are lost.

So a writer whose tokenizer knows no capitals and puts spaces around punctuation loses nothing by either.

The libraries split the texts and give the formulas. The counting between is done here for all rows at once, since they
need milliseconds for a pair; it is equal to theirs (``tests/metrics/test_wording.py``). Equal texts are split once,
equal pairs counted once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from deepcoro.metrics.text import words_of

LONGEST = 4
ROUGE = ("rouge_1", "rouge_2", "rouge_l")


class Wordings:
    """Texts that are to be compared with each other.

    Args:
        texts: all that will be asked for, in any order and number.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        from rouge_score.tokenize import tokenize

        self._number = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        self._words = _Words([words_of(text) for text in self._number])
        self._rouge_words = _Words([tokenize(text, None) for text in self._number])

    def bleu_statistics(self, true: Sequence[str], written: Sequence[str]) -> NDArray[np.int64]:
        """What ``bleu`` needs of each row, in sacrebleu's order: [B, 2 + 2N] of the words written, the words of the
        true text, the runs of 1 to N words that both have (each as often as in the text that has fewer), and the runs
        of 1 to N words written.

        Raises:
            ValueError: lengths differ, or there are no rows.
        """
        rows, (a, b) = self._pairs(true, written)
        lengths = self._words.lengths
        common = [self._words.common(a, b, order) for order in range(1, LONGEST + 1)]
        totals = [np.maximum(lengths[b] + 1 - order, 0) for order in range(1, LONGEST + 1)]
        return np.stack([lengths[b], lengths[a], *common, *totals], axis=1)[rows]

    def rouge(self, true: Sequence[str], written: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """F measures [B] by name: of single words, of pairs of words, and of the longest common subsequence.

        0 where either text has no words.

        Raises:
            ValueError: lengths differ, or there are no rows.
        """
        rows, (a, b) = self._pairs(true, written)
        words = self._rouge_words
        in_order = [words.longest_common(one, other) for one, other in zip(a.tolist(), b.tolist(), strict=True)]
        counted = ((words.common(a, b, 1), 1), (words.common(a, b, 2), 2), (np.array(in_order), 1))
        found = {}
        for name, (common, order) in zip(ROUGE, counted, strict=True):
            # As rouge-score has it: precision and recall of no runs are 0, and so is F where both are.
            sides = np.maximum(words.lengths[a] + 1 - order, 0) + np.maximum(words.lengths[b] + 1 - order, 0)
            found[name] = (2 * common / np.maximum(sides, 1))[rows]
        return found

    def _pairs(self, true: Sequence[str], written: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each row the number of its pair, and the different pairs of texts [2, pairs]."""
        if len(true) != len(written) or len(true) == 0:
            raise ValueError(f"expected as many written as true texts, 1 or more; got {len(written)} and {len(true)}")
        numbers = [[self._number[text] for text in side] for side in (true, written)]
        pairs, rows = np.unique(np.array(numbers), axis=1, return_inverse=True)
        return rows.reshape(-1), pairs


def bleu(statistics: ArrayLike, effective_order: bool = False) -> NDArray[np.float64]:
    """BLEU from sums of ``bleu_statistics``: [..., 2 + 2N] -> [...], 0 to 1; 0 where nothing was written.

    Args:
        effective_order: leave out runs longer than the written text, as for a single short text; of a row this is
            sacrebleu's ``sentence_bleu``.
    """
    from sacrebleu.metrics.bleu import BLEU

    table = np.asarray(statistics)
    values = [
        BLEU.compute_bleu(
            sums[2 : 2 + LONGEST], sums[2 + LONGEST :], sums[0], sums[1], "exp", effective_order=effective_order
        ).score
        for sums in table.reshape(-1, table.shape[-1]).astype(int).tolist()
    ]
    return np.array(values).reshape(table.shape[:-1]) / 100


class _Words:
    """Texts as numbers of their words: ``ids`` of text t from ``begins[t]`` on, ``lengths[t]`` of them."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        numbers: dict[str, int] = {}
        self.ids = np.array([numbers.setdefault(word, len(numbers)) for text in texts for word in text], np.int64)
        self.lengths = np.array([len(text) for text in texts], np.int64)
        self.begins = np.concatenate([[0], np.cumsum(self.lengths)])
        self._size = max(1, len(numbers))
        self._counts: dict[int, csr_array] = {}

    def common(self, a: NDArray[np.int64], b: NDArray[np.int64], order: int) -> NDArray[np.int64]:
        """Runs of ``order`` words that texts a [P] and b [P] have in common: [P]."""
        counts = self._run_counts(order)
        both = counts[a].minimum(counts[b])
        return np.diff(np.concatenate([[0], np.cumsum(both.data)])[both.indptr])

    def longest_common(self, a: int, b: int) -> int:
        """Length of the longest common subsequence of texts a and b (Hyyro, 2004: a row of the table is the bits of a
        number)."""
        if a == b:
            return int(self.lengths[a])
        one, other = (self.ids[self.begins[t] : self.begins[t + 1]].tolist() for t in (a, b))
        places: dict[int, int] = {}
        for place, word in enumerate(one):
            places[word] = places.get(word, 0) | 1 << place
        row = whole = (1 << len(one)) - 1
        for word in other:
            met = row & places.get(word, 0)
            row = ((row + met) | (row - met)) & whole
        return len(one) - row.bit_count()

    def _run_counts(self, order: int) -> csr_array:
        """How often each text has each run of words: [T, runs]."""
        if order not in self._counts:
            runs, size = self.ids, self._size
            for shift in range(1, order):
                # Numbers of runs that end beyond their text are wrong, and taken out below.
                runs, size = runs[: len(self.ids) - shift] * self._size + self.ids[shift:], size * self._size
                if size > 2**62 // self._size:  # as many as there are, so that the next product fits
                    known, runs = np.unique(runs, return_inverse=True)
                    size = max(1, len(known))
            num = np.maximum(self.lengths + 1 - order, 0)
            begins = np.concatenate([[0], np.cumsum(num)])
            places = np.arange(begins[-1]) + np.repeat(self.begins[:-1] - begins[:-1], num)
            counts = csr_array((np.ones(len(places), np.int32), runs[places], begins), (len(num), size))
            counts.sum_duplicates()
            self._counts[order] = counts
        return self._counts[order]
