"""A sweep in processes of its own, as a user starts one, and what must hold of it afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
from optuna.trial import TrialState

from deepcoro.training.checkpoint import committed_steps
from deepcoro.training.validation import read_results
from tests.integration.ray_cluster import REPOSITORY, family_of, without_ray

MRR = "retrieval/report_to_video/mrr"
SPACE = f"""
from ray import tune
SPACE = {{"optim.lr": tune.loguniform(1e-5, 1e-2)}}
OBJECTIVES = {{"{MRR}": "max"}}
START = [{{"optim.lr": 1e-3}}, {{"optim.lr": 1e-4}}]
"""
# `deepcoro`, once or more ("then" stands between), where Ray counts as many CPUs as the first word says.
_PROGRAM = """
import sys
from deepcoro.launch.resources import start_ray
start_ray(num_cpus=int(sys.argv[1]))
from deepcoro.cli import main
words = sys.argv[2:]
while words:
    end = words.index("then") if "then" in words else len(words)
    main(words[:end], standalone_mode=False)
    words = words[end + 1:]
"""


class Driver:
    """``deepcoro WORDS`` on a Ray of its own with ``num_cpus``, which ends with it."""

    def __init__(self, log: Path, *words: object, num_cpus: int = 2) -> None:
        self.log = log
        environment = without_ray(os.environ) | {"PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-c", _PROGRAM, str(num_cpus), *map(str, words)]
        with log.open("a") as stream:
            self.process = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=stream, start_new_session=True, cwd=log.parent
            )

    def kill(self, everything: bool = False) -> None:
        """SIGKILL of the driver; with ``everything`` of all that it started at the same moment, and then wait until
        nothing of it is left."""
        family = family_of(self.process.pid)
        for process in family if everything else family[:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait()
        _, alive = psutil.wait_procs(family[1:], timeout=30)
        for process in alive:  # what Ray leaves when its driver is killed
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=10)

    def wait(self, seconds: float) -> str:
        """Until it ends by itself, which must be well; returns what it said."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill(everything=True)
            raise AssertionError(f"not at its end after {seconds:.0f} s:\n{self.log.read_text()}") from None
        said = self.log.read_text()
        assert code == 0, said
        return said

    def until(self, condition, what: str, seconds: float = 400) -> None:
        """Wait for ``condition()``, looking often."""
        give_up = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > give_up:
                said = self.log.read_text()
                self.kill(everything=True)
                raise AssertionError(f"{what}: did not come about\n{said}")
            time.sleep(0.01)


def num_finished(folder: Path, num_steps: int) -> int:
    """Runs of a sweep that have their last evaluation."""
    return len(list((folder / "trials").glob(f"*/validation/{num_steps}.json")))


def newest_steps(folder: Path) -> dict[Path, int]:
    """The newest checkpoint of each run of a sweep that has one."""
    steps = {run: committed_steps(run) for run in (folder / "trials").glob("*")}
    return {run: found[-1] for run, found in steps.items() if found}


def pid_of(run: Path) -> int:
    """The process that trains a run."""
    return json.loads((run / ".holder.json").read_text())["pid"]


def starts_of(run: Path) -> list[int]:
    """The first step of each start of a run that came to a step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    return [line["step"] for line in lines if "startup/first_step_seconds" in line]


def check_accounts(folder: Path, num_trials: int, num_steps: int, storage: str | None = None) -> None:
    """The study, the runs and the table hold the same ``num_trials`` complete trials, each once."""
    study = optuna.load_study(study_name=folder.name, storage=storage or f"sqlite:///{folder / 'study.db'}")
    # First points of the space that the sweep had no trials left for go on waiting.
    trials = [trial for trial in study.trials if trial.state != TrialState.WAITING]
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * num_trials
    runs = [folder / "trials" / trial.user_attrs["run"] for trial in trials]
    assert len(set(runs)) == num_trials and sorted(runs) == sorted((folder / "trials").iterdir())
    table = [row for row in json.loads((folder / "sweep.json").read_text())["trials"] if row["state"] != "waiting"]
    for trial, run, row in zip(trials, runs, table, strict=True):
        results = read_results(run)
        assert trial.value == results[num_steps][MRR] == row["values"][MRR]
        assert trial.intermediate_values == {step: metrics[MRR] for step, metrics in results.items()}
        assert (row["state"], row["run"], row["params"]) == ("complete", run.name, trial.params)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
        steps = [line["step"] for line in lines if "loss/total" in line]
        assert sorted(set(steps)) == list(range(1, num_steps + 1)) and committed_steps(run)[-1] == num_steps
        assert f"lr: {trial.params['optim.lr']!r}" in (run / "config.yaml").read_text()
