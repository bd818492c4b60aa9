"""``deepcoro sweep ... --confirm K``: the best trial of a sweep and its default trained anew, with K seeds each.

1. Both are trained with the same K seeds, none of which is the sweep's own: the best was chosen with that one.
2. All are measured on the validation patients, and the difference told.
3. With 5 seeds or more, all are measured once on the test patients, which nothing before has looked at.

What is trained or measured is not trained or measured again, so that a confirmation goes on after a kill, and from K
seeds to more. The test patients are looked at for one trial of a sweep: if another is the best later, they are not.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from deepcoro.config import Config
from deepcoro.errors import TrainingError, UserError
from deepcoro.evaluation.rows import read_rows, rows_path
from deepcoro.evaluation.seeds import LEAST_SEEDS
from deepcoro.launch.confirm_report import (
    TESTED,
    Pairs,
    differences,
    note_tested,
    read_confirmation,
    write_confirmation,
)
from deepcoro.launch.evaluate import evaluate
from deepcoro.launch.paths import absolute
from deepcoro.launch.resources import nodes, set_environment, start_ray
from deepcoro.launch.search import FIELDS
from deepcoro.launch.space import with_fields
from deepcoro.launch.sweep_board import write_line
from deepcoro.launch.sweep_resources import TrialShare, choose_concurrency
from deepcoro.launch.sweep_results import choose_best, read_study
from deepcoro.launch.train import say, train, with_absolute_sources
from deepcoro.training.checkpoint import committed_steps
from deepcoro.training.hparams import TRIAL_FILE
from deepcoro.training.validation import read_results

FOLDER = "confirm"  # of the runs, in the sweep's


def confirm(folder: Path, num_seeds: int, max_concurrent: int | None = None) -> Path:
    """Confirm the best trial of the sweep in ``folder``, unless it is the default; returns the folder of the runs.

    Raises:
        UserError: no trial is complete.
        TrainingError: a run failed; the same command goes on with the others.
    """
    set_environment()
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
    runs = _configs_of_runs(folder, configs, seeds)
    say(f"{folder}: confirming trial {best.number}: {num_seeds} seeds of it and of the default")
    start_ray()
    _train(folder, [config for config in runs.values() if not _is_trained(config)], max_concurrent)
    for config in runs.values():
        where = folder / FOLDER / config.name
        write_line(where, config, best.user_attrs[FIELDS], "confirmed", config.training.num_steps)
    names = [[folder / FOLDER / f"{kind}-seed_{seed}" for seed in seeds] for kind in configs]
    pairs, objectives = Pairs(*names), list(study.metric_names or [])
    found = {"val": _measured(pairs, objectives, "val")}
    write_confirmation(folder, best.number, seeds, found)
    tested = read_confirmation(folder).get(TESTED)
    if num_seeds >= LEAST_SEEDS and tested in (None, best.number):
        note_tested(folder, best.number)
        found["test"] = _measured(pairs, objectives, "test")
        write_confirmation(folder, best.number, seeds, found)
    return folder / FOLDER


def _configs_of_runs(folder: Path, configs: dict[str, Config], seeds: Sequence[int]) -> dict[str, Config]:
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


def _train(folder: Path, configs: Sequence[Config], max_concurrent: int | None) -> None:
    """Train what is not trained yet, as many at once as fit."""
    if not configs:
        return
    (folder / FOLDER).mkdir(exist_ok=True)
    number, line = choose_concurrency(configs[0], nodes(), max_concurrent, len(configs))
    say(f"{len(configs)} runs to train; {line}")
    described = {config.name: config.model_dump(mode="json") for config in configs}

    def trial(point: dict[str, Any]) -> None:
        config = Config(**described[point["run"]])
        run = Path(config.root) / config.name
        run.mkdir(parents=True, exist_ok=True)
        (run / TRIAL_FILE).write_text("{}\n")
        train(config)

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
    if left := [config.name for config in configs if not _is_trained(config)]:
        why = "; ".join(str(error).strip().splitlines()[-1] for error in results.errors[:3])
        raise TrainingError(f"{len(left)} runs of {folder / FOLDER} did not reach their end ({', '.join(left)}): {why}")


def _measured(pairs: Pairs, objectives: Sequence[str], split: str) -> dict[str, Any]:
    """Measure what has not been on ``split``, and tell the differences. The tables of each run are kept with it."""
    for run in (*pairs.best, *pairs.default):
        newest = committed_steps(run)[-1]
        if rows_path(run, split).exists() and int(read_rows(run, split)[1]["checkpoint"]) == newest:
            continue
        with (run / f"evaluation_{split}.txt").open("w") as told, contextlib.redirect_stdout(told):
            evaluate(run, split, num_neighbours=0)
        say(f"{run.name} measured on {split}")
    return dict(differences(pairs, objectives, split))
