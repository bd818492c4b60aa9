"""The difference over seeds and patients: against Student's by hand, and the share of intervals that hold the truth."""

import numpy as np
import pytest
from scipy import stats

from deepcoro.evaluation.seeds import difference_of_values, difference_over_seeds


def mean(sums):
    return sums[..., 0] / sums[..., 1]


def rows(values):
    """A mean over rows as a function of sums: values [K, B] -> K arrays [B, 2]."""
    return [np.stack([of_seed, np.ones_like(of_seed)], axis=1) for of_seed in np.asarray(values, float)]


def test_seeds_alone_are_a_paired_t_test():
    first, second = [0.5, 0.7, 0.6, 0.9, 0.4], [0.4, 0.7, 0.3, 0.5, 0.35]
    found = difference_of_values(first, second)
    low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))
    assert found.interval.value == pytest.approx(np.mean(first) - np.mean(second))
    assert found.by_seed == pytest.approx((0.1, 0.0, 0.3, 0.4, 0.05))
    assert (found.first, found.second) == pytest.approx((np.mean(first), np.mean(second)))
    assert found.num_patients == 0


def test_without_a_spread_of_seeds_it_is_the_interval_over_patients():
    generator = np.random.default_rng(0)
    of_patient = generator.normal(0.1, 1.0, 400)
    found = difference_over_seeds(rows([of_patient] * 5), rows([0 * of_patient] * 5), np.arange(400), mean)
    low, high = stats.t.interval(0.95, 399, of_patient.mean(), of_patient.std(ddof=1) / 20)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), abs=0.012)


@pytest.mark.parametrize(("of_seed", "of_patient"), [(0.5, 0.3), (0.0, 1.0), (0.5, 3.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(of_seed, of_patient):
    """Crossed effects of known size; of 300 intervals of 95 %, 270 or more (four deviations) must hold the mean, and of
    those of 50 % 115 to 185: twice as wide they would hold it in 240, and half as wide in 80."""
    generator = np.random.default_rng(1)
    held = dict.fromkeys((0.95, 0.5), 0)
    for _ in range(300):
        values = 0.2 + of_seed * generator.normal(size=(5, 1)) + of_patient * generator.normal(size=(1, 40))
        values = values + 0.5 * generator.normal(size=(5, 40))
        for level in held:
            found = difference_over_seeds(rows(values), rows(0 * values), np.arange(40), mean, level=level).interval
            held[level] += found.low <= 0.2 <= found.high
    assert held[0.95] >= 270 and 115 <= held[0.5] <= 185


def test_rows_of_a_patient_are_drawn_together_and_counts_may_be_compared():
    generator = np.random.default_rng(2)
    counts = generator.integers(0, 3, (2, 5, 60, 3)).astype(float)
    patients = np.repeat(np.arange(20), 3)

    def f1(sums):
        return 2 * sums[..., 0] / (2 * sums[..., 0] + sums[..., 1] + sums[..., 2])

    found = difference_over_seeds(list(counts[0]), list(counts[1]), patients, f1)
    by_hand = [f1(counts[0, k].sum(axis=0)) - f1(counts[1, k].sum(axis=0)) for k in range(5)]
    assert found.by_seed == pytest.approx(by_hand)
    assert found.num_patients == 20


def test_few_seeds_claim_nothing():
    far = difference_of_values([0.9, 0.91, 0.92, 0.9], [0.1, 0.12, 0.11, 0.12])
    assert far.interval.excludes(0) and not far.can_claim and not far.is_claimed
    assert difference_of_values([0.9] * 5, [0.1, 0.12, 0.11, 0.12, 0.1]).is_claimed
    one = difference_of_values([0.9], [0.1])
    assert np.isnan(one.interval.low) and not one.is_claimed
    same = difference_of_values([0.5] * 5, [0.5] * 5)
    assert (same.interval.low, same.interval.high) == (0, 0) and not same.is_claimed


def test_what_does_not_pair_is_refused():
    with pytest.raises(ValueError, match="got 2 and 1"):
        difference_of_values([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="got 0 and 0"):
        difference_over_seeds([], [], np.arange(0), mean)
