"""How sure a model is of units: row by row what it is when asked text by text, and of which units it is not asked."""

import numpy as np
import pytest
import torch

from deepcoro.errors import ConfigError
from deepcoro.evaluation.certainty import can_be_sure, segment_probabilities, unit_probabilities
from deepcoro.evaluation.units import report_automaton
from deepcoro.models.structured_probabilities import (
    WORDS,
    ReportProbabilities,
    SegmentProbability,
    decoder_scores,
    report_probabilities,
)
from deepcoro.reports.vocabulary import SEGMENTS

LONG = ("captioning.max_position_embeddings=160", "captioning.max_generation_length=150")
LEFT = "Left coronary tree. Left main: normal. Proximal LAD: 80% stenosis (severe). LCX: normal."
RIGHT = "right coronary tree . rca : normal . pda : normal . posterolateral : normal ."
WHOLE = f"Right dominance. {LEFT} Right coronary tree. RCA: normal. PDA: normal. Posterolateral: normal."


@pytest.fixture
def asked(tiny_config, tiny_model, random_batch, report_tokenizer):
    """``asked(assignments, texts, valid)`` -> what comes back, and the same by the plain way where that is not None."""

    whys = []

    def ask(assignments, texts, views=1, invalid=()):
        config = tiny_config(*LONG, *assignments)
        model, batch = tiny_model(config).eval(), random_batch(config, rows=len(texts), views=views)
        batch["valid"][list(invalid)] = False
        with torch.no_grad():
            tokens = model.video_encoder(model.normalise(batch["clip"]).flatten(0, 1))
            seen = (tokens, batch["valid"], model.views_at(batch))
            certain = unit_probabilities(model, report_tokenizer, *seen, texts)
            memory, mask = model.memory(*seen)
        found, whys[:] = ([getattr(one, name) for one in certain] for name in ("found", "why"))
        automaton, plain = report_automaton(report_tokenizer, config), []
        for unit, one in enumerate(found):
            if one is not None and not one.left_out:
                scores = decoder_scores(model.captioning_decoder, memory[unit : unit + 1], mask[unit : unit + 1])
                plain.append((one, report_probabilities(automaton, texts[unit], scores)))
        return found, plain

    ask.whys = whys
    return ask


def same(pairs):
    for one, other in pairs:
        assert one.text == other.text and len(one.segments) == len(other.segments) > 4
        for mine, plain in zip(one.segments, other.segments):
            assert mine.segment == plain.segment and mine.words == pytest.approx(plain.words, abs=1e-5)


def test_what_a_text_says_beside_the_wording_is_not_left_out_of_what_is_asked(asked):
    """Each of these has a finding that can be read, and says more, or the opposite."""
    texts = [
        "Left coronary tree. Left main: normal. Proximal LAD: 70% stenosis (mild). LCX: normal.",
        "Left coronary tree. Left main: normal. LAD: normal. Proximal LAD: 80% stenosis (severe). LCX: normal.",
        "Left coronary tree. Proximal LAD: 80% stenosis (severe). Proximal LAD: 20% stenosis (mild). LCX: normal.",
        "Left coronary tree. Proximal LAD: 80% stenosis (severe). A fine heart.",
        LEFT,
    ]
    found, _ = asked((), texts)
    assert [one is not None for one in found] == [False] * 4 + [True]
    for why, says in zip(asked.whys, ("70% stenosis (mild)", "LAD is normal", "20% stenosis", "a fine heart")):
        assert says in why


def test_segments_of_which_alone_too_long_a_text_is_asked_are_left_out(asked):
    """What could be said at the end of this report is longer than what there is room for."""
    said = [f"{name} LAD: 80% stenosis (severe), thrombus, TIMI 2 flow." for name in ("Proximal", "Mid", "Distal")]
    text = f"Left coronary tree. Left main: normal. {' '.join(said)} LCX: normal."
    (whole,), _ = asked(LONG, [text])
    (some,), _ = asked(("captioning.max_position_embeddings=64", "captioning.max_generation_length=60"), [text])
    assert not whole.left_out and some.left_out and some.segments
    assert [*(one.segment for one in some.segments), *some.left_out] == [one.segment for one in whole.segments]
    assert all(sum(one.words.values()) == pytest.approx(1) for one in some.segments)
    assert segment_probabilities(whole) is not None and segment_probabilities(some) is None


def test_clips_and_those_that_are_not_asked(asked):
    """No view, no report, two trees of one clip; and of one too long for the decoder, its beginning."""
    long = " ".join(
        f"{name}: 80% stenosis (severe), severe calcification, thrombus, TIMI 2 flow, treated by PCI."
        for name in ("Left main", "Proximal LAD", "Mid LAD", "Distal LAD", "First diagonal")
    )
    texts = [LEFT, RIGHT, LEFT, "the heart is fine", f"{LEFT} {RIGHT}", f"Left coronary tree. {long} LCX: normal.", ""]
    short = ("captioning.max_position_embeddings=80", "captioning.max_generation_length=70")
    found, pairs = asked(short, texts, invalid=(2,))
    assert [one is not None for one in found] == [True, True, False, False, False, True, False]
    assert "dist_lad" in found[5].left_out and np.isnan(found[5].log_probability)
    same(pairs)


def test_whole_studies_and_their_clips(asked):
    study = ("data.unit=study", "data.num_videos=2")
    found, pairs = asked(study, [WHOLE, WHOLE], views=2)
    assert len(pairs) == 2 and {one.segment for one in found[0].segments} <= set(SEGMENTS)
    same(pairs)
    assert asked((*study, "captioning.level=clip"), [f"{LEFT} {RIGHT}"] * 2, views=2)[0] == [None, None]


def test_a_segment_that_the_report_cannot_name_is_not_claimed():
    words = dict.fromkeys(WORDS, 0.0) | {"severe": 0.3, "mild": 0.2, "unnamed": 0.5}
    table = segment_probabilities(ReportProbabilities("", 0.0, (SegmentProbability("prox_lad", words, None),)))
    assert table[SEGMENTS.index("prox_lad")] == 0.3 and table.sum() == 0.3
    nothing = SegmentProbability("prox_lad", dict.fromkeys(WORDS, float("nan")), None)
    assert segment_probabilities(ReportProbabilities("", 0.0, (nothing,))) is None


def test_when_it_is_asked(tiny_config, report_tokenizer, capsys):
    class Ignorant:
        """Knows no word of a report."""

        start_id, end_id, pad_id = 1, 2, 0

        def encode(self, texts):
            rows = [[1, *(3 for _ in text.split()), 2] for text in texts]
            return np.array(rows), np.array([len(row) for row in rows])

        def uncut(self):
            return self

        def prompt(self, *texts):
            return [1, *(3 for text in texts for _ in text.split())]

        def decode(self, ids):
            return " ".join("[UNK]" for _ in ids)

    def sure(training, words=report_tokenizer, *assignments):
        return can_be_sure(tiny_config(*LONG, *assignments), words, training=training)

    always, never = (f"evaluation.finding_probabilities={word}" for word in ("always", "never"))
    assert sure(False) and not sure(True)
    assert sure(True, report_tokenizer, always) and not sure(False, report_tokenizer, never)
    assert not sure(False, None)
    assert not sure(False, report_tokenizer, "data.unit=study", "data.num_videos=2", "captioning.level=clip", always)
    assert capsys.readouterr().out == ""
    assert not sure(False, Ignorant())
    assert "There are no probabilities of findings: the tokenizer cannot write" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="finding_probabilities is always, and the tokenizer cannot write"):
        sure(True, Ignorant(), always)
