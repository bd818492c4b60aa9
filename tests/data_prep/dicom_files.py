"""DICOM cines of any transfer syntax, made by encoders that are not the decoders under test wherever there are two."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import openjpeg
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from data_prep.dicom.convert import Rules
from data_prep.dicom.frames import find_frames
from data_prep.dicom.header import TAGS
from data_prep.dicom.identity import Key
from data_prep.dicom.layout import read_layout
from data_prep.dicom.pixels import stored_frames
from data_prep.dicom.source import read_header

XA = "1.2.840.10008.5.1.4.1.1.12.1"
NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


def cine_dataset(
    frames: np.ndarray, bits: int | None = None, syntax: UID = ExplicitVRLittleEndian, **tags: Any
) -> Dataset:
    """An XA cine of frames [T, H, W] or, in colour, [T, H, W, 3]; ``tags`` go before what is made here."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = XA
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.PatientID, dataset.StudyInstanceUID, dataset.Modality = "P", "1.2.3", "XA"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames.shape[:3]
    colour = frames.ndim == 4
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * frames.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(frames.dtype.kind == "i")
    for name, value in tags.items():
        setattr(dataset, name, value)
    if syntax in NATIVE:
        order = "<" if syntax.is_little_endian else ">"
        dataset.PixelData = frames.astype(frames.dtype.newbyteorder(order)).tobytes()
        dataset["PixelData"].VR = "OW" if frames.itemsize > 1 else "OB"
    else:
        dataset.PixelData = encapsulate([encode(frame, dataset) for frame in frames])
        dataset["PixelData"].is_undefined_length = True
    return dataset


def cine_bytes(frames: np.ndarray, bits: int | None = None, syntax: UID = ExplicitVRLittleEndian, **tags: Any) -> bytes:
    file = io.BytesIO()
    cine_dataset(frames, bits, syntax, **tags).save_as(file, enforce_file_format=True)
    return file.getvalue()


def write_cine(path: Path, frames: np.ndarray, bits: int | None = None, **tags: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cine_bytes(frames, bits, **tags))
    return path


def read_stored(content: bytes | Path) -> np.ndarray:
    """The stored bit patterns [T, H, W] of a whole file, by the code under test."""
    file = io.BytesIO(content.read_bytes() if isinstance(content, Path) else content)
    dataset, pixels = read_header(file, TAGS)
    layout = read_layout(dataset)
    frames = find_frames(pixels, dataset, layout, int(dataset.get("NumberOfFrames") or 1))
    return np.stack(list(stored_frames(pixels, frames, layout)))


def rules(root: Path, **options: Any) -> Rules:
    (root / "out" / "videos").mkdir(parents=True, exist_ok=True)
    known = {"modalities": None, "max_side": None} | options
    return Rules(root, root / "out" / "videos", Key(b"k" * 32), **known)


def video_frames(root: Path, record: dict[str, Any]) -> np.ndarray:
    """Frames of the video that a record speaks of, by PyAV."""
    with av.open(str(root / "out" / record["path"])) as container:
        return np.stack([picture.to_ndarray(format="gray") for picture in container.decode(video=0)])


def encode(frame: np.ndarray, dataset: Dataset) -> bytes:
    syntax, bits = dataset.file_meta.TransferSyntaxUID, dataset.BitsStored
    if syntax == RLELossless:
        return RLELosslessEncoder.encode(
            frame.tobytes(),
            rows=frame.shape[0],
            columns=frame.shape[1],
            samples_per_pixel=dataset.SamplesPerPixel,
            bits_allocated=dataset.BitsAllocated,
            bits_stored=bits,
            pixel_representation=dataset.PixelRepresentation,
            photometric_interpretation=dataset.PhotometricInterpretation,
            number_of_frames=1,
            planar_configuration=0,
        )
    if syntax == JPEG2000Lossless:
        colour = frame.ndim == 3
        return openjpeg.encode(frame, bits, photometric_interpretation=int(colour), use_mct=colour)
    if syntax == JPEGBaseline8Bit:
        return baseline(frame)
    return {JPEGLSLossless: jpeg_ls, JPEGLosslessSV1: jpeg_lossless}[syntax](frame, bits)


def baseline(frame: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def jpeg_ls(frame: np.ndarray, bits: int) -> bytes:
    """By FFmpeg: 8 bits, or 16."""
    assert bits in (8, 16)
    codec = av.CodecContext.create("jpegls", "w")
    codec.height, codec.width = frame.shape
    codec.pix_fmt, codec.time_base = "gray" if bits == 8 else "gray16le", Fraction(1)
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=codec.pix_fmt)
    return b"".join(bytes(packet) for packet in [*codec.encode(picture), *codec.encode(None)])


def jpeg_lossless(frame: np.ndarray, bits: int) -> bytes:
    """ITU T.81 process 14, selection value 1, with a code of 5 bits for each of the 17 categories of difference."""
    values = frame.astype(np.int64) & (2**bits - 1)
    before = np.empty_like(values)
    before[:, 1:] = values[:, :-1]
    before[1:, 0], before[0, 0] = values[:-1, 0], 2 ** (bits - 1)
    differences = (values - before + 2**15) % 2**16 - 2**15
    pieces = []
    for difference in differences.ravel().tolist():
        size = abs(difference).bit_length()
        extra = difference if difference >= 0 else difference + 2**size - 1
        pieces.append(f"{size:05b}" + (f"{extra:0{size}b}" if 0 < size < 16 else ""))
    code = "".join(pieces)
    code += "1" * (-len(code) % 8)
    data = int(code, 2).to_bytes(len(code) // 8, "big").replace(b"\xff", b"\xff\x00")
    rows, columns = frame.shape
    size = rows.to_bytes(2, "big") + columns.to_bytes(2, "big")
    return b"".join(
        (
            b"\xff\xd8\xff\xc3\x00\x0b" + bytes([bits]) + size + b"\x01\x01\x11\x00",
            b"\xff\xc4\x00\x24\x00" + bytes([0, 0, 0, 0, 17] + [0] * 11) + bytes(range(17)),
            b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00" + data + b"\xff\xd9",
        )
    )


def noise(num_frames: int = 10, rows: int = 24, columns: int = 32, bits: int = 8, seed: int = 0) -> np.ndarray:
    """Smooth and moving with some noise, over the whole range."""
    y, x, t = np.meshgrid(np.arange(rows), np.arange(columns), np.arange(num_frames), indexing="ij")
    waves = 0.5 + 0.4 * np.sin(x / 5 + t / 3) * np.cos(y / 4)
    waves += np.random.default_rng(seed).normal(0, 0.05, waves.shape)
    dtype = np.uint8 if bits <= 8 else np.uint16
    return np.rint(np.clip(waves, 0, 1) * (2**bits - 1)).astype(dtype).transpose(2, 0, 1).copy()


def by_pydicom(content: bytes) -> np.ndarray:
    return dcmread(io.BytesIO(content)).pixel_array
