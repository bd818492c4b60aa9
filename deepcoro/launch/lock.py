"""A run is trained by one process at a time: the second of one name is refused.

The locks are the system's own (flock): they are let go when their holder dies, however it dies. ``.lock`` is held by
the process that launched the run, ``.writer`` by the first worker, which may outlive a launcher that was killed by some
seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from deepcoro.errors import ResourceError
from deepcoro.training.control import writer_lock

_SECONDS_TO_DIE = 60.0  # for a worker whose launcher was killed


@contextlib.contextmanager
def hold(run: Path) -> Iterator[None]:
    """Hold the run's folder while it is trained.

    Raises:
        ResourceError: somebody else trains it.
    """
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=1)  # somebody who only asks whether it is held has it for a moment
    except Timeout:
        raise ResourceError(
            f"{run} is being trained already, by {_holder(run)}; wait for it, stop it, or give this run another name"
        ) from None
    try:
        about = {"host": platform.node(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        (run / ".holder.json").write_text(json.dumps(about))
        _wait_for_the_last_writer(run)
        yield
    finally:
        lock.release()


def is_running(run: Path) -> bool:
    """Whether somebody trains the run now."""
    if not (run / ".lock").exists():
        return False
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _wait_for_the_last_writer(run: Path) -> None:
    lock = writer_lock(run)
    try:
        lock.acquire(timeout=_SECONDS_TO_DIE)
    except Timeout:
        raise ResourceError(
            f"a worker of an earlier start still writes into {run}, and has not ended in {_SECONDS_TO_DIE:.0f} s; "
            "stop it (its Ray cluster, or the process itself) and start again"
        ) from None
    lock.release()


def _holder(run: Path) -> str:
    try:
        about = json.loads((run / ".holder.json").read_text())
        return f"process {about['pid']} on {about['host']} since {about['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
