"""Stopping a run: SIGTERM (``ray job stop``, a scheduler) and Ctrl-C ask the workers to save and end.

The request is a file in the run's folder, which the first worker looks for at every step. A second Ctrl-C ends at once.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from deepcoro.training.control import STOP_FILE


class StopRequests:
    """While this context is open, signals of the process become a request to the run in ``run``."""

    def __init__(self, run: Path) -> None:
        self.file = run / STOP_FILE
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        self.file.unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():  # elsewhere Python cannot catch signals
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.file.unlink(missing_ok=True)

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended."""
        return 128 + (self.signal or signal.SIGTERM)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        self.file.touch()
        again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
        print(f"\nstopping: the run saves a checkpoint and ends{again}", file=sys.stderr, flush=True)
