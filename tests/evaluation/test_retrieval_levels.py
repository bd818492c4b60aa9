"""Retrieval by clip and by study: pooling by hand, the tree oracle by simulation, names and rows as promised."""

import numpy as np
import pytest

from deepcoro.evaluation.retrieval import Pairs, chance_within_tree, measure_retrieval, pool_studies
from deepcoro.evaluation.truth import Truth


def truth_of(texts, studies, trees=None, statements=None):
    size = len(texts)
    return Truth(
        texts=list(texts),
        findings=[[]] * size,
        trees=list(trees or [None] * size),
        dominances=[None] * size,
        statements=statements or [frozenset([text]) for text in texts],
        studies=np.array(list(studies)),
        patients=np.array(list(studies)),
    )


def test_a_study_is_the_mean_of_its_clips_and_of_its_distinct_texts():
    video = np.array([[2.0, 0.0], [0.0, 5.0], [0.0, 1.0], [1.0, 1.0]])
    text = np.array([[3.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, -1.0]])
    keys = np.array([7, 8, 7, 9])  # clips 0 and 2 have one text
    said = [frozenset("a"), frozenset("ab"), frozenset("a"), frozenset("c")]
    units = Pairs(video, text, keys, said, [None] * 4, np.array(["p", "p", "p", "q"]))
    studies, study_of_row = pool_studies(units, np.array(["s1", "s1", "s1", "s0"]))
    assert study_of_row.tolist() == [1, 1, 1, 0]
    assert studies.patients.tolist() == ["q", "p"]
    assert studies.video == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [1 / 3, 2 / 3]]))
    assert studies.text == pytest.approx(np.array([[0, -1], [0.5, 0.5]]))  # not (2/3, 1/3): an equal text counts once
    assert studies.statements == [frozenset("c"), frozenset("ab")]


def test_studies_whose_clips_say_the_same_are_positives_whatever_the_order_and_number():
    keys = np.array([1, 2, 2, 1, 1, 2, 3])
    ones = np.ones((7, 2))
    units = Pairs(ones, ones, keys, [frozenset()] * 7, [None] * 7, np.arange(7))
    studies, _ = pool_studies(units, np.array(["a", "a", "b", "b", "b", "c", "d"]))
    a, b, c, d = studies.keys
    assert a == b and len({a, c, d}) == 3


def test_tree_oracle_is_a_random_order_of_the_clips_of_the_tree():
    trees = ["left"] * 8 + ["right"] * 3 + [None]
    keys = np.array([0, 0, 0, 1, 1, 2, 3, 4, 5, 5, 6, 0])
    generator = np.random.default_rng(0)
    for k in (1, 5):
        oracle = chance_within_tree(keys, trees, k)
        assert np.isnan(oracle[11])
        for query in (0, 3, 5, 8, 10):
            others = [item for item in range(12) if trees[item] == trees[query]]
            found = [
                keys[query] in keys[generator.permutation(others)[:k]] for _ in range(4000)
            ]  # a query of its own: how often one of the first k is a positive
            assert oracle[query] == pytest.approx(np.mean(found), abs=0.03)
    assert (chance_within_tree(keys, trees, 10)[8:11] == 1).all()  # three clips of the tree: ten hold them all


def test_names_and_rows_by_clip_and_by_study():
    generator = np.random.default_rng(1)
    texts = [f"text {number % 9}" for number in range(24)]
    studies = [f"s{number // 2:02}" for number in range(24)]
    trees = ["left", "right"] * 11 + [None, None]
    video, text = generator.normal(size=(2, 24, 6)).astype(np.float32)
    metrics, columns = measure_retrieval(video, text, truth_of(texts, studies, trees), True, 50)
    both = ("report_to_video", "video_to_report")
    by_row = [f"{d}/{m}" for d in both for m in ("recall_at_1", "recall_at_5", "recall_at_10", "ndcg_at_5", "mrr")]
    for prefix, rows in (("retrieval", 24), ("retrieval/study", 12)):
        for name in [f"{prefix}/{name}" for name in by_row] + [f"{prefix}/alignment"]:
            metric = metrics[name]
            values = columns[name] if rows == 24 else columns[name][::2]
            assert metric.value == pytest.approx(values.mean()) and metric.low <= metric.value <= metric.high
            assert metric.baseline_name == "chance" and np.isfinite(metric.baseline)
            assert rows == 24 or np.array_equal(columns[name][::2], columns[name][1::2])
        for side in ("video", "text"):
            assert -8 < metrics[f"{prefix}/uniformity_{side}"].value < 0
        ranks = columns[f"{prefix}/report_to_video/rank"]
        assert metrics[f"{prefix}/report_to_video/median_rank"].value == np.median(ranks)
    for direction in both:
        for k in (1, 5, 10):
            beside = metrics[f"retrieval/{direction}/recall_at_{k}_beside_tree_oracle"]
            known = columns[f"retrieval/{direction}/recall_at_{k}"][:22]
            assert beside.value == pytest.approx(known.mean()) and beside.baseline_name == "tree oracle"
            assert beside.baseline >= metrics[f"retrieval/{direction}/recall_at_{k}"].baseline
    assert not any("study" in name and "oracle" in name for name in metrics)
    only, _ = measure_retrieval(video, text, truth_of(texts, studies), False, 50)
    assert not any("study" in name or "oracle" in name for name in only)


def test_a_model_that_knows_the_tree_alone_reaches_the_tree_oracle():
    keys = [f"text {number % 40}" for number in range(200)]
    trees = [("left", "right")[number % 2] for number in range(200)]  # a text is of one tree
    side = np.array([[1.0, 0.0] if tree == "left" else [0.0, 1.0] for tree in trees])
    metrics, _ = measure_retrieval(side, side, truth_of(keys, range(200), trees), False, 50)
    for k in (1, 5, 10):
        beside = metrics[f"retrieval/report_to_video/recall_at_{k}_beside_tree_oracle"]
        assert beside.value == pytest.approx(beside.baseline)


def test_perfect_pairs_by_study():
    texts = [f"text {number}" for number in range(20)]
    studies = [f"s{number // 2}" for number in range(20)]
    metrics, _ = measure_retrieval(np.eye(20), np.eye(20), truth_of(texts, studies), True, 50)
    for prefix in ("retrieval", "retrieval/study"):
        assert metrics[f"{prefix}/alignment"].value == pytest.approx(0)
        for direction in ("report_to_video", "video_to_report"):
            for name in ("recall_at_1", "mrr", "ndcg_at_5", "median_rank"):
                assert metrics[f"{prefix}/{direction}/{name}"].value == pytest.approx(1)


def test_a_split_too_small_for_a_k_leaves_that_k_out():
    metrics, _ = measure_retrieval(np.eye(3), np.eye(3), truth_of("abc", "xyz"), True, 50)
    assert "retrieval/report_to_video/recall_at_1" in metrics
    assert not any("at_5" in name or "at_10" in name for name in metrics)
    metrics, _ = measure_retrieval(np.ones((1, 3)), np.ones((1, 3)), truth_of("a", "x"), True, 50)
    assert metrics["retrieval/report_to_video/mrr"].value == 1 and "retrieval/uniformity_video" not in metrics
