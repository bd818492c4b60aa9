"""What a run's time and memory go into."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch


class Throughput:
    """Clips per second, share of time spent waiting for data, and peak memory, between two readings; and the share of
    all time so far that went into telling."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._began, self._told = time.perf_counter(), 0.0
        self._restart()

    def _restart(self) -> None:
        self._since, self._waited, self._clips = time.perf_counter(), 0.0, 0

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Pass batches through, counting the time until each is there."""
        while True:
            begin = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.perf_counter() - begin
            yield batch

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Count the time in here as spent on TensorBoard and logs."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._told += time.perf_counter() - begin

    def add(self, clips: int) -> None:
        """Count clips (of all workers) that were trained on."""
        self._clips += clips

    def read(self) -> dict[str, float]:
        """Scalars since the last reading, and start again."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        scalars = {
            "throughput/clips_per_second": self._clips / seconds,
            "throughput/data_wait_share": self._waited / seconds,
            "throughput/board_share": self._told / max(time.perf_counter() - self._began, 1e-9),
            "memory/process_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        if self.device.type == "cuda":
            scalars["memory/gpu_peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self._restart()
        return scalars


class Startup:
    """Seconds of a start by phase, from the command to the first step.

    Args:
        before: seconds of the phases that the launcher went through, and ``since``: the wall clock (``time.time()``) at
            which it began to start workers. Empty at a restart, which no launcher went before.
    """

    def __init__(self, before: Mapping[str, float]) -> None:
        phases = dict(before)
        if "since" in phases:
            phases["workers"] = time.time() - phases.pop("since")
        self._phases, self._told, self._last = phases, False, time.perf_counter()

    def lap(self, phase: str) -> None:
        """The phase that ends here; only its first time counts."""
        if phase not in self._phases:
            now = time.perf_counter()
            self._phases[phase], self._last = now - self._last, now

    def take(self) -> dict[str, float]:
        """Scalars of all phases, once."""
        if self._told:
            return {}
        self._told = True
        return {f"startup/{name}_seconds": seconds for name, seconds in self._phases.items()}
