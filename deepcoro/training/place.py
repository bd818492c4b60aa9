"""Where a training worker stands: which of how many it is, what it reads, and who hears what it measures.

Workers of Ray Train ask Ray (``training/loop.py``). A sweep's trial of one worker trains in its own process: what Ray
Train adds to one worker (a controller, a worker and a coordinator of the data, each a process that begins with its
imports) cost a small trial more than its training did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch


class Place(Protocol):
    """What a worker asks of where it stands."""

    device: torch.device
    rank: int
    world: int

    def dataset(self) -> Any:
        """The rows that this worker takes, in their order."""

    def report(self, metrics: dict[str, Any]) -> None:
        """Tell what was measured; it may end the worker by ``SystemExit``."""


class Alone:
    """The only worker, in the process that launched it.

    Args:
        use_gpu: train on the GPU that this process was given.
        dataset: makes the rows of the run, in their order.
        heard: is called with what the worker reports.
    """

    rank, world = 0, 1

    def __init__(self, use_gpu: bool, dataset: Callable[[], Any], heard: Callable[[dict[str, Any]], None]) -> None:
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self._dataset, self._heard = dataset, heard

    def dataset(self) -> Any:
        """The rows of the whole stream."""
        return self._dataset()

    def report(self, metrics: dict[str, Any]) -> None:
        """Hand it on."""
        self._heard(metrics)
