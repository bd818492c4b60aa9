"""Two kinds of runs, each trained with the same seeds and measured on the same patients: the difference of a metric,
and whether another draw of seeds *and* patients would have it too.

Letters: K seeds, B rows, P patients.

The difference of a seed and a patient is taken as a mean, an effect of the seed, an effect of the patient, and the rest
(a crossed design). Its mean over both then varies by the seeds' variance / K, the patients' / P, and the rest's /
(K P). The spread of the K differences by seed holds the first and the last; the bootstrap over patients of the mean
over seeds the second and the last. Their sum counts the last twice, and so is at worst a little too wide. The interval
is Student's, with Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946): with few seeds it is as wide as few
seeds deserve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from deepcoro.evaluation.intervals import Interval
from deepcoro.evaluation.resampling import ResampledSums

LEAST_SEEDS = 5  # for a claim about training


@dataclass(frozen=True)
class SeedDifference:
    """First minus second.

    Args:
        interval: of the mean over seeds; its ends are NaN with one seed.
        by_seed: the difference of each seed.
        first, second: the mean over seeds of either.
        num_patients: that the interval is over; 0: over seeds alone.
    """

    interval: Interval
    by_seed: tuple[float, ...]
    first: float
    second: float
    num_patients: int

    @property
    def can_claim(self) -> bool:
        """Whether there are seeds enough to claim anything."""
        return len(self.by_seed) >= LEAST_SEEDS

    @property
    def is_claimed(self) -> bool:
        """Whether there are, and the interval excludes 0."""
        return self.can_claim and self.interval.excludes(0)


def difference_over_seeds(
    first: Sequence[NDArray[np.float64]],
    second: Sequence[NDArray[np.float64]],
    patients: NDArray,
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    level: float = 0.95,
) -> SeedDifference:
    """The difference over seeds and patients of a metric that is a function of sums over rows.

    Args:
        first, second: K arrays [B, C] of what the metric is made of, of the same rows and in the order of the seeds.
        patients: [B].
        value: sums [..., C] -> [...].

    Raises:
        ValueError: the numbers of seeds or rows differ, or there is none.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"expected as many runs of both kinds, 1 or more, got {len(first)} and {len(second)}")
    sides = {f"first {k}": rows for k, rows in enumerate(first)} | {f"second {k}": r for k, r in enumerate(second)}
    sums = ResampledSums(sides, patients)
    seeds = range(len(first))
    over_patients = sums.interval(
        lambda s: np.mean([value(s[f"first {k}"]) - value(s[f"second {k}"]) for k in seeds], axis=0), level
    )
    a, b = ([float(value(sums.total[f"{side} {k}"])) for k in seeds] for side in ("first", "second"))
    return _combined(a, b, over_patients, sums.num_patients, level)


def difference_of_values(first: Sequence[float], second: Sequence[float], *, level: float = 0.95) -> SeedDifference:
    """The same over seeds alone, of a metric that has no values by row: other patients might differ by more."""
    if not first or len(first) != len(second):
        raise ValueError(f"expected as many runs of both kinds, 1 or more, got {len(first)} and {len(second)}")
    return _combined(first, second, None, 0, level)


def _combined(
    first: Sequence[float], second: Sequence[float], over_patients: Interval | None, num_patients: int, level: float
) -> SeedDifference:
    by_seed = np.subtract(first, second)
    value, number = float(by_seed.mean()), len(by_seed)
    low = high = math.nan
    if number > 1:
        parts = [(float(by_seed.var(ddof=1)) / number, number - 1)]
        if over_patients is not None:
            # The width of the bootstrap's interval as a standard error: NaN where it has none, as the whole has then.
            error = (over_patients.high - over_patients.low) / (2 * norm.ppf((1 + level) / 2))
            parts.append((error**2, num_patients - 1))
        whole = sum(variance for variance, _ in parts)
        # Nothing varies where all differences are one number: the interval is that number.
        freedom = whole**2 / sum(v**2 / df for v, df in parts) if whole > 0 else math.inf
        half = float(t.ppf((1 + level) / 2, freedom)) * math.sqrt(whole)
        low, high = value - half, value + half
    means = float(np.mean(first)), float(np.mean(second))
    return SeedDifference(Interval(value, low, high), tuple(map(float, by_seed)), means[0], means[1], num_patients)
