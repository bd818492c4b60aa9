"""A sweep's search: Optuna asked and told through Ray Tune's Searcher, with accounts that are right.

Ray's own OptunaSearch is not used. It tells a trial that a scheduler stopped as complete, with the value at which it
was cut off; it never hands on that last value as an intermediate one; and after a kill its study holds trials that
run for ever. Here

- a trial is complete when its run reached its last step, and pruned when it was stopped before; the values on its way
  are in the study (of a single objective: Optuna keeps none of several, so its last ones are the attribute ``values``);
- a failed one is told as failed, with its error as the attribute ``error``, and the sweep goes on;
- each of Optuna's trials carries Tune's id (``tune_id``) and the name of its run (``run``). What a killed sweep left
  running stays the same trial of the study: ``take_over`` tells those that had ended, and the others are handed out
  again before any new one is asked for, with the values and the run they had. So the study has as many trials as the
  sweep, whatever befell it, and each has one run.

The study lies in Optuna's own storage: ``optuna-dashboard`` opens it.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.launch.space import SweepSpace, with_fields

# What Tune hands a trial: values by dotted path, the name of its run, and when it was asked for (``time.time()``).
FIELDS, RUN, ASKED = "fields", "run", "asked"  # the first two are attributes in the study too
TUNE_ID, NUM_STEPS, ERROR, VALUES, TIMES = "tune_id", "num_steps", "error", "values", "times"  # attributes in the study
_DIED = (
    "its process died, more often than training.max_failures allows; the system may have ended it for its memory "
    "(the kernel's log tells)"
)


@dataclass(frozen=True)
class Left:
    """What is on disk of a trial: results by step (none, if it came to none), its error if it failed, and where its
    time went if it ended."""

    results: Mapping[int, Mapping[str, float]]
    error: str | None = None
    times: Mapping[str, float] | None = None


class OptunaAskTell(Searcher):
    """Hands Optuna's points to Tune, and Tune's results to Optuna.

    Args:
        study: whose directions are those of ``space``'s objectives, in their order.
        config: of the experiment, over which the points are laid.
        num_trials: of the whole sweep: when so many have ended, no more is asked for.
        max_failures: when so many have failed, no more is asked for either; ``None``: however many fail.
        left: what a run left behind, by its name.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SweepSpace,
        config: Config,
        num_trials: int,
        max_failures: int | None = None,
        left: Callable[[str], Left] = lambda run: Left({}),
    ) -> None:
        names = list(space.objectives)
        if len(names) == 1:
            super().__init__(metric=names[0], mode=space.objectives[names[0]])
        else:  # Ray takes lists here, and its types do not say so
            modes: list[Any] = list(space.objectives.values())
            super().__init__(metric=names, mode=modes)  # type: ignore[arg-type]
        self.study, self.space, self.config = study, space, config
        self.num_trials, self.max_failures, self.left = num_trials, max_failures, left
        self.on_end: Callable[[], None] = lambda: None  # called when a trial has been told
        self._names = names
        self._trials: dict[str, optuna.Trial] = {}  # that run, by Tune's id
        self._waiting: list[optuna.Trial] = []  # that a killed sweep left

    @property
    def gave_up(self) -> bool:
        """Whether so many trials have failed that no more is asked for."""
        return self.max_failures is not None and num_failed(self.study) >= self.max_failures

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Fields and run of Tune's trial ``trial_id``. A point that the config refuses is told as failed, and the next
        one asked for: it cost nothing, and is in the study with its reason."""
        while num_ended(self.study) + len(self._trials) < self.num_trials and not self.gave_up:
            trial = self._waiting.pop(0) if self._waiting else self.study.ask()
            trial.set_user_attr(TUNE_ID, trial_id)
            try:
                fields = self.space.suggest(trial)
                config = with_fields(self.config, fields)
            except ConfigError as error:
                self._fail(trial, str(error))
                continue
            trial.set_user_attr(FIELDS, fields)
            trial.set_user_attr(NUM_STEPS, config.training.num_steps)
            trial.set_user_attr(RUN, run_of(trial))
            self._trials[trial_id] = trial
            return {FIELDS: fields, RUN: run_of(trial), ASKED: time.time()}
        return Searcher.FINISHED  # type: ignore[return-value]  # as Ray's own searchers do

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep an evaluation on the way. Tune does not call this with the result at which a scheduler stops a trial,
        nor with the last one of all; ``on_trial_complete`` gets those."""
        if trial_id in self._trials:
            self._note(self._trials[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended."""
        trial = self._trials.pop(trial_id, None)
        if trial is None:  # told before
            return
        left = self.left(run_of(trial))
        if result and not error:
            self._note(trial, result)
        self._settle(trial, left, _DIED if error else None, result or {})
        self.on_end()

    def take_over(self) -> dict[str, str]:
        """Tell the trials that a sweep left running, killed or when its time was up, and that had come to their end;
        the others wait to be handed out, in their order: they stay trials that run, also in the study. Pruned they
        would count as bad ones, which fell behind, and as trials that are done.

        Returns:
            By name of run what was done: ``complete``, ``failed`` or ``goes on``.
        """
        done: dict[str, str] = {}
        self._trials, self._waiting = {}, []
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # Not study.ask(): the trial is there, and only its handle is gone with the process that held it.
            trial = optuna.Trial(self.study, frozen._trial_id)
            left = self.left(run_of(trial)) if RUN in frozen.user_attrs else Left({})
            left = replace(left, times=None)  # they would count until now
            for step, values in sorted(left.results.items()):
                self._note(trial, {"step": step, **values})
            last = max(left.results, default=0)
            if left.error is not None or last >= frozen.user_attrs.get(NUM_STEPS, math.inf):
                done[run_of(trial)] = self._settle(trial, left, None, {"step": last, **left.results.get(last, {})})
                continue
            self._waiting.append(trial)
            done[run_of(trial)] = "goes on"
        return done

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is in its storage, and a sweep goes on from that."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as ``save``."""

    def _settle(self, trial: optuna.Trial, left: Left, error: str | None, result: Mapping[str, Any]) -> str:
        """Failed, if it left an error; complete at the last step of the run; else it was stopped before."""
        if left.times:
            trial.set_user_attr(TIMES, dict(left.times))
        if left.error is not None or error is not None:
            return self._fail(trial, left.error or error or "")
        if int(result.get("step", 0)) < trial.user_attrs[NUM_STEPS]:
            self.study.tell(trial, state=TrialState.PRUNED)
            return "pruned"
        values = [result.get(name, math.nan) for name in self._names]
        if missing := [name for name, value in zip(self._names, values, strict=True) if not math.isfinite(value)]:
            return self._fail(trial, f"its last evaluation has no {', '.join(missing)}")
        self.study.tell(trial, [float(value) for value in values], state=TrialState.COMPLETE)
        return "complete"

    def _note(self, trial: optuna.Trial, result: Mapping[str, Any]) -> None:
        known = {name: float(result[name]) for name in self._names if math.isfinite(result.get(name, math.nan))}
        if "step" not in result or not known:
            return
        step = int(result["step"])
        trial.set_user_attr(VALUES, {"step": step, **known})
        if len(self._names) == 1:
            with warnings.catch_warnings():  # of a step that was reported before the sweep was killed
                warnings.simplefilter("ignore")
                trial.report(known[self._names[0]], step)

    def _fail(self, trial: optuna.Trial, error: str) -> str:
        trial.set_user_attr(ERROR, error)
        self.study.tell(trial, state=TrialState.FAIL)
        return "failed"


def run_of(trial: optuna.Trial | optuna.trial.FrozenTrial) -> str:
    """The name of a trial's run."""
    return f"trial_{trial.number:04d}"


def num_ended(study: optuna.Study) -> int:
    """Trials that are complete, pruned or failed."""
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def num_failed(study: optuna.Study) -> int:
    """Trials that failed as they ran: not those whose point the config refused, which cost nothing."""
    return sum(RUN in trial.user_attrs for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)))


def directions(objectives: Mapping[str, Literal["max", "min"]]) -> list[Literal["maximize", "minimize"]]:
    """Optuna's words for them."""
    return ["maximize" if mode == "max" else "minimize" for mode in objectives.values()]


def enqueue_start(study: optuna.Study, points: Sequence[Mapping[str, Any]]) -> None:
    """Have the points of ``START`` tried first, each once however often this is called."""
    for point in points:
        study.enqueue_trial(dict(point), skip_if_exists=True)
