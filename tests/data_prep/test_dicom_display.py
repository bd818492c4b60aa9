"""Grey levels: what a stored value must look like, by hand and by pydicom."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing
from pydicom.sequence import Sequence

from data_prep.dicom.display import Display
from data_prep.dicom.frames import find_frames
from data_prep.dicom.header import TAGS
from data_prep.dicom.layout import read_layout
from data_prep.dicom.pixels import stored_frames
from data_prep.dicom.source import read_header
from tests.data_prep.dicom_files import cine_bytes, noise
from tests.data_prep.test_dicom_header import item


def displayed(frames: np.ndarray, bits: int, visible: np.ndarray | None = None, **tags: Any) -> tuple[np.ndarray, str]:
    file = io.BytesIO(cine_bytes(frames, bits, **tags))
    dataset, pixels = read_header(file, TAGS)
    layout = read_layout(dataset)
    places = find_frames(pixels, dataset, layout, len(frames))
    display = Display(dataset, layout, lambda: stored_frames(pixels, places, layout), visible)
    shown = [display.show(index, frame) for index, frame in enumerate(stored_frames(pixels, places, layout))]
    return np.stack(shown), display.rule


def shown(frames: np.ndarray, bits: int, **tags: Any) -> np.ndarray:
    return displayed(frames, bits, **tags)[0]


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
    by_hand = shown(row(-20, 0, 20, 40, dtype=np.int16), 16, WindowCenter=10, WindowWidth=40)
    assert np.array_equal(by_rescale, by_hand)


def table(values: list[int], first: int, bits: int) -> Dataset:
    data = np.array(values, "<u2").tobytes()
    return item(LUTDescriptor=[len(values), first, bits], LUTData=data, ModalityLUTType="US")


def test_modality_table_comes_before_the_window() -> None:
    lut = Sequence([table([0, 1000, 10, 100], 0, 16)])
    tabled = shown(row(0, 1, 2, 3), 12, ModalityLUTSequence=lut, WindowCenter=50, WindowWidth=100)
    assert np.array_equal(tabled, shown(row(0, 1000, 10, 100), 12, WindowCenter=50, WindowWidth=100))


def test_voi_table_by_hand() -> None:
    levels, rule = displayed(row(0, 1, 2, 9), 12, VOILUTSequence=Sequence([table([0, 255, 51], 0, 8)]))
    assert rule == "table"
    assert levels[0, 0].tolist() == [0, 255, 51, 51]  # beyond its end the last entry holds


def test_logarithmic_xray_pixels_are_windowed_as_stored() -> None:
    tags = {"WindowCenter": 100, "WindowWidth": 101, "RescaleSlope": 0.5, "RescaleIntercept": 3}
    logarithmic = shown(row(0, 60, 100, 300), 12, PixelIntensityRelationship="LOG", **tags)
    assert np.array_equal(logarithmic, shown(row(0, 60, 100, 300), 12, WindowCenter=100, WindowWidth=101))


def test_values_present_fill_the_range() -> None:
    assert shown(row(100, 300, 500), 12)[0, 0].tolist() == [0, 128, 255]
    assert shown(row(-1000, 0, 1000, dtype=np.int16), 16)[0, 0].tolist() == [0, 128, 255]
    assert shown(row(7, 7), 12).max() == 0


def test_percentiles_are_those_of_numpy() -> None:
    frames = np.random.default_rng(0).gamma(4, 100, (5, 60, 60)).astype(np.uint16)
    levels, rule = displayed(frames, 12)
    assert rule == "percentiles"
    low, high = np.percentile(frames, [0.5, 99.5])
    reference = np.clip((frames - low) / (high - low), 0, 1) * 255
    assert np.abs(levels - reference).max() <= 1


def test_a_few_far_off_pixels_do_not_darken_the_picture() -> None:
    frames = noise(4, 40, 40, 10)
    plain = shown(frames, 12)
    frames[:, 0, 0] = 4095
    assert np.abs(shown(frames, 12)[:, 1:].astype(int) - plain[:, 1:]).max() <= 2


def test_padding_and_what_a_shutter_hides_do_not_count() -> None:
    frames = noise(4, 40, 40, 10) + 500
    plain = shown(frames, 12)
    frames[:, :10] = 4000
    padded = shown(frames, 12, PixelPaddingValue=4000)
    visible = np.ones((40, 40), bool)
    visible[:10] = False
    hidden = displayed(frames, 12, visible)[0]
    for levels in (padded, hidden):
        assert np.abs(levels[:, 10:].astype(int) - plain[:, 10:]).mean() < 3


def test_each_frame_of_an_enhanced_file_has_its_own_window_and_rescale() -> None:
    groups = [
        item(
            FrameVOILUTSequence=item(WindowCenter=str(center), WindowWidth="100"),
            PixelValueTransformationSequence=item(RescaleSlope=str(slope), RescaleIntercept="0"),
        )
        for center, slope in ((50, 1), (100, 2))
    ]
    frames = row(0, 20, 40, 60)
    levels, rule = displayed(frames, 12, PerFrameFunctionalGroupsSequence=Sequence(groups))
    assert rule == "window"
    assert np.array_equal(levels[0], shown(frames, 12, WindowCenter=50, WindowWidth=100)[0])
    second = shown(frames, 12, WindowCenter=100, WindowWidth=100, RescaleSlope=2, RescaleIntercept=0)[1]
    assert np.array_equal(levels[1], second)


def test_percentiles_look_at_rescaled_values() -> None:
    """The same picture stored with slope 1 and with slope 5 is shown the same; as stored it would not be."""
    picture = noise(1, 30, 30, 10)[0]
    frames = np.stack([picture * 5, picture])
    groups = [item(PixelValueTransformationSequence=item(RescaleSlope=slope, RescaleIntercept="0")) for slope in "15"]
    levels, rule = displayed(frames, 16, PerFrameFunctionalGroupsSequence=Sequence(groups))
    assert rule == "percentiles"
    assert np.array_equal(levels[0], levels[1])
    assert levels.max() == 255
    assert np.abs(shown(frames, 16)[0].astype(int) - shown(frames, 16)[1]).max() > 100


@pytest.mark.parametrize("entry_bits", [8, 16])
def test_palette_becomes_luma(entry_bits: int) -> None:
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [255, 255, 255]])
    scale = 257 if entry_bits == 16 else 1
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for at, name in enumerate(("Red", "Green", "Blue")):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, entry_bits]
        data = (colours[:, at] * scale).astype(f"<u{entry_bits // 8}").tobytes()
        tags[f"{name}PaletteColorLookupTableData"] = data
    levels, rule = displayed(row(0, 1, 2, 3, dtype=np.uint8), 8, **tags)
    assert rule == "palette"
    assert levels[0, 0].tolist() == [0, 76, 150, 255]  # 0.299, 0.587 and all of 255


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
    frames = values.reshape(1, 1, 50).repeat(2, 0)
    tags = {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": function}
    header = dcmread(io.BytesIO(cine_bytes(frames, bits, **tags)))
    reference = (apply_windowing(values, header) - low) / (2**bits - 1) * 255
    assert np.abs(shown(frames, bits, **tags)[0, 0] - reference).max() <= 0.51
