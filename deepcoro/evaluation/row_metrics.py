"""Metrics that are no mean over rows, from the columns of ``rows_<split>.parquet`` that they are made of.

F1 is a ratio of sums of counts, a mean error one of errors and cells, and kappa a function of five sums: with them two
runs can be held against each other on the same patients.

Letters: B rows, G grades; ``...`` stands for any axes before the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepcoro.metrics.agreement import SCORES, divide

THRESHOLDS = ("stenosis_50", "stenosis_70")
SEEN_SIGNS = (*THRESHOLDS, "cto", "calcification", "thrombus", "stent", "restenosis")  # with an F1 of their own
KAPPA = ("number", "true", "said", "squares", "differences")


@dataclass(frozen=True)
class RowMetric:
    """A metric of several columns.

    Args:
        columns: their names.
        value: their sums over rows [..., columns] -> [...].
        there: weights of the columns whose sum is above 0 in a row that has what is looked for; ``None`` where that is
            not asked.
    """

    columns: tuple[str, ...]
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    there: tuple[int, ...] | None = None


def kappa_columns(confusion: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Confusion matrices of rows [B, G, G] -> what quadratic-weighted kappa is made of, [B] each: the cells, the sums
    of their true and said grades, of the squares of both, and of the squared differences."""
    counts = np.asarray(confusion, dtype=float)
    places = np.arange(counts.shape[-1])
    true, said = places[:, None], places[None, :]
    of_cell = (np.ones_like(true + said), true + 0 * said, said + 0 * true, true**2 + said**2, (true - said) ** 2)
    return {name: (counts * weights).sum(axis=(-2, -1)) for name, weights in zip(KAPPA, of_cell, strict=True)}


def kappa_of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quadratic-weighted kappa from sums of ``kappa_columns`` [..., 5] -> [...]: ``agreement.weighted_kappa`` of the
    summed confusion matrices."""
    number, true, said, squares, differences = np.moveaxis(np.asarray(sums, dtype=float), -1, 0)
    by_chance = squares - 2 * divide(true * said, number)
    return 1 - divide(differences, np.where(np.abs(by_chance) > 1e-9, by_chance, 0))


def _score(name: str) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return lambda sums: SCORES[name](sums[..., 0], sums[..., 1], sums[..., 2])


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return divide(sums[..., 0], sums[..., 1])


def _of_sign(name: str, parts: tuple[str, str, str], scores: tuple[str, ...]) -> dict[str, RowMetric]:
    """Of hits, false and missed claims; hits and misses are there."""
    return {f"{name}_{score}": RowMetric(parts, _score(score), (1, 0, 1)) for score in scores}


ROW_METRICS: dict[str, RowMetric] = {
    **_of_sign(
        "captioning/finding",
        ("captioning/true_positives", "captioning/false_positives", "captioning/false_negatives"),
        tuple(SCORES),
    ),
    **{
        name: metric
        for sign in SEEN_SIGNS
        for name, metric in _of_sign(
            f"captioning/{sign}",
            (f"captioning/{sign}/hits", f"captioning/{sign}/false", f"captioning/{sign}/missed"),
            tuple(SCORES) if sign in THRESHOLDS else ("f1",),
        ).items()
    },
    **{
        f"captioning/{name}": RowMetric((f"captioning/{name}/{above}", f"captioning/{name}/{below}"), _ratio)
        for name, above, below in (
            ("stenosis_told", "told", "asked"),
            ("stenosis_mae", "error", "number"),
            ("stenosis_mae_lesions", "error", "number"),
        )
    },
    "captioning/grade_kappa": RowMetric(tuple(f"captioning/grade_kappa/{name}" for name in KAPPA), kappa_of_sums),
}
