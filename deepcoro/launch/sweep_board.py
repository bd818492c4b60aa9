"""A sweep in TensorBoard: ``tensorboard --logdir runs/SWEEP`` has all trials in the tab HParams.

Each trial that has ended, in whatever way, is a line, written into its run's folder: the run itself, which knows itself
a trial by ``TRIAL_FILE``, writes none. The columns stand in the sweep's own ``tensorboard/``, and are written anew with
every line: what is searched shows itself by the values that were tried.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from deepcoro.config import Config
from deepcoro.launch.search import FIELDS
from deepcoro.launch.space import with_fields
from deepcoro.launch.sweep_results import reached_step, run_of
from deepcoro.training.hparams import experiment_columns, fields_of_line, flat_fields, session_line, with_types_of
from deepcoro.training.validation import read_results

STATE = "trial.state"  # a column: complete, pruned or fail; confirmed, of the runs of a confirmation
_MARK = ".hparams"  # how the names of these files end


def write_board(study: optuna.Study, folder: Path, config: Config) -> list[Path]:
    """Write the lines of trials that have ended and have none yet, and the columns.

    Args:
        config: of the sweep, over which a trial's fields are laid.

    Returns:
        What was written. Nothing of a trial that left no run, such as one whose values the config refuses.
    """
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    written = []
    for trial in ended:
        run, tried = run_of(folder, trial), trial.user_attrs.get(FIELDS, {})
        if run is not None and run.is_dir() and not _has(run / "tensorboard"):
            own = with_fields(config, tried)
            written.append(write_line(run, own, tried, trial.state.name.lower(), reached_step(trial) or 0))
    if written or not _has(folder / "tensorboard"):
        columns = {STATE: "", **with_types_of(flat_fields(config), _tried(study))}
        shown = [STATE, *varied_fields(study)]
        summary = experiment_columns(columns, shown, metrics_shown(study, folder, ended))
        for old in (folder / "tensorboard").glob(f"*tfevents*{_MARK}"):
            old.unlink()
        written.append(_append(folder / "tensorboard", summary, 0))
    return written


def write_line(run: Path, config: Config, tried: Collection[str], state: str, step: int) -> Path:
    """The line of one run, unless it is there.

    Args:
        tried: fields that are told whether or not they are defaults.
        state: what stands in the column ``STATE``; ``fail`` is a failed one.
    """
    line = session_line({STATE: state, **fields_of_line(config, tried)}, failed=state == "fail")
    return next((run / "tensorboard").glob(f"*tfevents*{_MARK}"), None) or _append(run / "tensorboard", line, step)


def varied_fields(study: optuna.Study) -> list[str]:
    """Fields of the config in which the trials may differ, in the order of the space: those that more than one value
    was tried of."""
    seen = {name: set(map(repr, values)) for name, values in _tried(study).items()}
    return [name for name, values in seen.items() if len(values) > 1] or list(seen)


def _tried(study: optuna.Study) -> dict[str, list[Any]]:
    """The values that were tried of each field."""
    found: dict[str, list[Any]] = {}
    for trial in study.get_trials(deepcopy=False):
        for name, value in trial.user_attrs.get(FIELDS, {}).items():
            found.setdefault(name, []).append(value)
    return found


def metrics_shown(study: optuna.Study, folder: Path, trials: list[FrozenTrial]) -> list[str]:
    """The objectives, and then what else the trials report."""
    names = list(study.metric_names or [])
    for trial in trials:
        run = run_of(folder, trial)
        for metrics in read_results(run).values() if run is not None else ():
            names += [name for name in metrics if name not in names]
    return names


def _has(folder: Path) -> bool:
    return any(folder.glob(f"*tfevents*{_MARK}"))


def _append(folder: Path, summary: Summary, step: int) -> Path:
    """A file of events of its own, which TensorBoard reads after those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.[0-9]*")]
    second = max([int(time.time()), *(taken + 1 for taken in seconds)])
    path = folder / f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}{_MARK}"
    now = time.time()
    with path.open("wb") as stream:
        writer = RecordWriter(stream)
        for event in (
            Event(wall_time=now, file_version="brain.Event:2"),
            Event(wall_time=now, step=step, summary=summary),
        ):
            writer.write(event.SerializeToString())
    return path
