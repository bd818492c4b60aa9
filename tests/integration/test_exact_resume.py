"""A run that is killed, however and whenever, ends with the weights of an undisturbed one, each position used once.

The runs are started as a person starts them, by the command line in a process of its own, and die of SIGKILL.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from deepcoro.launch.train import train

STEPS, EVERY = 60, 7
SETTINGS = (
    f"training.num_steps={STEPS}",
    f"training.checkpoint_every={EVERY}",
    "training.evaluate_every=20",
    "training.best_metric=masked_modeling/mse",
    "training.best_mode=min",
    "training.pictures=false",
    "evaluation.max_units=4",
    "captioning.dropout=0.1",  # chance inside the model has to be the same too
)


@pytest.fixture(scope="module")
def undisturbed(local_ray, small_config, tmp_path_factory):
    """``undisturbed("section.field=value", ...)`` -> the folder of a run that nobody killed."""

    @functools.cache
    def run(*assignments):
        return train(small_config(tmp_path_factory.mktemp("undisturbed"), *SETTINGS, *assignments))

    return run


@pytest.fixture
def start(small_config, tmp_path):
    """``start("section.field=value", ...)`` -> the process of ``deepcoro train`` and the folder of its run."""
    started = []

    def launch(*assignments):
        config = small_config(tmp_path, *SETTINGS, *assignments)
        file = tmp_path / "experiment.py"
        file.write_text(
            "from deepcoro.config import Config\n\n\ndef experiment():\n"
            f"    return Config(**{config.model_dump(mode='json')!r})\n"
        )
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        log = (tmp_path / "log.txt").open("a")
        command = [str(Path(sys.executable).parent / "deepcoro"), "train", str(file)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        started.append(process)
        return process, tmp_path / config.name

    yield launch
    for process in started:
        for each in family(process):
            each.kill()


def family(process):
    """The process and all that it started."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def steps_seen(run):
    """The last step that the run has logged."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}") and "loss/total" in line), default=0)


def wait_for_step(process, run, step):
    give_up = time.monotonic() + 300
    while steps_seen(run) < step:
        assert process.poll() is None, (run.parent / "log.txt").read_text()
        assert time.monotonic() < give_up, f"step {step} did not come; at {steps_seen(run)}"
        time.sleep(0.02)


def finish(process, run):
    assert process.wait(timeout=500) == 0, (run.parent / "log.txt").read_text()


def assert_as_undisturbed(run, undisturbed, num_workers=1):
    """Final weights and moments are equal, and every position of every step stands once in the history."""
    ours, theirs = (folder / "checkpoints" / str(STEPS) for folder in (run, undisturbed))
    weights, wanted = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    assert weights.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(weights[name], wanted[name], atol=1e-6, rtol=0)
    state, reference = (torch.load(c / "training_state.pt", weights_only=True) for c in (ours, theirs))
    assert state["samples_seen"] == reference["samples_seen"] == STEPS * 12
    for moment in ("exp_avg", "exp_avg_sq"):
        for key, values in reference["optimizer"]["state"].items():
            torch.testing.assert_close(state["optimizer"]["state"][key][moment], values[moment], atol=1e-6, rtol=0)

    table = pq.read_table(run / "positions.parquet").to_pandas()
    assert sorted(table["position"]) == list(range(STEPS * 12))
    np.testing.assert_array_equal(table["step"], table["position"] // 12 + 1)
    assert set(table["worker"]) == set(range(num_workers))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss/total" in line] == list(range(1, STEPS + 1))
    assert sorted(p.name for p in (run / "validation").iterdir()) == ["20.json", "40.json", "60.json"]
    validated = [line["step"] for line in lines if "validation/masked_modeling/mse" in line]
    assert validated == [20, 40, 60]


def moments(seed, number):
    """Random moments of a run: a step, and a fraction of a second after it."""
    chance = np.random.default_rng(seed)
    steps = np.sort(chance.choice(np.arange(1, STEPS - 2), number, replace=False))
    return [(int(step), float(chance.uniform(0, 0.3))) for step in steps]


def kill_launcher(process):
    process.kill()  # what Ray started dies a little later, by itself


def kill_everything(process):
    for each in family(process):
        each.kill()


def kill_and_finish(start, kill, when):
    """Start the run, kill it at each of the moments, and let it end; its folder."""
    for step, delay in when:
        process, run = start()
        wait_for_step(process, run, step)
        time.sleep(delay)
        kill(process)
        process.wait()
    process, run = start()
    finish(process, run)
    return run


@pytest.mark.long  # that a stopped run ends where an undisturbed one does is in test_train.py
@pytest.mark.timeout(900)
def test_killed_once_and_started_again(undisturbed, start):
    run = kill_and_finish(start, kill_launcher, [(17, 0.0)])
    assert_as_undisturbed(run, undisturbed())


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kill", [kill_launcher, kill_everything])
def test_the_whole_run_killed_at_five_random_moments(undisturbed, start, kill):
    run = kill_and_finish(start, kill, moments(seed=1, number=5))
    assert_as_undisturbed(run, undisturbed())


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("victim", "num_workers"),
    [
        ("RayTrainWorker", 1),
        ("RayTrainWorker", 2),
        ("SplitCoordinator", 1),  # who deals out the data
    ],
)
def test_one_process_of_a_run_killed_at_five_random_moments(undisturbed, start, victim, num_workers):
    workers = (f"resources.num_workers={num_workers}",)
    reference = undisturbed(*workers)
    process, run = start("training.max_failures=-1", *workers)
    killed = 0
    for step, delay in moments(seed=2, number=5):
        wait_for_step(process, run, step)
        time.sleep(delay)
        killed += kill_one(process, victim)
    finish(process, run)
    assert killed == 5
    assert_as_undisturbed(run, reference, num_workers)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_five_data_tasks_killed_at_random_moments(undisturbed, start):
    """Ray runs them again, and no worker notices. There are two here, one after the other: of many short ones most
    would be over before a process could be found and killed."""
    reference = undisturbed()
    process, run = start(f"resources.batches_per_block={STEPS // 2}", "resources.cpus_per_data_task=1")
    chance = np.random.default_rng(3)
    killed = 0
    for _ in range(5):
        killed += kill_one(process, "MapBatches")
        time.sleep(chance.uniform(0, 0.2))
    finish(process, run)
    assert killed == 5
    assert_as_undisturbed(run, reference)


def kill_one(process, victim):
    """SIGKILL to the first process of the family whose title holds ``victim``."""
    give_up = time.monotonic() + 200  # a run may take its time to start
    while time.monotonic() < give_up:
        time.sleep(0.05)  # to look costs more than it seems
        for each in family(process):
            try:
                if victim in " ".join(each.cmdline()):
                    each.send_signal(signal.SIGKILL)
                    return 1
            except psutil.Error:
                continue
    return 0
