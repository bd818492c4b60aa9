"""Which study a sweep is, where it lies, and by which sampler it is searched."""

import optuna
import pytest

from deepcoro.errors import ConfigError
from deepcoro.launch.space import load_space
from deepcoro.launch.study import look_for_study, make_sampler, open_storage, open_study, population_of, samplers, shown

ONE = """
from ray import tune
SPACE = {"optim.lr": tune.loguniform(1e-5, 1e-3)}
OBJECTIVES = {"captioning/finding_f1": "max"}
"""


@pytest.fixture
def space(tmp_path):
    def make(text=ONE):
        (tmp_path / "space.py").write_text(text)
        return load_space(tmp_path / "space.py")

    return make


@pytest.mark.parametrize(
    ("name", "objectives", "kind"),
    [
        (None, 1, optuna.samplers.TPESampler),
        (None, 3, optuna.samplers.NSGAIISampler),
        ("TPE", 2, optuna.samplers.TPESampler),
        ("random", 2, optuna.samplers.RandomSampler),
        ("nsga2", 2, optuna.samplers.NSGAIISampler),
        ("NSGAIISampler", 1, optuna.samplers.NSGAIISampler),
        ("qmc", 1, optuna.samplers.QMCSampler),
        ("bruteforce", 1, optuna.samplers.BruteForceSampler),
    ],
)
def test_samplers_by_name(name, objectives, kind):
    assert type(make_sampler(name, 0, objectives)) is kind


def test_what_is_no_sampler_or_needs_more_than_a_seed():
    assert {"tpe", "random", "nsgaii", "nsgaiii", "gp", "cmaes", "qmc"} <= samplers().keys()
    for name in ("best", "grid", "partialfixed"):
        with pytest.raises(ConfigError, match="there is no sampler .* Optuna has bruteforce, cmaes"):
            make_sampler(name, 0, 1)


def test_a_sampler_of_one_objective_is_refused_several():
    with pytest.raises(ConfigError, match="cmaes (does not go with 2 objectives|needs a package)"):
        make_sampler("cmaes", 0, 2)


def test_a_generation_is_a_part_of_the_sweep(space, tmp_path):
    assert [population_of(n) for n in (1, 8, 40, 100, 1000)] == [4, 4, 10, 25, 50]
    both = space(ONE.replace('"max"}', '"max", "masked_modeling/mse": "min"}'))
    study = open_study("s", both, None, tmp_path, num_trials=40)
    assert study.sampler.population_size == 10
    again = open_study("s", both, None, tmp_path, num_trials=80, resume=True)
    assert again.sampler.population_size == 10  # generations of one size


def test_optuna_reads_the_names_and_directions(space, tmp_path):
    open_study("s", space(), None, tmp_path / "sweep", num_trials=4)
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    assert study.metric_names == ["captioning/finding_f1"]
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE


def test_two_sweeps_of_one_name_and_none_to_go_on_with(space, tmp_path):
    with pytest.raises(ConfigError, match="has no sweep 's' to go on with"):
        open_study("s", space(), None, tmp_path, num_trials=4, resume=True)
    open_study("s", space(), None, tmp_path, num_trials=4)
    with pytest.raises(ConfigError, match="has a sweep 's' already; go on with it by --resume"):
        open_study("s", space(), None, tmp_path, num_trials=4)
    open_study("other", space(), None, tmp_path, num_trials=4)


TWO_POINTS = ONE + 'START = [{"optim.lr": 6e-5}, {"optim.lr": 2e-4}]'


def kill_in_the_making(points, folder, monkeypatch, name, calls_before):
    """Begin the sweep "s", and end at the call of the study's ``name`` that comes after ``calls_before`` others."""
    calls, real = [], getattr(optuna.Study, name)

    def killed(study, *args, **more):
        if len(calls) == calls_before:
            raise KeyboardInterrupt
        calls.append(1)
        return real(study, *args, **more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(optuna.Study, name, killed)
        open_study("s", points, None, folder, num_trials=4)


@pytest.mark.parametrize(
    ("name", "calls_before"),
    [("set_metric_names", 0), ("set_user_attr", 0), ("enqueue_trial", 0), ("enqueue_trial", 1)],
)
def test_killed_while_the_study_was_made_it_is_made_whole(space, tmp_path, monkeypatch, name, calls_before):
    points = space(TWO_POINTS)
    kill_in_the_making(points, tmp_path, monkeypatch, name, calls_before)
    for _ in range(2):
        study = open_study("s", points, None, tmp_path, num_trials=4, resume=True)
        assert study.metric_names == ["captioning/finding_f1"]
        assert [trial.system_attrs["fixed_params"]["optim.lr"] for trial in study.trials] == [6e-5, 2e-4]


@pytest.mark.parametrize(
    ("name", "calls_before"), [("set_metric_names", 0), ("enqueue_trial", 1), ("set_user_attr", 1)]
)
def test_killed_while_the_study_was_made_it_can_be_begun_anew(space, tmp_path, monkeypatch, name, calls_before):
    """With other points, and another direction, than the study that was not made to its end."""
    kill_in_the_making(space(TWO_POINTS), tmp_path, monkeypatch, name, calls_before)
    other = space(ONE.replace('"max"', '"min"') + 'START = [{"optim.lr": 3e-4}]')
    assert look_for_study("s", other, None, tmp_path, resume=False, begun=False) is None
    study = open_study("s", other, None, tmp_path, num_trials=4)
    assert [trial.system_attrs["fixed_params"]["optim.lr"] for trial in study.trials] == [3e-4]
    with pytest.raises(ConfigError, match="has a sweep 's' already"):
        open_study("s", other, None, tmp_path, num_trials=4)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_look_makes_nothing_and_tells_what_would_be_refused(space, tmp_path, kind):
    storage = None if kind == "sqlite" else str(tmp_path / "new" / "journal.log")
    folder, one = tmp_path / "sweep", space()
    before = sorted(tmp_path.rglob("*"))
    assert look_for_study("s", one, storage, folder, resume=False, begun=False) is None
    with pytest.raises(ConfigError, match="has no sweep 's' to go on with"):
        look_for_study("s", one, storage, folder, resume=True, begun=True)
    assert sorted(tmp_path.rglob("*")) == before
    open_study("s", one, storage, folder, num_trials=4).ask()
    with pytest.raises(ConfigError, match="has a sweep 's' already"):
        look_for_study("s", one, storage, folder, resume=False, begun=False)
    assert look_for_study("other", one, storage, folder, resume=False, begun=False) is None
    assert len(look_for_study("s", one, storage, folder, resume=True, begun=True).trials) == 1
    with pytest.raises(ConfigError, match="searched another space"):
        look_for_study("s", space(ONE.replace("1e-3", "1e-2")), storage, folder, resume=True, begun=True)


def test_killed_before_it_had_a_study(space, tmp_path):
    assert open_study("s", space(), None, tmp_path, num_trials=4, resume=True, begun=False).trials == []


def test_a_changed_space_is_no_way_to_go_on(space, tmp_path):
    open_study("s", space(), None, tmp_path, num_trials=4)
    open_study("s", space(ONE + "# a comment"), None, tmp_path, num_trials=4, resume=True)
    with pytest.raises(ConfigError, match="searched another space .*\n  optim.lr: 1e-05 to 0.001, log -> .*0.01, log"):
        open_study("s", space(ONE.replace("1e-3", "1e-2")), None, tmp_path, num_trials=4, resume=True)
    for other in ('{"captioning/readable": "max"}', '{"captioning/finding_f1": "min"}'):
        changed = ONE.replace('{"captioning/finding_f1": "max"}', other)
        with pytest.raises(ConfigError, match="has the objectives"):
            open_study("s", space(changed), None, tmp_path, num_trials=4, resume=True)


@pytest.mark.parametrize(
    "storage",
    [
        "postgresql://me:secret@127.0.0.1:1/none",
        "nosuch://me:secret@somewhere/none",
        "sqlite:////proc/none/study.db",
        "/proc/none/journal.log",
        "://me:secret",
    ],
)
def test_a_storage_that_cannot_be_reached_is_told_without_its_password(storage, tmp_path):
    with pytest.raises(ConfigError, match="cannot be used: ") as caught:
        open_storage(storage, tmp_path)
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be used: ") as caught:
        look_for_study("s", None, storage, tmp_path, resume=False, begun=False)
    assert "secret" not in str(caught.value)
    assert "secret" not in shown(storage)
