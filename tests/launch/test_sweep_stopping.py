"""Schedulers that know of the trials of an earlier start, against schedulers that saw them all."""

from types import SimpleNamespace

import optuna
import pytest
from ray.tune.experiment import Trial as RayTrial
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


def test_an_ended_trial_that_the_median_would_have_stopped_is_told_whole():
    """The values of trial 3 are below the median until its last, and it ran to its end before the others had."""
    study = optuna.create_study(direction="maximize")
    for curve in ([0.5, 0.6, 0.7],) * 3 + ([0.1, 0.3, 0.8],):
        trial = study.ask()
        for place, value in enumerate(curve):
            trial.report(value, 3 * (place + 1))
        study.tell(trial, curve[-1])
    scheduler = make_scheduler("median", METRIC, "max", CONFIG, study)
    # Means to step 9 are 0.6 three times and 0.4: the median is 0.6.
    assert verdicts(scheduler, [0.55, 0.55, 0.55])[-1] == TrialScheduler.STOP
    # To step 6 they are 0.55 three times and 0.2: the median is 0.55; and to step 3 0.5.
    assert (
        verdicts(make_scheduler("median", METRIC, "max", CONFIG, study), [0.52, 0.56]) == [TrialScheduler.CONTINUE] * 2
    )


def test_the_median_rule_pauses_nobody():
    waits = SimpleNamespace(status=RayTrial.PENDING)
    controller, scheduler = (
        SimpleNamespace(get_live_trials=lambda: [waits]),
        make_scheduler("median", METRIC, "max", CONFIG),
    )
    trial = Trial("first")
    scheduler.on_trial_add(controller, trial)
    for step in (3, 6, 9):
        assert scheduler.on_trial_result(controller, trial, {"step": step, METRIC: 0.1}) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("last", [{"step": 9}, {"step": 9, METRIC: float("nan")}, {}])
def test_a_last_evaluation_without_the_metric_is_left_out_of_the_median(last):
    scheduler, controller = make_scheduler("median", METRIC, "max", CONFIG), SimpleNamespace(get_live_trials=list)
    for number in range(4):
        trial = Trial(f"t{number}")
        scheduler.on_trial_add(controller, trial)
        for step in (3, 6):
            scheduler.on_trial_result(controller, trial, {"step": step, METRIC: 0.5})
        assert scheduler.on_trial_result(controller, trial, dict(last)) == TrialScheduler.CONTINUE
        scheduler.on_trial_complete(controller, trial, dict(last))
    assert verdicts(scheduler, [0.6, 0.6, 0.6]) == [TrialScheduler.CONTINUE] * 3
    assert verdicts(scheduler, [0.4])[-1] == TrialScheduler.STOP


def test_a_last_value_that_is_told_again_counts_once():
    """Tune tells it as a result, again when the function has returned, and as the end of the trial. Means of 0.2 and
    0.5 to step 6 are 0.35; with the last value three times over they would be 0.425."""
    scheduler, controller = make_scheduler("median", METRIC, "max", CONFIG), SimpleNamespace(get_live_trials=list)
    for number in range(3):
        trial = Trial(f"t{number}")
        scheduler.on_trial_add(controller, trial)
        for step, value in ((3, 0.2), (6, 0.5), (6, 0.5)):
            scheduler.on_trial_result(controller, trial, {"step": step, METRIC: value})
        scheduler.on_trial_complete(controller, trial, {"step": 6, METRIC: 0.5})
    assert verdicts(scheduler, [0.3, 0.4]) == [TrialScheduler.CONTINUE] * 2
