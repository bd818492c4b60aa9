"""Studies of sweeps that nobody ran: trials with known values, and the runs they would have left."""

import json
import warnings

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from deepcoro.launch.search import ERROR, FIELDS, NUM_STEPS, RUN, VALUES
from deepcoro.training.validation import write_result

MRR, F1, MSE = "retrieval/report_to_video/mrr", "captioning/finding_f1", "masked_modeling/mse"
LR, STRATEGY = "optim.lr", "masked_modeling.strategy"
_SPACE = {LR: FloatDistribution(1e-5, 1e-1, log=True), STRATEGY: CategoricalDistribution(["random", "tube"])}
OF = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def study_of(rows, objectives=((MRR, "maximize"),)):
    """A study of rows (state, values, learning rate): values by step, the last of which a complete one has; of several
    objectives tuples. A failed one has its error instead."""
    study = optuna.create_study(study_name="s", directions=[way for _, way in objectives])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.set_metric_names([name for name, _ in objectives])
    for number, (state, values, lr) in enumerate(rows):
        params = {LR: lr, STRATEGY: "tube" if number % 2 else "random"}
        attributes = {RUN: f"trial_{number:04d}", NUM_STEPS: 9, FIELDS: params}
        if state == "failed":
            attributes[ERROR], by_step = values, {}
        else:
            by_step = {step: value if isinstance(value, tuple) else (value,) for step, value in values.items()}
        if by_step:
            last = max(by_step)
            names = [name for name, _ in objectives]
            attributes[VALUES] = {"step": last, **dict(zip(names, by_step[last], strict=True))}
        study.add_trial(
            create_trial(
                state=OF[state],
                values=by_step[max(by_step)] if state == "complete" else None,
                params=params,
                distributions=_SPACE,
                user_attrs=attributes,
                intermediate_values={s: v[0] for s, v in by_step.items()} if len(objectives) == 1 else None,
            )
        )
    return study


def leave_runs(study, folder, config):
    """What the trials' runs would hold: a config, and the results of their evaluations with intervals."""
    config.save(folder / "config.yaml")
    for trial in study.trials:
        run = folder / "trials" / trial.user_attrs[RUN]
        run.mkdir(parents=True)
        if trial.user_attrs.get(ERROR) is not None:
            continue
        own = config.merge({"root": str(run.parent), "name": run.name, "optim": {"lr": trial.params[LR]}})
        own.save(run / "config.yaml")
        (run / "trial.json").write_text(json.dumps({"fields": trial.user_attrs[FIELDS]}))
        values = dict(trial.user_attrs[VALUES])
        step = values.pop("step")
        ends = {name: {"low": x - 0.125, "high": x + 0.125, "baseline": 0.0625} for name, x in values.items()}
        write_result(run, step, values, 1.0, own, ends)
