"""A Ray cluster as a user of one meets it: jobs that train, are stopped and go on; tokens; two nodes.

The cluster is a real one, started by ``ray start`` with a token, and jobs upload this repository.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from deepcoro.config import Config
from tests.integration.ray_cluster import PROGRAMS, REPOSITORY, RayCluster

STEPS = 400  # enough that a run is still on its way when `ray job stop` has come through
EXPERIMENT = ("python", "experiments/multitask.py")
SLOW_TO_STOP = {"RAY_JOB_STOP_WAIT_TIME_S": "100"}  # Ray kills a job that was stopped after 3 seconds else


@pytest.fixture(scope="module")
def cluster():
    cluster = RayCluster(num_cpus=4)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def words(small_config):
    """``words(root, "section.field=value", ...)`` -> what a user types behind the experiment; no name among it."""

    def make(root, *assignments):
        config = small_config(root, "training.pictures=false", "evaluation.max_units=4", *assignments)
        given, default = flat(config), flat(Config())
        del given["name"]
        return [f"{key}={written(value)}" for key, value in given.items() if value != default[key]]

    return make


def flat(config):
    """``{"section.field": value}``"""
    values = config.model_dump(mode="json")
    for section in [key for key, value in values.items() if isinstance(value, dict)]:
        inner = values.pop(section)
        values |= {f"{section}.{key}": value for key, value in inner.items()}
    return values


def written(value):
    return value if isinstance(value, str) else json.dumps(value)


def assert_every_position_once(run, steps, num_workers=1):
    table = pq.read_table(run / "positions.parquet").to_pandas()
    np.testing.assert_array_equal(np.sort(table["position"]), np.arange(steps * 12))
    np.testing.assert_array_equal(table["step"], table["position"] // 12 + 1)
    assert set(table["worker"]) == set(range(num_workers))


def steps_seen(run):
    """The last step that the run has logged."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}") and "loss/total" in line), default=0)


def checkpoints(run):
    return sorted(int(path.name) for path in (run / "checkpoints").glob("[0-9]*"))


def test_a_relative_root_is_refused_in_a_job(cluster):
    said = cluster.submit("--submission-id", "lost", "--", *EXPERIMENT, "data.path=/data/prepared")
    assert cluster.status("lost") == "FAILED"
    assert "error: root is 'runs', and this is a job: inside a job the program runs in an uploaded copy" in said
    assert "data.path and root must be absolute or URIs, or lie under DEEPCORO_HOME" in said
    assert "Traceback" not in said


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_job_trains_into_the_folder_of_its_submission_id(cluster, words, tmp_path):
    home = {"DEEPCORO_HOME": str(tmp_path), "TOKENIZERS_PARALLELISM": "true"}  # the second is also set by ourselves
    said = cluster.submit("--submission-id", "first", "--", *EXPERIMENT, *words("runs"), environment=home)
    assert cluster.status("first") == "SUCCEEDED", said
    run = tmp_path / "runs" / "first"
    assert checkpoints(run) == [3, 6]
    assert Config.load(run / "config.yaml").name == "first"
    assert_every_position_once(run, 6)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_stopped_job_saves_and_the_same_submission_goes_on(cluster, words, tmp_path):
    settings = words(tmp_path, f"training.num_steps={STEPS}", "training.checkpoint_every=100000")
    command = ("--submission-id", "halted", "--", *EXPERIMENT, *settings)
    cluster.submit(*command, wait=False, environment=SLOW_TO_STOP)
    run = tmp_path / "halted"
    give_up = time.monotonic() + 250
    while steps_seen(run) < 10:
        assert cluster.status("halted") in {"PENDING", "RUNNING"}, cluster.ray("job", "logs", "halted")
        assert time.monotonic() < give_up, cluster.ray("job", "logs", "halted")
        time.sleep(0.1)
    cluster.ray("job", "stop", "halted")
    assert cluster.status("halted") == "STOPPED"
    (stopped_at,) = checkpoints(run)
    assert 10 <= stopped_at < STEPS
    assert stopped_at == steps_seen(run)
    assert f"saved at step {stopped_at} of {STEPS}" in cluster.ray("job", "logs", "halted")
    assert_every_position_once(run, stopped_at)

    cluster.ray("job", "delete", "halted")
    said = cluster.submit(*command)
    assert cluster.status("halted") == "SUCCEEDED", said
    assert f"step {stopped_at} of {STEPS}" in said
    assert checkpoints(run)[-1] == STEPS
    assert_every_position_once(run, STEPS)


def drive(cluster, *words, **environment):
    """Train from outside a job, as ``RAY_ADDRESS`` makes one a driver of the cluster."""
    command = [str(PROGRAMS / "deepcoro"), "train", str(REPOSITORY / "experiments" / "multitask.py"), *words]
    env = cluster.environment | {"RAY_ADDRESS": cluster.address} | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "none was sent, since RAY_AUTH_MODE is not set to token"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/such/token"}, "that of RAY_AUTH_TOKEN_PATH is missing or not the cluster's"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "that of RAY_AUTH_TOKEN is missing or not the cluster's"),
    ],
)
def test_without_the_clusters_token_it_says_which_variables_to_set(cluster, words, tmp_path, environment, reason):
    done = drive(cluster, *words(tmp_path), **environment)
    assert done.returncode == 2, done.stderr
    assert f"error: the Ray cluster at RAY_ADDRESS={cluster.address} asks for a token, and {reason}" in done.stderr
    assert "export RAY_AUTH_MODE=token" in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_nodes_train_one_run_with_a_worker_on_each(words, tmp_path):
    cluster = RayCluster(num_cpus=1)
    try:
        cluster.add_node(num_cpus=1)
        # Two workers do not fit on one node, and each leaves room for a data task beside it.
        resources = ("resources.num_workers=2", "resources.cpus_per_worker=0.6")
        done = drive(cluster, *words(tmp_path, *resources), "name=apart")
        assert done.returncode == 0, done.stderr
        nodes = Counter(cluster.nodes_of("RayTrainWorker"))
    finally:
        cluster.stop()
    assert sorted(nodes.values()) == [1, 1]
    assert checkpoints(tmp_path / "apart")[-1] == 6
    assert_every_position_once(tmp_path / "apart", 6, num_workers=2)
