"""Lesions: what reports say of each segment, as tables that can be compared.

Shapes: B rows (clips or studies), S segments (``len(SEGMENTS)``, in that order), G grades (``len(GRADES)``).

A *sign* is said of a segment or it is not; what is not said counts as not there. The *percent* of a segment has three
answers:

- stated: the percent of the finding; an occlusion is 100;
- 0: the segment is in a tree that the report names, and has no finding: a report that covers a tree and is silent of a
  segment calls it normal;
- none (NaN): the report does not name the segment's tree, has a finding there that gives no percent ("stent in
  place"), or names the segment in words that cannot be read.

The iFR is a pressure measured with a wire. No picture shows it, so it has a table of its own and is part of no other:
a segment of which a report says an iFR and nothing else counts as one of which it is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepcoro.reports.grammar import Finding
from deepcoro.reports.vocabulary import DOMINANCES, SEGMENTS, TREES, tree_of

SIGNS: Mapping[str, Callable[[Finding], bool]] = {
    "finding": lambda finding: finding.significant,  # 70 percent or more, left main 50 or more, or an occlusion
    "stenosis_50": lambda finding: finding.stenosis is not None and finding.stenosis >= 50,
    "stenosis_70": lambda finding: finding.stenosis is not None and finding.stenosis >= 70,
    "cto": lambda finding: finding.occlusion == "cto",
    "calcification": lambda finding: finding.calcification in ("moderate", "severe"),
    "thrombus": lambda finding: finding.thrombus,
    "stent": lambda finding: finding.stent,
    "restenosis": lambda finding: finding.in_stent_restenosis is not None and finding.in_stent_restenosis >= 50,
}
ABNORMAL_IFR = 0.89  # and below
# What a report can invent or miss. The signs of one group are one lesion: what is a CTO is a stenosis too, and what has
# narrowed in a stent may be noted as both.
COUNTED = (("stenosis_50", "cto", "restenosis"), ("calcification",), ("thrombus",), ("stent",))
GRADES = ("none", "mild", "moderate", "severe", "critical")
_FLOORS = (1, 50, 70, 90)  # percent at which each grade after the first begins, as of ``vocabulary.grade``

_INDEX = {segment: index for index, segment in enumerate(SEGMENTS)}
_IN_TREE = {  # bool [S] by (dominance, tree)
    (dominance, tree): np.array([tree_of(segment, dominance) == tree for segment in SEGMENTS])
    for dominance in (None, *DOMINANCES)
    for tree in TREES
}


def sign_tables(findings: Sequence[Iterable[Finding]]) -> dict[str, NDArray[np.bool_]]:
    """What is said of each segment: bool [B, S] for each of ``SIGNS``.

    Raises:
        ValueError: there are no rows.
    """
    cells = _cells(findings)
    return {sign: _table(findings, ((row, f) for row, f in cells if said(f))) for sign, said in SIGNS.items()}


def abnormal_ifr(findings: Sequence[Iterable[Finding]]) -> NDArray[np.bool_]:
    """Where an iFR of ``ABNORMAL_IFR`` or less is told: bool [B, S]."""
    return _table(findings, ((row, f) for row, f in _cells(findings) if f.ifr is not None and f.ifr <= ABNORMAL_IFR))


def without_ifr(finding: Finding) -> Finding | None:
    """What a picture can show of a finding; ``None`` where that is nothing."""
    if finding.ifr is None:
        return finding
    return None if finding == Finding(finding.segment, ifr=finding.ifr) else replace(finding, ifr=None)


def covered_segments(trees: Sequence[Iterable[str]], dominances: Sequence[str | None]) -> NDArray[np.bool_]:
    """Segments of which a report's silence means that they are normal: bool [B, S].

    Args:
        trees: the trees that each report names (``ParsedReport.trees``).
        dominances: of the patients, ``None`` where unknown: they say which tree a segment is in.

    Raises:
        ValueError: lengths differ, there are no rows, or a word is unknown.
    """
    if len(trees) != len(dominances) or len(trees) == 0:
        raise ValueError(f"expected trees and a dominance for each row, got {len(trees)} and {len(dominances)}")
    table = np.zeros((len(trees), len(SEGMENTS)), dtype=bool)
    for row, (named, dominance) in enumerate(zip(trees, dominances, strict=True)):
        for tree in named:
            if (dominance, tree) not in _IN_TREE:
                raise ValueError(f"expected trees of {TREES}, dominances of {DOMINANCES}, got {tree!r}, {dominance!r}")
            table[row] |= _IN_TREE[dominance, tree]
    return table


def percents(
    findings: Sequence[Iterable[Finding]], covered: ArrayLike, unclear: Sequence[Iterable[str]] = ()
) -> NDArray[np.float64]:
    """Percent stenosis of each segment [B, S], 0 to 100; NaN where the report gives none (see the head of this file).

    Args:
        covered: bool [B, S], from ``covered_segments``.
        unclear: the segments [B] that each report names and nobody can read what it says of them.

    Raises:
        ValueError: shapes do not fit, or there are no rows.
    """
    covered = np.asarray(covered, dtype=bool)
    if covered.shape != (len(findings), len(SEGMENTS)) or len(findings) == 0:
        raise ValueError(f"expected covered of shape [{len(findings)}, {len(SEGMENTS)}], got {covered.shape}")
    table = np.where(covered, 0.0, np.nan)
    for row, segments in enumerate(unclear):
        table[row, [_INDEX[segment] for segment in segments]] = np.nan
    for row, finding in _cells(findings):
        if without_ifr(finding) is not None:  # an iFR alone is silence here
            table[row, _INDEX[finding.segment]] = np.nan if finding.stenosis is None else finding.stenosis
    return table


def grades(percent: ArrayLike) -> NDArray[np.int64]:
    """Index in ``GRADES`` of each percent, any shape; -1 where it is NaN.

    Raises:
        ValueError: a percent is out of 0 to 100.
    """
    percent = np.asarray(percent, dtype=float)
    known = ~np.isnan(percent)
    if ((percent[known] < 0) | (percent[known] > 100)).any():
        raise ValueError(f"expected 0 to 100 percent, got {percent[known].min()} to {percent[known].max()}")
    return np.where(known, np.searchsorted(_FLOORS, np.where(known, percent, 0), side="right"), -1)


def grade_confusion(true: ArrayLike, said: ArrayLike) -> NDArray[np.int64]:
    """How often each true grade (down) was said to be each grade (across): grades [B, S] twice -> [B, G, G].

    Cells where either is -1 count nowhere.

    Raises:
        ValueError: shapes differ.
    """
    true, said = np.asarray(true), np.asarray(said)
    if true.shape != said.shape or true.ndim != 2:
        raise ValueError(f"expected two tables of grades [B, S], got shapes {true.shape} and {said.shape}")
    counts = np.zeros((len(true), len(GRADES), len(GRADES)), dtype=np.int64)
    rows, columns = np.nonzero((true >= 0) & (said >= 0))
    np.add.at(counts, (rows, true[rows, columns], said[rows, columns]), 1)
    return counts


def _cells(findings: Sequence[Iterable[Finding]]) -> list[tuple[int, Finding]]:
    if len(findings) == 0:
        raise ValueError("expected findings of 1 row or more, got none")
    return [(row, finding) for row, of_row in enumerate(findings) for finding in of_row]


def _table(findings: Sequence[Iterable[Finding]], cells: Iterable[tuple[int, Finding]]) -> NDArray[np.bool_]:
    table = np.zeros((len(findings), len(SEGMENTS)), dtype=bool)
    for row, finding in cells:
        table[row, _INDEX[finding.segment]] = True
    return table
