"""The heart that carries the vessels: where it lies in the chest, and how it beats and rides on the breath.

Coordinates are millimetres around the centre of the heart: x to the patient's left, y to the back, z to the head
(the axes of DICOM). A place on the heart is written (depth, bulge, angle): depth 0 at the base and 1 at the apex;
bulge 1 on the surface and 0 on the long axis; angle in degrees around that axis: 0 the anterior groove (LAD),
90 the lateral wall, 180 the inferior groove (PDA), -90 the free wall of the right ventricle.

Shape letters: P points, T frames.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from data_prep.phantom.preset import Preset


@dataclass(frozen=True)
class Heart:
    """A half ellipsoid."""

    base: np.ndarray
    """[3] centre of its base, mm."""
    axes: np.ndarray
    """[3, 3] orthonormal rows: towards angle 0, towards angle 90, towards the apex."""
    radius: float
    """Of its base, mm."""
    length: float
    """From base to apex, mm."""

    def to_patient(self, places: np.ndarray) -> np.ndarray:
        """Turn places (depth, bulge, angle) [P, 3] into mm [P, 3]."""
        depth, bulge, angle = places.T
        around = bulge * self.radius * np.sqrt(1 - np.clip(depth, 0, 0.995) ** 2)
        angle = np.deg2rad(angle)
        local = np.stack([around * np.cos(angle), around * np.sin(angle), depth * self.length], axis=-1)
        return self.base + local @ self.axes

    def to_place(self, point: np.ndarray) -> np.ndarray:
        """Invert `to_patient` for one point [3]; the angle is in (-180, 180]."""
        x, y, z = self.axes @ (point - self.base)
        around = self.radius * np.sqrt(1 - np.clip(z / self.length, 0, 0.995) ** 2)
        return np.array([z / self.length, np.hypot(x, y) / around, np.rad2deg(np.arctan2(y, x))])


def draw_heart(rng: np.random.Generator, preset: Preset) -> Heart:
    """Draw one patient's heart: its size and how it lies in the chest."""
    vary = preset.anatomy_variation
    apex = np.array([0.68, -0.50, -0.54]) + vary * 0.05 * rng.standard_normal(3)
    apex /= np.linalg.norm(apex)
    anterior = np.array([-0.10, -0.62, 0.78])
    anterior -= (anterior @ apex) * apex
    anterior /= np.linalg.norm(anterior)
    lateral = np.cross(apex, anterior)
    lateral *= np.sign(lateral @ np.array([1.0, 1.0, 0.0]))
    wide, long = np.exp(vary * 0.05 * rng.standard_normal(2))
    length = 84.0 * long
    return Heart(-0.45 * length * apex, np.stack([anterior, lateral, apex]), 39.0 * wide, length)


INWARD, DESCENT, TWIST = 0.16, 12.0, 8.0  # share, mm and degrees of a contraction of strength 1
CAVITY = (
    0.55  # share of the heart's volume that is the left ventricle's cavity at end-diastole; the rest keeps its volume
)


@dataclass(frozen=True)
class Motion:
    """Heartbeat and breath of one patient."""

    heart_rate: float
    """Beats a minute."""
    start: float
    """Part of the beat that has passed at time 0, in [0, 1); a beat begins with contraction."""
    lvef: float
    """Left ventricular ejection fraction in percent; the contraction grows with it."""
    breath: float
    """Amplitude along the body, mm; a breath takes four seconds."""
    scale: float = 1.0
    """Multiplies all of it; 0 holds the heart still."""
    strength: float | None = None
    """Of the contraction, 1 as in `move`; None: the ejection fraction over 60 percent."""
    breath_phase: float = 0.0
    """Part of the breath that has passed at time 0, in [0, 1)."""

    def contraction(self, times: np.ndarray) -> np.ndarray:
        """Return [T] in [0, 1]: 0 at end-diastole and 1 at end-systole, for times in seconds."""
        beat = (self.start + np.asarray(times) * self.heart_rate / 60) % 1.0
        # Systole takes about a third of the beat; filling is quick at first, then the heart rests.
        rise = 0.5 - 0.5 * np.cos(np.pi * np.clip(beat / 0.35, 0, 1))
        fall = 0.5 + 0.5 * np.cos(np.pi * np.clip((beat - 0.35) / 0.35, 0, 1))
        return np.where(beat < 0.35, rise, fall)

    def move(self, heart: Heart, points: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Where points [P, 3] of the heart at end-diastole are at `times` [T] in seconds: mm [T, P, 3].

        The base descends towards the apex, the walls come in towards the long axis, and the apex twists; all in
        proportion to the strength of the contraction (12 mm, 16 percent and 8 degrees at strength 1).
        """
        strength = self.scale * (self.lvef / 60 if self.strength is None else self.strength)
        phase = self.contraction(times)[:, None]
        x, y, z = ((points - heart.base) @ heart.axes.T).T
        depth = np.clip(z / heart.length, 0, 1)
        inward = 1 - INWARD * strength * phase * np.clip(z / heart.length + 0.2, 0, 0.5) * 2
        twist = np.deg2rad(TWIST) * strength * phase * depth
        local = np.stack(
            [
                inward * (x * np.cos(twist) - y * np.sin(twist)),
                inward * (x * np.sin(twist) + y * np.cos(twist)),
                z + DESCENT * strength * phase * (1 - depth),
            ],
            axis=-1,
        )
        moved = heart.base + local @ heart.axes
        moved[..., 2] += self.breathing(times)[:, None]
        return moved

    def breathing(self, times: np.ndarray) -> np.ndarray:
        """How far heart and diaphragm are moved towards the head at `times` [T] in seconds: mm [T]."""
        turn = 2 * np.pi * np.asarray(times) / 4.0
        if self.breath_phase:
            turn = turn + 2 * np.pi * self.breath_phase
        return self.scale * self.breath * np.sin(turn)


def draw_motion(lvef: float, rng: np.random.Generator, preset: Preset) -> Motion:
    """Draw a patient's heart rate, phase and breath; `lvef` in percent."""
    return Motion(rng.uniform(58, 92), rng.uniform(0, 1), lvef, rng.uniform(0.5, 2.5), preset.motion_scale)


def contraction_for(lvef: float, heart: Heart) -> float:
    """Strength of the contraction that ejects `lvef` percent of the left ventricle's cavity.

    The muscle keeps its volume, so that the heart loses at its surface what the cavity ejects. The surface's volume is
    that of a stack of slices: pi times the radius squared, over the length.
    """
    depth = np.linspace(0, 1, 401)
    radius = heart.radius * np.sqrt(1 - depth**2)

    def ejected(strength: float) -> float:
        inward = 1 - INWARD * strength * np.clip(depth + 0.2, 0, 0.5) * 2
        z = depth * heart.length + DESCENT * strength * (1 - depth)
        volumes = [np.trapezoid(np.pi * r**2, at) for r, at in ((radius, depth * heart.length), (radius * inward, z))]
        return float((volumes[0] - volumes[1]) / (CAVITY * volumes[0]))

    return float(brentq(lambda strength: ejected(strength) - lvef / 100, 0.0, 2.5))
