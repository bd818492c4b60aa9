"""A prepared dataset on disk -> the units of a split: which videos, which study, which patient.

Everything stays in Arrow and numpy columns, so that ten million rows are columns and not ten million objects.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from deepcoro.data.schema import SPLITS, STUDIES_SCHEMA, VIDEOS_SCHEMA, check_columns
from deepcoro.errors import DataError
from deepcoro.reports.vocabulary import DOMINANCES, SEGMENTS, TREES


@dataclass(frozen=True)
class Units:
    """What the order permutes: unit u is the videos ``offsets[u]:offsets[u+1]``.

    ``videos`` and ``studies`` have the columns of the schema; ``study_of_video`` is the row in ``studies`` of each
    video.
    """

    videos: pa.Table
    studies: pa.Table
    study_of_video: np.ndarray
    offsets: np.ndarray
    root: str
    whole_study: bool

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def video_rows(self, unit: int) -> list[dict[str, Any]]:
        """The videos of a unit, in acquisition order."""
        begin, end = self.offsets[unit], self.offsets[unit + 1]
        return self.videos.slice(begin, end - begin).to_pylist()

    def study_row(self, unit: int) -> dict[str, Any]:
        """The study a unit belongs to."""
        return self.studies.slice(self.study_of_video[self.offsets[unit]], 1).to_pylist()[0]

    def has_text(self) -> np.ndarray:
        """Which units have a target text (``text.target_text``), bool, without writing it."""
        study = self.study_of_video[self.offsets[:-1]]
        told = pc.fill_null(pc.greater(pc.utf8_length(self.studies["report"]), 0), False).to_numpy()[study]
        found = pc.is_valid(self.studies["findings"]).to_numpy()[study]
        if not self.whole_study:
            found = found & pc.is_valid(self.videos["coronary_tree"]).to_numpy()
        return told | found

    def column(self, name: str) -> np.ndarray:
        """A column of the studies, one value a unit."""
        return self.studies.column(name).to_numpy()[self.study_of_video[self.offsets[:-1]]]


@dataclass(frozen=True)
class PreparedDataset:
    """The two tables and the card of a prepared dataset."""

    root: str
    studies: pa.Table
    videos: pa.Table
    card: dict[str, Any]

    @classmethod
    def open(cls, path: str) -> PreparedDataset:
        """Read a prepared dataset from a folder or a URI.

        Raises:
            DataError: it is not there, a file or a column is missing, a row refers to nothing, a patient is in two
                splits.
        """
        try:
            filesystem, folder = fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path)
        except pa.ArrowException as error:
            raise DataError(f"data.path {path!r} is no place that can be read: {error}") from error
        tables = []
        for name, schema in (("studies.parquet", STUDIES_SCHEMA), ("videos.parquet", VIDEOS_SCHEMA)):
            where = f"{path}/{name}"
            try:
                tables.append(check_columns(pq.read_table(f"{folder}/{name}", filesystem=filesystem), schema, where))
            except FileNotFoundError:
                raise DataError(
                    f"{where} is missing; make a prepared dataset with `python -m data_prep dicom` and set data.path"
                ) from None
            except (OSError, ValueError, pa.ArrowException) as error:  # not Parquet, or damaged
                raise DataError(f"{where} is not a Parquet file, or is damaged: {error}") from error
        try:
            with filesystem.open_input_stream(f"{folder}/dataset.json") as stream:
                card = json.loads(stream.read())
        except FileNotFoundError:
            raise DataError(f"{path}/dataset.json is missing: the dataset was not finished; prepare it again") from None
        except ValueError as error:  # not UTF-8, or not JSON
            raise DataError(f"{path}/dataset.json cannot be read ({error}); prepare the dataset again") from error
        if not isinstance(card, dict):
            raise DataError(f"{path}/dataset.json must hold a mapping; prepare the dataset again")
        dataset = cls(path, tables[0], tables[1], card)
        dataset._check()
        return dataset

    def _check(self) -> None:
        splits = pc.unique(self.studies["split"]).to_pylist()
        if unknown := sorted(set(splits) - set(SPLITS)):
            raise DataError(f"{self.root}/studies.parquet: split must be one of {', '.join(SPLITS)}, got {unknown}")
        for table, name, column, known in (
            (self.studies, "studies", "dominance", DOMINANCES),
            (self.videos, "videos", "coronary_tree", TREES),
        ):
            if wrong := set(pc.unique(table[column].drop_null()).to_pylist()) - set(known):
                raise DataError(f"{self.root}/{name}.parquet: {column} must be one of {known}, got {sorted(wrong)}")
        found = pc.list_flatten(self.studies["findings"].combine_chunks())
        if wrong := set(pc.unique(pc.struct_field(found, "segment")).to_pylist()) - set(SEGMENTS):
            raise DataError(f"{self.root}/studies.parquet: findings name unknown segments {sorted(map(str, wrong))}")
        sound = pc.and_(pc.greater(self.videos["fps"], 0), pc.greater(self.videos["num_frames"], 0))
        if not pc.all(sound, min_count=0).as_py():
            raise DataError(f"{self.root}/videos.parquet: every video needs fps and num_frames above 0")
        if pc.count_distinct(self.studies["study_id"]).as_py() != self.studies.num_rows:
            raise DataError(f"{self.root}/studies.parquet: study_id must be unique, and some stand twice")
        pairs = self.studies.select(["patient_id", "split"]).group_by(["patient_id", "split"]).aggregate([])
        if pairs.num_rows != pc.count_distinct(self.studies["patient_id"]).as_py():
            raise DataError(f"{self.root}/studies.parquet: a patient stands in two splits; give each patient one")
        lost = pc.invert(pc.is_in(self.videos["study_id"], value_set=self.studies["study_id"]))
        if number := pc.sum(lost).as_py():
            raise DataError(f"{self.root}/videos.parquet: {number} videos name a study_id that studies.parquet lacks")

    def units(self, split: str, unit: str = "video", keep: str | None = None) -> Units:
        """The units of ``split`` whose rows fulfil the expression ``keep`` (over the columns of both tables).

        Raises:
            DataError: the expression cannot be read, or nothing is left of the split.
        """
        in_split = self.studies.filter(pc.equal(self.studies["split"], split))
        row = pc.index_in(self.videos["study_id"], value_set=in_split["study_id"])
        videos = self.videos.append_column("_study", row).filter(pc.is_valid(row))
        if keep:
            videos = videos.filter(pa.array(_fulfils(videos, in_split, keep, self.root)))
        videos = videos.sort_by(
            [("_study", "ascending"), ("acquisition_order", "ascending"), ("video_id", "ascending")]
        )
        study = videos["_study"].to_numpy()
        if len(study) == 0:
            counts = ", ".join(f"{n} {s}" for s, n in self.num_studies().items())
            after = f" after data.filter {keep!r}" if keep else ""
            raise DataError(
                f"{self.root}: split {split!r} is empty{after}, and it is needed; studies by split: {counts}"
            )
        changes = np.flatnonzero(np.diff(study)) + 1
        offsets = np.concatenate([[0], changes, [len(study)]]) if unit == "study" else np.arange(len(study) + 1)
        return Units(
            videos.drop_columns(["_study"]).combine_chunks(), in_split, study, offsets, self.root, unit == "study"
        )

    def num_studies(self) -> dict[str, int]:
        """Studies by split."""
        counts = {item["values"]: item["counts"] for item in pc.value_counts(self.studies["split"]).to_pylist()}
        return {split: counts.get(split, 0) for split in SPLITS}


def _fulfils(videos: pa.Table, studies: pa.Table, expression: str, where: str) -> np.ndarray:
    """Truth [rows of videos] of an expression over the plain columns of both tables."""
    joined = {
        name: videos[name] for name in videos.column_names if not pa.types.is_nested(videos.schema.field(name).type)
    }
    index = joined.pop("_study")
    for name in studies.column_names:
        if name not in joined and not pa.types.is_nested(studies.schema.field(name).type):
            joined[name] = studies[name].take(index)
    frame = pa.table(joined).to_pandas()
    try:
        truth = frame.eval(expression)
    except Exception as error:  # pandas raises a type of its own for each way an expression can be wrong
        raise DataError(
            f"{where}: data.filter {expression!r} cannot be read: {error}; columns are {', '.join(sorted(joined))}"
        ) from error
    if not pd.api.types.is_bool_dtype(truth):
        raise DataError(f"{where}: data.filter {expression!r} must be true or false for each row")
    return np.asarray(truth, bool)
