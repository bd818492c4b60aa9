"""Timing of two things in turn, A B A B ..., so that a machine whose speed drifts slows both alike."""

from __future__ import annotations

import json
import platform
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Pairs:
    """Seconds of each run of the two; ``ratio`` is theirs over ours, pair by pair: above 1, ours is faster."""

    ours: np.ndarray
    theirs: np.ndarray

    @property
    def ratio(self) -> float:
        """Median over the pairs."""
        return float(np.median(self.theirs / self.ours))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the median ratio."""
        ratios = self.theirs / self.ours
        drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
        low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
        return float(low), float(high)


def time_pairs(ours: Callable[[], object], theirs: Callable[[], object], num_pairs: int, warmup: int = 1) -> Pairs:
    """Run both ``warmup`` times, then in ``num_pairs`` pairs; a GPU is waited for."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(warmup + num_pairs):
        for run, kept in zip((ours, theirs), seconds, strict=True):
            begin = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warmup:
                kept.append(time.perf_counter() - begin)
    return Pairs(np.array(seconds[0]), np.array(seconds[1]))


def peak_gb() -> float:
    """Memory at the peak of this process so far; on a GPU what torch allocated there."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 2**30 if platform.system() == "Darwin" else 2**20  # bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(kind: str | None = None) -> str:
    """What the figures were measured on: the GPU where there is one, unless it is said."""
    if torch.cuda.is_available() and kind != "cpu":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def print_json(name: str, ratio: float, better: str, figures: Mapping[str, object]) -> None:
    """The last line of a benchmark."""
    print(json.dumps({"name": name, "ratio": round(ratio, 4), "better": better, "figures": dict(figures)}))
