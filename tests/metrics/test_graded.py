"""NDCG and its chance against scikit-learn, ties and all; Jaccard by hand; the memory that a large gallery takes."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from deepcoro.metrics import graded, retrieval
from deepcoro.metrics.geometry import uniformity
from deepcoro.metrics.graded import Relevance, chance_ndcg_at_k, grade_embeddings, ndcg_at_k


def jaccard(first, second):
    return len(first & second) / len(first | second) if first | second else 1.0


@st.composite
def problems(draw):
    """Embeddings of few different points (so that ties are common and often larger than k) and sets of few statements,
    some of them empty."""
    queries, gallery = draw(st.integers(1, 5)), draw(st.integers(1, 90))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    points = generator.integers(-2, 3, (draw(st.integers(1, 6)), 3)).astype(float)
    items = points[generator.integers(0, len(points), gallery)]
    sets = [frozenset(generator.choice(5, generator.integers(0, 4), replace=False).tolist()) for _ in range(gallery)]
    asked = [frozenset(generator.choice(5, generator.integers(0, 4), replace=False).tolist()) for _ in range(queries)]
    return generator.normal(size=(queries, 3)), items, asked, sets


def cosines(queries, gallery):
    lengths = [np.maximum(np.linalg.norm(x, axis=1), 1e-12) for x in (queries, gallery)]
    return np.round((queries / lengths[0][:, None]) @ (gallery / lengths[1][:, None]).T, 6)


@settings(deadline=None, max_examples=50)
@given(problems(), st.integers(1, 12))
def test_ndcg_is_that_of_scikit_learn(problem, k):
    queries, gallery, asked, sets = problem
    k = min(k, len(gallery))
    ranks = grade_embeddings(queries, gallery, asked, sets, k=k)
    if len(gallery) == 1:  # scikit-learn refuses it; there is one order, and it is the best
        assert ndcg_at_k(ranks, 1).tolist() == [float(jaccard(row, sets[0]) > 0) for row in asked]
        return
    relevance = np.array([[jaccard(row, item) for item in sets] for row in asked])
    similarity = cosines(queries, gallery)
    for places in range(1, k + 1):
        reference = [ndcg_score(r[None], s[None], k=places) for r, s in zip(relevance, similarity)]
        assert ndcg_at_k(ranks, places) == pytest.approx(reference, abs=1e-6)
        chance = [ndcg_score(r[None], np.zeros_like(s[None]), k=places) for r, s in zip(relevance, similarity)]
        assert chance_ndcg_at_k(ranks, places) == pytest.approx(chance, abs=1e-6)


def test_one_ranking_worked_by_hand():
    # Cosines 1, 0.8, 0; relevances 1/2, 1/3, 1: the item that says the same stands last.
    said = [{"left", "LAD"}, {"left", "LAD", "LCX", "RCA", "D1", "OM1"}, {"left"}]
    ranks = grade_embeddings([[1.0, 0.0]], [[2.0, 0.0], [4.0, 3.0], [0.0, 1.0]], [{"left"}], said, k=3)
    assert ranks.gains[0] == pytest.approx([1 / 2, 1 / 6, 1])
    assert ranks.ideal[0] == pytest.approx([1, 1 / 2, 1 / 6])
    gained, best = 1 / 2 + 1 / 6 / np.log2(3) + 1 / 2, 1 + 1 / 2 / np.log2(3) + 1 / 6 / 2
    assert ndcg_at_k(ranks, 3)[0] == pytest.approx(gained / best)
    assert ndcg_at_k(ranks, 1)[0] == pytest.approx(1 / 2)
    assert chance_ndcg_at_k(ranks, 1)[0] == pytest.approx((1 / 2 + 1 / 6 + 1) / 3)


def test_relevance_is_the_jaccard_index():
    queries = [frozenset("ab"), frozenset(), frozenset("ab"), frozenset("z")]
    gallery = [frozenset("abc"), frozenset("b"), frozenset(), frozenset("abc")]
    relevance = Relevance(queries, gallery)
    table = relevance.between(relevance.query_set)[:, relevance.gallery_set]
    assert table == pytest.approx(np.array([[jaccard(a, b) for b in gallery] for a in queries]))
    assert table[0].tolist() == pytest.approx([2 / 3, 1 / 2, 0, 2 / 3]) and table[1].tolist() == [0, 0, 1, 0]


def test_constant_embeddings_score_as_chance():
    generator = np.random.default_rng(0)
    sets = [frozenset(generator.choice(9, 3, replace=False).tolist()) for _ in range(200)]
    same = np.full((200, 64), 0.317)
    ranks = grade_embeddings(same, same, sets, sets)
    for k in (1, 5, 10):
        assert ndcg_at_k(ranks, k) == pytest.approx(chance_ndcg_at_k(ranks, k))


def test_rounding_tells_no_items_apart_where_all_are_nearly_orthogonal_to_the_query():
    noise = np.random.default_rng(6).normal(scale=1e-7, size=(40, 3))  # their cosines are 0.01, but for 1e-7
    sets = [frozenset({"said"} if number == 7 else ()) for number in range(40)]
    ranks = grade_embeddings([[0.01, 1.0, 0.0]], [[1.0, 0.0, 0.0]] + noise, [{"said"}], sets, k=3)
    assert ranks.gains[0] == pytest.approx([1 / 40] * 3)


@settings(deadline=None)
@given(problems(), st.integers(1, 400))
def test_blocks_of_any_size_give_the_same(problem, block):
    k = min(4, len(problem[1]))
    whole = grade_embeddings(*problem, k=k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graded, "_BLOCK", block)
        patch.setattr(retrieval, "_BLOCK", block)
        parts = grade_embeddings(*problem, k=k)
    for name in ("gains", "ideal", "mean_gain"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-12)


def test_a_large_gallery_never_stands_in_memory():
    size = 8000  # its matrix of similarities has 256 MB in float32
    rows = np.random.default_rng(0).normal(size=(size, 4)).astype(np.float32)
    sets = [frozenset([number % 800]) for number in range(size)]
    peaks = []
    for measure in (
        lambda: retrieval.rank_embeddings(rows, rows, np.arange(size), np.arange(size)),
        lambda: grade_embeddings(rows, rows, sets, sets),
        lambda: uniformity(rows),
    ):
        tracemalloc.start()  # numpy tells it of its arrays
        measure()
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    assert max(peaks) < 128 and min(peaks) > 4  # MB


def test_mistakes_are_named():
    eye, sets = np.eye(3), [{"a"}, {"b"}, {"c"}]
    with pytest.raises(ValueError, match="from 1 to the size of the gallery, 3; got 4"):
        grade_embeddings(eye, eye, sets, sets, k=4)
    with pytest.raises(ValueError, match="3 queries and 3 gallery items, got 2 and 3"):
        grade_embeddings(eye, eye, sets[:2], sets, k=1)
    with pytest.raises(ValueError, match=r"one width E, got \(3, 3\) and \(3, 2\)"):
        grade_embeddings(eye, eye[:, :2], sets, sets, k=1)
    with pytest.raises(ValueError, match="2 places looked at, got 3"):
        ndcg_at_k(grade_embeddings(eye, eye, sets, sets, k=2), 3)
