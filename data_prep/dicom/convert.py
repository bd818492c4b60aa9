"""One file to one prepared video, or to the reason why not. Runs on the workers; knows nothing of the other files."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1

from data_prep.dicom.encode import EXTENSION, write_video
from data_prep.dicom.header import Cine, read_cine
from data_prep.dicom.identity import Key
from data_prep.dicom.jpeg_lossless import MAX_BITS, stream_bits
from data_prep.dicom.pixels import display_table, fit, stored_frames
from data_prep.dicom.quarantine import Unusable

MAX_SIDE = 16_384  # far more than any detector, and what a JPEG can hold
UNDEFINED_LENGTH = 0xFFFFFFFF
PIXEL_DATA = (0x7FE0, 0x0010)
MAX_JPEG_BITS = {JPEGExtended12Bit: 8, JPEGLossless: MAX_BITS, JPEGLosslessSV1: MAX_BITS}
ITEM = b"\xfe\xff\x00\xe0"


@dataclass(frozen=True)
class Rules:
    """What is the same for every file of an ingest."""

    root: Path  # the input folder
    videos: Path  # where video files go
    key: Key
    modalities: frozenset[str] | None  # None: any
    max_side: int | None
    keep_burned_in: bool = False


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
            try:
                dataset, cine = _read(file, rules)
            except Unusable:
                raise
            except InvalidDicomError as error:
                raise Unusable("not_dicom") from error
            except Exception as error:  # a damaged header can raise anything; it costs this file only, and is recorded
                raise Unusable("bad_header", f"the header cannot be read ({type(error).__name__})") from error
            return {"source": source, **_convert(file, dataset, cine, source, rules)}
    except Unusable as unusable:
        return {"source": source, "reason": unusable.reason, "detail": unusable.detail}


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise Unusable("unreadable", f"the file system refused to give the file ({type(error).__name__})") from error


def _read(file: BinaryIO, rules: Rules) -> tuple[Dataset, Cine]:
    """Header and facts of a file that has what a video needs; the checks go from the file as such to its pixels."""
    if os.fstat(file.fileno()).st_size == 0:
        raise Unusable("empty")
    dataset = pydicom.dcmread(file, stop_before_pixels=True)
    cine = read_cine(dataset)
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if "Rows" not in dataset or "Columns" not in dataset:
        raise Unusable("no_pixel_data")
    if rules.modalities is not None and cine.modality not in rules.modalities:
        raise Unusable("other_modality")
    if syntax is None:
        raise Unusable("bad_header", "the header names no transfer syntax")
    if dataset.get("SamplesPerPixel", 1) != 1 or not str(dataset.get("PhotometricInterpretation")).startswith("MONO"):
        raise Unusable("colour")
    if cine.num_frames < 2:
        raise Unusable("single_frame")
    if not cine.study or not cine.instance:
        raise Unusable("no_identity")
    if dataset.get("BurnedInAnnotation") == "YES" and not rules.keep_burned_in:
        raise Unusable("burned_in_annotation")
    _check_pixels(file, dataset, cine)
    return dataset, cine


def _check_pixels(file: BinaryIO, dataset: Dataset, cine: Cine) -> None:
    """Refuse pixels that no decoder takes or that end early. The file stands where the header ended."""
    syntax = dataset.file_meta.TransferSyntaxUID
    bits = dataset.get("BitsStored")
    allocated = dataset.get("BitsAllocated")
    if allocated not in (8, 16) or bits is None or not 1 <= bits <= allocated:
        raise Unusable("unsupported_pixels")
    if not (1 <= dataset.Rows <= MAX_SIDE and 1 <= dataset.Columns <= MAX_SIDE):
        raise Unusable("bad_header", "the header gives a frame no sensible size")
    if dataset.get("PixelRepresentation") is None or dataset.get("HighBit") is None:
        raise Unusable("bad_header", "the header does not say how a pixel's bits are laid out")
    unsupported = Unusable("unsupported_transfer_syntax", f"no decoder at hand reads {syntax.name}")
    if syntax == DeflatedExplicitVRLittleEndian:
        raise unsupported
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise unsupported from error
    if not decoder.is_available:
        raise unsupported
    order: Literal["little", "big"] = "little" if syntax.is_little_endian else "big"
    head = file.read(8 if syntax.is_implicit_VR else 12)
    if tuple(int.from_bytes(head[at : at + 2], order) for at in (0, 2)) != PIXEL_DATA:
        raise Unusable("no_pixel_data")
    length = int.from_bytes(head[-4:], order)
    left = os.fstat(file.fileno()).st_size - file.tell()
    if syntax.is_encapsulated:
        start = file.tell()
        whole = length == UNDEFINED_LENGTH and _items_fit(file, left)
        if whole and not _decodable(syntax, _first_fragment(file, start)):
            raise unsupported
    else:
        whole = min(length, left) >= cine.num_frames * dataset.Rows * dataset.Columns * allocated // 8
    if not whole:
        raise Unusable("truncated")


def _items_fit(file: BinaryIO, left: int) -> bool:
    """Whether every item of encapsulated pixel data (PS3.5 A.4) lies within the bytes that are left."""
    while left >= 8:
        head = file.read(8)
        if head[:4] != ITEM:
            return True  # the end mark; whatever else stands here is the decoder's to judge
        length = int.from_bytes(head[4:], "little")
        left -= 8 + length
        file.seek(length, os.SEEK_CUR)
    return left >= 0


def _first_fragment(file: BinaryIO, start: int) -> bytes:
    """Up to 64 KiB of the first fragment; the item before it is the table of offsets."""
    file.seek(start + 4)
    file.seek(int.from_bytes(file.read(4), "little") + 4, os.SEEK_CUR)
    return file.read(min(int.from_bytes(file.read(4), "little"), 2**16))


def _decodable(syntax: UID, fragment: bytes) -> bool:
    """Whether a JPEG stream has no more bits than its decoder can do; other compressions are not looked into."""
    if syntax not in MAX_JPEG_BITS:
        return True
    try:
        return stream_bits(fragment) <= MAX_JPEG_BITS[syntax]
    except ValueError:
        return True  # no frame header where one is due: damage, on which the decoder will fail


def _convert(file: BinaryIO, dataset: Dataset, cine: Cine, source: str, rules: Rules) -> dict[str, Any]:
    video_id = rules.key.id_of("video", cine.instance)
    folder = rules.videos / video_id[:2]
    folder.mkdir(parents=True, exist_ok=True)
    # Two files may hold the same video: each is written under its own name, and the driver keeps one.
    path = folder / f"{video_id}.{source}.{EXTENSION}"
    rule = ""

    def frames() -> Iterator[np.ndarray]:
        nonlocal rule
        try:
            table, rule = display_table(dataset, lambda: stored_frames(file, dataset, cine.num_frames))
            for frame in stored_frames(file, dataset, cine.num_frames):
                yield fit(table[frame], rules.max_side)
        except Exception as error:  # decoders of five libraries raise anything; it must cost this file only
            name = dataset.file_meta.TransferSyntaxUID.name
            raise Unusable("decode_error", f"the pixels ({name}) cannot be decoded ({type(error).__name__})") from error

    try:
        written = write_video(path, frames(), cine.fps)
        if written.num_frames != cine.num_frames:
            raise Unusable("truncated", f"{written.num_frames} of the {cine.num_frames} frames are there")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    shrunk = dataset.Rows / written.height
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
            "attributes": {
                "modality": cine.modality,
                "fps_source": cine.fps_source,
                "grey_levels": rule,
                "bits_stored": str(dataset.BitsStored),
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
