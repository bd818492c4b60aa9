"""Intervals of many metrics at once: the patients of every resample are drawn once for all of them.

Letters: B rows, C patients, R resamples.

The resamples are those of ``intervals.ratio_interval`` with the same seed; a metric is any function of sums over rows.
At 10,000 patients and 2,000 resamples a metric by itself costs half a second, and all of a report together two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from deepcoro.evaluation.intervals import (
    NUM_RESAMPLES,
    Interval,
    checked_column,
    draws,
    interval_of_resamples,
    patient_codes,
)

Sums = Mapping[str, NDArray[np.float64]]


def sums_over_rows(columns: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    """Columns [B, ...] -> their sums [...], by name: what a statistic takes where no interval is wanted."""
    return {name: np.asarray(column).sum(axis=0, dtype=float) for name, column in columns.items()}


class ResampledSums:
    """Sums of columns over all rows, and over the rows of each resample.

    Args:
        columns: by name, each [B, ...] and finite.
        patients: [B], the patient of each row.
        num_resamples: R, as of ``intervals.ratio_interval``; ``seed`` too.

    Raises:
        ValueError: lengths differ, there are no rows or columns, or a value is not finite.
    """

    def __init__(
        self,
        columns: Mapping[str, ArrayLike],
        patients: Sequence[object] | NDArray,
        *,
        num_resamples: int = NUM_RESAMPLES,
        seed: int = 0,
    ) -> None:
        if not columns:
            raise ValueError("expected 1 column or more, got none")
        arrays = {name: checked_column(column, patients) for name, column in columns.items()}
        code_of_row, self.num_patients = patient_codes(patients)
        num_rows = len(code_of_row)
        member = csr_array((np.ones(num_rows), (code_of_row, np.arange(num_rows))), (self.num_patients, num_rows))
        of_patient = member @ np.concatenate([array.reshape(num_rows, -1) for array in arrays.values()], axis=1)
        resampled = np.concatenate(
            [
                times_drawn(drawn, self.num_patients) @ of_patient
                for drawn in draws(self.num_patients, num_resamples, seed)
            ]
        )
        ends = np.cumsum([array.reshape(num_rows, -1).shape[1] for array in arrays.values()])
        self.total: dict[str, NDArray[np.float64]] = {}
        self._resampled: dict[str, NDArray[np.float64]] = {}
        parts = zip(np.split(of_patient.sum(axis=0), ends[:-1]), np.split(resampled, ends[:-1], axis=1), strict=True)
        for (name, array), (total, drawn) in zip(arrays.items(), parts, strict=True):
            self.total[name] = total.reshape(array.shape[1:])
            self._resampled[name] = drawn.reshape(-1, *array.shape[1:])

    def interval(
        self, statistic: Callable[[Sums], ArrayLike], level: float = 0.95, *, centred: bool = False
    ) -> Interval:
        """Value and interval of ``statistic``, which takes sums by name and gives one number for each.

        It is called with the sums of all rows, shaped as a row of each column is, and again with those of the
        resamples, which have an axis R before: so it has to count axes from the last. Resamples in which it is NaN are
        as of ``ratio_interval``.

        Args:
            centred: for what noise alone makes larger, such as a mean of absolute values: a resample has the noise of
                the rows and its own, so that all of them may lie above the value. They are moved until their mean is
                the value (the bootstrap's correction of bias; Davison & Hinkley, section 2.2.1), and no end is below 0.
        """
        value, resampled = float(np.asarray(statistic(self.total))), np.asarray(statistic(self._resampled))
        if centred and np.isfinite(resampled).any():
            resampled = np.maximum(resampled - (np.nanmean(resampled) - value), 0)
        return interval_of_resamples(value, resampled, self.num_patients, level)


def times_drawn(drawn: NDArray[np.int64], num_patients: int) -> NDArray[np.float64]:
    """How often each resample has each patient: [r, C] indices -> [r, C] counts."""
    cells = drawn + num_patients * np.arange(len(drawn))[:, None]
    return np.bincount(cells.ravel(), minlength=len(drawn) * num_patients).reshape(-1, num_patients).astype(float)
