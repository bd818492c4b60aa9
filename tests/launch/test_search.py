"""Accounts of a sweep, held against what Optuna's own storage says when it is opened anew."""

import optuna
import pytest
from optuna.trial import TrialState
from ray import cloudpickle
from ray.tune.search import Searcher

from deepcoro.config import Config
from deepcoro.launch.search import FIELDS, LOST, RUN, Ended, OptunaAskTell, num_ended
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
    searcher = sweep(error_of={"c": "TrainingError: the loss is not finite"}.get)
    asked = {name: searcher.suggest(name) for name in "abcd"}
    assert asked["a"][FIELDS] == {"optim.lr": 6e-5} and asked["b"][FIELDS] == {"optim.lr": 2e-4}  # START
    assert len({one[RUN] for one in asked.values()}) == 4
    for step, value in ((25, 0.1), (50, 0.3)):
        searcher.on_trial_result("a", result(step, value))
    searcher.on_trial_complete("a", result(100, 0.5))
    searcher.on_trial_result("b", result(25, 0.05))
    searcher.on_trial_complete("b", result(50, 0.04))  # where the scheduler stopped it
    searcher.on_trial_complete("c", error=True)
    a, b, c, d = stored()
    assert [trial.state for trial in (a, b, c, d)] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.RUNNING,
    ]
    assert a.value == 0.5 and a.intermediate_values == {25: 0.1, 50: 0.3, 100: 0.5}
    assert b.intermediate_values == {25: 0.05, 50: 0.04}  # the last one too, which OptunaSearch leaves out
    assert c.user_attrs["error"] == "TrainingError: the loss is not finite" and c.values is None
    assert [trial.user_attrs["tune_id"] for trial in (a, b, c, d)] == list("abcd")
    assert [trial.user_attrs["run"] for trial in (a, b, c, d)] == [asked[name][RUN] for name in "abcd"]
    searcher.on_trial_complete("a", result(100, 0.9))  # told twice
    assert stored()[0].value == 0.5


def test_a_trial_that_died_in_silence_has_an_error_too(sweep, stored):
    searcher = sweep()
    searcher.suggest("a")
    searcher.on_trial_complete("a", error=True)
    assert "without a message" in stored()[0].user_attrs["error"]


@pytest.mark.parametrize("value", [float("nan"), None])
def test_a_last_evaluation_without_the_objective_is_a_failure(sweep, stored, value):
    searcher = sweep()
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"step": 100, **({} if value is None else {F1: value})})
    assert stored()[0].state == TrialState.FAIL and F1 in stored()[0].user_attrs["error"]


def test_a_point_that_the_config_refuses_costs_nothing_but_is_counted(sweep, stored):
    def_ = 'def SPACE(trial):\n    trial.suggest_float("captioning.dropout", 0.5, 1.5)\n'
    searcher = sweep(def_ + f'OBJECTIVES = {{"{F1}": "max"}}', num_trials=12)
    asked = 0
    while (found := searcher.suggest(f"t{asked}")) != Searcher.FINISHED:
        assert found[FIELDS]["captioning.dropout"] < 1
        searcher.on_trial_complete(f"t{asked}", result(100, 0.5))
        asked += 1
    refused = [trial for trial in stored() if trial.state == TrialState.FAIL]
    assert 0 < asked < 12 and len(refused) == 12 - asked
    assert all("captioning.dropout" in trial.user_attrs["error"] for trial in refused)


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
        asked["b"][RUN]: Ended({50: result(50, 0.2, **other), 100: result(100, 0.3, **other)}),  # ended, not told
        asked["c"][RUN]: Ended({50: result(50, 0.4, **other)}),
        asked["d"][RUN]: Ended({}, error="TrainingError: not finite"),
    }
    for _ in range(kills):
        del searcher  # SIGKILL
        searcher = sweep(text, resume=True)
        done = searcher.reconcile(on_disk)
        assert not [trial for trial in stored() if trial.state == TrialState.RUNNING]
        again = [searcher.suggest(f"again {number}") for number in range(3)]
    assert done[asked["c"][RUN]] == done[asked["e"][RUN]] == "asked again"
    before = {one[RUN]: one[FIELDS] for one in (asked["c"], asked["e"])}
    assert {one[RUN]: one[FIELDS] for one in again if one[RUN] in before} == before
    told = {trial.user_attrs.get("run"): trial for trial in stored() if trial.user_attrs.get("error") != LOST}
    assert told[asked["b"][RUN]].state == TrialState.COMPLETE and told[asked["b"][RUN]].values[0] == 0.3
    assert told[asked["d"][RUN]].user_attrs["error"] == "TrainingError: not finite"
    for number in range(3):
        searcher.on_trial_complete(f"again {number}", result(100, 0.5, **other))
    number = 0
    while searcher.suggest(f"more {number}") != Searcher.FINISHED:
        searcher.on_trial_complete(f"more {number}", result(100, 0.5, **other))
        number += 1
    ended = [trial for trial in stored() if trial.user_attrs.get("error") != LOST]
    assert len(ended) == 8 == num_ended(searcher.study) and all(trial.state.is_finished() for trial in ended)
    assert len({trial.user_attrs["run"] for trial in ended}) == 8


def test_first_points_that_were_waiting_wait_still(sweep):
    searcher = sweep(num_trials=4)
    first = searcher.suggest("a")
    searcher = sweep(num_trials=4, resume=True)
    searcher.reconcile({})
    rates = [searcher.suggest(name)[FIELDS]["optim.lr"] for name in "bc"]
    assert sorted(rates) == [first[FIELDS]["optim.lr"], 2e-4]


def test_a_first_point_that_was_lost_before_it_had_a_name_comes_again(sweep):
    searcher = sweep(num_trials=4)
    searcher.study.ask()  # and killed
    searcher = sweep(num_trials=4, resume=True)
    assert searcher.reconcile({}) == {}
    assert sorted(searcher.suggest(name)[FIELDS]["optim.lr"] for name in "ab") == [6e-5, 2e-4]


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
