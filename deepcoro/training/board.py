"""Scalars of a run: TensorBoard for people, metrics.jsonl for programs. Only rank 0 has a board."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter


class Board:
    """Writes scalars of a run's folder as they come."""

    def __init__(self, run: Path, start_step: int) -> None:
        # Events after the checkpoint belong to steps that are run again: TensorBoard drops them.
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=start_step or None, flush_secs=10)
        self._lines = (run / "metrics.jsonl").open("a", buffering=1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write ``values`` at ``step``."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._lines.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")

    def text(self, step: int, name: str, text: str) -> None:
        """Write Markdown at ``step``."""
        self._writer.add_text(name, text, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
        self._lines.close()


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
