"""BLEU and ROUGE of a split: intervals over patients, and what the constant and the neighbour reach."""

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from deepcoro.evaluation.baselines import Constants
from deepcoro.evaluation.intervals import statistic_interval
from deepcoro.evaluation.wording import measure_wording
from deepcoro.reports.vocabulary import SEGMENTS

SAID = (
    "Left main: normal.",
    "Mid LAD: 80% stenosis (severe).",
    "LCX: normal.",
    "D1: thrombus.",
    "RCA: stent in place.",
)
CHANCE = np.random.default_rng(0)
TRUE, WRITTEN, LENT = (
    [" ".join(SAID[n] for n in range(5) if CHANCE.random() < 0.6) or SAID[0] for _ in range(24)] for _ in range(3)
)
PATIENTS = np.array([f"p{n // 2}" for n in range(24)])
NOBODY = np.zeros(len(SEGMENTS), dtype=bool)
CONSTANTS = Constants(SAID[0], None, NOBODY, {}, False)


def measured(written=WRITTEN, true=TRUE):
    metrics, columns = measure_wording(true, written, PATIENTS, CONSTANTS, ("nearest of 9", LENT), 60)
    return {name.removeprefix("captioning/"): metric for name, metric in metrics.items()}, columns


def test_the_interval_of_bleu_is_that_of_the_whole_corpus_drawn_anew():
    def of_rows(rows):
        some = [int(row) for row in rows]
        words = (text.lower() for text in (WRITTEN[row] for row in some))
        return BLEU(lowercase=True).corpus_score(list(words), [[TRUE[row] for row in some]]).score / 100

    plain = statistic_interval(of_rows, [np.arange(24)], PATIENTS, num_resamples=60)
    ours = measured()[0]["bleu"]
    assert (ours.value, ours.low, ours.high) == pytest.approx((plain.value, plain.low, plain.high))
    assert 0 < ours.low < ours.value < ours.high < 1


def test_rouge_is_the_mean_of_its_rows():
    metrics, columns = measured()
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    theirs = [[s.fmeasure for s in scorer.score(t, w).values()] for t, w in zip(TRUE, WRITTEN, strict=True)]
    for name, values in zip(("rouge_1", "rouge_2", "rouge_l"), np.transpose(theirs), strict=True):
        assert columns[f"captioning/{name}"] == pytest.approx(values)
        assert metrics[name].value == pytest.approx(values.mean())
    assert metrics["sentence_bleu"].value == pytest.approx(columns["captioning/sentence_bleu"].mean())


def test_the_constant_and_the_neighbour_stand_beside():
    metrics, _ = measured()
    constant, lent = measured([SAID[0]] * 24)[0], measured(LENT)[0]
    assert len(metrics) == 10
    for name in ("bleu", "sentence_bleu", "rouge_1", "rouge_2", "rouge_l"):
        metric, beside = metrics[name], metrics[f"{name}_beside_nearest_neighbour"]
        assert (metric.baseline_name, beside.baseline_name) == ("most common report", "nearest of 9")
        assert metric.baseline == pytest.approx(constant[name].value) and beside.value == metric.value
        assert beside.baseline == pytest.approx(lent[name].value)


@pytest.mark.parametrize(("true", "written"), [(TRUE, [""] * 24), ([""] * 24, WRITTEN), ([""] * 24, [""] * 24)])
def test_nothing_written_and_nothing_to_write_is_zero(true, written):
    metrics, columns = measured(written, true)
    for name in ("bleu", "sentence_bleu", "rouge_1", "rouge_2", "rouge_l"):
        assert (metrics[name].value, metrics[name].low, metrics[name].high) == (0, 0, 0)
    assert all(np.isfinite(values).all() for values in columns.values())
