"""``deepcoro sweep ... --confirm K``: the best trial of a sweep and its default trained anew, with K seeds each.

1. Both are trained with the same K seeds, none of which is the sweep's own: the best was chosen with that one.
2. All are measured on the validation patients, and the difference told.
3. With 5 seeds or more, all are measured once on the test patients, which nothing before has looked at.

What is trained or measured is not trained or measured again, so that a confirmation goes on after a kill, and from K
seeds to more. A seed with which either fails is left out of both, and told. The test patients are looked at for one
trial of a sweep, and with the seeds of that time: if another is the best later, or other seeds are asked for, they are
not looked at again. To go on with more seeds until the difference is one would be to choose by them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from ray import tune
from ray.exceptions import RayError, RayTaskError

from deepcoro.config import Config
from deepcoro.config_section import flatten
from deepcoro.errors import ConfigError, RunStopped, TrainingError, UserError
from deepcoro.evaluation.rows import read_rows, rows_path
from deepcoro.evaluation.seeds import LEAST_SEEDS
from deepcoro.launch.confirm_report import (
    TESTED,
    Comparison,
    Pairs,
    differences,
    note_tested,
    read_confirmation,
    write_confirmation,
)
from deepcoro.launch.evaluate import evaluate
from deepcoro.launch.lock import hold
from deepcoro.launch.paths import absolute
from deepcoro.launch.resources import nodes, set_environment, start_ray
from deepcoro.launch.search import FIELDS
from deepcoro.launch.space import with_fields
from deepcoro.launch.sweep_board import write_line
from deepcoro.launch.sweep_end import attempt
from deepcoro.launch.sweep_resources import TrialShare, choose_concurrency
from deepcoro.launch.sweep_results import choose_best, read_study
from deepcoro.launch.sweep_trial import ERROR_FILE, TRACE_FILE, told_error
from deepcoro.launch.train import say, train, with_absolute_sources
from deepcoro.training.checkpoint import committed_steps
from deepcoro.training.hparams import TRIAL_FILE
from deepcoro.training.validation import read_results

FOLDER = "confirm"  # of the runs, in the sweep's
_LEAST_PAIRS = 2  # below that there is nothing to compare over, once a seed has failed
_ASKED = "asked"  # in a run's TRIAL_FILE: the config as it was wanted, before the data filled it in
_FREE = ("root", "data.path", "text_encoder.name", "resources.")  # how and where a run is trained, and not what it is
_SOURCES = ("video_encoder.pretrained", "text_encoder.pretrained", "masked_modeling.teacher", "distillation.teacher")


def confirm(folder: Path, num_seeds: int, max_concurrent: int | None = None) -> Path:
    """Confirm the best trial of the sweep in ``folder``, unless it is the default; returns the folder of the runs.

    Raises:
        UserError: no trial is complete.
        ConfigError: what lies there from before was trained with another config; what differs is told.
        ResourceError: the sweep runs, or is being confirmed by somebody else.
        TrainingError: runs were stopped, or so many failed that there is nothing to compare; the same command goes on.
    """
    set_environment()
    read_study(folder)  # refuses what is no sweep, before there is a lock in it
    with hold(folder):
        study = read_study(folder)
        best = choose_best(study)
        if best is None:
            raise UserError(f"{folder}: no trial ran to its end, so that there is nothing to confirm")
        default = Config.load(folder / "config.yaml")
        configs = {f"trial_{best.number:04d}": with_fields(default, best.user_attrs[FIELDS]), "default": default}
        if len({config.model_dump_json() for config in configs.values()}) == 1:
            say(f"{folder}: trial {best.number}, the best, is the default itself; there is nothing to confirm")
            return folder / FOLDER
        seeds = [default.seed + number for number in range(1, num_seeds + 1)]
        failed = _train_pairs(folder, best, configs, seeds, max_concurrent)
        whole = [seed for seed in seeds if not any(f"{kind}-seed_{seed}" in failed for kind in configs)]
        if failed and len(whole) < _LEAST_PAIRS:
            raise TrainingError(
                f"{len(failed)} runs of {folder / FOLDER} failed, and with {len(whole)} seeds left there is nothing to "
                f"compare: {'; '.join(f'{run}: {why}' for run, why in list(failed.items())[:3])}"
            )
        _measure(folder, best, list(study.metric_names or []), list(configs), seeds, whole, failed)
    return folder / FOLDER


def _train_pairs(
    folder: Path, best: FrozenTrial, configs: Mapping[str, Config], seeds: Sequence[int], max_concurrent: int | None
) -> dict[str, str]:
    """Train what is not trained yet; returns why a run failed, by its name."""
    runs = _configs_of_runs(folder, configs, seeds)
    for config in runs.values():
        _check_same(config)
    say(f"{folder}: confirming trial {best.number}: {len(seeds)} seeds of it and of the default")
    start_ray()
    failed = _train(folder, [config for config in runs.values() if not _is_trained(config)], max_concurrent)
    for name, why in failed.items():
        say(f"WARNING: {name} failed, and its seed counts for neither: {why}")
    tried = best.user_attrs[FIELDS]
    for name, config in runs.items():
        if name not in failed:
            attempt(
                f"the line of {name} in TensorBoard",
                partial(write_line, folder / FOLDER / name, config, tried, "confirmed", config.training.num_steps),
            )
    return failed


def _measure(
    folder: Path,
    best: FrozenTrial,
    objectives: Sequence[str],
    kinds: Sequence[str],
    seeds: Sequence[int],
    whole: Sequence[int],
    failed: Mapping[str, str],
) -> None:
    """Measure on val with the seeds that are whole; on test once, for one trial and with one list of seeds."""

    def pairs(of: Sequence[int]) -> Pairs:
        best_runs, default_runs = ([folder / FOLDER / f"{kind}-seed_{seed}" for seed in of] for kind in kinds)
        return Pairs(best_runs, default_runs)

    found = {"val": (whole, _measured(pairs(whole), objectives, "val"))}
    write_confirmation(folder, best.number, seeds, found, failed)
    known = read_confirmation(folder)
    tested = known.get(TESTED)
    if tested is None:
        if len(whole) < LEAST_SEEDS:
            return
        note_tested(folder, best.number, whole)
        tested = {"trial": best.number, "seeds": list(whole)}
    elif tested["trial"] != best.number:
        return
    if "test" not in known[str(best.number)]:  # also of a confirmation that was killed on the way
        found["test"] = (tested["seeds"], _measured(pairs(tested["seeds"]), objectives, "test"))
        write_confirmation(folder, best.number, seeds, found, failed)
    if tested["seeds"] != list(whole):
        say(
            f"{folder}: the test patients were looked at with seeds {', '.join(map(str, tested['seeds']))}, and are "
            "not looked at again with others: that would be to go on until the difference is as one likes"
        )


def _configs_of_runs(folder: Path, configs: Mapping[str, Config], seeds: Sequence[int]) -> dict[str, Config]:
    """By name of run, those of one seed beside each other: a confirmation that is killed has whole pairs."""
    found = {}
    for seed in seeds:
        for kind, config in configs.items():
            name = f"{kind}-seed_{seed}"
            where = {"root": str((folder / FOLDER).absolute()), "name": name, "seed": seed}
            found[name] = with_absolute_sources(
                config.merge(where | {"data": {"path": absolute(config.data.path, "data.path")}})
            )
    return found


def _is_trained(config: Config) -> bool:
    run, last = Path(config.root) / config.name, config.training.num_steps
    return last in committed_steps(run) and last in read_results(run)


def _check_same(config: Config) -> None:
    """Refuse a run of that name that was begun with another config than is wanted now."""
    run = Path(config.root) / config.name
    if not (run / "config.yaml").exists():
        return
    asked = json.loads((run / TRIAL_FILE).read_text()).get(_ASKED) if (run / TRIAL_FILE).exists() else None
    if asked is None:
        raise ConfigError(f"{run} does not say what it was asked to be: it is no run of a confirmation; move it away")
    before, now = dict(flatten(asked)), dict(flatten(config.model_dump(mode="json")))
    unlike = [
        f"  {key}: {before.get(key)} -> {now.get(key)}"
        for key in {**now, **before}
        if not key.startswith(_FREE) and _shown(key, before.get(key)) != _shown(key, now.get(key))
    ]
    if unlike:
        raise ConfigError(
            f"{run} was trained with another config than is to be confirmed now:\n"
            + "\n".join(unlike)
            + f"\nmove {run.parent} away, so that all of it is trained anew"
        )


def _shown(key: str, value: Any) -> Any:
    """A value as it is compared: a source of weights by its name, since it may lie elsewhere by now."""
    return Path(value).name if key in _SOURCES and isinstance(value, str) else value


def _train(folder: Path, configs: Sequence[Config], max_concurrent: int | None) -> dict[str, str]:
    """Train runs, as many at once as fit; returns the errors of those that raised one, by name.

    Raises:
        TrainingError: one came to no end and to no error, since it was stopped or its process died.
    """
    if not configs:
        return {}
    (folder / FOLDER).mkdir(exist_ok=True)
    for config in configs:  # an error of an earlier start says nothing of this one
        (folder / FOLDER / config.name / ERROR_FILE).unlink(missing_ok=True)
    number, line = choose_concurrency(configs[0], nodes(), max_concurrent, len(configs))
    say(f"{len(configs)} runs to train; {line}")
    described = {config.name: config.model_dump(mode="json") for config in configs}

    def trial(point: dict[str, Any]) -> None:
        train_run(Config(**described[point["run"]]))

    results = tune.Tuner(
        tune.with_resources(trial, {"CPU": TrialShare.of(configs[0]).driver_cpus}),
        param_space={"run": tune.grid_search(list(described))},
        tune_config=tune.TuneConfig(max_concurrent_trials=number, reuse_actors=False),
        run_config=tune.RunConfig(
            name=f"confirm-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=str((folder / ".ray").absolute()),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),  # workers are started again by the run itself
        ),
    ).fit()
    left = [config.name for config in configs if not _is_trained(config)]
    errors = {name: folder / FOLDER / name / ERROR_FILE for name in left}
    if stopped := [name for name, path in errors.items() if not path.exists()]:
        why = "; ".join({type(error).__name__ for error in results.errors}) or "they were stopped"
        raise TrainingError(
            f"{len(stopped)} runs of {folder / FOLDER} did not reach their end ({', '.join(stopped)}), and raised no "
            f"error of their own ({why}); the same command goes on with them"
        )
    return {name: path.read_text().strip() for name, path in errors.items()}


def train_run(config: Config) -> None:
    """Train one run, and leave in its folder what it was asked to be and, if it fails, why.

    No error is noted of a run that was stopped, or that lost the Ray that it stands on: it goes on with the next start.
    """
    run = Path(config.root) / config.name
    run.mkdir(parents=True, exist_ok=True)
    (run / TRIAL_FILE).write_text(json.dumps({_ASKED: config.model_dump(mode="json")}, indent=1) + "\n")
    try:
        train(config)
    except RunStopped:
        raise
    except Exception as raised:
        if not isinstance(raised, RayError) or isinstance(raised, RayTaskError):
            cause = raised.cause if isinstance(raised, RayTaskError) else None  # what our own code came to in a task
            (run / TRACE_FILE).write_text("".join(traceback.format_exception(raised)))
            (run / ERROR_FILE).write_text(told_error(cause if isinstance(cause, Exception) else raised) + "\n")
        raise


def _measured(pairs: Pairs, objectives: Sequence[str], split: str) -> Comparison:
    """Measure what has not been on ``split``, and tell the differences. The tables of each run are kept with it."""
    for run in (*pairs.best, *pairs.default):
        if not (steps := committed_steps(run)):
            raise UserError(f"{run} has no checkpoint to measure on {split}; train it again by --confirm")
        newest = steps[-1]
        if rows_path(run, split).exists() and int(read_rows(run, split)[1]["checkpoint"]) == newest:
            continue
        with (run / f"evaluation_{split}.txt").open("w") as told, contextlib.redirect_stdout(told):
            evaluate(run, split, num_neighbours=0)
        say(f"{run.name} measured on {split}")
    return differences(pairs, objectives, split)
