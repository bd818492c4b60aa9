"""Many intervals from one set of resamples: those of one metric by itself, and of the plain function of the rows."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from deepcoro.evaluation.intervals import ratio_interval, statistic_interval
from deepcoro.evaluation.resampling import ResampledSums, sums_over_rows
from deepcoro.metrics.agreement import divide, macro

GENERATOR = np.random.default_rng(0)
PATIENTS = np.array([f"patient {n}" for n in GENERATOR.integers(0, 25, 60)])
TRUE, SAID = GENERATOR.random((2, 60, 4)) < 0.4
COLUMNS = {"hits": TRUE & SAID, "false": ~TRUE & SAID, "missed": TRUE & ~SAID, "rows": np.ones(60)}


def test_a_ratio_has_the_interval_of_ratio_interval():
    sums = ResampledSums(COLUMNS, PATIENTS, num_resamples=300, seed=7)
    ours = sums.interval(lambda s: divide(s["hits"].sum(axis=-1), s["rows"]))
    assert ours == ratio_interval(COLUMNS["hits"].sum(axis=1), np.ones(60), PATIENTS, num_resamples=300, seed=7)


def test_a_statistic_of_sums_has_the_interval_of_the_plain_function_of_rows():
    sums = ResampledSums(COLUMNS, PATIENTS, num_resamples=100, seed=3)
    ours = sums.interval(lambda s: macro("f1", s["hits"], s["false"], s["missed"]))
    plain = statistic_interval(
        lambda a, b: f1_score(a > 0, b > 0, average="macro"), [TRUE, SAID], PATIENTS, num_resamples=100, seed=3
    )
    assert (ours.value, ours.low, ours.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_sums_keep_the_shape_of_a_row():
    columns = {"a": np.arange(24.0).reshape(4, 2, 3), "b": np.arange(4)}
    sums = ResampledSums(columns, ["p", "q", "p", "r"], num_resamples=5)
    for totals in (sums.total, sums_over_rows(columns)):
        assert totals["a"].tolist() == columns["a"].sum(axis=0).tolist() and totals["b"] == 6
    seen = []
    sums.interval(lambda s: seen.append(s["a"].shape) or s["b"])
    assert seen == [(2, 3), (5, 2, 3)]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="1 column or more"):
        ResampledSums({}, ["p"])
    with pytest.raises(ValueError, match="each of 2 patients"):
        ResampledSums({"a": [1, 2, 3]}, ["p", "q"])
    with pytest.raises(ValueError, match="in row 1"):
        ResampledSums({"a": [1, np.nan]}, ["p", "q"])
