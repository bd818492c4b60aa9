"""AUROC and Brier score against scikit-learn, calibration by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from deepcoro.metrics.probabilities import auroc, brier_terms, calibration_error, calibration_terms, segment_auroc


def drawn(rows=60, segments=5, seed=0):
    generator = np.random.default_rng(seed)
    p = np.round(generator.random((rows, segments)), 1)  # with ties
    return p, generator.random(p.shape) < p, generator.random(p.shape) < 0.8


def test_areas_are_those_of_scikit_learn():
    p, true, valid = drawn()
    true[:, 1] = False
    true[:, 2] = True
    areas = segment_auroc(p, true, valid)
    assert np.isnan(areas[[1, 2]]).all()  # all healthy, all diseased
    for s in (0, 3, 4):
        assert areas[s] == pytest.approx(roc_auc_score(true[valid[:, s], s], p[valid[:, s], s]))


def test_a_weight_is_a_number_of_rows():
    p, true, _ = drawn(segments=1)
    weights = np.random.default_rng(1).integers(0, 3, (4, len(p)))
    reference = [roc_auc_score(np.repeat(true, w), np.repeat(p, w)) for w in weights]
    assert auroc(p[:, 0], true[:, 0], weights.T) == pytest.approx(reference)
    assert np.isnan(auroc(p[:, 0], true[:, 0], np.where(true[:, 0], 1, 0)))


def test_brier_score_is_that_of_scikit_learn():
    p, true, valid = drawn()
    error, cells = brier_terms(p, true, valid)
    assert error.sum() / cells.sum() == pytest.approx(brier_score_loss(true[valid], p[valid]))
    assert cells.tolist() == valid.sum(axis=1).tolist()


def test_calibration_by_hand():
    # Two bins of four: 0.1 with one of four diseased, 0.7 and 0.9 with all four.
    p = np.array([[0.1, 0.1, 0.1, 0.1], [0.7, 0.7, 0.9, 0.9]])
    true = np.array([[1, 0, 0, 0], [1, 1, 1, 1]])
    difference, number = calibration_terms(p, true, np.ones_like(true), num_bins=2)
    assert number.tolist() == [[4, 0], [0, 4]] and difference == pytest.approx(np.array([[-0.6, 0], [0, -0.8]]))
    assert calibration_error(difference.sum(0), number.sum(0)) == pytest.approx((4 * 0.15 + 4 * 0.2) / 8)


def test_probabilities_that_are_right_are_calibrated():
    generator = np.random.default_rng(2)
    p = generator.random((20_000, 2))
    true = generator.random(p.shape) < p
    sums = [term.sum(axis=0) for term in calibration_terms(p, true, np.ones(p.shape))]
    assert len(sums[1]) == 15 and sums[1].min() > 0.99 * p.size / 15  # equal mass
    assert calibration_error(*sums) < 0.015
    assert calibration_error(*(t.sum(0) for t in calibration_terms(p**2, true, np.ones(p.shape)))) > 0.1


@given(st.integers(0, 1000))
def test_order_of_rows_does_not_matter_and_perfect_is_best(seed):
    p, true, valid = drawn(20, 3, seed)
    order = np.random.default_rng(seed + 1).permutation(len(p))

    def measured(p, true, valid):
        error, cells = brier_terms(p, true, valid)
        calibration = calibration_error(*(term.sum(axis=0) for term in calibration_terms(p, true, valid)))
        return [*segment_auroc(p, true, valid), error.sum() / cells.sum(), float(calibration)]

    assert measured(p, true, valid) == pytest.approx(measured(p[order], true[order], valid[order]), nan_ok=True)
    *areas, brier, calibration = measured(true.astype(float), true, valid)
    assert brier == calibration == 0 and all(area == 1 or np.isnan(area) for area in areas)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"got \(2, 3\), \(2, 2\) and \(2, 3\)"):
        segment_auroc(np.zeros((2, 3)), np.zeros((2, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"got 1.5 in row 1, segment 0"):
        brier_terms([[0.5], [1.5]], [[0], [1]], [[1], [1]])
    assert brier_terms([[0.5], [np.nan]], [[0], [1]], [[1], [0]])[0].tolist() == [0.25, 0]  # what does not count may be
    with pytest.raises(ValueError, match="got 15 and 0"):
        calibration_terms([[0.5]], [[0]], [[0]])
