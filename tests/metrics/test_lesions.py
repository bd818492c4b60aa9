"""What reports say of segments, by hand; grades against the vocabulary's words."""

import numpy as np
import pytest

from deepcoro.metrics.lesions import (
    GRADES,
    SIGNS,
    abnormal_ifr,
    covered_segments,
    grade_confusion,
    grades,
    percents,
    sign_tables,
)
from deepcoro.reports.grammar import Finding
from deepcoro.reports.vocabulary import SEGMENTS, grade

S = len(SEGMENTS)


def where(table, row=0):
    return {segment for segment, there in zip(SEGMENTS, table[row]) if there}


def test_signs_by_hand():
    tables = sign_tables(
        [
            [
                Finding("left_main", stenosis=50),
                Finding("prox_lad", stenosis=69, calcification="moderate"),
                Finding("mid_lad", stenosis=70, thrombus=True),
                Finding("d1", stenosis=49, calcification="minimal"),
                Finding("om1", stent=True, in_stent_restenosis=80),
                Finding("mid_rca", stenosis=100, occlusion="cto", calcification="severe"),
                Finding("pda", stenosis=100, occlusion="total"),
                Finding("lvp", ifr=0.7),
            ],
            [],
        ]
    )
    assert tables.keys() == SIGNS.keys()
    assert where(tables["finding"]) == {"left_main", "mid_lad", "mid_rca", "pda"}
    assert where(tables["stenosis_50"]) == {"left_main", "prox_lad", "mid_lad", "mid_rca", "pda"}
    assert where(tables["stenosis_70"]) == {"mid_lad", "mid_rca", "pda"}
    assert where(tables["cto"]) == {"mid_rca"} and where(tables["thrombus"]) == {"mid_lad"}
    assert where(tables["calcification"]) == {"prox_lad", "mid_rca"} and where(tables["stent"]) == {"om1"}
    assert where(tables["restenosis"]) == {"om1"}
    milder = sign_tables([[Finding("om1", stent=True, in_stent_restenosis=percent)] for percent in (49, 50)])
    assert [where(milder["restenosis"], row) for row in range(2)] == [set(), {"om1"}]
    assert not any(table[1].any() for table in tables.values())


def test_no_picture_shows_an_ifr():
    findings = [[Finding("prox_lad", ifr=0.89)], [Finding("prox_lad", ifr=0.90)], [Finding("d1", stenosis=80)]]
    assert [where(abnormal_ifr(findings), row) for row in range(3)] == [{"prox_lad"}, set(), set()]
    assert not any(table[:2].any() for table in sign_tables(findings).values())


def test_silence_means_normal_only_where_the_report_names_the_tree():
    trees, dominances = [("left",), ("left",), ("left", "right"), ()], ["right", "left", None, "right"]
    covered = covered_segments(trees, dominances)
    right_tree = {"prox_rca", "mid_rca", "dist_rca"}
    assert where(~covered, 0) == right_tree | {"pda", "posterolateral"}
    assert where(~covered, 1) == right_tree  # what the left artery supplies is in its tree
    assert covered[2].all() and not covered[3].any()
    found = [
        Finding("prox_lad", stenosis=80),
        Finding("d1", stent=True),
        Finding("mid_rca", stenosis=100, occlusion="cto"),
    ]
    percent = percents([found, [], [Finding("mid_lad", stenosis=0)], []], covered)
    place = SEGMENTS.index
    assert percent[0, [place("prox_lad"), place("om1"), place("mid_rca")]].tolist() == [80, 0, 100]
    assert np.isnan(percent[0, [place("d1"), place("prox_rca")]]).all()  # a stent without a percent; a tree not named
    assert percent[1, place("pda")] == 0 and (percent[2] == 0).all() and np.isnan(percent[3]).all()


def test_a_segment_of_which_nobody_can_read_what_is_said_has_no_number():
    percent = percents([[Finding("prox_lad", stenosis=80)]], np.ones((1, S), dtype=bool), [("mid_lad", "pda")])
    assert where(np.isnan(percent)) == {"mid_lad", "pda"} and percent[0, SEGMENTS.index("prox_lad")] == 80


def test_grades_are_those_of_the_vocabulary():
    assert [GRADES[g] for g in grades(np.arange(101))] == [grade(percent) for percent in range(101)]
    assert grades([np.nan, 0.0]).tolist() == [-1, 0]
    with pytest.raises(ValueError, match="got -1.0 to 101.0"):
        grades([-1, 101])


def test_confusion_by_hand():
    counts = grade_confusion([[0, 1, -1, 4], [0, 0, 0, 0]], [[0, 2, 3, -1], [0, 0, 1, 0]])
    assert counts.shape == (2, 5, 5) and counts.sum() == 6
    assert counts[0, 0, 0] == counts[0, 1, 2] == counts[1, 0, 1] == 1 and counts[1, 0, 0] == 3


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="got none"):
        sign_tables([])
    with pytest.raises(ValueError, match="got 1 and 2"):
        covered_segments([("left",)], [None, None])
    with pytest.raises(ValueError, match="got 'middle', 'right'"):
        covered_segments([("middle",)], ["right"])
    with pytest.raises(ValueError, match=r"\[1, 18\], got \(2, 18\)"):
        percents([[]], np.ones((2, S)))
    with pytest.raises(ValueError, match=r"got shapes \(1, 2\) and \(1, 3\)"):
        grade_confusion([[0, 1]], [[0, 1, 2]])
