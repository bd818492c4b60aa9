"""What a trial costs besides its steps, by cause: from the moment it was asked for to its first step, and from its last
step until the sweep was told.

Read out of what the trial left in its run's folder: ``times.json`` (asked, the birth of its process, entered, ended),
the scalars ``startup/*`` of its first step, the time of its last one, and its last validation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

ENDED = "times.json"
# In the order in which they come; README and bench/trial.py say what each is.
BEGIN = ("schedule", "process", "data", "ray", "run", "workers", "model", "first_batch", "first_step")
END = ("save", "validation", "close", "tell")


def times_of(run: Path) -> dict[str, float] | None:
    """Seconds by cause of a trial that has just ended, the ``total`` of them, and those of its ``steps``; ``None`` of
    one that came to no step."""
    log = run / "metrics.jsonl"
    if not (run / ENDED).exists() or not log.exists():
        return None
    marks, told = json.loads((run / ENDED).read_text()), time.time()
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    begun = [line for line in lines if "startup/first_step_seconds" in line and line["time"] >= marks["asked"]]
    stepped = [line for line in lines if "loss/total" in line and line["time"] >= marks["asked"]]
    if not begun or not stepped:
        return None
    new = marks["process"] > marks["asked"]  # else it had a trial before this one
    born = marks["process"] if new else marks["entered"]
    found = {"schedule": born - marks["asked"], "process": marks["entered"] - born}
    found |= {
        key.removeprefix("startup/").removesuffix("_seconds"): value
        for key, value in begun[-1].items()
        if key.startswith("startup/")
    }
    last, since = stepped[-1]["time"], marks["ended"]
    newest = max((run / "validation").glob("[0-9]*.json"), key=lambda path: int(path.stem), default=None)
    if newest is not None and newest.stat().st_mtime >= last:
        validated = newest.stat().st_mtime
        found["validation"] = json.loads(newest.read_text())["seconds"]
        found["save"] = max(0.0, validated - found["validation"] - last)
        since = validated
        found["close"] = marks["ended"] - since
    else:
        found["close"] = marks["ended"] - last
    found["tell"] = told - marks["ended"]
    parts = {name: round(found[name], 3) for name in (*BEGIN, *END) if name in found}
    return parts | {"total": round(sum(parts.values()), 3), "steps": round(last - begun[-1]["time"], 3)}


def describe_times(rows: Sequence[Mapping[str, float]]) -> str:
    """A line on what trials cost besides their steps: medians, the largest first."""
    middle = {name: median(row.get(name, 0.0) for row in rows) for name in (*BEGIN, *END)}
    largest = sorted(middle, key=lambda name: -middle[name])[:5]
    causes = ", ".join(f"{name} {middle[name]:.1f}" for name in largest)
    return f"a trial cost {median(row['total'] for row in rows):.1f} s besides its steps (median): {causes}, ..."
