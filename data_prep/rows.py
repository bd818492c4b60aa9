"""A table that a user brings, row by row: CSV, Parquet or JSON lines, and where each row stands.

CSV comes as spreadsheets and scripts write it: UTF-8, UTF-16 or Latin-1, separated by commas, semicolons, tabs or the
letter α. What was found out about a file is said in ``notes``; what is in doubt is refused, never guessed at. Rows are
read one after the other: a table of any length costs the memory of a row.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    ``read`` reads them from the start; ``notes`` are sentences to print.
    """

    path: Path
    columns: list[str]
    read: Callable[[], Iterator[dict[str, Any]]]
    notes: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each row with the words that tell where it stands; the first row under the header line is row 1.

        Raises:
            DataError: the table is damaged at that place.
        """
        with _explained(self.path):
            for number, row in enumerate(self.read(), start=1):
                yield f"{self.path}, row {number}", row

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
    """Open a table by the ending of its name: ``.csv``, ``.parquet``, ``.jsonl``, ``.ndjson`` or ``.json`` (lines).

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
    with _explained(path):
        return readers[path.suffix.lower()](path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Make a reader's errors ours. Those of whoever uses the rows do not come this way: a generator's consumer raises
    outside of it."""
    try:
        yield
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise DataError(f"{path}: this table cannot be read: {error}") from error


def _read_csv(path: Path) -> Rows:
    # Not through a reader that guesses types: patient 00123 is not patient 123.
    encoding, notes = _encoding(path)
    with path.open(newline="", encoding=encoding) as file:
        header = file.readline()
        separator = max(SEPARATORS, key=header.count)
        file.seek(0)
        columns = [name.strip() for name in next(csv.reader(file, strict=True, delimiter=separator), [])]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ValueError(f"the header line names {', '.join(map(repr, twice))} more than once")

    def read() -> Iterator[dict[str, Any]]:
        with path.open(newline="", encoding=encoding) as file:
            lines = csv.reader(file, strict=True, delimiter=separator)
            next(lines, None)
            number = 0
            for cells in lines:
                if not cells:  # an empty line
                    continue
                number += 1
                if len(cells) != len(columns):
                    few = "more" if len(cells) > len(columns) else "fewer"
                    raise ValueError(f"row {number} has {few} cells than the header line has columns")
                yield {name: cell or None for name, cell in zip(columns, cells, strict=True)}

    return Rows(path, columns, read, notes)


def _encoding(path: Path) -> tuple[str, list[str]]:
    """How a text is written: by its byte order mark, else UTF-8, else Latin-1 as Windows has it, which is noted."""
    with path.open("rb") as file:
        start = file.read(4)
    marked = next((name for mark, name in _MARKS if start.startswith(mark)), None)
    if marked is not None:
        _decode(path, marked)
        return marked, []
    for encoding in ("utf-8", "cp1252", "latin-1"):
        try:
            _decode(path, encoding)
        except UnicodeDecodeError:
            continue
        told = f"{path.name}: this is not UTF-8 and was read as Latin-1; look at its accents"
        return encoding, [] if encoding == "utf-8" else [told]
    raise AssertionError("Latin-1 decodes any bytes")


def _decode(path: Path, encoding: str) -> None:
    """Go through the file once, to see whether it is such a text."""
    with path.open(encoding=encoding, newline="") as file:
        while piece := file.read(2**20):
            if "\0" in piece:
                raise ValueError("it holds zero bytes and is no text")


def _read_parquet(path: Path) -> Rows:
    def read() -> Iterator[dict[str, Any]]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()

    return Rows(path, pq.read_schema(path).names, read)


def _read_json_lines(path: Path) -> Rows:
    def read() -> Iterator[dict[str, Any]]:
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
                yield row

    return Rows(path, list(dict.fromkeys(name for row in read() for name in row)), read)
