"""One line on the terminal that says how far a run is, from the scalars its first worker writes."""

from __future__ import annotations

import json
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from deepcoro.config import Config
from deepcoro.training.board import MODEL_FILE

_TAIL_BYTES = 65536  # of metrics.jsonl: the newest lines, however long the run


def model_lines(described: dict[str, Any]) -> list[str]:
    """What ``training.board.describe_model`` wrote, for a person."""
    parts = ", ".join(
        f"{name} {number / 1e6:.2f}" + ("" if trained == number else f" ({trained / 1e6:.2f} trained)")
        for name, (number, trained) in described["parameters"].items()
    )
    number, trained = (sum(pair[i] for pair in described["parameters"].values()) for i in (0, 1))
    counted = f"{number / 1e6:.2f} M parameters, {trained / 1e6:.2f} M trained: {parts}"
    return [*described["loaded"], counted, *described["plan"]]


class Progress:
    """Follows ``metrics.jsonl`` while a run trains. On a terminal the line is rewritten; in a log it comes now and
    then."""

    def __init__(self, run: Path, config: Config, every_seconds: float = 15.0) -> None:
        self.path, self.config = run / "metrics.jsonl", config
        self.every_seconds = 1.0 if sys.stderr.isatty() else every_seconds
        self.problems = run / "problems.jsonl"
        self._problems_read = self.problems.stat().st_size if self.problems.exists() else 0
        self._told: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._started = time.time()
        self._first: tuple[float, int] | None = None
        self._shown, self._model_told = "", False

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._show()
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def _follow(self) -> None:
        while not self._stop.wait(self.every_seconds):
            self._show()

    def _show(self) -> None:
        self._show_model()
        self._show_problems()
        line = self._line()
        if line and line != self._shown:
            self._shown = line
            if sys.stderr.isatty():
                print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            else:
                print(line, file=sys.stderr, flush=True)

    def _show_model(self) -> None:
        """What is trained, and what it starts from, once the first worker has made it."""
        path = self.path.with_name(MODEL_FILE)
        if self._model_told or not path.exists() or path.stat().st_mtime < self._started:
            return
        self._model_told = True
        print("\n".join(model_lines(json.loads(path.read_text()))), file=sys.stderr, flush=True)

    def _show_problems(self) -> None:
        """What went wrong without ending the run. A unit that cannot be read is told once, however often the stream
        comes by it."""
        if not self.problems.exists():
            return
        with self.problems.open() as stream:
            stream.seek(self._problems_read)
            for row in iter(stream.readline, ""):
                if not row.endswith("}\n"):  # torn by a process that was killed
                    continue
                problem = json.loads(row)
                unit = problem.get("unit_id")
                if unit is None:
                    print(f"\nWARNING: {problem['problem']}", file=sys.stderr, flush=True)
                elif unit not in self._told:
                    self._told.add(unit)
                    print(f"\nWARNING: left out {unit}: {problem['problem']}", file=sys.stderr, flush=True)
            self._problems_read = stream.tell()

    def _line(self) -> str:
        if not self.path.exists():
            return ""
        with self.path.open("rb") as stream:
            stream.seek(max(0, self.path.stat().st_size - _TAIL_BYTES))
            rows = [json.loads(row) for row in stream if row.startswith(b"{") and row.endswith(b"}\n")]
        rows = [row for row in rows if "loss/total" in row and row["time"] >= self._started]
        if not rows:
            return ""
        newest, total = rows[-1], self.config.training.num_steps
        if self._first is None:
            self._first = (rows[0]["time"], rows[0]["step"])
        done = newest["step"] - self._first[1]
        left = (newest["time"] - self._first[0]) / done * (total - newest["step"]) if done else None
        losses = "  ".join(
            f"{name.removeprefix('loss/')} {value:.3f}"
            for name, value in newest.items()
            if name.startswith("loss/") and name != "loss/total"
        )
        eta = "" if left is None else f"  left {timedelta(seconds=round(left))}"
        return (
            f"step {newest['step']}/{total}{eta}  loss {newest['loss/total']:.3f}  {losses}  "
            f"{newest['throughput/clips_per_second']:.1f} clips/s  waiting {newest['throughput/data_wait_share']:.0%}"
        )
