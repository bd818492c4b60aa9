"""Segments, trees and grades, against the table of the domain."""

import pytest

from deepcoro.reports.vocabulary import (
    DOMINANCES,
    SEGMENT_NAMES,
    SEGMENTS,
    TREES,
    VESSELS,
    grade,
    is_significant,
    segments_of_tree,
    tree_of,
)

LEFT = {
    "left_main", "prox_lad", "mid_lad", "dist_lad", "d1", "d2", "bx", "prox_lcx", "mid_lcx", "dist_lcx",
    "om1", "om2", "lvp",
}  # fmt: skip
RCA = {"prox_rca", "mid_rca", "dist_rca"}


def test_there_are_the_eighteen_segments():
    assert set(SEGMENTS) == LEFT | RCA | {"pda", "posterolateral"}
    assert len(SEGMENTS) == len(set(SEGMENT_NAMES.values())) == 18
    assert [s for tree in TREES for vessel in VESSELS[tree].values() for s in vessel] == list(SEGMENTS)


@pytest.mark.parametrize(
    ("dominance", "inferior_left"),
    [(None, set()), ("right", set()), ("left", {"pda", "posterolateral"}), ("balanced", {"posterolateral"})],
)
def test_dominance_says_where_the_inferior_branches_hang(dominance, inferior_left):
    left, right = (segments_of_tree(tree, dominance) for tree in ("left", "right"))
    assert set(left) == LEFT | inferior_left
    assert set(right) == RCA | {"pda", "posterolateral"} - inferior_left
    assert list(left) == sorted(left, key=SEGMENTS.index)


@pytest.mark.parametrize("dominance", [None, *DOMINANCES])
def test_every_segment_is_in_exactly_one_tree(dominance):
    both = [*segments_of_tree("left", dominance), *segments_of_tree("right", dominance)]
    assert sorted(both) == sorted(SEGMENTS)
    for tree in TREES:
        assert {s for s in SEGMENTS if tree_of(s, dominance) == tree} == set(segments_of_tree(tree, dominance))


@pytest.mark.parametrize(("segment", "dominance"), [("aorta", None), ("pda", "both")])
def test_a_tree_of_nothing_known_is_refused(segment, dominance):
    with pytest.raises(ValueError, match="aorta|both"):
        tree_of(segment, dominance)


@pytest.mark.parametrize(("tree", "dominance"), [("middle", None), ("left", "both")])
def test_unknown_words_are_refused(tree, dominance):
    with pytest.raises(ValueError, match="middle|both"):
        segments_of_tree(tree, dominance)


@pytest.mark.parametrize(
    ("percent", "word"),
    [
        (0, "none"), (1, "mild"), (49, "mild"), (50, "moderate"), (69, "moderate"), (70, "severe"), (89, "severe"),
        (90, "critical"), (99, "critical"), (100, "critical"),
    ],
)  # fmt: skip
def test_grades_at_their_borders(percent, word):
    assert grade(percent) == word


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_percent_out_of_range_has_no_grade(percent):
    with pytest.raises(ValueError, match=str(percent)):
        grade(percent)


@pytest.mark.parametrize(
    ("segment", "stenosis", "occlusion", "significant"),
    [
        ("mid_rca", 69, "none", False),
        ("mid_rca", 70, "none", True),
        ("left_main", 49, "none", False),
        ("left_main", 50, "none", True),
        ("d1", 100, "total", True),
        ("d1", 100, "cto", True),
        ("d1", None, "none", False),
    ],
)
def test_significance_at_its_borders(segment, stenosis, occlusion, significant):
    assert is_significant(segment, stenosis, occlusion) is significant
