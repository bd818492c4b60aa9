"""Columns, types and units of every table of a prepared dataset, and the Batch a training step receives.

Letters: B clips or studies of a batch, V views, T frames, H W pixels, N video tokens, L C text tokens.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import pyarrow as pa

from deepcoro.errors import DataError

SPLITS = ("train", "val", "test")
UNITS = {"video": "videos", "study": "studies"}  # what data.unit says, and many of them

FINDING_TYPE = pa.struct(
    [
        ("segment", pa.string()),
        ("stenosis", pa.int16()),  # percent of the diameter, 0-100
        ("occlusion", pa.string()),  # none | total | cto
        ("timi", pa.int8()),  # 0-3
        ("calcification", pa.string()),  # none | minimal | moderate | severe
        ("thrombus", pa.bool_()),
        ("stent", pa.bool_()),
        ("in_stent_restenosis", pa.int16()),  # percent
        ("pci", pa.bool_()),
        ("ifr", pa.float32()),
        ("medina", pa.string()),
        ("collaterals", pa.bool_()),
    ]
)

BOX_TYPE = pa.struct(
    [
        ("segment", pa.string()),
        ("frame", pa.int32()),
        ("x0", pa.float32()),  # fractions of width and height, 0-1
        ("y0", pa.float32()),
        ("x1", pa.float32()),
        ("y1", pa.float32()),
    ]
)

STUDIES_SCHEMA = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("dominance", pa.string()),
        pa.field("report", pa.string()),
        pa.field("findings", pa.list_(FINDING_TYPE)),
        pa.field("lvef", pa.float32()),  # percent
        pa.field("sex", pa.string()),
        pa.field("age_band", pa.string()),  # such as 60-69
        pa.field("day_offset", pa.int32()),  # days since the patient's first study
        pa.field("attributes", pa.map_(pa.string(), pa.string())),
    ]
)

VIDEOS_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),  # relative to the dataset's folder, or absolute
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("fps", pa.float32(), nullable=False),
        pa.field("primary_angle", pa.float32()),  # degrees, LAO positive
        pa.field("secondary_angle", pa.float32()),  # degrees, cranial positive
        pa.field("coronary_tree", pa.string()),  # left | right
        pa.field("acquisition", pa.string()),  # diagnostic | pci | post_pci
        pa.field("acquisition_order", pa.int32()),
        pa.field("pixel_spacing", pa.float32()),  # mm at the detector
        pa.field("partial", pa.bool_(), nullable=False),
        pa.field("boxes", pa.list_(BOX_TYPE)),
        pa.field("attributes", pa.map_(pa.string(), pa.string())),
    ]
)

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ]
)


class Batch(TypedDict, total=False):
    """What a step receives; numpy on the way through Ray, torch tensors in the step.

    A row with nothing valid keeps its place and counts for no loss; a row without report counts for masked modelling
    only. ``report_key`` is equal for equal texts, ``study_key`` for rows of one study: ``contrastive.positives`` says
    which of them makes a pair a positive.
    """

    clip: np.ndarray  # [B, V, T, H, W] uint8
    valid: np.ndarray  # [B, V] bool; False: no such view, or it could not be decoded
    angles: np.ndarray  # [B, V, 2] float32, degrees (primary, secondary); NaN: unknown
    view_index: np.ndarray  # [B, V] int64, which of the unit's videos it is, in acquisition order
    mask_order: np.ndarray  # [B, V, N] uint16: the first K are shown, the rest is hidden
    input_ids: np.ndarray  # [B, L] int32
    text_length: np.ndarray  # [B] int32, tokens of the row including start and end; the rest is padding
    prefix_length: np.ndarray  # [B] int32, tokens at the front that captioning is given, and does not predict
    task: np.ndarray  # [B] int8, which of caption_tasks.TASKS captioning is asked for
    # What captioning learns, where it has tasks (config.captioning.tasks); else it learns input_ids.
    caption_ids: np.ndarray  # [B, C] int32
    caption_length: np.ndarray  # [B] int32
    has_caption: np.ndarray  # [B] bool, likewise: there is something to learn
    parallel: np.ndarray  # [B] bool, where config.captioning.parallel_share is above 0: predicted all at once
    has_report: np.ndarray  # [B] bool
    report_key: np.ndarray  # [B] int64
    study_key: np.ndarray  # [B] int64
    severity: np.ndarray  # [B] float32, 0-100 (text.severity); only where contrastive.severity_weight is above 0
    # The same of each clip's text in a study, where a loss takes clips. What is not there has no report. Likewise
    # clip_task, clip_caption_ids, clip_caption_length, clip_has_caption and clip_parallel, where captioning is that
    # loss.
    clip_input_ids: np.ndarray  # [B, V, L'] int32
    clip_text_length: np.ndarray  # [B, V] int32
    clip_prefix_length: np.ndarray  # [B, V] int32
    clip_has_report: np.ndarray  # [B, V] bool
    clip_report_key: np.ndarray  # [B, V] int64
    clip_task: np.ndarray  # [B, V] int8
    clip_caption_ids: np.ndarray  # [B, V, C'] int32
    clip_caption_length: np.ndarray  # [B, V] int32
    clip_parallel: np.ndarray  # [B, V] bool
    clip_severity: np.ndarray  # [B, V] float32
    # Where the lesions are (lesion_maps.py); only where loss.weights.grounding is above 0.
    segments_at: np.ndarray  # [B, V, cells] int32, bit s: segment s of SEGMENTS has a lesion in this cell
    lesions_known: np.ndarray  # [B, V, cells] bool, whether that is known of it
    stenosis_at: np.ndarray  # [B, V, cells] int8, percent of the worst lesion in it; -1: none, or not known
    edges_at: np.ndarray  # [B, V, cells, 4] float32, edges of a lesion there (LesionMap), in cells; NaN: none
    tree: np.ndarray  # [B, V] int8, place in vocabulary.TREES of the tree in view; -1: unknown
    boxes: np.ndarray  # [B, V, R, 5] float32 (frame of the clip, x0, y0, x1, y1); NaN: none
    unit_id: np.ndarray  # [B] str
    problem: np.ndarray  # [B] str; why views could not be read, or empty
    num_lost: np.ndarray  # [B] int64, views that could not be read
    num_cut: np.ndarray  # [B] int64, texts of the row that were longer than data.max_text_length
    position: np.ndarray  # [B] int64, place in the stream


def check_columns(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """Return ``table`` with the columns of ``schema``, in its order and types; optional ones that are absent become
    null.

    Raises:
        DataError: a required column is absent or null somewhere, or a column has another type.
    """
    columns = []
    for wanted in schema:
        if wanted.name not in table.column_names:
            if not wanted.nullable:
                raise DataError(
                    f"{where}: column {wanted.name!r} is missing; the table has {', '.join(table.column_names)}"
                )
            columns.append(pa.nulls(table.num_rows, wanted.type))
            continue
        column = table.column(wanted.name)
        if not wanted.nullable and column.null_count:
            raise DataError(f"{where}: column {wanted.name!r} has {column.null_count} empty values; it needs one a row")
        try:
            columns.append(column.cast(wanted.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"{where}: column {wanted.name!r} is {column.type}, expected {wanted.type}: {error}"
            ) from error
    return pa.table(columns, schema=schema)
