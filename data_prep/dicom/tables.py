"""The tables a user brings along: reports of studies, facts about videos, splits. Raw ids go in, keyed ids come out.

Report texts are de-identified here, before anything else sees them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.deidentify import deidentify
from data_prep.dicom.identity import Key
from data_prep.rows import Rows, read_rows
from deepcoro.data.schema import SPLITS, STUDIES_SCHEMA, VIDEOS_SCHEMA
from deepcoro.errors import DataError
from deepcoro.reports.grammar import Finding, render_report
from deepcoro.reports.vocabulary import DOMINANCES, SEGMENTS, TREES

ALLOWED = {
    "split": SPLITS,
    "dominance": DOMINANCES,
    "coronary_tree": TREES,
    "acquisition": ("diagnostic", "pci", "post_pci"),
    "sex": ("M", "F", "O"),
    "age_band": (*(f"{decade}-{decade + 9}" for decade in range(0, 90, 10)), "90+"),
}
STUDY_COLUMNS = ("report", "findings", "dominance", "split", "lvef", "patient_id", "sex", "age_band")
VIDEO_COLUMNS = ("coronary_tree", "acquisition", "boxes")
# Columns of the reports table that are looked for in its texts, by kind; they go no further than that.
KNOWN_COLUMNS = {
    "patient_name": "name",
    "physician": "name",
    "birth_date": "date",
    "study_date": "date",
    "patient_id": "id",
    "accession_number": "id",
    "study_id": "id",
}


@dataclass
class SideTables:
    """What the user's tables say, by keyed id.

    ``ignored`` are sentences to print: columns that nobody reads, how a file was read, what was replaced. ``replaced``
    counts the names, dates, ids, ... that report texts held.
    """

    studies: dict[str, dict[str, Any]] = field(default_factory=dict)
    videos: dict[str, dict[str, Any]] = field(default_factory=dict)
    patient_splits: dict[str, str] = field(default_factory=dict)
    study_splits: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    replaced: Counter[str] = field(default_factory=Counter)


def read_side_tables(key: Key, reports: Path | None, videos: Path | None, splits: Path | None) -> SideTables:
    """Read and check the tables that are given (CSV with a header line, Parquet, or JSON lines, by their ending).

    In CSV an empty cell is no value, and ``findings`` and ``boxes`` are JSON.

    Raises:
        DataError: a table cannot be read, lacks its id column, names an id twice, or has a value that does not fit; the
            message tells the file and the row.
    """
    tables = SideTables()
    if reports is not None:
        rows = _rows(reports, "study_id", (*STUDY_COLUMNS, *KNOWN_COLUMNS), tables.ignored)
        for where, row in _once(rows, "study_id"):
            study = {name: cell_value(row, name, STUDIES_SCHEMA, where) for name in STUDY_COLUMNS}
            if study["report"] is not None:
                study["report"], replaced = deidentify(study["report"], known_values(row))
                tables.replaced += replaced
            patient = (study["patient_id"] or "").strip()  # as the files' own ids are
            study["patient_id"] = key.id_of("patient", patient) if patient else None
            tables.studies[key.id_of("study", row["study_id"])] = study
        _check_types(tables.studies.values(), STUDY_COLUMNS, STUDIES_SCHEMA, reports)
        if tables.replaced:
            counts = ", ".join(f"{kind}s {number:,}" for kind, number in sorted(tables.replaced.items()))
            tables.ignored.append(f"{reports.name}: replaced in the report texts: {counts}")
    if videos is not None:
        rows = _rows(videos, "sop_instance_uid", VIDEO_COLUMNS, tables.ignored)
        for where, row in _once(rows, "sop_instance_uid"):
            video = {name: cell_value(row, name, VIDEOS_SCHEMA, where) for name in VIDEO_COLUMNS}
            tables.videos[key.id_of("video", row["sop_instance_uid"])] = video
        _check_types(tables.videos.values(), VIDEO_COLUMNS, VIDEOS_SCHEMA, videos)
    if splits is not None:
        _read_splits(key, splits, tables)
    return tables


def known_values(row: dict[str, Any]) -> dict[str, list[str]]:
    """What a row says of its patient, by kind, as ``deidentify`` takes it."""
    known: dict[str, list[str]] = {}
    for name, kind in KNOWN_COLUMNS.items():
        if row.get(name) not in (None, ""):
            known.setdefault(kind, []).append(str(row[name]))
    return known


def _read_splits(key: Key, path: Path, tables: SideTables) -> None:
    for where, row in _rows(path, "split", ("patient_id", "study_id"), tables.ignored):
        split = cell_value(row, "split", STUDIES_SCHEMA, where)
        kind, known = ("patient", tables.patient_splits) if row.get("patient_id") else ("study", tables.study_splits)
        raw = str(row.get(f"{kind}_id") or "").strip()
        if not raw or split is None:
            raise DataError(f"{where}: a row needs a split and a patient_id or a study_id")
        if known.setdefault(key.id_of(kind, raw), split) != split:
            raise DataError(f"{where}: this {kind} stands in the table before, with another split")


def _rows(path: Path, needed: str, optional: tuple[str, ...], ignored: list[str]) -> Rows:
    """The rows of a table, after a look at its columns."""
    rows = read_rows(path).need(needed)
    unread = [name for name in rows.columns if name != needed and name not in optional]
    if unread:
        ignored.append(f"{path.name}: nobody reads the columns {', '.join(unread)}")
    ignored += rows.notes
    return rows


def _once(rows: Rows, column: str) -> Iterator[tuple[str, dict[str, Any]]]:
    first: dict[str, str] = {}
    for where, row in rows:
        row[column] = "" if row.get(column) is None else str(row[column]).strip()
        if not row[column]:
            raise DataError(f"{where}: {column!r} is empty; every row needs one")
        if row[column] in first:
            raise DataError(f"{where}: the {column!r} of {first[row[column]]} stands here again; one row each")
        first[row[column]] = where
        yield where, row


def cell_value(row: dict[str, Any], name: str, schema: pa.Schema, where: str) -> Any:
    """A cell of a side table as the schema wants it; types are checked a column at a time, later.

    Raises:
        DataError: the value is out of its range, or is no such thing at all; with ``where`` and the field.
    """
    value: Any = row.get(name)
    wanted = schema.field(name).type
    if value is None or value == "" or value != value:  # a missing number of pandas is unequal to itself
        return None
    try:
        if isinstance(value, str) and pa.types.is_list(wanted):
            value = json.loads(value)
        if pa.types.is_floating(wanted):
            value = float(value)
        if pa.types.is_list(wanted):
            known = {wanted.value_type.field(at).name for at in range(wanted.value_type.num_fields)}
            if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
                raise ValueError("it must be a list of objects")
            if unknown := {key for item in value for key in item} - known:
                raise ValueError(f"unknown {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
        if name == "findings":
            render_report(Finding.from_dict(item) for item in value)  # refuses what no report can say
        if name == "boxes":
            _check_boxes(value)
        if name == "lvef" and not 0 <= float(value) <= 100:
            raise ValueError(f"it must be 0 to 100 percent, got {value}")
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: {name!r}: {error}") from error
    if name in ALLOWED and value not in ALLOWED[name]:
        raise DataError(f"{where}: {name!r} is {value!r}; it may be {', '.join(ALLOWED[name])}")
    return str(value) if pa.types.is_string(wanted) else value


def _check_boxes(boxes: list[dict[str, Any]]) -> None:
    for box in boxes:
        if box.get("segment") is not None and box["segment"] not in SEGMENTS:
            raise ValueError(f"unknown segment {box['segment']!r}; known are {', '.join(SEGMENTS)}")
        sides = {side: box[side] for side in ("x0", "y0", "x1", "y1") if box.get(side) is not None}
        if not all(0 <= at <= 1 for at in sides.values()):
            raise ValueError(f"x0, y0, x1 and y1 must be parts of width and height, 0 to 1, got {sides}")
        for low, high in (("x0", "x1"), ("y0", "y1")):
            if low in sides and high in sides and not sides[low] < sides[high]:
                raise ValueError(f"{low} must be less than {high}, got {sides}")


def _check_types(rows: Iterable[dict[str, Any]], columns: tuple[str, ...], schema: pa.Schema, path: Path) -> None:
    rows = list(rows)
    for name in columns:
        try:
            pa.array([row[name] for row in rows], schema.field(name).type)
        except (pa.ArrowException, TypeError) as error:
            raise DataError(f"{path}: column {name!r} does not fit {schema.field(name).type}: {error}") from error
