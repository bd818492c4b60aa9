"""The display shutter (PS3.3 C.7.6.11): what lies outside is shown black, as a viewer does."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from data_prep.dicom.header import anywhere

SHAPES = ("RECTANGULAR", "CIRCULAR", "POLYGONAL")


def visible_area(dataset: Dataset, rows: int, columns: int) -> tuple[np.ndarray | None, str | None]:
    """Pixels [H, W] that a shutter leaves to be seen, bool, and the shapes it is made of.

    Both are None where there is no shutter. A shutter that would hide the whole picture, or whose numbers are missing,
    is a mistake of whoever wrote it: then the area is None and the second value is ``ignored``.
    """
    named = anywhere(dataset, "ShutterShape") or []
    shapes = [shape for shape in SHAPES if shape in ([named] if isinstance(named, str) else list(named))]
    if not shapes:
        return None, None
    try:
        area = np.ones((rows, columns), bool)
        for shape in shapes:
            area &= _area(shape, dataset, rows, columns)
    except (TypeError, ValueError):
        return None, "ignored"
    return (area, "+".join(shapes).lower()) if area.any() else (None, "ignored")


def _area(shape: str, dataset: Dataset, rows: int, columns: int) -> np.ndarray:
    y, x = np.ogrid[1 : rows + 1, 1 : columns + 1]  # DICOM counts rows and columns from 1
    if shape == "RECTANGULAR":
        left, right = (int(anywhere(dataset, f"Shutter{side}VerticalEdge")) for side in ("Left", "Right"))
        upper, lower = (int(anywhere(dataset, f"Shutter{side}HorizontalEdge")) for side in ("Upper", "Lower"))
        return (x >= left) & (x <= right) & (y >= upper) & (y <= lower)  # the edges themselves are still seen
    if shape == "CIRCULAR":
        row, column = (int(value) for value in anywhere(dataset, "CenterOfCircularShutter"))
        return (y - row) ** 2 + (x - column) ** 2 <= int(anywhere(dataset, "RadiusOfCircularShutter")) ** 2
    return _polygon([int(value) for value in anywhere(dataset, "VerticesOfThePolygonalShutter")], rows, columns)


def _polygon(vertices: list[int], rows: int, columns: int) -> np.ndarray:
    """Vertices are row, column, row, column, ..."""
    picture = Image.new("1", (columns, rows))
    corners = [(column - 1, row - 1) for row, column in zip(vertices[::2], vertices[1::2], strict=True)]
    ImageDraw.Draw(picture).polygon(corners, fill=1, outline=1)
    return np.asarray(picture)
