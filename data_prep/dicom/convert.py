"""One file to one prepared video, or to the reason why not. Runs on the workers; knows nothing of the other files."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from data_prep.dicom.burned_in import CornerWatch
from data_prep.dicom.decoders import check_stream, check_syntax
from data_prep.dicom.display import Display
from data_prep.dicom.encode import EXTENSION, write_video
from data_prep.dicom.frames import Frames, find_frames, first_bytes
from data_prep.dicom.header import TAGS, Cine, read_cine
from data_prep.dicom.identity import Key
from data_prep.dicom.layout import Layout, read_layout
from data_prep.dicom.pixels import fit, stored_frames
from data_prep.dicom.quarantine import Unusable
from data_prep.dicom.shutter import visible_area
from data_prep.dicom.source import read_header

MIN_PARTIAL_FRAMES = 8  # of a cine that breaks off; with fewer there is no heart beat to see


@dataclass(frozen=True)
class Rules:
    """What is the same for every file of an ingest."""

    root: Path  # the input folder
    videos: Path  # where video files go
    key: Key
    modalities: frozenset[str] | None  # None: any
    max_side: int | None
    keep_burned_in: bool = False


@dataclass(frozen=True)
class Source:
    """A file that has what a video needs, before any pixel of it is decoded."""

    pixels: BinaryIO  # the file, or its inflated content
    dataset: Dataset
    cine: Cine
    layout: Layout
    frames: Frames


def convert(path: bytes, rules: Rules) -> dict[str, Any]:
    """Convert the file at ``path``, relative to the input.

    Returns:
        What can go into JSON: ``source`` (keyed id of the path) and either ``reason`` and ``detail``, or ``video``,
        ``study`` and what the driver needs to put them in order.

    Raises:
        OSError: the video cannot be written: that is no fault of this file, and ends the job.
    """
    source = rules.key.id_of("source", path)
    try:
        with _quiet(), _open(rules.root / os.fsdecode(path)) as file:
            return {"source": source, **_convert(_read(file, rules), source, rules)}
    except Unusable as unusable:
        return {"source": source, "reason": unusable.reason, "detail": unusable.detail}


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> Unusable:
    return Unusable("unreadable", f"the file system refused to give the file ({type(error).__name__})")


def _read(file: BinaryIO, rules: Rules) -> Source:
    try:
        return _checked(file, rules)
    except Unusable:
        raise
    except InvalidDicomError as error:
        raise Unusable("not_dicom") from error
    except OSError as error:
        raise _unreadable(error) from error
    except Exception as error:  # a damaged header can raise anything; it costs this file only, and is recorded
        raise Unusable("bad_header", f"the header cannot be read ({type(error).__name__})") from error


def _checked(file: BinaryIO, rules: Rules) -> Source:
    """What a video needs; the checks go from the file as such to its pixels, and allocate nothing."""
    if os.fstat(file.fileno()).st_size == 0:
        raise Unusable("empty")
    dataset, pixels = read_header(file, TAGS)
    header_end = pixels.tell()
    cine = read_cine(dataset)
    if "Rows" not in dataset or "Columns" not in dataset:
        raise Unusable("no_pixel_data")
    if rules.modalities is not None and cine.modality not in rules.modalities:
        raise Unusable("other_modality")
    if (syntax := dataset.file_meta.get("TransferSyntaxUID")) is None:
        raise Unusable("bad_header", "the header names no transfer syntax")
    check_syntax(syntax)
    layout = read_layout(dataset)
    if cine.num_frames < 2:
        raise Unusable("single_frame")
    if not cine.study or not cine.instance:
        raise Unusable("no_identity")
    if cine.burned_in and not rules.keep_burned_in:
        raise Unusable("burned_in_annotation")
    pixels.seek(header_end)
    frames = find_frames(pixels, dataset, layout, cine.num_frames)
    if frames.pieces:
        check_stream(layout, first_bytes(pixels, frames))
    if frames.count < min(cine.num_frames, MIN_PARTIAL_FRAMES):
        raise Unusable("truncated", f"{frames.count} of {cine.num_frames} frames are there")
    return Source(pixels, dataset, cine, layout, frames)


def _convert(source: Source, source_id: str, rules: Rules) -> dict[str, Any]:
    cine = source.cine
    video_id = rules.key.id_of("video", cine.instance)
    folder = rules.videos / video_id[:2]
    folder.mkdir(parents=True, exist_ok=True)
    # Two files may hold the same video: each is written under its own name, and the driver keeps one.
    path = folder / f"{video_id}.{source_id}.{EXTENSION}"
    marks: dict[str, str] = {}
    try:
        written = write_video(path, _shown(source, rules.max_side, marks), cine.fps)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    shrunk = source.layout.rows / written.height
    patient = cine.patient or cine.study  # nobody is named: then each study is a patient of its own
    return {
        "path": str(path.relative_to(rules.videos.parent)),
        "video": {
            "video_id": video_id,
            "study_id": rules.key.id_of("study", cine.study),
            "num_frames": written.num_frames,
            "height": written.height,
            "width": written.width,
            "fps": float(cine.fps),
            "primary_angle": cine.primary_angle,
            "secondary_angle": cine.secondary_angle,
            "pixel_spacing": None if cine.pixel_spacing is None else cine.pixel_spacing * shrunk,
            "partial": written.num_frames < cine.num_frames,
            "attributes": {
                "modality": cine.modality,
                "fps_source": cine.fps_source,
                "bits_stored": str(source.layout.bits),
                **cine.marks,
                **marks,
            },
        },
        "study": {
            "patient_id": rules.key.id_of("patient", patient),
            "named": bool(cine.patient),
            "sex": cine.sex,
            "age_band": cine.age_band,
            "day": cine.day,
        },
        "order": cine.order,
        "sums": vars(written.sums),
    }


def _shown(source: Source, max_side: int | None, marks: dict[str, str]) -> Iterator[np.ndarray]:
    """Yield each frame as a viewer shows it, uint8 [H, W]; what was found out on the way is put into ``marks``."""
    dataset, layout = source.dataset, source.layout
    corners = CornerWatch() if source.cine.burned_in is None else None
    try:
        visible, shutter = visible_area(dataset, layout.rows, layout.columns)
        display = Display(dataset, layout, lambda: stored_frames(source.pixels, source.frames, layout), visible)
        for index, frame in enumerate(stored_frames(source.pixels, source.frames, layout)):
            shown = display.show(index, frame)
            if visible is not None:
                shown = np.where(visible, shown, np.uint8(0))
            if corners is not None:
                corners.add(shown)
            yield fit(shown, max_side)
    except OSError as error:
        raise _unreadable(error) from error
    except Exception as error:  # decoders of five libraries raise anything; it must cost this file only
        name = layout.syntax.name
        raise Unusable("decode_error", f"the pixels ({name}) cannot be decoded ({type(error).__name__})") from error
    marks["grey_levels"] = display.rule
    if shutter is not None:
        marks["shutter"] = shutter
    if source.cine.burned_in:
        marks["burned_in"] = "declared"
    elif corners is not None and corners.suspected:
        marks["burned_in"] = "suspected"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom from printing: its warnings quote values of the file, which would put names into logs."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
