"""One trial of a sweep, in a process of Tune's: a run that reports its evaluations, and what it leaves behind.

A trial of one worker trains in the trial's own process, which takes the next trial when it has ended: its imports are
paid for once. One of several workers hands over to Ray Train.

An error that is raised on purpose ends the trial and not its process. After any other one nobody knows what state the
process is in (a GPU may answer to nothing more), so it goes too. Neither is tried again, since it would only come
again. A process that was killed is, from the run's own checkpoint, and so is one that lost the Ray that it stands on:
both are no fault of the trial's, and no error of it is noted.
"""

from __future__ import annotations

import gc
import json
import os
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.tune.integration.ray_train import TuneReportCallback

from deepcoro.config import Config
from deepcoro.errors import DeepCoroError
from deepcoro.launch.search import ASKED, FIELDS, RUN, Left
from deepcoro.launch.space import with_fields
from deepcoro.launch.sweep_times import ENDED, times_of
from deepcoro.launch.train import train
from deepcoro.training.hparams import TRIAL_FILE
from deepcoro.training.validation import read_results

ERROR_FILE, TRACE_FILE = "error.txt", "traceback.txt"
_TELLING = ("torch", "safetensors")  # packages whose messages tell of shapes and memory, and of nobody's data


def run_trial(base: Mapping[str, Any], trials: Path, point: Mapping[str, Any]) -> None:
    """Train what Tune's ``point`` says, laid over the config ``base``, as a run in the folder ``trials``."""
    entered, parent = time.time(), os.getppid()
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")  # a stopped trial lets go of its data first
    config = with_fields(Config(**base), point[FIELDS]).merge({"root": str(trials), "name": point[RUN]})
    run = trials / point[RUN]
    if (run / ERROR_FILE).exists():  # of this trial, whose process went with the error
        return
    run.mkdir(parents=True, exist_ok=True)
    _write(run / TRIAL_FILE, json.dumps({"fields": point[FIELDS]}, indent=1) + "\n")
    for step, metrics in read_results(run).items():  # of a run that goes on
        tune.report({"step": step, **metrics})
    try:
        if config.resources.num_workers == 1:
            train(config, alone=tune.report)
        else:
            train(config, callbacks=[TuneReportCallback()])
    except Exception as raised:
        of_ray = isinstance(raised, RayError) and not isinstance(raised, RayTaskError)
        if of_ray or os.getppid() != parent:
            raise
        cause = raised.cause if isinstance(raised, RayTaskError) else None  # what our own code came to in a data task
        error = cause if isinstance(cause, Exception) else raised
        (run / TRACE_FILE).write_text("".join(traceback.format_exception(raised)))
        _write(run / ERROR_FILE, told_error(error) + "\n")
        if not isinstance(error, DeepCoroError):
            raise RuntimeError(f"{point[RUN]} failed; {run / TRACE_FILE} says where") from None
    finally:
        gc.collect()  # the stream of data, with what it holds in Ray's object store
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        began = {"asked": point[ASKED], "process": _birth(), "entered": entered}
        _write(run / ENDED, json.dumps(began | {"ended": time.time()}))


def left_behind(trials: Path, run: str) -> Left:
    """What a trial's run holds now."""
    folder = trials / run
    error = (folder / ERROR_FILE).read_text().strip() if (folder / ERROR_FILE).exists() else None
    return Left(read_results(folder), error, times_of(folder))


def told_error(error: Exception) -> str:
    """An error for the table and the study, which many may read: its kind, and its message where that cannot hold data
    of patients; else the place in the code. The whole of it stays in the run, as ``traceback.txt``."""
    kind = type(error).__name__
    if isinstance(error, DeepCoroError):
        return f"{kind}: {error}"
    frames = traceback.extract_tb(error.__traceback__)  # none of a cause that came from another process
    place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "an unknown place"
    if isinstance(error, OSError) and error.strerror:
        return f"{kind}: {error.strerror} (at {place})"
    inside = frames[-1].filename if frames else ""
    if type(error).__module__.startswith(_TELLING) or any(f"/{name}/" in inside for name in _TELLING):
        return f"{kind}: {str(error).splitlines()[0] if str(error) else ''} (at {place})"
    return f"{kind} at {place}; {TRACE_FILE} of its run has the message"


def _birth() -> float:
    """When this process began (``time.time()``); where there is no /proc, now."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return time.time()
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.partial")
    scratch.write_text(text)
    scratch.rename(path)
