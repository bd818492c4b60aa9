"""Retrieval: at which rank does a query find what belongs to it, among a fixed gallery?

Shapes: Q queries, G gallery items, E embedding, B videos.

A query may have several positives (equal reports are equal answers); its rank is that of the best-ranked one. Ties are
counted in expectation over a random order of the tied items, so a model that maps everything to one point scores
exactly what chance scores and not 1. Chance itself is the case in which the whole gallery is tied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

_BLOCK = 2**21  # similarities held at once: 8 MB in float32, whatever the size of the gallery


@dataclass(frozen=True)
class Ranks:
    """Where the best positive of each query stands; all arrays are int64 [Q].

    Args:
        better: negatives that are more similar to the query than its best positive.
        tied_negatives: negatives as similar as the best positive, within the tolerance.
        tied_positives: positives as similar as the best one, within the tolerance, itself included (1 or more).
        num_positives: positives of the query in the gallery (1 or more).
        gallery_size: G.
    """

    better: NDArray[np.int64]
    tied_negatives: NDArray[np.int64]
    tied_positives: NDArray[np.int64]
    num_positives: NDArray[np.int64]
    gallery_size: int

    def __len__(self) -> int:
        return len(self.better)

    @property
    def expected(self) -> NDArray[np.float64]:
        """Expected rank of each query [Q], from 1, the best, to G - num_positives + 1; whole unless there are ties.

        The first of q positives among t negatives in random order stands, on average, behind t / (q + 1) of them.
        """
        return 1.0 + self.better + self.tied_negatives / (self.tied_positives + 1)


def rank_similarity(similarity: ArrayLike, positives: ArrayLike, *, tolerance: float = 0.0) -> Ranks:
    """Rank the gallery for each query from a matrix of similarities.

    Args:
        similarity: [Q, G], higher is more similar, finite.
        positives: bool [Q, G], what belongs to each query; one positive or more in every row.
        tolerance: two similarities that differ by at most this count as tied.

    Raises:
        ValueError: shapes differ or are empty, a similarity is not finite, or a query has no positive.
    """
    similarity, positives = np.asarray(similarity), np.asarray(positives, dtype=bool)
    if similarity.ndim != 2 or similarity.shape != positives.shape or 0 in similarity.shape:
        raise ValueError(
            "expected similarity and positives of one shape [Q, G], neither empty; "
            f"got {similarity.shape} and {positives.shape}"
        )
    magnitude = np.abs(similarity).max(axis=1, keepdims=True)
    if not np.isfinite(magnitude).all():  # a NaN compares as neither better nor tied: it would pass for rank 1
        raise ValueError(f"expected finite similarities, got others in query {int(np.argmin(np.isfinite(magnitude)))}")
    num_positives = positives.sum(axis=1)
    if not num_positives.all():
        row = int(np.argmin(num_positives))
        raise ValueError(f"expected a positive in the gallery for every query, got none for query {row}")

    best = np.where(positives, similarity, -np.inf).max(axis=1, keepdims=True)
    better = similarity > best + tolerance  # never a positive: best is their maximum
    tied = ~better & (similarity >= best - tolerance)
    tied_positives = (tied & positives).sum(axis=1)
    return Ranks(
        better=better.sum(axis=1),
        tied_negatives=tied.sum(axis=1) - tied_positives,
        tied_positives=tied_positives,
        num_positives=num_positives,
        gallery_size=similarity.shape[1],
    )


def rank_embeddings(
    queries: ArrayLike,
    gallery: ArrayLike,
    query_keys: Sequence[object] | NDArray,
    gallery_keys: Sequence[object] | NDArray,
    *,
    tolerance: float = 1e-6,
) -> Ranks:
    """Rank a gallery by cosine similarity, some rows at a time: the [Q, G] matrix never exists.

    Args:
        queries: embeddings [Q, E]; scaled to unit length here. Zero vectors are similar to nothing (0).
        gallery: embeddings [G, E].
        query_keys: [Q] integers or strings; an item is a positive of a query where their keys are equal.
        gallery_keys: [G].
        tolerance: cosines that differ by at most this count as tied. The default is above the rounding error of a
            float32 product of rows of length 1, which is as large where they are nearly orthogonal: without it, equal
            items would be told apart by the order in which a matrix product adds.

    Raises:
        ValueError: shapes do not fit or are empty, a value is not finite, or a query has no positive.
    """
    queries, gallery = unit_rows(queries, "queries"), unit_rows(gallery, "gallery")
    query_codes, gallery_codes = _codes(query_keys, gallery_keys)
    if len(query_codes) != len(queries) or len(gallery_codes) != len(gallery):
        raise ValueError(
            f"expected a key for each of {len(queries)} queries and {len(gallery)} gallery items, "
            f"got {len(query_codes)} and {len(gallery_codes)}"
        )
    if not (found := np.isin(query_codes, gallery_codes)).all():
        row = int(np.argmin(found))
        raise ValueError(f"expected a positive in the gallery for every query, got none for query {row}")

    blocks = [
        rank_similarity(similarity, query_codes[rows, None] == gallery_codes[None, :], tolerance=tolerance)
        for rows, similarity in similarity_blocks(queries, gallery)
    ]
    return Ranks(
        better=np.concatenate([b.better for b in blocks]),
        tied_negatives=np.concatenate([b.tied_negatives for b in blocks]),
        tied_positives=np.concatenate([b.tied_positives for b in blocks]),
        num_positives=np.concatenate([b.num_positives for b in blocks]),
        gallery_size=len(gallery),
    )


def similarity_blocks(
    queries: NDArray[np.float32], gallery: NDArray[np.float32]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Cosines of rows of unit length, some queries at a time: which rows, and their similarities [rows, G].

    Raises:
        ValueError: the widths differ.
    """
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"expected queries and gallery of one width E, got {queries.shape} and {gallery.shape}")
    step = max(1, _BLOCK // len(gallery))
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        yield rows, queries[rows] @ gallery.T


def recall_at_k(ranks: Ranks, k: int) -> NDArray[np.float64]:
    """Whether each query finds a positive among its first k: [Q], 0 or 1, and between them only where ties decide.

    The mean over queries is recall@k as retrieval papers report it (a hit rate; not the share of all positives found).

    Raises:
        ValueError: k is below 1 or larger than the gallery.
    """
    draws = _checked_k(k, ranks) - ranks.better
    return 1.0 - _miss_probability(ranks.tied_negatives, ranks.tied_positives, draws)


def chance_recall_at_k(ranks: Ranks, k: int) -> NDArray[np.float64]:
    """Recall@k of a random order of the same gallery, for each query [Q]: ``1 - C(G - p, k) / C(G, k)``.

    Raises:
        ValueError: k is below 1 or larger than the gallery.
    """
    return 1.0 - _miss_probability(ranks.gallery_size - ranks.num_positives, ranks.num_positives, _checked_k(k, ranks))


def reciprocal_rank(ranks: Ranks) -> NDArray[np.float64]:
    """Expected 1 / rank of the best positive of each query [Q], above 0 and at most 1; its mean is the MRR.

    Under ties the mean of 1 / rank over all orders of the tied, which is more than 1 over the mean rank.
    """
    return _expected_reciprocal(ranks.better, ranks.tied_negatives, ranks.tied_positives)


def chance_reciprocal_rank(ranks: Ranks) -> NDArray[np.float64]:
    """Expected 1 / rank in a random order of the same gallery, for each query [Q]; (1 + 1/2 + ... + 1/G) / G where
    it has one positive."""
    nothing = np.zeros_like(ranks.num_positives)
    return _expected_reciprocal(nothing, ranks.gallery_size - ranks.num_positives, ranks.num_positives)


def median_rank(ranks: Ranks) -> float:
    """Median over queries of the expected rank; 1 is the best."""
    return float(np.median(ranks.expected))


def chance_median_rank(ranks: Ranks) -> float:
    """Median of the rank over queries when the gallery stands in random order.

    Halfway between the lower and upper median, as ``np.median`` has it: (G + 1) / 2 where every query has one positive.
    """
    # Queries with equally many positives have the same distribution of ranks.
    positives, weights = np.unique(ranks.num_positives, return_counts=True)

    def found_within(k: int) -> float:
        miss = _miss_probability(ranks.gallery_size - positives, positives, k)
        return float(np.average(1.0 - miss, weights=weights))

    def first_rank_above(level: float) -> int:
        low, high = 1, ranks.gallery_size
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if found_within(middle) > level else (middle + 1, high)
        return low

    rounding = 1e-9
    return (first_rank_above(0.5 - rounding) + first_rank_above(0.5 + rounding)) / 2


def _expected_reciprocal(
    better: NDArray[np.int64], negatives: NDArray[np.int64], positives: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean of 1 / (1 + better + X), X the negatives before the first positive of a random order of both.

    By parts: 1 / (1 + better), less the sum over x = 1, 2, ... of P(X >= x) / ((better + x) * (better + x + 1)), which
    is what the x-th negative in front takes away. P(X >= x) is that the first x of the order hold no positive.
    """
    cases, case_of_row = np.unique(np.stack([better, negatives, positives]), axis=1, return_inverse=True)
    values = 1.0 / (1.0 + cases[0])
    ends = np.cumsum(cases[1])  # case c owns the terms x = 1 to its number of negatives
    start = 0
    while start < len(ends):
        taken = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, taken + _BLOCK // 4, side="right")))
        first, tied, found = cases[:, start:stop]
        case = np.repeat(np.arange(stop - start), tied)
        x = 1 + np.arange(len(case)) - np.repeat(np.cumsum(tied) - tied, tied)
        place = first[case] + x
        lost = _miss_probability(tied[case], found[case], x) / (place * (place + 1.0))
        values[start:stop] -= np.bincount(case, weights=lost, minlength=stop - start)
        start = stop
    result: NDArray[np.float64] = values[case_of_row.reshape(-1)]
    return result


def _miss_probability(negatives: ArrayLike, positives: ArrayLike, draws: ArrayLike) -> NDArray[np.float64]:
    """Probability that ``draws`` items without replacement hold no positive: C(negatives, draws) / C(all, draws).

    The hypergeometric probability of zero, by log-gamma; below one draw nothing can be found, and more draws than
    negatives must find something.
    """
    negatives, positives, draws = np.broadcast_arrays(negatives, positives, draws)
    taken = np.clip(draws, 0, negatives)
    total = negatives + positives
    # Grouped so that the terms cancel to exactly 0 when nothing is taken: a sure miss is 1, without rounding.
    log_ways = gammaln(negatives + 1.0) - gammaln(negatives - taken + 1.0)
    log_all = gammaln(total + 1.0) - gammaln(total - taken + 1.0)
    return np.where(draws > negatives, 0.0, np.exp(log_ways - log_all))


def _checked_k(k: int, ranks: Ranks) -> int:
    if not 1 <= k <= ranks.gallery_size:
        raise ValueError(f"expected k from 1 to the size of the gallery, {ranks.gallery_size}; got {k}")
    return k


def unit_rows(embeddings: ArrayLike, name: str) -> NDArray[np.float32]:
    """Rows [rows, E] scaled to length 1; a row of zeros stays as it is.

    Raises:
        ValueError: it is no table or empty, or a value is not finite; ``name`` says of which.
    """
    rows = np.asarray(embeddings, dtype=np.float32)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"expected {name} of shape [rows, E], not empty; got {rows.shape}")
    if not (finite := np.isfinite(rows).all(axis=1)).all():
        raise ValueError(f"expected finite embeddings, got others in row {int(np.argmin(finite))} of {name}")
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    length[length == 0] = 1
    unit: NDArray[np.float32] = rows / length
    return unit


def _codes(first: Sequence[object] | NDArray, second: Sequence[object] | NDArray) -> tuple[NDArray, NDArray]:
    """Keys as small integers, equal where the keys are: an integer compares far faster than a text."""
    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 1 or second.ndim != 1:
        raise ValueError(f"expected one key an item, got keys of shapes {first.shape} and {second.shape}")
    if first.dtype.kind != second.dtype.kind:  # joined, numbers would silently turn into text
        raise ValueError(f"expected keys of one type, got {first.dtype} and {second.dtype}")
    _, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
    return codes[: len(first)], codes[len(first) :]
