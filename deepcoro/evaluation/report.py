"""The report of an evaluation: ``summary.json`` for programs, an aligned table for people.

A metric's name says where it belongs: ``retrieval/report_to_video/recall_at_5``, ``captioning/finding_f1``.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepcoro.evaluation.baselines import Baseline
from deepcoro.evaluation.intervals import Interval


@dataclass(frozen=True)
class Metric:
    """One number as reported; NaN stands for what is not known.

    Args:
        value: the metric.
        low, high: ends of its 95% interval.
        baseline: what chance, the majority or a mean reaches.
        baseline_name: which of them; for the table only.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    baseline: float = math.nan
    baseline_name: str = ""

    @classmethod
    def of(cls, interval: Interval, baseline: Baseline | None = None) -> Metric:
        """Put an interval and a baseline together."""
        if baseline is None:
            return cls(interval.value, interval.low, interval.high)
        return cls(interval.value, interval.low, interval.high, baseline.value, baseline.name)


def write_summary(
    path: str | os.PathLike[str], metrics: Mapping[str, Metric], about: Mapping[str, str] | None = None
) -> None:
    """Write ``{"metrics": {name: {"value", "low", "high", "baseline"}}}``; what is not finite
    becomes null. ``about`` goes beside the metrics: the split, the checkpoint.

    Written beside and then moved: a reader sees the old file or the new one, never half of it.

    Raises:
        ValueError: there are no metrics.
        OSError: the file cannot be written.
    """
    if not metrics:
        raise ValueError("expected 1 metric or more, got none")
    path = Path(path)
    content = {
        **(about or {}),
        "metrics": {
            name: {key: _number_or_none(getattr(metric, key)) for key in ("value", "low", "high", "baseline")}
            for name, metric in metrics.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # temporary files are private; a summary is for the group
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


def format_table(metrics: Mapping[str, Metric]) -> str:
    """A table of the metrics in their order: name, value, 95% interval, baseline, what the baseline is.

    Raises:
        ValueError: there are no metrics.
    """
    if not metrics:
        raise ValueError("expected 1 metric or more, got none")
    header = ("metric", "value", "95% interval", "baseline", "baseline is")
    rows = [
        (
            name,
            number_text(metric.value),
            interval_text(metric.low, metric.high),
            number_text(metric.baseline),
            metric.baseline_name,
        )
        for name, metric in metrics.items()
    ]
    return align_columns(header, rows, (False, True, True, True, False))


def align_columns(header: Sequence[str], rows: Sequence[Sequence[str]], right_aligned: Sequence[bool]) -> str:
    """Lines of a table under a header and a rule; numbers are aligned by their ends, words by their beginnings."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, right_aligned, strict=True)
        return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def interval_text(low: float, high: float) -> str:
    """``low to high``, or a dash where there is no interval."""
    return f"{number_text(low)} to {number_text(high)}" if math.isfinite(low) else "-"


def number_text(number: float) -> str:
    """Three decimals below 100, fewer above; four significant digits where three decimals would show nothing."""
    if not math.isfinite(number):
        return "-"
    if number != 0 and abs(number) < 0.01:
        return f"{number:.3g}"
    return f"{number:.3f}" if abs(number) < 100 else f"{number:.1f}"


def _number_or_none(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None
