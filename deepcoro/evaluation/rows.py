"""Values by row, as ``rows_<split>.parquet``: what two runs are compared on, and where one looks for the hard cases.

One row a unit, every unit of the split once: ``unit_id, study_id, patient_id, valid``, and a column for each value. A
column bears the name of the metric that is its mean (``retrieval/report_to_video/recall_at_5``); beside those stand
ranks (``.../rank``: their median is a metric) and what a metric is made of that is no mean over rows
(``captioning/true_positives``, ``captioning/cto/hits``, ``captioning/grade_kappa/squares``: ``row_metrics.py``). Of
grounding a unit has means over its lesions, and ``grounding/lesions`` and ``grounding/pointed_lesions`` say how many:
the metric is the mean over lesions. A value of a whole study (``retrieval/study/...``) stands in each of its rows. Null
is what has no value: the unit could not be read, it has no text, its tree or what it shows is unknown, it shows no
lesion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepcoro.data.tables import Units
from deepcoro.errors import DataError, UserError

Columns = dict[str, NDArray[np.float64]]
IDS = ("unit_id", "study_id", "patient_id", "valid")
_ABOUT = b"deepcoro"


def row_table(
    units: Units, records: Sequence[Mapping[str, Any]], columns: Mapping[str, NDArray[np.float64]]
) -> pa.Table:
    """The table for ``units``, from the records of all of them and columns of one value a unit (NaN becomes null).

    Raises:
        ValueError: a unit has no record, or more than one.
    """
    found = np.sort([record["unit"] for record in records])
    if not np.array_equal(found, np.arange(len(units))):
        raise ValueError(f"expected one record of each of {len(units)} units, got {len(found)} of {len(set(found))}")
    valid = np.zeros(len(units), dtype=bool)
    valid[[record["unit"] for record in records if record["valid"]]] = True
    studies = units.column("study_id")
    names = studies if units.whole_study else units.videos["video_id"].to_numpy()
    values = {name: pa.array(column, pa.float64(), from_pandas=True) for name, column in columns.items()}
    ids = (names, studies, units.column("patient_id"), valid)
    return pa.table({**dict(zip(IDS, ids, strict=True)), **values})


def rows_path(run: Path, split: str) -> Path:
    """Where a run keeps the rows of a split."""
    return run / f"rows_{split}.parquet"


def write_rows(path: Path, table: pa.Table, about: Mapping[str, str]) -> None:
    """Write beside and then move; ``about`` (dataset, checkpoint) goes along in the file's metadata."""
    scratch = path.with_name(f".{path.name}.partial")
    pq.write_table(table.replace_schema_metadata({_ABOUT: json.dumps(dict(about))}), scratch)
    scratch.replace(path)


def read_rows(run: Path, split: str) -> tuple[pa.Table, dict[str, str]]:
    """The rows of a run and what is said about them.

    Raises:
        UserError: the run was not measured on the split.
        DataError: the file is damaged.
    """
    path = rows_path(run, split)
    if not path.is_file():
        raise UserError(f"{path} is missing; measure the run first: deepcoro evaluate {run} --split {split}")
    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {})[_ABOUT])
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read ({error}); measure the run again: deepcoro evaluate {run} --split {split}"
        ) from error
    return table, about
