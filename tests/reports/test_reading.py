"""Free wording: what is read is what was meant, negations are none, and what is not understood is listed and unused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcoro.reports.grammar import Finding, render_report
from deepcoro.reports.reading import Unread, read_report
from deepcoro.reports.sentences import split_sentences
from deepcoro.reports.synonyms import load_synonyms
from deepcoro.reports.vocabulary import DOMINANCES
from tests.reports.test_grammar import finding_lists


def cto(segment, **more):
    return Finding(segment, stenosis=100, occlusion="cto", **more)


def occluded(segment, **more):
    return Finding(segment, stenosis=100, occlusion="total", **more)


# Sentences and, by a reader of such reports, what they say.
SENTENCES = [
    ("Subtotal occlusion of the mid LAD.", [Finding("mid_lad", stenosis=99)]),
    ("70-80% stenosis of the proximal RCA", [Finding("prox_rca", stenosis=75)]),
    ("Distal RCA: 70 to 75 % stenosis.", [Finding("dist_rca", stenosis=72)]),
    ("LAD: 80% prox.", [Finding("prox_lad", stenosis=80)]),
    ("Prox. LAD 80%, mid 50%.", [Finding("prox_lad", stenosis=80), Finding("mid_lad", stenosis=50)]),
    ("LAD: 80% prox. RCA: normal.", [Finding("prox_lad", stenosis=80)]),
    ("The proximal RCA is chronically occluded.", [cto("prox_rca")]),
    (
        "Mid RCA CTO with left-to-right collaterals, TIMI 0",
        [cto("mid_rca", collaterals=True, timi=0)],
    ),
    ("Acute occlusion of the mid RCA with thrombus, TIMI 0 flow.", [occluded("mid_rca", thrombus=True, timi=0)]),
    ("Mid RCA 100%.", [occluded("mid_rca")]),
    ("ISR 60% in the mid LAD", [Finding("mid_lad", stent=True, in_stent_restenosis=60)]),
    ("Mid LAD: 60% in-stent restenosis", [Finding("mid_lad", stent=True, in_stent_restenosis=60)]),
    ("iFR 0.85 in the proximal LAD", [Finding("prox_lad", ifr=0.85)]),
    ("Mid LAD 60%, iFR of 0.9, Medina 1.1.0", [Finding("mid_lad", stenosis=60, ifr=0.9, medina="1,1,0")]),
    ("TIMI III flow in the distal LAD", [Finding("dist_lad", timi=3)]),
    ("Moderately calcified proximal LAD.", [Finding("prox_lad", calcification="moderate")]),
    ("No calcification of the first diagonal", [Finding("d1", calcification="none")]),
    ("No stenosis in the OM1", [Finding("om1", stenosis=0)]),
    ("No thrombus, calcification or stent in the mid LAD.", [Finding("mid_lad", calcification="none")]),
    ("Severe stenosis of the mid LAD, 80%, with no thrombus.", [Finding("mid_lad", stenosis=80)]),
    ("70% stenosis in the LM and 80% in the mid RCA",
     [Finding("left_main", stenosis=70), Finding("mid_rca", stenosis=80)]),
    ("PCI of the 90% mid LCX stenosis.", [Finding("mid_lcx", stenosis=90, pci=True)]),
    ("Ostial LAD ~60%", [Finding("prox_lad", stenosis=60)]),
    ("RCA:\n- patent stent in the mid segment\n- distal: 50%",
     [Finding("mid_rca", stent=True), Finding("dist_rca", stenosis=50)]),
    ("Sténose serrée de 80 % de l’IVA moyenne.", [Finding("mid_lad", stenosis=80)]),
    ("Sténose de 70% du tronc commun", [Finding("left_main", stenosis=70)]),
    ("Occlusion chronique de la coronaire droite proximale avec collatérales, flux TIMI 0.",
     [cto("prox_rca", collaterals=True, timi=0)]),
    ("Resténose intra-stent de 60% de la circonflexe moyenne",
     [Finding("mid_lcx", stent=True, in_stent_restenosis=60)]),
    ("Première diagonale: iFR 0,85, pas de thrombus", [Finding("d1", ifr=0.85)]),
    ("LAD: D1 80%, mid: 50%, TIMI 2", [Finding("mid_lad", stenosis=50, timi=2), Finding("d1", stenosis=80)]),
    ("Sténose non significative de 40% de l'IVA moyenne", [Finding("mid_lad", stenosis=40)]),
    ("Three-vessel disease: LAD prox 90% (type C), LCX mid 80%, culprit mid RCA 100%.",
     [Finding("prox_lad", stenosis=90), Finding("mid_lcx", stenosis=80), occluded("mid_rca")]),
    ("There is a D1 stenosis of 60%", [Finding("d1", stenosis=60)]),
    ("Il n'y a pas de sténose de la deuxième marginale", [Finding("om2", stenosis=0)]),
    ("D1: ostial 90% stenosis.", [Finding("d1", stenosis=90)]),
    ("OM1: 70% proximal stenosis.", [Finding("om1", stenosis=70)]),
    ("Première diagonale : sténose ostiale 70%", [Finding("d1", stenosis=70)]),
    ("LAD, proximal, 80%", [Finding("prox_lad", stenosis=80)]),
    ("RCA: mid 80%, posterolateral 70%", [Finding("mid_rca", stenosis=80), Finding("posterolateral", stenosis=70)]),
    ("LAD:\n- D1 80%\n- mid 70%", [Finding("mid_lad", stenosis=70), Finding("d1", stenosis=80)]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "findings"), SENTENCES, ids=[text for text, _ in SENTENCES])
def test_what_clinicians_write(text, findings):
    read = read_report(text)
    assert (list(read.findings), read.unread, read.incomplete) == (findings, (), ())
    assert read.num_read == read.num_sentences > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("No significant disease.", [("all", "not significant")]),
        ("Normal coronary arteries", [("all", "normal")]),
        ("The LAD and LCX are normal.", [("lad", "normal"), ("lcx", "normal")]),
        ("LAD and LCX: no disease", [("lad", "normal"), ("lcx", "normal")]),
        (
            "LM, LAD and LCX: no significant disease",
            [("left_main", "not significant"), ("lad", "not significant"), ("lcx", "not significant")],
        ),
        ("RCA: no disease", [("rca", "normal")]),
        ("LCX is free of significant disease.", [("lcx", "not significant")]),
        ("LAD mild luminal irregularities", [("lad", "not significant")]),
        ("Nonobstructive disease of the RCA", [("rca", "not significant")]),
        ("Tronc commun indemne", [("left_main", "normal")]),
        ("Pas de sténose significative de l'IVA", [("lad", "not significant")]),
    ],
)
def test_vessels_without_disease(text, said):
    read = read_report(text)
    assert (list(read.said), read.findings, read.unread, read.incomplete) == (said, (), (), ())


@pytest.mark.parametrize("concept", ["thrombus", "stent", "collaterals", "occlusion", "ISR", "in-stent restenosis"])
@pytest.mark.parametrize("form", ["No {} in the mid LAD.", "Mid LAD: no evidence of {}.", "Mid LAD without {}",
                                  "Pas de {} de l'IVA moyenne", "IVA moyenne sans {}"])  # fmt: skip
def test_what_is_denied_is_not_found(form, concept):
    read = read_report(form.format(concept))
    assert (read.findings, read.unread, read.num_read) == ((), (), 1)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("RCA CTO with left-to-right collaterals, TIMI 0", [("rca", "segment")]),
        ("LAD 80%", [("lad", "segment")]),
        ("Second degree: diagonal 70%", None),
        ("Diagonal 70%", [("diagonal", "segment")]),
        ("Severe stenosis of the mid LAD", [("mid_lad", "percent")]),
        ("In-stent restenosis in the mid LAD", [("mid_lad", "percent of the restenosis")]),
        ("Calcified mid LAD", [("mid_lad", "amount of calcification")]),
    ],
)
def test_what_is_understood_and_is_no_finding(text, missing):
    read = read_report(text)
    assert read.findings == () and not read.complete
    if missing is None:
        assert [problem.why for problem in read.unread] == ["unknown words"]
    else:
        assert ([(item.place, item.missing) for item in read.incomplete], read.unread) == (missing, ())


@pytest.mark.parametrize(
    ("text", "phrases", "why"),
    [
        ("80% stenosis of the mid LAD before PCI", ["before"], "unknown words"),
        ("Marked tortuosity of the LAD and an ectatic RCA", ["marked tortuosity", "ectatic"], "unknown words"),
        ("Mid LAD: possible thrombus", ["possible"], "unknown words"),
        ("Mid LAD >70%", [">70%"], "unknown words"),
        ("Mid LAD 72.5%", ["72.5%"], "unknown words"),
        ("Mid LAD TIMI 4", ["timi 4"], "unknown words"),
        ("140% stenosis of the mid LAD", None, "more than 100%"),
        ("30-80% stenosis of the mid LAD", None, "a range that is too wide"),
        ("Moderate 90% stenosis of the mid LAD", None, "a grade that is not of its percent"),
        ("80% occlusion of the mid LAD", None, "an occlusion that is not of its percent"),
        ("No thrombus, calcification", None, "it may be negated or not"),
        ("Mid LAD thrombus or calcification", None, "it leaves open which of two is meant"),
        ("No 80% stenosis of the mid LAD", None, "a negation that leaves open what is there"),
        ("LAD without normal flow", ["flow"], "unknown words"),
        ("D1 and D2 50%", None, "a vessel, and nothing said of it"),
        ("D1 of the RCA 50%", None, "two vessels in one statement"),
        ("LAD D1 50%", None, "two vessels in one statement"),
        ("50% stenosis at D1", None, "in a branch, or where it leaves its vessel?"),
        ("LAD: 50% au niveau de la D1", None, "in a branch, or where it leaves its vessel?"),
        ("LAD: 80% proximal to D1", ["to"], "unknown words"),
        ("LAD: dominant vessel", None, "dominant, and not of the RCA or the LCX"),
        ("Proximal/mid LAD 50%", None, "two segments in one statement"),
        ("50%, RCA normal, LAD normal", None, "of which of the vessels is not clear"),
        ("LAD and LCX: 50%", None, "a vessel, and nothing said of it"),
        ("Non-significant 80% stenosis of the mid LAD", None, "normal and not normal in one statement"),
        ("Mid LAD thrombus: no", None, "a negation of nothing known"),
        ("Three-vessel disease", None, "nothing known is said"),
        ("80% stenosis", None, "no vessel is named"),
        ("Mid stenosis 80%", None, "a position without a vessel"),
        ("Stent 80% in the mid LAD", None, "a percent beside a stent: of the stent, or of the vessel?"),
        ("iFR 1.20 in the mid LAD", None, "an iFR above 1"),
        ("Left and right dominance", ["left"], "unknown words"),
        ("Sheath and 80% stenosis of the mid LAD", None, "of the procedure, and of a place or a percent"),
    ],
)
def test_what_is_not_understood_is_listed_and_not_used(text, phrases, why):
    read = read_report(text)
    assert list(read.unread) == [Unread(phrase, why) for phrase in phrases or [text.lower()]]
    assert (read.findings, read.said, read.num_read) == ((), (), 0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Mid LAD 80%.", "Mid LAD 50%."),
        ("Mid LAD thrombus.", "No thrombus in the mid LAD."),
        ("No occlusion of the mid LAD.", "Mid LAD CTO."),
        ("Normal LAD.", "Mid LAD 80%."),
        ("Mid LAD 80%.", "The coronaries are normal."),
        ("No significant disease of the LAD.", "Mid LAD 80%."),
        ("Right dominant.", "Left dominant."),
        ("Mid LAD 80%.", "Mid LAD: 50% stenosis (moderate)."),
    ],
)
def test_of_two_sentences_that_contradict_the_second_is_not_used(first, second):
    alone, both = read_report(first), read_report(f"{first} {second}")
    assert (both.findings, both.said, both.dominance) == (alone.findings, alone.said, alone.dominance)
    assert len(both.unread) == 1 and both.unread[0].why != "unknown words"


@given(finding_lists(), st.none() | st.sampled_from(DOMINANCES))
def test_the_canonical_wording_is_read_too(findings, dominance):
    text = render_report(findings, dominance)
    read = read_report(text)
    assert (read.findings, read.dominance, read.unread, read.num_read) == (findings, dominance, (), read.num_sentences)
    beside = read_report(f"{text} Something else entirely.")  # then sentence by sentence
    assert (beside.findings, beside.dominance) == (findings, dominance)
    assert [problem.phrase for problem in beside.unread] == ["something else entirely"]


@given(st.sampled_from(SENTENCES), st.sampled_from(["qvx", "formerly", "?", "2015", "old"]), st.data())
def test_an_unknown_word_anywhere_keeps_its_sentence_from_being_used(sentence, word, data):
    words = sentence[0].replace("\n", " ").rstrip(".").replace(". ", " ").split(" ")
    at = data.draw(st.integers(1, len(words) - 1)) if word == "?" else data.draw(st.integers(0, len(words)))
    text = " ".join([*words[:at], word, *words[at:]])
    sentences = split_sentences(text)
    told = {finding for part in sentences if word not in part for finding in read_report(part).findings}
    if word not in "?":
        assert set(read_report(text).findings) <= told


WORDS = "no mid lad rca 80% thrombus , . and or stent timi 0 ifr 0.8 normal : - with of left main pas de"


@given(st.text(max_size=120) | st.lists(st.sampled_from([*WORDS.split(), "\n"]), max_size=12).map(" ".join))
def test_no_text_makes_it_fail(text):
    read = read_report(text)
    assert read.num_read + read.num_skipped <= read.num_sentences


def test_vessels_have_one_name_in_either_wording():
    canonical = read_report(render_report([Finding("mid_lad", stenosis=80)], "right"))
    free = read_report("Mid LAD 80%. LM, LCX, RCA, PDA, posterolateral normal.")
    names = ("left_main", "lcx", "rca", "pda", "posterolateral")
    assert canonical.said == free.said == tuple((name, "normal") for name in names)


def test_a_contradiction_in_the_canonical_wording_is_found():
    read = read_report("LAD: normal. Proximal LAD: 80% stenosis (severe). RCA: normal.")
    assert read.findings == () and [name for name, _ in read.said] == ["lad", "rca"]
    assert [problem.phrase for problem in read.unread] == ["proximal lad: 80% stenosis (severe)"]


def test_a_branch_may_be_diseased_where_its_vessel_is_not():
    read = read_report("Normal LAD. D1 80%. RCA without disease, PDA 50%.")
    assert read.findings == (Finding("d1", stenosis=80), Finding("pda", stenosis=50))
    assert read.complete and read.said == (("lad", "normal"), ("rca", "normal"))


def test_what_is_of_the_procedure_is_passed_over():
    read = read_report("Radial access with a 6F sheath. LVEF 55%. Mid LAD 80%.")
    assert (read.num_sentences, read.num_read, read.num_skipped) == (3, 1, 2)
    assert read.findings == (Finding("mid_lad", stenosis=80),) and read.unread == ()


def test_a_sentence_that_is_not_read_ends_what_was_spoken_of():
    read = read_report("LAD:\nmid 80%\nthen a bypass of something\ndistal 70%")
    assert read.findings == (Finding("mid_lad", stenosis=80),)
    assert read.unread[-1] == Unread("distal 70%", "a position without a vessel")


@pytest.mark.parametrize(
    ("text", "dominance"),
    [
        ("Right dominant circulation.", "right"),
        ("Dominance: Left.", "left"),
        ("Co-dominant system", "balanced"),
        ("RCA: dominant, no disease.", "right"),
        ("The LCX is dominant.", "left"),
        ("Coronaire droite: dominante, thrombus au tiers moyen.", "right"),
        ("Réseau gauche dominant.", "left"),
        ("Non-dominant RCA.", None),
    ],
)
def test_dominance(text, dominance):
    assert read_report(text).dominance == dominance
    assert bool(read_report(text).unread) == (dominance is None)


def test_a_users_assumptions_are_counted(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("assume:\n  segment: {rca: mid_rca}\n  percent: {severe: 80}\n")
    read = read_report("RCA CTO. Severe stenosis of the mid LAD.", load_synonyms(path))
    assert read.findings == (Finding("mid_lad", stenosis=80), cto("mid_rca"))
    assert (read.complete, read.num_assumed) == (True, 1)


@pytest.mark.parametrize(
    ("text", "true"),
    [
        (
            "Left main is short. The mid LAD has an 80% stenosis. TIMI 2 flow. There is thrombus.",
            [Finding("mid_lad", stenosis=80, timi=2, thrombus=True)],
        ),
        (
            "The LAD is a large vessel. The LCx has an 80% mid stenosis. Distal 50% stenosis.",
            [Finding("mid_lcx", stenosis=80), Finding("dist_lcx", stenosis=50)],
        ),
        (
            "RCA:\n- proximal 40%\nLCX: mid 80%\n- distal occlusion",
            [Finding("prox_rca", stenosis=40), Finding("mid_lcx", stenosis=80), occluded("dist_lcx")],
        ),
        ("LAD: proximal and mid 80% stenosis.", [Finding("prox_lad", stenosis=80), Finding("mid_lad", stenosis=80)]),
        (
            "CD : proximale, moyenne et distale 70%.",
            [Finding("prox_rca", stenosis=70), Finding("mid_rca", stenosis=70), Finding("dist_rca", stenosis=70)],
        ),
        ("Proximal RCA - no calcification - total occlusion.", [occluded("prox_rca", calcification="none")]),
        ("Mid LAD - 80% stenosis - no thrombus - calcified.", [Finding("mid_lad", stenosis=80)]),
        ("Mid LAD – no stenosis – stent patent.", [Finding("mid_lad", stenosis=0, stent=True)]),
        ("LCX: posterolateral branch 70% stenosis.", [Finding("lvp", stenosis=70)]),
        ("Circonflexe : postérolatérale 80%.", [Finding("lvp", stenosis=80)]),
        ("IVA : au niveau de D1, sténose 80%.", []),
        ("LAD: at D1 80% stenosis.", []),
        ("OM1 90%, distal 60%", [Finding("om1", stenosis=90)]),
    ],
)
def test_a_place_that_is_not_certain_is_unread_and_never_another(text, true):
    read = read_report(text)
    assert read.unread
    known = {finding.segment: finding.to_dict() for finding in true}
    for finding in read.findings:  # what is read of the other sentences may say less than the truth, and nothing else
        said = {key: value for key, value in finding.to_dict().items() if value not in (None, False, "none")}
        assert said.items() <= known[finding.segment].items()
