"""Stored pixels come out as they went in: every transfer syntax, every layout of bits, and colour as luma."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from data_prep.dicom.pixels import fit
from tests.data_prep.dicom_files import (
    NATIVE,
    baseline,
    by_pydicom,
    cine_bytes,
    cine_dataset,
    jpeg_lossless,
    noise,
    read_stored,
)
from tests.data_prep.reference_jpeg import decode_jpeg

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
real_data = [pytest.mark.real_data, pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is absent")]
LOSSLESS = (*NATIVE, RLELossless, JPEGLosslessSV1, JPEG2000Lossless)


@pytest.mark.parametrize("syntax", [*LOSSLESS, JPEGLSLossless], ids=lambda uid: uid.name)
def test_lossless_syntaxes_give_back_every_pixel(syntax: UID) -> None:
    frames = noise(3, 33, 37)
    assert np.array_equal(read_stored(cine_bytes(frames, syntax=syntax)), frames)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("syntax", "bits"),
    # JPEG Lossless of 16 bits is refused: see test_dicom_convert.
    [(syntax, bits) for syntax in LOSSLESS for bits in (9, 10, 12, 15, 16) if (syntax, bits) != (JPEGLosslessSV1, 16)],
)
def test_more_than_eight_bits_signed_or_not(syntax: UID, bits: int, signed: bool) -> None:
    frames = noise(2, 33, 35, bits)
    if signed:
        frames = (frames.astype(np.int32) - 2 ** (bits - 1)).astype(np.int16)
    content = cine_bytes(frames, bits, syntax=syntax)
    assert np.array_equal(read_stored(content), frames.view(np.uint16) & (2**bits - 1))


def test_runs_may_go_on_from_row_to_row() -> None:
    """The standard says that they must not, and some writers do: 40 zeros in rows of 16, and 24 bytes as they are."""
    values = bytes(range(1, 25))
    segment = bytes([257 - 40, 0, 23, *values]) + bytes([128])  # and a byte that means nothing
    stream = b"".join(number.to_bytes(4, "little") for number in (1, 64, *[0] * 14)) + segment
    dataset = cine_dataset(np.zeros((2, 4, 16), np.uint8))
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([stream, stream])
    dataset["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    expected = np.frombuffer(bytes(40) + values, np.uint8).reshape(4, 16)
    assert np.array_equal(read_stored(file.getvalue()), np.stack([expected] * 2))


def test_sixteen_bits_of_jpeg_ls() -> None:
    frames = noise(2, 9, 11, 16)
    assert np.array_equal(read_stored(cine_bytes(frames, syntax=JPEGLSLossless)), frames)


def test_baseline_is_that_of_a_second_decoder() -> None:
    frames = noise(2, 40, 48)
    content = cine_bytes(frames, syntax=JPEGBaseline8Bit)
    streams = generate_frames(dcmread(io.BytesIO(content)).PixelData, number_of_frames=2)
    reference = np.stack([decode_jpeg(stream) for stream in streams])
    assert np.abs(read_stored(content) - reference).max() <= 1
    assert np.abs(reference - frames).mean() < 3


def test_high_throughput_jpeg_2000_is_read() -> None:
    """No encoder is at hand, so this one is written by hand: a picture whose every code-block is empty is mid-grey."""
    size = b"".join(number.to_bytes(4, "big") for number in (8, 8, 0, 0, 8, 8, 0, 0))
    stream = b"".join(
        (
            b"\xff\x4f\xff\x51\x00\x29\x40\x00" + size + b"\x00\x01\x07\x01\x01",  # SIZ: needs part 15, 8 bits
            b"\xff\x50\x00\x08\x00\x02\x00\x00\x00\x00",  # CAP: all blocks are high-throughput
            b"\xff\x52\x00\x0c\x00\x00\x00\x01\x00\x00\x04\x04\x40\x01",  # COD: no decomposition, 5-3, HT blocks
            b"\xff\x5c\x00\x04\x40\x40",  # QCD: no quantisation
            b"\xff\x90\x00\x0a\x00\x00\x00\x00\x00\x0f\x00\x01\xff\x93\x00\xff\xd9",  # one tile of one empty packet
        )
    )
    dataset = cine_dataset(np.zeros((2, 8, 8), np.uint8))
    dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
    dataset.PixelData = encapsulate([stream, stream])
    dataset["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    assert np.array_equal(read_stored(file.getvalue()), np.full((2, 8, 8), 128))


def test_bits_above_the_stored_ones_are_no_pixels() -> None:
    frames = noise(2, 5, 6, 12)
    for syntax in (ExplicitVRLittleEndian, RLELossless):
        assert np.array_equal(read_stored(cine_bytes(frames | 0x8000, 12, syntax=syntax)), frames)
        assert np.array_equal(read_stored(cine_bytes(frames << 4, 12, syntax=syntax, HighBit=15)), frames)


def test_eight_bit_pixels_in_big_endian_words() -> None:
    frames = noise(3, 3, 5)  # 15 bytes a frame: words lie across frames
    words = np.append(frames.ravel(), np.uint8(0)).view(np.uint16).byteswap().tobytes()
    dataset = cine_dataset(frames, syntax=ExplicitVRBigEndian)
    dataset.PixelData = words
    dataset["PixelData"].VR = "OW"
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    assert np.array_equal(read_stored(file.getvalue()), frames)
    assert np.array_equal(by_pydicom(file.getvalue()), frames)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [0, 1])
def test_red_green_blue_becomes_luma(syntax: UID, bits: int, planar: int) -> None:
    colours = np.stack([noise(2, 32, 34, bits, seed) for seed in range(3)], -1)
    stored = colours.transpose(0, 3, 1, 2).copy() if planar and syntax == ExplicitVRLittleEndian else colours
    content = cine_bytes(colours, syntax=syntax, PlanarConfiguration=planar)
    if stored is not colours:
        dataset = dcmread(io.BytesIO(content))
        dataset.PixelData = stored.tobytes()
        file = io.BytesIO()
        dataset.save_as(file)
        content = file.getvalue()
    luma = colours @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    assert np.abs(read_stored(content) - luma).max() <= 0.51


def test_the_transform_of_jpeg_2000_is_undone_once() -> None:
    colours = np.stack([noise(2, 32, 34, 8, seed) for seed in range(3)], -1)
    content = cine_bytes(colours, syntax=JPEG2000Lossless, PhotometricInterpretation="YBR_RCT")
    assert np.abs(read_stored(content) - colours @ [0.299, 0.587, 0.114]).max() <= 0.51


def test_luma_of_luma_and_chroma_is_the_first_component() -> None:
    frames = np.stack([noise(2, 6, 8, seed=seed) for seed in range(3)], -1)
    assert np.array_equal(read_stored(cine_bytes(frames, PhotometricInterpretation="YBR_FULL")), frames[..., 0])
    packed = np.empty((2, 6, 4, 4), np.uint8)  # Y Y Cb Cr
    packed[..., 0], packed[..., 1] = frames[:, :, ::2, 0], frames[:, :, 1::2, 0]
    packed[..., 2], packed[..., 3] = frames[:, :, ::2, 1], frames[:, :, ::2, 2]
    dataset = cine_dataset(frames, PhotometricInterpretation="YBR_FULL_422")
    dataset.PixelData = packed.tobytes()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    assert np.array_equal(read_stored(file.getvalue()), frames[..., 0])


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
def test_colour_jpeg_becomes_luma(photometric: str) -> None:
    """Pillow writes luma and chroma with a JFIF mark, which goes before what the header says."""
    colours = np.stack([noise(2, 32, 32, seed=0)] * 2 + [noise(2, 32, 32, seed=0) // 2], -1)
    content = cine_bytes(colours, syntax=JPEGBaseline8Bit, PhotometricInterpretation=photometric)
    luma = colours @ [0.299, 0.587, 0.114]
    assert np.abs(read_stored(content) - luma).mean() < 3


def test_colour_jpeg_without_luma_is_what_the_header_says() -> None:
    """Red, green and blue without any mark in the stream: only the DICOM header tells."""
    colours = np.empty((2, 32, 32, 3), np.uint8)
    colours[:] = (200, 60, 100)
    file = io.BytesIO()
    Image.fromarray(colours[0], "YCbCr").save(file, "JPEG", quality=100, subsampling=0)  # stored without a transform
    stream = file.getvalue()
    length = int.from_bytes(stream[4:6], "big")
    assert stream[6:10] == b"JFIF"
    unmarked = stream[:2] + stream[4 + length :]
    for photometric, luma in (("RGB", 0.299 * 200 + 0.587 * 60 + 0.114 * 100), ("YBR_FULL", 200)):
        dataset = cine_dataset(colours, syntax=ExplicitVRLittleEndian, PhotometricInterpretation=photometric)
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.PixelData = encapsulate([unmarked, unmarked])
        dataset["PixelData"].is_undefined_length = True
        written = io.BytesIO()
        dataset.save_as(written, enforce_file_format=True)
        assert np.abs(read_stored(written.getvalue()) - luma).max() <= 2


@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    bits=st.sampled_from([8, 12, 16]),
    syntax=st.sampled_from([ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless]),
    seed=st.integers(0, 99),
)
def test_pixels_are_those_of_pydicom(rows: int, columns: int, bits: int, syntax: UID, seed: int) -> None:
    content = cine_bytes(noise(2, rows, columns, bits, seed), bits, syntax=syntax)
    assert np.array_equal(read_stored(content), by_pydicom(content))


def test_lossy_overshoot_stays_white() -> None:
    """A 12-bit stream in a file of 10 bits may hold 1,030: that is 1,023, and not 6."""
    frames = np.full((2, 32, 32), 1030, np.uint16)
    stream = openjpeg_lossy(frames[0])
    dataset = cine_dataset(frames, 10)
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.91")
    dataset.PixelData = encapsulate([stream, stream])
    dataset["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    assert read_stored(file.getvalue()).min() == 1023


def openjpeg_lossy(frame: np.ndarray) -> bytes:
    import openjpeg

    return openjpeg.encode(frame, 12, compression_ratios=[1])


def test_fit_averages_areas() -> None:
    frame = np.array([[0, 100, 10, 10], [100, 200, 10, 10]], np.uint8)
    assert fit(frame, 2).tolist() == [[100, 10]]
    assert fit(frame, 4) is frame
    assert fit(np.zeros((300, 200), np.uint8), 150).shape == (150, 100)


class TestTheSamePictureInSevenSyntaxes:
    """The 10-bit angiogram of the DICOM committee: lossless ones are equal, lossy ones within 1 of a second decoder."""

    pytestmark = real_data

    def stored(self, name: str) -> np.ndarray:
        return read_stored(REAL / "xa_dicom" / f"nema_wg04_XA1_{name}.dcm")[0]

    def by_ffmpeg(self, name: str, codec: str) -> np.ndarray:
        dataset = dcmread(REAL / "xa_dicom" / f"nema_wg04_XA1_{name}.dcm")
        context = av.CodecContext.create(codec, "r")
        packet = av.Packet(next(generate_frames(dataset.PixelData, number_of_frames=1)))
        (picture,) = context.decode(packet) + context.decode(None)
        values = picture.to_ndarray()
        return values >> (16 - 10) if picture.format.name == "gray16le" and values.max() > 1023 else values

    @pytest.mark.parametrize("name", ["JPLL", "JLSL", "J2KR"])
    def test_lossless(self, name: str) -> None:
        assert np.array_equal(self.stored(name), dcmread(REAL / "xa_dicom/nema_wg04_XA1_RLE.dcm").pixel_array)

    @pytest.mark.parametrize(("name", "codec"), [("J2KI", "jpeg2000"), ("JLSN", "jpegls")])
    def test_lossy(self, name: str, codec: str) -> None:
        assert np.abs(self.stored(name).astype(int) - self.by_ffmpeg(name, codec)).max() <= 1

    def test_twelve_bit_lossy_jpeg(self) -> None:
        dataset = dcmread(REAL / "xa_dicom/nema_wg04_XA1_JPLY.dcm")
        reference = decode_jpeg(next(generate_frames(dataset.PixelData, number_of_frames=1)))
        assert np.abs(self.stored("JPLY").astype(int) - reference).max() <= 1
        assert np.abs(reference - self.stored("RLE")).mean() < 3

    def test_real_cine_is_that_of_a_second_decoder(self) -> None:
        dataset = dcmread(REAL / "xa_dicom/rubo_0002_coronary_RCA_96f_jpegbaseline.dcm")
        ours = read_stored(REAL / "xa_dicom/rubo_0002_coronary_RCA_96f_jpegbaseline.dcm")
        context = av.CodecContext.create("mjpeg", "r")
        for index, stream in enumerate(generate_frames(dataset.PixelData, number_of_frames=96)):
            if index % 16 == 0:
                (picture,) = context.decode(av.Packet(stream))
                plane = np.asarray(memoryview(picture.planes[0]), np.uint8).reshape(-1, picture.planes[0].line_size)
                assert np.abs(ours[index].astype(int) - plane[:512, :512]).max() <= 1


def test_the_lossless_encoder_of_these_tests_is_read_by_nobody_else_wrongly() -> None:
    """FFmpeg reads what it should; what it misreads, a difference of 32,768, is why 16 bits are refused."""
    frame = noise(1, 8, 8, 12)[0]
    context = av.CodecContext.create("mjpeg", "r")
    (picture,) = context.decode(av.Packet(jpeg_lossless(frame, 12))) + context.decode(None)
    assert np.array_equal(picture.to_ndarray() >> 4, frame)
    assert baseline(frame.astype(np.uint8))[:2] == b"\xff\xd8"
