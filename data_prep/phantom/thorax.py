"""The chest of the rich phantoms: what `background.py` draws, more various, on a canvas larger than the picture.

The table moves the whole canvas and a breath the diaphragm, by whole pixels. Lungs have vessels of their own, which is
what most of the fine texture of an angiogram is.

Shape letters: H W of the canvas.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from data_prep.phantom.background import clouds, descending_catheter, heart_shadow
from data_prep.phantom.heart import Heart
from data_prep.phantom.lumen import Solids
from data_prep.phantom.preset import Preset
from data_prep.phantom.projection import Camera
from data_prep.phantom.render import thickness

SPINE = np.array([-25.0, 85.0, 0.0])  # its middle at the level of the heart, mm from the heart's centre


@dataclass(frozen=True)
class Thorax:
    """Attenuation around the vessels, on a canvas with a margin on every side."""

    still: np.ndarray
    """[H, W] what stands still."""
    diaphragm: np.ndarray
    """[H, W] what breathing moves."""
    margin: int
    """Pixels on every side of the picture."""

    def moved(self, right: np.ndarray, down: np.ndarray, breath: np.ndarray) -> Callable[[int], np.ndarray]:
        """Give the ground [H, W] of frame number t, where all of it has moved by [T] whole pixels to the right and
        down, and the diaphragm by `breath` [T] further up."""
        size = len(self.still) - 2 * self.margin

        def ground(t: int) -> np.ndarray:
            top, left = self.margin - int(down[t]), self.margin - int(right[t])
            lower = top + int(breath[t])
            still = self.still[top : top + size, left : left + size]
            return still + self.diaphragm[lower : lower + size, left : left + size]

        return ground


def draw_thorax(
    camera: Camera, heart: Heart, things: Solids, margin: int, rng: np.random.Generator, preset: Preset
) -> Thorax:
    """Draw everything but the coronary tree; `things` are solids that lie on the chest and stand still."""
    size = camera.size + 2 * margin
    wide = Camera(camera.primary, camera.secondary, camera.field_of_view * size / camera.size, size, camera.pan)
    across = (np.arange(size) - (size - 1) / 2) / size * wide.field_of_view  # mm at the isocentre
    x, y = across[None, :], -across[:, None]
    pixel = wide.field_of_view / size
    still = rng.uniform(0.007, 0.010) * heart_shadow(wide, heart)
    still += _spine(wide, x, y, rng)
    still += _ribs(x, y, rng)
    still += _chest_wall(x, y, wide.field_of_view, rng)
    still += _nodes(x, y, rng)
    texture = clouds(size, rng, rough=0.055)
    still += (texture + lung_vessels(wide, rng)) * preset.texture
    if rng.random() < 0.6:  # by the groin; from the wrist there is none
        still += descending_catheter(wide, rng)
    if len(things.points):
        column, row, scale = wide.project(things.points)
        still += (
            preset.attenuation
            * thickness(column[None], row[None], (things.radius * scale)[None], things.height[None], size)[0]
        )
    sharpness = 0.35 / pixel  # mm of blur by the focal spot
    still = gaussian_filter(still.astype(np.float32), min(sharpness, 2.0))
    still -= np.percentile(still, 1)
    dome = _diaphragm(camera.field_of_view, x, y, rng).astype(np.float32)
    return Thorax(np.maximum(still, 0), dome, margin)


def _spine(camera: Camera, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    column, _, scale = camera.project(SPINE)
    pixel = camera.field_of_view / camera.size
    middle = (column - (camera.size - 1) / 2) * pixel
    width = rng.uniform(19, 25) * scale * pixel
    lean = rng.normal(0, 0.06)
    away = (x - middle - lean * y) / width
    period = rng.uniform(24, 29)
    level = (y + rng.uniform(0, period)) % period - period / 2  # discs between the vertebrae are thin and clearer
    body = 1 - 0.16 * np.exp(-((level / 2.2) ** 2)) + 0.08 * np.exp(-(((np.abs(level) - 3.5) / 1.2) ** 2))
    edge = 1 / (1 + np.exp(np.clip((np.abs(away) - 1) / rng.uniform(0.03, 0.09), -50, 50)))
    pedicles = np.exp(-(((np.abs(away) - 0.55) / 0.13) ** 2) - (((level - 6) / 4.0) ** 2))
    mediastinum = np.exp(-((away / 2.1) ** 2))
    return rng.uniform(0.6, 1.3) * edge * (body + 0.12 * pedicles) + rng.uniform(0.3, 0.6) * mediastinum


def _ribs(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Curved bands with dense rims: the near ones sharp, the far ones sloping the other way and faint."""
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape))
    for amount, way in ((rng.uniform(0.2, 1.2), 1.0), (rng.uniform(0.0, 0.6), -1.0)):
        slope, bend, space = way * rng.uniform(0.1, 0.5), way * rng.uniform(0.0005, 0.003), rng.uniform(26, 36)
        half = rng.uniform(4.5, 6.5)
        level = (y - slope * x - bend * x**2 + rng.uniform(0, space)) % space - space / 2
        rim = np.exp(-(((np.abs(level) - half) / 1.0) ** 2))
        inside = 1 / (1 + np.exp(np.clip((np.abs(level) - half) / 0.5, -50, 50)))
        total += amount * (0.06 * rim + 0.07 * inside)
    return total


def _chest_wall(x: np.ndarray, y: np.ndarray, field_of_view: float, rng: np.random.Generator) -> np.ndarray:
    """Thicker on one side than on the other."""
    angle = rng.uniform(0, 2 * np.pi)
    return rng.uniform(0.0, 0.35) * (np.cos(angle) * x + np.sin(angle) * y) / (field_of_view / 2)


def _nodes(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Round shadows of vessels seen end-on and of calcified nodes."""
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape))
    for _ in range(rng.integers(0, 5)):
        column, row = rng.uniform(-60, 60, 2)
        total += rng.uniform(0.08, 0.3) * np.exp(-(((x - column) ** 2 + (y - row) ** 2) / rng.uniform(2, 4) ** 2))
    return total


def _diaphragm(field_of_view: float, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top = -field_of_view * rng.uniform(0.28, 0.55)
    middle = rng.uniform(-45, 45)
    depth = np.maximum(top - ((x - middle) / rng.uniform(90, 150)) ** 2 * 60.0 - y, 0)
    return rng.uniform(0.4, 0.9) * (1 - np.exp(-depth / rng.uniform(5, 14)))


def lung_vessels(camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """[H, W] thin branching lines that run from two hila outwards, in units of attenuation."""
    count, steps = 46, 70
    pixel = camera.field_of_view / camera.size
    hilum = np.where(rng.random((count, 1)) < 0.5, -1.0, 1.0) * rng.uniform(25, 45)
    start = np.concatenate([hilum, rng.uniform(-5, 35, (count, 1))], axis=1) + rng.normal(0, 6, (count, 2))
    outwards = np.where(hilum[:, 0] > 0, 0.0, np.pi) + rng.normal(0, 1.0, count)
    heading = outwards[:, None] + np.cumsum(rng.normal(0, 0.06, (count, steps)), axis=1)
    length = rng.uniform(0.8, 1.6, (count, 1))  # mm a step
    along = np.stack([np.cumsum(length * np.cos(heading), 1), np.cumsum(length * np.sin(heading), 1)], axis=-1)
    place = start[:, None] + along
    share = np.linspace(0, 1, steps)[None, :]
    radius = rng.uniform(0.5, 1.6, (count, 1)) * (1 - 0.75 * share)
    middle = (camera.size - 1) / 2
    column, row = middle + place[..., 0] / pixel, middle - place[..., 1] / pixel
    drawn = thickness(
        column.reshape(1, -1),
        row.reshape(1, -1),
        (radius / pixel).reshape(1, -1),
        np.broadcast_to(length, (count, steps)).reshape(1, -1),
        camera.size,
    )[0]
    return gaussian_filter(0.05 * drawn, 0.5 / pixel)
