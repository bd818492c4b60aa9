"""Pixels: what a stored value must look like, by hand and by pydicom; and that a video file gives it back."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_windowing, pixel_array
from pydicom.uid import ExplicitVRLittleEndian

from data_prep.dicom.encode import write_video
from data_prep.dicom.header import age_band, frame_rate
from data_prep.dicom.pixels import display_table, fit, stored_frames

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def grey(frames: np.ndarray, bits: int, signed: bool = False, **tags: object) -> tuple[io.BytesIO, Dataset]:
    """An XA cine with these stored values, as a file and as the header read back from it."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.12.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = 8 * frames.itemsize
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, int(signed)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = frames.tobytes()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    file.seek(0)
    return file, dcmread(file, stop_before_pixels=True)


def shown(frames: np.ndarray, bits: int, signed: bool = False, **tags: object) -> np.ndarray:
    file, header = grey(frames, bits, signed, **tags)
    table, _ = display_table(header, lambda: stored_frames(file, header, len(frames)))
    return np.stack([table[frame] for frame in stored_frames(file, header, len(frames))])


def row(*values: int, dtype: type = np.uint16) -> np.ndarray:
    """Two equal frames of one line."""
    return np.array([[values], [values]], dtype)


def test_eight_bits_without_a_window_stay_as_they_are() -> None:
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(2, 0)
    assert np.array_equal(shown(frames, 8), frames)


def test_window_by_hand() -> None:
    # Center 100, width 101 (PS3.3 C.11.2.1.2.1): black up to 49.5, white above 149.5, half grey at 99.5.
    levels = shown(row(0, 49, 50, 99, 100, 149, 150, 4095), 12, WindowCenter=100, WindowWidth=101)[0, 0]
    assert levels.tolist() == [0, 0, 1, 126, 129, 254, 255, 255]


def test_monochrome1_is_inverted_after_the_window() -> None:
    tags = {"WindowCenter": 100, "WindowWidth": 101}
    plain = shown(row(0, 60, 100, 300), 12, **tags)
    assert np.array_equal(shown(row(0, 60, 100, 300), 12, PhotometricInterpretation="MONOCHROME1", **tags), 255 - plain)


def test_rescale_comes_before_the_window() -> None:
    by_rescale = shown(row(0, 10, 20, 30), 12, RescaleSlope=2, RescaleIntercept=-20, WindowCenter=10, WindowWidth=40)
    by_hand = shown(row(-20, 0, 20, 40, dtype=np.int16), 16, signed=True, WindowCenter=10, WindowWidth=40)
    assert np.array_equal(by_rescale, by_hand)


def test_logarithmic_xray_pixels_are_windowed_as_stored() -> None:
    tags = {"WindowCenter": 100, "WindowWidth": 101, "RescaleSlope": 0.5, "RescaleIntercept": 3}
    logarithmic = shown(row(0, 60, 100, 300), 12, PixelIntensityRelationship="LOG", **tags)
    assert np.array_equal(logarithmic, shown(row(0, 60, 100, 300), 12, WindowCenter=100, WindowWidth=101))


def test_values_present_fill_the_range() -> None:
    assert shown(row(100, 300, 500), 12)[0, 0].tolist() == [0, 128, 255]
    assert shown(row(-1000, 0, 1000, dtype=np.int16), 16, signed=True)[0, 0].tolist() == [0, 128, 255]
    assert shown(row(7, 7), 12).max() == 0


def test_bits_above_the_stored_ones_are_no_pixels() -> None:
    plain = row(100, 300, 500)
    assert np.array_equal(shown(plain | 0x8000, 12), shown(plain, 12))


def test_pixels_stored_in_the_high_bits() -> None:
    plain = row(100, 300, 500)
    assert np.array_equal(shown(plain << 4, 12, HighBit=15), shown(plain, 12))


@given(
    bits=st.integers(9, 16),
    signed=st.booleans(),
    center=st.integers(-3000, 3000),
    width=st.integers(2, 5000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_window_is_that_of_pydicom(bits: int, signed: bool, center: int, width: int, function: str) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.linspace(low, low + 2**bits - 1, 50).astype(np.int16 if signed else np.uint16)
    tags = {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": function}
    _, header = grey(values.reshape(1, 1, 50).repeat(2, 0), bits, signed, **tags)
    reference = (apply_windowing(values, header) - low) / (2**bits - 1) * 255
    ours = shown(values.reshape(1, 1, 50).repeat(2, 0), bits, signed, **tags)[0, 0]
    assert np.abs(ours - reference).max() <= 0.51


def test_fit_averages_areas() -> None:
    frame = np.array([[0, 100, 10, 10], [100, 200, 10, 10]], np.uint8)
    assert fit(frame, 2).tolist() == [[100, 10]]
    assert fit(frame, 4) is frame
    assert fit(np.zeros((300, 200), np.uint8), 150).shape == (150, 100)


def test_frame_rate_follows_the_pointer() -> None:
    dataset = Dataset()
    assert frame_rate(dataset) == (15, "assumed")
    dataset.RecommendedDisplayFrameRate = 10
    assert frame_rate(dataset) == (10, "display_rate")
    dataset.CineRate = 30
    assert frame_rate(dataset) == (30, "cine_rate")
    dataset.FrameTime = "33.33"
    assert frame_rate(dataset) == (Fraction(100_000, 3333), "frame_time")
    dataset.FrameTimeVector = ["0", "50", "100"]
    assert frame_rate(dataset)[1] == "frame_time"
    dataset.FrameIncrementPointer = 0x00181065
    assert frame_rate(dataset) == (Fraction(40, 3), "frame_time_vector")


def test_age_is_a_decade() -> None:
    assert [age_band(age) for age in ("063Y", "009Y", "095Y", "018M", "", "63")] == [
        "60-69",
        "0-9",
        "90+",
        "0-9",
        None,
        None,
    ]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (75, 101)])
@pytest.mark.parametrize("fps", [Fraction(15), Fraction(1000, 33), Fraction(15, 2)])
def test_both_readers_give_back_what_was_written(tmp_path: Path, height: int, width: int, fps: Fraction) -> None:
    y, x, t = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), np.arange(7), indexing="ij")
    frames = (127.5 + 127.5 * np.sin(6 * x + 4 * y + 0.5 * t)).astype(np.uint8).transpose(2, 0, 1)
    frames[:, :16, :16], frames[:, :16, 16:32] = 0, 255
    path = tmp_path / "video.mp4"
    written = write_video(path, frames, fps)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == fps
        by_av = np.stack([picture.to_ndarray(format="gray") for picture in container.decode(video=0)])
    reader = decord.VideoReader(str(path))
    in_turn = reader.get_batch(range(len(reader))).asnumpy()
    by_decord = in_turn[..., 1]
    assert (written.num_frames, written.height, written.width) == frames.shape == by_decord.shape == by_av.shape
    assert np.array_equal(in_turn[..., 0], in_turn[..., 2])
    for decoded in (by_av, by_decord):
        error = ((decoded.astype(float) - frames) ** 2).mean()
        assert 10 * np.log10(255**2 / error) > 38
        assert (decoded.min(), decoded.max()) == (0, 255)
        assert decoded[:, 2:14, 2:14].max() <= 1 and decoded[:, 2:14, 18:30].min() >= 254
    assert np.abs(by_av.astype(int) - by_decord).max() <= 2
    for index in (6, 0, 3):
        assert np.array_equal(reader[index].asnumpy(), in_turn[index])
    assert written.sums.count == frames.size
    assert written.sums.total == frames.astype(int).sum()
    assert written.sums.squares == (frames.astype(int) ** 2).sum()


def test_a_video_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, np.zeros((9, 32, 32), np.uint8), Fraction(15))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(av.FFmpegError):
        av.open(str(path))


def test_frames_of_two_sizes_are_no_video(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frame 1"):
        write_video(tmp_path / "a.mp4", [np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8)], Fraction(15))
    with pytest.raises(ValueError, match="no frame"):
        write_video(tmp_path / "b.mp4", [], Fraction(15))


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is absent")
def test_jpeg_lossless_is_exact() -> None:
    lossless, rle = (pixel_array(REAL / "xa_dicom" / f"nema_wg04_XA1_{name}.dcm") for name in ("JPLL", "RLE"))
    assert np.array_equal(lossless, rle)
