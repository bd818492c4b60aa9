"""What came of a sweep: ``sweep.json``, and ``best.yaml``, the config of its best trial.

Everything that is told of a sweep is told from ``sweep.json``: it stands in the folder whatever the study is stored in,
and is written anew whenever a trial ends.
"""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from deepcoro.config import Config
from deepcoro.errors import UserError
from deepcoro.launch.search import ERROR, RUN, TIMES, VALUES

FILE, BEST_FILE = "sweep.json", "best.yaml"
TRIALS = "trials"  # the folder of the trials' runs, in the sweep's
_ABOUT = "about"  # of a study that was read: what the sweep was asked


def write_results(study: optuna.Study, folder: Path, about: Mapping[str, Any] | None = None) -> Path:
    """``sweep.json``: each trial with its state, values, parameters, error, seconds and run; and ``best.yaml``.

    A ``best.yaml`` of before goes where there is none to write: it would be of a trial that is not the best.

    Args:
        about: what the sweep was asked: ``num_trials``, ``stopping``.
    """
    names = list(study.metric_names or [])
    front = {trial.number for trial in study.best_trials}  # of several objectives: the Pareto front
    rows = [_row(trial, names, trial.number in front) for trial in study.get_trials(deepcopy=False)]
    best = choose_best(study)
    content = {
        "objectives": dict(zip(names, [d.name.lower() for d in study.directions], strict=True)),
        **(about or {}),
        "best": best.number if best is not None else None,
        "trials": rows,
    }
    _write(folder / FILE, json.dumps(content, indent=1) + "\n")
    if best is None or write_best(folder, best) is None:
        (folder / BEST_FILE).unlink(missing_ok=True)
    return folder / FILE


def read_study(folder: Path) -> optuna.Study:
    """The study as ``sweep.json`` has it, in memory, with ``about`` among its attributes.

    Raises:
        UserError: there is no such file yet, or it cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        raise UserError(f"{path} is not there: no trial of this sweep has ended yet")
    try:
        content = json.loads(path.read_text())
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(study_name=folder.name, directions=list(content["objectives"].values()))
        with warnings.catch_warnings():  # of a name that may change in a later Optuna
            warnings.simplefilter("ignore")
            study.set_metric_names(list(content["objectives"]))
        study.set_user_attr(_ABOUT, {key: x for key, x in content.items() if key not in ("objectives", "trials")})
        for row in content["trials"]:
            study.add_trial(_trial(row, list(content["objectives"])))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error!r}); start the sweep with --resume, which writes it anew"
        ) from None
    return study


def about_sweep(study: optuna.Study) -> dict[str, Any]:
    """What ``sweep.json`` says of the whole sweep, of a study that was read from it."""
    return study.user_attrs.get(_ABOUT, {})


def choose_best(study: optuna.Study) -> FrozenTrial | None:
    """The complete trial with the best value; of several objectives the one of the Pareto front whose ranks among all
    complete trials have the lowest mean. The earliest among equals; ``None`` if no trial is complete."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return None
    front = {trial.number for trial in study.best_trials}
    ranks = mean_ranks(study)
    return min((t for t in complete if t.number in front), key=lambda trial: (ranks[trial.number], trial.number))


def mean_ranks(study: optuna.Study) -> dict[int, float]:
    """Of each complete trial, the mean over objectives of how many complete trials have a better value."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found = dict.fromkeys((trial.number for trial in complete), 0.0)
    for place, direction in enumerate(study.directions):
        sign = -1 if direction == optuna.study.StudyDirection.MAXIMIZE else 1
        for trial in complete:
            better = sum(sign * other.values[place] < sign * trial.values[place] for other in complete)
            found[trial.number] += better / len(study.directions)
    return found


def write_best(folder: Path, best: FrozenTrial) -> Path | None:
    """``best.yaml``: the whole config of a trial, with a name and a root of its own: ``deepcoro train`` takes it as an
    experiment, or by ``--config`` over any. The seed is the trial's. ``None`` where the trial's run is gone."""
    run = folder / TRIALS / str(best.user_attrs.get(RUN))
    if not (run / "config.yaml").exists() or not (folder / "config.yaml").exists():
        return None
    root = Config.load(folder / "config.yaml").root
    config = Config.load(run / "config.yaml").merge({"name": f"{folder.name}-best", "root": root})
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    _write(folder / BEST_FILE, f"# trial {best.number} of the sweep {folder.name}, run {run.name}\n{text}")
    return folder / BEST_FILE


def run_of(folder: Path, trial: FrozenTrial) -> Path | None:
    """The folder of a trial's run; ``None`` of a trial that never had one."""
    name = trial.user_attrs.get(RUN)
    return None if name is None else folder / TRIALS / name


def reached_step(trial: FrozenTrial) -> int | None:
    """The last step at which a trial was evaluated."""
    return (trial.user_attrs.get(VALUES) or {}).get("step")


def _row(trial: FrozenTrial, names: Sequence[str], is_best: bool) -> dict[str, Any]:
    complete = trial.state == TrialState.COMPLETE
    values = dict(zip(names, trial.values, strict=True)) if complete else trial.user_attrs.get(VALUES)
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "best": is_best,
        "values": values,
        "params": trial.params,
        "started": trial.datetime_start.isoformat() if trial.datetime_start is not None else None,
        "seconds": trial.duration.total_seconds() if trial.duration is not None else None,
        "times": trial.user_attrs.get(TIMES),
        "run": trial.user_attrs.get(RUN),
        "error": trial.user_attrs.get(ERROR),
        "attributes": trial.user_attrs,
        "distributions": {name: distribution_to_json(one) for name, one in trial.distributions.items()},
        "intermediate": trial.intermediate_values,
    }


def _trial(row: Mapping[str, Any], names: Sequence[str]) -> FrozenTrial:
    state = TrialState[row["state"].upper()]
    trial = create_trial(
        state=state,
        values=[row["values"][name] for name in names] if state == TrialState.COMPLETE else None,
        params=row["params"],
        distributions={name: json_to_distribution(text) for name, text in row["distributions"].items()},
        user_attrs=row["attributes"],
        intermediate_values={int(step): value for step, value in row["intermediate"].items()},
    )
    if row["started"] is not None:
        trial.datetime_start = datetime.fromisoformat(row["started"])
        if row["seconds"] is not None:
            trial.datetime_complete = trial.datetime_start + timedelta(seconds=row["seconds"])
    return trial


def _write(path: Path, text: str) -> None:
    """Beside, and then moved."""
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    scratch.write_text(text)
    scratch.rename(path)
