"""What a confirmation found: the best trial of a sweep and its default, over seeds and patients, and what may be said.

``confirm.json`` in the sweep's folder: by number of the trial that was confirmed, the seeds, the runs that failed and,
on ``val`` and ``test``, the seeds that were measured, each objective's two means, their difference with its interval,
and the difference of each seed. ``TESTED`` says of which trial, and of which seeds, the test patients were looked at.

The trial was chosen by the validation patients, so that they cannot judge it: a verdict is given on test alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcoro.errors import UserError
from deepcoro.evaluation.intervals import Interval, enough
from deepcoro.evaluation.report import align_columns, interval_text, number_text
from deepcoro.evaluation.row_metrics import ROW_METRICS
from deepcoro.evaluation.rows import read_rows
from deepcoro.evaluation.seeds import LEAST_SEEDS, SeedDifference, difference_of_values, difference_over_seeds
from deepcoro.launch.compare import OF_LESIONS, check_same_units, shared_rows

FILE = "confirm.json"
TESTED = "tested"  # key in the file: the one trial for which the test patients were looked at, and its seeds


@dataclass(frozen=True)
class Pairs:
    """Runs of the best trial and of the default, in the order of their seeds."""

    best: Sequence[Path]
    default: Sequence[Path]


@dataclass(frozen=True)
class Comparison:
    """Best minus default on one split.

    Args:
        of: by objective.
        notes: what a reader has to know of them: rows that do not count, objectives that are left out and why.
    """

    of: Mapping[str, SeedDifference]
    notes: Sequence[str]


def differences(pairs: Pairs, objectives: Sequence[str], split: str) -> Comparison:
    """Best minus default of each objective, over seeds and patients; of one that has no values by row over seeds alone.

    Raises:
        UserError: a run was not measured on the split, or does not have an objective.
        DataError: the runs were measured on other units, or on another dataset.
    """
    runs = (*pairs.best, *pairs.default)
    tables, abouts = zip(*(read_rows(run, split) for run in runs), strict=True)
    frames = [table.to_pandas().set_index("unit_id") for table in tables]
    for run, frame, about in zip(runs, frames, abouts, strict=True):
        prints = [abouts[0]["dataset_fingerprint"], about["dataset_fingerprint"]]
        check_same_units((runs[0], run), [frames[0], frame], prints, split)
    frames = [frame.loc[frames[0].index] for frame in frames]
    kinds = sorted({about["reconstruction_of"] or "none" for about in abouts})
    found: dict[str, SeedDifference] = {}
    notes, left_out, number = [], 0, len(pairs.best)
    for name in objectives:
        if name.startswith("masked_modeling/") and len(kinds) > 1:
            notes.append(f"{name} is left out, as the reconstruction was not of the same: {' and '.join(kinds)}.")
            continue
        columns, parts, value = _made_of(name)
        if not all(column in frame for frame in frames for column in columns):
            sides = [[_value(run, split, name) for run in side] for side in (pairs.best, pairs.default)]
            found[name] = difference_of_values(*sides)
            continue
        rows, patients, lost = shared_rows(frames, columns, by_study=name.startswith("retrieval/study/"))
        left_out = max(left_out, lost)
        if len(patients) == 0:
            notes.append(f"{name} is left out: no unit has a value in all runs.")
            continue
        own = [parts(one) for one in rows]
        found[name] = difference_over_seeds(own[:number], own[number:], patients, value)
        there = ROW_METRICS[name].there if name in ROW_METRICS else None
        if there is not None and not enough(patients, rows[0] @ np.array(there) > 0):
            alone = Interval(found[name].interval.value, math.nan, math.nan)
            found[name] = replace(found[name], interval=alone)
            notes.append(f"{name} has no interval: too few patients have what is looked for.")
    if left_out:
        notes.append(f"Up to {left_out} units have a value in some of the runs only and count for none.")
    return Comparison(found, notes)


def write_confirmation(
    folder: Path,
    trial: int,
    seeds: Sequence[int],
    found: Mapping[str, tuple[Sequence[int], Comparison]],
    failed: Mapping[str, str] | None = None,
) -> None:
    """Keep what was found of a trial; what was found of other trials stays, and so does this one's test.

    Args:
        seeds: that were asked for.
        found: by split, the seeds that were measured and what ``differences`` returned.
        failed: by name of run, why it has no result.
    """
    content = read_confirmation(folder)
    entry: dict[str, Any] = {"seeds": list(seeds), "failed": dict(failed or {})}
    if "test" in (before := content.get(str(trial), {})):
        entry["test"] = before["test"]
    for split, (measured, comparison) in found.items():
        metrics = {name: _as_json(difference) for name, difference in comparison.of.items()}
        entry[split] = {"seeds": list(measured), "metrics": metrics, "notes": list(comparison.notes)}
    _keep(folder, content | {str(trial): entry})


def note_tested(folder: Path, trial: int, seeds: Sequence[int]) -> None:
    """Say, before the test patients are looked at, for which trial and which seeds they are."""
    _keep(folder, read_confirmation(folder) | {TESTED: {"trial": trial, "seeds": list(seeds)}})


def read_confirmation(folder: Path) -> dict[str, Any]:
    """What ``confirm.json`` holds; nothing where there is none.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / FILE
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read ({error}). It says whether the test patients were looked at, and for which trial: "
            "put back a copy of it, or remove it if you know that they were not; --confirm writes it anew"
        ) from None


def confirmation_lines(folder: Path, ways: Mapping[str, str]) -> list[str]:
    """All confirmations of a sweep, for a person.

    Args:
        ways: objective -> ``max`` or ``min``.
    """
    content, lines = read_confirmation(folder), []
    tested = content.pop(TESTED, None)
    for trial, entry in content.items():
        seeds = entry["seeds"]
        lines += [
            "",
            f"confirmation: trial {trial} and the default, trained anew with {len(seeds)} seeds each: {_told(seeds)}",
            *(f"  {run} failed, and its seed counts for neither: {why}" for run, why in entry["failed"].items()),
        ]
        for split in ("val", "test"):
            if split in entry:
                lines += [f"  {line}" for line in _split_lines(split, entry[split], ways)]
        if (last := _last_word(trial, entry, tested)) is not None:
            lines.append(f"  {last}")
        lines.append("  Intervals (95 %) are over seeds and patients, paired by both.")
    return lines


def _split_lines(split: str, of_split: Mapping[str, Any], ways: Mapping[str, str]) -> list[str]:
    metrics, seeds = of_split["metrics"], of_split["seeds"]
    patients = max((found["patients"] for found in metrics.values()), default=0)
    about = f"{split}, {patients} patients" if patients else split
    if split == "val":
        lines = [f"{about}: the trial was chosen on these patients, so that the numbers are told, and no verdict"]
    else:
        lines = [f"{about}, whom nothing else has looked at; looked at once, with seeds {_told(seeds)}"]
    if metrics:
        lines += [f"  {line}" for line in _table(metrics, ways, judged=split == "test")]
    notes = list(of_split["notes"])
    if (number := sum(found["low"] is not None for found in metrics.values())) > 1:
        notes.append(f"Of {number} intervals, one in twenty would exclude 0 by chance.")
    return [*lines, *(f"  {note}" for note in notes)]


def _last_word(trial: str, entry: Mapping[str, Any], tested: Mapping[str, Any] | None) -> str | None:
    """What there is to say of the test patients beside their table, by what they were looked at for."""
    pairs = len(entry["val"]["seeds"]) if "val" in entry else 0
    if "test" in entry:
        if entry["test"]["seeds"] == entry.get("val", entry["test"])["seeds"]:
            return None
        return "The test patients are not looked at again with other seeds: the first look stays."
    if tested is not None and str(tested["trial"]) == trial:
        return (
            f"The test patients were begun to be looked at for this trial, with seeds {_told(tested['seeds'])}; "
            "--confirm again ends it."
        )
    few = f"Nothing can be claimed from {pairs} seeds: it takes {LEAST_SEEDS} or more. " if pairs < LEAST_SEEDS else ""
    if tested is None:
        return few + "The test patients were left alone."
    return (
        f"{few}The test patients were not looked at for this trial: they were for trial {tested['trial']}, and looking "
        "again would be to choose by them."
    )


def _told(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _table(metrics: Mapping[str, Mapping[str, Any]], ways: Mapping[str, str], judged: bool) -> list[str]:
    rows = []
    for name, found in metrics.items():
        best, default, value, low, high = (
            math.nan if found[key] is None else found[key] for key in ("best", "default", "difference", "low", "high")
        )
        by_seed = "  ".join("-" if one is None else f"{one:+.3f}" for one in found["by_seed"])
        row = (name, number_text(best), number_text(default), number_text(value), interval_text(low, high), by_seed)
        rows.append((*row, _verdict(found, ways[name])) if judged else row)
    header = ("metric", "best", "default", "best - default", "95% interval", "by seed", *(("so",) if judged else ()))
    return align_columns(header, rows, (False, True, True, True, True, *(False for _ in header[5:]))).split("\n")


def _verdict(found: Mapping[str, Any], way: str) -> str:
    if len(found["by_seed"]) < LEAST_SEEDS:
        return "too few seeds"
    if found["low"] is None:
        return "no interval"
    if found["low"] <= 0 <= found["high"]:
        return "no difference shown"
    better = "better" if (found["difference"] > 0) == (way == "max") else "worse"
    return better if found["patients"] else f"{better}, over seeds alone"


def _as_json(found: SeedDifference) -> dict[str, Any]:
    numbers = {
        "best": found.first,
        "default": found.second,
        "difference": found.interval.value,
        "low": found.interval.low,
        "high": found.interval.high,
    }
    return {
        **{key: _finite(number) for key, number in numbers.items()},
        "by_seed": [_finite(number) for number in found.by_seed],
        "patients": found.num_patients,
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _keep(folder: Path, content: Mapping[str, Any]) -> None:
    """Beside, and then moved: what was known is not lost where the disk is full."""
    scratch = folder / f".{FILE}.partial"
    scratch.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    scratch.rename(folder / FILE)


def _made_of(name: str) -> tuple[list[str], Callable[[NDArray], NDArray], Callable[[NDArray], NDArray]]:
    """Columns of a metric; what of them is summed over rows [B, columns] -> [B, C]; sums [..., C] -> the metric."""
    if name in ROW_METRICS:
        return list(ROW_METRICS[name].columns), lambda rows: rows, ROW_METRICS[name].value
    if name in OF_LESIONS:
        return [name, OF_LESIONS[name]], lambda rows: np.stack([rows[:, 0] * rows[:, 1], rows[:, 1]], axis=1), _ratio
    return [name], lambda rows: np.stack([rows[:, 0], np.ones(len(rows))], axis=1), _ratio


def _ratio(sums: NDArray) -> NDArray:
    return sums[..., 0] / sums[..., 1]


def _value(run: Path, split: str, name: str) -> float:
    metrics = json.loads((run / f"summary_{split}.json").read_text())["metrics"]
    if name not in metrics or metrics[name]["value"] is None:
        raise UserError(f"{run} has no {name} on {split}: it cannot be confirmed by that")
    return float(metrics[name]["value"])
