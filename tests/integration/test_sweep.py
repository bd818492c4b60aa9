"""A sweep of small runs on a local Ray: what the study, the runs and the table say is the same."""

import json

import optuna
import pytest
from optuna.trial import TrialState

from deepcoro.launch.space import load_space
from deepcoro.launch.sweep import Sweep, sweep
from deepcoro.training.validation import read_results

MRR = "retrieval/report_to_video/mrr"
SPACE = f"""
def SPACE(trial):
    # A text encoder that is not there is found by the run alone: the config takes any name.
    trial.suggest_float("optim.lr", 1e-5, 1e-2, log=True)
    trial.suggest_categorical("text_encoder.name", [GOOD, GOOD + "/nothing"])
OBJECTIVES = {{"{MRR}": "max"}}
START = [
    {{"optim.lr": 1e-3, "text_encoder.name": GOOD}},
    {{"optim.lr": 1e-3, "text_encoder.name": GOOD + "/nothing"}},
    {{"optim.lr": 1e-5, "text_encoder.name": GOOD}},
]
"""


@pytest.mark.long
@pytest.mark.timeout(280)
def test_trials_run_at_once_and_one_that_fails_does_not_end_the_sweep(small_config, phantom_text, tmp_path):
    (tmp_path / "space.py").write_text(f"GOOD = {str(phantom_text)!r}\n" + SPACE)
    config = small_config(tmp_path / "runs", "name=s", "training.evaluate_every=3", "training.pictures=false")
    folder = sweep(Sweep(config, load_space(tmp_path / "space.py"), num_trials=3, max_concurrent=2))
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{folder / 'study.db'}")
    first, failed, third = study.trials
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert "nothing" in failed.user_attrs["error"]
    for trial in (first, third):
        results = read_results(folder / "trials" / trial.user_attrs["run"])
        assert list(results) == [3, 6]
        assert trial.intermediate_values == {step: metrics[MRR] for step, metrics in results.items()}
        assert trial.value == results[6][MRR]
    table = json.loads((folder / "sweep.json").read_text())
    assert [row["state"] for row in table["trials"]] == ["complete", "fail", "complete"]
    assert table["objectives"] == {MRR: "maximize"}
    best = max((first, third), key=lambda trial: trial.value)
    assert [row["best"] for row in table["trials"]].index(True) == best.number
