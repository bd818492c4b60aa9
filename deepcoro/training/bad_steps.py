"""Steps whose loss or gradients were not finite: counted, written down with what they were made of, and ended when too
many follow on each other.

Such a step was left out (``training.step``): the weights are those of before. One in a million is a bad batch, or bad
luck of 16 bits; many in a row are a run that has diverged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from deepcoro.errors import TrainingError
from deepcoro.training.board import append_line, keep_lines_before, note
from deepcoro.training.step import StepResult

BAD_STEPS_FILE = "bad_steps.jsonl"
_SMALLEST_SCALE = 2.0**-10  # of fp16: it starts at 65,536, and gradients that overflow here are not too large but wrong


class BadSteps:
    """The bad steps of a run.

    Args:
        run: its folder.
        most: how many in a row end the run.
        counters: where ``bad_steps``, ``bad_in_a_row`` and ``overflows`` are counted; part of a checkpoint.
        step: the last one that counts: what an earlier start wrote of later ones is taken out.
        group: process group of all workers that moves Python objects, or ``None`` where there is one.
    """

    def __init__(self, run: Path, most: int, counters: dict[str, int], step: int = 0, group: Any = None) -> None:
        self.run, self.most, self.counters, self.group = run, most, counters, group
        self.writes = group is None or dist.get_rank(group) == 0
        if self.writes:
            try:
                keep_lines_before(run / BAD_STEPS_FILE, step + 1)
            except OSError as error:
                note(run, f"{BAD_STEPS_FILE} still has steps after {step}, which are taken again: {error}")
        for name in ("bad_steps", "bad_in_a_row", "overflows"):
            counters.setdefault(name, 0)

    def look(
        self,
        step: int,
        result: StepResult,
        rows: Iterable[Mapping[str, Any]],
        told: Mapping[str, Any],
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Count ``step`` (from 1), and write it down where it is bad. All workers see the same, and call this at every
        step.

        Args:
            result: of the step, on the host.
            rows: micro-batches of this worker, with ``unit_id`` and ``position``.
            told: what else is written down, such as rates and loss weights.
            scaler: of fp16: gradients that overflow while it looks for its scale are counted apart.

        Raises:
            TrainingError: too many in a row.
        """
        if not result.skipped:
            self.counters["bad_in_a_row"] = 0
            return
        if result.overflowed and scaler is not None and scaler.get_scale() >= _SMALLEST_SCALE:
            self.counters["overflows"] += 1
            return
        self.counters["bad_steps"] += 1
        self.counters["bad_in_a_row"] += 1
        units = [(int(p), str(u)) for row in rows for p, u in zip(row["position"], row["unit_id"], strict=True)]
        record = {
            "step": step,
            "in_a_row": self.counters["bad_in_a_row"],
            "losses": _plain(result.losses),
            "total": _number(result.total.item()),
            "grad_norms": _plain(result.grad_norms),
            **told,
            "units": [{"position": position, "unit_id": unit} for position, unit in sorted(self._of_all(units))],
        }
        if self.writes:
            self._write(step, record)
        if self.counters["bad_in_a_row"] >= self.most:
            raise TrainingError(
                f"loss or gradients were not finite in {self.counters['bad_in_a_row']} steps in a row "
                f"(training.max_bad_steps), up to step {step}: losses {record['losses']}, gradient norms "
                f"{record['grad_norms']}. These steps changed no weight; {self.run / BAD_STEPS_FILE} says which units "
                "they were made of. Lower the learning rate, or train in bf16 or fp32, and start the run again: it "
                "goes on from its newest checkpoint"
            )

    def _of_all(self, units: list[tuple[int, str]]) -> list[tuple[int, str]]:
        if self.group is None:
            return units
        shares: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(shares, units, group=self.group)
        return [unit for share in shares for unit in share]

    def _write(self, step: int, record: Mapping[str, Any]) -> None:
        note(
            self.run,
            "a step was left out, whose loss or gradients were not finite; what it was made of stands in "
            f"{BAD_STEPS_FILE}, and {self.most} in a row end the run",
        )
        try:
            append_line(self.run / BAD_STEPS_FILE, record)
        except OSError as error:
            note(self.run, f"what step {step} was made of could not be written down: {error}")


def _plain(values: Mapping[str, torch.Tensor]) -> dict[str, float | str]:
    return {name: _number(value.item()) for name, value in values.items()}


def _number(value: float) -> float | str:
    """JSON knows no number for what is not finite: ``nan``, ``inf`` and ``-inf`` are words."""
    return value if math.isfinite(value) else str(value)
