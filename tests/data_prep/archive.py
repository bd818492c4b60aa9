"""Small archives of DICOM cines, and what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from data_prep.dicom.ingest import Summary


def cine(path: Path, patient: str, study: str, instance: str, frames: np.ndarray | None = None, **tags: Any) -> None:
    """Write an XA cine; by default 3 frames of 16x16 noise."""
    if frames is None:
        frames = np.random.default_rng(abs(hash(instance)) % 2**32).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.12.1"
    dataset.PatientID, dataset.StudyInstanceUID, dataset.SOPInstanceUID = patient, study, instance
    dataset.Modality, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = "XA", 1, "MONOCHROME2"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames.shape[:3]
    dataset.BitsAllocated = dataset.BitsStored = 8 * frames.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PixelData = frames.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def patients(folder: Path, number: int = 12) -> Path:
    """Patients of two studies of one cine each."""
    for patient in range(number):
        for study in range(2):
            uid = f"1.2.3.{patient}.{study}"
            date = f"202001{10 + 5 * study}"
            cine(folder / f"{patient}-{study}.dcm", f"P{patient}", uid, uid + ".1", StudyDate=date)
    return folder


def rows(output: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(output / f"{name}.parquet").to_pylist()


def by_reason(summary: Summary) -> dict[str, int]:
    counts = summary.description["counts"]
    assert counts["found"] == counts["ingested"] + counts["quarantined"]
    assert counts["quarantined"] == sum(counts["reasons"].values())
    return counts["reasons"]
