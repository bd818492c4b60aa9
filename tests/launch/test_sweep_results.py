"""``sweep.json`` holds what the study held; ``best.yaml`` is the config of the trial that is best."""

import shutil

import optuna
import pytest
from optuna.trial import TrialState

from deepcoro.config import Config, read_yaml
from deepcoro.errors import UserError
from deepcoro.launch.sweep_results import choose_best, mean_ranks, read_study, run_of, write_results
from tests.launch.sweep_study import F1, LR, MRR, MSE, leave_runs, study_of

ROWS = (
    ("complete", {3: 0.2, 9: 0.4}, 1e-3),
    ("pruned", {3: 0.9}, 1e-5),  # stopped: what it had then is no value to be best by
    ("failed", "ConfigError: no tokenizer", 1e-4),
    ("complete", {3: 0.1, 9: 0.5}, 1e-2),
)


def test_what_is_read_is_what_the_study_held(tmp_path):
    study = study_of(ROWS)
    write_results(study, tmp_path, {"num_trials": 8, "stopping": "asha"})
    found = read_study(tmp_path)
    assert found.metric_names == [MRR] and found.direction == optuna.study.StudyDirection.MAXIMIZE
    assert len(found.trials) == len(study.trials)
    for a, b in zip(found.trials, study.trials, strict=True):
        assert (a.number, a.state, a.params, a.user_attrs) == (b.number, b.state, b.params, b.user_attrs)
        assert (a.values, a.intermediate_values, a.distributions) == (b.values, b.intermediate_values, b.distributions)
        assert (a.datetime_start, a.duration) == (b.datetime_start, b.duration)


def test_trials_that_run_and_wait_keep_their_numbers(tmp_path):
    study = study_of(ROWS[:1])
    study.enqueue_trial({LR: 1e-3})
    study.enqueue_trial({LR: 1e-4})
    study.ask()
    write_results(study, tmp_path)
    assert [trial.state for trial in read_study(tmp_path).trials] == [
        TrialState.COMPLETE,
        TrialState.RUNNING,
        TrialState.WAITING,
    ]


def test_the_best_is_a_trial_that_ran_to_its_end():
    assert choose_best(study_of(ROWS)).number == 3
    assert choose_best(study_of(ROWS[1:3])) is None
    lower = study_of((("complete", {9: 0.4}, 1e-3), ("complete", {9: 0.5}, 1e-3)), ((MSE, "minimize"),))
    assert choose_best(lower).number == 0


def test_of_several_objectives_the_best_is_on_the_front_with_the_lowest_mean_rank():
    rows = [
        ("complete", {9: (0.9, 0.1)}, 1e-3),
        ("complete", {9: (0.6, 0.6)}, 1e-3),
        ("complete", {9: (0.5, 0.5)}, 1e-3),  # beaten by the second in both
        ("complete", {9: (0.1, 0.9)}, 1e-3),
        ("complete", {9: (0.7, 0.2)}, 1e-3),
    ]
    study = study_of(rows, ((MRR, "maximize"), (F1, "maximize")))
    # Better ones in MRR: 0, 2, 3, 4, 1; in F1: 4, 1, 2, 0, 3.
    assert mean_ranks(study) == {0: 2.0, 1: 1.5, 2: 2.5, 3: 2.0, 4: 2.0}
    assert choose_best(study).number == 1


def test_best_yaml_is_the_whole_config_under_a_name_of_its_own(tmp_path, tiny_config):
    folder = tmp_path / "runs" / "s"
    folder.mkdir(parents=True)
    base = tiny_config("name=s", f"root={folder.parent}", "seed=3")
    study = study_of(ROWS)
    leave_runs(study, folder, base)
    write_results(study, folder)
    alone = Config.load(folder / "best.yaml")  # as deepcoro train best.yaml takes it
    laid_over = tiny_config("seed=9", "optim.lr=0.5").merge(read_yaml(folder / "best.yaml"))  # as --config does
    expected = base.merge({"name": "s-best", "optim": {"lr": 1e-2}})
    assert alone == laid_over == expected
    assert "trial 3" in (folder / "best.yaml").read_text().splitlines()[0]


def test_best_yaml_of_before_goes_where_the_best_trials_run_is_gone(tmp_path, tiny_config):
    study = study_of(ROWS)
    leave_runs(study, tmp_path, tiny_config())
    write_results(study, tmp_path)
    assert (tmp_path / "best.yaml").exists()
    shutil.rmtree(tmp_path / "trials" / "trial_0003")
    write_results(study, tmp_path)
    assert not (tmp_path / "best.yaml").exists()


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="no trial of this sweep has ended"):
        read_study(tmp_path)
    (tmp_path / "sweep.json").write_text('{"objectives": {}}')
    with pytest.raises(UserError, match="cannot be read"):
        read_study(tmp_path)
    assert run_of(tmp_path, study_of(ROWS).trials[0]) == tmp_path / "trials" / "trial_0000"
