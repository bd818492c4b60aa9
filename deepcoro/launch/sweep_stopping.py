"""Which trials are stopped before their end: Ray Tune's schedulers, which know of the trials of an earlier start too.

Tune makes its schedulers anew with each start. The values that trials came to before are in the study, and are told to
the scheduler again: else the first trials after a kill were compared with nobody.
"""

from __future__ import annotations

import math
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
        made = _Median(metric, mode, every)
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


class _Median(MedianStoppingRule):
    """Ray's rule, of each step's value once.

    Ray tells a trial's last result three times over, which would draw its mean to that value; it keeps results without
    the metric, on which the next trial's comparison fails; and while it has too few trials to compare, it has one
    pause for another that waits, whereupon a run starts again from its last checkpoint.
    """

    def __init__(self, metric: str, mode: str, first_step: int) -> None:
        self._name = metric
        super().__init__("step", metric, mode, grace_period=first_step, min_time_slice=math.inf)  # type: ignore[arg-type]  # Ray only compares it

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether to go on."""
        if not self._is_new(trial, result):
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Keep what was not told before: of a trial of an earlier start, each of its values."""
        if self._is_new(trial, result):
            super().on_trial_complete(tune_controller, trial, result)

    def _is_new(self, trial: Any, result: dict[str, Any]) -> bool:
        had = self._results[trial][-1]["step"] if self._results.get(trial) else -1
        return math.isfinite(result.get(self._name, math.nan)) and result.get("step", -1) > had


@dataclass(frozen=True)
class _Ended:
    """A trial of an earlier start: all that the schedulers look at."""

    trial_id: str


def _tell(scheduler: TrialScheduler, trial: Any, values: dict[int, float], metric: str) -> None:
    controller: Any = None  # which is asked nothing, of one trial that nobody waits for
    scheduler.on_trial_add(controller, trial)
    results = [{"step": step, metric: value} for step, value in sorted(values.items())]
    for result in results[:-1]:
        if isinstance(scheduler, _Median):  # asked for a verdict, it could stop a trial that has more results
            scheduler.on_trial_complete(controller, trial, result)
        else:
            scheduler.on_trial_result(controller, trial, result)
    scheduler.on_trial_complete(controller, trial, results[-1])
