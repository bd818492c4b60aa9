"""What is read from a header: times, angles, marks, at the top or in the functional groups of enhanced files."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from data_prep.dicom.header import age_band, frame_rate, read_cine
from data_prep.dicom.shutter import visible_area


def item(**tags: Any) -> Dataset:
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, Sequence([value]) if isinstance(value, Dataset) else value)
    return dataset


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


def test_frames_of_an_enhanced_file_tell_their_moments() -> None:
    moments = ["20200101235959.900000", "20200102000000.000000", "20200102000000.150000"]
    groups = [item(FrameContentSequence=item(FrameAcquisitionDateTime=moment)) for moment in moments]
    dataset = item(CineRate=99)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    assert frame_rate(dataset) == (8, "frame_moments")  # 250 ms over two steps
    groups[2].FrameContentSequence[0].FrameAcquisitionDateTime = moments[0]
    assert frame_rate(dataset) == (99, "cine_rate")  # no time goes by: then the moments tell nothing


def test_a_time_that_is_no_time_is_passed_over() -> None:
    assert frame_rate(item(FrameTime="0", CineRate=25)) == (25, "cine_rate")
    assert frame_rate(item(FrameTime="-40", RecommendedDisplayFrameRate=12)) == (12, "display_rate")


def test_angles_are_those_of_the_first_frame() -> None:
    plain = read_cine(item(PositionerPrimaryAngle="-32.5", PositionerSecondaryAngle="2"))
    assert (plain.primary_angle, plain.secondary_angle, plain.marks) == (-32.5, 2, {})
    turning = Dataset()
    turning.PerFrameFunctionalGroupsSequence = Sequence(
        [item(PositionerPositionSequence=item(PositionerPrimaryAngle=angle)) for angle in ("-30", "0", "30")]
    )
    assert read_cine(turning).primary_angle == -30
    assert read_cine(turning).marks == {"gantry": "moving"}
    assert read_cine(item(PositionerPrimaryAngle="0", PositionerPrimaryAngleIncrement=["0", "2", "9"])).marks == {
        "gantry": "moving"
    }


@pytest.mark.parametrize(
    ("tags", "mark"),
    [
        ({"ImageType": ["DERIVED", "PRIMARY", "SINGLE PLANE", "SUBTRACTION"]}, "stored"),
        ({"RecommendedViewingMode": "SUB", "MaskSubtractionSequence": Dataset()}, "recommended"),
        ({"MaskSubtractionSequence": item(MaskOperation="AVG_SUB")}, "possible"),
        ({"RecommendedViewingMode": "NAT"}, None),
    ],
)
def test_subtraction_is_marked(tags: dict[str, Any], mark: str | None) -> None:
    assert read_cine(item(**tags)).marks.get("subtraction") == mark


def test_marks_hold_no_free_text() -> None:
    assert read_cine(item(PixelIntensityRelationship="LOG")).marks == {"pixel_intensity": "LOG"}
    assert read_cine(item(PixelIntensityRelationship="ZEBULINA", RecommendedViewingMode="ZEBULINA")).marks == {}


def test_numbers_that_are_none_are_refused() -> None:
    for value in ("nan", "inf"):
        with pytest.raises(ValueError):
            read_cine(item(PositionerPrimaryAngle=value))


def test_age_is_a_decade() -> None:
    ages = {"063Y": "60-69", "009Y": "0-9", "095Y": "90+", "018M": "0-9", "": None, "63": None}
    assert {age: age_band(age) for age in ages} == ages


def test_shutters_by_hand() -> None:
    edges = {"ShutterLeftVerticalEdge": 2, "ShutterRightVerticalEdge": 3}
    edges |= {"ShutterUpperHorizontalEdge": 1, "ShutterLowerHorizontalEdge": 2}
    area, mark = visible_area(item(ShutterShape="RECTANGULAR", **edges), 3, 4)
    assert area is not None and area.astype(int).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert mark == "rectangular"
    round_one = item(ShutterShape="CIRCULAR", CenterOfCircularShutter=[2, 2], RadiusOfCircularShutter=1)
    area, mark = visible_area(round_one, 3, 3)
    assert area is not None and area.astype(int).tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    corners = [1, 1, 1, 4, 4, 1]  # a triangle: row and column of each corner
    area, _ = visible_area(item(ShutterShape="POLYGONAL", VerticesOfThePolygonalShutter=corners), 4, 4)
    assert area is not None and np.array_equal(area, np.tri(4)[:, ::1][::-1].astype(bool))
    both = item(ShutterShape=["RECTANGULAR", "CIRCULAR"], **edges)
    both.CenterOfCircularShutter, both.RadiusOfCircularShutter = [1, 2], 0
    area, mark = visible_area(both, 3, 4)
    assert area is not None and area.sum() == 1 and mark == "rectangular+circular"
    assert visible_area(Dataset(), 3, 3) == (None, None)
    assert visible_area(item(ShutterShape="RECTANGULAR", **(edges | {"ShutterRightVerticalEdge": 1})), 3, 4) == (
        None,
        "ignored",
    )
    assert visible_area(item(ShutterShape="CIRCULAR", RadiusOfCircularShutter=3), 3, 4) == (None, "ignored")
    enhanced = item(SharedFunctionalGroupsSequence=item(FrameDisplayShutterSequence=round_one))
    area, mark = visible_area(enhanced, 3, 3)
    assert area is not None and area.sum() == 5 and mark == "circular"


def test_burned_in_is_yes_no_or_not_said() -> None:
    said = {"YES": True, "NO": False, "": None, "y": True, "MAYBE": None}
    assert {value: read_cine(item(BurnedInAnnotation=value)).burned_in for value in said} == said
