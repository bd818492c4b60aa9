"""What a DICOM header tells about a cine, read from listed tags only: what is not named in TAGS is never even read."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

COLOURS = ("Red", "Green", "Blue")
TAGS = (
    # who and when: become keyed ids, an age band, a day offset and an order
    *("PatientID", "PatientSex", "PatientAge", "StudyInstanceUID", "SOPInstanceUID", "SOPClassUID", "StudyDate"),
    *("SeriesDate", "AcquisitionDate", "ContentDate", "SeriesTime", "AcquisitionTime", "ContentTime"),
    *("AcquisitionDateTime", "SeriesNumber", "InstanceNumber"),
    # what it is
    *("Modality", "ImageType", "BurnedInAnnotation", "PixelIntensityRelationship", "MaskSubtractionSequence"),
    *("RecommendedViewingMode", "PositionerPrimaryAngle", "PositionerSecondaryAngle", "ImagerPixelSpacing"),
    *("PositionerPrimaryAngleIncrement", "PositionerSecondaryAngleIncrement", "PixelSpacing"),
    # when each frame was taken
    *("NumberOfFrames", "FrameIncrementPointer", "FrameTime", "FrameTimeVector", "CineRate"),
    *("RecommendedDisplayFrameRate", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    # how the pixels are stored
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    # how they are shown
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction", "ModalityLUTSequence"),
    *("VOILUTSequence", "PixelPaddingValue"),
    *(f"{segmented}{colour}PaletteColorLookupTableData" for segmented in ("", "Segmented") for colour in COLOURS),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in COLOURS),
    *("ShutterShape", "ShutterLeftVerticalEdge", "ShutterRightVerticalEdge", "ShutterUpperHorizontalEdge"),
    *("ShutterLowerHorizontalEdge", "CenterOfCircularShutter", "RadiusOfCircularShutter"),
    *("VerticesOfThePolygonalShutter",),
)
ASSUMED_FPS = Fraction(15)  # the usual rate of a cath lab; marked as assumed wherever it is used
FRAME_TIME = 0x00181063
FRAME_TIME_VECTOR = 0x00181065
MAX_FPS = 1000
MIN_FPS = 0.1
# Codes of PS3.3 C.7.3.1.1.1 that moving pictures have; anything else in the tag is not carried on.
MODALITIES = frozenset({"XA", "RF", "US", "CT", "MR", "NM", "PT", "DX", "CR", "MG", "ES", "XC", "IVUS", "OCT", "OT"})


INTENSITIES = frozenset({"LIN", "LOG", "DISP", "SQRT", "OTHER"})
MOVING_GANTRY = 5.0  # degrees from the first frame to the last


@dataclass(frozen=True)
class Cine:
    """The facts of one cine that the tables carry, and the raw ids that become keyed ones."""

    patient: str  # raw; empty where the file has none
    study: str  # raw StudyInstanceUID
    instance: str  # raw SOPInstanceUID
    modality: str
    num_frames: int
    fps: Fraction
    fps_source: str
    primary_angle: float | None  # degrees, LAO positive
    secondary_angle: float | None  # degrees, cranial positive
    pixel_spacing: float | None  # mm between rows at the detector
    sex: str | None
    age_band: str | None
    day: int | None  # of the study; a count of days that becomes an offset within the patient
    order: tuple[str, int, int]  # time of acquisition, series number, instance number
    marks: dict[str, str]  # what a filter may want to know, see `_marks`
    burned_in: bool | None  # whether text is part of the picture; None where the header does not say


def read_cine(dataset: Dataset) -> Cine:
    """Read a header; raises whatever pydicom raises where a value in it is no number or date."""
    fps, fps_source = frame_rate(dataset)
    return Cine(
        patient=_text(dataset, "PatientID"),
        study=_text(dataset, "StudyInstanceUID"),
        instance=_text(dataset, "SOPInstanceUID"),
        modality=modality if (modality := _text(dataset, "Modality").upper()) in MODALITIES else "OTHER",
        num_frames=int(dataset.get("NumberOfFrames") or 1),
        fps=fps,
        fps_source=fps_source,
        primary_angle=_number(anywhere(dataset, "PositionerPrimaryAngle")),
        secondary_angle=_number(anywhere(dataset, "PositionerSecondaryAngle")),
        pixel_spacing=_number(anywhere(dataset, "ImagerPixelSpacing") or anywhere(dataset, "PixelSpacing")),
        sex={"M": "M", "F": "F", "O": "O"}.get(_text(dataset, "PatientSex").upper()),
        age_band=age_band(_text(dataset, "PatientAge")),
        day=_day(dataset),
        order=(_when(dataset), int(dataset.get("SeriesNumber") or 0), int(dataset.get("InstanceNumber") or 0)),
        marks=_marks(dataset),
        burned_in={"Y": True, "N": False}.get(_text(dataset, "BurnedInAnnotation").upper()[:1]),
    )


def frame_rate(dataset: Dataset) -> tuple[Fraction, str]:
    """Frames per second and where they come from.

    The frame increment pointer says which tag rules; without it FrameTime goes before FrameTimeVector. A vector is
    averaged over its steps (its first entry is the delay before the first frame, PS3.3 C.7.6.5.1.2). Enhanced files
    say of each frame when it was taken. Then the rate of acquisition, then that recommended for display, and at last an
    assumed 15.
    """
    pointer = dataset.get("FrameIncrementPointer")
    pointers = list(pointer) if isinstance(pointer, MultiValue) else [pointer]
    times = [("frame_time", _frame_time), ("frame_time_vector", _mean_frame_time)]
    if FRAME_TIME_VECTOR in pointers and FRAME_TIME not in pointers:
        times.reverse()
    for source, read in (*times, ("frame_moments", _mean_moment_step)):
        milliseconds = read(dataset)
        if milliseconds and MIN_FPS <= 1000 / milliseconds <= MAX_FPS:
            return (1000 / milliseconds).limit_denominator(100_000), source
    for source, keyword in (("cine_rate", "CineRate"), ("display_rate", "RecommendedDisplayFrameRate")):
        rate = dataset.get(keyword)
        if rate and MIN_FPS <= float(rate) <= MAX_FPS:
            return Fraction(str(rate)), source
    return ASSUMED_FPS, "assumed"


def _frame_time(dataset: Dataset) -> Fraction | None:
    value = anywhere(dataset, "FrameTime")
    return Fraction(str(value)) if value else None


def _mean_frame_time(dataset: Dataset) -> Fraction | None:
    steps = dataset.get("FrameTimeVector")
    if not isinstance(steps, MultiValue) or len(steps) < 2:
        return None
    return sum((Fraction(str(step)) for step in steps[1:]), Fraction(0)) / (len(steps) - 1)


def _mean_moment_step(dataset: Dataset) -> Fraction | None:
    """Milliseconds between frames, from the moments of the first and the last (PS3.3 C.7.6.16.2.2)."""
    for keyword in ("FrameAcquisitionDateTime", "FrameReferenceDateTime"):
        moments = [str(values[0] or "") for values in per_frame(dataset, (keyword,))]
        if len(moments) < 2 or not all(re.fullmatch(r"\d{14}(\.\d{1,6})?", moments[at]) for at in (0, -1)):
            continue
        first, last = (
            datetime.datetime.strptime(f"{moment}.0" if "." not in moment else moment, "%Y%m%d%H%M%S.%f")
            for moment in (moments[0], moments[-1])
        )
        return Fraction((last - first) // datetime.timedelta(microseconds=1), 1000 * (len(moments) - 1))
    return None


def anywhere(dataset: Dataset, keyword: str) -> Any:
    """A value at the top of the header or, in enhanced files, in the groups shared by all frames or of the first."""
    groups = [
        group
        for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
        for group in (dataset.get(name) or [])[:1]
    ]
    for level in (dataset, *(item for group in groups for item in _items(group))):
        value = level.get(keyword)
        if value is not None and value != "":
            return value
    return None


def per_frame(dataset: Dataset, keywords: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """What an enhanced file says of each frame by itself, None where nothing; empty where it says none of it."""
    found = []
    for group in dataset.get("PerFrameFunctionalGroupsSequence") or []:
        items = list(_items(group))
        found.append(tuple(next((i.get(k) for i in items if i.get(k) not in (None, "")), None) for k in keywords))
    return found if any(value is not None for values in found for value in values) else []


def _items(group: Dataset) -> Iterator[Dataset]:
    for element in group:
        if element.VR == "SQ" and len(element.value):
            yield element.value[0]


def _marks(dataset: Dataset) -> dict[str, str]:
    """Facts from fixed vocabularies only, so that no free text of the file is among them.

    ``pixel_intensity``: how pixels follow the dose. ``subtraction``: ``stored`` in the pixels, ``recommended`` for
    viewing, or ``possible`` (a mask is named); only ``stored`` means that the video shows subtracted frames.
    ``gantry``: ``moving``, where the angles are those of the first frame only.
    """
    marks = {}
    if (relation := _text(dataset, "PixelIntensityRelationship").upper()) in INTENSITIES:
        marks["pixel_intensity"] = relation
    image_type = dataset.get("ImageType") or []
    if "SUBTRACTION" in ([image_type] if isinstance(image_type, str) else list(image_type)):
        marks["subtraction"] = "stored"
    elif _text(dataset, "RecommendedViewingMode").upper() == "SUB":
        marks["subtraction"] = "recommended"
    elif dataset.get("MaskSubtractionSequence"):
        marks["subtraction"] = "possible"
    for keyword in ("PositionerPrimaryAngle", "PositionerSecondaryAngle"):
        steps = dataset.get(f"{keyword}Increment")
        turns = [float(step) for step in steps] if isinstance(steps, MultiValue) and len(steps) else []
        turns = turns or [float(values[0]) for values in per_frame(dataset, (keyword,)) if values[0] is not None]
        if turns and max(turns) - min(turns) > MOVING_GANTRY:
            marks["gantry"] = "moving"
    return marks


def age_band(age: str) -> str | None:
    """Decade of an age as DICOM writes it: 063Y -> 60-69; from 90 on all are 90+, since so few reach it."""
    match = re.fullmatch(r"(\d{1,3})([DWMY])", age.strip().upper())
    if match is None:
        return None
    years = int(int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[match[2]])
    return "90+" if years >= 90 else f"{years // 10 * 10}-{years // 10 * 10 + 9}"


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip().strip("\0")


def _number(value: Any) -> float | None:
    """A value, or the first of several, as a float; an empty one is None."""
    if value is None or value == "":
        return None
    if isinstance(value, MultiValue):
        return _number(value[0] if len(value) else None)
    if not math.isfinite(number := float(value)):
        raise ValueError("not a finite number")
    return number


def _day(dataset: Dataset) -> int | None:
    for keyword in ("StudyDate", "AcquisitionDate", "SeriesDate", "ContentDate"):
        digits = _text(dataset, keyword)[:10].replace(".", "")
        if re.fullmatch(r"\d{8}", digits):
            try:
                return datetime.datetime.strptime(digits, "%Y%m%d").date().toordinal()
            except ValueError:
                continue  # eight digits that are no date tell nothing; another tag may
    return None


def _when(dataset: Dataset) -> str:
    """Moment of acquisition as text that sorts; empty where the header has none."""
    if moment := _text(dataset, "AcquisitionDateTime"):
        return moment
    for prefix in ("Acquisition", "Content", "Series"):
        if time := _text(dataset, f"{prefix}Time"):
            return _text(dataset, f"{prefix}Date") + time
    return ""
