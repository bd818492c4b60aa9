"""The detector of the rich phantoms: what `render.expose` does, frame by frame and faster, with settings of its own.

Quantum noise is drawn from a normal distribution with the Poisson's variance, which takes an eighth of the time. The
detector's blur comes before anything is cut at black, so that the mean is right at a low dose too.

Shape letters: T frames, H W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from data_prep.phantom.render import GREY_LEVELS

STEPS = 4096  # of the display curve's table


@dataclass(frozen=True)
class Detector:
    """One laboratory's picture."""

    gamma: float
    """Of the display curve, 0.4 (flat) to 1."""
    white: float
    """Percentile of the picture that is shown as white, 90 to 100; what is brighter is white as well."""
    scatter: float
    """Share of the signal that is scatter."""
    blur: float
    """Standard deviation of the detector's blur, mm at the isocentre."""
    sharpen: float
    """Amount of the edge enhancement that the display adds, 0 to 1."""
    round_field: bool
    """A round field of view behind the blades; False: eight-sided."""

    def opening(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Return the collimator's opening [size, size] float32: 1 inside with sharp edges, 0 behind the blades."""
        side = np.linspace(-1, 1, size)
        x, y = side[None, :] + rng.uniform(-0.02, 0.02), side[:, None] + rng.uniform(-0.02, 0.02)
        left, right, top, bottom = rng.uniform(0.92, 1.02, 4)
        inside = np.minimum(np.minimum(left + x, right - x), np.minimum(top + y, bottom - y))
        if self.round_field:
            inside = np.minimum(inside, rng.uniform(1.02, 1.15) - np.hypot(x, y))
        else:
            inside = np.minimum(inside, (rng.uniform(1.45, 1.65) - np.abs(x) - np.abs(y)) / np.sqrt(2))
        return np.clip(inside / 0.012, 0, 1).astype(np.float32)

    def expose(
        self,
        ground: Callable[[int], np.ndarray],
        path: np.ndarray,
        opening: np.ndarray,
        attenuation: float,
        photons: float,
        pixel: float,
        rng: np.random.Generator | None,
    ) -> np.ndarray:
        """Take the cine: transmission, scatter, quantum noise, blur, display.

        Args:
            ground: gives the line integral of the chest in frame number t, [H, W].
            path: thickness of contrast [T, H, W], mm.
            opening: of the collimator [H, W], 0 to 1.
            attenuation: of contrast, 1/mm.
            photons: a pixel detects behind nothing.
            pixel: width at the isocentre, mm.
            rng: draws the noise; None for the expected picture.

        Returns:
            [T, H, W] uint8, dark vessels on a light ground.
        """
        size = path.shape[-1]
        first = np.exp(-ground(0))
        veil = (self.scatter * gaussian_filter(first, size / 8)).astype(np.float32)
        shown = ((1 - self.scatter) * first + veil)[opening > 0.5]
        white = float(np.percentile(shown, self.white))
        table = (GREY_LEVELS * np.linspace(0, 1, STEPS) ** self.gamma + 0.5).astype(np.uint8)
        frames = np.empty(path.shape, np.uint8)
        primary = np.float32(1 - self.scatter)
        noise = np.empty(path.shape[1:], np.float32)
        for number in range(len(path)):
            counts = path[number] * np.float32(-attenuation)
            counts -= ground(number)
            np.exp(counts, out=counts)
            counts *= primary
            counts += veil
            counts *= opening
            if rng is not None:
                rng.standard_normal(dtype=np.float32, out=noise)
                noise *= np.sqrt(counts * np.float32(1 / photons))
                counts += noise
            counts = self._blur(counts, pixel)
            counts *= np.float32((STEPS - 1) / white)
            np.clip(counts, 0, STEPS - 1, out=counts)
            frames[number] = table[counts.astype(np.uint16)]
        return frames

    def _blur(self, counts: np.ndarray, pixel: float) -> np.ndarray:
        blurred = gaussian_filter(counts, self.blur / pixel, truncate=3.0)
        if self.sharpen <= 0:
            return blurred
        return blurred + np.float32(self.sharpen) * (
            blurred - gaussian_filter(blurred, 2.5 * self.blur / pixel, truncate=2.0)
        )


def draw_detector(rng: np.random.Generator) -> Detector:
    """Draw a laboratory: its display, scatter, blur and collimator."""
    return Detector(
        gamma=rng.uniform(0.55, 0.95),
        white=rng.uniform(98.5, 99.9),
        scatter=rng.uniform(0.12, 0.28),
        blur=rng.uniform(0.25, 0.45),
        sharpen=rng.choice([0.0, 0.0, 0.4, 0.8]),
        round_field=bool(rng.random() < 0.6),
    )
