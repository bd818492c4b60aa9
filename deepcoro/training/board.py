"""What a run writes down of itself: TensorBoard for people, metrics.jsonl for programs, problems.jsonl for what went
wrong on the way. Only rank 0 has a board.

Every file is appended to in whole records, and opened for each of them. So a full disk, which must not end a run, shows
itself at once and here, leaves no half record behind, and the next write is as good as any: TensorBoard's own writer
fails in a thread of its own, some records later, and for ever.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import custom_scalars

from deepcoro.config import Config
from deepcoro.models.multitask import MultitaskModel
from deepcoro.training.hparams import USUAL, experiment_columns, fields_of_line, flat_fields, session_line
from deepcoro.training.pictures import Pictures

MODEL_FILE = "model.json"
_LAYOUT = {  # tab "Custom Scalars": curves that are read against each other, in one chart; tags are regular expressions
    "Training": {
        "losses": ["Multiline", ["loss/.*"]],
        "loss weights": ["Multiline", ["loss_weight/.*"]],
        "learning rates": ["Multiline", ["learning_rate/.*"]],
    },
    "Validation": {
        "report to video": ["Multiline", ["validation/retrieval/report_to_video/recall.*"]],
        "video to report": ["Multiline", ["validation/retrieval/video_to_report/recall.*"]],
        "reports": [
            "Multiline",
            [r"validation/captioning/(?!stenosis_mae|hallucinated|missed|segment_auroc_seg)[^/]+$"],
        ],
        "errors of percent stenosis": ["Multiline", [r"validation/captioning/stenosis_mae[^/]*$"]],
        "wrong findings a report": ["Multiline", [r"validation/captioning/(hallucinated|missed)_findings$"]],
        "reconstruction": ["Multiline", [r"validation/masked_modeling/[^/]+$"]],
    },
}
_LEGEND = """\
`pictures/reconstruction/n`, of row *n* of the table of reports: some frames, what the model was shown of them, and the
hidden tokens as it predicts them. Where predictions are normalised, each hidden token has its own true mean and
deviation put back: only the pattern inside a token is the model's own.

`pictures/attention/n`, of the same row: some frames, and where the video embedding comes from, the redder the more.

`pictures/similarity`: cosine of each video (down) with each report (across), -1 blue, 0 white, 1 red; pairs of equal
reports are outlined. Rows without report are left out.
"""


class Board:
    """Writes what a run's folder tells, as it comes, from ``first_step`` on.

    What an earlier start wrote of that step or later is taken out: those steps are run again, and stand once.
    What cannot be written is left out and counted. It is told on stderr when that begins, and in ``problems.jsonl``
    when it is over.
    """

    def __init__(self, run: Path, first_step: int) -> None:
        self._run, self._first_step = run, first_step
        self._events: Path | None = None  # the event file to go on with; None: begin one
        self._is_purged = self._is_trimmed = self._is_explained = False
        self._outage: OSError | None = None
        self._lost: list[int] = []  # step of each write that is missing, since the outage began
        self._attempt(None, self._append_events, self._trim_metrics)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write ``values`` at ``step``, to TensorBoard and, those that are finite (JSON knows no others), as a line of
        ``metrics.jsonl``."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        line = {"step": step, "time": time.time(), **{name: x for name, x in values.items() if math.isfinite(x)}}
        self._attempt(step, lambda: self._append_events(_event(step, summary)), lambda: self._append_metrics(line))

    def pictures(self, step: int, pictures: Pictures) -> None:
        """Write what was drawn at ``step``; what is absent is left out.

        Images ``pictures/reconstruction/<n>`` and ``pictures/attention/<n>``, where ``<n>`` is the row in the table of
        reports, and ``pictures/similarity``, and the texts ``reports`` and, once a start, ``legend``.
        """
        summary = Summary()
        for number, strip in enumerate(pictures.strips if pictures.strips is not None else []):
            summary.value.append(_image(f"pictures/reconstruction/{number}", strip))
        if pictures.similarity is not None:
            summary.value.append(_image("pictures/similarity", pictures.similarity))
        for number, picture in enumerate(pictures.attention if pictures.attention is not None else []):
            summary.value.append(_image(f"pictures/attention/{number}", picture))
        if pictures.reports:
            summary.MergeFrom(text_pb("reports", reports_table(pictures.reports)))
        if not summary.value:
            return
        if not self._is_explained:
            summary.MergeFrom(text_pb("legend", _LEGEND))
        self._attempt(step, lambda: self._append_events(_event(step, summary)))
        self._is_explained = self._outage is None

    def hparams(self, config: Config, metrics: Mapping[str, float]) -> None:
        """Put the run into the tab HParams, as one entry: the fields of ``config`` that differ from their defaults and
        the usual ones, beside ``metrics`` (names of validation metrics; TensorBoard shows their newest scalars).

        Where a run is put in twice, as when it goes on after its last step, TensorBoard keeps the first entry.
        """
        names = sorted(metrics, key=lambda name: (name != config.training.best_metric, name.startswith("data/")))
        summary = experiment_columns(flat_fields(config), USUAL, names)
        summary.MergeFrom(session_line(fields_of_line(config)))
        step = config.training.num_steps
        self._attempt(step, lambda: self._append_events(_event(step, summary)))

    def close(self) -> None:
        """Say what is still missing. Nothing is held open."""
        if self._lost:
            note(self._run, self._missing())
            self._lost, self._outage = [], None

    def _attempt(self, step: int | None, *writes: Callable[[], None]) -> None:
        """Do each of ``writes`` that can be done, and keep account of the values of ``step`` if one cannot."""
        failed: OSError | None = None
        for write in writes:
            try:
                write()
            except OSError as error:
                failed = error
        if failed is not None:
            if self._outage is None:
                print(
                    f"\nWARNING: scalars and pictures cannot be written to {self._run}: {failed}. The run goes on "
                    "without, and tries again with every new one; make room",
                    file=sys.stderr,
                    flush=True,
                )
            self._outage = failed
            if step is not None:
                self._lost.append(step)
        elif self._outage is not None:
            try:
                if self._lost:
                    append_line(self._run / "problems.jsonl", {"problem": self._missing()})
            except OSError:  # told at the next write, or at the end
                return
            self._lost, self._outage = [], None

    def _missing(self) -> str:
        return (
            f"{len(self._lost)} writes of steps {self._lost[0]} to {self._lost[-1]} are missing in tensorboard or "
            f"metrics.jsonl: {self._outage}"
        )

    def _append_events(self, *events: Event) -> None:
        data = b"".join(_record(event) for event in events)
        if self._events is None:
            self._events = _new_event_file(self._run / "tensorboard")
            data = self._head() + data
        try:
            with self._events.open("ab", buffering=0) as stream:
                _append_whole(stream, data)
        except OSError:
            # A TensorBoard that is looking on may have read a part of what is no longer there: leave this file to it.
            _drop_if_empty(self._events)
            self._events = None
            raise
        self._is_purged = True

    def _head(self) -> bytes:
        """First records of an event file. The run's first one takes out what it will write again."""
        begin = Event(wall_time=time.time(), file_version="brain.Event:2")
        if self._is_purged:
            return _record(begin)
        purge = Event(wall_time=time.time(), step=self._first_step, session_log=SessionLog(status=SessionLog.START))
        return _record(begin) + _record(purge) + _record(_event(0, custom_scalars(_LAYOUT)))

    def _append_metrics(self, line: Mapping[str, Any]) -> None:
        if not self._is_trimmed:
            self._trim_metrics()
        append_line(self._run / "metrics.jsonl", line)

    def _trim_metrics(self) -> None:
        keep_lines_before(self._run / "metrics.jsonl", self._first_step)
        self._is_trimmed = True


def describe_model(run: Path, model: MultitaskModel, plan: Iterable[str] = ()) -> None:
    """Write ``model.json``: the parameters of each component with those that are trained, what weights the model began
    with, and the lines of ``plan`` (``training/plan.py``). Where it cannot be written the run goes on."""
    described = {"parameters": model.num_parameters(), "loaded": model.loaded, "plan": list(plan)}
    try:
        (run / MODEL_FILE).write_text(json.dumps(described, indent=1) + "\n")
    except OSError as error:
        note(run, f"{MODEL_FILE} could not be written: {error}")


def note(run: Path, text: str) -> None:
    """Append ``text`` to ``problems.jsonl`` of the run, where whoever started it is told of it.

    On stderr where that cannot be written: what is told here did not end the run, and neither does this.
    """
    _note(run, {"problem": text})


def note_problems(run: Path, batches: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Append to ``problems.jsonl`` of the run each unit of ``batches`` that has a view which could not be read, and
    why. Every worker appends to the one file."""
    for batch in batches:
        for unit, problem in zip(batch["unit_id"], batch["problem"], strict=True):
            if problem:
                _note(run, {"unit_id": str(unit), "problem": str(problem)})


def reports_table(reports: Iterable[tuple[str, str, str]]) -> str:
    """A Markdown table of (unit, true text, written text), numbered from 0. Signs that mean something in Markdown or
    HTML stand as entities, so that a cell shows what was written and nothing else."""
    rows = ["| | unit | true | written |", "|---|---|---|---|"]
    for number, cells in enumerate(reports):
        rows.append(f"| {number} | " + " | ".join(_escape(cell) for cell in cells) + " |")
    return "\n".join(rows)


def _escape(text: str) -> str:
    return re.sub(r"""[&<>"'|\\`*_\[\]]""", lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


def _event(step: int, summary: Summary) -> Event:
    return Event(wall_time=time.time(), step=step, summary=summary)


def _image(tag: str, picture: np.ndarray) -> Summary.Value:
    """``picture`` uint8 [h, w] or [h, w, 3] as a PNG."""
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG")
    image = Summary.Image(
        height=picture.shape[0],
        width=picture.shape[1],
        colorspace=1 if picture.ndim == 2 else 3,
        encoded_image_string=png.getvalue(),
    )
    return Summary.Value(tag=tag, image=image)


def _record(event: Event) -> bytes:
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()


def _new_event_file(folder: Path) -> Path:
    """A name that comes after those in ``folder``, whatever the clocks say: TensorBoard reads files by name, which
    begins with the second."""
    folder.mkdir(parents=True, exist_ok=True)
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.[0-9]*")]
    second = max([int(time.time()), *(taken + 1 for taken in seconds)])
    return folder / f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}"


def _drop_if_empty(path: Path) -> None:
    if path.exists() and path.stat().st_size == 0:
        path.unlink()


def _append_whole(stream: io.FileIO, data: bytes) -> None:
    """Append ``data`` whole or not at all, in one write, which the system does not mix with those of others."""
    size, rest = stream.seek(0, os.SEEK_END), data
    try:
        while rest:
            rest = rest[stream.write(rest) :]
    except OSError:
        if stream.seek(0, os.SEEK_END) == size + len(data) - len(rest):  # unless another has appended meanwhile
            stream.truncate(size)
        raise


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add ``record`` to a file of JSON lines; several processes may, at the same time."""
    with path.open("ab+", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        # A process that was killed may have left half a line; it gets its end, and stays alone.
        torn = size > 0 and os.pread(stream.fileno(), 1, size - 1) != b"\n"
        _append_whole(stream, b"\n" * torn + json.dumps(record).encode() + b"\n")


def _note(run: Path, record: Mapping[str, str]) -> None:
    try:
        append_line(run / "problems.jsonl", record)
    except OSError as error:
        told = " ".join(record.values())
        print(f"\nWARNING: {told} (problems.jsonl cannot be written: {error})", file=sys.stderr, flush=True)


def keep_lines_before(path: Path, step: int) -> None:
    """Take lines of ``step`` and later out of the file, and torn ones."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] < step]
    if len(kept) < len(lines):
        scratch = path.with_suffix(".partial")
        scratch.write_text("".join(kept))
        scratch.replace(path)
