"""Schedulers that know of the trials of an earlier start, against schedulers that saw them all."""

from types import SimpleNamespace

import optuna
import pytest
from ray.tune.schedulers import TrialScheduler

from deepcoro.config import Config
from deepcoro.launch.sweep_stopping import make_scheduler

METRIC = "captioning/finding_f1"
CONFIG = Config().override(["training.num_steps=27", "training.evaluate_every=3", "optim.warmup_steps=2"])
CURVES = [[0.1 * place + 0.02 * step for step in range(9)] for place in range(5)]  # at steps 3, 6, ..., 27


class Trial:
    def __init__(self, trial_id):
        self.trial_id = trial_id


@pytest.fixture
def study():
    """Five ended trials, the last of them stopped early, and one that runs."""
    study = optuna.create_study(direction="maximize")
    for number, curve in enumerate(CURVES):
        trial = study.ask()
        kept = curve[:3] if number == 4 else curve
        for place, value in enumerate(kept):
            trial.report(value, 3 * (place + 1))
        if number == 4:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, kept[-1])
    study.ask().report(9.0, 3)
    return study


def told(stopping, curves):
    """A scheduler that saw these curves itself."""
    scheduler, controller = make_scheduler(stopping, METRIC, "max", CONFIG), SimpleNamespace(get_live_trials=list)
    for number, curve in enumerate(curves):
        trial = Trial(f"t{number}")
        scheduler.on_trial_add(controller, trial)
        results = [{"step": 3 * (place + 1), METRIC: value} for place, value in enumerate(curve)]
        for result in results:
            scheduler.on_trial_result(controller, trial, result)
        scheduler.on_trial_complete(controller, trial, results[-1])
    return scheduler


def verdicts(scheduler, curve):
    trial, controller = Trial("new"), SimpleNamespace(get_live_trials=list)
    scheduler.on_trial_add(controller, trial)
    said = []
    for place, value in enumerate(curve):
        said.append(scheduler.on_trial_result(controller, trial, {"step": 3 * (place + 1), METRIC: value}))
        if said[-1] == TrialScheduler.STOP:
            break
    return said


@pytest.mark.parametrize("stopping", ["asha", "median"])
@pytest.mark.parametrize("level", [0.0, 0.15, 0.35, 0.9])
def test_trials_of_an_earlier_start_count(study, stopping, level):
    curve = [level + 0.02 * step for step in range(9)]
    seen = told(stopping, [*CURVES[:4], CURVES[4][:3]])
    expected = verdicts(seen, curve)
    assert verdicts(make_scheduler(stopping, METRIC, "max", CONFIG, study), curve) == expected
    assert (expected[-1] == TrialScheduler.STOP) == (level < 0.2)


@pytest.mark.parametrize("stopping", ["asha", "median"])
def test_without_them_the_first_trial_is_compared_with_nobody(stopping):
    said = verdicts(make_scheduler(stopping, METRIC, "max", CONFIG), [0.0] * 9)
    assert TrialScheduler.STOP not in said


def test_none():
    assert make_scheduler("none", METRIC, "max", CONFIG) is None
