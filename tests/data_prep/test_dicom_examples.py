"""The example files that come with pydicom, of many writers: our stored pixels are its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import dcmread
from pydicom.encaps import generate_frames

from data_prep.dicom.quarantine import Unusable
from tests.data_prep.dicom_files import read_stored
from tests.data_prep.reference_jpeg import decode_jpeg

FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
LUMA = [0.299, 0.587, 0.114]  # ITU-R BT.601
pytestmark = [
    pytest.mark.skipif(not FOLDER.is_dir(), reason="this pydicom came without its examples"),
    pytest.mark.filterwarnings("ignore"),
]


def by_pydicom(dataset: pydicom.Dataset) -> np.ndarray | None:
    """Bit patterns of grey, luma of colour [T, H, W]; None where pydicom cannot read the pixels."""
    try:
        pixels = dataset.pixel_array_options(raw=True) or dataset.pixel_array
    except Exception:  # its way to say no differs from file to file
        return None
    shape = (int(dataset.get("NumberOfFrames") or 1), dataset.Rows, dataset.Columns)
    if dataset.SamplesPerPixel == 1:
        return pixels.reshape(shape).astype(np.int64) & (2**dataset.BitsStored - 1)
    pixels = pixels.reshape(*shape, 3)
    return pixels[..., 0] if dataset.PhotometricInterpretation.startswith("YBR_FULL") else pixels @ LUMA


def test_every_example_that_pydicom_reads() -> None:
    read, refused = 0, set()
    for path in sorted(FOLDER.glob("*.dcm")):
        dataset = dcmread(path, force=True)
        reference = by_pydicom(dataset)
        if reference is None:
            continue
        try:
            stored = read_stored(path)
        except Unusable as unusable:
            refused.add((unusable.reason, dataset.BitsAllocated))
            continue
        assert np.abs(stored - reference).max() <= 0.51, path.name
        read += 1
    assert read >= 45
    assert refused == {("unsupported_pixels", 32), ("unsupported_pixels", 1)}  # doses, and masks of one bit


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm"])
def test_twelve_bit_lossy_jpeg_is_that_of_a_second_decoder(name: str) -> None:
    reference = decode_jpeg(next(generate_frames(dcmread(FOLDER / name).PixelData, number_of_frames=1)))
    assert reference.max() > 255
    assert np.abs(read_stored(FOLDER / name)[0].astype(int) - reference).max() <= 1
