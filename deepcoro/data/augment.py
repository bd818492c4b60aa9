"""Crop (boxes go along), size and intensity of a clip. Never a mirror: left and right mean something in a heart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Crop:
    """A square window in pixels of the video: ``x0, y0`` its corner, ``side`` its length (fractions of pixels
    allowed)."""

    x0: float
    y0: float
    side: float


def choose_crop(height: int, width: int, scale: tuple[float, float], rng: np.random.Generator | None) -> Crop:
    """The largest centred square, or (``rng``) one of ``scale`` of its side, anywhere in the picture."""
    side = float(min(height, width))
    if rng is None:
        return Crop((width - side) / 2, (height - side) / 2, side)
    side *= rng.uniform(*scale)
    return Crop(rng.uniform(0, width - side), rng.uniform(0, height - side), side)


def crop_and_resize(frames: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """Frames [T, H, W] uint8 -> [T, size, size] uint8, bilinear with antialiasing."""
    height, width = frames.shape[1:]
    if crop.side == height == width == size:
        return frames
    box = (crop.x0, crop.y0, crop.x0 + crop.side, crop.y0 + crop.side)
    resized = [Image.fromarray(f).resize((size, size), Image.Resampling.BILINEAR, box=box) for f in frames]
    return np.stack([np.asarray(image) for image in resized])


def move_boxes(boxes: np.ndarray, height: int, width: int, crop: Crop) -> np.ndarray:
    """Boxes [R, 4] (x0, y0, x1, y1 as fractions of the video) -> fractions of the crop, cut at its edges.

    A box that lies outside becomes NaN.
    """
    moved = np.clip(place_in_crop(boxes, height, width, crop), 0, 1)
    outside = (moved[:, 2] <= moved[:, 0]) | (moved[:, 3] <= moved[:, 1])
    return np.where(outside[:, None], np.nan, moved)


def place_in_crop(boxes: np.ndarray, height: int, width: int, crop: Crop) -> np.ndarray:
    """The same, not cut: what lies outside is below 0 or above 1."""
    scale = np.array([width, height, width, height]) / crop.side
    origin = np.array([crop.x0, crop.y0, crop.x0, crop.y0]) / crop.side
    return boxes * scale - origin


def visible_shares(boxes: np.ndarray, height: int, width: int, crop: Crop) -> np.ndarray:
    """Share [R] of the area of each of ``boxes`` [R, 4] that lies in the crop; 0 of a box without area."""
    left, upper, right, lower = (boxes * np.array([width, height, width, height])).T
    across = np.minimum(right, crop.x0 + crop.side) - np.maximum(left, crop.x0)
    down = np.minimum(lower, crop.y0 + crop.side) - np.maximum(upper, crop.y0)
    area = (right - left) * (lower - upper)
    return np.clip(across, 0, None) * np.clip(down, 0, None) / np.where(area > 0, area, np.inf)


def jitter_intensity(frames: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Vary brightness, contrast and gamma by up to ``share``, the same for all frames, through one table of 256
    levels."""
    brightness, contrast, gamma = rng.uniform(-share, share, 3)
    level = np.linspace(0, 1, 256) ** np.exp(gamma)
    level = (level - 0.5) * (1 + contrast) + 0.5 + brightness / 2
    return np.round(np.clip(level, 0, 1) * 255).astype(np.uint8)[frames]
