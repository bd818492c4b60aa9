"""Two measured runs -> the paired difference of each metric, patient by patient, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepcoro.errors import DataError, UserError
from deepcoro.evaluation.grounding import LESIONS, POINTED
from deepcoro.evaluation.intervals import Interval, enough, paired_difference, statistic_interval
from deepcoro.evaluation.lent_boxes import SCORES
from deepcoro.evaluation.report import Metric, align_columns, interval_text, number_text
from deepcoro.evaluation.resampling import ResampledSums
from deepcoro.evaluation.row_metrics import ROW_METRICS
from deepcoro.evaluation.rows import IDS, read_rows

# What a unit has the mean over its lesions of, and the column that says of how many.
OF_LESIONS = {f"grounding/{name}": LESIONS for name in SCORES}
OF_LESIONS |= {f"grounding/{name}": POINTED for name in ("pointing", "pointing_reachable")}


def compare(first: str | Path, second: str | Path, split: str = "val") -> dict[str, Metric]:
    """Hold two runs against each other on the same patients of ``split``; print the table, return the differences.

    Each metric is of the rows that have a value in both runs. The interval is a bootstrap over patients that draws the
    same ones for both. Retrieval is measured among all rows that a run could read.

    Returns:
        By metric, first minus second and its 95% interval.

    Raises:
        UserError: a run was not measured on the split, or the two share no metric.
        DataError: they were measured on other units.
    """
    runs = (Path(first), Path(second))
    tables, abouts = zip(*(read_rows(run, split) for run in runs), strict=True)
    frames = [table.to_pandas().set_index("unit_id") for table in tables]
    check_same_units(runs, frames, [about["dataset_fingerprint"] for about in abouts], split)
    frames[1] = frames[1].loc[frames[0].index]

    notes = []
    columns = [name for name in frames[0].columns if name in frames[1].columns and name not in IDS]
    if alone := [name for frame in frames for name in frame.columns if name not in IDS and name not in columns]:
        notes.append(f"Measured in one of them only: {', '.join(alone)}.")
    if abouts[0]["reconstruction_of"] != abouts[1]["reconstruction_of"]:
        columns = [name for name in columns if not name.startswith("masked_modeling/")]
        notes.append(
            "Reconstruction is left out, as it was not of the same: "
            + " and ".join(about["reconstruction_of"] or "none" for about in abouts)
            + "."
        )
    if not columns:
        raise UserError(" ".join([f"{runs[0]} and {runs[1]} share no metric on {split}.", *notes]))

    rows, differences = [], {}
    left_out = 0
    for name, of_name in _metrics_of(columns).items():
        pair, patients, lost = shared_rows(frames, of_name, by_study=name.startswith("retrieval/study/"))
        left_out = max(left_out, lost)
        if len(patients) == 0:
            continue
        values, difference = _difference(name, pair, patients)
        differences[name] = Metric(difference.value, difference.low, difference.high)
        rows.append(
            (
                name,
                *map(number_text, (*values, difference.value)),
                interval_text(difference.low, difference.high),
                "yes" if difference.excludes(0) else "no",
            )
        )
    header = ("metric", "first", "second", "first - second", "95% interval", "excludes 0")
    num_patients = frames[0]["patient_id"].nunique()
    for place, run, about in zip(("\nfirst ", "second"), runs, abouts, strict=True):
        # What was measured before there were averages does not say which.
        print(f"{place}  {run}, checkpoint {about['checkpoint']}, {about.get('weights', 'trained')} weights")
    print(f"{split}: the same {len(frames[0])} units of {num_patients} patients\n")
    print(align_columns(header, rows, (False, True, True, True, True, False)) + "\n")
    if left_out:
        notes.append(f"Up to {left_out} units have a value in one of them only and count for neither.")
    notes.append(
        f"Of {len(rows)} intervals, one in twenty would exclude 0 by chance. They are over patients: one run of each "
        "cannot show what another seed would give, so a claim about training needs 3 seeds of each or more."
    )
    print("\n".join(notes), flush=True)
    return differences


def check_same_units(
    runs: Sequence[Path], frames: Sequence[pd.DataFrame], fingerprints: Sequence[str], split: str
) -> None:
    """Refuse two runs that were not measured on the same units of one dataset.

    Raises:
        DataError: they were not; how many units are alone is told.
    """
    ids = [set(frame.index) for frame in frames]
    alone = f"{len(ids[0] - ids[1])} units of the first and {len(ids[1] - ids[0])} of the second are not in the other"
    if fingerprints[0] != fingerprints[1]:
        raise DataError(
            f"{runs[0]} and {runs[1]} were measured on other datasets (fingerprints {fingerprints[0][:12]} and "
            f"{fingerprints[1][:12]}; {alone}); compare runs of one prepared dataset"
        )
    if ids[0] != ids[1]:
        raise DataError(
            f"{runs[0]} and {runs[1]} were not measured on the same units of {split}: {alone}, of {len(ids[0])} and "
            f"{len(ids[1])}; compare runs with one data.unit and data.filter"
        )


def _metrics_of(columns: list[str]) -> dict[str, list[str]]:
    """Metrics that can be had from columns, and those that each needs."""
    found: dict[str, list[str]] = {}
    parts = {part for metric in ROW_METRICS.values() for part in metric.columns}
    for name, metric in ROW_METRICS.items():
        if all(part in columns for part in metric.columns):
            found[name] = list(metric.columns)
    for name in columns:
        if name in parts or name in OF_LESIONS.values():
            continue
        if name in OF_LESIONS:
            found[name] = [name, OF_LESIONS[name]]
        elif name.endswith("/rank"):
            found[name.removesuffix("rank") + "median_rank"] = [name]
        else:
            found[name] = [name]
    return found


def shared_rows(
    frames: Sequence[pd.DataFrame], columns: list[str], by_study: bool
) -> tuple[list[NDArray[np.float64]], np.ndarray, int]:
    """Values [rows, columns] of each run where all have them, the rows' patients, and in how many rows only some do.

    A study's value stands in each of its rows: with ``by_study`` it is taken once.

    Args:
        frames: of the runs, with the same units in the same order.
    """
    has = np.stack([frame[columns].notna().all(axis=1).to_numpy() for frame in frames])
    kept = frames[0].index[has.all(axis=0)]
    if by_study:
        kept = kept[~frames[0].loc[kept, "study_id"].duplicated()]
    values = [frame.loc[kept, columns].to_numpy(dtype=float) for frame in frames]
    return values, frames[0].loc[kept, "patient_id"].to_numpy(), int((has.any(axis=0) & ~has.all(axis=0)).sum())


def _difference(
    name: str, pair: list[NDArray[np.float64]], patients: np.ndarray
) -> tuple[tuple[float, float], Interval]:
    """The metric in both runs, and first minus second."""
    if name.endswith("/median_rank"):
        ranks = [values[:, 0] for values in pair]
        interval = statistic_interval(_difference_of_medians, ranks, patients)
        return (float(np.median(ranks[0])), float(np.median(ranks[1]))), interval
    if name in ROW_METRICS:
        metric = ROW_METRICS[name]
        sums = ResampledSums({"first": pair[0], "second": pair[1]}, patients)
        interval = sums.interval(lambda s: metric.value(s["first"]) - metric.value(s["second"]))
        if metric.there is not None and not enough(patients, pair[0] @ np.array(metric.there) > 0):
            interval = Interval(interval.value, np.nan, np.nan)
        first, second = (float(metric.value(sums.total[side])) for side in ("first", "second"))
        return (first, second), interval
    if name in OF_LESIONS:
        sides = [(values[:, 0] * values[:, 1], values[:, 1]) for values in pair]
        first, second = (float(above.sum() / below.sum()) for above, below in sides)
        return (first, second), paired_difference(sides[0], sides[1], patients)
    first, second = (float(values[:, 0].mean()) for values in pair)
    return (first, second), paired_difference(pair[0][:, 0], pair[1][:, 0], patients)


def _difference_of_medians(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return float(np.median(first) - np.median(second))
