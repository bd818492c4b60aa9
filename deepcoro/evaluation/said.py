"""What reports say, as tables, and how two of them differ: the counts that every metric of written reports is made of.

Letters: B rows, S segments (``len(SEGMENTS)``, in that order). What is read from a report stands in
``metrics/lesions.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcoro.evaluation.truth import Truth
from deepcoro.metrics.lesions import (
    COUNTED,
    abnormal_ifr,
    covered_segments,
    grade_confusion,
    grades,
    percents,
    sign_tables,
)
from deepcoro.reports.texts import ReadText, read_text


@dataclass(frozen=True)
class Said:
    """What reports say, as tables.

    Args:
        signs: bool [B, S] for each of ``SIGNS``, and for ``ifr``.
        percent: [B, S], NaN where there is none: a finding without a number, words that cannot be read, and, of the
            truth, a tree that nothing is told of. Silence of a written report is 0, also of a tree that it does not
            name: who writes of another artery than the one in view must not be spared its lesions.
        told: bool [B, S], where the report itself gives the percent, or names the tree and is silent.
        dominances: [B], ``None`` where it is not said.
    """

    signs: Mapping[str, NDArray[np.bool_]]
    percent: NDArray[np.float64]
    told: NDArray[np.bool_]
    dominances: Sequence[str | None]


def parse_all(texts: Sequence[str]) -> list[ReadText]:
    """``read_text`` of each; equal texts are read once."""
    read = {text: read_text(text) for text in set(texts)}
    return [read[text] for text in texts]


def said_in(parsed: Sequence[ReadText], truth: Truth) -> Said:
    """What generated reports say; which tree a segment is in is known of the patients, not taken from the report."""
    findings = [report.findings for report in parsed]
    covered = covered_segments([report.trees for report in parsed], truth.dominances)
    signs = sign_tables(findings) | {"ifr": abnormal_ifr(findings)}
    unclear = [report.unclear for report in parsed]
    told = ~np.isnan(percents(findings, covered, unclear))
    percent = percents(findings, np.ones_like(covered), unclear)
    return Said(signs, percent, told, [report.dominance for report in parsed])


def said_truly(truth: Truth) -> Said:
    """What is so. The dominance, which the table knows best, is asked for where the true text tells one, as that of a
    whole study does."""
    told = [report.dominance for report in parse_all([text or "" for text in truth.texts])]
    covered = covered_segments(truth.told_trees, truth.dominances)
    signs = sign_tables(truth.findings) | {"ifr": abnormal_ifr(truth.findings)}
    dominances = [
        None if of_text is None else known or of_text for of_text, known in zip(told, truth.dominances, strict=True)
    ]
    percent = percents(truth.findings, covered)
    return Said(signs, percent, ~np.isnan(percent), dominances)


def compare_rows(true: Said, said: Said, in_view: NDArray[np.bool_]) -> dict[str, NDArray]:
    """Counts and errors of each row, whose sums over rows are all that the metrics need: columns [B, ...] by name.

    A claim is hallucinated wherever it is made: disease of the artery that is not in view is invented too. A lesion
    that is missed or invented counts once, whatever signs it has (``COUNTED``). A row with nothing in view, as one
    whose findings are not known, counts for nothing but the dominance.
    """
    counts = in_view.any(axis=1)
    columns: dict[str, NDArray] = dict(compare_signs(true.signs, said.signs, in_view))
    false = [np.any([said.signs[sign] & ~true.signs[sign] for sign in lesion], axis=0) for lesion in COUNTED]
    missed = [np.any([columns[f"{sign}/missed"] for sign in lesion], axis=0) for lesion in COUNTED]
    percent = np.where(in_view, true.percent, np.nan)
    there = ~np.isnan(percent)
    both = there & ~np.isnan(said.percent)
    lesion = there & (np.nan_to_num(percent) > 0)
    error = np.abs(np.nan_to_num(percent) - np.nan_to_num(said.percent))  # of a lesion no number is 0: silence
    asked = np.array([dominance is not None for dominance in true.dominances])
    right = np.array([a == b for a, b in zip(true.dominances, said.dominances, strict=True)])
    return columns | {
        "rows": counts.astype(float),
        "hallucinated": np.sum(false, axis=(0, 2)) * counts,
        "missed": np.sum(missed, axis=(0, 2)),
        "percent/error": np.where(both, error, 0).sum(axis=1),
        "percent/number": both.sum(axis=1),
        "percent/told": (both & said.told).sum(axis=1),
        "percent/asked": there.sum(axis=1),
        "lesions/error": np.where(lesion, error, 0).sum(axis=1),
        "lesions/number": lesion.sum(axis=1),
        "grades": grade_confusion(grades(percent), grades(said.percent)),
        "dominance/right": asked & right,
        "dominance/asked": asked,
    }


def compare_signs(
    true: Mapping[str, NDArray[np.bool_]], said: Mapping[str, NDArray[np.bool_]], in_view: NDArray[np.bool_]
) -> dict[str, NDArray[np.bool_]]:
    """Of each sign where it is said and so, said and not so, so and not said: ``<sign>/hits``, ``/false``, ``/missed``,
    each bool [B, S], in view only. Tables of ``said`` may be [S], the same for every row."""
    columns = {}
    for sign, there in true.items():
        columns[f"{sign}/hits"] = there & said[sign] & in_view
        columns[f"{sign}/false"] = ~there & said[sign] & in_view
        columns[f"{sign}/missed"] = there & ~said[sign] & in_view
    return columns
