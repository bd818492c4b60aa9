"""Graded retrieval: how much of what a query says is also said by the items that it finds first?

Letters: Q queries, G gallery items, E embedding, K places looked at.

The relevance of an item for a query is the share of equal statements between them, the Jaccard index of their sets of
statements: |both| / |either|, from 0 (nothing in common) to 1 (the same said). A statement is anything that can be
compared: for reports, the tree in view, if it is known, is one and each finding is one, equal where all that is said of
the segment is equal. Two empty sets are equal: 1.

NDCG (Jarvelin & Kekalainen, 2002) with the relevance itself as gain and 1 / log2(1 + place) as discount. Tied items
share their places: each counts with the mean relevance of the tied, which is the expectation over their random orders
(McSherry & Najork, 2008; scikit-learn's ``ndcg_score`` does the same).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from deepcoro.metrics.retrieval import similarity_blocks, unit_rows

Statements = Sequence[AbstractSet[Hashable]]
_BLOCK = 2**21  # relevances held at once: 16 MB in float64


@dataclass(frozen=True)
class GradedRanks:
    """What stands at the first places for each query.

    Args:
        gains: [Q, K] expected relevance of the item at each place.
        ideal: [Q, K] the same in the best possible order.
        mean_gain: [Q] relevance of an item drawn from the gallery.
    """

    gains: NDArray[np.float64]
    ideal: NDArray[np.float64]
    mean_gain: NDArray[np.float64]


class Relevance:
    """Jaccard index between the statements of queries [Q] and of gallery items [G], some rows at a time.

    Equal sets are compared once: 50,000 reports of 5,000 wordings are a table 5,000 wide.
    """

    def __init__(self, queries: Statements, gallery: Statements) -> None:
        names: dict[Hashable, int] = {}
        self._queries, self.query_set = _incidence(queries, names)
        self._gallery, self.gallery_set = _incidence(gallery, names)
        for table in (self._queries, self._gallery):
            table.resize(table.shape[0], max(1, len(names)))
        self._times = np.bincount(self.gallery_set, minlength=self._gallery.shape[0])  # items that say each set

    def between(self, query_sets: NDArray[np.int64]) -> NDArray[np.float64]:
        """Relevance of every distinct gallery set for some distinct query sets: [sets, gallery sets]."""
        asked = self._queries[query_sets]
        both = (asked @ self._gallery.T).toarray()
        either = asked.sum(axis=1)[:, None] + self._gallery.sum(axis=1)[None, :] - both
        share: NDArray[np.float64] = np.divide(both, either, out=np.ones_like(both), where=either > 0)
        return share

    def best_and_mean(self, k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """For each query the ``k`` largest relevances in the gallery, falling [Q, k], and the mean [Q]."""
        blocks = [self._best_and_mean(sets, k) for sets in self._blocks()]
        best, mean = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        return best[self.query_set], mean[self.query_set]

    def _blocks(self) -> Iterator[NDArray[np.int64]]:
        step = max(1, _BLOCK // self._gallery.shape[0])
        for start in range(0, self._queries.shape[0], step):
            yield np.arange(start, min(start + step, self._queries.shape[0]))

    def _best_and_mean(self, query_sets: NDArray[np.int64], k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        relevance = self.between(query_sets)
        kept = min(k, relevance.shape[1])  # each set has an item or more: k sets are enough for k places
        sets = np.argpartition(relevance, -kept, axis=1)[:, -kept:]
        sets = np.take_along_axis(sets, np.argsort(-np.take_along_axis(relevance, sets, 1), axis=1), 1)
        filled = np.cumsum(self._times[sets], axis=1)
        # The item at a place (from 0) is of the first set that, with those before it, fills more places than that.
        at_place = (filled[:, :, None] <= np.arange(k)).sum(axis=1)
        best = np.take_along_axis(np.take_along_axis(relevance, sets, 1), at_place, 1)
        return best, relevance @ self._times / self._times.sum()


def grade_embeddings(
    queries: ArrayLike,
    gallery: ArrayLike,
    query_statements: Statements,
    gallery_statements: Statements,
    *,
    k: int = 10,
    tolerance: float = 1e-6,
) -> GradedRanks:
    """Order a gallery by cosine similarity, some rows at a time, and look at its first ``k`` places.

    Args:
        queries: embeddings [Q, E]; scaled to unit length here.
        gallery: embeddings [G, E].
        query_statements: [Q] sets.
        gallery_statements: [G] sets.
        k: K, from 1 to G.
        tolerance: items count as tied with the best of their group where their cosines differ by at most this.

    Raises:
        ValueError: shapes do not fit or are empty, a value is not finite, or k is out of range.
    """
    queries, gallery = unit_rows(queries, "queries"), unit_rows(gallery, "gallery")
    if len(query_statements) != len(queries) or len(gallery_statements) != len(gallery):
        raise ValueError(
            f"expected statements for each of {len(queries)} queries and {len(gallery)} gallery items, "
            f"got {len(query_statements)} and {len(gallery_statements)}"
        )
    if not 1 <= k <= len(gallery):
        raise ValueError(f"expected k from 1 to the size of the gallery, {len(gallery)}; got {k}")
    relevance = Relevance(query_statements, gallery_statements)
    order = np.argsort(relevance.query_set, kind="stable")  # equal sets side by side: each is compared about once
    gains = np.empty((len(queries), k))
    for rows, similarity in similarity_blocks(queries[order], gallery):
        sets, set_of_row = np.unique(relevance.query_set[order[rows]], return_inverse=True)
        of_sets = relevance.between(sets)
        gains[order[rows]] = _gains(similarity, of_sets, set_of_row, relevance.gallery_set, k, tolerance)
    return GradedRanks(gains, *relevance.best_and_mean(k))


def ndcg_at_k(graded: GradedRanks, k: int) -> NDArray[np.float64]:
    """NDCG of the first ``k`` places for each query [Q], 0 to 1; 0 where nothing in the gallery is relevant.

    Raises:
        ValueError: k is below 1 or more than the places looked at.
    """
    discounts = _discounts(graded, k)
    return _share(graded.gains[:, :k] @ discounts, graded.ideal[:, :k] @ discounts)


def chance_ndcg_at_k(graded: GradedRanks, k: int) -> NDArray[np.float64]:
    """NDCG of a random order of the same gallery, in expectation, for each query [Q]: every place then holds the mean
    relevance."""
    discounts = _discounts(graded, k)
    return _share(graded.mean_gain * discounts.sum(), graded.ideal[:, :k] @ discounts)


def _gains(
    similarity: NDArray[np.float32],
    relevance: NDArray[np.float64],
    set_of_row: NDArray[np.int64],
    set_of_item: NDArray[np.int64],
    k: int,
    tolerance: float,
) -> NDArray[np.float64]:
    """Expected relevance [rows, k] at the first places; ``relevance`` is between the sets of rows and of items."""
    rows, size = similarity.shape
    kept = min(4 * k, size)
    items = np.argpartition(similarity, size - kept, axis=1)[:, size - kept :]
    found = np.take_along_axis(similarity, items, 1)
    order = np.argsort(-found, axis=1, kind="stable")
    items, found = np.take_along_axis(items, order, 1), np.take_along_axis(found, order, 1)

    begins = np.ones((rows, kept), dtype=bool)  # whether a group of tied items begins at a place
    leader = found[:, 0].copy()
    leader_of_last = leader.copy()  # of the group that holds place k
    for place in range(1, kept):
        begins[:, place] = found[:, place] < leader - tolerance
        leader = np.where(begins[:, place], found[:, place], leader)
        if place < k:
            leader_of_last = leader
    starts = np.flatnonzero(begins)
    counts = np.diff(starts, append=begins.size)
    gains = relevance[set_of_row[:, None], set_of_item[items]]
    means = np.repeat(np.add.reduceat(gains.reshape(-1), starts) / counts, counts).reshape(rows, kept)[:, :k]

    # Where the group of place k has more items than were kept, all of the gallery is looked through.
    large = np.flatnonzero(~begins[:, k:].any(axis=1)) if kept < size else np.empty(0, dtype=np.int64)
    if len(large):
        ceiling, floor = leader_of_last[large, None], (leader_of_last - tolerance)[large, None]
        row, item = np.nonzero((similarity[large] <= ceiling) & (similarity[large] >= floor))
        tied = relevance[set_of_row[large[row]], set_of_item[item]]
        mean = np.bincount(row, weights=tied) / np.bincount(row)
        first = k - 1 - np.argmax(begins[large, k - 1 :: -1], axis=1)  # the group's first place
        means[large] = np.where(np.arange(k) >= first[:, None], mean[:, None], means[large])
    return means


def _incidence(sets: Statements, names: dict[Hashable, int]) -> tuple[csr_array, NDArray[np.int64]]:
    """Which distinct set says what, 0 or 1 [sets, statements], and the set of each row. ``names`` grows."""
    places: dict[frozenset[Hashable], int] = {}
    set_of_row = np.array([places.setdefault(frozenset(row), len(places)) for row in sets], dtype=np.int64)
    columns = [[names.setdefault(statement, len(names)) for statement in said] for said in places]
    ends = np.concatenate([[0], np.cumsum([len(row) for row in columns])])
    indices = np.array([column for row in columns for column in row], dtype=np.int64)
    table = csr_array((np.ones(len(indices)), indices, ends), shape=(len(places), max(1, len(names))))
    return table, set_of_row


def _discounts(graded: GradedRanks, k: int) -> NDArray[np.float64]:
    if not 1 <= k <= graded.gains.shape[1]:
        raise ValueError(f"expected k from 1 to the {graded.gains.shape[1]} places looked at, got {k}")
    return np.asarray(1.0 / np.log2(np.arange(2, k + 2)))


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
