"""A table that a user brings, row by row: CSV, Parquet or JSON lines, and where each row stands.

CSV comes as spreadsheets and scripts write it: UTF-8, UTF-16 or Latin-1, separated by commas, semicolons, tabs or the
letter α. What was found out about a file is said in ``notes``; what is in doubt is refused, never guessed at.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepcoro.errors import DataError

SEPARATORS = (",", ";", "\t", "α")
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True)
class Rows:
    """The rows of a table as mappings; an empty cell of a CSV is ``None``, and no type is guessed there.

    ``notes`` are sentences to print.
    """

    path: Path
    columns: list[str]
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each row with the words that tell where it stands; the first row under the header line is row 1."""
        return ((f"{self.path}, row {number}", row) for number, row in enumerate(self.rows, start=1))

    def need(self, *columns: str) -> Rows:
        """Itself, if it has these columns.

        Raises:
            DataError: one is missing.
        """
        for name in columns:
            if name not in self.columns:
                there = ", ".join(self.columns) or "no columns"
                raise DataError(f"{self.path}: column {name!r} is missing; the table has {there}")
        return self


def read_rows(path: Path) -> Rows:
    """Read a table by the ending of its name: ``.csv``, ``.parquet``, ``.jsonl``, ``.ndjson`` or ``.json`` (lines).

    Raises:
        DataError: it is not there, has another ending, or is damaged; the message tells file and row.
    """
    readers: dict[str, Callable[[Path], Rows]] = {
        ".csv": _read_csv,
        ".parquet": _read_parquet,
        ".jsonl": _read_json_lines,
        ".json": _read_json_lines,
        ".ndjson": _read_json_lines,
    }
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: a table ends in {', '.join(readers)}")
    try:
        return readers[path.suffix.lower()](path)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise DataError(f"{path}: this table cannot be read: {error}") from error


def _read_csv(path: Path) -> Rows:
    # Not through a reader that guesses types: patient 00123 is not patient 123.
    text, notes = _decoded(path)
    header = text.split("\n", 1)[0]
    separator = max(SEPARATORS, key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=separator, restval="\0")
    columns = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ValueError(f"the header line names {', '.join(map(repr, twice))} more than once")
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(reader, start=1):
        if None in row or "\0" in row.values():
            few = "more" if None in row else "fewer"
            raise ValueError(f"row {number} has {few} cells than the header line has columns")
        rows.append({name: cell or None for name, cell in row.items()})
    return Rows(path, columns, rows, notes)


def _decoded(path: Path) -> tuple[str, list[str]]:
    """The text of a file: by its byte order mark, else UTF-8, else Latin-1 as Windows has it, which is then noted."""
    raw = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    notes: list[str] = []
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8":
            raise
        try:
            text = raw.decode("cp1252")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        notes.append(f"{path.name}: this is not UTF-8 and was read as Latin-1; look at its accents")
    if "\0" in text:
        raise ValueError("it holds zero bytes and is no text")
    return text, notes


def _read_parquet(path: Path) -> Rows:
    table = pq.read_table(path)
    return Rows(path, table.column_names, table.to_pylist())


def _read_json_lines(path: Path) -> Rows:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is no JSON object ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number}: every line must be one JSON object")
            rows.append(row)
    return Rows(path, list(dict.fromkeys(name for row in rows for name in row)), rows)
