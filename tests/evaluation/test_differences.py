"""Differences to answers that do not look: by hand, and of writers whose gain is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcoro.evaluation.differences import measure_differences
from deepcoro.reports.grammar import Finding, render_report
from deepcoro.reports.vocabulary import SEGMENTS, TREES, segments_of_tree
from tests.evaluation.test_written import constants_of, truth_of

LAD80, LAD90, LCX70, RCA90 = (
    Finding(segment, stenosis=percent)
    for segment, percent in (("prox_lad", 80), ("prox_lad", 90), ("mid_lcx", 70), ("mid_rca", 90))
)
TREE = st.sampled_from([None, *TREES])
# Of the left tree three of four have the LAD, one of them the LCX too; of the right one of four has the RCA.
ROWS = [
    ([LAD80], "left", "right"),
    ([LAD80], "left", "right"),
    ([LAD90, LCX70], "left", "right"),
    ([], "left", "right"),
    ([RCA90], "right", "right"),
    ([], "right", "right"),
    ([], "right", "right"),
    ([], "right", "right"),
]


def texts_of(rows):
    return [render_report(findings, None, tree) for findings, tree, _ in rows]


def test_who_writes_the_truth_gains_what_each_answer_lacks():
    truth = truth_of(ROWS)
    found = measure_differences(texts_of(ROWS), truth, constants_of(truth), num_resamples=50)
    f1 = {answer: value for answer, (value, _) in found["finding_f1"].items()}
    # Normal right trees are the most common report. Always LAD: 3 hits, 1 false, 2 missed; with the RCA 4, 4, 1.
    assert f1["most common report"] == 0
    assert f1["same segments"] == f1["blind"] == f1["tree oracle"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    for answer, (value, gain) in found["finding_f1"].items():
        assert gain.value == pytest.approx(1 - value), answer
    error, gain = found["stenosis_mae_lesions"]["blind"]
    assert error == pytest.approx(10 / 5) and gain.value == pytest.approx(-error)  # the LAD's median is 80
    # Of all others the median is 0: of the LAD's 80, 80, 90, 0 are missed 0, 0, 10 and 80, and the LCX and RCA whole.
    error, gain = found["stenosis_mae"]["blind"]
    shown = sum(len(segments_of_tree(tree, dominance)) for _, tree, dominance in ROWS)
    assert error == pytest.approx((10 + 80 + 70 + 90) / shown) and gain.value == pytest.approx(-error)


def test_who_never_looks_gains_nothing_on_the_report_of_another():
    truth = truth_of(ROWS * 5, np.arange(5 * len(ROWS)))
    constant = [render_report([LAD80] if tree == "left" else [], None, tree) for _, tree, _ in ROWS * 5]
    found = measure_differences(constant, truth, constants_of(truth), num_resamples=50)
    for metric in found:
        gain = found[metric]["another's report"][1]
        assert (gain.value, gain.low, gain.high) == pytest.approx((0, 0, 0)), metric
    assert not found["finding_f1"]["tree oracle"][1].excludes(0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(SEGMENTS), st.sampled_from([None, 30, 70, 90])), max_size=6), TREE)
def test_no_text_that_is_the_same_for_all_beats_blind(said, tree):
    findings = {segment: Finding(segment, stenosis=percent, stent=percent is None) for segment, percent in said}
    truth = truth_of(ROWS)
    constant = [render_report([*findings.values()], "right", tree)] * len(ROWS)
    found = measure_differences(constant, truth, constants_of(truth), num_draws=1, num_resamples=2)
    for metric, answers in found.items():
        gain = answers["blind"][1].value
        assert gain <= 1e-9 if metric.endswith("f1") else gain >= -1e-9, metric


def test_another_report_is_of_the_same_tree_and_another_patient():
    # Everybody has a patient number, and the report says which: who is lent the own patient's would be right.
    rows = [([LAD80], "left", "right")] * 3 + [([RCA90], "right", "right")] * 3
    truth = truth_of(rows, [0, 0, 1, 0, 1, 1])
    written = [render_report([LAD80] if patient == 0 else [], None, "left") for patient in (0, 0, 1)]
    written += [render_report([RCA90] if patient == 0 else [], None, "right") for patient in (0, 1, 1)]
    value, _ = measure_differences(written, truth, constants_of(truth), num_resamples=20)["finding_f1"][
        "another's report"
    ]
    # Patient 0's three rows are lent patient 1's, which claim nothing; patient 1's three rows are lent the truth.
    assert value == pytest.approx(2 * 3 / (2 * 3 + 3))
    with pytest.raises(ValueError, match="two patients or more of a tree, found one patient of each"):
        measure_differences(written, truth_of(rows, [0] * 6), constants_of(truth), num_resamples=20)


def test_a_tree_of_one_patient_is_left_out_of_anothers_report():
    """On both sides: the model is right about it, which is no gain on a report that nobody can lend."""
    rows = [([LAD80], "left", "right"), ([LCX70], "left", "right"), ([RCA90], "right", "right")]
    found = [
        measure_differences(texts_of(rows[:n]), truth, constants_of(truth), num_resamples=20)
        for n in (2, 3)
        for truth in [truth_of(rows[:n], np.arange(n))]
    ]
    for metric in found[0]:
        (without, gain), (value, beside) = (answers[metric]["another's report"] for answers in found)
        assert (value, beside.value) == pytest.approx((without, gain.value)), metric
    assert found[1]["finding_f1"]["another's report"][1].value == 1  # of two who have nothing in common
