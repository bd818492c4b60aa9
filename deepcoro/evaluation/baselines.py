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

from deepcoro.evaluation.lent_boxes import LentBoxes
from deepcoro.metrics.findings import FindingCounts, count_findings, ratio, significant_segments, tree_matches
from deepcoro.metrics.lesions import GRADES, grades, percents, sign_tables
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
        often: bool [S] for each sign, the one segment that has it most often, and so the most precise claim; none
            where nobody has it.
        prevalence: [S], the share of the rows that show a segment in which it has significant disease; 0 where none
            shows it.
        percents: [S], the median percent of each segment, 0 where none is known.
        lesion_percents: [S], the median percent of its stenoses, 0 where there are none.
        grades: [S], the index in ``metrics.lesions.GRADES`` that agrees best, over all segments (kappa).
        dominance: the most common one, ``None`` where none is known.
        boxes: lesions whose boxes are lent, where grounding is measured and there are any.
    """

    report: str
    tree: str | None
    segments: NDArray[np.bool_]
    segments_of_tree: Mapping[str, NDArray[np.bool_]]
    strict: bool
    signs: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    often: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    prevalence: NDArray[np.float64] | None = None
    percents: NDArray[np.float64] | None = None
    lesion_percents: NDArray[np.float64] | None = None
    grades: NDArray[np.int64] | None = None
    dominance: str | None = None
    boxes: LentBoxes | None = None


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
    shown = view.sum(axis=0)
    there = {sign: (table & view).sum(axis=0) for sign, table in sign_tables(findings).items()}
    percent = np.where(view, percents(findings, view), np.nan)
    table = grades(percent)
    return {
        "signs": {sign: best_constant_set(number, shown) for sign, number in there.items()},
        "often": {sign: _most_often(number, shown) for sign, number in there.items()},
        "prevalence": true.sum(axis=0) / np.maximum(shown, 1),
        "percents": _medians(percent),
        "lesion_percents": _medians(np.where(percent > 0, percent, np.nan)),
        "grades": best_constant_grades(np.stack([(table == g).sum(axis=0) for g in range(len(GRADES))], axis=1)),
    }


def _most_often(num_diseased: NDArray, num_rows: NDArray) -> NDArray[np.bool_]:
    chosen = np.zeros(len(num_rows), dtype=bool)
    chosen[np.argmax(num_diseased / np.maximum(num_rows, 1))] = num_diseased.any()
    return chosen


def _medians(percent: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each segment, 0 where there is no number: [B, S] with NaN -> [S]."""
    columns = (column[~np.isnan(column)] for column in percent.T)
    return np.array([np.median(column) if len(column) else 0.0 for column in columns])


def best_constant_grades(num_rows: ArrayLike) -> NDArray[np.int64]:
    """The grade to say of each segment always, so that quadratic-weighted kappa over all cells together is largest.

    Kappa of constants is not 0 where segments are graded together: who calls the LAD severe and all else normal agrees
    more often than by chance. It is 1 - O / E, and both are sums over segments of what the grade chosen there costs
    (E: against the grades of all cells). Such a ratio is made smallest by choosing, for a guess q of it, the least
    O - q E of each segment, and then taking the ratio reached for the guess, until it stands still (Dinkelbach, 1967).

    Args:
        num_rows: [S, G], how many rows have each grade.

    Returns:
        [S], indices of grades; any of them in a segment without rows.

    Raises:
        ValueError: it is no table of segments and grades.
    """
    counts = np.asarray(num_rows, dtype=float)
    if counts.ndim != 2:
        raise ValueError(f"expected num_rows [S, G], got shape {counts.shape}")
    places = np.arange(counts.shape[1])
    weights = (places[:, None] - places) ** 2
    observed = counts @ weights * counts.sum()  # [S, G said]
    by_chance = counts.sum(axis=1)[:, None] * (counts.sum(axis=0) @ weights)
    segments, guess = np.arange(len(counts)), 1.0
    while True:
        chosen = (observed - guess * by_chance).argmin(axis=1)
        above, below = (float(table[segments, chosen].sum()) for table in (observed, by_chance))
        if below == 0 or above / below >= guess - 1e-12:
            return chosen
        guess = above / below


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
        For ``exact_match``, ``tree_accuracy``, ``readable``, ``finding_f1``, ``finding_precision`` and
        ``finding_recall`` the strongest constant that sees nothing, and ``finding_f1_tree_oracle``. Rows without a
        known tree count for no tree accuracy (NaN where all are) and get the set of the constant.

    Raises:
        ValueError: lengths differ, or there are no rows.
    """
    majority = read_text(constants.report)

    def counted(predicted: NDArray[np.bool_]) -> FindingCounts:
        counts = count_findings(significant, predicted, in_view)
        return counts.strict() if constants.strict else counts

    def f1(predicted: NDArray[np.bool_]) -> float:
        return ratio(*counted(predicted).f1_terms)

    if len(trees) != len(reports):
        raise ValueError(f"expected a tree for each of {len(reports)} reports, got {len(trees)}")
    known = [tree for tree in trees if tree is not None]
    said = {
        "most common report": significant_segments([majority.findings])[0],
        f"always the same {int(constants.segments.sum())} segments": constants.segments,
    }
    everything = {"always said": np.ones(len(SEGMENTS), dtype=bool)}
    often = {"the most frequent segment": constants.often["finding"]} if constants.often else {}
    told = np.array([constants.segments if t is None else constants.segments_of_tree[t] for t in trees])
    return {
        "exact_match": Baseline(
            float(exact_matches(reports, [constants.report] * len(reports)).mean()), "most common report"
        ),
        "tree_accuracy": Baseline(
            float(tree_matches(known, [constants.tree] * len(known)).mean()) if known else float("nan"),
            f"always {constants.tree}",
        ),
        "readable": Baseline(float(not majority.unread), "most common report"),
        "finding_f1": strongest(*(Baseline(f1(table), name) for name, table in said.items())),
        "finding_precision": strongest(
            *(Baseline(ratio(*counted(t).precision_terms), n) for n, t in (said | often | everything).items())
        ),
        "finding_recall": strongest(
            *(Baseline(ratio(*counted(t).recall_terms), n) for n, t in (said | everything).items())
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
