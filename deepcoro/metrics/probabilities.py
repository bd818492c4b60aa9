"""Probabilities of findings: do they order the diseased before the healthy, and are they right as often as they say?

Shapes: B rows, S segments; ``valid`` marks the cells that count (a segment in view).

- AUROC: the chance that a diseased row has the larger probability than a healthy one; ties count half. A segment with
  no diseased or no healthy row has none (NaN).
- Brier score: mean of (p - y) ** 2, from 0 to 1.
- Expected calibration error: rows are put in bins of equal mass, and the error is the mean, weighted by the rows in
  them, of |mean p - share diseased| of the bins. Disease is rare, so bins of equal width would hold nearly all rows in
  the first. Equal probabilities are always in one bin: bins end at quantiles, and are fewer where there are many ties.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_BINS = 15


def checked_probabilities(
    probabilities: ArrayLike, true: ArrayLike, valid: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """The three tables [B, S] as arrays.

    Raises:
        ValueError: shapes differ, there are no rows, or a probability of a valid cell is not in 0 to 1.
    """
    p, y, kept = np.asarray(probabilities, dtype=float), np.asarray(true, dtype=bool), np.asarray(valid, dtype=bool)
    if p.ndim != 2 or not p.shape == y.shape == kept.shape or p.size == 0:
        raise ValueError(f"expected three tables [B, S], 1 row or more; got {p.shape}, {y.shape} and {kept.shape}")
    if not ((p[kept] >= 0) & (p[kept] <= 1)).all():
        row, segment = np.argwhere(kept & ~((p >= 0) & (p <= 1)))[0].tolist()
        raise ValueError(f"expected probabilities of 0 to 1, got {p[row, segment]} in row {row}, segment {segment}")
    return p, y, kept


def auroc(scores: ArrayLike, true: ArrayLike, weights: ArrayLike | None = None) -> NDArray[np.float64]:
    """Area under the ROC curve of scores [B] and truths [B] (bool), as one number.

    Args:
        weights: [B, ...], 0 or more: how often each row counts, as in resamples, [...] areas at once.

    Returns:
        [...]; NaN where no diseased or no healthy row counts.
    """
    scores, true = np.asarray(scores, dtype=float), np.asarray(true, dtype=bool)
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=float)
    _, place = np.unique(scores, return_inverse=True)  # equal scores share a place
    healthy = np.flatnonzero(~true)
    healthy = healthy[np.argsort(place[healthy], kind="stable")]
    places, sick = place[healthy], np.flatnonzero(true)
    below = np.zeros((len(healthy) + 1, *weights.shape[1:]))
    np.cumsum(weights[healthy], axis=0, out=below[1:])
    beaten = below[np.searchsorted(places, place[sick], side="left")]
    not_above = below[np.searchsorted(places, place[sick], side="right")]
    pairs = weights[sick].sum(axis=0) * below[-1]
    area = (weights[sick] * (beaten + not_above) / 2).sum(axis=0)
    return np.divide(area, pairs, out=np.full(np.shape(pairs), np.nan), where=np.asarray(pairs) > 0)


def segment_auroc(probabilities: ArrayLike, true: ArrayLike, valid: ArrayLike) -> NDArray[np.float64]:
    """AUROC of each segment [S], NaN where it has none; ``np.nanmean`` of it is the macro AUROC.

    Raises:
        ValueError: as of ``checked_probabilities``.
    """
    p, y, kept = checked_probabilities(probabilities, true, valid)
    columns = range(p.shape[1])
    return np.array([float(auroc(p[kept[:, s], s], y[kept[:, s], s])) for s in columns])


def brier_terms(
    probabilities: ArrayLike, true: ArrayLike, valid: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Squared errors and cells of each row, [B] and [B]: the Brier score is the ratio of their sums.

    Raises:
        ValueError: as of ``checked_probabilities``.
    """
    p, y, kept = checked_probabilities(probabilities, true, valid)
    return np.where(kept, np.square(p - y), 0).sum(axis=1), kept.sum(axis=1)


def calibration_terms(
    probabilities: ArrayLike, true: ArrayLike, valid: ArrayLike, num_bins: int = NUM_BINS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each row and bin the sum of (p - y) over its cells, and their number: [B, bins] twice.

    Raises:
        ValueError: as of ``checked_probabilities``, no cell counts, or there is no bin.
    """
    p, y, kept = checked_probabilities(probabilities, true, valid)
    if num_bins < 1 or not kept.any():
        raise ValueError(f"expected 1 bin or more and a valid cell, got {num_bins} and {int(kept.sum())}")
    ends = np.unique(np.quantile(p[kept], np.arange(1, num_bins) / num_bins))
    rows, columns = np.nonzero(kept)
    cells = p[rows, columns]
    bins = np.searchsorted(ends, cells, side="left")
    sums = np.zeros((2, len(p), len(ends) + 1))
    np.add.at(sums[0], (rows, bins), cells - y[rows, columns])
    np.add.at(sums[1], (rows, bins), 1)
    return sums[0], sums[1]


def calibration_error(differences: ArrayLike, numbers: ArrayLike) -> NDArray[np.float64]:
    """Expected calibration error from sums over rows of ``calibration_terms``: [..., bins] twice -> [...]."""
    numbers = np.asarray(numbers, dtype=float)
    below = numbers.sum(axis=-1)
    above = np.abs(differences).sum(axis=-1)
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
