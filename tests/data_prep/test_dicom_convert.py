"""One file, one record: what breaks off, what is too large, what nobody reads; and the whole of ../shared/data."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from data_prep.dicom.convert import convert
from data_prep.dicom.quarantine import REASONS
from tests.data_prep.dicom_files import cine_bytes, cine_dataset, noise, read_stored, rules, video_frames, write_cine

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
SYNTAXES = (
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
)


def converted(folder: Path, content: bytes, **options: object) -> dict:
    (folder / "file").write_bytes(content)
    return convert(b"file", rules(folder, **options))


def save(dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
def test_a_whole_cine_of_every_family(tmp_path: Path, syntax: UID) -> None:
    frames = noise(9, 48, 64)
    record = converted(tmp_path, cine_bytes(frames, syntax=syntax, FrameTime="50"))
    video = record["video"]
    assert (video["num_frames"], video["height"], video["width"], video["fps"]) == (9, 48, 64, 20)
    assert video["partial"] is False
    assert np.abs(video_frames(tmp_path, record).astype(int) - frames).mean() < 4


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
def test_what_breaks_off_keeps_its_whole_frames(tmp_path: Path, syntax: UID) -> None:
    frames = noise(20, 48, 64)
    content = cine_bytes(frames, syntax=syntax)
    record = converted(tmp_path, content[: int(0.7 * len(content))])
    video = record["video"]
    assert video["partial"] is True
    assert 11 <= video["num_frames"] <= 14
    kept = video_frames(tmp_path, record)
    assert len(kept) == video["num_frames"]
    assert np.abs(kept.astype(int) - frames[: len(kept)]).mean() < 4
    short = converted(tmp_path, content[: int(0.25 * len(content))])
    assert short["reason"] == "truncated"
    assert not list((tmp_path / "out" / "videos").rglob(f"*{short['source']}*.tmp"))


def test_eight_whole_frames_are_enough_and_seven_are_not(tmp_path: Path) -> None:
    content = cine_bytes(noise(20, 16, 16))
    whole = len(content) - 20 * 256
    assert converted(tmp_path, content[: whole + 8 * 256])["video"]["num_frames"] == 8
    assert converted(tmp_path, content[: whole + 8 * 256 - 1])["reason"] == "truncated"


def test_fewer_pictures_than_declared_though_the_file_ends_well(tmp_path: Path) -> None:
    dataset = cine_dataset(noise(10, 32, 32), syntax=JPEG2000Lossless)
    dataset.NumberOfFrames = 12
    record = converted(tmp_path, save(dataset))
    assert (record["video"]["num_frames"], record["video"]["partial"]) == (10, True)
    dataset.NumberOfFrames = 9
    record = converted(tmp_path, save(dataset))
    assert (record["video"]["num_frames"], record["video"]["partial"]) == (9, False)


@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("table", ["none", "basic", "extended", "wrong"])
@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLosslessSV1, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_fragments_and_tables_of_offsets(syntax: UID, table: str, fragments: int) -> None:
    frames = noise(4, 32, 40)
    dataset = cine_dataset(frames, syntax=syntax)
    whole = read_stored(save(dataset))
    streams = list(generate_frames(dataset.PixelData, number_of_frames=4))
    if table == "extended":
        if fragments > 1:
            return  # not allowed, PS3.3 C.7.6.3.1.8
        data, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(streams)
        dataset.PixelData = data
    else:
        dataset.PixelData = encapsulate(streams, fragments_per_frame=fragments, has_bot=table != "none")
    if table == "wrong":
        data = bytearray(dataset.PixelData)
        data[12] ^= 4  # the second offset
        dataset.PixelData = bytes(data)
    dataset["PixelData"].is_undefined_length = True
    assert np.array_equal(read_stored(save(dataset)), whole)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit])
def test_declared_sizes_cost_nothing(tmp_path: Path, syntax: UID) -> None:
    frames = noise(3, 16, 16)
    for declared, reason in (
        ({"Rows": 65535, "Columns": 65535}, "bad_header"),
        ({"Rows": 16_000, "Columns": 16_000}, "unsupported_pixels"),
        ({"Rows": 4_000, "Columns": 4_000}, "truncated"),
    ):
        content = cine_bytes(frames, syntax=syntax, NumberOfFrames=10_000, **declared)
        tracemalloc.start()
        record = converted(tmp_path, content)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert record["reason"] == reason
        assert peak < 5e6


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_a_stream_larger_than_the_header_says_is_not_decoded(tmp_path: Path, syntax: UID) -> None:
    """The decoder would allocate what the stream asks for."""
    content = bytearray(cine_bytes(noise(3, 32, 48), syntax=syntax))
    for at in range(len(content) - 8):
        if syntax == JPEG2000Lossless and content[at : at + 4] == b"\xff\x4f\xff\x51":
            content[at + 8 : at + 16] = content[at + 24 : at + 32] = (65_000).to_bytes(4, "big") * 2
        elif (
            content[at : at + 2] in (b"\xff\xc0", b"\xff\xc3", b"\xff\xf7")
            and content[at + 5 : at + 9] == b"\0\x20\0\x30"
        ):
            content[at + 5 : at + 9] = b"\xff\xf0\xff\xf0"
    tracemalloc.start()
    record = converted(tmp_path, bytes(content))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert record["reason"] == "decode_error"
    assert peak < 5e6


def test_memory_is_that_of_a_frame(tmp_path: Path) -> None:
    peaks = []
    for num_frames in (10, 80):
        content = cine_bytes(noise(10, 128, 128, 12).repeat(num_frames // 10, 0), 12)
        (tmp_path / "file").write_bytes(content)
        tracemalloc.start()
        assert "video" in convert(b"file", rules(tmp_path))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_a_deflated_bomb_is_not_blown_up(tmp_path: Path) -> None:
    """40 MB of nothing in 40 KB: the header is past its bound, and the pixels are read a frame at a time."""
    frames = np.zeros((40, 1000, 1000), np.uint8)
    content = cine_bytes(frames, syntax=DeflatedExplicitVRLittleEndian)
    assert len(content) < 60_000
    tracemalloc.start()
    record = converted(tmp_path, content, max_side=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert record["video"]["num_frames"] == 40
    assert peak < 20e6


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        ("1.2.840.10008.1.2.4.102", "MPEG-4"),
        ("1.2.840.10008.1.2.4.92", "JPEG 2000 Part 2"),
        ("1.2.840.10008.1.2.4.205", "JPIP"),
        ("1.2.3.4.5", "1.2.3.4.5"),
    ],
)
def test_what_nobody_reads_is_named(tmp_path: Path, syntax: str, name: str) -> None:
    dataset = cine_dataset(noise(9, 16, 16))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([b"1234"] * 9)
    dataset["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    dataset.save_as(file, implicit_vr=False, little_endian=True, enforce_file_format=True)
    record = converted(tmp_path, file.getvalue())
    assert record["reason"] == "unsupported_transfer_syntax"
    assert name in record["detail"]


def test_sixteen_bits_of_jpeg_lossless_are_refused(tmp_path: Path) -> None:
    record = converted(tmp_path, cine_bytes(noise(9, 8, 8, 16), syntax=JPEGLosslessSV1))
    assert record["reason"] == "unsupported_transfer_syntax"
    assert "16 bits" in record["detail"]


def test_a_shutter_is_black_and_marked(tmp_path: Path) -> None:
    frames = np.full((9, 64, 64), 200, np.uint8)
    circle = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [32, 32], "RadiusOfCircularShutter": 20}
    record = converted(tmp_path, cine_bytes(frames, **circle))
    assert record["video"]["attributes"]["shutter"] == "circular"
    video = video_frames(tmp_path, record)
    assert video[:, 28:36, 28:36].min() > 190 and video[:, :8, :8].max() < 10


def test_a_full_disk_is_not_the_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_prep.dicom.convert.write_video", full)
    with pytest.raises(OSError, match="No space left"):
        converted(tmp_path, cine_bytes(noise(9, 16, 16)))


def test_one_pixel_and_very_wide_pictures(tmp_path: Path) -> None:
    for shape in ((1, 1), (1, 4000), (3000, 2), (17, 1)):
        frames = np.full((8, *shape), 77, np.uint8)
        record = converted(tmp_path, cine_bytes(frames))
        assert (record["video"]["height"], record["video"]["width"]) == shape
        assert np.abs(video_frames(tmp_path, record).astype(int) - 77).max() <= 2


# What INDEX.csv says of each file, and what must therefore come of it. Single frames are no cines, whatever their
# compression; 32 bits are for doses; JPEG Lossless of 16 bits and files without the DICM mark are not read.
EXPECTED = {
    "INDEX.csv": "not_dicom",
    "reports/ontology/dicom_cid_coronary.json": "not_dicom",
    "video/*": "not_dicom",
    "video/moviepy__result.webm": "empty",
    "xa_dicom/nema_wg04_*": "single_frame",
    "xa_dicom/rubo_0002_coronary_RCA_96f_jpegbaseline.dcm": 96,
    "echo_dicom/pydicom_examples_ybr_color_30f.dcm": 30,
    "multiframe_dicom/dicomParser_CT0012.*": 2,
    "multiframe_dicom/dicomParser_CT0012.fragmented_no_bot_jpeg_lossless.70.dcm": "unsupported_transfer_syntax",
    "multiframe_dicom/pydicom_emri_small*": 10,
    "multiframe_dicom/pydicom_SC_rgb_*": 2,
    "multiframe_dicom/pydicom_SC_rgb_32bit_2frame.dcm": "unsupported_pixels",
    "multiframe_dicom/pydicom_rtdose*": "unsupported_pixels",
    "broken_dicom/pydicom_badVR.dcm": "bad_header",  # 1A frames
    "broken_dicom/pydicom_MR_truncated.dcm": "single_frame",
    "broken_dicom/pydicom_rtplan_truncated.dcm": "no_pixel_data",
    "broken_dicom/pydicom_meta_missing_tsyntax.dcm": "no_pixel_data",
    "broken_dicom/pydicom_no_meta.dcm": "not_dicom",
    "broken_dicom/pydicom_no_meta_group_length.dcm": "no_pixel_data",
    "broken_dicom/pydicom_ExplVR_LitEndNoMeta.dcm": "not_dicom",
    "broken_dicom/pydicom_JPEG2000-embedded-sequence-delimiter.dcm": "single_frame",
    "broken_dicom/pydicom_J2K_pixelrep_mismatch.dcm": "single_frame",
    "broken_dicom/pydicom_JPEG-lossy_bad.dcm": "single_frame",
    "broken_dicom/pydicom_bad_sequence.dcm": "single_frame",
    "broken_dicom/pydicom_emri_j2k_too_short_10f.dcm": 10,  # what is missing is the mark behind the last frame
    "broken_dicom/pydicom_test-SR.dcm": "no_pixel_data",
}


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is absent")
def test_every_real_file_has_the_right_reason(tmp_path: Path) -> None:
    (tmp_path / "out" / "videos").mkdir(parents=True)
    reads = rules(tmp_path)
    reads = type(reads)(REAL, reads.videos, reads.key, None, None)
    wrong, met = {}, set()
    for path in sorted(path for path in REAL.rglob("*") if path.is_file()):
        name = str(path.relative_to(REAL))
        pattern = max((p for p in EXPECTED if p == name or Path(name).match(p)), key=lambda p: ("*" not in p, len(p)))
        record = convert(name.encode(), reads)
        found = record["video"]["num_frames"] if "video" in record else record["reason"]
        met.add(pattern)
        if found != EXPECTED[pattern]:
            wrong[name] = found
        assert "video" in record or record["reason"] in REASONS
        assert record.get("video", {}).get("partial", False) is False
    assert not wrong
    assert met == set(EXPECTED)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is absent")
def test_one_enhanced_ct_through_three_kinds_of_fragments() -> None:
    folder = REAL / "multiframe_dicom"
    reference = dcmread(folder / "dicomParser_CT0012.explicit_little_endian.dcm").pixel_array
    for name in ("explicit_little_endian", "not_fragmented_bot_rle", "not_fragmented_no_bot_rle"):
        assert np.array_equal(read_stored(folder / f"dicomParser_CT0012.{name}.dcm"), reference.view(np.uint16))


def test_fixtures_are_written(tmp_path: Path) -> None:
    """The files of these tests are DICOM to pydicom too."""
    path = write_cine(tmp_path / "a" / "b.dcm", noise(3, 32, 32), syntax=RLELossless)
    assert np.array_equal(dcmread(path).pixel_array, noise(3, 32, 32))
