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
    peak: float = 1.0
    """Concentration of undisturbed contrast, above 0 and up to 1; below 1 in a weak injection."""
    pulse: float = 0.0
    """Share of the contrast that each heartbeat washes off, 0 to 1."""
    heart_rate: float = 60.0
    """Beats a minute; only pulses depend on it."""

    def concentration(self, arc: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Return [T, P] in [0, 1] at arc lengths [P] in mm and times [T] in s: arrival, plateau, washout."""
        travelled = arc / self.speed
        since = np.asarray(times)[:, None] - self.start - travelled[None, :]
        front = self.rise * (1 + travelled)
        filling = 1 - np.exp(-np.maximum(since, 0) / front)
        filled = filling * np.exp(-np.maximum(since - self.duration, 0) / self.washout)
        if self.peak < 1 or self.pulse > 0:
            beat = 0.5 + 0.5 * np.cos(2 * np.pi * self.heart_rate / 60 * since)
            filled *= self.peak * (1 - self.pulse * beat)
        return filled


def draw_bolus(seconds: float, rng: np.random.Generator) -> Bolus:
    """Draw an injection that a cine of this length shows from before its arrival to the filled tree."""
    unit = min(seconds, 6.0)
    return Bolus(
        start=rng.uniform(0.06, 0.14) * unit,
        duration=rng.uniform(0.75, 1.0) * unit,
        speed=rng.uniform(190, 260) * 1.6 / unit,
    )
