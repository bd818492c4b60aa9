"""Findings: does a generated report name the diseased segments, and the right tree?

Shapes: B rows (clips or studies), S segments (``len(SEGMENTS)``, in that order).

What counts is significant disease of a segment (``Finding.significant``). Everything is kept per row, as counts, so
that a bootstrap over patients can add them up again: micro F1 is a ratio of two sums over rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepcoro.reports.grammar import Finding
from deepcoro.reports.vocabulary import SEGMENTS, segments_of_tree

_INDEX = {segment: index for index, segment in enumerate(SEGMENTS)}

Terms = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class FindingCounts:
    """Hits and errors of each row and segment, each bool [B, S]; a segment out of view is in the last one only.

    Args:
        true_positives, false_positives, false_negatives: for the segments in view.
        out_of_view: disease claimed where this row cannot show any (the other tree).
    """

    true_positives: NDArray[np.bool_]
    false_positives: NDArray[np.bool_]
    false_negatives: NDArray[np.bool_]
    out_of_view: NDArray[np.bool_]

    def strict(self) -> FindingCounts:
        """The same with claims out of view as false positives: a report on the wrong artery is not free of charge."""
        nothing = np.zeros_like(self.out_of_view)
        return FindingCounts(
            self.true_positives, self.false_positives | self.out_of_view, self.false_negatives, nothing
        )

    # Each pair is (numerator [B], denominator [B]); the metric is the ratio of their sums.

    @property
    def f1_terms(self) -> Terms:
        """Micro F1: 2 TP over 2 TP + FP + FN."""
        hits = self.true_positives.sum(axis=1)
        return 2 * hits, 2 * hits + self.false_positives.sum(axis=1) + self.false_negatives.sum(axis=1)

    @property
    def precision_terms(self) -> Terms:
        """Of the diseased segments that were claimed, how many are."""
        hits = self.true_positives.sum(axis=1)
        return hits, hits + self.false_positives.sum(axis=1)

    @property
    def recall_terms(self) -> Terms:
        """Of the diseased segments that are, how many were claimed."""
        hits = self.true_positives.sum(axis=1)
        return hits, hits + self.false_negatives.sum(axis=1)

    def segment_f1(self) -> NDArray[np.float64]:
        """F1 of each segment over all rows [S]; NaN where it is neither diseased nor claimed to be."""
        hits = self.true_positives.sum(axis=0)
        errors = self.false_positives.sum(axis=0) + self.false_negatives.sum(axis=0)
        return np.array([ratio(2 * h, 2 * h + e) for h, e in zip(hits, errors, strict=True)])


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> float:
    """Sum over sum; NaN where the denominator is nothing. ``ratio(*counts.f1_terms)`` is micro F1."""
    below = float(np.sum(denominator))
    return float(np.sum(numerator)) / below if below else float("nan")


def significant_segments(findings: Sequence[Iterable[Finding]]) -> NDArray[np.bool_]:
    """Which segments have significant disease: bool [B, S].

    Raises:
        ValueError: there are no rows.
    """
    if len(findings) == 0:
        raise ValueError("expected findings of 1 row or more, got none")
    table = np.zeros((len(findings), len(SEGMENTS)), dtype=bool)
    for row, of_row in enumerate(findings):
        for finding in of_row:
            table[row, _INDEX[finding.segment]] |= finding.significant
    return table


def segments_in_view(trees: Sequence[str | None], dominances: Sequence[str | None]) -> NDArray[np.bool_]:
    """Which segments a row can show: bool [B, S]. A row without a tree (a whole study) shows all.

    Raises:
        ValueError: lengths differ, there are no rows, or a word is unknown.
    """
    if len(trees) != len(dominances) or len(trees) == 0:
        raise ValueError(f"expected a tree and a dominance for each row, got {len(trees)} and {len(dominances)}")
    table = np.ones((len(trees), len(SEGMENTS)), dtype=bool)
    for row, (tree, dominance) in enumerate(zip(trees, dominances, strict=True)):
        if tree is not None:
            table[row] = np.isin(SEGMENTS, segments_of_tree(tree, dominance))
    return table


def count_findings(true: ArrayLike, predicted: ArrayLike, in_view: ArrayLike) -> FindingCounts:
    """Compare two tables of diseased segments.

    Args:
        true: bool [B, S], from ``significant_segments``. Disease out of view is not asked for.
        predicted: bool [B, S], of the generated reports; [S] is the same prediction for every row.
        in_view: bool [B, S], from ``segments_in_view``.

    Raises:
        ValueError: shapes do not fit, or there are no rows.
    """
    true, predicted, in_view = (np.asarray(table, dtype=bool) for table in (true, predicted, in_view))
    if true.ndim != 2 or true.shape[1] != len(SEGMENTS) or len(true) == 0:
        raise ValueError(f"expected true of shape [B, {len(SEGMENTS)}], 1 row or more; got {true.shape}")
    if predicted.shape not in (true.shape, true.shape[1:]) or in_view.shape != true.shape:
        raise ValueError(
            f"expected predicted and in_view of shape {true.shape}, got {predicted.shape} and {in_view.shape}"
        )
    return FindingCounts(
        true_positives=true & predicted & in_view,
        false_positives=~true & predicted & in_view,
        false_negatives=true & ~predicted & in_view,
        out_of_view=predicted & ~in_view,
    )


def tree_matches(true: Sequence[str | None], predicted: Sequence[str | None]) -> NDArray[np.bool_]:
    """Which rows name the tree in view: bool [B]. ``None``, a text that names no tree or both, is wrong.

    Raises:
        ValueError: lengths differ, there are no rows, or a true tree is unknown (leave those rows out).
    """
    if len(true) != len(predicted) or len(true) == 0:
        raise ValueError(f"expected as many predicted as true trees, 1 or more; got {len(predicted)} and {len(true)}")
    if None in true:
        raise ValueError(f"expected a known tree in every row, got None in row {list(true).index(None)}; leave it out")
    return np.array([a == b for a, b in zip(true, predicted, strict=True)])
