"""The tables a user brings along: reports of studies, facts about videos, splits. Raw ids go in, keyed ids come out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.dicom.identity import Key
from deepcoro.data.schema import SPLITS, STUDIES_SCHEMA, VIDEOS_SCHEMA
from deepcoro.errors import DataError
from deepcoro.reports.grammar import Finding, render_report

ALLOWED = {
    "split": SPLITS,
    "dominance": ("right", "left", "balanced"),
    "coronary_tree": ("left", "right"),
    "acquisition": ("diagnostic", "pci", "post_pci"),
}
STUDY_COLUMNS = ("report", "findings", "dominance", "split", "lvef", "patient_id", "sex", "age_band")
VIDEO_COLUMNS = ("coronary_tree", "acquisition", "boxes")


@dataclass
class SideTables:
    """What the user's tables say, by keyed id. ``ignored`` are columns that nobody reads, as sentences to print."""

    studies: dict[str, dict[str, Any]] = field(default_factory=dict)
    videos: dict[str, dict[str, Any]] = field(default_factory=dict)
    patient_splits: dict[str, str] = field(default_factory=dict)
    study_splits: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def read_side_tables(key: Key, reports: Path | None, videos: Path | None, splits: Path | None) -> SideTables:
    """Read and check the tables that are given (CSV with a header line, Parquet, or JSON lines, by their ending).

    In CSV an empty cell is no value, and ``findings`` and ``boxes`` are JSON.

    Raises:
        DataError: a table cannot be read, lacks its id column, names an id twice, or has a value that does not fit; the
            message tells the file and the row.
    """
    tables = SideTables()
    if reports is not None:
        rows = _rows(reports, "study_id", STUDY_COLUMNS, tables.ignored)
        for where, row in _once(rows, reports, "study_id"):
            study = {name: _value(row, name, STUDIES_SCHEMA, where) for name in STUDY_COLUMNS}
            if study["patient_id"] is not None:
                study["patient_id"] = key.id_of("patient", study["patient_id"])
            tables.studies[key.id_of("study", row["study_id"])] = study
        _check_types(tables.studies.values(), STUDY_COLUMNS, STUDIES_SCHEMA, reports)
    if videos is not None:
        rows = _rows(videos, "sop_instance_uid", VIDEO_COLUMNS, tables.ignored)
        for where, row in _once(rows, videos, "sop_instance_uid"):
            video = {name: _value(row, name, VIDEOS_SCHEMA, where) for name in VIDEO_COLUMNS}
            tables.videos[key.id_of("video", row["sop_instance_uid"])] = video
        _check_types(tables.videos.values(), VIDEO_COLUMNS, VIDEOS_SCHEMA, videos)
    if splits is not None:
        _read_splits(key, splits, tables)
    return tables


def _read_splits(key: Key, path: Path, tables: SideTables) -> None:
    for where, row in _rows(path, "split", ("patient_id", "study_id"), tables.ignored):
        split = _value(row, "split", STUDIES_SCHEMA, where)
        kind, known = ("patient", tables.patient_splits) if row.get("patient_id") else ("study", tables.study_splits)
        raw = str(row.get(f"{kind}_id") or "").strip()
        if not raw or split is None:
            raise DataError(f"{where}: a row needs a split and a patient_id or a study_id")
        if known.setdefault(key.id_of(kind, raw), split) != split:
            raise DataError(f"{where}: this {kind} stands in the table before, with another split")


def _rows(
    path: Path, needed: str, optional: tuple[str, ...], ignored: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with where they stand, after a look at the columns."""
    readers: dict[str, Callable[[Path], tuple[list[str], list[dict[str, Any]]]]] = {
        ".csv": _read_csv,
        ".parquet": _read_parquet,
        ".jsonl": _read_json_lines,
        ".json": _read_json_lines,
        ".ndjson": _read_json_lines,
    }
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: a table ends in {', '.join(readers)}")
    try:
        columns, rows = readers[path.suffix.lower()](path)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise DataError(f"{path}: this table cannot be read: {error}") from error
    if needed not in columns:
        raise DataError(f"{path}: column {needed!r} is missing; the table has {', '.join(columns) or 'no columns'}")
    unread = [name for name in columns if name != needed and name not in optional]
    if unread:
        ignored.append(f"{path.name}: nobody reads the columns {', '.join(unread)}")
    return ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))


def _read_csv(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    # Not through a reader that guesses types: patient 00123 is not patient 123.
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        rows = [{name: cell or None for name, cell in row.items()} for row in reader]
        for number, row in enumerate(rows, start=1):
            if None in row:
                raise ValueError(f"row {number} has more cells than the header line has columns")
        return list(reader.fieldnames or ()), rows


def _read_parquet(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    table = pq.read_table(path)
    return table.column_names, table.to_pylist()


def _read_json_lines(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("every line must be one JSON object")
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _once(rows: Iterator[tuple[str, dict[str, Any]]], path: Path, column: str) -> Iterator[tuple[str, dict[str, Any]]]:
    first: dict[str, str] = {}
    for where, row in rows:
        if row.get(column) in (None, ""):
            raise DataError(f"{where}: {column!r} is empty; every row needs one")
        row[column] = str(row[column]).strip()
        if row[column] in first:
            raise DataError(f"{where}: the {column!r} of {first[row[column]]} stands here again; one row each")
        first[row[column]] = where
        yield where, row


def _value(row: dict[str, Any], name: str, schema: pa.Schema, where: str) -> Any:
    """A cell as the schema wants it; types are checked a column at a time, later."""
    value, wanted = row.get(name), schema.field(name).type
    if value is None or value == "":
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
        if name == "findings" and isinstance(value, list):
            render_report(Finding.from_dict(item) for item in value)  # refuses what no report can say
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: {name!r}: {error}") from error
    if name in ALLOWED and value not in ALLOWED[name]:
        raise DataError(f"{where}: {name!r} is {value!r}; it may be {', '.join(ALLOWED[name])}")
    return str(value) if pa.types.is_string(wanted) else value


def _check_types(rows: Iterable[dict[str, Any]], columns: tuple[str, ...], schema: pa.Schema, path: Path) -> None:
    rows = list(rows)
    for name in columns:
        try:
            pa.array([row[name] for row in rows], schema.field(name).type)
        except (pa.ArrowException, TypeError) as error:
            raise DataError(f"{path}: column {name!r} does not fit {schema.field(name).type}: {error}") from error
