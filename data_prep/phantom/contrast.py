"""The contrast bolus: how much of the blood at a place is contrast, over time.

Shape letters: P points, T frames.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bolus:
    """One injection into an ostium."""

    start: float
    """When contrast leaves the catheter, s after the first frame."""
    duration: float
    """Length of the injection, s."""
    speed: float
    """Of the contrast along the vessels, mm/s."""
    rise: float = 0.12
    """Time constant of the front, s; it grows softer on its way."""
    washout: float = 0.7
    """Time constant of the washout, s."""

    def concentration(self, arc: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Return [T, P] in [0, 1] at arc lengths [P] in mm and times [T] in s: arrival, plateau, washout."""
        travelled = arc / self.speed
        since = np.asarray(times)[:, None] - self.start - travelled[None, :]
        front = self.rise * (1 + travelled)
        filling = 1 - np.exp(-np.maximum(since, 0) / front)
        return filling * np.exp(-np.maximum(since - self.duration, 0) / self.washout)


def draw_bolus(seconds: float, rng: np.random.Generator) -> Bolus:
    """Draw an injection that a cine of this length shows from before its arrival to the filled tree."""
    unit = min(seconds, 6.0)
    return Bolus(
        start=rng.uniform(0.06, 0.14) * unit,
        duration=rng.uniform(0.75, 1.0) * unit,
        speed=rng.uniform(190, 260) * 1.6 / unit,
    )
