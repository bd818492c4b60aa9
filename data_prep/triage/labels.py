"""What is known of a class of each video, and what is filled in.

A class is a column of `videos.parquet` (``coronary_tree``, ``acquisition``) or a name in its attributes (such as
``main_structure_class``). A value that was filled in carries two attributes: ``<class>_source`` = ``triage`` and
``<class>_probability``. It is no label: nothing is trained on it, and the next filling goes over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.update import changing, update_videos
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import DataError

COLUMNS = ("coronary_tree", "acquisition")
SOURCE, PROBABILITY, TRIAGE = "_source", "_probability", "triage"


@dataclass(frozen=True)
class Labels:
    """One class of every video, in the order of the table.

    Args:
        values: [videos] str, or None where no label is.
        filled: [videos] bool: a value stands there that an earlier triage put there.
    """

    column: str
    values: np.ndarray
    filled: np.ndarray


def read_labels(dataset: PreparedDataset, column: str) -> Labels:
    """The labels of a class.

    Raises:
        DataError: it is neither a column that can be filled nor an attribute that any video has.
    """
    attributes = [dict(entries or []) for entries in dataset.videos["attributes"].to_pylist()]
    if column in COLUMNS:
        values = dataset.videos[column].to_pylist()
    else:
        values = [entries.get(column) for entries in attributes]
        if not any(values):
            names = sorted({name for entries in attributes for name in entries})
            raise DataError(
                f"{dataset.root}: no video has {column!r}; it is one of {', '.join(COLUMNS)} or an attribute, and "
                f"those are {', '.join(names) or 'none'}"
            )
    filled = np.array([entries.get(column + SOURCE) == TRIAGE for entries in attributes], bool)
    known = np.array([None if done else value or None for value, done in zip(values, filled, strict=True)], object)
    return Labels(column, known, filled)


def fill(dataset: str, labels: Labels, video_ids: Mapping[int, str], found: Mapping[int, tuple[str, float]]) -> str:
    """Write what was found into the dataset; returns its new fingerprint.

    Args:
        labels: as read; a label is never overwritten.
        video_ids: row -> id, of every row that has no label.
        found: row -> class and probability, of those that are sure enough. The others lose what an earlier triage
            filled in.
    """
    changes: dict[str, dict[str, Any]] = {}
    for row, video_id in video_ids.items():
        if labels.values[row] is not None:
            raise ValueError(f"row {row} has the label {labels.values[row]!r}, which is not ours to overwrite")
        if row not in found and not labels.filled[row]:
            continue
        value, probability = found.get(row, (None, None))
        told = {
            labels.column + SOURCE: None if value is None else TRIAGE,
            labels.column + PROBABILITY: None if probability is None else f"{probability:.4f}",
        }
        if labels.column in COLUMNS:
            changes[video_id] = {labels.column: value, "attributes": told}
        else:
            changes[video_id] = {"attributes": {labels.column: value, **told}}
    with changing(dataset) as folder:
        return update_videos(Path(folder), changes)[1]
