"""Curves of runs: what ``metrics.jsonl`` says of a scalar at each step, and lines of several seeds with their mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from deepcoro.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def read_curves(run: Path, names: Iterable[str]) -> dict[str, pd.Series]:
    """Scalars that a run wrote, each a series of values by step, in the order of the steps.

    Args:
        run: its folder.
        names: as they stand in ``metrics.jsonl``, such as ``loss/contrastive``. Some are written every few steps, some
            with each validation; of two values at one step the later counts. A last line without an end is left out:
            the run was killed while it wrote it.

    Raises:
        DataError: no such file, a line that is no JSON object with a step, or a name that none of its lines has.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise DataError(f"{path} is missing; give the folder of a run that has been trained")
    curves: dict[str, dict[int, float]] = {name: {} for name in names}
    for number, text in enumerate(path.read_text().splitlines(keepends=True), start=1):
        if not text.endswith("\n"):
            break
        try:
            line = json.loads(text)
            step = int(line["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: expected a JSON object with a step, got {text[:60]!r}; take the line out, or "
                "train the run anew"
            ) from error
        for name, curve in curves.items():
            if name in line:
                curve[step] = float(line[name])
    if missing := [name for name, curve in curves.items() if not curve]:
        raise DataError(f"{path} has no {', '.join(missing)}: the run was trained without it, or not far enough")
    return {name: pd.Series(curve, dtype=float, name=name).sort_index() for name, curve in curves.items()}


def mean_curve(curves: Sequence[pd.Series]) -> pd.Series:
    """The mean over seeds, at the steps that all of them have."""
    return pd.concat(curves, axis=1, join="inner").sort_index().mean(axis=1)


def draw_curves(axes: Axes, curves: Sequence[pd.Series], colour: str, label: str) -> None:
    """A thin line a seed and a thick one for their mean, over steps."""
    for curve in curves:
        axes.plot(curve.index, curve, color=colour, linewidth=0.7, alpha=0.45)
    mean = mean_curve(curves)
    axes.plot(mean.index, mean, color=colour, linewidth=2.2, label=label)
