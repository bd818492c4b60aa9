"""Agreement of two readers from sums of counts: precision, recall, F1, their means over segments, and kappa.

Letters: S segments, G grades; ``...`` stands for any axes before them, such as the resamples of a bootstrap.

All are functions of sums over rows, so a bootstrap over patients needs the sums of each patient and no more. What is
not defined (nothing below the line) is NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def divide(above: ArrayLike, below: ArrayLike) -> NDArray[np.float64]:
    """``above / below``, NaN where ``below`` is 0."""
    above, below = np.broadcast_arrays(np.asarray(above, dtype=float), np.asarray(below, dtype=float))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)


def f1(hits: ArrayLike, false: ArrayLike, missed: ArrayLike) -> NDArray[np.float64]:
    """2 hits / (2 hits + false + missed), where ``false`` was said and is not, and ``missed`` is and was not said."""
    twice = 2 * np.asarray(hits, dtype=float)
    return divide(twice, twice + np.asarray(false) + np.asarray(missed))


def precision(hits: ArrayLike, false: ArrayLike, missed: ArrayLike) -> NDArray[np.float64]:
    """Of what was said, how much is so."""
    return divide(hits, np.asarray(hits, dtype=float) + np.asarray(false))


def recall(hits: ArrayLike, false: ArrayLike, missed: ArrayLike) -> NDArray[np.float64]:
    """Of what is so, how much was said."""
    return divide(hits, np.asarray(hits, dtype=float) + np.asarray(missed))


SCORES = {"f1": f1, "precision": precision, "recall": recall}


def macro(score: str, hits: ArrayLike, false: ArrayLike, missed: ArrayLike) -> NDArray[np.float64]:
    """Mean over the segments that anybody has it in: [..., S] three times -> [...].

    A segment that somebody has it in and nobody is said to have counts 0, its precision too (scikit-learn's
    ``zero_division=0``). A segment that nobody has it in counts nowhere: no claim there could be right.

    Args:
        score: a name of ``SCORES``.
    """
    there = np.asarray(hits, dtype=float) + np.asarray(missed) > 0
    values = np.nan_to_num(SCORES[score](hits, false, missed), nan=0.0)
    return divide(np.where(there, values, 0).sum(axis=-1), there.sum(axis=-1))


def weighted_kappa(confusion: ArrayLike) -> NDArray[np.float64]:
    """Quadratic-weighted kappa (Cohen, 1968) of confusion matrices [..., G, G] -> [...].

    1 is agreement, 0 what two readers reach who use the grades as often as these two and know nothing of each other;
    so who always says the same reaches 0. A confusion between grades i and j weighs (i - j) ** 2. NaN where both always
    say one and the same grade.

    Raises:
        ValueError: the last two axes are not equal.
    """
    counts = np.asarray(confusion, dtype=float)
    if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2]:
        raise ValueError(f"expected confusion matrices [..., G, G], got shape {counts.shape}")
    places = np.arange(counts.shape[-1])
    weights = (places[:, None] - places) ** 2
    total = counts.sum(axis=(-2, -1))
    by_chance = counts.sum(axis=-1)[..., :, None] * counts.sum(axis=-2)[..., None, :]
    return 1 - divide((weights * counts).sum(axis=(-2, -1)) * total, (weights * by_chance).sum(axis=(-2, -1)))
