"""Intervals: how far would a number move with other patients of the same kind?

Shapes: B rows, C patients, R resamples.

A patient's rows resemble each other, so patients and not rows are what is drawn anew (cluster bootstrap, percentile
interval; Davison & Hinkley, "Bootstrap Methods and their Application", 1997, sections 2.4 and 3.8). What the rows were
measured against, such as a retrieval gallery, stays fixed.

A mean or a ratio of sums needs only the sums of each patient and is vectorised; any other statistic is a function of
the rows and is called once for each resample. One seed, one answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_RESAMPLES = 2000
LEAST_PATIENTS = 5  # who have what is looked for, for an interval of how often it is found
_MOST_UNDEFINED = 0.01  # share of resamples in which a statistic may have no value
_BLOCK = 2**21  # patients drawn at once, over all resamples of a block


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval; NaN where there is nothing to say.

    The ends are NaN with fewer than two patients, as one patient tells nothing of the next, and where the value hangs
    on so few patients that more than one resample in a hundred has none of them (fewer than 5 or so).
    """

    value: float
    low: float
    high: float

    def excludes(self, number: float) -> bool:
        """Whether ``number`` lies outside; a paired difference that excludes 0 is a difference."""
        return number < self.low or number > self.high


def ratio_interval(
    numerator: ArrayLike,
    denominator: ArrayLike,
    patients: Sequence[object] | NDArray,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of ``sum(numerator) / sum(denominator)``, such as micro F1 from counts.

    Args:
        numerator, denominator: [B], finite.
        patients: [B], the patient of each row.
        num_resamples: R. The ends of a 95% interval need about 1,000 or more.
        level: share of resamples inside, in (0, 1).

    Resamples whose denominator is 0 (no patient with disease among them) have no ratio: where they are more than one
    in a hundred there is no interval, else they are left out.

    Raises:
        ValueError: lengths differ, there are no rows, a value is not finite, or a setting is out of range.
    """
    return _of_ratios([(numerator, denominator)], patients, num_resamples, seed, level)


def mean_interval(
    values: ArrayLike,
    patients: Sequence[object] | NDArray,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of the mean over rows of ``values`` [B]. Arguments and errors as of ``ratio_interval``."""
    return _of_ratios([(values, np.ones(np.shape(values)))], patients, num_resamples, seed, level)


def paired_difference(
    first: ArrayLike | tuple[ArrayLike, ArrayLike],
    second: ArrayLike | tuple[ArrayLike, ArrayLike],
    patients: Sequence[object] | NDArray,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of first minus second, measured on the same rows: both see the same patients in every resample.

    Args:
        first, second: values [B], compared by their means; or a tuple (numerator [B], denominator [B]), compared by
            the ratio of sums.

    The others, and the errors, as of ``ratio_interval``.
    """
    pairs = [side if isinstance(side, tuple) else (side, np.ones(np.shape(side))) for side in (first, second)]
    return _of_ratios(pairs, patients, num_resamples, seed, level)


def statistic_interval(
    statistic: Callable[..., float],
    arrays: Sequence[ArrayLike],
    patients: Sequence[object] | NDArray,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of any statistic of rows: ``statistic(*arrays)``, called once for each resample.

    For a median rank: ``statistic_interval(np.median, [ranks.expected], patients)``; for a paired difference of
    medians: ``statistic_interval(lambda a, b: np.median(a) - np.median(b), [a, b], patients)``.

    Args:
        statistic: takes as many arrays as there are, rows in any number and order; NaN where it is not defined.
        arrays: each [B] or [B, ...]. Arrays that are handed over together are resampled together.

    The others, and the errors, as of ``ratio_interval``.
    """
    columns = [checked_column(array, patients) for array in arrays]
    if not columns:
        raise ValueError("expected 1 array or more, got none")
    code_of_row, num_patients = patient_codes(patients)
    rows = np.arange(len(code_of_row))

    def values() -> Iterator[float]:
        for drawn in draws(num_patients, num_resamples, seed):
            for patients_drawn in drawn:
                times = np.bincount(patients_drawn, minlength=num_patients)
                chosen = np.repeat(rows, times[code_of_row])
                yield float(statistic(*(column[chosen] for column in columns)))

    value = float(statistic(*columns))
    return interval_of_resamples(value, np.fromiter(values(), dtype=float), num_patients, level)


def _of_ratios(
    pairs: Sequence[tuple[ArrayLike, ArrayLike]],
    patients: Sequence[object] | NDArray,
    num_resamples: int,
    seed: int,
    level: float,
) -> Interval:
    """Interval of the first ratio, less the second where there are two."""
    columns = [checked_column(column, patients) for pair in pairs for column in pair]
    code_of_row, num_patients = patient_codes(patients)
    sums = [np.bincount(code_of_row, weights=column, minlength=num_patients) for column in columns]  # each [C]
    ratios = _ratios([column.sum() for column in sums])
    resampled = np.concatenate(
        [_ratios([s[drawn].sum(axis=1) for s in sums]) for drawn in draws(num_patients, num_resamples, seed)]
    )
    return interval_of_resamples(float(ratios), resampled, num_patients, level)


def _ratios(sums: Sequence[NDArray]) -> NDArray:
    with np.errstate(divide="ignore", invalid="ignore"):  # what is not defined becomes NaN, and is handled as such
        pairs = zip(sums[::2], sums[1::2], strict=True)
        values = [np.where(below == 0, np.nan, above / below) for above, below in pairs]
    return values[0] - values[1] if len(values) == 2 else values[0]


def draws(num_patients: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Resamples as indices of patients, [r, C] at a time, R in all."""
    if num_resamples < 1:
        raise ValueError(f"expected 1 resample or more, got {num_resamples}")
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // num_patients)
    for start in range(0, num_resamples, block):
        yield generator.integers(num_patients, size=(min(block, num_resamples - start), num_patients))


def interval_of_resamples(value: float, resampled: NDArray, num_patients: int, level: float) -> Interval:
    """The interval of ``value`` from what it is in the resamples [R]; none where it is NaN in more than one of a
    hundred."""
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    defined = resampled[np.isfinite(resampled)]
    undefined = len(resampled) - len(defined)
    if num_patients < 2 or undefined > _MOST_UNDEFINED * len(resampled) or not math.isfinite(value):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def enough(patients: ArrayLike, there: ArrayLike) -> bool:
    """Whether ``LEAST_PATIENTS`` patients or more have what is looked for; with fewer, the resamples tell how often
    those few were drawn and not what others would bring (one patient, found: F1 is 1 in every one that has a value).

    Args:
        patients: [B].
        there: bool [B], whether a row has it.
    """
    return len(np.unique(np.asarray(patients)[np.asarray(there, dtype=bool)])) >= LEAST_PATIENTS


def checked_column(array: ArrayLike, patients: Sequence[object] | NDArray) -> NDArray[np.float64]:
    """One finite entry for each row, as floats.

    Raises:
        ValueError: there are none, too few or too many, or one is not finite.
    """
    column = np.asarray(array, dtype=float)
    if column.ndim == 0 or len(column) == 0 or len(column) != len(patients):
        raise ValueError(f"expected one value for each of {len(patients)} patients' rows, got shape {column.shape}")
    if not np.isfinite(column).all():
        row = int(np.argwhere(~np.isfinite(column))[0, 0])
        raise ValueError(f"expected finite values, got others in row {row}; leave out the rows that have none")
    return column


def patient_codes(patients: Sequence[object] | NDArray) -> tuple[NDArray, int]:
    """Numbers of the patients [B], and how many there are."""
    names, codes = np.unique(np.asarray(patients), return_inverse=True)
    return codes.reshape(-1), len(names)
