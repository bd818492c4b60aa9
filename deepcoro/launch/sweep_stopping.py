"""Which trials are stopped before their end: Ray Tune's schedulers, which know of the trials of an earlier start too.

Tune makes its schedulers anew with each start. The values that trials came to before are in the study, and are told to
the scheduler again: else the first trials after a kill were compared with nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optuna
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from deepcoro.config import Config

STOPPING = ("none", "asha", "median")
_REDUCTION = 3  # of successive halving: one trial in three goes on from each of its levels


def make_scheduler(
    stopping: str, metric: str, mode: str, config: Config, study: optuna.Study | None = None
) -> TrialScheduler | None:
    """The scheduler that ``stopping`` names, with the ended trials of ``study`` in it; ``None`` for ``none``."""
    if stopping == "none":
        return None
    every, steps = config.training.evaluate_every, config.training.num_steps
    assert every is not None
    made: TrialScheduler
    if stopping == "median":
        made = MedianStoppingRule(time_attr="step", metric=metric, mode=mode, grace_period=every)
    else:
        made = AsyncHyperBandScheduler(
            time_attr="step",
            metric=metric,
            mode=mode,
            max_t=steps,
            grace_period=min(every, steps),
            reduction_factor=_REDUCTION,
            stop_last_trials=False,  # the run ends by itself at its last step
        )
    for trial in study.get_trials(deepcopy=False) if study is not None else []:
        if trial.state.is_finished() and trial.intermediate_values:
            _tell(made, _Ended(f"ended_{trial.number}"), trial.intermediate_values, metric)
    return made


@dataclass(frozen=True)
class _Ended:
    """A trial of an earlier start: all that the schedulers look at."""

    trial_id: str


def _tell(scheduler: TrialScheduler, trial: Any, values: dict[int, float], metric: str) -> None:
    controller: Any = _NobodyWaits()
    scheduler.on_trial_add(controller, trial)
    results = [{"step": step, metric: value} for step, value in sorted(values.items())]
    for result in results[:-1]:
        scheduler.on_trial_result(controller, trial, result)
    scheduler.on_trial_complete(controller, trial, results[-1])


class _NobodyWaits:
    """As much of Tune's controller as the median rule asks while it has too few trials to compare."""

    def get_live_trials(self) -> list[Any]:
        """None."""
        return []
