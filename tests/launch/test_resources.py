"""A run that would wait for ever is refused, with the sum spelled out."""

import json

import pytest

from deepcoro.config import Config
from deepcoro.errors import ResourceError
from deepcoro.launch.resources import ENVIRONMENT, check_resources, start_ray, threads_per_worker


def with_workers(num_workers, cpus, *assignments):
    wanted = (f"resources.num_workers={num_workers}", f"resources.cpus_per_worker={cpus}", "training.batch_size=24")
    return Config().override([*wanted, *assignments])


@pytest.mark.parametrize(("num_workers", "cpus"), [(1, 1.0), (1, 1.66), (3, 0.55), (2, 0.83)])
def test_what_fits_two_cpus_with_a_data_task_beside_it_is_taken(num_workers, cpus):
    check_resources(with_workers(num_workers, cpus), [{"CPU": 2.0}])


@pytest.mark.parametrize(("num_workers", "cpus"), [(2, 1.0), (1, 1.7), (3, 0.6), (24, 1.0)])
def test_what_would_leave_no_room_for_data_is_refused(num_workers, cpus):
    with pytest.raises(ResourceError, match="workers x .* one data task of 0.34.*there are 2"):
        check_resources(with_workers(num_workers, cpus), [{"CPU": 2.0}])


def test_the_share_that_is_named_fits():
    with pytest.raises(ResourceError) as caught:
        check_resources(with_workers(3, 1.0), [{"CPU": 2.0}])
    share = float(str(caught.value).split("cpus_per_worker=")[1])
    check_resources(with_workers(3, share), [{"CPU": 2.0}])


def test_more_gpus_than_there_are_is_refused():
    config = with_workers(2, 1.0, "resources.use_gpu=true")
    check_resources(config, [{"CPU": 8.0, "GPU": 2.0}])
    with pytest.raises(ResourceError, match="2 GPUs.*there are 1"):
        check_resources(config, [{"CPU": 8.0, "GPU": 1.0}])


@pytest.mark.parametrize(
    ("num_workers", "cpus", "machines", "fits"),
    [
        (1, 6.0, [4, 4], 0),  # enough in all, and on no machine
        (2, 0.7, [1, 1], 1),  # both fit, and then no data task
        (3, 2.0, [3, 5], 3),
        (4, 2.0, [4, 4.34], 4),
        (4, 2.0, [4.2, 4.2], 3),
    ],
)
def test_each_worker_needs_a_machine_that_holds_it(num_workers, cpus, machines, fits):
    there = [{"CPU": cpu} for cpu in machines]
    if fits >= num_workers:
        check_resources(with_workers(num_workers, cpus), there)
        return
    with pytest.raises(ResourceError, match=f"room for {fits} beside the data task: the machines have {machines[0]:g}"):
        check_resources(with_workers(num_workers, cpus), there)


def test_a_gpu_without_the_cpus_that_its_worker_asks_for_is_no_room():
    config = with_workers(2, 3.0, "resources.use_gpu=true")
    check_resources(config, [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}])
    with pytest.raises(ResourceError, match="room for 1 beside"):
        check_resources(config, [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 6.0, "GPU": 1.0}])


def test_threads_are_as_given_or_share_the_machine_with_the_data(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert threads_per_worker(with_workers(2, 1.0)) == 3
    assert threads_per_worker(with_workers(24, 1.0)) == 1
    assert threads_per_worker(with_workers(2, 1.0, "resources.threads_per_worker=3")) == 3


@pytest.fixture
def ray_options(monkeypatch):
    """Collects what ``ray.init`` is called with."""
    seen = []
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **options: seen.append(options))
    local = (
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER",
        "RAY_idle_worker_killing_time_threshold_ms",
        "RAY_worker_niceness",
    )
    for variable in (*ENVIRONMENT, *local, "RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.setenv(variable, "")  # so that it is as it was when the test ends
        monkeypatch.delenv(variable)
    return seen


@pytest.mark.parametrize("address", [None, "", "local"])
def test_without_a_cluster_ray_is_started_here(ray_options, monkeypatch, address):
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    start_ray(num_cpus=3)
    assert ray_options[0]["address"] == "local"
    assert ray_options[0]["num_cpus"] == 3


def test_workers_of_a_cluster_get_the_environment_as_it_is_set_here(ray_options, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    start_ray()
    (options,) = ray_options
    assert options["runtime_env"] == {"env_vars": ENVIRONMENT | {"TOKENIZERS_PARALLELISM": "true"}}
    assert not {"address", "num_cpus", "object_store_memory"} & options.keys()  # Ray takes none of them then


def test_what_a_job_sets_is_left_out_since_ray_refuses_it_twice(ray_options, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    job = {"runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "true", "OTHER": "1"}}, "metadata": {}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    start_ray()
    assert ray_options[0]["runtime_env"]["env_vars"].keys() == ENVIRONMENT.keys() - {"TOKENIZERS_PARALLELISM"}
