"""Ranks against a plain sort and torchmetrics; ties against all orders; chance against simulation and scipy."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR

from deepcoro.metrics import retrieval
from deepcoro.metrics.retrieval import (
    chance_median_rank,
    chance_recall_at_k,
    chance_reciprocal_rank,
    median_rank,
    rank_embeddings,
    rank_similarity,
    recall_at_k,
    reciprocal_rank,
)


@st.composite
def ranking_problems(draw):
    """A similarity of few different values (so that ties are common) and positives, one or more in each row."""
    queries, gallery = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    similarity = generator.integers(0, draw(st.integers(1, 9)), (queries, gallery)).astype(float)
    positives = generator.random((queries, gallery)) < 0.3
    positives[np.arange(queries), generator.integers(0, gallery, queries)] = True
    return similarity, positives


def test_ranks_worked_by_hand():
    similarity = [[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.9, 0.1, 0.5]]
    positives = [[1, 0, 0], [0, 1, 0], [0, 1, 1]]  # best positives stand 1st, 3rd, 2nd
    ranks = rank_similarity(similarity, positives)
    assert ranks.expected.tolist() == [1, 3, 2]
    assert recall_at_k(ranks, 1).tolist() == [1, 0, 0]
    assert recall_at_k(ranks, 2).tolist() == [1, 0, 1]
    assert median_rank(ranks) == 2


@given(ranking_problems())
def test_ties_are_the_average_over_all_orders_of_the_tied(problem):
    similarity, positives = problem
    similarity, positives = similarity[:1, :6], positives[:1, :6].copy()
    positives[0, 0] = True
    ranks = rank_similarity(similarity, positives)
    size = similarity.shape[1]
    first = []  # the rank of the first positive, in every order in which a sort may leave the tied
    for order in permutations(range(size)):
        by_similarity = sorted(order, key=lambda item: -similarity[0, item])
        first.append(1 + next(i for i, item in enumerate(by_similarity) if positives[0, item]))
    assert ranks.expected[0] == pytest.approx(np.mean(first))
    assert reciprocal_rank(ranks)[0] == pytest.approx(np.mean(1 / np.array(first)))
    for k in range(1, size + 1):
        assert recall_at_k(ranks, k)[0] == pytest.approx(np.mean(np.array(first) <= k))


@given(ranking_problems(), st.randoms(use_true_random=False))
def test_order_of_gallery_and_queries_does_not_matter(problem, random):
    similarity, positives = problem
    rows = random.sample(range(similarity.shape[0]), similarity.shape[0])
    columns = random.sample(range(similarity.shape[1]), similarity.shape[1])
    moved = rank_similarity(similarity[rows][:, columns], positives[rows][:, columns])
    assert moved.expected.tolist() == rank_similarity(similarity, positives).expected[rows].tolist()


@given(ranking_problems())
def test_recall_grows_with_k_and_ends_at_one(problem):
    ranks = rank_similarity(*problem)
    recalls = np.stack([recall_at_k(ranks, k) for k in range(1, ranks.gallery_size + 1)])
    chances = np.stack([chance_recall_at_k(ranks, k) for k in range(1, ranks.gallery_size + 1)])
    for table in (recalls, chances):
        assert (np.diff(table, axis=0) >= -1e-9).all()
        assert (table >= 0).all() and (table <= 1).all() and (table[-1] == 1).all()


def test_recall_is_the_hit_rate_of_torchmetrics():
    generator = np.random.default_rng(0)
    similarity, positives = generator.random((40, 60)), generator.random((40, 60)) < 0.05
    positives[:, 0] = True
    ranks = rank_similarity(similarity, positives)
    queries = torch.arange(40).repeat_interleave(60)
    for k in (1, 5, 10):
        reference = RetrievalHitRate(top_k=k)(
            torch.tensor(similarity).flatten(), torch.tensor(positives).flatten(), queries
        )
        assert recall_at_k(ranks, k).mean() == pytest.approx(float(reference), abs=1e-6)


def test_reciprocal_rank_is_that_of_torchmetrics():
    generator = np.random.default_rng(4)
    similarity, positives = generator.random((40, 60)), generator.random((40, 60)) < 0.05
    positives[:, 0] = True
    queries = torch.arange(40).repeat_interleave(60)
    reference = RetrievalMRR()(torch.tensor(similarity).flatten(), torch.tensor(positives).flatten(), queries)
    assert reciprocal_rank(rank_similarity(similarity, positives)).mean() == pytest.approx(float(reference), abs=1e-6)


@given(ranking_problems(), st.integers(1, 40))
def test_chance_of_the_reciprocal_rank_is_that_of_a_gallery_all_tied(problem, block):
    similarity, positives = problem
    tied = rank_similarity(np.zeros_like(similarity), positives)
    size = similarity.shape[1]
    # P(first positive at rank r) = P(none among r - 1 draws) * P(the next is one), counted by hand.
    reference = []
    for count in positives.sum(axis=1):
        missed, mean = 1.0, 0.0
        for rank in range(1, size - count + 2):
            found = count / (size - rank + 1)
            mean, missed = mean + missed * found / rank, missed * (1 - found)
        reference.append(mean)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_BLOCK", block)
        assert reciprocal_rank(tied) == pytest.approx(reference)
        assert chance_reciprocal_rank(rank_similarity(similarity, positives)) == pytest.approx(reference)


def test_chance_of_the_reciprocal_rank_with_one_positive_is_harmonic():
    ranks = rank_similarity(np.random.default_rng(5).random((4, 50)), np.eye(50, dtype=bool)[:4])
    assert chance_reciprocal_rank(ranks) == pytest.approx(np.full(4, (1 / np.arange(1, 51)).mean()))


def test_constant_embeddings_score_as_chance():
    keys = np.random.default_rng(0).integers(0, 60, 300)
    same = np.full((300, 512), 0.317)
    ranks = rank_embeddings(same, same, keys, keys)
    for k in (1, 5, 10):
        assert recall_at_k(ranks, k) == pytest.approx(chance_recall_at_k(ranks, k))
    assert reciprocal_rank(ranks) == pytest.approx(chance_reciprocal_rank(ranks))
    assert median_rank(ranks) >= chance_median_rank(ranks)  # an expected rank is never flattered by ties
    single = rank_embeddings(same, same, np.arange(300), np.arange(300))
    assert median_rank(single) == chance_median_rank(single) == 150.5


def test_rounding_tells_no_items_apart_where_all_are_nearly_orthogonal_to_the_query():
    noise = np.random.default_rng(6).normal(scale=1e-7, size=(40, 3))  # their cosines are 0.01, but for 1e-7
    ranks = rank_embeddings([[0.01, 1.0, 0.0]], [[1.0, 0.0, 0.0]] + noise, [0], np.arange(40))
    assert ranks.tied_negatives.tolist() == [39] and recall_at_k(ranks, 10) == pytest.approx([0.25])


def test_embeddings_give_the_ranks_of_their_cosine_in_blocks_of_any_size(monkeypatch):
    generator = np.random.default_rng(1)
    videos, texts = generator.normal(size=(37, 8)), generator.normal(size=(23, 8)) * 5
    text_keys = np.array([f"report {i % 11}" for i in range(23)])
    video_keys = generator.choice(text_keys, 37)
    cosine = (videos / np.linalg.norm(videos, axis=1)[:, None]) @ (texts / np.linalg.norm(texts, axis=1)[:, None]).T
    expected = rank_similarity(cosine, video_keys[:, None] == text_keys[None]).expected
    for block in (1, 23 * 5, 10**6):
        monkeypatch.setattr(retrieval, "_BLOCK", block)
        assert rank_embeddings(videos, texts, video_keys, text_keys).expected.tolist() == expected.tolist()


def test_perfect_embeddings_find_everything_both_ways():
    texts = np.eye(6)[[0, 1, 2, 0, 4, 5]]  # the first and the fourth report are equal
    keys = ["a", "b", "c", "a", "e", "f"]
    for queries, gallery in ((texts, texts * 2), (texts * 2, texts)):
        assert (recall_at_k(rank_embeddings(queries, gallery, keys, keys), 1) == 1).all()


def test_chance_is_the_hypergeometric_one():
    generator = np.random.default_rng(2)
    positives = generator.random((50, 500)) < generator.random((50, 1)) * 0.2
    positives[:, 0] = True
    ranks = rank_similarity(np.zeros((50, 500)), positives)
    for k in (1, 5, 10, 499):
        reference = 1 - hypergeom.pmf(0, 500, positives.sum(axis=1), k)
        assert chance_recall_at_k(ranks, k) == pytest.approx(reference, abs=1e-9)


def test_chance_is_what_random_similarities_reach():
    generator = np.random.default_rng(3)
    positives = np.zeros((4000, 30), dtype=bool)
    for row, count in enumerate(generator.integers(1, 4, 4000)):
        positives[row, :count] = True
    ranks = rank_similarity(generator.random(positives.shape), positives)
    assert recall_at_k(ranks, 5).mean() == pytest.approx(chance_recall_at_k(ranks, 5).mean(), abs=0.03)
    assert median_rank(ranks) == pytest.approx(chance_median_rank(ranks), abs=1)


@pytest.mark.parametrize("gallery_size, expected", [(5, 3), (6, 3.5), (1, 1)])
def test_median_of_chance_with_one_positive_is_the_middle(gallery_size, expected):
    ranks = rank_similarity(np.zeros((3, gallery_size)), np.eye(gallery_size, dtype=bool)[[0, 0, 0]])
    assert chance_median_rank(ranks) == expected


def test_mistakes_are_named():
    eye = np.eye(3)
    with pytest.raises(ValueError, match=r"from 1 to the size of the gallery, 3; got 5"):
        recall_at_k(rank_similarity(eye, eye), 5)
    with pytest.raises(ValueError, match="got 0"):
        chance_recall_at_k(rank_similarity(eye, eye), 0)
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(2, 3\)"):
        rank_similarity(eye, eye[:2])
    with pytest.raises(ValueError, match="neither empty"):
        rank_similarity(np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(ValueError, match="finite similarities, got others in query 1"):
        rank_similarity([[0, 1], [np.nan, 1]], np.ones((2, 2)))
    with pytest.raises(ValueError, match="none for query 2"):
        rank_similarity(eye, np.diag([1, 1, 0]))
    with pytest.raises(ValueError, match="none for query 1"):
        rank_embeddings(eye, eye, [1, 7, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="row 2 of gallery"):
        rank_embeddings(eye, np.diag([1, 1, np.inf]), [1, 2, 3], [1, 2, 3])
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(3, 2\)"):
        rank_embeddings(eye, eye[:, :2], [1, 2, 3], [1, 2, 3])
    with pytest.raises(ValueError, match="got 2 and 3"):
        rank_embeddings(eye, eye, [1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="keys of one type"):
        rank_embeddings(eye, eye, [1, 2, 3], ["1", "2", "3"])
