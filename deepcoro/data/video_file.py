"""A video file that is in no dataset, as a unit that ``UnitReader`` reads like any other: by time, cropped alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deepcoro.data.decode import local_copy, probe
from deepcoro.data.schema import STUDIES_SCHEMA, VIDEOS_SCHEMA
from deepcoro.data.table_files import Rows, Tables
from deepcoro.data.tables import Units
from deepcoro.errors import DataError

_DICOM = (".dcm", ".dicom", ".ima")
_MAGIC_AT, _MAGIC = 128, b"DICM"
_LEAST_FRAMES = 2


def video_units(uri: str, angles: tuple[float, float] | None = None, whole_study: bool = False) -> Units:
    """The one unit of ``uri`` (a path or a URI): nothing is known of its text. Its id is ``video``: the name of a file
    may be a patient's.

    Args:
        angles: primary (LAO positive) and secondary (cranial positive), in degrees.
        whole_study: whether it is a study of this one video.

    Raises:
        DataError: no such file, a DICOM file, no video, one picture, or it cannot be decoded.
    """
    with local_copy(uri) as path:
        _refuse_dicom(uri, path)
        facts = probe(path)
    if facts.num_frames < _LEAST_FRAMES:
        raise DataError(f"{uri}: holds {facts.num_frames} frame; one picture is no cine, and models here learn cines")
    primary, secondary = angles or (None, None)
    name = "video"
    study = {"study_id": name, "patient_id": name, "split": "test"}
    video: dict[str, Any] = {
        "video_id": name,
        "study_id": name,
        "uri": uri,
        "num_frames": facts.num_frames,
        "height": facts.height,
        "width": facts.width,
        "fps": facts.fps,
        "primary_angle": primary,
        "secondary_angle": secondary,
        "partial": False,
    }
    tables = Tables(
        Rows(pa.Table.from_pylist([study], schema=STUDIES_SCHEMA)),
        Rows(pa.Table.from_pylist([video], schema=VIDEOS_SCHEMA)),
        np.zeros(1, np.int32),
    )
    offsets = np.array([0, 1], np.int32) if whole_study else None
    return Units(tables, np.zeros(1, np.int32), offsets, str(Path.cwd()), whole_study)


def _refuse_dicom(uri: str, path: str) -> None:
    is_dicom = Path(uri).suffix.lower() in _DICOM
    if not is_dicom and Path(path).is_file():
        with Path(path).open("rb") as stream:
            stream.seek(_MAGIC_AT)
            is_dicom = stream.read(len(_MAGIC)) == _MAGIC
    if is_dicom:
        raise DataError(
            f"{uri}: is a DICOM file, and AVI and MP4 are read here. Windowing, shutter and identity are for the DICOM "
            "door: python -m data_prep dicom --input FOLDER --output PREPARED, and then generate with --data PREPARED"
        )
