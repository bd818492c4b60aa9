"""``positions.parquet`` of a run: which positions of the stream each step was computed from.

A folder of Parquet files that reads as one table (``pyarrow.parquet.read_table(run / "positions.parquet")``) with the
columns ``step`` (int64, the first step is 1), ``worker`` (int32) and ``position`` (int64). There is a file for each
checkpoint, written before the checkpoint is committed: what stands there is exactly the history behind the newest
checkpoint, since a start takes out what lies beyond the checkpoint that it goes on from. Before a step is taken its
positions are held against the stream (``check_positions``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from deepcoro.config import Config
from deepcoro.errors import TrainingError

FOLDER = "positions.parquet"


class PositionLog:
    """Collects positions on every worker and writes them on the first.

    Args:
        run: its folder.
        start: the step that the run goes on from; positions of later steps are taken out.
        group: process group of all workers that moves Python objects (gloo), or ``None`` where there is one worker.
    """

    def __init__(self, run: Path, start: int, group: Any = None) -> None:
        self.folder, self.committed, self.group = run / FOLDER, start, group
        self.worker = dist.get_rank(group) if group is not None else 0
        self._own: list[tuple[int, np.ndarray]] = []
        self._rows: list[tuple[int, int, np.ndarray]] = []  # of all workers, not yet behind a checkpoint
        if self.worker == 0:
            self._drop_after(start)

    def add(self, step: int, positions: np.ndarray) -> None:
        """Note that this worker computed ``step`` from ``positions`` [b]."""
        self._own.append((step, np.array(positions)))

    def gather(self) -> None:
        """Bring what the workers noted to the first; all of them have to call it."""
        shares: list[Any] | None = [self._own]
        if self.group is not None:
            shares = [None] * dist.get_world_size(self.group) if self.worker == 0 else None
            dist.gather_object(self._own, shares, dst=0, group=self.group)
        self._own = []
        for worker, share in enumerate(shares or []):
            self._rows += [(step, worker, positions) for step, positions in share]

    def write(self, step: int) -> None:
        """Write what was gathered, for the checkpoint of ``step`` that is about to be committed; first worker only.

        Raises:
            OSError: the disk is full.
        """
        self._drop_after(self.committed)  # written for a checkpoint that came to nothing
        if not self._rows:
            return
        self.folder.mkdir(exist_ok=True)
        rows = sorted(self._rows, key=lambda row: row[:2])
        sizes = [len(positions) for _, _, positions in rows]
        table = pa.table(
            {
                "step": pa.array(np.repeat([step for step, _, _ in rows], sizes), pa.int64()),
                "worker": pa.array(np.repeat([worker for _, worker, _ in rows], sizes), pa.int32()),
                "position": pa.array(np.concatenate([positions for _, _, positions in rows]), pa.int64()),
            }
        )
        scratch = self.folder / f".{step}.partial"
        pq.write_table(table, scratch)
        scratch.rename(self.folder / f"{step:012d}.parquet")

    def commit(self, step: int) -> None:
        """The checkpoint of ``step`` is there."""
        self.committed, self._rows = step, []

    def _drop_after(self, step: int) -> None:
        for path in self.folder.glob("*.parquet"):
            if int(path.stem) > step:
                path.unlink()


def check_positions(config: Config, step: int, rows: Sequence[Mapping[str, Any]], rank: int, world: int) -> None:
    """Hold a worker's micro-batches against the stream: step s (0 is the first) is positions [s*B, (s+1)*B), dealt out
    as ``StreamLayout`` says.

    Raises:
        TrainingError: they are others. Nothing was trained on them.
    """
    micro = config.micro_batch_size
    for number, batch in enumerate(rows):
        first = step * config.training.batch_size + (number * world + rank) * micro
        found = batch["position"]
        if not np.array_equal(found, np.arange(first, first + micro)):
            raise TrainingError(
                f"step {step + 1} on worker {rank} should be positions {first} to {first + micro - 1} of the stream, "
                f"and got {found.min()} to {found.max()} ({len(found)}); start the run again: it goes on from its "
                "newest checkpoint"
            )
