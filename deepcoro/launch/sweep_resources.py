"""How many trials of a sweep run at once: the sum of what each takes, counted before any starts.

A trial is a driver, which waits most of the time, the workers of its run, and one data task that must find room beside
them (a second one waits its turn). Where it has one worker, driver and worker are one process. Ray reserves drivers and
workers as they come, and data tasks not at all: where drivers and workers of several trials leave no room for one data
task, all of them wait for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepcoro.config import Config
from deepcoro.errors import ResourceError

DRIVER_CPUS = 0.05  # of a trial's own process, which starts the run and hands its results on
_ROUNDING = 1e-6

Machines = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class TrialShare:
    """What one trial takes of a cluster."""

    num_workers: int
    cpus_per_worker: float
    data_cpus: float
    gpus_per_worker: float
    driver_cpus: float = DRIVER_CPUS

    @classmethod
    def of(cls, config: Config) -> TrialShare:
        """What a trial of ``config`` takes."""
        part = config.resources
        gpus = part.gpus_per_worker if part.use_gpu else 0.0
        return cls(part.num_workers, part.cpus_per_worker, part.cpus_per_data_task, gpus)

    @property
    def alone(self) -> bool:
        """Whether driver and worker are one process."""
        return self.num_workers == 1

    @property
    def process(self) -> dict[str, float]:
        """What Tune reserves for the trial's own process."""
        if not self.alone:
            return {"CPU": self.driver_cpus}
        gpus = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": self.driver_cpus + self.cpus_per_worker, **gpus}

    @property
    def cpus(self) -> float:
        """All CPUs of a trial."""
        return self.driver_cpus + self.num_workers * self.cpus_per_worker + self.data_cpus

    def __str__(self) -> str:
        workers = f"{self.num_workers} worker{'s' * (self.num_workers > 1)}"
        total, each = "", ""
        if self.gpus_per_worker:
            total = f" and {self.num_workers * self.gpus_per_worker:g} GPU"
            each = f" and {self.gpus_per_worker:g} GPU"
        return (
            f"{self.cpus:g} CPUs{total}: driver {self.driver_cpus:g} + {workers} x {self.cpus_per_worker:g}{each} + a "
            f"data task of {self.data_cpus:g}"
        )


def num_that_fit(share: TrialShare, machines: Machines, most: int) -> int:
    """How many trials, ``most`` at most, the machines hold at once.

    The largest pieces are placed first, each on the first machine with room. On one machine this is exact; on several
    Ray may place them worse, so a cluster of small machines is better given whole workers.
    """
    fits = 0
    while fits < most and _placed(share, machines, fits + 1):
        fits += 1
    return fits


def choose_concurrency(config: Config, machines: Machines, asked: int | None, num_trials: int) -> tuple[int, str]:
    """How many trials run at once, and a line that says why.

    Args:
        machines: what ``resources.nodes`` says.
        asked: by ``--max-concurrent``; ``None``: as many as fit.

    Raises:
        ResourceError: not even one trial fits, with the sum spelled out.
    """
    share = TrialShare.of(config)
    wanted = num_trials if asked is None else min(asked, num_trials)
    fits = num_that_fit(share, machines, wanted)
    there = " + ".join(f"{machine.get('CPU', 0):g}" for machine in machines) or "0"
    if fits == 0:
        raise ResourceError(_refusal(share, machines, there))
    if asked is None or fits >= wanted:
        return fits, f"{fits} at once: each takes {share}; there are {there} CPUs"
    line = f"{fits} at once, and not the {wanted} asked for: each takes {share}; there are {there} CPUs"
    smaller = _smaller(share, machines, wanted)
    return fits, line + (f". With resources.cpus_per_worker={smaller:g} all {wanted} fit" if smaller else "")


def _placed(share: TrialShare, machines: Machines, num_trials: int) -> bool:
    pieces = [(share.data_cpus, 0.0), (share.process["CPU"], share.process.get("GPU", 0.0))] * num_trials
    if not share.alone:
        pieces += [(share.cpus_per_worker, share.gpus_per_worker)] * (num_trials * share.num_workers)
    room = [_Room(machine) for machine in machines]
    sizes = sorted(pieces, key=lambda piece: (piece[1], piece[0]), reverse=True)
    return all(any(one.take(*size) for one in room) for size in sizes)


class _Room:
    """What is left of a machine. A share of a GPU is one of a single chip: two halves of two chips are no whole one."""

    def __init__(self, machine: Mapping[str, float]) -> None:
        self.cpus = machine.get("CPU", 0.0)
        self.chips = [1.0] * int(machine.get("GPU", 0.0))

    def take(self, cpus: float, gpus: float) -> bool:
        """Take a piece, if there is room for it."""
        chip = next((place for place, left in enumerate(self.chips) if left + _ROUNDING >= gpus), None)
        if self.cpus + _ROUNDING < cpus or (gpus and chip is None):
            return False
        self.cpus -= cpus
        if gpus and chip is not None:
            self.chips[chip] -= gpus
        return True


def _smaller(share: TrialShare, machines: Machines, num_trials: int) -> float | None:
    """CPUs of a worker, in hundredths, with which so many trials fit; ``None``: with none above 0.1."""
    for hundredths in range(int(share.cpus_per_worker * 100), 9, -1):
        less = TrialShare(share.num_workers, hundredths / 100, share.data_cpus, share.gpus_per_worker)
        if _placed(less, machines, num_trials):
            return hundredths / 100
    return None


def _refusal(share: TrialShare, machines: Machines, there: str) -> str:
    gpus = sum(machine.get("GPU", 0.0) for machine in machines)
    beside = f" and {gpus:g} GPUs" if share.gpus_per_worker else ""
    advice = "set resources.num_workers lower"
    if share.gpus_per_worker and not gpus:
        advice = "set resources.use_gpu=false"
    elif smaller := _smaller(share, machines, 1):
        advice = f"one trial fits with resources.cpus_per_worker={smaller:g}"
    return f"not even one trial fits: it takes {share}. There are {there} CPUs{beside}; {advice}"
