"""``train --dry-run``: what a run would do and cost, and whether it would start. Nothing is trained, and the run's
folder is not touched."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deepcoro.config import Config
from deepcoro.data.reader import UnitReader
from deepcoro.data.schema import SPLITS, UNITS
from deepcoro.data.tables import PreparedDataset, Units
from deepcoro.data.text import ReportTokenizer
from deepcoro.errors import CheckpointError, DataError, ResourceError, UserError
from deepcoro.launch.estimate import (
    CPU_RATE_PER_THREAD,
    GPU_RATE,
    activation_bytes,
    empty_model,
    state_bytes,
    teacher_bytes,
    time_step,
)
from deepcoro.launch.going_on import check_going_on
from deepcoro.launch.lock import is_running
from deepcoro.launch.paths import absolute
from deepcoro.launch.resources import check_resources, nodes, set_environment, start_ray, threads_per_worker
from deepcoro.launch.show import align, differences, indent
from deepcoro.launch.train import resolve, run_folder, save_tokenizer
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.passes import embedding_flops, passes, step_flops
from deepcoro.models.pretrained import resolve_architecture
from deepcoro.training.checkpoint import committed_steps, verify_checkpoint
from deepcoro.training.optim import parameter_groups
from deepcoro.training.plan import training_plan
from deepcoro.training.validation import run_tokenizer

_NUM_TEXTS = 64  # that are looked at for their length
_SECONDS_TO_MEASURE = 3.0  # a step that is thought to take longer is not timed
_PROCESS_BYTES = 1e9  # of a worker with torch and Ray and nothing in it


@dataclass
class _Plan:
    """What is known of a run so far."""

    config: Config
    run: Path
    dataset: PreparedDataset | None = None
    units: Units | None = None
    start: int = 0  # the step it would go on from
    checkpoint: Path | None = None
    tokenizer: ReportTokenizer | None = None
    text_tokens: int = 1


def dry_run(config: Config) -> list[str]:
    """Print what training ``config`` would do and cost, and return what keeps it from starting, if anything.

    Raises:
        UserError: the run has no place.
    """
    set_environment()
    run = run_folder(config)
    plan = _Plan(config.merge({"root": str(run.parent)}), run)
    problems: list[str] = []
    with _kept(problems):
        _open_data(plan)
    with _kept(problems):
        _take_up(plan)
    if not plan.start:
        with _kept(problems):
            plan.config = resolve_architecture(plan.config)
    print(f"{run}: a dry run, nothing is trained or written\n")
    print("config, where it differs from the default (in brackets)", *indent(differences(plan.config)), sep="\n")
    print(f"  all of it would be saved as {run / 'config.yaml'}\n")
    with _kept(problems):
        _say_data(plan)
    _say_length(plan)
    with _kept(problems):
        model = empty_model(plan.config, plan.checkpoint) if _is_known(plan) else None
        if model is None:
            print("model, memory, time and disk: not known without what is missing (below)\n")
        else:
            _say_model(model)
            print(*training_plan(plan.config, parameter_groups(model, plan.config.optim)), "", sep="\n")
            _say_costs(plan, model)
    with _kept(problems):
        _say_resources(plan.config)
    if is_running(run):
        problems.append(f"{run} is being trained already; wait for it, or give this run another name")
    print("it would start" if not problems else "it would NOT start", flush=True)
    return problems


def seconds_of_run(config: Config) -> tuple[float, str]:
    """Seconds that training ``config`` from the beginning takes, without validation and waiting for data, and where the
    number comes from.

    Raises:
        UserError: the dataset or the config cannot do it.
    """
    plan = _Plan(config, run_folder(config))
    _open_data(plan)
    _take_up(plan)
    plan.config = resolve_architecture(plan.config)
    seconds, how = _seconds_per_step(plan, _flops(plan, empty_model(plan.config, plan.checkpoint)))
    return config.training.num_steps * seconds, how


@contextlib.contextmanager
def _kept(problems: list[str]) -> Iterator[None]:
    """Keep a mistake of the user's for the end, so that the rest is told too."""
    try:
        yield
    except UserError as error:
        problems.append(str(error))


def _open_data(plan: _Plan) -> None:
    part = plan.config.data
    plan.config = plan.config.merge({"data": {"path": absolute(part.path, "data.path")}})
    plan.dataset = PreparedDataset.open(plan.config.data.path)
    plan.units = plan.dataset.units("train", part.unit, part.filter)
    plan.config = resolve(plan.config, plan.dataset, plan.units)


def _take_up(plan: _Plan) -> None:
    """Whether the run begins or goes on, as ``train`` would find out, and the tokenizer."""
    steps = committed_steps(plan.run)
    if steps:
        checkpoint = _newest_sound(plan.run, steps)
        plan.start, plan.checkpoint = int(checkpoint.name), checkpoint
        if plan.dataset is not None:
            plan.config, _ = check_going_on(checkpoint, plan.config, plan.dataset)
        plan.tokenizer = run_tokenizer(plan.config, plan.run)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            plan.config = save_tokenizer(plan.config, Path(scratch))
            plan.tokenizer = run_tokenizer(plan.config, Path(scratch))
    if plan.tokenizer is not None:
        plan.text_tokens = plan.config.data.max_text_length
    if plan.tokenizer is not None and plan.units is not None:
        reader = UnitReader(plan.config, plan.units, None, training=False)
        some = np.linspace(0, len(plan.units) - 1, min(_NUM_TEXTS, len(plan.units))).astype(int)
        plan.text_tokens = int(plan.tokenizer.encode([reader.text(unit) for unit in some.tolist()])[1].max())


def _newest_sound(run: Path, steps: list[int]) -> Path:
    found = []
    for step in reversed(steps):
        try:
            verify_checkpoint(run / "checkpoints" / str(step))
            return run / "checkpoints" / str(step)
        except CheckpointError as error:
            found.append(str(error))
    raise CheckpointError(f"no checkpoint of {run} is sound:\n" + "\n".join(found))


def _say_data(plan: _Plan) -> None:
    dataset, part = plan.dataset, plan.config.data
    if dataset is None:
        return
    rows = [["split", UNITS[part.unit], "with text", "patients"]]
    problem = None
    for split in SPLITS:
        numbers = [0, 0, 0]
        try:
            units = dataset.units(split, part.unit, part.filter)
            told = units.has_text(needs_report=part.text_needs_report)
            numbers = [len(units), int(told.sum()), len(set(units.column("patient_id")))]
        except DataError as error:
            # The training split was told of before; the test split is not needed for training.
            if split == "val" and dataset.num_studies()["val"]:
                problem = error
        rows.append([split, *map(str, numbers)])
    kept = "" if part.filter is None else f", where {part.filter}"
    print(f"data, {part.path}{kept}", *indent(align(rows)), "", sep="\n")
    if problem is not None:
        raise problem


def _say_length(plan: _Plan) -> None:
    training = plan.config.training
    samples = training.num_steps * training.batch_size
    rows = f"{training.num_steps} steps of {training.batch_size} {UNITS[plan.config.data.unit]}, {samples} in all"
    epochs = "" if plan.units is None else f": {samples / len(plan.units):.1f} epochs of {len(plan.units)}"
    begin = f"the run goes on from step {plan.start}" if plan.start else "the run begins"
    if plan.start >= training.num_steps:
        begin = f"the run has its {plan.start} steps: there is nothing left to train"
    print("length", f"  {rows}{epochs}", f"  {begin}", "", sep="\n")


def _is_known(plan: _Plan) -> bool:
    return plan.config.video_encoder.is_resolved and (not plan.config.needs_text or plan.tokenizer is not None)


def _say_model(model: MultitaskModel) -> None:
    counts = model.num_parameters()
    counts["all"] = tuple(map(sum, zip(*counts.values(), strict=True)))  # type: ignore[assignment]
    rows = [["component", "parameters", "trained"]]
    rows += [[name, f"{number / 1e6:.2f} M", f"{trained / 1e6:.2f} M"] for name, (number, trained) in counts.items()]
    print("parameters", *indent(align(rows)), "", sep="\n")


def _say_costs(plan: _Plan, model: MultitaskModel) -> None:
    config, training = plan.config, plan.config.training
    rows, part = config.micro_batch_size, passes(config, model, plan.text_tokens)
    has_average, sharded = training.ema_decay is not None, config.resources.sharding == "full"
    state = state_bytes(model, training.precision, config.resources.num_workers, has_average, sharded)
    taught = teacher_bytes(config, model)
    memory = state | ({"teacher": taught} if taught else {})
    memory |= {"activations": activation_bytes(part, rows, training.precision)}
    if not config.resources.use_gpu:
        memory["Python and torch"] = _PROCESS_BYTES
    needed = sum(memory.values())
    where = "its GPU" if config.resources.use_gpu else "the CPU"
    text = f", with texts of {plan.text_tokens} tokens" if config.needs_text else ""
    lines = align([[name, _size(number)] for name, number in (memory | {"all": needed}).items()])
    print(f"memory of each worker on {where} (estimate; activations roughly, for {rows} rows at once{text})")
    print(*indent(lines), *indent(_too_little_memory(config, needed)), "", sep="\n")

    left = max(0, training.num_steps - plan.start)
    seconds, how = _seconds_per_step(plan, _flops(plan, model))
    print(f"time (estimate)\n  {seconds:.3g} s a step, {how}")
    print(f"  {left} steps left: {left * seconds / 3600:.3g} hours, without validation and waiting for data")
    if config.shared_pass.unmasked_tail > 0:
        print(f"  (the last {config.shared_pass.unmasked_tail:.3g} of the steps, without masks, take longer than that)")
    print()

    in_one = state_bytes(model, training.precision, num_workers=1)
    checkpoint = in_one["weights"] * (1 + has_average) + in_one["optimizer"] + teacher_bytes(config, model, saved=True)
    most = training.keep_checkpoints + 1 + (training.best_metric is not None)
    free = shutil.disk_usage(next(folder for folder in [plan.run, *plan.run.parents] if folder.exists())).free
    print(f"disk (estimate)\n  {_size(checkpoint)} a checkpoint, {_size(most * checkpoint)} for the {most} at a time")
    print(f"  {_size(free)} are free")
    if most * checkpoint > free:
        print("  WARNING: that does not fit: make room, or lower training.keep_checkpoints")
    print()


def _too_little_memory(config: Config, needed: float) -> list[str]:
    """A warning where this machine has less than the workers are thought to need. Another machine's is not known."""
    if config.resources.use_gpu:
        if not torch.cuda.is_available():
            return []
        there, wanted = torch.cuda.get_device_properties(0).total_memory, needed
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        wanted = needed * config.resources.num_workers
    if wanted < there:
        return [f"(there are {_size(there)})"]
    advice = "lower training.batch_size, or raise accumulation"
    if config.resources.use_gpu and config.resources.num_workers > 1 and config.resources.sharding == "none":
        advice += ", or divide the model among the workers with resources.sharding=full"
    return [f"WARNING: there are {_size(there)} for {_size(wanted)}: {advice}"]


def _flops(plan: _Plan, model: MultitaskModel) -> float:
    """Of a step of one worker: one with the shared pass, where there is one."""
    config, rows = plan.config, plan.config.micro_batch_size
    shared = config.shared_pass.enabled
    part = passes(config, model, plan.text_tokens, shared_pass=shared)
    once = step_flops(part, rows) + embedding_flops(config, model, plan.text_tokens, rows, shared)
    return config.training.accumulation_steps * once


def _seconds_per_step(plan: _Plan, flops: float) -> tuple[float, str]:
    """Of a whole step of one worker, which takes ``flops``; and where the number comes from."""
    config = plan.config
    threads = threads_per_worker(config)
    use_gpu = config.resources.use_gpu
    rate = GPU_RATE[config.training.precision] if use_gpu else CPU_RATE_PER_THREAD * threads
    here = torch.cuda.is_available() if use_gpu else True
    if here and flops / rate < _SECONDS_TO_MEASURE:
        device = torch.device("cuda" if use_gpu else "cpu")
        seconds = time_step(config, config.micro_batch_size, plan.text_tokens, device, threads, plan.checkpoint)
        on = torch.cuda.get_device_name(device) if use_gpu else f"this CPU with {threads} thread(s)"
        return seconds, f"measured on {on}, with noise for data"
    on = "a GPU like an A100" if use_gpu else f"{threads} thread(s)"
    return flops / rate, f"from {flops:.3g} operations at {rate:.3g} a second on {on}: not measured"


def _say_resources(config: Config) -> None:
    part, beside = config.resources, int(config.evaluation.asynchronous)
    workers = f"{part.num_workers} worker(s)" + (" and a validation task" if beside else "")
    takers = part.num_workers + beside
    asked = [takers * part.cpus_per_worker + part.cpus_per_data_task, takers if part.use_gpu else 0]
    start_ray()
    machines = nodes()
    there = {kind: sum(machine.get(kind, 0) for machine in machines) for kind in ("CPU", "GPU")}
    print(f"resources, of {'the cluster' if os.environ.get('RAY_ADDRESS') else 'this machine'}")
    rows = [["", "asked for", "there"]]
    rows += [[k, f"{n:g}", f"{there[k]:g}"] for k, n in zip(("CPU", "GPU"), asked, strict=True)]
    print(*indent(align(rows)), f"  for {workers} and one data task beside them", sep="\n")
    try:
        check_resources(config, machines)
    except ResourceError:
        print("  that does not fit\n")
        raise
    print()


def _size(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
