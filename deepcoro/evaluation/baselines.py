"""Baselines: what is reached by always saying the same, without a look at the video.

Shapes: B rows, S segments (``len(SEGMENTS)``, in that order).

All are fitted on training rows and scored on others. ``fit_constants`` finds the most common report, the most common
tree and the set of segments that it pays most to call diseased every time; the *tree oracle* is told left or right and
has such a set for each. Chance has its place beside the retrieval metrics, the mean beside reconstruction, and the
nearest neighbour, which does look, in ``neighbours.py``.

A *blind* language model, the decoder without its video, needs no training to be bounded: written greedily from nothing
but the start token, its text is one and the same for every row. So its exact match is the share of rows with that text,
at most that of the most common one, and the segments that it claims are one set, whose F1 is at most that of the best
set. Both are the constants here (chosen on training rows: what is best on the evaluated rows may differ from them by
chance, not by skill). BLEU and ROUGE (``wording.py``) have the most common report beside them, which is one such text
and no bound: another may share more words with the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepcoro.metrics.findings import count_findings, ratio, significant_segments, tree_matches
from deepcoro.metrics.lesions import sign_tables
from deepcoro.metrics.text import exact_matches
from deepcoro.reports.grammar import Finding
from deepcoro.reports.texts import read_text
from deepcoro.reports.vocabulary import SEGMENTS, TREES


@dataclass(frozen=True)
class Baseline:
    """What a trivial answer scores, and which one it is; printed beside the metric."""

    value: float
    name: str


@dataclass(frozen=True)
class Constants:
    """The constant answers, as fitted.

    Args:
        report: the most common report.
        tree: the most common tree, None where none is known.
        segments: bool [S], the set to call diseased in every row.
        segments_of_tree: bool [S] for each of ``TREES``, the sets of the tree oracle.
        strict: whether claims out of view were counted as errors in choosing the sets.
        signs: bool [S] for each of ``metrics.lesions.SIGNS``, the set to say it of in every row; empty where no
            findings were given, and then the following are unknown.
        prevalence: [S], the share of the rows that show a segment in which it has significant disease; 0 where none
            shows it.
        lesion_percent: median percent of the stenoses, ``None`` where there are none.
        dominance: the most common one, ``None`` where none is known.
    """

    report: str
    tree: str | None
    segments: NDArray[np.bool_]
    segments_of_tree: Mapping[str, NDArray[np.bool_]]
    strict: bool
    signs: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    prevalence: NDArray[np.float64] | None = None
    lesion_percent: float | None = None
    dominance: str | None = None


def fit_constants(
    reports: Sequence[str],
    trees: Sequence[str | None],
    significant: ArrayLike,
    in_view: ArrayLike,
    *,
    strict: bool = False,
    findings: Sequence[Iterable[Finding]] = (),
    dominances: Sequence[str | None] = (),
) -> Constants:
    """Choose the constant answers that score best on training rows.

    Args:
        reports: [B] texts.
        trees: [B], the tree in view, None where unknown.
        significant: bool [B, S], from ``significant_segments``.
        in_view: bool [B, S], from ``segments_in_view``.
        strict: choose for the strict F1 (``FindingCounts.strict``). Otherwise claims out of view cost nothing, so the
            view itself tells the constant set which tree it is, and the tree oracle adds nothing to it.
        findings: [B], those in view, for the constants beyond significant disease; with none these stay unknown.
        dominances: of the patients, ``None`` where unknown.

    Raises:
        ValueError: lengths differ, or there are no rows.
    """
    true, view = np.asarray(significant, dtype=bool), np.asarray(in_view, dtype=bool)
    if len(reports) == 0 or not len(reports) == len(trees) == len(true) == len(view):
        raise ValueError(
            "expected as many reports, trees, significant and in_view rows, 1 or more; "
            f"got {len(reports)}, {len(trees)}, {len(true)}, {len(view)}"
        )
    if len(findings) not in (0, len(reports)):
        raise ValueError(f"expected findings of each of {len(reports)} reports or of none, got {len(findings)}")
    true = true & view
    claimable = np.ones_like(view) if strict else view
    known = [tree for tree in trees if tree is not None]

    # The oracle may choose anew for each tree, and what it chooses is judged together: its cells are (tree, segment).
    rows_of_tree = np.array([[tree == name for tree in trees] for name in TREES])  # [trees, B]
    cells_true = np.concatenate([true[rows].sum(axis=0) for rows in rows_of_tree])
    cells_all = np.concatenate([claimable[rows].sum(axis=0) for rows in rows_of_tree])
    of_tree = best_constant_set(cells_true, cells_all).reshape(len(TREES), len(SEGMENTS))
    return Constants(
        report=_most_common(reports),
        tree=_most_common(known) if known else None,
        segments=best_constant_set(true.sum(axis=0), claimable.sum(axis=0)),
        segments_of_tree=dict(zip(TREES, of_tree, strict=True)),
        strict=strict,
        **(_of_findings(findings, true, view) if len(findings) else {}),
        dominance=_most_common(told) if (told := [d for d in dominances if d is not None]) else None,
    )


def _of_findings(
    findings: Sequence[Iterable[Finding]], true: NDArray[np.bool_], view: NDArray[np.bool_]
) -> dict[str, Any]:
    percents = [finding.stenosis for of_row in findings for finding in of_row if finding.stenosis]
    shown = view.sum(axis=0)
    return {
        "signs": {
            sign: best_constant_set((table & view).sum(axis=0), shown) for sign, table in sign_tables(findings).items()
        },
        "prevalence": true.sum(axis=0) / np.maximum(shown, 1),
        "lesion_percent": float(np.median(percents)) if percents else None,
    }


def best_constant_set(num_diseased: ArrayLike, num_rows: ArrayLike) -> NDArray[np.bool_]:
    """The set of cells that, called diseased wherever they occur, has the largest micro F1.

    With d diseased of n rows in a cell, F1 = 2 * sum(d in set) / (sum(n in set) + sum(d)). A cell improves the best
    value F exactly where d / n > F / 2, so the best set is the cells of highest prevalence, down to some point: S
    sets need comparing and not 2 ** S.

    Args:
        num_diseased: [cells], 0 or more.
        num_rows: [cells], at least ``num_diseased``.

    Returns:
        bool [cells]; empty where nothing is diseased.

    Raises:
        ValueError: shapes differ, or a cell has more diseased rows than rows.
    """
    diseased, rows = np.asarray(num_diseased, dtype=float), np.asarray(num_rows, dtype=float)
    if diseased.ndim != 1 or diseased.shape != rows.shape or (diseased > rows).any():
        raise ValueError(
            "expected num_diseased [cells], and num_rows of the same shape and at least as large; "
            f"got shapes {diseased.shape} and {rows.shape}"
        )
    chosen = np.zeros(diseased.shape, dtype=bool)
    if diseased.sum() == 0:
        return chosen
    prevalence = diseased / np.maximum(rows, 1)
    order = np.argsort(-prevalence, kind="stable")
    f1 = 2 * diseased[order].cumsum() / (rows[order].cumsum() + diseased.sum())
    chosen[order[: int(f1.argmax()) + 1]] = True
    return chosen


def measure_constants(
    constants: Constants,
    reports: Sequence[str],
    trees: Sequence[str | None],
    significant: ArrayLike,
    in_view: ArrayLike,
) -> dict[str, Baseline]:
    """Score the constant answers on evaluation rows; arguments as of ``fit_constants``.

    Returns:
        For ``exact_match``, ``tree_accuracy`` and ``finding_f1`` the strongest constant that sees nothing, and
        ``finding_f1_tree_oracle``. Rows without a known tree count for no tree accuracy (NaN where all are) and get
        the set of the constant.

    Raises:
        ValueError: lengths differ, or there are no rows.
    """
    majority = read_text(constants.report)

    def f1(predicted: NDArray[np.bool_]) -> float:
        counts = count_findings(significant, predicted, in_view)
        return ratio(*(counts.strict() if constants.strict else counts).f1_terms)

    if len(trees) != len(reports):
        raise ValueError(f"expected a tree for each of {len(reports)} reports, got {len(trees)}")
    known = [tree for tree in trees if tree is not None]
    told = np.array([constants.segments if t is None else constants.segments_of_tree[t] for t in trees])
    return {
        "exact_match": Baseline(
            float(exact_matches(reports, [constants.report] * len(reports)).mean()), "most common report"
        ),
        "tree_accuracy": Baseline(
            float(tree_matches(known, [constants.tree] * len(known)).mean()) if known else float("nan"),
            f"always {constants.tree}",
        ),
        "finding_f1": strongest(
            Baseline(f1(significant_segments([majority.findings])[0]), "most common report"),
            Baseline(f1(constants.segments), f"always the same {int(constants.segments.sum())} segments"),
        ),
        "finding_f1_tree_oracle": Baseline(f1(told), "told left or right"),
    }


def strongest(*baselines: Baseline, lower_is_better: bool = False) -> Baseline:
    """The baseline that is hardest to beat; those without a value (NaN) only where there is no other.

    Raises:
        ValueError: there are none.
    """
    if not baselines:
        raise ValueError("expected 1 baseline or more, got none")
    defined = [b for b in baselines if not np.isnan(b.value)] or list(baselines[:1])
    return (min if lower_is_better else max)(defined, key=lambda b: b.value)


def _most_common(items: Sequence[str]) -> str:
    """The most common; among equals the first in the alphabet, so that the order of rows does not matter."""
    return min(Counter(items).items(), key=lambda item: (-item[1], item[0]))[0]
