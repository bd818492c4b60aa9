"""The tables of a prepared dataset for looking at them as a whole: whole columns, nothing kept that is not counted.

`deepcoro.data.tables` refuses a dataset with a patient in two splits. Here that is a finding to be told with its
numbers, so the tables are read once more, and everything else that training would refuse is refused with one message.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from deepcoro.data.schema import FINDING_TYPE, QUARANTINE_SCHEMA, SPLITS, STUDIES_SCHEMA, VIDEOS_SCHEMA, check_columns
from deepcoro.data.table_files import locate
from deepcoro.errors import DataError
from deepcoro.reports.vocabulary import DOMINANCES, SEGMENTS, TREES

_UNUSED = {"videos": ("acquisition_order", "boxes"), "studies": ("day_offset",)}
_MAX_NAMED = 5  # wrong values that a message names


@dataclass(frozen=True)
class Prepared:
    """A dataset's tables. ``videos`` has two columns more, ``split`` and ``num_boxes`` (null: no boxes); ``quarantine``
    is None where there is no such file."""

    path: str
    filesystem: fs.FileSystem
    folder: str
    card: dict[str, Any]
    studies: pa.Table
    videos: pa.Table
    quarantine: pa.Table | None


def read_prepared(path: str) -> Prepared:
    """Read what is counted of the dataset at ``path`` (folder or URI).

    Raises:
        DataError: a file is missing or damaged, a column is missing, a row refers to nothing or holds what nobody
            knows; all that is wrong in one message.
    """
    filesystem, folder = locate(path)
    problems: list[str] = []
    found: dict[str, pa.Table | None] = {}
    for name, schema in (("studies", STUDIES_SCHEMA), ("videos", VIDEOS_SCHEMA), ("quarantine", QUARANTINE_SCHEMA)):
        wanted = pa.schema([field for field in schema if field.name not in _UNUSED.get(name, ())])
        try:
            found[name] = _read(filesystem, folder, f"{path}/{name}.parquet", name, wanted)
        except FileNotFoundError:
            found[name] = None
            if name != "quarantine":
                problems.append(f"{path}/{name}.parquet is missing")
        except DataError as error:
            problems.append(str(error))
    card: dict[str, Any] = {}
    try:
        card = _read_card(filesystem, folder, path)
    except DataError as error:
        problems.append(str(error))
    studies, videos = found.get("studies"), found.get("videos")
    if studies is not None and videos is not None:
        problems += [f"{path}/{problem}" for problem in _faults(studies, videos)]
    if problems:
        told = "\n  ".join(problems)
        raise DataError(f"{path} is no sound prepared dataset:\n  {told}\nprepare it again with: python -m data_prep")
    assert studies is not None and videos is not None
    study = pc.index_in(videos["study_id"], value_set=studies["study_id"])
    videos = videos.append_column("split", studies["split"].take(study))
    return Prepared(path, filesystem, folder, card, studies, videos, found["quarantine"])


def _read(filesystem: fs.FileSystem, folder: str, where: str, name: str, schema: pa.Schema) -> pa.Table:
    try:
        with filesystem.open_input_file(f"{folder}/{name}.parquet") as stream:
            file = pq.ParquetFile(stream)
            table = file.read([column for column in schema.names if column in file.schema_arrow.names])
            boxes = _count_boxes(file) if name == "videos" else None
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{where} is not a Parquet file, or is damaged: {error}") from error
    table = check_columns(table, schema, where)
    return table if boxes is None else table.append_column("num_boxes", boxes)


def _count_boxes(file: pq.ParquetFile) -> pa.ChunkedArray:
    """How many boxes each video has; piece by piece, since of phantoms every frame has some."""
    if "boxes" not in file.schema_arrow.names:
        return pa.chunked_array([pa.nulls(file.metadata.num_rows, pa.int32())])
    column = file.schema_arrow.field("boxes").type
    if not pa.types.is_list(column):
        raise ValueError(f"column 'boxes' is {column}, expected a list")
    return pa.chunked_array(
        [pc.list_value_length(b["boxes"]) for b in file.iter_batches(columns=["boxes"])], pa.int32()
    )


def _read_card(filesystem: fs.FileSystem, folder: str, path: str) -> dict[str, Any]:
    try:
        with filesystem.open_input_stream(f"{folder}/dataset.json") as stream:
            card = json.loads(stream.read())
    except FileNotFoundError:
        raise DataError(f"{path}/dataset.json is missing: the dataset was not finished") from None
    except (OSError, ValueError) as error:  # not to be read, not UTF-8, or not JSON
        raise DataError(f"{path}/dataset.json cannot be read ({error})") from error
    if not isinstance(card, dict):
        raise DataError(f"{path}/dataset.json must hold a mapping")
    return card


def _faults(studies: pa.Table, videos: pa.Table) -> list[str]:
    """What is wrong with the rows, as sentences that begin with the file."""
    faults = []
    for table, file, column, known in (
        (studies, "studies", "split", SPLITS),
        (studies, "studies", "dominance", (None, *DOMINANCES)),
        (videos, "videos", "coronary_tree", (None, *TREES)),
    ):
        if wrong := set(pc.unique(table[column]).to_pylist()) - set(known):
            faults.append(f"{file}.parquet: {column} must be one of {_named(set(known) - {None})}, got {_named(wrong)}")
    for table, file, column in ((studies, "studies", "study_id"), (videos, "videos", "video_id")):
        if (number := table.num_rows - pc.count_distinct(table[column]).as_py()) > 0:
            faults.append(f"{file}.parquet: {column} must be unique, and {number:,} rows repeat one")
    if (number := pc.index_in(videos["study_id"], value_set=studies["study_id"]).null_count) > 0:
        faults.append(f"videos.parquet: {number:,} videos name a study_id that studies.parquet lacks")
    for column in ("num_frames", "height", "width", "fps"):
        if (number := pc.sum(pc.invert(pc.greater(videos[column], 0)), min_count=0).as_py()) > 0:
            faults.append(f"videos.parquet: {column} must be above 0, and is not in {number:,} rows")
    findings = flat_findings(studies)
    if wrong := set(pc.unique(findings["segment"]).to_pylist()) - set(SEGMENTS):
        faults.append(f"studies.parquet: findings name unknown segments {_named(wrong)}")
    stenosis = findings["stenosis"]
    outside = pc.or_(pc.less(stenosis, 0), pc.greater(stenosis, 100))
    if (number := pc.sum(outside, min_count=0).as_py()) > 0:
        faults.append(f"studies.parquet: a stenosis is 0 to 100 percent, and is not in {number:,} findings")
    return faults


def _named(values: set[str | None]) -> str:
    named = sorted(map(repr, values))
    return ", ".join(named[:_MAX_NAMED]) + (f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else "")


def flat_findings(studies: pa.Table) -> pa.Table:
    """One row a finding: ``study`` (row of ``studies``), ``split``, and the fields of ``schema.FINDING_TYPE``."""
    column = studies["findings"].combine_chunks()
    rows = pc.list_parent_indices(column).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = pc.list_flatten(column)
    columns = {field.name: pc.struct_field(flat, field.name) for field in FINDING_TYPE}
    return pa.table({"study": rows, "split": studies["split"].take(pa.array(rows)), **columns})
