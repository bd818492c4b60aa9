"""The automaton writes what ``render_report`` writes: all of it, nothing else, and each text in one way."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcoro.reports.automaton import CLAUSES, ReportAutomaton
from deepcoro.reports.grammar import Finding, parse_report, render_report
from deepcoro.reports.vocabulary import DOMINANCES, TREES
from tests.reports.lists import finding_lists

ANY = ReportAutomaton.of()
UNKNOWN = (None, *DOMINANCES)
KINDS = [(dominance, tree) for dominance in UNKNOWN for tree in (None, *TREES)]
# Segments by tree and dominance, counted by hand in the table of ``vocabulary``: 13 of the left tree, 5 of the right.
NUM_SEGMENTS = {
    **{(dominance, None): 18 for dominance in UNKNOWN},
    **dict.fromkeys([(None, "left"), ("right", "left")], 13),
    **dict.fromkeys([(None, "right"), ("right", "right")], 5),
    ("balanced", "left"): 14,
    ("balanced", "right"): 4,
    ("left", "left"): 15,
    ("left", "right"): 3,
}
# What may be said of one segment, by hand: 0 to 99 % or one of two occlusions; a stent, or 0 to 100 % inside one; four
# amounts of calcium; thrombus; collaterals; four flows; 101 ratios; eight classes; PCI. Each may be left out, not all.
NUM_SENTENCES = 103 * 103 * 5 * 2 * 2 * 5 * 102 * 9 * 2 - 1


def count(automaton, state, known):
    """How many texts lead from ``state`` to an end."""
    if state not in known:
        ways = (len(c.phrases) * count(automaton, c.target, known) for c in automaton.choices(state))
        known[state] = sum(ways) + automaton.may_end(state)
    return known[state]


@given(finding_lists(), st.sampled_from(KINDS))
def test_every_report_is_of_the_language(findings, kind):
    text = render_report(findings, *kind)
    for automaton in (ANY, ReportAutomaton.of([kind[0]], [kind[1]])):
        way = automaton.read(text)
        assert way is not None
        assert " ".join(phrase for _, _, phrase in way) == text


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_as_many_texts_as_lists_of_findings(kind):
    """Each of which is another text, so that with the test above there is no text beside theirs."""
    automaton = ReportAutomaton.of([kind[0]], [kind[1]])
    assert count(automaton, automaton.start, {}) == (1 + NUM_SENTENCES) ** NUM_SEGMENTS[kind]


def test_a_union_has_the_texts_of_its_parts_once():
    """A left tree of unknown dominance may hold what that of a left-dominant heart holds, which is all of them."""
    automaton = ReportAutomaton.of(trees=["left"])
    assert count(automaton, automaton.start, {}) == (1 + NUM_SENTENCES) ** 15
    right = ReportAutomaton.of(trees=["right"])
    s = 1 + NUM_SENTENCES
    assert count(right, right.start, {}) == s**3 + s**4 + s**5  # without PDA, without posterolateral, with both


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_way_is_a_report_that_reads_back(kind):
    automaton, chance = ReportAutomaton.of([kind[0]], [kind[1]]), random.Random(0)
    texts = {automaton.random_text(chance) for _ in range(100)}
    assert len(texts) > 60
    for text in texts:
        read = parse_report(text)
        assert read.unread == ()
        assert render_report(read.findings, *kind) == text


def test_no_phrase_begins_another_that_may_stand_in_its_place():
    for state in ANY.states():
        phrases = [phrase for choice in ANY.choices(state) for phrase in choice.phrases]
        assert len(set(phrases)) == len(phrases)
        begun = {phrase[:end] for phrase in phrases for end in range(1, len(phrase))}
        assert not begun & set(phrases)
        assert all(phrase[-1] in ".,:" for phrase in phrases)


RIGHT = "Right coronary tree. "


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Right coronary tree.",
        RIGHT + "RCA: normal. PDA: normal. Posterolateral: normal. ",
        RIGHT + "RCA: normal. PDA: normal.",  # of a balanced heart
        RIGHT + "RCA: normal. Posterolateral: normal. PDA: normal.",
        RIGHT + "Mid RCA: thrombus. Proximal RCA: thrombus. PDA: normal. Posterolateral: normal.",
        RIGHT + "Mid RCA: thrombus. Mid RCA: stent in place. PDA: normal. Posterolateral: normal.",
        RIGHT + "Mid RCA: thrombus. RCA: normal. PDA: normal. Posterolateral: normal.",
        RIGHT + "RCA: normal. PDA: 80% stenosis (mild). Posterolateral: normal.",
        RIGHT + "RCA: normal. PDA: 100% stenosis (critical). Posterolateral: normal.",
        RIGHT + "RCA: normal. PDA: 0% stenosis (none). Posterolateral: normal.",
        RIGHT + "RCA: normal. PDA: TIMI 2 flow, 80% stenosis (severe). Posterolateral: normal.",
        RIGHT + "RCA: normal. PDA: thrombus, normal. Posterolateral: normal.",
        RIGHT + "RCA: normal. PDA: iFR 1.01. Posterolateral: normal.",
        RIGHT + "RCA: normal. PDA: treated by PCI, thrombus. Posterolateral: normal.",
        RIGHT + "RCA: normal. PDA: Posterolateral: normal.",
        RIGHT + "RCA: normal. PDA: normal. Posterolateral: normal. Left coronary tree.",
        RIGHT + "Proximal LAD: thrombus. PDA: normal. Posterolateral: normal.",
        "Right dominance. Right coronary tree. RCA: normal. PDA: normal. Posterolateral: normal.",
        (RIGHT + "RCA: normal. PDA: normal. Posterolateral: normal.").lower(),
    ],
)
def test_what_is_no_report(text):
    assert ReportAutomaton.of(["right"], ["right"]).read(text) is None


def test_what_is_said_next_by_hand():
    automaton = ReportAutomaton.of(["left"], ["right"])
    (header,) = automaton.choices(automaton.start)
    assert header.phrases == ("Right coronary tree.",)
    vessel = automaton.choices(header.target)
    said = [("Proximal RCA:", "name", "prox_rca"), ("Mid RCA:", "name", "mid_rca"), ("Distal RCA:", "name", "dist_rca")]
    said.append(("RCA: normal.", "normal", "RCA"))
    assert [(*c.phrases, c.kind, c.about) for c in vessel] == said
    assert automaton.may_end(vessel[-1].target)
    assert not automaton.may_end(header.target)
    assert [c.kind for c in automaton.choices(vessel[1].target)][-1] == "pci"
    last = next(c for c in automaton.choices(vessel[1].target) if c.phrases == ("treated by PCI.",))
    assert [c.phrases for c in automaton.choices(last.target)] == [("Distal RCA:",)]
    assert automaton.may_end(last.target)
    assert len(CLAUSES["stenosis"]) == 102


@given(finding_lists(), st.sampled_from(KINDS))
def test_wording_changes_nothing(findings, kind):
    text = render_report(findings, *kind)
    loud = text.upper().replace(" (", "  ( ")
    backwards = " ".join(f"{sentence.strip('.')}." for sentence in reversed(text.split(". ")))
    automaton = ReportAutomaton.of([kind[0]], [kind[1]])
    assert automaton.canonical(loud) == automaton.canonical(backwards) == text


def test_the_nearest_dominance_is_taken_where_a_text_names_none():
    automaton = ReportAutomaton.of(trees=["left", "right"])
    assert automaton.canonical("right coronary tree. rca: normal") == "Right coronary tree. RCA: normal."
    assert automaton.canonical("Right coronary tree.").endswith("Posterolateral: normal.")  # unknown: as of the right
    with_pda = "Left coronary tree. Left main: normal. LAD: normal. LCX: normal. PDA: thrombus."
    assert automaton.canonical(with_pda) == with_pda


def test_what_the_language_cannot_say_is_refused():
    with pytest.raises(ValueError, match="mid rca: thrombus"):
        ReportAutomaton.of(["right"], ["left"]).canonical("Left coronary tree. mid rca: thrombus.")
    with pytest.raises(ValueError, match="Left coronary tree"):
        ReportAutomaton.of(["right"], ["right"]).canonical("Left coronary tree.")


@pytest.mark.parametrize(
    ("dominances", "trees", "named"),
    [(["middle"], ["left"], "middle"), (["left"], ["both"], "both"), ([], ["left"], "dominance"), ([None], [], "tree")],
)
def test_unknown_words_are_refused(dominances, trees, named):
    with pytest.raises(ValueError, match=named):
        ReportAutomaton.of(dominances, trees)


def test_a_report_by_hand_is_read_phrase_by_phrase():
    findings = [Finding("left_main", stenosis=60), Finding("pda", thrombus=True, timi=2)]
    way = ReportAutomaton.of(["left"], ["left"]).read(render_report(findings, "left", "left"))
    assert [(phrase, choice.kind, choice.about) for _, choice, phrase in way] == [
        ("Left coronary tree.", "header", "Left coronary tree."),
        ("Left main:", "name", "left_main"),
        ("60% stenosis (moderate).", "stenosis", "left_main"),
        ("LAD: normal.", "normal", "LAD"),
        ("LCX: normal.", "normal", "LCX"),
        ("PDA:", "name", "pda"),
        ("thrombus,", "thrombus", "pda"),
        ("TIMI 2 flow.", "timi", "pda"),
    ]
