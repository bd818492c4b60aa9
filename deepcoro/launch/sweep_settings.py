"""What a sweep is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepcoro.config import Config
from deepcoro.launch.space import SweepSpace
from deepcoro.launch.train import run_folder

_FEWEST_FAILURES = 3  # after which a sweep gives up by itself


@dataclass(frozen=True)
class Sweep:
    """What a sweep is asked to do.

    Args:
        config: what trials have in common; its name is the sweep's.
        max_concurrent: trials at once; ``None``: as many as fit.
        time_budget: seconds, after which no trial goes on in this start; those that were running are no pruned ones:
            ``resume`` goes on with them. ``None``: until all are done.
        stopping: ``asha``, ``median`` or ``none``: whether trials that fall behind are stopped.
        sampler, storage: as ``study.open_study`` takes them.
        max_failures: trials that may fail before no other begins; ``None``: half of them, and three at least.
        resume: go on with it.
        space_from: the file that the space came from, where ``space`` was read from the sweep's own copy.
    """

    config: Config
    space: SweepSpace
    num_trials: int
    max_concurrent: int | None = None
    time_budget: float | None = None
    seed: int = 0
    sampler: str | None = None
    storage: str | None = None
    stopping: str = "none"
    max_failures: int | None = None
    resume: bool = False
    space_from: Path | None = None

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return run_folder(self.config)

    @property
    def most_failures(self) -> int:
        """When so many trials have failed, no other begins. A single one that diverges says something of its point;
        where half of them fail, what they have in common is wrong, or the space is: more of them would tell no more."""
        return self.max_failures if self.max_failures is not None else max(_FEWEST_FAILURES, self.num_trials // 2)
