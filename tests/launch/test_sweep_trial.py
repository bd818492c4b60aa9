"""What a trial leaves behind when it ends, fails or is stopped. Nothing is trained, and nobody is told."""

import json
import os
import time

import pytest
import torch
from ray.exceptions import RayTaskError, WorkerCrashedError

from deepcoro.config import Config
from deepcoro.errors import DataError
from deepcoro.launch import sweep_trial
from deepcoro.launch.search import ASKED, FIELDS, RUN
from deepcoro.launch.sweep_times import BEGIN, END, describe_times, times_of
from deepcoro.launch.sweep_trial import left_behind, run_trial, told_error
from deepcoro.training.hparams import TRIAL_FILE
from deepcoro.training.validation import write_result

POINT = {FIELDS: {"optim.lr": 3e-4}, RUN: "trial_0003", ASKED: 0.0}


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """``trial(training)`` -> what Tune was told, after ``training(config, report)`` went in the place of a run."""

    def start(training, *assignments):
        told = []
        monkeypatch.setattr(sweep_trial.tune, "report", told.append)
        monkeypatch.setattr(sweep_trial, "train", lambda config, alone: training(config, alone))
        config = Config().override(assignments)
        run_trial(config.model_dump(mode="json"), tmp_path, POINT)
        return told

    return start


def test_a_trial_is_a_run_of_its_own_fields_and_place(trial, tmp_path):
    seen = []

    def training(config, report):
        seen.append(config)
        (tmp_path / config.name).mkdir(exist_ok=True)
        report({"step": 5, "a/b": 0.5})

    assert trial(training, "optim.eps=1e-7") == [{"step": 5, "a/b": 0.5}]
    assert (seen[0].root, seen[0].name) == (str(tmp_path), "trial_0003")
    assert (seen[0].optim.lr, seen[0].optim.eps) == (3e-4, 1e-7)
    assert left_behind(tmp_path, "trial_0003").error is None
    assert json.loads((tmp_path / "trial_0003" / TRIAL_FILE).read_text()) == {"fields": POINT[FIELDS]}


def test_what_it_came_to_before_is_told_again(trial, tmp_path):
    def earlier(config, report):
        (tmp_path / config.name).mkdir(exist_ok=True)
        write_result(tmp_path / config.name, 4, {"a/b": 0.25}, 1.0, config)

    assert trial(earlier) == []
    assert trial(lambda config, report: report({"step": 8})) == [{"step": 4, "a/b": 0.25}, {"step": 8}]
    assert left_behind(tmp_path, "trial_0003").results == {4: {"a/b": 0.25}}


def test_an_error_on_purpose_is_kept_and_the_process_stays(trial, tmp_path):
    def training(config, report):
        raise DataError("there is no dataset")

    trial(training)
    assert left_behind(tmp_path, "trial_0003").error == "DataError: there is no dataset"
    assert "in training" in (tmp_path / "trial_0003" / "traceback.txt").read_text()


def test_any_other_error_takes_the_process_along_and_is_not_tried_again(trial, tmp_path):
    starts = []

    def training(config, report):
        starts.append(config)
        raise KeyError("Mrs Smith")

    with pytest.raises(RuntimeError, match="trial_0003 failed") as raised:
        trial(training)
    assert "Smith" not in str(raised.value) and raised.value.__cause__ is None
    assert trial(training) == [] and len(starts) == 1  # in the next process
    error = left_behind(tmp_path, "trial_0003").error
    assert error.startswith("KeyError at test_sweep_trial.py, line") and "Smith" not in error
    assert "Smith" in (tmp_path / "trial_0003" / "traceback.txt").read_text()


def test_the_loss_of_ray_is_no_error_of_the_trial(trial, tmp_path, monkeypatch):
    def training(config, report):
        (tmp_path / config.name).mkdir(exist_ok=True)
        raise error

    error = WorkerCrashedError()
    with pytest.raises(WorkerCrashedError):
        trial(training)
    parents, error = iter([4711, 1]), KeyError("what Ray comes to where its raylet is gone")
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    with pytest.raises(KeyError):
        trial(training)
    assert left_behind(tmp_path, "trial_0003").error is None


def test_an_error_of_a_data_task_is_told_as_what_it_was(trial, tmp_path):
    def training(config, report):
        raise RayTaskError("read", "a long trace", DataError("v3 cannot be read")).as_instanceof_cause()

    trial(training)
    assert left_behind(tmp_path, "trial_0003").error == "DataError: v3 cannot be read"


def test_stopped_by_the_scheduler_it_leaves_no_error(trial, tmp_path):
    def training(config, report):
        (tmp_path / config.name).mkdir(exist_ok=True)
        raise SystemExit(0)

    with pytest.raises(SystemExit):
        trial(training)
    assert left_behind(tmp_path, "trial_0003").error is None
    assert "ended" in json.loads((tmp_path / "trial_0003" / "times.json").read_text())


def caught(raising):
    try:
        raising()
    except Exception as error:
        return told_error(error)


def test_errors_tell_what_cannot_hold_data_of_patients(tmp_path):
    assert "mat1 and mat2 shapes cannot be multiplied" in caught(lambda: torch.nn.Linear(3, 2)(torch.ones(2, 5)))
    assert caught(lambda: (tmp_path / "Smith").read_text()).startswith(
        "FileNotFoundError: No such file or directory (at"
    )
    assert "Smith" not in caught(lambda: (tmp_path / "Smith").read_text())
    assert "Smith" not in caught(lambda: int("Smith"))
    assert told_error(ValueError("Smith")).startswith("ValueError at an unknown place;")  # out of another process


@pytest.fixture
def timed_run(tmp_path):
    """A run asked for at t, whose process was born at t+1, with round numbers."""
    t = time.time() - 100
    lines = [
        {"step": 1, "time": t - 5, "startup/first_step_seconds": 99.0},  # of an earlier start
        {"step": 1, "time": t + 20, "loss/total": 1.0},
        {"step": 1, "time": t + 20, "startup/data_seconds": 2.0, "startup/first_step_seconds": 0.5},
        {"step": 2, "time": t + 30, "loss/total": 1.0},
        {"step": 2, "time": t + 36, "validation/seconds": 4.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_result(tmp_path, 2, {"a/b": 0.5}, 4.0, Config())
    os.utime(tmp_path / "validation" / "2.json", (t + 36, t + 36))
    marks = {"asked": t, "process": t + 1, "entered": t + 8, "ended": t + 40}
    (tmp_path / "times.json").write_text(json.dumps(marks))
    return tmp_path, marks


def test_seconds_by_cause(timed_run):
    run, marks = timed_run
    times = times_of(run)
    told = {"schedule": 1, "process": 7, "data": 2, "first_step": 0.5, "save": 2, "validation": 4, "close": 4}
    assert {name: times[name] for name in told} == {name: pytest.approx(x, abs=0.05) for name, x in told.items()}
    assert times["tell"] == pytest.approx(60, abs=1) and times["steps"] == pytest.approx(10, abs=0.05)
    assert times["total"] == pytest.approx(20.5 + times["tell"], abs=0.1)
    assert set(times) <= {*BEGIN, *END, "total", "steps"}
    assert describe_times([times]).startswith("a trial cost 80.")
    (run / "times.json").write_text(json.dumps(marks | {"process": marks["asked"] - 500}))
    assert times_of(run)["schedule"] == pytest.approx(8, abs=0.05) and times_of(run)["process"] == 0  # used again


def test_a_run_that_came_to_no_step_has_no_times(tmp_path):
    assert times_of(tmp_path) is None
    (tmp_path / "times.json").write_text(json.dumps({"asked": 0, "process": 0, "entered": 0, "ended": 0}))
    assert times_of(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "ti')
    assert times_of(tmp_path) is None
