"""A sweep's search: Optuna asked and told through Ray Tune's Searcher, with accounts that are right.

Ray's own OptunaSearch is not used. It tells a trial that a scheduler stopped as complete, with the value at which it
was cut off; it never hands on that last value as an intermediate one; and after a kill its study holds trials that
run for ever. Here

- a trial is complete when its run reached its last step, and pruned when it was stopped before; the values on its way
  are in the study (of a single objective: Optuna keeps none of several, so its last ones are the attribute ``values``);
- a failed one is told as failed, with its error as the attribute ``error``;
- each of Optuna's trials carries Tune's id (``tune_id``) and the name of its run (``run``), and ``reconcile`` settles
  what a killed sweep left running: what had ended is told, the others are failed as lost and asked again, in the same
  run, which goes on from its checkpoint.

The study lies in Optuna's own storage: ``optuna-dashboard`` opens it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.launch.space import SweepSpace, with_fields

FIELDS, RUN = "fields", "run"  # what Tune hands a trial: values by dotted path, and the name of its run
TUNE_ID, NUM_STEPS, ERROR, VALUES, AGAIN = "tune_id", "num_steps", "error", "values", "again"  # attributes in the study
LOST = "lost: the sweep was killed while it ran"
_SILENT = "it ended without a message: see the log of its run"


@dataclass(frozen=True)
class Ended:
    """What is on disk of a trial: results by step (none, if it came to none), and its error if it failed."""

    results: Mapping[int, Mapping[str, float]]
    error: str | None = None


class OptunaAskTell(Searcher):
    """Hands Optuna's points to Tune, and Tune's results to Optuna.

    Args:
        study: whose directions are those of ``space``'s objectives, in their order.
        config: of the experiment, over which the points are laid.
        num_trials: of the whole sweep: when so many have ended in any way but lost, no more is asked for.
        error_of: what a trial that failed left behind as its error, by Tune's id, if it could.

    ``on_end`` is called whenever a trial has been told.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SweepSpace,
        config: Config,
        num_trials: int,
        error_of: Callable[[str], str | None] = lambda tune_id: None,
    ) -> None:
        names = list(space.objectives)
        if len(names) == 1:
            super().__init__(metric=names[0], mode=space.objectives[names[0]])
        else:  # Ray takes lists here, and its types do not say so
            modes: list[Any] = list(space.objectives.values())
            super().__init__(metric=names, mode=modes)  # type: ignore[arg-type]
        self.study, self.space, self.config = study, space, config
        self.num_trials, self.error_of = num_trials, error_of
        self.on_end: Callable[[], None] = lambda: None
        self._names = names
        self._trials: dict[str, optuna.Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Fields and run of Tune's trial ``trial_id``. A point that the config refuses is told as failed, and the next
        one asked for: it cost nothing, and is in the study with its reason."""
        while num_ended(self.study) + len(self._trials) < self.num_trials:
            trial = self.study.ask()
            trial.set_user_attr(TUNE_ID, trial_id)
            trial.set_user_attr(RUN, trial.user_attrs.get(RUN, f"trial_{trial.number:04d}"))
            try:
                fields = self.space.suggest(trial)
                config = with_fields(self.config, fields)
            except ConfigError as error:
                self._fail(trial, str(error))
                continue
            trial.set_user_attr(FIELDS, fields)
            trial.set_user_attr(NUM_STEPS, config.training.num_steps)
            self._trials[trial_id] = trial
            return {FIELDS: fields, RUN: trial.user_attrs[RUN]}
        return Searcher.FINISHED  # type: ignore[return-value]  # as Ray's own searchers do

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep an evaluation on the way. Tune does not call this with the result at which a scheduler stops a trial,
        nor with the last one of all; ``on_trial_complete`` gets those."""
        if trial_id in self._trials:
            self._note(self._trials[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended."""
        trial = self._trials.pop(trial_id, None)
        if trial is None:  # told before, as by a reconciliation
            return
        if error:
            self._fail(trial, self.error_of(trial_id) or _SILENT)
        else:
            if result:
                self._note(trial, result)
            self._settle(trial, result or {})
        self.on_end()

    def reconcile(self, found: Mapping[str, Ended]) -> dict[str, str]:
        """Settle the trials that a sweep which was killed left running, before any is asked for.

        Args:
            found: by name of run, what is on disk of trials that ended, or came to results.

        Returns:
            By name of run what was done: ``complete``, ``pruned``, ``failed`` or ``asked again``.
        """
        done: dict[str, str] = {}
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # Not study.ask(): the trial is there, and only its handle is gone with the process that held it.
            trial = optuna.Trial(self.study, frozen._trial_id)
            run = frozen.user_attrs.get(RUN)
            ended = found.get(run) if run is not None else None
            if ended is not None and ended.error is not None:
                self._fail(trial, ended.error)
                done[str(run)] = "failed"
                continue
            results = ended.results if ended is not None else {}
            for step, values in sorted(results.items()):
                self._note(trial, {"step": step, **values})
            last = max(results, default=0)
            if NUM_STEPS in frozen.user_attrs and last >= frozen.user_attrs[NUM_STEPS]:
                done[str(run)] = self._settle(trial, {"step": last, **results[last]})
                continue
            params, attributes = _params(frozen), {AGAIN: frozen.number}
            if run is not None:
                attributes[RUN] = run
                done[run] = "asked again"
            if params or run is not None:  # else it was lost before it was anything
                self.study.enqueue_trial(params, user_attrs=attributes)
            self._fail(trial, LOST)
        return done

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is in its storage, and a sweep goes on from that."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as ``save``."""

    def _settle(self, trial: optuna.Trial, result: Mapping[str, Any]) -> str:
        """Complete at the last step of the run; else it was stopped before."""
        if int(result.get("step", 0)) < trial.user_attrs[NUM_STEPS]:
            self.study.tell(trial, state=TrialState.PRUNED)
            return "pruned"
        values = [result.get(name, math.nan) for name in self._names]
        if missing := [name for name, value in zip(self._names, values, strict=True) if not math.isfinite(value)]:
            self._fail(trial, f"its last evaluation has no {', '.join(missing)}")
            return "failed"
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

    def _fail(self, trial: optuna.Trial, error: str) -> None:
        trial.set_user_attr(ERROR, error)
        self.study.tell(trial, state=TrialState.FAIL)


def num_ended(study: optuna.Study) -> int:
    """Trials that ended by themselves: complete, pruned, or failed for a reason of their own. One that was lost is not
    counted: it is asked again."""
    return sum(
        trial.state.is_finished() and trial.user_attrs.get(ERROR) != LOST for trial in study.get_trials(deepcopy=False)
    )


def directions(objectives: Mapping[str, Literal["max", "min"]]) -> list[Literal["maximize", "minimize"]]:
    """Optuna's words for them."""
    return ["maximize" if mode == "max" else "minimize" for mode in objectives.values()]


def enqueue_start(study: optuna.Study, points: Sequence[Mapping[str, Any]]) -> None:
    """Have the points of ``START`` tried first, in a study that begins."""
    for point in points:
        study.enqueue_trial(dict(point))


def _params(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """All of a trial's values: those it was given, which it may not have asked for yet when it was lost, too."""
    return trial.system_attrs.get("fixed_params", {}) | trial.params
