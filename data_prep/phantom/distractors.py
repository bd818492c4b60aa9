"""What lies in the picture and is no finding: sternal wires, a pacing wire, ECG cables.

Places in mm around the centre of the heart: x to the patient's left, y to the back, z to the head.
"""

import numpy as np
from scipy.interpolate import CubicSpline

from data_prep.phantom.heart import Heart
from data_prep.phantom.lumen import Solids


def line_of(
    knots: np.ndarray, spacing: float, radius: float, height: float, follow: np.ndarray | float = 0.0
) -> Solids:
    """A wire through knots [n, 3] as discs `spacing` mm apart; `follow` at the knots, or the same everywhere."""
    at = np.linspace(0, 1, len(knots))
    rough = CubicSpline(at, knots)(np.linspace(0, 1, 200))
    length = np.linalg.norm(np.diff(rough, axis=0), axis=1).sum()
    share = np.linspace(0, 1, max(2, int(length / spacing)))
    follows = np.interp(share, at, np.broadcast_to(follow, len(knots)))
    count = len(share)
    return Solids(CubicSpline(at, knots)(share), np.full(count, radius), np.full(count, height), follows)


def sternal_wires(rng: np.random.Generator) -> Solids:
    """Loops of steel wire around the breastbone, in front of the heart, one every two to three centimetres."""
    wires = Solids.none()
    middle, front = rng.normal(-8, 4), -62 + rng.normal(0, 4)
    for level in np.arange(-70, 75, rng.uniform(20, 28)):
        turn = np.linspace(0, 2 * np.pi, 13)
        wide, high = rng.uniform(8, 12), rng.uniform(3, 6)
        lean = rng.normal(0, 0.25)
        ring = np.stack(
            [
                middle + wide * np.cos(turn),
                front + 4 * np.sin(turn),
                level + high * np.sin(turn) + lean * wide * np.cos(turn),
            ],
            axis=1,
        )
        tail = ring[3] + np.array([[0, 0, 0], [rng.normal(0, 1), -1, 3.0], [rng.normal(0, 1.5), -2, 6.0]])
        wires += line_of(ring, 0.5, 0.45, 1.6) + line_of(tail, 0.5, 0.5, 1.8)
    return wires


def pacing_wire(heart: Heart, rng: np.random.Generator) -> Solids:
    """A lead from the upper vena cava through the right atrium to the right ventricle's apex, where it is fixed."""
    tip, before = heart.to_patient(np.array([[0.82, 0.75, -40.0], [0.25, 0.75, -75.0]]))
    knots = np.array([[-42.0, 5.0, 140.0], [-46.0, 8.0, 80.0], [-52.0, 12.0, 25.0], [-38.0, 5.0, -18.0], before, tip])
    knots[:4] += rng.normal(0, 4, (4, 3))
    follow = np.array([0.0, 0.0, 0.3, 0.6, 1.0, 1.0])
    lead = line_of(knots, 0.5, 0.8, 0.55, follow)
    end = line_of(knots[-1] + np.array([[0, 0, 0], [1.0, 0, -0.6], [2.0, 0, -1.2]]), 0.5, 1.2, 2.2, 1.0)
    return lead + end


def ecg_cables(rng: np.random.Generator) -> Solids:
    """One to three cables that hang across the chest, each to an electrode."""
    cables = Solids.none()
    for _ in range(rng.integers(1, 4)):
        start = np.array([rng.uniform(-80, 80), -95.0, 130.0])
        end = np.array([rng.uniform(-60, 60), -95.0, rng.uniform(-60, 60)])
        knots = np.linspace(start, end, 5) + rng.normal(0, 10, (5, 3)) * np.array([1, 0, 0.5])
        cables += line_of(knots, 0.6, 0.7, 0.7)
        turn = np.linspace(0, 2 * np.pi, 17)
        ring = end + 5.0 * np.stack([np.cos(turn), 0 * turn, np.sin(turn)], axis=1)
        cables += line_of(ring, 0.6, 1.0, 0.5)
    return cables
