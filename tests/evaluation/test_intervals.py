"""Bootstrap intervals against scipy, against theory, and against a loop that draws patients one by one."""

import math

import numpy as np
import pytest
from scipy import stats

from deepcoro.evaluation.intervals import (
    Interval,
    enough,
    mean_interval,
    paired_difference,
    ratio_interval,
    statistic_interval,
)


def test_one_row_a_patient_gives_the_interval_of_scipy():
    values = np.random.default_rng(0).exponential(size=80)
    ours = mean_interval(values, np.arange(80), num_resamples=9000)
    reference = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9000, rng=1).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high), abs=0.02)


def test_a_fair_coin_is_covered_about_as_often_as_promised():
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        interval = mean_interval(generator.random(100) < 0.5, np.arange(100), num_resamples=400, seed=trial)
        covered += interval.low <= 0.5 <= interval.high
    assert 0.90 <= covered / 300 <= 0.98


def test_rows_of_one_patient_are_not_independent():
    per_patient = np.random.default_rng(2).normal(size=50)
    once = mean_interval(per_patient, np.arange(50))
    tenfold = mean_interval(np.repeat(per_patient, 10), np.repeat(np.arange(50), 10))
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))
    as_if_rows = mean_interval(np.repeat(per_patient, 10), np.arange(500))
    assert as_if_rows.high - as_if_rows.low < 0.5 * (tenfold.high - tenfold.low)


def test_sums_of_patients_and_the_plain_function_draw_the_same_resamples():
    generator = np.random.default_rng(3)
    numerator, denominator = generator.integers(0, 3, 60), generator.integers(2, 6, 60)
    patients = np.array([f"patient {i}" for i in generator.integers(0, 20, 60)])
    fast = ratio_interval(numerator, denominator, patients, num_resamples=300, seed=7)
    plain = statistic_interval(
        lambda a, b: a.sum() / b.sum(), [numerator, denominator], patients, num_resamples=300, seed=7
    )
    assert (fast.value, fast.low, fast.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_median_of_one_row_a_patient_gives_the_interval_of_scipy():
    values = np.random.default_rng(4).exponential(size=201)
    ours = statistic_interval(np.median, [values], np.arange(201))
    reference = stats.bootstrap((values,), np.median, method="percentile", n_resamples=2000, rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high), abs=0.05)


def test_a_paired_difference_is_tighter_than_the_two_apart():
    generator = np.random.default_rng(5)
    difficulty = generator.normal(size=100)
    first, second = difficulty + 0.1 + 0.05 * generator.normal(size=100), difficulty
    patients = np.repeat(np.arange(50), 2)
    difference = paired_difference(first, second, patients)
    assert difference.value == pytest.approx(first.mean() - second.mean())
    assert difference.excludes(0) and mean_interval(first, patients).low < mean_interval(second, patients).high
    same = paired_difference(first, first, patients)
    assert (same.value, same.low, same.high) == (0, 0, 0) and not same.excludes(0)


def test_a_paired_difference_of_ratios():
    numerator, denominator, patients = np.array([1, 2, 3]), np.array([4, 4, 4]), [0, 1, 2]
    difference = paired_difference((numerator, denominator), (numerator, 2 * denominator), patients)
    assert difference.value == pytest.approx(6 / 12 - 6 / 24)
    assert difference.low < difference.value < difference.high


def test_a_seed_repeats_and_another_does_not():
    values = np.random.default_rng(6).random(40)
    intervals = [mean_interval(values, np.arange(40), seed=seed) for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_order_of_rows_does_not_matter():
    values, patients = np.random.default_rng(7).random(40), np.arange(40) // 3
    order = np.random.default_rng(8).permutation(40)
    here, there = mean_interval(values, patients), mean_interval(values[order], patients[order])
    assert (here.low, here.high) == pytest.approx((there.low, there.high))


def test_what_cannot_be_said_is_nan():
    one_patient = mean_interval([0.0, 1.0], ["a", "a"])
    assert one_patient.value == 0.5 and math.isnan(one_patient.low) and math.isnan(one_patient.high)
    nothing = ratio_interval([0, 0], [0, 0], ["a", "b"])
    assert math.isnan(nothing.value) and math.isnan(nothing.low) and not nothing.excludes(0)
    rare = ratio_interval([1, 0], [2, 0], ["a", "b"])  # a quarter of the resamples have no denominator
    assert rare.value == 0.5 and math.isnan(rare.low) and math.isnan(rare.high)
    told = np.arange(400) < 8  # no denominator in one of 3,000: those are left out
    assert ratio_interval(told, told, np.arange(400)) == Interval(1, 1, 1)


def test_five_patients_are_enough():
    assert not enough(["a", "a", "b", "c", "d", "e"], [1, 1, 1, 1, 1, 0])
    assert enough(["a", "a", "b", "c", "d", "e"], [1, 0, 1, 1, 1, 1])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"each of 3 patients' rows, got shape \(2,\)"):
        mean_interval([1, 2], ["a", "b", "c"])
    with pytest.raises(ValueError, match="got shape"):
        mean_interval([], [])
    with pytest.raises(ValueError, match="row 1"):
        ratio_interval([1, np.nan], [1, 1], ["a", "b"])
    with pytest.raises(ValueError, match="1 array or more"):
        statistic_interval(np.mean, [], ["a"])
    with pytest.raises(ValueError, match="1 resample or more, got 0"):
        mean_interval([1, 2], ["a", "b"], num_resamples=0)
    with pytest.raises(ValueError, match="level between 0 and 1, got 95"):
        mean_interval([1, 2], ["a", "b"], level=95)
