"""BLEU and ROUGE beside sacrebleu and rouge-score themselves, a text at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from deepcoro.metrics.wording import ROUGE, Wordings, bleu

TRUE = "Left coronary tree. Left main: normal. Proximal LAD: 80% stenosis (severe), TIMI 2. LCX: normal."
SPACED = "left coronary tree . left main : normal . proximal lad : 80 % stenosis ( severe ) , timi 2 . lcx : normal ."

# Few different words, so that runs of them meet; none, one that is no word for ROUGE, and Greek among them.
TEXTS = st.lists(st.sampled_from(["LAD", "lad", "80%", "0.89", "(severe),", "normal.", "-", "αβ"]), max_size=12)
PAIRS = st.lists(st.tuples(TEXTS.map(" ".join), TEXTS.map(" ".join)), min_size=1, max_size=6)


def both_sides(pairs):
    true, written = ([pair[side] for pair in pairs] for side in (0, 1))
    return Wordings([*true, *written]), true, written


def spaced(texts):
    """Lower case, and every sign of punctuation a word of its own, by hand for the words above."""
    lowered = (text.lower() for text in texts)
    return ["".join(c if c.isalnum() or c.isspace() else f" {c} " for c in text) for text in lowered]


@given(PAIRS)
def test_bleu_of_all_and_of_each_is_that_of_sacrebleu(pairs):
    wordings, true, written = both_sides(pairs)
    statistics = wordings.bleu_statistics(true, written)
    of_all = BLEU(tokenize="none").corpus_score(spaced(written), [spaced(true)])
    assert bleu(statistics.sum(axis=0)) == pytest.approx(of_all.score / 100)
    sentence = BLEU(tokenize="none", effective_order=True)
    each = [sentence.sentence_score(w, [t]).score / 100 for t, w in zip(spaced(true), spaced(written), strict=True)]
    assert bleu(statistics, effective_order=True) == pytest.approx(each)


@given(PAIRS)
def test_rouge_is_that_of_rouge_score(pairs):
    wordings, true, written = both_sides(pairs)
    found = wordings.rouge(true, written)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for row, (t, w) in enumerate(pairs):
        theirs = [score.fmeasure for score in scorer.score(t, w).values()]
        assert [found[name][row] for name in ROUGE] == pytest.approx(theirs)


def test_the_usual_words_of_sacrebleu_give_the_same_where_no_number_has_a_point():
    other = TRUE.replace("80%", "70%").replace("severe", "moderate")
    wordings = Wordings([TRUE, other])
    usual = BLEU(lowercase=True).corpus_score([other], [[TRUE]]).score / 100
    assert bleu(wordings.bleu_statistics([TRUE], [other])[0]) == pytest.approx(usual)


def test_neither_case_nor_the_spaces_of_word_pieces_cost_anything():
    wordings = Wordings([TRUE, SPACED])
    assert bleu(wordings.bleu_statistics([TRUE], [SPACED])[0]) == pytest.approx(1)
    assert all(value == 1 for value in wordings.rouge([TRUE], [SPACED]).values())
    numbers = ["iFR 0.89, Medina 1,1,0.", "ifr 0 . 89 , medina 1 , 1 , 0 ."]
    assert bleu(Wordings(numbers).bleu_statistics(numbers[:1], numbers[1:])[0]) == pytest.approx(1)


def test_who_writes_nothing_gets_nothing():
    wordings = Wordings([TRUE, ""])
    for true, written in (([TRUE], [""]), ([""], [TRUE]), ([""], [""])):
        assert bleu(wordings.bleu_statistics(true, written).sum(axis=0)) == 0
        assert [value.tolist() for value in wordings.rouge(true, written).values()] == [[0.0]] * 3


def test_so_many_words_that_runs_cannot_be_numbered_by_their_words():
    """70,000 different words: four of them are beyond 2 ** 64."""
    many = [" ".join(f"w{n + k}" for k in range(5)) for n in range(0, 70_000, 5)]
    wordings = Wordings(many)
    assert wordings.bleu_statistics(many[-2:], [many[-2], many[0]]).tolist() == [
        [5, 5, 5, 4, 3, 2, 5, 4, 3, 2],
        [5, 5, 0, 0, 0, 0, 5, 4, 3, 2],
    ]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="got 1 and 2"):
        Wordings(["a", "b"]).rouge(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="1 or more; got 0 and 0"):
        Wordings([]).bleu_statistics([], [])
