"""Scalars of a run: TensorBoard for people, metrics.jsonl for programs. Only rank 0 has a board."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter


class Board:
    """Writes scalars of a run's folder as they come, from ``first_step`` on.

    What an earlier start wrote of that step or later is taken out of both: those steps are run again, and stand once.
    """

    def __init__(self, run: Path, first_step: int) -> None:
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=first_step, flush_secs=10)
        self._lines = _lines_before(run / "metrics.jsonl", first_step).open("a", buffering=1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write ``values`` at ``step``."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._lines.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
        self._lines.close()


def _lines_before(path: Path, step: int) -> Path:
    """The file, without its lines of ``step`` and later."""
    if path.exists():
        whole = [
            line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")
        ]  # no torn last one
        kept = [line.strip() for line in whole if json.loads(line)["step"] < step]
        scratch = path.with_suffix(".partial")
        scratch.write_text("".join(line + "\n" for line in kept))
        scratch.replace(path)
    return path


def note_problems(run: Path, batches: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Append to ``problems.jsonl`` of the run each unit of ``batches`` that has a view which could not be read, and
    why.

    Every worker appends to the one file: a line is one write, which the system does not mix with others.
    """
    for batch in batches:
        for unit, problem in zip(batch["unit_id"], batch["problem"], strict=True):
            if problem:
                with (run / "problems.jsonl").open("a") as stream:
                    stream.write(json.dumps({"unit_id": str(unit), "problem": str(problem)}) + "\n")
