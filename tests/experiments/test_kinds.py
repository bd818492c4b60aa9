"""Two kinds of runs: differences worked by hand, and when one is told as a difference."""

import pandas as pd
import pytest

from experiments.kinds import F1, FALSE, HITS, MISSED, difference, format_differences, format_seeds

PATIENTS = ["a", "a", "b", "b", "c", "c"]  # two units each


def frame(recall, **columns):
    made = pd.DataFrame({"patient_id": PATIENTS, "recall": recall, **columns})
    made.attrs = {"recall": 0.125}
    return made


ONE, HALF, NONE = [1.0] * 6, [1.0, 0.0] * 3, [0.0] * 6


def test_a_metric_is_the_mean_over_seeds_and_its_difference_is_paired():
    first, second, found = difference([frame(ONE), frame(HALF)], [frame(NONE), frame(HALF)], "recall")
    # 0.75 and 0.25 in every patient, so that whichever are drawn again the difference is the same.
    assert (first, second, found.value, found.low, found.high) == (0.75, 0.25, 0.5, 0.5, 0.5)


def test_f1_is_of_all_counts_together():
    def counts(hits, false, missed):
        return frame(NONE, **{HITS: [hits] * 6, FALSE: [false] * 6, MISSED: [missed] * 6})

    first, second, _ = difference([counts(1, 0, 0), counts(2, 1, 1)], [counts(0, 1, 1), counts(1, 0, 0)], F1)
    assert first == pytest.approx(6 / 8)  # 2 x 3 hits; 1 false, 1 missed
    assert second == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    ("seeds_of_first", "by_seed", "told"),
    [
        ([ONE, ONE, ONE], "+0.500  +0.500  +0.500", "yes"),
        ([ONE, ONE, HALF], "+0.500  +0.500  +0.000", "no"),  # the interval excludes 0, and one seed has no difference
        ([ONE, ONE, NONE], "+0.500  +0.500  -0.500", "no"),
        ([[1, 1, 1, 0, 1, 0]] * 3, "+0.167  +0.167  +0.167", "no"),  # of one patient alone: the interval holds 0
        ([ONE], "+0.500", "one seed only"),
    ],
)
def test_a_difference_is_one_that_every_seed_has_and_whose_interval_excludes_0(seeds_of_first, by_seed, told):
    frames = {"new": [frame(values) for values in seeds_of_first], "old": [frame(HALF)] * len(seeds_of_first)}
    _, _, row = format_differences(frames, ["recall"]).splitlines()
    assert by_seed in row
    assert row.endswith(f"  {told}")
    assert row.split()[3] == "0.125"  # the baseline


def test_each_seed_stands_by_itself():
    table = format_seeds({"new": [frame(ONE), frame(HALF)], "old": [frame(HALF), frame(HALF)]}, ["recall"])
    assert [line.split() for line in table.splitlines()[2:]] == [
        ["recall", "0", "1.000", "0.500", "0.500", "0.500", "to", "0.500"],
        ["recall", "1", "0.500", "0.500", "0.000", "0.000", "to", "0.000"],
    ]
