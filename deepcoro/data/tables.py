"""A prepared dataset on disk -> the units of a split: which videos, which study, which patient.

Everything stays in Arrow and numpy columns, so that ten million rows are columns and not ten million objects.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from deepcoro.data.schema import SPLITS
from deepcoro.data.table_files import Tables, locate, read_tables
from deepcoro.errors import DataError

# Methods of a column, in a filter, that look at each row for itself: such a filter is worked out piece by piece.
_ROW_BY_ROW = {"isna", "notna", "isnull", "notnull", "isin", "between", "abs"}
_ROW_BY_ROW |= {"str", "contains", "startswith", "endswith", "match", "fullmatch", "lower", "upper", "strip", "len"}
_ROWS_AT_ONCE = 2**18


@dataclass(frozen=True)
class Units:
    """What the order permutes: unit u is the videos ``rows[offsets[u]:offsets[u+1]]``.

    Args:
        tables: of the whole dataset. To another process they go by address where they are large, so that units of any
            size cost a task nothing but their ``rows``.
        rows: int32, rows of the table of videos, unit by unit and in acquisition order.
        offsets: int32; ``None`` where each video is a unit.
    """

    tables: Tables
    rows: np.ndarray
    offsets: np.ndarray | None
    root: str
    whole_study: bool

    def __len__(self) -> int:
        return len(self.rows) if self.offsets is None else len(self.offsets) - 1

    def num_videos(self, unit: int) -> int:
        """How many videos a unit has."""
        return 1 if self.offsets is None else int(self.offsets[unit + 1] - self.offsets[unit])

    def video_rows(self, unit: int) -> list[dict[str, Any]]:
        """The videos of a unit, in acquisition order."""
        begin, end = (unit, unit + 1) if self.offsets is None else self.offsets[unit : unit + 2]
        return self.tables.videos.read(self.rows[begin:end])

    def study_row(self, unit: int) -> dict[str, Any]:
        """The study a unit belongs to."""
        return self.tables.studies.read(self._study(np.array([unit])))[0]

    def has_text(self, of_clips: bool = False, needs_report: bool = False) -> np.ndarray:
        """Which units have a target text (``text.target_text``), bool, without writing it.

        Args:
            of_clips: of any of its clips by itself, where the unit is a study.
            needs_report: of studies alone that have a report (``data.text_needs_report``).
        """
        study, studies = self._study(), self.studies
        told = pc.fill_null(pc.greater(pc.binary_length(studies["report"]), 0), False).to_numpy()[study]
        found = pc.is_valid(studies["findings"]).to_numpy()[study]
        if not self.whole_study:
            found = found & self._tree_known()
        elif of_clips and len(self):
            assert self.offsets is not None
            found = found & np.logical_or.reduceat(self._tree_known(), self.offsets[:-1])
        return told if needs_report else told | found

    def num_with_boxes(self, told: bool = False) -> int:
        """How many of the videos have a box; with ``told`` those alone whose study has findings to tell."""
        number = pc.list_value_length(self.tables.videos.table["boxes"])
        found = pc.fill_null(pc.greater(number, 0), False).to_numpy()[self.rows]
        if told:
            found = found & pc.is_valid(self.studies["findings"]).to_numpy()[self.tables.study_of_video[self.rows]]
        return int(found.sum())

    def _tree_known(self) -> np.ndarray:
        """Of each video, whether it is known which tree it shows."""
        return pc.is_valid(self.tables.videos.table["coronary_tree"]).to_numpy()[self.rows]

    def column(self, name: str, units: np.ndarray | None = None) -> np.ndarray:
        """A column of the studies, one value a unit; of all units, or of those given."""
        rows, place = np.unique(self._study(units), return_inverse=True)
        return self.studies[name].take(pa.array(rows)).to_numpy()[place]

    @property
    def studies(self) -> pa.Table:
        """The studies of the whole dataset."""
        return self.tables.studies.table

    @property
    def videos(self) -> pa.Table:
        """The videos unit by unit, made at every call: for a look at small datasets."""
        return self.tables.videos.table.take(pa.array(self.rows))

    def _study(self, units: np.ndarray | None = None) -> np.ndarray:
        """Row of the studies of each unit."""
        first = slice(None) if self.offsets is None else self.offsets[:-1]
        rows = self.rows[first]
        return self.tables.study_of_video[rows if units is None else rows[units]]


@dataclass(frozen=True)
class PreparedDataset:
    """The two tables and the card of a prepared dataset."""

    root: str
    tables: Tables
    card: dict[str, Any]

    @classmethod
    def open(cls, path: str) -> PreparedDataset:
        """Open a prepared dataset in a folder or at a URI.

        Raises:
            DataError: it is not there, a file or a column is missing, a row refers to nothing, a patient is in two
                splits; or its tables are large and there is no room to map them (``table_files``).
        """
        tables = read_tables(path)
        filesystem, folder = locate(path)
        try:
            with filesystem.open_input_stream(f"{folder}/dataset.json") as stream:
                card = json.loads(stream.read())
        except FileNotFoundError:
            raise DataError(f"{path}/dataset.json is missing: the dataset was not finished; prepare it again") from None
        except ValueError as error:  # not UTF-8, or not JSON
            raise DataError(f"{path}/dataset.json cannot be read ({error}); prepare the dataset again") from error
        if not isinstance(card, dict):
            raise DataError(f"{path}/dataset.json must hold a mapping; prepare the dataset again")
        return cls(path, tables, card)

    @property
    def studies(self) -> pa.Table:
        """The columns of ``schema.STUDIES_SCHEMA``."""
        return self.tables.studies.table

    @property
    def videos(self) -> pa.Table:
        """The columns of ``schema.VIDEOS_SCHEMA``."""
        return self.tables.videos.table

    def units(self, split: str, unit: str = "video", keep: str | None = None) -> Units:
        """The units of ``split`` whose rows fulfil the expression ``keep`` (over the columns of both tables): by study
        in the order of its table, then by acquisition order and id.

        Raises:
            DataError: the expression cannot be read, or nothing is left of the split.
        """
        study_of_video = self.tables.study_of_video
        wanted = pc.equal(self.studies["split"], split).to_numpy()[study_of_video]
        if keep:
            wanted = _fulfils(self.tables, wanted, keep, self.root)
        rows = self._in_order(np.flatnonzero(wanted).astype(np.int32))
        if len(rows) == 0:
            counts = ", ".join(f"{n} {s}" for s, n in self.num_studies().items())
            after = f" after data.filter {keep!r}" if keep else ""
            raise DataError(
                f"{self.root}: split {split!r} is empty{after}, and it is needed; studies by split: {counts}"
            )
        offsets = None
        if unit == "study":
            changes = np.flatnonzero(np.diff(study_of_video[rows])) + 1
            offsets = np.concatenate([[0], changes, [len(rows)]]).astype(np.int32)
        return Units(self.tables, rows, offsets, self.root, unit == "study")

    def num_studies(self) -> dict[str, int]:
        """Studies by split."""
        counts = {item["values"]: item["counts"] for item in pc.value_counts(self.studies["split"]).to_pylist()}
        return {split: counts.get(split, 0) for split in SPLITS}

    def _in_order(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the videos by study, acquisition order (unknown ones last) and id. One number holds the first two;
        ids are compared only where that leaves two videos equal."""
        order = pc.fill_null(pc.add(self.videos["acquisition_order"].cast(pa.int64()), 2**31), 2**32).to_numpy()[rows]
        key = self.tables.study_of_video[rows].astype(np.int64) * 2**33 + order
        if (key[1:] > key[:-1]).all():
            return rows
        place = np.argsort(key, kind="stable")
        rows, key = rows[place], key[place]
        same = key[1:] == key[:-1]
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        if len(tied):
            ids = self.videos["video_id"].take(pa.array(rows[tied]))
            by_id = pc.sort_indices(
                pa.table({"key": key[tied], "id": ids}), sort_keys=[("key", "ascending"), ("id", "ascending")]
            )
            rows[tied] = rows[tied][by_id.to_numpy()]
        return rows


def _fulfils(tables: Tables, wanted: np.ndarray, expression: str, where: str) -> np.ndarray:
    """Which of the ``wanted`` videos fulfil an expression over the plain columns of both tables, bool [videos]."""
    columns = {
        name: source
        for source in (tables.studies.table, tables.videos.table)  # of a name in both, the video's
        for name in source.column_names
        if not pa.types.is_nested(source.schema.field(name).type)
    }
    named = [name for name in columns if re.search(rf"\b{name}\b", expression)]
    # Any other name is looked for in the attributes, where classes of cines stand; the video's go before the study's.
    asked = {node.id for node in _nodes(expression) if isinstance(node, ast.Name)} - columns.keys()
    attributes = sorted(asked & _attribute_names(tables))
    fulfilled = np.zeros(len(wanted), bool)
    for window in _windows(len(wanted), expression):
        rows = np.flatnonzero(wanted[window]) + window.start
        if len(rows) == 0:
            continue
        study = pa.array(tables.study_of_video[rows])
        frame = pd.DataFrame(index=range(len(rows)))
        for name in named:
            source = columns[name]
            if source is tables.studies.table:
                values = source[name].take(study)
            else:
                values = source[name][window].filter(pa.array(wanted[window]))
            frame[name] = values.to_pandas()
        for name in attributes:
            of_videos = tables.videos.table["attributes"][window].filter(pa.array(wanted[window]))
            own = pc.map_lookup(of_videos, name, "last")
            of_study = pc.map_lookup(tables.studies.table["attributes"].take(study), name, "last")
            frame[name] = pc.coalesce(own, of_study).to_pandas()
        try:
            truth = frame.eval(expression)
        except Exception as error:  # pandas raises a type of its own for each way an expression can be wrong
            raise DataError(
                f"{where}: data.filter {expression!r} cannot be read: {error}; columns are {', '.join(sorted(columns))}"
            ) from error
        if not pd.api.types.is_bool_dtype(truth) or np.ndim(truth) != 1:
            raise DataError(f"{where}: data.filter {expression!r} must be true or false for each row")
        fulfilled[rows] = np.asarray(truth, bool)
    return fulfilled


def _attribute_names(tables: Tables) -> set[str]:
    """Names in the attributes of any video or study."""
    columns = (tables.videos.table["attributes"], tables.studies.table["attributes"])
    return {name for column in columns for chunk in column.chunks for name in pc.unique(chunk.keys).to_pylist()}


def _nodes(expression: str) -> list[ast.AST]:
    try:
        return list(ast.walk(ast.parse(expression, mode="eval")))
    except SyntaxError:  # of Python, and perhaps not of pandas, which will say
        return []


def _windows(number: int, expression: str) -> Iterator[slice]:
    """Pieces of the table in which an expression may be worked out: the whole where it may look at other rows (such as
    ``lvef > lvef.mean()``), since a piece has another mean."""
    nodes = _nodes(expression)
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    by_row = nodes and attributes <= _ROW_BY_ROW and all(isinstance(call, ast.Attribute) for call in calls)
    size = _ROWS_AT_ONCE if by_row else max(number, 1)
    yield from (slice(begin, min(begin + size, number)) for begin in range(0, max(number, 1), size))
