"""Metrics of probabilities, from records to intervals and baselines."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from deepcoro.evaluation import probabilities
from deepcoro.evaluation.baselines import fit_constants
from deepcoro.evaluation.intervals import statistic_interval
from deepcoro.evaluation.probabilities import measure_probabilities
from deepcoro.evaluation.truth import Truth
from deepcoro.metrics.findings import segments_in_view, significant_segments
from deepcoro.reports.grammar import Finding
from deepcoro.reports.vocabulary import SEGMENTS

GENERATOR = np.random.default_rng(0)
PATIENTS = np.arange(80) // 2
SICK = GENERATOR.random((80, 2)) < [0.4, 0.2]
FINDINGS = [
    [Finding(segment, stenosis=90) for segment, ill in zip(("prox_lad", "d1"), row, strict=True) if ill] for row in SICK
]
TRUTH = Truth([""] * 80, FINDINGS, ["left"] * 80, ["right"] * 80, [frozenset()] * 80, PATIENTS, PATIENTS)
SURE = np.round(np.clip(GENERATOR.random((80, len(SEGMENTS))), 0.01, 0.99), 2)
VIEW = segments_in_view(TRUTH.trees, TRUTH.dominances)
TABLE = significant_segments(FINDINGS)


def test_segments_that_have_an_area_and_their_mean():
    metrics = measure_probabilities(SURE, TRUTH, None, 50)
    lad, d1 = (SEGMENTS.index(name) for name in ("prox_lad", "d1"))
    areas = [roc_auc_score(TABLE[:, s], SURE[:, s]) for s in (lad, d1)]
    assert metrics["captioning/segment_auroc_segments"].value == 2
    assert metrics["captioning/segment_auroc/prox_lad"].value == pytest.approx(areas[0])
    assert metrics["captioning/segment_auroc"].value == pytest.approx(np.mean(areas))
    assert metrics["captioning/segment_auroc"].baseline == 0.5
    assert metrics["captioning/segment_brier"].value == pytest.approx(brier_score_loss(TABLE[VIEW], SURE[VIEW]))
    assert sum(name.startswith("captioning/segment_auroc/") for name in metrics) == 2


def test_the_interval_is_that_of_the_plain_function_of_rows():
    lad = SEGMENTS.index("prox_lad")
    ours = measure_probabilities(SURE, TRUTH, None, 100)["captioning/segment_auroc/prox_lad"]
    plain = statistic_interval(roc_auc_score, [TABLE[:, lad], SURE[:, lad]], PATIENTS, num_resamples=100)
    assert (ours.value, ours.low, ours.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_the_share_of_the_training_rows_is_the_baseline():
    constants = fit_constants([""] * 80, TRUTH.trees, TABLE, VIEW, findings=FINDINGS)
    always = np.broadcast_to(TABLE.mean(axis=0), TABLE.shape)
    metrics = measure_probabilities(always, TRUTH, constants, 20)
    brier = metrics["captioning/segment_brier"]
    assert brier.baseline == pytest.approx(brier.value) == pytest.approx(np.mean((always - TABLE)[VIEW] ** 2))
    assert metrics["captioning/segment_ece"].value == pytest.approx(0)  # right on these very rows, bin by bin
    assert metrics["captioning/segment_ece"].baseline == pytest.approx(0)
    assert metrics["captioning/segment_auroc"].value == 0.5


def test_the_interval_of_the_calibration_error_covers_what_other_patients_give():
    """The mean error of many samples is what the interval of one of them has to cover, 19 times of 20."""
    samples = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        p = generator.beta(1, 8, size=(60, len(SEGMENTS)))
        sick = generator.random(p.shape) < p
        findings = [[Finding(s, stenosis=90) for s, ill in zip(SEGMENTS, row, strict=True) if ill] for row in sick]
        everybody = np.arange(60)
        truth = Truth([""] * 60, findings, [None] * 60, ["right"] * 60, [frozenset()] * 60, everybody, everybody)
        samples.append(measure_probabilities(p, truth, None, 100)["captioning/segment_ece"])
    expected = np.mean([sample.value for sample in samples])
    assert all(sample.low <= sample.value <= sample.high for sample in samples)
    assert np.mean([sample.low <= expected <= sample.high for sample in samples]) > 0.85


def test_a_segment_that_few_have_has_no_interval_of_its_area():
    few = [found if row in (0, 2, 4, 6) else [] for row, found in enumerate([[Finding("d1", stenosis=90)]] * 80)]
    metrics = measure_probabilities(SURE, replace(TRUTH, findings=few), None, 50)
    assert np.isnan(metrics["captioning/segment_auroc/d1"].low)  # four patients
    few[8] = few[0]
    metrics = measure_probabilities(SURE, replace(TRUTH, findings=few), None, 50)
    assert not np.isnan(metrics["captioning/segment_auroc/d1"].low)


def test_resamples_may_be_taken_a_few_at_a_time(monkeypatch):
    whole = measure_probabilities(SURE, TRUTH, None, 50)
    monkeypatch.setattr(probabilities, "_BLOCK", 7 * len(SURE))
    assert measure_probabilities(SURE, TRUTH, None, 50) == whole


def test_rows_whose_findings_are_not_known_are_left_out():
    known = np.arange(80) % 4 != 0
    some = measure_probabilities(SURE, replace(TRUTH, known=known), None, 30)
    alone = measure_probabilities(SURE[known], TRUTH.take(np.flatnonzero(known)), None, 30)
    for metrics in (some, alone):
        metrics.pop("captioning/segment_probabilities_share")
    assert some == alone


def test_nobody_is_ill():
    healthy = Truth([""] * 2, [[], []], [None] * 2, [None] * 2, [frozenset()] * 2, np.arange(2), np.arange(2))
    metrics = measure_probabilities(np.full((2, len(SEGMENTS)), 0.25), healthy, None, 20)
    names = ("probabilities_share", "auroc_segments", "brier", "ece")
    assert metrics.keys() == {f"captioning/segment_{name}" for name in names}
    assert metrics["captioning/segment_auroc_segments"].value == 0
    assert metrics["captioning/segment_brier"].value == 0.0625 and metrics["captioning/segment_ece"].value == 0.25


def test_rows_without_probabilities_are_left_out_and_told():
    kept = np.arange(80) % 4 != 0
    some = [row if there else None for row, there in zip(SURE, kept, strict=True)]
    metrics = measure_probabilities(some, TRUTH, None, 30)
    share = metrics.pop("captioning/segment_probabilities_share")
    assert share.value == 0.75 and share.low <= 0.75 <= share.high
    alone = measure_probabilities(SURE[kept], TRUTH.take(np.flatnonzero(kept)), None, 30)
    assert alone.pop("captioning/segment_probabilities_share").value == 1
    assert metrics == alone
    nobody = measure_probabilities([None] * 80, TRUTH, None, 30)
    assert nobody.keys() == {"captioning/segment_probabilities_share"}
    assert nobody["captioning/segment_probabilities_share"].value == 0
