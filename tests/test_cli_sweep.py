"""What ``deepcoro sweep`` is told, and what it tells before it does anything."""

import pytest
from click.testing import CliRunner

from deepcoro.cli import main

SPACE = """
from ray import tune
SPACE = {"optim.lr": tune.loguniform(1e-5, 1e-3), "masked_modeling.strategy": tune.choice(["random", "tube"])}
OBJECTIVES = {"captioning/finding_f1": "max", "retrieval/report_to_video/mrr": "max"}
START = [{"optim.lr": 6e-5}]
"""
EXPERIMENT = """
from deepcoro.config import Config
def experiment():
    return Config(name="tried")
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    (tmp_path / "rates.py").write_text(SPACE)
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return ["sweep", "experiment.py", "--space", "rates.py", "--num-trials", "12"]


@pytest.fixture
def asked(monkeypatch):
    made = []
    monkeypatch.setattr("deepcoro.launch.sweep.sweep", made.append)
    return made


def run(*args, code=0):
    done = CliRunner().invoke(main, list(map(str, args)))
    assert done.exit_code == code, done.output + done.stderr
    return done.output + done.stderr


def test_what_a_sweep_is_told(files, asked):
    run(*files)
    run(*files, "--metric", "captioning/finding_f1", "--max-concurrent", 3, "--time-budget", "1.5h", "--seed", 4)
    run(
        *files, "--sampler", "random", "--storage", "j.log", "--stop", "asha", "--resume", "name=mine", "optim.eps=1e-7"
    )
    first, second, third = asked
    assert first.config.name == "tried-rates" and first.num_trials == 12
    assert list(first.space.objectives) == ["captioning/finding_f1", "retrieval/report_to_video/mrr"]
    assert (first.max_concurrent, first.time_budget, first.seed, first.stopping, first.resume) == (None,) * 2 + (
        0,
        "none",
        False,
    )
    assert second.space.objectives == {"captioning/finding_f1": "max"}
    assert (second.max_concurrent, second.time_budget, second.seed) == (3, 5400.0, 4)
    assert (third.sampler, third.storage, third.stopping, third.resume) == ("random", "j.log", "asha", True)
    assert third.config.name == "mine" and third.config.optim.eps == 1e-7


def test_metrics_of_the_users_own(files, asked):
    run(*files, "--metric", "masked_modeling/mse=min", "--metric", "captioning/readable=max")
    assert asked[0].space.objectives == {"masked_modeling/mse": "min", "captioning/readable": "max"}
    assert "say captioning/bleu=max or captioning/bleu=min" in run(*files, "--metric", "captioning/bleu", code=2)
    assert "'up' must be max or min" in run(*files, "--metric", "captioning/bleu=up", code=2)


@pytest.mark.parametrize("time", ["8", "h", "0h", "1 week"])
def test_a_time_that_is_none(files, time):
    assert "is no time such as 8h" in run(*files, "--time-budget", time, code=2)


@pytest.fixture
def machine(monkeypatch):
    """A machine of 2 CPUs on which a step takes 0.5 s, without starting anything."""
    monkeypatch.setattr("deepcoro.launch.resources.start_ray", lambda: None)
    monkeypatch.setattr("deepcoro.launch.sweep.nodes", lambda: [{"CPU": 2.0}])
    monkeypatch.setattr("deepcoro.launch.dry_run.seconds_of_run", lambda config: (3600.0, "measured by nobody"))


def test_a_dry_run_tells_space_budget_resources_and_time(files, machine, tmp_path):
    said = run(*files, "--dry-run", "--max-concurrent", 4, "resources.cpus_per_worker=0.6", "training.num_steps=7200")
    for line in (
        "optim.lr                  1e-05 to 0.001, log",
        "masked_modeling.strategy  random | tube",
        "captioning/finding_f1, max",
        "12 trials of 7200 steps; stopped early: by none",
        "0.99 CPUs: driver 0.05 + 1 workers x 0.6 + a data task of 0.34",
        "2 at once, and not the 4 asked for",
        "1:00:00 a trial that trains to its end, without evaluations; measured by nobody",
        "6:00:00 in all, 2 at once",
        "it would start",
    ):
        assert line in said
    assert "3:00:00 in all" in run(*files, "--dry-run", "--time-budget", "3h", "resources.cpus_per_worker=0.6")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiment.py", "rates.py"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--metric", "loss/total=min"], "a training loss"),
        (["--metric", "captioning/finding_f2=max"], "nearest metric of this run is 'captioning/finding_f1'"),
        (["--stop", "asha"], "choose one by --metric"),
        (["--stop", "asha", "--metric", "captioning/finding_f1", "training.evaluate_every=null"], "needs evaluations"),
        (["--sampler", "best"], "there is no sampler 'best'"),
        (["resources.cpus_per_worker=2"], "not even one trial fits"),
        (["evaluation.asynchronous=true"], "evaluation.asynchronous=false"),
    ],
)
def test_a_dry_run_refuses_what_a_sweep_would(files, machine, more, message):
    assert message in run(*files, "--dry-run", *more, code=2)


def test_a_dry_run_without_data_tells_the_rest(files, machine, monkeypatch):
    from deepcoro.errors import DataError

    def no_data(config):
        raise DataError("there is no dataset")

    monkeypatch.setattr("deepcoro.launch.dry_run.seconds_of_run", no_data)
    said = run(*files, "--dry-run", code=2)
    assert "optim.lr" in said and "it would NOT start" in said and "error: there is no dataset" in said
