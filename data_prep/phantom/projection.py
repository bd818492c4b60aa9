"""The C-arm: standard views, and the cone-beam projection of points in the chest onto the detector.

Angles as DICOM has them: primary positive to the patient's left (LAO), secondary positive to the head (cranial).
The image is seen from the detector: the patient's left is on its right.
"""

import re
from dataclasses import dataclass

import numpy as np

from deepcoro.errors import UserError

SOURCE_TO_ISOCENTRE = 750.0  # mm
SOURCE_TO_DETECTOR = 1050.0  # mm
SIGNS = {"LAO": 1, "RAO": -1, "CRA": 1, "CAU": -1, "AP": 0}


def view_angles(name: str) -> tuple[float, float]:
    """Read a view such as "LAO 30 CRA 20", "AP CAU 25" or "RAO 10": (primary, secondary) in degrees.

    Raises:
        UserError: if the name is not written like that.
    """
    found = re.fullmatch(r"(?:AP|(LAO|RAO) (\d+))(?: (CRA|CAU) (\d+))?", name)
    if not found:
        raise UserError(f"view {name!r}: write it like 'LAO 30 CRA 20', 'RAO 30' or 'AP CAU 25'")
    side, primary, tilt, secondary = found.groups()
    return SIGNS[side or "AP"] * float(primary or 0), SIGNS[tilt or "AP"] * float(secondary or 0)


@dataclass(frozen=True)
class Camera:
    """One position of the C-arm and its table."""

    primary: float
    """Degrees, LAO positive."""
    secondary: float
    """Degrees, cranial positive."""
    field_of_view: float
    """Width and height of the image at the isocentre, mm."""
    size: int
    """Pixels of the square image along a side."""
    pan: tuple[float, float] = (0.0, 0.0)
    """Place (right, up) in mm, at the isocentre's depth, that lies in the middle of the image."""

    @property
    def axes(self) -> np.ndarray:
        """[3, 3] rows: right in the image, up in the image, from the isocentre towards the detector."""
        a, b = np.deg2rad([self.primary, self.secondary])
        right = np.array([np.cos(a), np.sin(a), 0.0])
        towards = np.array([np.sin(a) * np.cos(b), -np.cos(a) * np.cos(b), np.sin(b)])
        return np.stack([right, np.cross(towards, right), towards])

    @property
    def pixel(self) -> float:
        """Width of a pixel at the isocentre, mm."""
        return self.field_of_view / self.size

    @property
    def detector_pixel(self) -> float:
        """Width of a pixel on the detector, mm (DICOM's ImagerPixelSpacing)."""
        return self.field_of_view / self.size * SOURCE_TO_DETECTOR / SOURCE_TO_ISOCENTRE

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points [..., 3] in mm to column, row and pixels per mm, each [...]; pixel centres are whole numbers."""
        local = points @ self.axes.T
        scale = self.size / self.field_of_view * SOURCE_TO_ISOCENTRE / (SOURCE_TO_ISOCENTRE + local[..., 2])
        middle = (self.size - 1) / 2
        return (
            middle + scale * (local[..., 0] - self.pan[0]),
            middle - scale * (local[..., 1] - self.pan[1]),
            scale,
        )

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """The rays through all pixels: the source [3] and unit directions [size, size, 3], in mm."""
        right, up, towards = self.axes
        source = self.pan[0] * right + self.pan[1] * up - SOURCE_TO_ISOCENTRE * towards
        across = (np.arange(self.size) - (self.size - 1) / 2) * self.field_of_view / self.size
        rays = across[None, :, None] * right - across[:, None, None] * up + SOURCE_TO_ISOCENTRE * towards
        return source, rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def frame_tree(points: np.ndarray, primary: float, secondary: float, field_of_view: float, size: int) -> Camera:
    """Place the table so that points [P, 3] lie in the middle, and widen the field if they would not fit."""
    flat = points @ Camera(primary, secondary, field_of_view, size).axes[:2].T
    low, high = flat.min(axis=0), flat.max(axis=0)
    middle = (low + high) / 2
    # The corners are collimated and the edges hold the catheter: three quarters of the width is for the tree.
    needed = max(high - low) / 0.76
    return Camera(primary, secondary, float(max(field_of_view, needed)), size, (float(middle[0]), float(middle[1])))
