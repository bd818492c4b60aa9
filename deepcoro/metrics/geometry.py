"""Alignment and uniformity: are partners near each other, and is the sphere in use (Wang & Isola 2020, 2005.10242)?

Letters: B pairs, N rows, E embedding.

Both are lower the better, and both are of unit vectors: embeddings are scaled to length 1 here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import hyp0f1

from deepcoro.metrics.retrieval import unit_rows

_BLOCK = 2**20  # pairs held at once: 4 MB in float32


def alignment(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Squared distance of each positive pair: [B, E] twice -> [B], from 0 to 4 (equation 1 with alpha = 2).

    Its mean over pairs is the paper's alignment loss.

    Raises:
        ValueError: shapes differ or are empty, or a value is not finite.
    """
    first, second = unit_rows(first, "first").astype(np.float64), unit_rows(second, "second").astype(np.float64)
    if first.shape != second.shape:
        raise ValueError(f"expected two embeddings of each pair, got shapes {first.shape} and {second.shape}")
    return np.square(first - second).sum(axis=1)


def chance_alignment(first: ArrayLike, second: ArrayLike) -> float:
    """Mean squared distance when partners are drawn at random: the mean over all B * B pairs, from the two means."""
    first, second = unit_rows(first, "first").astype(np.float64), unit_rows(second, "second").astype(np.float64)
    squares = np.square(first).sum(axis=1).mean() + np.square(second).sum(axis=1).mean()
    return float(squares - 2 * first.mean(axis=0) @ second.mean(axis=0))


def uniformity(embeddings: ArrayLike, t: float = 2.0) -> float:
    """Logarithm of the mean of ``exp(-t * squared distance)`` over all pairs of different rows (equation 2).

    From ``-4 * t`` to 0, which is all rows on one point. The matrix of pairs is made some rows at a time.

    Args:
        embeddings: [N, E], N 2 or more.
        t: sharpness, above 0; 2 in the paper.

    Raises:
        ValueError: shapes or values are not as said.
    """
    rows = unit_rows(embeddings, "embeddings")
    if len(rows) < 2 or t <= 0:
        raise ValueError(f"expected 2 rows or more and t above 0, got {len(rows)} and {t}")
    squares = np.square(rows).sum(axis=1)
    total, step = 0.0, max(1, _BLOCK // len(rows))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        # A pair is counted at its earlier row. Distances are below 0 by rounding only.
        squared = squares[start : start + step, None] + squares[start:] - 2 * (some @ rows[start:].T)
        weights = np.exp(np.maximum(squared, 0) * np.float32(-t))
        inner = weights[:, : len(some)]
        total += float(weights[:, len(some) :].sum(dtype=np.float64)) + float(np.triu(inner, 1).sum(dtype=np.float64))
    return math.log(total / (len(rows) * (len(rows) - 1) / 2))


def random_uniformity(width: int, t: float = 2.0) -> float:
    """Uniformity of directions drawn at random in ``width`` dimensions (2 or more), as many as one likes.

    exp(-2t) times the mean of exp(2t cos) over the sphere, which is the confluent series 0F1(; E/2; t ** 2); no spread
    of infinitely many rows has less (the paper's theorem 1).
    """
    return float(np.log(hyp0f1(width / 2, t**2)) - 2 * t)
