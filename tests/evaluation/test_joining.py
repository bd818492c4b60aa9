"""Texts of a study's clips become one report, which contradicts itself nowhere."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcoro.evaluation.joining import join_texts
from deepcoro.reports.automaton import ReportAutomaton
from deepcoro.reports.grammar import parse_report, render_report
from deepcoro.reports.vocabulary import DOMINANCES, TREES
from tests.reports.lists import finding_lists

WHOLE = ReportAutomaton.of(trees=[None])
LEFT = "Left coronary tree. Left main: normal. LAD: normal. LCX: normal."
LEFT_PDA = f"{LEFT} PDA: 80% stenosis (severe)."  # of a left-dominant heart
RIGHT = "Right coronary tree. RCA: normal. PDA: normal. Posterolateral: normal."
RIGHT_PDA = "Right coronary tree. RCA: normal. PDA: 30% stenosis (mild). Posterolateral: normal."
RIGHT_BARE = "Right coronary tree. RCA: normal."  # of a left-dominant heart
RIGHT_BALANCED = "Right coronary tree. RCA: normal. PDA: normal."


def test_what_cannot_be_read_is_said_as_most_clips_say_it():
    assert join_texts(["A.", None, "B.", "A."]) == "A. B."
    assert join_texts(["", "A.", ""]) == "A."
    assert join_texts([None, ""]) == join_texts([]) == ""
    assert join_texts(["left", "Left coronary tree. a."]) == "left Left coronary tree. a."
    left, other, right = (
        f"{tree} coronary tree. {said}" for tree, said in (("Left", "a."), ("Left", "b."), ("Right", "c."))
    )
    assert join_texts([left, right, other, other]) == f"{other} {right}"  # what most clips of a tree say
    assert join_texts([right, left, other]) == f"{left} {right}"


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        ([RIGHT, LEFT], f"{LEFT} {RIGHT}"),
        ([RIGHT_BARE, LEFT], f"Left dominance. {LEFT} {RIGHT_BARE}"),
        ([RIGHT_BALANCED, LEFT], f"Balanced dominance. {LEFT} {RIGHT_BALANCED}"),
        ([LEFT_PDA, RIGHT_BARE], f"Left dominance. {LEFT_PDA} {RIGHT_BARE}"),
        # One pair that fits, though it is not made of what most clips of the right tree say.
        ([LEFT_PDA, LEFT_PDA, RIGHT, RIGHT, RIGHT_BARE], f"Left dominance. {LEFT_PDA} {RIGHT_BARE}"),
        # Of the pairs that fit the one of most clips.
        ([LEFT_PDA, RIGHT_BARE, LEFT, RIGHT, RIGHT], f"{LEFT} {RIGHT}"),
        ([LEFT_PDA, LEFT_PDA, LEFT_PDA, RIGHT_BARE, LEFT, RIGHT, RIGHT], f"Left dominance. {LEFT_PDA} {RIGHT_BARE}"),
        # None fits: what more clips say stays, and of the other what lies in its tree.
        ([LEFT_PDA, RIGHT_PDA], f"Left dominance. {LEFT_PDA} {RIGHT_BARE}"),
        ([RIGHT_PDA, LEFT_PDA, RIGHT_PDA], f"{LEFT} {RIGHT_PDA}"),
        ([LEFT], LEFT),
        ([RIGHT_PDA, RIGHT, RIGHT], RIGHT),
    ],
)
def test_texts_of_trees_are_joined_so_that_they_fit(texts, wanted):
    assert join_texts(texts) == wanted
    assert parse_report(wanted).unread == ()
    assert len({parse_report(text).tree for text in texts}) == 1 or WHOLE.read(wanted) is not None


def test_a_text_in_small_letters_fits_as_well():
    joined = join_texts([RIGHT_BARE.lower(), LEFT_PDA.lower()])
    assert joined.lower() == f"Left dominance. {LEFT_PDA} {RIGHT_BARE}".lower()


@settings(max_examples=60)
@given(
    st.lists(st.tuples(finding_lists(), st.sampled_from(DOMINANCES), st.sampled_from(TREES)), min_size=1, max_size=5)
)
def test_whatever_clips_say_the_whole_is_a_report(clips):
    texts = [render_report(findings, dominance, tree) for findings, dominance, tree in clips]
    joined = join_texts(texts)
    if len({tree for _, _, tree in clips}) == 2:
        assert WHOLE.read(joined) is not None
    else:
        assert joined in texts


@settings(max_examples=30)
@given(finding_lists(), st.sampled_from(DOMINANCES))
def test_clips_that_tell_the_truth_give_the_studys_report(findings, dominance):
    joined = parse_report(join_texts([render_report(findings, dominance, tree) for tree in reversed(TREES)]))
    assert joined.findings == findings
    assert (joined.trees, joined.unread) == (TREES, ())
