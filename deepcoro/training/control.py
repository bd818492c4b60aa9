"""What the workers of a run have to agree on: who writes, whether to stop, and what cannot be mended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock

from deepcoro import errors
from deepcoro.errors import DeepCoroError

STOP_FILE = ".stop"
_FATAL = "fatal.json"


def writer_lock(run: Path) -> FileLock:
    """The lock that the first worker of a run holds as long as it lives; it is let go when the process dies."""
    return FileLock(run / ".writer")


def control_group() -> Any:
    """A process group of all workers for small messages and Python objects, on the CPU; ``None`` for one worker."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return dist.new_group(backend="gloo")


def from_first(number: int, group: Any) -> int:
    """The first worker's ``number``, on all workers.

    They have to hear it from each other: a file that one of them sees now, another might see a step later.
    """
    if group is None:
        return number
    told = torch.tensor([number])
    dist.broadcast(told, src=0, group=group)
    return int(told.item())


def stop_requested(run: Path, group: Any) -> bool:
    """Whether the run was asked to save and end."""
    return bool(from_first((run / STOP_FILE).exists(), group))


def note_fatal(launch: Path, error: DeepCoroError) -> None:
    """Keep an error that a restart would only meet again, such as a loss that is not finite, in the folder of this
    start."""
    (launch / _FATAL).write_text(json.dumps({"kind": type(error).__name__, "message": str(error)}))


def raise_fatal(launch: Path) -> None:
    """Raise the error that ``note_fatal`` kept there, if any."""
    if (launch / _FATAL).exists():
        kept = json.loads((launch / _FATAL).read_text())
        raise getattr(errors, kept["kind"])(kept["message"])
