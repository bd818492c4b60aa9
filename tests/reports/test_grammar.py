"""Findings <-> text: a round trip for every valid list, whatever a tokenizer does to case and spacing."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcoro.reports.grammar import Finding, parse_report, render_report
from deepcoro.reports.vocabulary import DOMINANCES, SEGMENTS, segments_of_tree
from tests.reports.lists import finding_lists


def spaced_like_word_pieces(text):
    """Every punctuation mark stands by itself, in lower case: what BERT's pre-tokenizer makes of a text."""
    return " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))


@given(finding_lists(), st.none() | st.sampled_from(DOMINANCES))
def test_a_study_report_reads_back_as_its_findings(findings, dominance):
    read = parse_report(render_report(findings, dominance))
    assert read.findings == findings
    assert (read.dominance, read.trees, read.tree, read.unread) == (dominance, ("left", "right"), None, ())


@given(st.data(), st.sampled_from(["left", "right"]), st.none() | st.sampled_from(DOMINANCES))
def test_a_tree_report_reads_back_as_the_findings_of_that_tree(data, tree, dominance):
    findings = data.draw(finding_lists())
    read = parse_report(render_report(findings, dominance, tree))
    assert read.findings == tuple(f for f in findings if f.segment in segments_of_tree(tree, dominance))
    assert (read.tree, read.dominance, read.unread) == (tree, None, ())


@given(finding_lists(), st.none() | st.sampled_from(DOMINANCES), st.sampled_from([None, "left", "right"]))
def test_case_and_spacing_change_nothing(findings, dominance, tree):
    text = render_report(findings, dominance, tree)
    wanted = parse_report(text)
    assert parse_report(text.upper()) == wanted
    assert parse_report(spaced_like_word_pieces(text)) == wanted
    assert parse_report(text.replace(" ", "  \n")) == wanted


@given(finding_lists())
def test_rows_of_the_table_give_the_finding_back(findings):
    for finding in findings:
        assert Finding.from_dict(finding.to_dict()) == finding


def test_a_report_by_hand():
    findings = [
        Finding("prox_rca", stenosis=70, ifr=0.89),
        Finding("prox_lad", stenosis=80, timi=2, stent=True, in_stent_restenosis=5),
    ]
    assert render_report(findings, "right") == (
        "Right dominance. Left coronary tree. Left main: normal. "
        "Proximal LAD: 80% stenosis (severe), in-stent restenosis 5%, TIMI 2 flow. LCX: normal. "
        "Right coronary tree. Proximal RCA: 70% stenosis (severe), iFR 0.89. PDA: normal. Posterolateral: normal."
    )
    assert (
        render_report(findings, "left", "right")
        == "Right coronary tree. Proximal RCA: 70% stenosis (severe), iFR 0.89."
    )


def test_a_left_dominant_heart_is_told_on_the_left():
    findings = [Finding("lvp", stenosis=60), Finding("posterolateral", thrombus=True)]
    assert render_report(findings, "left") == (
        "Left dominance. Left coronary tree. Left main: normal. LAD: normal. "
        "Left posterolateral: 60% stenosis (moderate). Posterolateral branch: thrombus. "
        "Right coronary tree. RCA: normal."
    )
    assert render_report([], "balanced", "right") == "Right coronary tree. RCA: normal. PDA: normal."
    assert render_report([], "balanced", "left") == "Left coronary tree. Left main: normal. LAD: normal. LCX: normal."


@given(finding_lists(), st.none() | st.sampled_from(DOMINANCES))
def test_the_two_trees_together_tell_every_finding_once(findings, dominance):
    told = [f for tree in ("left", "right") for f in parse_report(render_report(findings, dominance, tree)).findings]
    assert sorted(told, key=lambda f: SEGMENTS.index(f.segment)) == list(findings)


@given(finding_lists())
def test_vessels_called_normal_are_those_without_a_finding(findings):
    # By hand: what each vessel's sentence stands for in a right-dominant heart; the ramus is named only when diseased.
    vessels = {
        "left main": {"left_main"},
        "LAD": {"prox_lad", "mid_lad", "dist_lad", "d1", "d2"},
        "LCX": {"prox_lcx", "mid_lcx", "dist_lcx", "om1", "om2", "lvp"},
        "RCA": {"prox_rca", "mid_rca", "dist_rca"},
        "PDA": {"pda"},
        "posterolateral": {"posterolateral"},
    }
    found = {finding.segment for finding in findings}
    read = parse_report(render_report(findings, "right"))
    assert read.normal == tuple(vessel for vessel, segments in vessels.items() if not segments & found)


def test_equal_findings_in_any_order_are_one_text():
    one, two = Finding("d1", stenosis=0), Finding("left_main", thrombus=True)
    assert render_report([one, two]) == render_report([two, one])


def test_two_findings_of_one_segment_are_refused():
    with pytest.raises(ValueError, match="d1"):
        render_report([Finding("d1", stenosis=0), Finding("d1", stenosis=10)])


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        ("Proximal LAD: 80% stenosis (mild).", ["proximal lad: 80% stenosis (mild)"]),
        ("Proximal LAD: 0% stenosis (mild).", ["proximal lad: 0% stenosis (mild)"]),
        ("Proximal LAD: 60% stenosis (moderate), dances.", ["proximal lad: dances"]),
        ("Proximal LAD: thrombus, thrombus.", ["proximal lad: thrombus"]),
        ("Mid aorta: thrombus.", ["mid aorta: thrombus"]),
        ("Anything at all", ["anything at all"]),
        ("Left dominance. Right dominance.", ["right dominance"]),
        ("Left coronary tree. Left coronary tree.", ["left coronary tree"]),
        ("First diagonal: thrombus. First diagonal: stent in place.", ["first diagonal: stent in place"]),
        ("Mid LAD: TIMI 4 flow.", ["mid lad: timi 4 flow"]),
        ("Mid LAD: iFR 1.20.", ["mid lad: ifr 1.20"]),
        ("Mid LAD: in-stent restenosis 300%.", ["mid lad: in-stent restenosis 300%"]),
    ],
)
def test_what_cannot_be_read_is_listed(text, unread):
    assert list(parse_report(text).unread) == unread


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_no_text_makes_the_reader_fail(text):
    parse_report(text)


@pytest.mark.parametrize("broken", ["Proximal LAD: 80% stenosis (mild).", "Proximal LAD: iFR 7.00.", ""])
def test_unread_phrases_give_no_finding(broken):
    assert parse_report(broken).findings == ()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"segment": "aorta", "stenosis": 10}, "aorta"),
        ({"segment": "d1"}, "says nothing"),
        ({"segment": "d1", "stenosis": 101}, "101"),
        ({"segment": "d1", "stenosis": -1}, "-1"),
        ({"segment": "d1", "stenosis": 100}, "occlusion"),
        ({"segment": "d1", "stenosis": 90, "occlusion": "total"}, "90"),
        ({"segment": "d1", "occlusion": "cto"}, "occlusion"),
        ({"segment": "d1", "stenosis": 100, "occlusion": "partial"}, "partial"),
        ({"segment": "d1", "timi": 4}, "4"),
        ({"segment": "d1", "calcification": "heavy"}, "heavy"),
        ({"segment": "d1", "in_stent_restenosis": 20}, "stent"),
        ({"segment": "d1", "stent": True, "in_stent_restenosis": 101}, "0 to 100"),
        ({"segment": "d1", "stenosis": 70.5}, "whole number, got 70.5"),
        ({"segment": "d1", "stenosis": True}, "whole number, got True"),
        ({"segment": "d1", "timi": 2.0}, "whole number, got 2.0"),
        ({"segment": "d1", "ifr": 0.891}, "0.891"),
        ({"segment": "d1", "ifr": 1.01}, "1.01"),
        ({"segment": "d1", "medina": "1,2,0"}, "1,2,0"),
        ({"segment": "d1", "medina": "110"}, "110"),
    ],
)
def test_a_finding_out_of_range_is_refused(values, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        Finding(**values)


def test_a_single_precision_ifr_of_the_table_is_its_hundredth():
    import numpy as np

    assert Finding.from_dict({"segment": "d1", "ifr": float(np.float32(0.89)), "thrombus": None}).ifr == 0.89


@pytest.mark.parametrize(
    ("kind", "message"),
    [((None, "both"), "tree must be one of .* got 'both'"), (("none",), "dominance must be one of")],
)
def test_a_report_of_what_there_is_not_is_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        render_report([], *kind)
