"""What a confirmation found: the best trial of a sweep and its default, over seeds and patients, and what may be said.

``confirm.json`` in the sweep's folder: by number of the trial that was confirmed, the seeds and, on ``val`` and
``test``, each objective's two means, their difference with its interval, and the difference of each seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepcoro.errors import DataError, UserError
from deepcoro.evaluation.report import align_columns, interval_text, number_text
from deepcoro.evaluation.row_metrics import ROW_METRICS
from deepcoro.evaluation.rows import read_rows
from deepcoro.evaluation.seeds import LEAST_SEEDS, SeedDifference, difference_of_values, difference_over_seeds
from deepcoro.launch.compare import OF_LESIONS

FILE = "confirm.json"
TESTED = "tested"  # key in the file: the one trial for which the test patients were looked at


@dataclass(frozen=True)
class Pairs:
    """Runs of the best trial and of the default, in the order of their seeds."""

    best: Sequence[Path]
    default: Sequence[Path]


def differences(pairs: Pairs, objectives: Sequence[str], split: str) -> dict[str, SeedDifference]:
    """Best minus default of each objective, over seeds and patients; of one that has no values by row over seeds alone.

    Raises:
        UserError: a run was not measured on the split, or does not have an objective.
        DataError: the runs were measured on other units.
    """
    frames = [_frame(run, split) for run in (*pairs.best, *pairs.default)]
    if any(not frame.index.equals(frames[0].index) for frame in frames[1:]):
        raise DataError(f"the runs of {pairs.best[0].parent} were not all measured on the same units of {split}")
    found = {}
    for name in objectives:
        columns, parts, value = _made_of(name)
        if all(column in frame for frame in frames for column in columns):
            kept = np.logical_and.reduce([frame[columns].notna().all(axis=1) for frame in frames])
            if name.startswith("retrieval/study/"):  # a study's value stands in each of its rows
                kept = kept & ~frames[0]["study_id"].where(kept).duplicated().to_numpy()
            own = [parts(frame.loc[kept, columns].to_numpy(dtype=float)) for frame in frames]
            patients, number = frames[0].loc[kept, "patient_id"].to_numpy(), len(pairs.best)
            found[name] = difference_over_seeds(own[:number], own[number:], patients, value)
        else:
            sides = [[_value(run, split, name) for run in side] for side in (pairs.best, pairs.default)]
            found[name] = difference_of_values(*sides)
    return found


def write_confirmation(folder: Path, trial: int, seeds: Sequence[int], found: Mapping[str, Any]) -> None:
    """Keep what was found of a trial; what an earlier confirmation said of other trials stays.

    Args:
        found: by split, what ``differences`` returned.
    """
    path = folder / FILE
    content = read_confirmation(folder)
    entry: dict[str, Any] = {"seeds": list(seeds)}
    for split, of_split in found.items():
        entry[split] = {name: _as_json(difference) for name, difference in of_split.items()}
    content[str(trial)] = entry
    if "test" in found:
        content[TESTED] = trial
    scratch = path.with_name(f".{FILE}.partial")
    scratch.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    scratch.rename(path)


def note_tested(folder: Path, trial: int) -> None:
    """Say, before the test patients are looked at, for which trial they are."""
    content = read_confirmation(folder) | {TESTED: trial}
    (folder / FILE).write_text(json.dumps(content, indent=1) + "\n")


def read_confirmation(folder: Path) -> dict[str, Any]:
    """What ``confirm.json`` holds; nothing where there is none.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / FILE
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); the sweep writes it anew with --confirm") from None


def confirmation_lines(folder: Path, ways: Mapping[str, str]) -> list[str]:
    """All confirmations of a sweep, for a person.

    Args:
        ways: objective -> ``max`` or ``min``.
    """
    content, lines = read_confirmation(folder), []
    for number, entry in content.items():
        if number == TESTED:
            continue
        seeds = entry["seeds"]
        lines += [
            "",
            f"confirmation: trial {number} and the default, trained anew with {len(seeds)} seeds each: "
            + ", ".join(map(str, seeds)),
        ]
        for split in ("val", "test"):
            if split in entry:
                number = max(found["patients"] for found in entry[split].values())
                about = f"{split}, {number} patients, " if number else f"{split}, "
                about += "on whom the trial was chosen" if split == "val" else "whom nothing else has looked at"
                lines += [f"  {about}", *(f"    {line}" for line in _table(entry[split], ways))]
        if len(seeds) < LEAST_SEEDS:
            lines.append(
                f"  Nothing can be claimed from {len(seeds)} seeds: it takes {LEAST_SEEDS} or more. The test patients "
                "were left alone."
            )
        elif "test" not in entry:
            lines.append(
                f"  The test patients were not looked at for this trial: they were for trial {content.get(TESTED)}, "
                "and looking again would be to choose by them."
            )
        lines.append("  Intervals (95 %) are over seeds and patients, paired by both.")
    return lines


def _table(of_split: Mapping[str, Mapping[str, Any]], ways: Mapping[str, str]) -> list[str]:
    rows = []
    for name, found in of_split.items():
        value, low, high = (math.nan if found[key] is None else found[key] for key in ("difference", "low", "high"))
        by_seed = "  ".join(f"{one:+.3f}" for one in found["by_seed"])
        means = (number_text(found["best"]), number_text(found["default"]), number_text(value))
        rows.append((name, *means, interval_text(low, high), by_seed, _verdict(found, ways[name])))
    header = ("metric", "best", "default", "best - default", "95% interval", "by seed", "so")
    return align_columns(header, rows, (False, True, True, True, True, False, False)).split("\n")


def _verdict(found: Mapping[str, Any], way: str) -> str:
    if len(found["by_seed"]) < LEAST_SEEDS:
        return "too few seeds"
    if found["low"] is None or found["low"] <= 0 <= found["high"]:
        return "no difference shown"
    better = "better" if (found["difference"] > 0) == (way == "max") else "worse"
    return better if found["patients"] else f"{better}, over seeds alone"


def _as_json(found: SeedDifference) -> dict[str, Any]:
    ends = {key: x if math.isfinite(x) else None for key, x in zip(("low", "high"), _ends(found), strict=True)}
    return {
        "best": found.first,
        "default": found.second,
        "difference": found.interval.value,
        **ends,
        "by_seed": list(found.by_seed),
        "patients": found.num_patients,
    }


def _ends(found: SeedDifference) -> tuple[float, float]:
    return found.interval.low, found.interval.high


def _frame(run: Path, split: str) -> pd.DataFrame:
    return read_rows(run, split)[0].to_pandas().set_index("unit_id").sort_index()


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
