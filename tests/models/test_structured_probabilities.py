"""Probabilities of findings beside those of all reports that there are, each multiplied out and added up."""

import itertools
import math

import pytest
import torch

from deepcoro.models import branches
from deepcoro.models.branches import branch_scores
from deepcoro.models.captioning_decoder import CaptioningDecoder
from deepcoro.models.structured import TokenAutomaton
from deepcoro.models.structured_probabilities import (
    WORDS,
    ReportQuestions,
    SegmentProbability,
    decoder_scores,
    report_probabilities,
)
from deepcoro.reports.automaton import ReportAutomaton, Sentences
from deepcoro.reports.grammar import Finding, render_report
from tests.models.words import TOKENIZERS, make_tokenizers

# A small language, of 12 x 12 x 12 reports of a left tree: three segments of which little is said.
SEGMENTS = ("left_main", "prox_lad", "mid_lad")
SAID = {
    "no stenosis": {"stenosis": 0},
    "7% stenosis (mild)": {"stenosis": 7},
    "70% stenosis (severe)": {"stenosis": 70},
    "76% stenosis (severe)": {"stenosis": 76},
    "chronic total occlusion (100%)": {"stenosis": 100, "occlusion": "cto"},
}
PLAN = (
    Sentences("Left coronary tree.", "", (), False, (0, -1)),
    Sentences("", "left main", ("left_main",), True, (0, 0)),
    Sentences("", "LAD", ("prox_lad", "mid_lad"), True, (0, 1)),
    Sentences("", "LCX", (), True, (0, 3)),
)
AUTOMATON = ReportAutomaton([PLAN], {"stenosis": tuple(SAID), "thrombus": ("thrombus",)})


def lists_of_findings():
    """Of each segment nothing, or a stenosis or none, with a thrombus or without."""
    pairs = itertools.product([{}, *SAID.values()], [{}, {"thrombus": True}])
    values = [one | two for one, two in pairs]
    for said in itertools.product(values, repeat=len(SEGMENTS)):
        yield {segment: Finding(segment, **what) if what else None for segment, what in zip(SEGMENTS, said)}


def word_of(finding):
    """What a report says of a segment, by hand."""
    if finding is None:
        return "unnamed"
    words = {None: "unsaid", 0: "none", 7: "mild", 70: "severe", 76: "severe", 100: "cto"}
    return words[finding.stenosis]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return make_tokenizers(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module", params=TOKENIZERS)
def world(request, tokenizers):
    """A tokenizer, a model of random wishes that hang on every token so far, and every report with its probability.

    What may follow is read from the list of all reports, and not from the automaton.
    """
    words, known = tokenizers[request.param], {}

    def scores_after(ids):
        if ids not in known:
            chance = torch.Generator().manual_seed(hash(ids) % 2**31)
            known[ids] = 2 * torch.randn(words.vocab_size, generator=chance)
        return known[ids]

    reports = []
    following = {}
    for findings in lists_of_findings():
        text = render_report([f for f in findings.values() if f is not None], None, "left")
        ids = tuple(words.encode([text])[0][0].tolist())
        reports.append((findings, text, ids))
        for place in range(1, len(ids)):
            following.setdefault(ids[:place], set()).add(ids[place])
    logs = []
    for _, _, ids in reports:
        total = 0.0
        for place in range(1, len(ids)):
            among = sorted(following[ids[:place]])
            if len(among) > 1:
                scores = scores_after(ids[:place]).double()
                total += float(scores[ids[place]] - scores[among].logsumexp(0))
        logs.append(total)
    masses = [math.exp(log) for log in logs]
    assert len({text for _, text, _ in reports}) == 12**3
    assert math.isclose(sum(masses), 1)
    table = [(findings, text, mass) for (findings, text, _), mass in zip(reports, masses)]
    return words, lambda texts: torch.stack([scores_after(tuple(ids)) for ids in texts]), table


def test_probabilities_are_those_of_all_reports_added_up(world):
    words, next_scores, table = world
    automaton = TokenAutomaton(AUTOMATON, words)
    for findings, text, mass in table[::143] + table[:2]:
        found = report_probabilities(automaton, text, next_scores)
        assert found.text == text
        assert math.isclose(found.log_probability, math.log(mass), rel_tol=1e-5)
        assert [one.segment for one in found.segments] == list(SEGMENTS)
        for place, segment in enumerate(SEGMENTS):
            before = SEGMENTS[:place]
            same = [(f, m) for f, _, m in table if all(f[b] == findings[b] for b in before)]
            wanted = dict.fromkeys(WORDS, 0.0)
            for other, share in same:
                wanted[word_of(other[segment])] += share / sum(m for _, m in same)
            assert found.segments[place].words == pytest.approx(wanted, abs=1e-6)


def test_a_sentence_has_its_probability_given_the_text_before_it(world):
    words, next_scores, table = world
    automaton = TokenAutomaton(AUTOMATON, words)
    for findings, text, _ in table[5::211]:
        for one in report_probabilities(automaton, text, next_scores).segments:
            if findings[one.segment] is None:
                assert one.sentence is None
                continue
            begin = text.index({"left_main": "Left main:", "prox_lad": "Prox", "mid_lad": "Mid"}[one.segment])
            end = text.index(". ", begin) + 1
            of_all = sum(mass for _, other, mass in table if other.startswith(text[:begin]))
            of_these = sum(mass for _, other, mass in table if other.startswith(text[:end]))
            assert one.sentence == pytest.approx(of_these / of_all, abs=1e-6)


def test_wording_changes_no_probability(tokenizers):
    words = tokenizers["small"]
    automaton = TokenAutomaton(ReportAutomaton.of(trees=["left", "right"]), words)
    torch.manual_seed(0)
    decoder = CaptioningDecoder(words.vocab_size, 16, 1, 2, 32, 128).eval()
    scores = decoder_scores(decoder, torch.randn(1, 3, 16), torch.ones(1, 3, dtype=torch.bool))
    text = "Right coronary tree. Mid RCA: 80% stenosis (severe), TIMI 2 flow. PDA: normal. Posterolateral: normal."
    loose = "MID RCA: timi 2 flow, 80 % stenosis ( severe ) . right coronary tree. posterolateral: normal. PDA: normal."
    wanted, found = (report_probabilities(automaton, one, scores) for one in (text, loose))
    assert found == wanted
    assert found.text == text
    assert [one.segment for one in found.segments] == ["prox_rca", "mid_rca", "dist_rca", "pda", "posterolateral"]
    for one in found.segments:
        assert sum(one.words.values()) == pytest.approx(1)
        assert 0 < one.significant < 1
    with pytest.raises(ValueError, match="thrombus"):
        report_probabilities(automaton, "Right dominance. PDA: thrombus.", scores)


def test_a_sure_model_is_sure_of_its_findings(tokenizers):
    """One that wants nothing but the tokens of one report: each segment is what that says."""
    words = tokenizers["lower_casing"]
    automaton = TokenAutomaton(ReportAutomaton.of(["right"], ["right"]), words)
    text = "Right coronary tree. Distal RCA: 92% stenosis (critical). PDA: stent in place. Posterolateral: normal."
    ids = words.encode([text])[0][0].tolist()

    def next_scores(texts):
        scores = torch.zeros(len(texts), words.vocab_size)
        for row, some in enumerate(texts):
            if list(some) == ids[: len(some)]:
                scores[row, ids[len(some)]] = 50
        return scores

    found = {one.segment: one for one in report_probabilities(automaton, text, next_scores).segments}
    said = {"prox_rca": "unnamed", "mid_rca": "unnamed", "dist_rca": "critical", "pda": "unsaid"}
    for segment, word in (said | {"posterolateral": "unnamed"}).items():
        assert found[segment].words[word] == pytest.approx(1)
    assert [segment for segment, one in found.items() if one.significant > 0.5] == ["dist_rca"]
    assert found["dist_rca"].sentence == pytest.approx(1)


@pytest.mark.parametrize(("segment", "wanted"), [("left_main", 0.08 + 0.16 + 0.32 + 0.02 + 0.04), ("pda", 0.54)])
def test_significant_is_another_floor_in_the_left_main(segment, wanted):
    words = {"unnamed": 0.2, "unsaid": 0.1, "none": 0.05, "mild": 0.03, "moderate": 0.08}
    words |= {"severe": 0.16, "critical": 0.32, "total": 0.02, "cto": 0.04}
    assert SegmentProbability(segment, words, None).significant == pytest.approx(wanted)


def test_scores_of_a_decoder_are_of_the_last_token_of_each_text(tokenizers):
    torch.manual_seed(0)
    decoder = CaptioningDecoder(40, 16, 2, 2, 32, 32, memory_size=8).double().eval()
    video, mask = torch.randn(1, 4, 8, dtype=torch.float64), torch.tensor([[True, True, True, False]])
    texts = [(2, 5, 6), (2,), (2, 9, 9, 9, 7), (2, 5)]
    found = decoder_scores(decoder, video, mask, rows=3)(texts)
    for text, row in zip(texts, found):
        wanted = decoder(torch.tensor([text]), video, mask)[0, -1]
        assert torch.allclose(row.double(), wanted, atol=1e-5)


def test_after_what_is_impossible_nothing_can_be_said(tokenizers):
    """A model that holds a sentence on the proximal RCA for certain, and a report that passes it over."""
    words = tokenizers["small"]
    automaton = TokenAutomaton(ReportAutomaton.of(["left"], ["right"]), words)
    certain = words.encode(["Right coronary tree. Proximal RCA: thrombus."])[0][0].tolist()

    def next_scores(texts):
        scores = torch.zeros(len(texts), words.vocab_size)
        for row, some in enumerate(texts):
            if list(some) == certain[: len(some)]:
                scores[row, certain[len(some)]] = 5000
        return scores

    found = report_probabilities(automaton, "Right coronary tree. RCA: normal.", next_scores).segments
    assert [one.segment for one in found] == ["prox_rca", "mid_rca", "dist_rca"]
    assert found[0].words["unsaid"] == pytest.approx(1)
    assert all(math.isnan(share) for share in found[1].words.values())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_reading_a_tree_of_beginnings_gives_what_reading_each_text_does(tokenizers, name):
    """Units of other videos, texts and sizes together, of which one has a video of fewer tokens."""
    words = tokenizers[name]
    automaton = TokenAutomaton(ReportAutomaton.of(trees=["left", "right"]), words)
    torch.manual_seed(1)
    decoder = CaptioningDecoder(words.vocab_size, 16, 2, 2, 32, 128, memory_size=8).eval()
    torch.nn.init.normal_(decoder.token_embedding.weight)  # or all would be about equally probable
    torch.nn.init.normal_(decoder.position_embedding.weight)
    video, mask = torch.randn(4, 3, 8), torch.ones(4, 3, dtype=torch.bool)
    mask[1, 2] = False
    texts = [
        "Right coronary tree. Mid RCA: 80% stenosis (severe), TIMI 2 flow. PDA: normal. Posterolateral: normal.",
        "Left coronary tree. Left main: 7% stenosis (mild). LAD: normal. Ramus intermedius: thrombus. LCX: normal.",
        "Right coronary tree. RCA: normal. PDA: normal. Posterolateral: normal.",
        "Right coronary tree. RCA: normal. PDA: normal. Posterolateral: normal.",
    ]
    asked = {text: ReportQuestions(automaton, text) for text in texts}
    answers = branch_scores(decoder, video, mask, [asked[text].questions for text in texts])
    for unit, text in enumerate(texts):
        scores = decoder_scores(decoder, video[unit : unit + 1], mask[unit : unit + 1])
        wanted, found = report_probabilities(automaton, text, scores), asked[text].answered(answers[unit])
        assert found.text == wanted.text
        assert found.log_probability == pytest.approx(wanted.log_probability, rel=1e-4)
        assert len(found.segments) == len(wanted.segments) > 4
        for one, other in zip(found.segments, wanted.segments):
            assert one.segment == other.segment and one.words == pytest.approx(other.words, abs=1e-5)
            assert (one.sentence or 0) == pytest.approx(other.sentence or 0, rel=1e-3)
    assert asked[texts[2]].answered(answers[2]) != asked[texts[3]].answered(answers[3])  # another video


def test_more_than_is_read_at_once(monkeypatch):
    torch.manual_seed(2)
    decoder = CaptioningDecoder(40, 16, 1, 2, 32, 32, memory_size=8).eval()
    video, mask = torch.randn(5, 4, 8), torch.ones(5, 4, dtype=torch.bool)
    texts = [[((2, 5, 6), (1, 9)), ((2,), (3, 4, 5))], [((2, 8), (4, 9, 11))], [((2,), (3, 4))], [((3, 7), (1, 2))]]
    questions = [*texts, texts[1]]
    whole = branch_scores(decoder, video, mask, questions)
    monkeypatch.setattr(branches, "_MOST_TOKENS", 5)
    assert [[len(answer) for answer in unit] for unit in whole] == [[2, 3], [3], [2], [2], [3]]
    parts = branch_scores(decoder, video, mask, questions)
    for unit, of_unit in enumerate(whole):
        for number, answer in enumerate(of_unit):
            ids, choices = questions[unit][number]
            wanted = decoder(torch.tensor([ids]), video[unit : unit + 1], mask[unit : unit + 1])[0, -1]
            assert answer == pytest.approx(wanted[list(choices)].log_softmax(0).tolist(), abs=1e-5)
            assert parts[unit][number] == pytest.approx(answer, abs=1e-5)
    assert branch_scores(decoder, video[:0], mask[:0], []) == []
