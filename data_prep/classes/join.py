"""The columns of a CSV -> the videos of a prepared dataset: ``coronary_tree`` and ``acquisition`` into their columns,
classes (``*_class``) into the attributes."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.annotations.match import Videos
from data_prep.annotations.reasons import LeftOut
from data_prep.dicom.tables import ALLOWED
from data_prep.triage.labels import COLUMNS, PROBABILITY, SOURCE
from data_prep.update import changing, read_rows, update_videos
from deepcoro.errors import DataError

KEYS = ("video_id", "FileName", "file_name", "path")  # which video a row is about; the first that is there
SEPARATORS = ("α", ";", "\t", ",")  # the first that the header line has
ENDING = "_class"

Row = tuple[int, dict[str, str]]


@dataclass(frozen=True)
class Summary:
    """What became of a table.

    Args:
        values: column -> value -> videos.
        left_out: number of the row, from 1 behind the header line, and the reason.
        ignored: columns that nobody asked for.
    """

    num_rows: int
    num_videos: int
    values: dict[str, Counter[str]]
    left_out: list[tuple[int, str]]
    ignored: list[str]
    fingerprint: tuple[str, str]


def join_classes(
    table: Path, dataset: str, *, sources: Path | None = None, columns: Sequence[str] = (), encoding: str = "utf-8-sig"
) -> Summary:
    """Write the classes of a table into a dataset. An empty cell says nothing; a value goes over what is there.

    Args:
        table: CSV with a header line, separated by commas, semicolons, tabs or ``α``.
        dataset: Folder of the dataset.
        sources: The door's table of which file became which video, where the rows name files.
        columns: Columns to take; none: ``coronary_tree``, ``acquisition`` and all that end in ``_class``.
        encoding: Of the table.

    Raises:
        DataError: the table or the dataset cannot be read, a value is none of those that a column may have, two rows
            tell different things of one video, or no row is about a video of the dataset; then nothing has changed.
    """
    header, rows = _read(table, encoding)
    key = next((name for name in KEYS if name in header), None)
    if key is None:
        raise DataError(f"{table}: one of the columns {', '.join(KEYS)} must say which video a row is about")
    if missing := [name for name in columns if name not in header]:
        raise DataError(f"{table} has no column {', '.join(missing)}; it has {', '.join(header)}")
    wanted = list(columns) or [name for name in header if name in COLUMNS or name.endswith(ENDING)]
    if not wanted:
        raise DataError(f"{table}: no column is called {' or '.join(COLUMNS)} or ends in {ENDING}; name some: --column")
    told: dict[str, Row] = {}
    left_out: list[tuple[int, str]] = []
    with changing(dataset) as folder:
        videos = Videos(read_rows(folder, "videos"), sources, {})
        for number, row in rows:
            values = {name: row[name].strip() for name in wanted if row[name].strip()}
            _check(values, f"{table}, row {number}")
            try:
                name = row[key].strip()
                video_id = name if name in videos.rows else videos.look_up(name)
            except LeftOut as error:
                left_out.append((number, error.reason))
                continue
            before = told.setdefault(video_id, (number, values))
            if before[1] != values:
                raise DataError(f"{table}: rows {before[0]} and {number} tell different things of one video")
        if not told:
            reasons = ", ".join(f"{reason} {n}" for reason, n in Counter(r for _, r in left_out).most_common())
            raise DataError(f"{table}: none of its rows is about a video of {dataset} ({reasons or 'it is empty'})")
        changes = {video_id: _change(values) for video_id, (_, values) in told.items()}
        fingerprint = update_videos(folder, changes)
    counted: dict[str, Counter[str]] = {name: Counter() for name in wanted}
    for _, values in told.values():
        for name, value in values.items():
            counted[name][value] += 1
    ignored = [name for name in header if name != key and name not in wanted]
    return Summary(len(told) + len(left_out), len(told), counted, left_out, ignored, fingerprint)


def _read(path: Path, encoding: str) -> tuple[list[str], Iterator[Row]]:
    try:
        text = path.read_text(encoding=encoding)
    except (OSError, LookupError) as error:
        raise DataError(f"{path}: this table cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: this is not {encoding}; save the table as UTF-8, or name its --encoding (latin-1)"
        ) from error
    lines = text.splitlines()
    separator = next((mark for mark in SEPARATORS if mark in (lines[0] if lines else "")), ",")
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        cells = list(reader)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    header = [name.strip() for name in cells[0]] if cells else []
    if len(set(header)) < len(header):
        raise DataError(f"{path}: two columns have one name: {', '.join(header)}")
    for number, row in enumerate(cells[1:], 1):
        if len(row) != len(header):
            raise DataError(f"{path}, row {number}: it has {len(row)} cells, the header line has {len(header)}")
    return header, ((number, dict(zip(header, row, strict=True))) for number, row in enumerate(cells[1:], 1))


def _check(values: dict[str, str], where: str) -> None:
    for name in COLUMNS:
        if name in values and values[name] not in ALLOWED[name]:
            # Not quoted: in a table whose cells have slipped, it may be anything, such as a name.
            raise DataError(f"{where}: {name} is none of {', '.join(ALLOWED[name])}")


def _change(values: dict[str, str]) -> dict[str, Any]:
    """What a row changes of its video; a class that triage had guessed is a guess no more."""
    attributes: dict[str, str | None] = {name: value for name, value in values.items() if name not in COLUMNS}
    attributes |= {name + mark: None for name in values for mark in (SOURCE, PROBABILITY)}
    return {**{name: values[name] for name in COLUMNS if name in values}, "attributes": attributes}
