"""Many runs of one experiment, over a space: Ray Tune starts and stops them, Optuna chooses what they try.

A sweep's folder ``root/name``: ``study.db`` (Optuna's, unless another storage is named), ``trials/<run>/`` (each a run
as any other), ``sweep.json`` (what came of each trial), ``best.yaml``, ``plots/``, ``confirm/``. All that it needs to
go on is in the study and in the runs: Tune's own state, in ``.ray``, is made anew with each launch.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from deepcoro.config import Config
from deepcoro.errors import ConfigError
from deepcoro.launch.lock import hold
from deepcoro.launch.paths import absolute
from deepcoro.launch.resources import nodes, set_environment, start_ray
from deepcoro.launch.search import FIELDS, RUN, Ended, OptunaAskTell, num_ended
from deepcoro.launch.space import SweepSpace, told, with_fields
from deepcoro.launch.space_check import check_space
from deepcoro.launch.study import make_sampler, open_study
from deepcoro.launch.sweep_end import end_sweep, keep_results
from deepcoro.launch.sweep_resources import DRIVER_CPUS, TrialShare, choose_concurrency
from deepcoro.launch.train import run_folder, say, train
from deepcoro.training.hparams import TRIAL_FILE
from deepcoro.training.validation import read_results

STOPPING = ("none", "asha", "median")
_REDUCTION = 3  # of successive halving: one trial in three goes on from each of its levels
_ERROR_FILE = "error.txt"


@dataclass(frozen=True)
class Sweep:
    """What a sweep is asked to do.

    Args:
        config: what trials have in common; its name is the sweep's.
        max_concurrent: trials at once; ``None``: as many as fit.
        time_budget: seconds, after which no trial goes on; ``None``: until all are done.
        stopping: ``asha``, ``median`` or ``none``: whether trials that fall behind are stopped.
        sampler, storage: as ``study.open_study`` takes them.
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
    resume: bool = False

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return run_folder(self.config)


def check_sweep(asked: Sweep) -> dict[str, Any]:
    """Refuse what would fail later, and return the distributions of the space by name.

    Raises:
        ConfigError: the space, the sampler, or what the config asks for, with the reason.
    """
    found = check_space(asked.space, asked.config)
    make_sampler(asked.sampler, asked.seed, len(asked.space.objectives))
    if asked.config.evaluation.asynchronous:
        raise ConfigError(
            "a sweep reads the metrics of a trial from its workers: set evaluation.asynchronous=false, or evaluate "
            "less often by training.evaluate_every"
        )
    if asked.stopping != "none" and len(asked.space.objectives) > 1:
        raise ConfigError(
            f"--stop {asked.stopping} compares trials by one objective, and there are "
            f"{', '.join(asked.space.objectives)}; choose one by --metric, or --stop none"
        )
    if asked.stopping != "none" and asked.config.training.evaluate_every is None:
        raise ConfigError(
            f"--stop {asked.stopping} needs evaluations on the way: set training.evaluate_every, or --stop none"
        )
    return found


def describe_sweep(asked: Sweep, seconds_of_trial: tuple[float, str] | None) -> list[str]:
    """What a sweep would search, take and cost, in lines.

    Args:
        seconds_of_trial: of a trial that trains to its last step, and where the number comes from.

    Raises:
        UserError: it would not start.
    """
    found = check_sweep(asked)
    names = max(map(len, found))
    steps = asked.config.training.num_steps
    lines = [f"{asked.folder}: a sweep, nothing is trained or written", "", f"space, {asked.space.path}"]
    lines += [f"  {name:<{names}}  {told(one)}" for name, one in found.items()]
    lines += ["objectives", *(f"  {name}, {mode}" for name, mode in asked.space.objectives.items())]
    lines += [
        "search",
        f"  {asked.sampler or 'default'} sampler, seed {asked.seed}, {len(asked.space.start)} first points",
    ]
    budget = "" if asked.time_budget is None else f", for {timedelta(seconds=asked.time_budget)} at most"
    lines += ["budget", f"  {asked.num_trials} trials of {steps} steps{budget}; stopped early: by {asked.stopping}"]
    number, line = choose_concurrency(asked.config, nodes(), asked.max_concurrent, asked.num_trials)
    lines += ["resources of a trial", f"  {TrialShare.of(asked.config)}", "concurrency", f"  {line}"]
    if seconds_of_trial is not None:
        one, source = seconds_of_trial
        rounds = -(-asked.num_trials // number)
        whole = rounds * one if asked.time_budget is None else min(rounds * one, asked.time_budget)
        lines += [
            "time (estimate)",
            f"  {timedelta(seconds=round(one))} a trial that trains to its end, without evaluations; {source}",
            f"  {timedelta(seconds=round(whole))} in all, {number} at once; trials that share a core take longer",
        ]
    return lines


def sweep(asked: Sweep) -> Path:
    """Run a sweep to its last trial, from the beginning or from where it was killed; returns its folder.

    Raises:
        UserError: what was asked for cannot be done; nothing was started.
    """
    set_environment()
    # A metric that has no value in one evaluation is no reason to end the sweep, as Tune would.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    check_sweep(asked)
    start_ray()
    number, line = choose_concurrency(asked.config, nodes(), asked.max_concurrent, asked.num_trials)
    folder = asked.folder
    trials = folder / "trials"
    with hold(folder):
        study = open_study(
            asked.config.name,
            asked.space,
            asked.storage,
            folder,
            num_trials=asked.num_trials,
            sampler=asked.sampler,
            seed=asked.seed,
            resume=asked.resume,
        )
        asked.config.save(folder / "config.yaml")
        searcher = OptunaAskTell(study, asked.space, asked.config, asked.num_trials)
        done = searcher.reconcile(_on_disk(study, trials))
        for run, what in done.items():
            say(f"{run} was running when the sweep was killed: {what}")
        say(f"{folder}: {num_ended(study)} of {asked.num_trials} trials done; {line}")
        about = {"num_trials": asked.num_trials, "stopping": asked.stopping}
        searcher.on_end = lambda: keep_results(study, folder, asked.config, about)
        if num_ended(study) < asked.num_trials:
            _tuner(asked, searcher, trials, number).fit()
        end_sweep(study, folder, asked.config, about)
    return folder


def _tuner(asked: Sweep, searcher: OptunaAskTell, trials: Path, number: int) -> tune.Tuner:
    base = asked.config.merge({"data": {"path": absolute(asked.config.data.path, "data.path")}}).model_dump(mode="json")
    searcher.error_of = lambda tune_id: _error_of(trials / _run_of(searcher.study, tune_id))

    def trial(point: dict[str, Any]) -> None:
        _train_trial(base, trials, point)

    launch = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return tune.Tuner(
        tune.with_resources(trial, {"CPU": DRIVER_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_scheduler(asked),
            num_samples=-1,  # the searcher says when it is enough
            max_concurrent_trials=number,
            time_budget_s=asked.time_budget,
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name=launch,
            storage_path=str(trials.parent / ".ray"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),  # workers are started again by the run itself
            callbacks=[_Tell()],
        ),
    )


def _scheduler(asked: Sweep) -> TrialScheduler | None:
    if asked.stopping == "none":
        return None
    ((metric, mode),) = asked.space.objectives.items()
    every, steps = asked.config.training.evaluate_every, asked.config.training.num_steps
    assert every is not None
    if asked.stopping == "median":
        return MedianStoppingRule(time_attr="step", metric=metric, mode=mode, grace_period=every)
    return AsyncHyperBandScheduler(
        time_attr="step",
        metric=metric,
        mode=mode,
        max_t=steps,
        grace_period=min(every, steps),
        reduction_factor=_REDUCTION,
        stop_last_trials=False,  # the run ends by itself at its last step
    )


def _train_trial(base: dict[str, Any], trials: Path, point: dict[str, Any]) -> None:
    """One trial, in a process of Tune's: a run that reports its evaluations."""
    config = with_fields(Config(**base), point[FIELDS]).merge({"root": str(trials), "name": point[RUN]})
    run = trials / point[RUN]
    run.mkdir(parents=True, exist_ok=True)
    (run / TRIAL_FILE).write_text(json.dumps({"fields": point[FIELDS]}, indent=1) + "\n")
    for step, metrics in read_results(run).items():  # of a run that goes on after the sweep was killed
        tune.report({"step": step, **metrics})
    try:
        train(config, callbacks=[TuneReportCallback()])
    except Exception as error:
        (run / _ERROR_FILE).write_text(f"{type(error).__name__}: {error}\n")
        raise


def _on_disk(study: optuna.Study, trials: Path) -> dict[str, Ended]:
    runs = [trial.user_attrs.get(RUN) for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
    return {run: Ended(read_results(trials / run), _error_of(trials / run)) for run in runs if run is not None}


def _run_of(study: optuna.Study, tune_id: str) -> str:
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return next(trial.user_attrs[RUN] for trial in running if trial.user_attrs.get("tune_id") == tune_id)


def _error_of(run: Path) -> str | None:
    path = run / _ERROR_FILE
    return path.read_text().strip() if path.exists() else None


class _Tell(tune.Callback):
    """A line at the terminal for each trial that begins and ends."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It begins."""
        say(f"{trial.config[RUN]} begins: " + ", ".join(f"{k}={v}" for k, v in trial.config[FIELDS].items()))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It ended, or was stopped."""
        say(f"{trial.config[RUN]} ended at step {trial.last_result.get('step')}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It failed, and the sweep goes on."""
        say(f"{trial.config[RUN]} failed; the sweep goes on")
