"""Counts of findings by hand, and their F1 against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from deepcoro.metrics.findings import count_findings, ratio, segments_in_view, significant_segments, tree_matches
from deepcoro.reports.grammar import Finding, parse_report
from deepcoro.reports.vocabulary import SEGMENTS

S = len(SEGMENTS)


def segments(*names: str) -> np.ndarray:
    return np.isin(SEGMENTS, names)


def test_significant_disease_of_segments():
    table = significant_segments(
        [
            [Finding("left_main", stenosis=50), Finding("prox_lad", stenosis=69), Finding("d1", stent=True)],
            [Finding("mid_rca", stenosis=70), Finding("pda", stenosis=100, occlusion="cto")],
            [],
        ]
    )
    assert table.tolist() == [row.tolist() for row in (segments("left_main"), segments("mid_rca", "pda"), segments())]


def test_view_follows_tree_and_dominance():
    view = segments_in_view(["right", "right", "left", None], [None, "left", "left", "right"])
    pda = SEGMENTS.index("pda")
    assert view[:, pda].tolist() == [True, False, True, True]
    assert view[:, SEGMENTS.index("prox_lad")].tolist() == [False, False, True, True]
    assert view[3].all()


def test_counts_worked_by_hand():
    true = np.stack([segments("prox_lad", "mid_lad"), segments("mid_rca"), segments()])
    predicted = np.stack([segments("prox_lad", "d1", "mid_rca"), segments("prox_lad"), segments()])
    counts = count_findings(true, predicted, segments_in_view(["left", "right", "left"], ["right"] * 3))
    # Row 0: prox_lad hit, d1 false, mid_lad missed, mid_rca out of view. Row 1: mid_rca missed, prox_lad out of view.
    assert [column.tolist() for column in counts.f1_terms] == [[2, 0, 0], [4, 1, 0]]
    assert ratio(*counts.f1_terms) == 2 / 5
    assert ratio(*counts.precision_terms) == 1 / 2
    assert ratio(*counts.recall_terms) == 1 / 3
    assert counts.out_of_view.sum(axis=1).tolist() == [1, 1, 0]
    assert ratio(*counts.strict().f1_terms) == 2 / 7
    assert counts.segment_f1()[SEGMENTS.index("prox_lad")] == 1
    assert np.isnan(counts.segment_f1()[SEGMENTS.index("om1")])


def test_disease_out_of_view_is_not_asked_for():
    counts = count_findings([segments("prox_lad")], [segments()], segments_in_view(["right"], ["right"]))
    assert np.isnan(ratio(*counts.recall_terms)) and np.isnan(ratio(*counts.f1_terms))


def test_ratios_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    true, predicted = generator.random((2, 50, S)) < 0.2
    counts = count_findings(true, predicted, np.ones((50, S)))
    for terms, reference in (
        (counts.f1_terms, f1_score),
        (counts.precision_terms, precision_score),
        (counts.recall_terms, recall_score),
    ):
        assert ratio(*terms) == pytest.approx(reference(true, predicted, average="micro"))
    assert counts.segment_f1() == pytest.approx(f1_score(true, predicted, average=None))


def test_one_prediction_serves_all_rows():
    true = np.random.default_rng(1).random((9, S)) < 0.3
    view = np.ones((9, S))
    once, repeated = (count_findings(true, p, view) for p in (segments("d1"), np.tile(segments("d1"), (9, 1))))
    assert once.f1_terms[1].tolist() == repeated.f1_terms[1].tolist()


def test_tree_is_read_from_the_text():
    texts = [
        "Left coronary tree. LAD: normal.",
        "right coronary tree .",
        "Left coronary tree. Right coronary tree.",
        "",
    ]
    predicted = [parse_report(text).tree for text in texts]
    assert tree_matches(["left"] * 4, predicted).tolist() == [True, False, False, False]


def test_mistakes_are_named():
    table = np.zeros((2, S))
    with pytest.raises(ValueError, match="got none"):
        significant_segments([])
    with pytest.raises(ValueError, match="got 1 and 2"):
        segments_in_view(["left"], [None, None])
    with pytest.raises(ValueError, match="tree must be one of"):
        segments_in_view(["both"], [None])
    with pytest.raises(ValueError, match=r"got \(2, 3\)"):
        count_findings(np.zeros((2, 3)), table, table)
    with pytest.raises(ValueError, match=r"got \(1, 18\) and \(2, 18\)"):
        count_findings(table, table[:1], table)
    with pytest.raises(ValueError, match="None in row 1"):
        tree_matches(["left", None], ["left", "left"])
    with pytest.raises(ValueError, match="got 0 and 1"):
        tree_matches(["left"], [])
