"""What shows the results of a sweep may fail in any way: the sweep goes on, and says what failed and why."""

import pytest

from deepcoro.launch import sweep_end as module
from deepcoro.launch.sweep_end import end_sweep, keep_results
from deepcoro.launch.sweep_results import read_study
from tests.launch.sweep_study import leave_runs, study_of


@pytest.fixture
def ended(tmp_path, tiny_config, monkeypatch):
    """A sweep of two trials, whose plots are not drawn."""
    study, config = study_of([("complete", {9: 0.4}, 1e-3), ("complete", {9: 0.5}, 1e-2)]), tiny_config()
    leave_runs(study, tmp_path, config)
    monkeypatch.setattr(module, "write_plots", lambda study, folder: (folder / "plots").mkdir(exist_ok=True))
    return study, tmp_path, config, {"num_trials": 2}


def broken(*given):
    raise KeyError("a column that there is not")


def test_what_does_not_fail_is_written(ended, capsys):
    keep_results(*ended)
    end_sweep(*ended)
    folder = ended[1]
    assert len(read_study(folder).trials) == 2 and (folder / "tensorboard").is_dir() and (folder / "plots").is_dir()
    assert "WARNING" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "told"), [("write_board", "the table of"), ("write_results", "the results of")], ids=["board", "results"]
)
def test_an_error_after_a_trial_is_told_and_the_rest_is_written(ended, monkeypatch, capsys, part, told):
    monkeypatch.setattr(module, part, broken)
    keep_results(*ended)
    text, folder = capsys.readouterr().err, ended[1]
    assert told in text and "KeyError: 'a column that there is not' (at test_sweep_end.py, line" in text
    assert (folder / "sweep.json").exists() == (part == "write_board")
    assert (folder / "tensorboard").is_dir() == (part == "write_results")


@pytest.mark.parametrize(("part", "told"), [("write_board", "the table of"), ("write_plots", "the plots of")])
def test_an_error_at_the_end_is_told_and_the_rest_is_written(ended, monkeypatch, capsys, part, told):
    monkeypatch.setattr(module, part, broken)
    end_sweep(*ended)
    text, folder = capsys.readouterr().err, ended[1]
    assert told in text and "KeyError" in text and "deepcoro show" in text
    assert len(read_study(folder).trials) == 2
    assert (folder / "plots").is_dir() == (part == "write_board")


def test_results_that_cannot_be_written_at_the_end_are_an_error(ended, monkeypatch):
    monkeypatch.setattr(module, "write_results", broken)
    with pytest.raises(KeyError):
        end_sweep(*ended)
