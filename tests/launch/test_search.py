"""Accounts of a sweep, held against what Optuna's own storage says when it is opened anew."""

import optuna
import pytest
from optuna.trial import TrialState
from ray import cloudpickle
from ray.tune.search import Searcher

from deepcoro.config import Config
from deepcoro.launch.search import FIELDS, RUN, Left, OptunaAskTell, num_ended
from deepcoro.launch.space import load_space
from deepcoro.launch.study import open_study

F1 = "captioning/finding_f1"
ONE = """
from ray import tune
SPACE = {"optim.lr": tune.loguniform(1e-5, 1e-3)}
OBJECTIVES = {"captioning/finding_f1": "max"}
START = [{"optim.lr": 6e-5}, {"optim.lr": 2e-4}]
"""
TWO = ONE.replace('F1"}', "").replace('"max"}', '"max", "masked_modeling/mse": "min"}')
FUNCTION = """
def SPACE(trial):
    if trial.suggest_categorical("use", [True, False]):
        return {"optim.lr": trial.suggest_float("rate", 1e-5, 1e-3, log=True)}
    return {}
OBJECTIVES = {"captioning/finding_f1": "max"}
START = [{"use": True, "rate": 2e-4}]
"""
CONFIG = Config().override(["training.num_steps=100", "optim.warmup_steps=5"])


BOTH = pytest.mark.parametrize("storage", ["journal", "sqlite"], indirect=True)


@pytest.fixture
def storage(request, tmp_path):
    """A journal file, or ``None`` for the default."""
    return None if getattr(request, "param", "journal") == "sqlite" else str(tmp_path / "journal.log")


@pytest.fixture
def sweep(tmp_path, storage):
    """``sweep(text of the space, num_trials, resume=False)`` -> a searcher over a study that lies on the disk."""

    def make(text=ONE, num_trials=8, resume=False, sampler=None, **more):
        (tmp_path / "space.py").write_text(text)
        space = load_space(tmp_path / "space.py")
        study = open_study("s", space, storage, tmp_path, num_trials=num_trials, sampler=sampler, seed=7, resume=resume)
        return OptunaAskTell(study, space, CONFIG, num_trials, **more)

    return make


@pytest.fixture
def stored(tmp_path, storage):
    """``stored()`` -> the trials that Optuna reads from the disk."""

    def read():
        if storage is None:
            where = f"sqlite:///{tmp_path / 'study.db'}"
        else:
            where = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
        return optuna.load_study(study_name="s", storage=where).trials

    return read


def result(step, value, **more):
    return {"step": step, F1: value, "training_iteration": step, **more}


@BOTH
def test_each_way_to_end_is_told_as_it_was(sweep, stored):
    error, times = "TrainingError: the loss is not finite", {"total": 3.0}
    left = {"trial_0000": Left({}, None, times), "trial_0002": Left({}, error)}
    searcher = sweep(left=lambda run: left.get(run, Left({})))
    asked = {name: searcher.suggest(name) for name in "abcd"}
    assert asked["a"][FIELDS] == {"optim.lr": 6e-5} and asked["b"][FIELDS] == {"optim.lr": 2e-4}  # START
    assert len({one[RUN] for one in asked.values()}) == 4
    for step, value in ((25, 0.1), (50, 0.3)):
        searcher.on_trial_result("a", result(step, value))
    searcher.on_trial_complete("a", result(100, 0.5))
    searcher.on_trial_result("b", result(25, 0.05))
    searcher.on_trial_complete("b", result(50, 0.04))  # where the scheduler stopped it
    searcher.on_trial_complete("c", result(25, 0.1))  # its process is sound, and takes the next trial
    a, b, c, d = stored()
    assert [trial.state for trial in (a, b, c, d)] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.RUNNING,
    ]
    assert a.value == 0.5 and a.intermediate_values == {25: 0.1, 50: 0.3, 100: 0.5}
    assert b.intermediate_values == {25: 0.05, 50: 0.04}  # the last one too, which OptunaSearch leaves out
    assert c.user_attrs["error"] == error and c.values is None
    assert a.user_attrs["times"] == times
    assert [trial.user_attrs["tune_id"] for trial in (a, b, c, d)] == list("abcd")
    assert [trial.user_attrs["run"] for trial in (a, b, c, d)] == [asked[name][RUN] for name in "abcd"]
    searcher.on_trial_complete("a", result(100, 0.9))  # told twice
    assert stored()[0].value == 0.5


def test_a_trial_whose_process_died_has_an_error_too(sweep, stored):
    searcher = sweep()
    searcher.suggest("a")
    searcher.on_trial_complete("a", error=True)
    assert "its process died" in stored()[0].user_attrs["error"]


def test_when_too_many_have_failed_no_other_begins(sweep, stored):
    searcher = sweep(num_trials=8, max_failures=2)
    for name in "abc":
        searcher.suggest(name)
    searcher.on_trial_complete("a", error=True)
    assert not searcher.gave_up and searcher.suggest("d") != Searcher.FINISHED
    searcher.on_trial_complete("b", error=True)
    assert searcher.gave_up and searcher.suggest("e") == Searcher.FINISHED
    searcher.on_trial_complete("c", result(100, 0.5))  # what runs, runs on
    assert stored()[2].state == TrialState.COMPLETE
    again = sweep(num_trials=8, max_failures=3, resume=True)
    again.take_over()
    assert not again.gave_up and again.suggest("f")[RUN] == "trial_0003"


@pytest.mark.parametrize("value", [float("nan"), None])
def test_a_last_evaluation_without_the_objective_is_a_failure(sweep, stored, value):
    searcher = sweep()
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"step": 100, **({} if value is None else {F1: value})})
    assert stored()[0].state == TrialState.FAIL and F1 in stored()[0].user_attrs["error"]


def test_a_point_that_the_config_refuses_costs_nothing_but_is_counted(sweep, stored):
    def_ = 'def SPACE(trial):\n    trial.suggest_float("captioning.dropout", 0.5, 1.5)\n'
    searcher = sweep(def_ + f'OBJECTIVES = {{"{F1}": "max"}}', num_trials=12, max_failures=1)
    asked = 0
    while (found := searcher.suggest(f"t{asked}")) != Searcher.FINISHED:
        assert found[FIELDS]["captioning.dropout"] < 1
        searcher.on_trial_complete(f"t{asked}", result(100, 0.5))
        asked += 1
    refused = [trial for trial in stored() if trial.state == TrialState.FAIL]
    assert 0 < asked < 12 and len(refused) == 12 - asked
    assert all("captioning.dropout" in trial.user_attrs["error"] for trial in refused)
    assert not any(RUN in trial.user_attrs for trial in refused)  # they have no folder


def test_several_objectives_in_their_order(sweep, stored):
    searcher = sweep(TWO)
    for name in "ab":
        searcher.suggest(name)
        searcher.on_trial_result(name, result(50, 0.2, **{"masked_modeling/mse": 0.9}))
    searcher.on_trial_complete("a", result(100, 0.5, **{"masked_modeling/mse": 0.8}))
    searcher.on_trial_complete("b", result(60, 0.5, **{"masked_modeling/mse": 0.8}))
    a, b = stored()
    assert a.values == [0.5, 0.8] and b.state == TrialState.PRUNED
    assert b.user_attrs["values"] == {"step": 60, F1: 0.5, "masked_modeling/mse": 0.8}


def test_the_sweep_ends_after_its_trials_and_not_before(sweep):
    searcher = sweep(num_trials=3)
    for name in "abc":
        assert searcher.suggest(name) != Searcher.FINISHED
    assert searcher.suggest("d") == Searcher.FINISHED
    searcher.on_trial_complete("a", result(100, 0.5))
    assert searcher.suggest("e") == Searcher.FINISHED


@pytest.mark.parametrize(
    ("storage", "text", "kills"),
    [("sqlite", ONE, 2), ("journal", ONE, 1), ("journal", TWO, 2), ("journal", FUNCTION, 2)],
    ids=["sqlite", "journal", "two objectives", "function"],
    indirect=["storage"],
)
def test_killed_in_between_nothing_is_lost_or_counted_twice(sweep, stored, text, kills):
    searcher, other = sweep(text), {"masked_modeling/mse": 0.8}
    asked = {name: searcher.suggest(name) for name in "abcde"}
    searcher.on_trial_complete("a", result(100, 0.1, **other))
    searcher.on_trial_result("b", result(50, 0.2, **other))
    searcher.study.ask()  # killed after the ask, before it was even given a name
    on_disk = {
        asked["b"][RUN]: Left({50: result(50, 0.2, **other), 100: result(100, 0.3, **other)}),  # ended, not told
        asked["c"][RUN]: Left({50: result(50, 0.4, **other)}),
        asked["d"][RUN]: Left({}, error="TrainingError: not finite"),
    }
    for kill in range(kills):
        del searcher  # SIGKILL
        searcher = sweep(text, resume=True, left=lambda run: on_disk.get(run, Left({})))
        done = searcher.take_over()
        again = [searcher.suggest(f"again {kill} {number}") for number in range(3)]
    assert done[asked["c"][RUN]] == done[asked["e"][RUN]] == "goes on"
    assert [one[RUN] for one in again] == [asked["c"][RUN], asked["e"][RUN], "trial_0005"]
    assert [one[FIELDS] for one in again[:2]] == [asked["c"][FIELDS], asked["e"][FIELDS]]
    assert len(stored()) == 6 and all(set(trial.params) for trial in stored())
    _, b, c, d, *_ = stored()
    assert b.state == TrialState.COMPLETE and b.values[0] == 0.3
    assert d.state == TrialState.FAIL and d.user_attrs["error"] == "TrainingError: not finite"
    if text == ONE:
        assert c.intermediate_values == {50: 0.4}  # that the killed sweep was not told
    for number in range(3):
        searcher.on_trial_complete(f"again {kill} {number}", result(100, 0.5, **other))
    number = 0
    while (new := searcher.suggest(f"more {number}")) != Searcher.FINISHED:
        assert new[RUN] not in {one[RUN] for one in (*asked.values(), *again)}
        searcher.on_trial_complete(f"more {number}", result(100, 0.5, **other))
        number += 1
    # As many trials as the sweep has, each with a run of its own.
    assert len(stored()) == 8 == num_ended(searcher.study) and all(trial.state.is_finished() for trial in stored())
    assert {trial.user_attrs["run"] for trial in stored()} == {f"trial_{n:04d}" for n in range(8)}


def test_what_tune_let_go_of_is_settled_or_goes_on(sweep, stored):
    """Tune tells nothing of the trials that it stops when the time is up."""
    left = {
        "trial_0001": Left({25: result(25, 0.2), 100: result(100, 0.6)}),
        "trial_0002": Left({}, "TrainingError: no"),
    }
    searcher = sweep(left=lambda run: left.get(run, Left({})))
    asked = {name: searcher.suggest(name) for name in "abcd"}
    searcher.on_trial_complete("a", result(100, 0.5))
    searcher.on_trial_result("d", result(25, 0.1))
    expected = {"trial_0001": "complete", "trial_0002": "failed", "trial_0003": "goes on"}
    assert searcher.take_over() == expected
    a, b, c, d = stored()
    assert (a.state, b.state, c.state) == (TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL)
    assert b.value == 0.6 and d.state == TrialState.RUNNING and d.intermediate_values == {25: 0.1}
    assert searcher.suggest("again")[RUN] == asked["d"][RUN]
    searcher.on_trial_complete("again", result(100, 0.7))
    assert stored()[3].value == 0.7 and not searcher.take_over()


def test_first_points_that_were_waiting_wait_still(sweep):
    searcher = sweep(num_trials=4)
    first = searcher.suggest("a")
    searcher = sweep(num_trials=4, resume=True)
    searcher.take_over()
    rates = [searcher.suggest(name)[FIELDS]["optim.lr"] for name in "bc"]
    assert rates == [first[FIELDS]["optim.lr"], 2e-4]


def test_a_first_point_that_was_lost_before_it_had_a_name_comes_again(sweep):
    searcher = sweep(num_trials=4)
    searcher.study.ask()  # and killed
    searcher = sweep(num_trials=4, resume=True)
    assert searcher.take_over() == {"trial_0000": "goes on"}
    assert [searcher.suggest(name)[FIELDS]["optim.lr"] for name in "ab"] == [6e-5, 2e-4]


def test_a_sweep_that_goes_on_does_not_draw_its_first_points_again(sweep):
    text = ONE.replace("START", "OTHER")
    searcher = sweep(text, sampler="random")
    drawn = []
    for name in "abc":
        drawn.append(searcher.suggest(name)[FIELDS]["optim.lr"])
        searcher.on_trial_complete(name, result(100, 0.5))
    searcher = sweep(text, sampler="random", resume=True)
    assert not set(drawn) & {searcher.suggest(name)[FIELDS]["optim.lr"] for name in "def"}


def test_tune_may_carry_it_elsewhere(sweep, stored):
    searcher = cloudpickle.loads(cloudpickle.dumps(sweep(FUNCTION)))
    assert searcher.suggest("a")[FIELDS] == {"optim.lr": 2e-4}
    searcher.on_trial_complete("a", result(100, 0.5))
    assert stored()[0].value == 0.5
