"""Written reports as rows: of a Parquet folder that is there whole or not at all, and of JSON.

A row a unit. ``findings`` has the columns of ``studies.parquet``, ``boxes`` those of ``videos.parquet`` with the video
before them, both readable by whatever reads those tables.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepcoro.data.schema import BOX_TYPE, FINDING_TYPE
from deepcoro.errors import DataError
from deepcoro.inference.reports import UnitReport
from deepcoro.models.structured_probabilities import WORDS, SegmentProbability

PROBABILITY_TYPE = pa.struct(
    [("segment", pa.string()), ("significant", pa.float64()), ("sentence", pa.float64())]
    + [(word, pa.float64()) for word in WORDS]
)
REPORTS_SCHEMA = pa.schema(
    [
        pa.field("unit_id", pa.string(), nullable=False),
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("text", pa.string()),  # null: there was nothing to look at
        pa.field("tree", pa.string()),  # that the report names; null: none, or both
        pa.field("dominance", pa.string()),  # that the report names
        pa.field("findings", pa.list_(FINDING_TYPE)),
        pa.field("unread", pa.list_(pa.string())),  # phrases of the text that are not of the canonical wording
        pa.field("probabilities", pa.list_(PROBABILITY_TYPE)),  # null: not asked for, or not to be had
        pa.field("boxes", pa.list_(pa.struct([pa.field("video_id", pa.string()), *BOX_TYPE]))),  # null: it cannot point
        pa.field("checkpoint", pa.string(), nullable=False),
        pa.field("weights", pa.string(), nullable=False),
        pa.field("problem", pa.string()),
    ]
)
ABOUT = b"deepcoro"  # the key of the files' metadata under which it is told how they were made, as JSON
_ROWS_OF_GROUP, _ROWS_OF_FILE = 4096, 65536


def report_row(report: UnitReport) -> dict[str, Any]:
    """What a report says, as plain values. A unit without a report has no findings, which is not the same as having
    found nothing."""
    row: dict[str, Any] = {"unit_id": report.unit_id, "text": report.text}
    said = None if report.text is None else report.said
    row["tree"], row["dominance"] = (said.tree, said.dominance) if said else (None, None)
    row["findings"] = None if said is None else [finding.to_dict() for finding in said.findings]
    row["unread"] = None if said is None else list(said.unread)
    row["probabilities"] = _rows(report.probabilities, _probability_row)
    row["boxes"] = _rows(report.boxes, lambda box: box._asdict())
    row["problem"] = report.problem or None
    return row


def report_json(report: UnitReport) -> dict[str, Any]:
    """The same for JSON. Each finding has ``sentence_probability``, of its sentence word for word after what stands
    before it, and ``significant_probability``, that its segment has a significant stenosis, whatever is written; null
    where there are none."""
    row = report_row(report)
    for finding in row["findings"] or ():
        known = report.probability(finding["segment"])
        finding["sentence_probability"] = None if known is None else _number(known.sentence)
        finding["significant_probability"] = None if known is None else _number(known.significant)
    return row


def _probability_row(of: SegmentProbability) -> dict[str, Any]:
    numbers = {"significant": of.significant, "sentence": of.sentence, **of.words}
    return {"segment": of.segment, **{name: _number(value) for name, value in numbers.items()}}


def _rows(values: Sequence[Any] | None, row: Any) -> list[dict[str, Any]] | None:
    return None if values is None else [row(value) for value in values]


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else min(max(value, 0.0), 1.0)  # a sum may be 1 + 1e-16


class ReportTable:
    """Rows on their way into a folder of Parquet files; made by ``write_table``."""

    def __init__(self, folder: Path, about: Mapping[str, Any], checkpoint: str, weights: str) -> None:
        self.folder = folder
        self.schema = REPORTS_SCHEMA.with_metadata({ABOUT: json.dumps(dict(about)).encode()})
        self._same = {"checkpoint": checkpoint, "weights": weights}
        self._waiting: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None
        self._files = self._rows_of_file = 0

    def add(self, reports: Sequence[UnitReport], split: str) -> None:
        """Append a row for each report."""
        same = {"split": split, **self._same}
        self._waiting += [report_row(report) | {"study_id": report.study_id} | same for report in reports]
        while len(self._waiting) >= _ROWS_OF_GROUP:
            self._write(_ROWS_OF_GROUP)

    def close(self) -> None:
        """Write what waits, and the ends of the files."""
        if self._waiting or self._files == 0:
            self._write(len(self._waiting))
        self._end_file()

    def _write(self, number: int) -> None:
        if self._writer is None:
            with _told(self.folder):
                self._writer = pq.ParquetWriter(self.folder / f"part-{self._files:05d}.parquet", self.schema)
            self._files += 1
        rows, self._waiting = self._waiting[:number], self._waiting[number:]
        with _told(self.folder):
            self._writer.write_table(pa.Table.from_pylist(rows, schema=self.schema))
        self._rows_of_file += number
        if self._rows_of_file >= _ROWS_OF_FILE:
            self._end_file()

    def _end_file(self) -> None:
        if self._writer is not None:
            with _told(self.folder):
                self._writer.close()
        self._writer, self._rows_of_file = None, 0


@contextlib.contextmanager
def write_table(output: Path, about: Mapping[str, Any], checkpoint: str, weights: str) -> Iterator[ReportTable]:
    """A table that becomes the folder ``output`` when the block ends, and nothing when it fails: it is written beside,
    and then moved. A process that is killed leaves a hidden folder ``.<name>.partial-...``, which nobody reads.

    Raises:
        DataError: there is something at ``output`` already, or it cannot be written.
    """
    refuse_existing(output)
    scratch = output.with_name(f".{output.name}.partial-{uuid.uuid4().hex[:8]}")
    with _told(output):
        scratch.mkdir(parents=True)
    try:
        table = ReportTable(scratch, about, checkpoint, weights)
        yield table
        table.close()
        refuse_existing(output)
        with _told(output):
            scratch.rename(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # where it was moved, there is none


def refuse_existing(output: Path) -> None:
    """Raise ``DataError`` where there is something already."""
    if output.exists():
        raise DataError(f"{output} is there already, and is not written over: give another --output, or remove it")


@contextlib.contextmanager
def _told(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error.strerror or error})") from error
