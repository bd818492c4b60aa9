"""Text in the corners is suspected where it was drawn, and not where pictures merely have edges, wires and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from data_prep.dicom.burned_in import CornerWatch
from data_prep.dicom.convert import convert
from data_prep.phantom.cines import take_cines
from data_prep.phantom.preset import preset_named
from data_prep.phantom.study import draw_patient
from tests.data_prep.dicom_files import rules, write_cine

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def phantoms() -> list[np.ndarray]:
    """Cines of three phantom patients, 256x256, 10 frames."""
    preset = preset_named("easy")
    cines = (take_cines(draw_patient(7, index, preset), 7, preset, 256, 10, 15.0) for index in range(3))
    return [cine.frames for of_patient in cines for cine in of_patient]


def suspected(frames: np.ndarray) -> bool:
    watch = CornerWatch()
    for frame in frames:
        watch.add(frame)
    return watch.suspected


def with_text(frames: np.ndarray, text: str, size: int, level: int, place: str = "la") -> np.ndarray:
    """The text drawn into every frame; ``place`` is Pillow's anchor, by which the corner is chosen."""
    drawn = []
    right, bottom = frames.shape[2] - 6, frames.shape[1] - 6
    corner = (6 if place[0] == "l" else right, 6 if place[1] == "a" else bottom)
    for frame in frames:
        picture = Image.fromarray(frame)
        ImageDraw.Draw(picture).text(corner, text, level, ImageFont.load_default(size), anchor=place)
        drawn.append(np.asarray(picture))
    return np.stack(drawn)


@pytest.mark.parametrize("place", ["la", "ra", "ld", "rd"])
@pytest.mark.parametrize("size", [10, 12, 16, 24])
def test_white_text_in_any_corner(phantoms: list[np.ndarray], place: str, size: int) -> None:
    for frames in phantoms:
        assert suspected(with_text(frames, "DOE JANE 4711", size, 255, place))


def test_black_text(phantoms: list[np.ndarray]) -> None:
    assert all(suspected(with_text(frames + (90 - frames // 3), "DOE JANE 4711", 16, 0)) for frames in phantoms)


def test_phantoms_without_text(phantoms: list[np.ndarray]) -> None:
    assert not any(suspected(frames) for frames in phantoms)


def test_what_is_no_text() -> None:
    y, x = np.mgrid[:200, :240]
    collimator = np.where((x > 30) & (y > 25) & (x < 200), 180, 0).astype(np.uint8)
    circle = np.where((x - 120) ** 2 + (y - 100) ** 2 < 95**2, 150, 0).astype(np.uint8)
    ruler = np.full((200, 240), 90, np.uint8)
    ruler[:, 10:12] = 255
    flicker = np.random.default_rng(0).integers(0, 256, (6, 200, 240)).astype(np.uint8)
    for still in (collimator, circle, ruler, np.zeros_like(ruler)):
        assert not suspected(np.stack([still] * 6))
    assert not suspected(flicker)


def test_a_moving_wire_is_no_text() -> None:
    frames = np.full((8, 200, 240), 140, np.uint8)
    for index, frame in enumerate(frames):
        for wave in range(6):
            frame[np.arange(60), (10 + 9 * wave + 2 * index + np.arange(60) // 4) % 80] = 30
    assert not suspected(frames)


def test_the_flag_and_the_tag(tmp_path: Path) -> None:
    frames = with_text(np.full((8, 128, 160), 60, np.uint8), "DOE JANE", 14, 240)
    tags = {"suspected": {}, "declared": {"BurnedInAnnotation": "YES"}, "none": {"BurnedInAnnotation": "NO"}}
    marks = {}
    for name, tag in tags.items():
        write_cine(tmp_path / name, frames, **tag)
        record = convert(name.encode(), rules(tmp_path, keep_burned_in=True))
        marks[name] = record["video"]["attributes"].get("burned_in", "none")
    assert marks == {name: name for name in tags}
    assert convert(b"declared", rules(tmp_path))["reason"] == "burned_in_annotation"


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is absent")
def test_real_cines(tmp_path: Path) -> None:
    """The angiogram has no text; the ultrasound has some in three corners."""
    reads = rules(tmp_path)
    found = {}
    for name in (
        "xa_dicom/rubo_0002_coronary_RCA_96f_jpegbaseline.dcm",
        "echo_dicom/pydicom_examples_ybr_color_30f.dcm",
    ):
        (tmp_path / Path(name).name).symlink_to(REAL / name)
        found[name[:2]] = convert(Path(name).name.encode(), reads)["video"]["attributes"].get("burned_in")
    assert found == {"xa": None, "ec": "suspected"}
