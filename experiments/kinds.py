"""Two kinds of runs, each over the same seeds, held against each other on the same test patients.

Each run is a frame of its values, a row a test unit, as ``values_of`` reads it; ``frames`` are the runs of both kinds,
``{kind: [frame of seed 0, of seed 1, ...]}``. Intervals are over patients, paired, and hold the seeds as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepcoro.evaluation.intervals import Interval, paired_difference
from deepcoro.evaluation.report import align_columns, interval_text, number_text
from deepcoro.evaluation.rows import read_rows

HITS, FALSE, MISSED = (f"captioning/{name}" for name in ("true_positives", "false_positives", "false_negatives"))
F1 = "captioning/finding_f1"


def values_of(run: Path, names: Sequence[str]) -> pd.DataFrame:
    """The run's values on test, one row a unit; and what each metric of ``names`` is without a look at the videos, in
    ``attrs``."""
    table, _ = read_rows(run, "test")
    frame = table.to_pandas().set_index("unit_id").sort_index()
    metrics = json.loads((run / "summary_test.json").read_text())["metrics"]
    frame.attrs = {name: metrics[name]["baseline"] for name in names}
    return frame


def difference(
    first: Sequence[pd.DataFrame], second: Sequence[pd.DataFrame], name: str
) -> tuple[float, float, Interval]:
    """A metric of two kinds of runs, each over all its seeds (values by their mean, F1 by its counts together), and
    first minus second, paired by patient."""

    def sides(frames: Sequence[pd.DataFrame]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if name == F1:
            above = sum(2 * frame[HITS] for frame in frames)
            return above.to_numpy(), (above + sum(frame[FALSE] + frame[MISSED] for frame in frames)).to_numpy()
        values = np.mean([frame[name] for frame in frames], axis=0)
        return values, np.ones(len(values))

    a, b = sides(first), sides(second)
    patients = first[0]["patient_id"].to_numpy()
    return float(a[0].sum() / a[1].sum()), float(b[0].sum() / b[1].sum()), paired_difference(a, b, patients)


def format_differences(frames: Mapping[str, Sequence[pd.DataFrame]], names: Sequence[str]) -> str:
    """A table: each metric, and the difference of the two kinds with its interval, and by seed. A difference is told as
    one only if its interval excludes 0 and every seed has it, of two or more."""
    (first, firsts), (second, seconds) = frames.items()
    rows = []
    for name in names:
        a, b, whole = difference(firsts, seconds, name)
        by_seed = [difference([x], [y], name)[2].value for x, y in zip(firsts, seconds, strict=True)]
        seeds = "  ".join(f"{value:+.3f}" for value in by_seed)
        found = (*map(number_text, (a, b)), number_text(firsts[0].attrs[name]), number_text(whole.value))
        agree = whole.excludes(0) and len({np.sign(value) for value in by_seed}) == 1
        told = "one seed only" if len(by_seed) == 1 else "yes" if agree else "no"
        rows.append((name, *found, interval_text(whole.low, whole.high), seeds, told))
    header = ("metric", first, second, "baseline", f"{first} - {second}", "95% interval", "by seed", "a difference")
    return align_columns(header, rows, (False, True, True, True, True, True, False, False))


def format_seeds(frames: Mapping[str, Sequence[pd.DataFrame]], names: Sequence[str]) -> str:
    """A table of the same metrics, each seed by itself, with the interval of its difference."""
    (first, firsts), (second, seconds) = frames.items()
    rows = []
    for name in names:
        for seed, (x, y) in enumerate(zip(firsts, seconds, strict=True)):
            a, b, found = difference([x], [y], name)
            rows.append((name, str(seed), *map(number_text, (a, b, found.value)), interval_text(found.low, found.high)))
    header = ("metric", "seed", first, second, f"{first} - {second}", "95% interval")
    return align_columns(header, rows, (False, True, True, True, True, True))
