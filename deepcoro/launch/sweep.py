"""Many runs of one experiment, over a space: Ray Tune starts and stops them, Optuna chooses what they try.

A sweep's folder ``root/name``: ``study.db`` (Optuna's, unless another storage is named), ``trials/<run>/`` (each a run
as any other), ``sweep.json`` and ``best.yaml`` (``sweep_results.py``), ``plots/``. All that it needs to go on is in the
study and in the runs: Tune's own state, in ``.ray``, is made anew with each launch.
"""

from __future__ import annotations

import os
import shutil
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray import tune

from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import ConfigError, DataError, ResourceError, TrainingError
from deepcoro.launch.lock import hold, is_running
from deepcoro.launch.paths import absolute
from deepcoro.launch.resources import nodes, set_environment, start_ray
from deepcoro.launch.search import ERROR, FIELDS, RUN, TIMES, OptunaAskTell, num_ended, num_failed, run_of
from deepcoro.launch.space import told
from deepcoro.launch.space_check import check_space
from deepcoro.launch.study import look_for_study, make_sampler, open_study
from deepcoro.launch.sweep_end import end_sweep, keep_results
from deepcoro.launch.sweep_folder import save_sweep
from deepcoro.launch.sweep_resources import TrialShare, choose_concurrency
from deepcoro.launch.sweep_settings import Sweep
from deepcoro.launch.sweep_stopping import make_scheduler
from deepcoro.launch.sweep_times import describe_times
from deepcoro.launch.sweep_trial import left_behind, run_trial
from deepcoro.launch.train import say, with_absolute_sources

_TUNES = ".ray"  # the folder of Tune's own state
_SECONDS_TO_DIE = 60.0  # for trials whose driver was killed
_DATASET = "dataset"  # attribute of the study: the fingerprint of what its trials are trained on
_BEGUN = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
_TUNE = {
    # A metric that has no value in one evaluation is no reason to end the sweep, as Tune would.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run's own folder has all that
    "RAY_AIR_NEW_OUTPUT": "0",  # nor its tables on the terminal
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",  # what Tune keeps is thrown away
}


def check_sweep(asked: Sweep) -> dict[str, Any]:
    """Refuse what would fail later, and return the distributions of the space by name.

    Raises:
        ConfigError: the space, the sampler, or what the config asks for, with the reason.
    """
    found = check_space(asked.space, asked.config, asked.stopping)
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


def check_data(asked: Sweep) -> str:
    """Refuse data that every trial would fail on; returns the dataset's fingerprint.

    Raises:
        UserError: the dataset is not there or damaged, nothing is left to train on, or there are no validation
            patients, so that nobody reports an objective.
    """
    data = asked.config.data
    dataset = PreparedDataset.open(absolute(data.path, "data.path"))
    dataset.units("train", data.unit, data.filter)
    if not dataset.num_studies()["val"]:
        raise DataError(
            f"{dataset.root} has no validation patients, by whom trials are judged "
            f"({', '.join(asked.space.objectives)}); prepare it again with some"
        )
    return str(dataset.card.get("fingerprint", ""))


def describe_sweep(asked: Sweep, seconds_of_trial: tuple[float, str] | None, confirm: int | None = None) -> list[str]:
    """What a sweep would search, take and cost, in lines.

    Args:
        seconds_of_trial: of a trial that trains to its last step, and where the number comes from.
        confirm: seeds that the best trial and the default are to be trained anew with.

    Raises:
        UserError: it would not start.
    """
    found = check_sweep(asked)
    done, running = _look(asked)
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
    if asked.resume:
        lines += [f"  {done} done already, and {running} that go on"]
    anew = 2 * (confirm or 0)
    if confirm is not None:
        lines += [f"  then {anew} trainings of {steps} steps: {confirm} seeds of the best trial and of the default"]
    number, line = choose_concurrency(asked.config, nodes(), asked.max_concurrent, asked.num_trials)
    lines += ["resources of a trial", f"  {TrialShare.of(asked.config)}", "concurrency", f"  {line}"]
    if seconds_of_trial is not None:
        one, source = seconds_of_trial
        rounds = -(-(asked.num_trials - done) // number)
        whole = rounds * one if asked.time_budget is None else min(rounds * one, asked.time_budget)
        if anew:
            whole += -(-anew // choose_concurrency(asked.config, nodes(), asked.max_concurrent, anew)[0]) * one
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
        TrainingError: so many trials failed that no more were begun.
    """
    set_environment()
    os.environ.update({name: os.environ.get(name, value) for name, value in _TUNE.items()})
    check_sweep(asked)
    fingerprint = check_data(asked)
    start_ray()
    number, line = choose_concurrency(asked.config, nodes(), asked.max_concurrent, asked.num_trials)
    folder = asked.folder
    trials = folder / "trials"
    with hold(folder):
        begun = any(trials.glob("*"))
        _check_folder(asked, begun)
        study = open_study(
            asked.config.name,
            asked.space,
            asked.storage,
            folder,
            num_trials=asked.num_trials,
            sampler=asked.sampler,
            seed=asked.seed,
            resume=asked.resume,
            begun=begun,
            before_new=lambda: save_sweep(asked),
        )
        _check_number(asked, study)
        _check_dataset(asked, study, fingerprint)
        save_sweep(asked)
        left = partial(left_behind, trials)
        searcher = OptunaAskTell(study, asked.space, asked.config, asked.num_trials, asked.most_failures, left)
        about = {"num_trials": asked.num_trials, "stopping": asked.stopping}
        searcher.on_end = partial(keep_results, study, folder, asked.config, about)
        _wait_for_orphans(study, trials)
        for run, what in searcher.take_over().items():
            say(f"{run} was running when the sweep was killed: {what}")
        say(f"{folder}: {num_ended(study)} of {asked.num_trials} trials done; {line}")
        if num_ended(study) < asked.num_trials and not searcher.gave_up:
            began = time.monotonic()
            _tuner(asked, searcher, trials, number).fit()
            _say_cut(asked, searcher, time.monotonic() - began)
            shutil.rmtree(folder / _TUNES, ignore_errors=True)  # nobody reads it again
        end_sweep(study, folder, asked.config, about)
        _say_end(asked, study, searcher)
    return folder


def _tuner(asked: Sweep, searcher: OptunaAskTell, trials: Path, number: int) -> tune.Tuner:
    config = asked.config.merge({"data": {"path": absolute(asked.config.data.path, "data.path")}})
    base = with_absolute_sources(config).model_dump(mode="json")  # trials stand in another folder
    metric, mode = next(iter(asked.space.objectives.items()))

    def trial(point: dict[str, Any]) -> None:
        run_trial(base, trials, point)

    return tune.Tuner(
        tune.with_resources(trial, TrialShare.of(asked.config).process),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=make_scheduler(asked.stopping, metric, mode, asked.config, searcher.study),
            num_samples=-1,  # the searcher says when it is enough
            max_concurrent_trials=number,
            time_budget_s=asked.time_budget,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=str(trials.parent / _TUNES),
            verbose=0,
            # Of processes that died: what is raised is not tried again (sweep_trial.py).
            failure_config=tune.FailureConfig(max_failures=asked.config.training.max_failures),
            callbacks=[_Tell(trials)],
        ),
    )


def _look(asked: Sweep) -> tuple[int, int]:
    """How many trials have ended, and how many had begun and would go on. Nothing is made or changed.

    Raises:
        UserError: the sweep would be refused for what lies in its folder or its storage.
    """
    folder = asked.folder
    if is_running(folder):
        raise ResourceError(f"{folder} is being trained already; wait for it, stop it, or give another name")
    begun = any((folder / "trials").glob("*"))
    _check_folder(asked, begun)
    study = look_for_study(asked.config.name, asked.space, asked.storage, folder, resume=asked.resume, begun=begun)
    if study is None:
        return 0, 0
    _check_number(asked, study)
    return num_ended(study), len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))


def _check_folder(asked: Sweep, begun: bool) -> None:
    """Refuse a new sweep where there is another one, or a run: its trials would go on with what lies there."""
    if asked.resume:
        return
    if begun:
        raise ConfigError(
            f"{asked.folder} holds the trials of a sweep already: go on with it by {_again(asked)}, or give another "
            "name by name=..."
        )
    if (asked.folder / "checkpoints").exists():
        raise ConfigError(f"{asked.folder} is a run, and no sweep; give another name by name=...")


def _check_number(asked: Sweep, study: optuna.Study) -> None:
    begun = len(study.get_trials(deepcopy=False, states=_BEGUN))
    if asked.num_trials < begun:
        raise ConfigError(
            f"--num-trials {asked.num_trials}: {begun} trials of {asked.folder} have begun already; give as many, or "
            "more"
        )


def _check_dataset(asked: Sweep, study: optuna.Study, fingerprint: str) -> None:
    """Refuse a dataset that was prepared anew since the sweep began: its trials could not be compared."""
    before = study.user_attrs.get(_DATASET)
    if before is None:
        study.set_user_attr(_DATASET, fingerprint)
    elif before != fingerprint:
        raise DataError(
            f"{asked.folder} began with another dataset than {asked.config.data.path} holds now (fingerprints "
            f"{before[:12]} and {fingerprint[:12]}): patients may stand in other splits. Give the one it began with, "
            "or begin a sweep of another name"
        )


def _wait_for_orphans(study: optuna.Study, trials: Path) -> None:
    """Until what trains for a driver that was killed has ended too: Ray ends it, a moment later."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    give_up = time.monotonic() + _SECONDS_TO_DIE
    for run in [trials / run_of(trial) for trial in running]:
        while run.exists() and is_running(run) and time.monotonic() < give_up:
            time.sleep(0.1)


def _say_cut(asked: Sweep, searcher: OptunaAskTell, seconds: float) -> None:
    """Settle the trials that Tune let go of, of which it tells the searcher nothing."""
    up = asked.time_budget is not None and seconds >= asked.time_budget
    when = "when the time was up" if up else "when the sweep was stopped"
    for run, what in searcher.take_over().items():
        last = max(searcher.left(run).results, default=0)
        what = f"it stands at step {last}, and --resume goes on with it" if what == "goes on" else what
        say(f"{run} was running {when}: {what}")


def _say_end(asked: Sweep, study: optuna.Study, searcher: OptunaAskTell) -> None:
    ended = study.get_trials(deepcopy=False)
    times = [trial.user_attrs[TIMES] for trial in ended if TIMES in trial.user_attrs]
    if times:
        say(describe_times(times))
    errors = sorted({trial.user_attrs.get(ERROR, "") for trial in ended if trial.state == TrialState.FAIL})
    if searcher.gave_up and num_ended(study) < asked.num_trials:
        raise TrainingError(
            f"{num_failed(study)} trials of {asked.folder} failed, and no other is begun (--max-failures "
            f"{asked.most_failures}). They say: {'; '.join(errors[:3])}. If others may do better, {_again(asked)} "
            "with a higher --max-failures goes on"
        )
    if errors and num_failed(study) == num_ended(study):
        raise TrainingError(
            f"all {num_failed(study)} trials of {asked.folder} failed. They say: {'; '.join(errors[:3])}"
        )
    if num_ended(study) < asked.num_trials:
        say(f"{num_ended(study)} of {asked.num_trials} trials are done; {_again(asked)} goes on")


def _again(asked: Sweep) -> str:
    return f"`deepcoro sweep --resume {asked.folder}`"


class _Tell(tune.Callback):
    """A line at the terminal for each trial that begins and ends.

    Args:
        trials: the folder of their runs.
    """

    def __init__(self, trials: Path) -> None:
        self.trials = trials

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It begins, or begins again after its process died."""
        fields = ", ".join(f"{name}={_short(value)}" for name, value in trial.config[FIELDS].items())
        say(f"{trial.config[RUN]} begins: {fields}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It ended, or was stopped."""
        left = left_behind(self.trials, trial.config[RUN])
        if left.error is not None:
            say(f"{trial.config[RUN]} failed: {left.error}; the sweep goes on")
        else:
            say(f"{trial.config[RUN]} ended at step {max(left.results, default=0)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process died, and is not started again."""
        say(f"{trial.config[RUN]} failed: its process died; the sweep goes on")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
