"""Scores from sums against scikit-learn, on segments that somebody has disease in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import cohen_kappa_score, f1_score, precision_score, recall_score

from deepcoro.metrics.agreement import SCORES, divide, macro, weighted_kappa

REFERENCE = {"f1": f1_score, "precision": precision_score, "recall": recall_score}


@pytest.mark.parametrize("score", SCORES)
def test_scores_are_those_of_scikit_learn(score):
    generator = np.random.default_rng(0)
    true, said = generator.random((2, 40, 9)) < 0.2
    true[:, 3] = False  # nobody has it there, some are said to
    said[:, 5] = False  # somebody has it, nobody is said to
    parts = [(true & said).sum(0), (~true & said).sum(0), (true & ~said).sum(0)]
    diseased = np.flatnonzero(true.any(axis=0))
    assert 3 not in diseased and 5 in diseased
    reference = REFERENCE[score](true, said, average="macro", labels=diseased, zero_division=0)
    assert macro(score, *parts) == pytest.approx(reference)
    micro = SCORES[score](*(part.sum() for part in parts))
    assert micro == pytest.approx(REFERENCE[score](true, said, average="micro"))


def test_sums_of_resamples_have_axes_before():
    parts = np.random.default_rng(1).integers(0, 5, (3, 7, 18))
    for score in SCORES:
        together = macro(score, *parts)
        assert together.shape == (7,)
        assert together == pytest.approx([float(macro(score, *parts[:, r])) for r in range(7)])


def test_what_is_not_defined():
    assert np.isnan(divide(1, 0)) and divide(1, 2) == 0.5
    assert np.isnan(macro("f1", [0], [3], [0]))  # nobody has it
    assert np.isnan(SCORES["precision"](0, 0, 4)) and SCORES["recall"](0, 0, 4) == 0


@given(arrays(int, st.tuples(st.just(2), st.integers(2, 40)), elements=st.integers(0, 4)))
def test_kappa_is_that_of_scikit_learn(pair):
    confusion = np.zeros((5, 5))
    np.add.at(confusion, tuple(pair), 1)
    ours = weighted_kappa(confusion)
    if len(np.unique(pair)) == 1:
        assert np.isnan(ours)  # both always say the same: chance agrees too
    else:
        assert ours == pytest.approx(cohen_kappa_score(*pair, weights="quadratic", labels=range(5)), abs=1e-9)


def test_a_constant_reader_has_a_kappa_of_0():
    confusion = np.zeros((2, 5, 5))
    confusion[0, :, 2] = [5, 4, 3, 2, 1]
    confusion[1] = np.diag([5, 4, 3, 2, 1])
    assert weighted_kappa(confusion) == pytest.approx([0, 1])
    with pytest.raises(ValueError, match=r"got shape \(2, 3\)"):
        weighted_kappa(np.zeros((2, 3)))
