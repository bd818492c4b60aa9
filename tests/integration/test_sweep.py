"""A sweep of small runs on a local Ray: what the study, the runs and the table say is the same."""

import json

import optuna
import pytest
from optuna.trial import TrialState

from deepcoro.config import Config
from deepcoro.launch.confirm import confirm
from deepcoro.launch.confirm_report import read_confirmation
from deepcoro.launch.space import load_space
from deepcoro.launch.sweep import sweep
from deepcoro.launch.sweep_settings import Sweep
from deepcoro.launch.train import train
from deepcoro.training.validation import read_intervals, read_results

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
    assert [row["best"] for row in table["trials"]].index(True) == best.number == table["best"]
    assert {path.name for path in (folder / "plots").iterdir()} >= {"history.png", "on_the_way.png", "plots.html"}
    lines = [run for run in (folder / "trials").iterdir() if list((run / "tensorboard").glob("*.hparams"))]
    assert len(lines) == 3 and len(list((folder / "tensorboard").glob("*.hparams"))) == 1
    interval = read_intervals(folder / "trials" / first.user_attrs["run"], 6)[MRR]
    assert interval["low"] <= first.value <= interval["high"] and "baseline" in interval
    assert not list(folder.rglob("*test*"))  # nothing has looked at the test patients
    again = train(Config.load(folder / "best.yaml").override(["training.num_steps=3"]))
    assert again == tmp_path / "runs" / "s-best" and list((again / "checkpoints").iterdir())

    confirm(folder, 1, max_concurrent=2)
    kinds = {run.name: Config.load(run / "config.yaml") for run in (folder / "confirm").iterdir()}
    assert set(kinds) == {f"trial_{best.number:04d}-seed_1", "default-seed_1"}
    assert {one.seed for one in kinds.values()} == {1}
    found = read_confirmation(folder)[str(best.number)]
    assert set(found) == {"seeds", "failed", "val"} and found["failed"] == {}
    assert found["val"]["metrics"][MRR]["low"] is None  # one seed has no interval
