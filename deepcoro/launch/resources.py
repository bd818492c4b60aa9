"""How many CPUs and GPUs a run takes, and whether they are there. A run that would wait for ever is refused before it
starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from deepcoro.config import Config, ResourcesConfig
from deepcoro.errors import ResourceError
from deepcoro.launch.cluster import join
from deepcoro.launch.paths import submitted_environment

_STARTS = 3  # of a local Ray, which gives up after 30 s: a machine that is busy for a while is no reason to end
_IDLE_SECONDS = 600  # that a process of a local Ray may wait for its next task
_NICENESS = 5  # behind Ray's own processes, whose heartbeats must not be late, and before data tasks
_OBJECT_STORE_BYTES = 2 * 2**30  # of a local Ray; what is decoded ahead waits there

# Ray's own reporting, and Hugging Face's, stay off; Ray Train looks at its workers often enough that a report costs 0.1
# s and not 2.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
}


def set_environment() -> None:
    """Set ``ENVIRONMENT`` for this process and its children, where the user has not; before Ray and transformers."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def start_ray(num_cpus: int | None = None) -> None:
    """Join the cluster that ``RAY_ADDRESS`` or a job names, else start Ray on this machine; quietly.

    ``num_cpus`` is what a Ray that is started here counts (``None``: the machine's cores).

    Raises:
        ResourceError: a cluster is named, and it does not answer or does not let us in.
    """
    set_environment()
    if ray.is_initialized():
        return
    # What Ray's processes say stays in its log files: what matters to a run is in the run's folder, or is raised here.
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    options["runtime_env"] = {"env_vars": _environment_of_workers()}
    address = os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        join(address, options)
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
    # Ray ends a process that is idle for a second, where there are more of them than CPUs; the next data task then
    # waits some seconds for a new one, and the stream, whose order is kept, for that task.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(_IDLE_SECONDS * 1000))
    # Ray gives all its workers a niceness of 15: a training worker would wait for whatever else the machine does.
    os.environ.setdefault("RAY_worker_niceness", str(_NICENESS))
    options |= {"include_dashboard": False, "address": "local"}
    options |= {"object_store_memory": _OBJECT_STORE_BYTES, "num_cpus": num_cpus}
    for attempt in range(_STARTS):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray has no class of its own for this
            if "timed out during startup" not in str(error) or attempt == _STARTS - 1:
                raise
            ray.shutdown()


def _environment_of_workers() -> dict[str, str]:
    """``ENVIRONMENT`` as it is set here, for processes on other machines, which do not inherit it.

    Ray lays this over the environment that a job was submitted with (its working directory stays), and refuses a
    variable that both set; what the job says, holds.
    """
    job = submitted_environment()
    return {key: os.environ[key] for key in ENVIRONMENT if key not in job}


def nodes() -> list[dict[str, float]]:
    """The resources of each machine of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_resources(config: Config, machines: Sequence[Mapping[str, float]]) -> None:
    """Refuse a run that this cluster cannot hold: all workers, one data task beside them, and the task that validates
    where ``evaluation.asynchronous`` asks for one (it takes what a worker takes). None of them can be shared out over
    two machines.

    Args:
        machines: what ``nodes`` says.

    Raises:
        ResourceError: with the sum spelled out.
    """
    part, beside = config.resources, int(config.evaluation.asynchronous)
    cpus, gpus = (sum(machine.get(kind, 0.0) for machine in machines) for kind in ("CPU", "GPU"))
    takers = part.num_workers + beside
    needed = takers * part.cpus_per_worker + part.cpus_per_data_task
    validation = f" + {beside} validation task of {part.cpus_per_worker:g}" if beside else ""
    if needed > cpus + 1e-6:
        fits = max(0, int((cpus - part.cpus_per_data_task + 1e-6) / part.cpus_per_worker) - beside)
        share = max(0.0, (cpus - part.cpus_per_data_task) / takers)
        raise ResourceError(
            f"the run asks for {needed:g} CPUs ({part.num_workers} workers x {part.cpus_per_worker:g}{validation} + "
            f"one data task of {part.cpus_per_data_task:g}), and there are {cpus:g}. At most {fits} workers of that "
            f"size fit; or let each take less: resources.cpus_per_worker={int(share * 100) / 100:g}"
        )
    each_gpu = part.gpus_per_worker
    if part.use_gpu and takers * each_gpu > gpus + 1e-6:
        to_validate = f" + {each_gpu:g} to validate" if beside else ""
        raise ResourceError(
            f"the run asks for {takers * each_gpu:g} GPUs ({part.num_workers} workers x {each_gpu:g}{to_validate}), "
            f"and there are {gpus:g}; set resources.num_workers, or resources.use_gpu=false"
        )
    fits = max((_room(part, machines, place) for place in range(len(machines))), default=0)
    if takers > fits:
        each = ", ".join(f"{m.get('CPU', 0):g} CPUs and {m.get('GPU', 0):g} GPUs" for m in machines)
        raise ResourceError(
            f"the run asks for {part.num_workers} workers of {part.cpus_per_worker:g} CPUs{' and a GPU' * part.use_gpu}"
            f"{validation} + one data task of {part.cpus_per_data_task:g}, each on one machine. There are enough in "
            f"all, and room for {fits} beside the data task: the machines have {each}. Set resources.num_workers or "
            "resources.cpus_per_worker"
        )


def _room(part: ResourcesConfig, machines: Sequence[Mapping[str, float]], data_task: int) -> int:
    """How many workers the machines hold when the data task is on one of them."""
    room = 0
    for place, machine in enumerate(machines):
        cpus = machine.get("CPU", 0.0) - (part.cpus_per_data_task if place == data_task else 0.0)
        if cpus < -1e-6:
            return 0
        most = int((cpus + 1e-6) / part.cpus_per_worker)
        room += min(most, int(machine.get("GPU", 0.0)) * int(1 / part.gpus_per_worker + 1e-6)) if part.use_gpu else most
    return room


def threads_per_worker(config: Config) -> int:
    """Torch threads of a worker: as given, else this machine's cores over the workers (with a GPU: its CPUs).

    One core is left to the data tasks: threads that share theirs wait for the slowest at every operation. On 2 cores a
    worker with 2 threads trained 20 clips/s while data was decoded beside it, and one with 1 thread 59.
    """
    part = config.resources
    if part.threads_per_worker is not None:
        return part.threads_per_worker
    if part.use_gpu:
        return max(1, int(part.cpus_per_worker))
    return max(1, ((os.cpu_count() or 1) - 1) // part.num_workers)
