"""Coronary trees: centre lines in 3-D with radii, grown on a heart. The plain trees here are right-dominant.

Shape letters: P points of a tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

from data_prep.phantom.heart import Heart
from data_prep.phantom.preset import Preset

SPACING = 0.6  # mm between neighbours on a centre line: below a pixel at every usual image size


@dataclass(frozen=True)
class Vessel:
    """One vessel of the tables below: from where it leaves its parent to its end."""

    segments: tuple[tuple[str, float], ...]
    """Segment names, each with the share of the vessel's length at which it ends."""
    leaves: tuple[str, float] | None
    """(segment, share of its length) where it leaves its parent; None: from the aorta."""
    course: tuple[tuple[float, float, float], ...]
    """Places (depth, bulge, angle) on the heart that it passes after its start."""
    radii: tuple[float, float]
    """Radius at its start and at its end, mm."""
    unnamed: bool = False
    """A side branch without a name of its own: it counts as part of the segment that it leaves."""


LEFT_VESSELS = (
    Vessel((("left_main", 1.0),), None, ((-0.13, 0.60, 2), (-0.08, 0.80, 16), (-0.02, 1.0, 26)), (2.2, 2.1)),
    Vessel(
        (("prox_lad", 0.27), ("mid_lad", 0.58), ("dist_lad", 1.0)),
        ("left_main", 1.0),
        ((0.10, 1.08, 10), (0.33, 1.05, 0), (0.66, 1.04, -5), (0.97, 1.05, -12)),
        (1.9, 0.9),
    ),
    Vessel(
        (("prox_lcx", 0.36), ("mid_lcx", 0.68), ("dist_lcx", 1.0)),
        ("left_main", 1.0),
        ((-0.03, 1.08, 45), (0.01, 1.07, 72), (0.0, 1.06, 105), (0.04, 1.04, 142)),
        (1.7, 0.8),
    ),
    Vessel((("d1", 1.0),), ("prox_lad", 1.0), ((0.34, 1.07, 27), (0.48, 1.05, 42), (0.68, 1.02, 50)), (1.3, 0.75)),
    Vessel((("d2", 1.0),), ("mid_lad", 1.0), ((0.66, 1.06, 14), (0.78, 1.03, 24), (0.86, 1.03, 28)), (1.05, 0.6)),
    Vessel((("om1", 1.0),), ("prox_lcx", 1.0), ((0.16, 1.07, 74), (0.40, 1.05, 76), (0.70, 1.02, 80)), (1.3, 0.75)),
    Vessel((("om2", 1.0),), ("mid_lcx", 1.0), ((0.18, 1.05, 116), (0.40, 1.04, 122), (0.66, 1.02, 124)), (1.2, 0.7)),
    Vessel((("mid_lad", 1.0),), ("mid_lad", 0.05), ((0.38, 0.7, -14), (0.48, 0.4, -20)), (0.6, 0.3), unnamed=True),
    Vessel((("mid_lad", 1.0),), ("mid_lad", 0.55), ((0.55, 0.7, -14), (0.62, 0.4, -20)), (0.5, 0.3), unnamed=True),
)
RAMUS = Vessel((("bx", 1.0),), ("left_main", 1.0), ((0.14, 1.07, 46), (0.34, 1.05, 58), (0.50, 1.03, 64)), (1.25, 0.75))
RIGHT_VESSELS = (
    Vessel(
        (("prox_rca", 0.30), ("mid_rca", 0.63), ("dist_rca", 1.0)),
        None,
        (
            (-0.13, 0.50, -42),
            (-0.10, 0.80, -48),
            (0.0, 1.08, -62),
            (0.06, 1.12, -95),
            (0.05, 1.10, -135),
            (0.0, 1.06, -176),
        ),
        (2.0, 1.5),
    ),
    Vessel(
        (("pda", 1.0),), ("dist_rca", 1.0), ((0.2, 1.05, -183), (0.45, 1.04, -180), (0.78, 1.04, -177)), (1.25, 0.75)
    ),
    Vessel(
        (("posterolateral", 1.0),),
        ("dist_rca", 1.0),
        ((-0.04, 1.08, -196), (0.08, 1.06, -216), (0.28, 1.04, -232), (0.52, 1.03, -240)),
        (1.3, 0.75),
    ),
    Vessel((("prox_rca", 1.0),), ("prox_rca", 0.35), ((0.02, 1.0, -30), (0.2, 1.05, -22)), (0.6, 0.3), unnamed=True),
    Vessel((("prox_rca", 1.0),), ("prox_rca", 0.2), ((-0.3, 0.9, -62), (-0.38, 0.85, -90)), (0.5, 0.3), unnamed=True),
    Vessel((("mid_rca", 1.0),), ("mid_rca", 0.6), ((0.2, 1.12, -118), (0.5, 1.08, -128)), (0.8, 0.35), unnamed=True),
)


@dataclass(frozen=True)
class CoronaryTree:
    """A tree without disease, at end-diastole. The neighbour upstream of a point has a smaller index."""

    side: str
    """left or right."""
    heart: Heart
    names: tuple[str, ...]
    """Segments that this tree has, a parent before its branches."""
    points: np.ndarray
    """[P, 3] mm."""
    radius: np.ndarray
    """[P] mm."""
    arc: np.ndarray
    """[P] mm along the vessels from the ostium: the way of the contrast."""
    upstream: np.ndarray
    """[P] index of the neighbour towards the ostium; the first point is its own."""
    segment: np.ndarray
    """[P] index into `names`."""
    unnamed: np.ndarray
    """[P] True in side branches that have no name of their own."""

    def course(self, name: str) -> np.ndarray:
        """Indices of a segment's points from proximal to distal, side branches left out; KeyError if there is none."""
        if name not in self.names:
            raise KeyError(f"segment {name!r} is not in this {self.side} tree, which has {', '.join(self.names)}")
        return np.flatnonzero((self.segment == self.names.index(name)) & ~self.unnamed)

    def fed_through(self, point: int) -> np.ndarray:
        """[P] True at a point and at everything downstream of it."""
        fed = np.zeros(len(self.points), dtype=bool)
        fed[point] = True
        for i in range(point + 1, len(fed)):
            fed[i] = fed[self.upstream[i]]
        return fed


def grow_tree(side: str, heart: Heart, rng: np.random.Generator, preset: Preset) -> CoronaryTree:
    """Grow one patient's plain, right-dominant tree; `side` is left or right."""
    vessels = {"left": LEFT_VESSELS, "right": RIGHT_VESSELS}[side]
    if side == "left" and rng.random() < preset.ramus_share:
        vessels = (*vessels, RAMUS)
    return lay_vessels(side, heart, vessels, rng, preset)


def lay_vessels(
    side: str, heart: Heart, vessels: Sequence[Vessel], rng: np.random.Generator, preset: Preset
) -> CoronaryTree:
    """Lay these vessels on a heart, each after the one that it leaves."""
    names = tuple(dict.fromkeys(name for vessel in vessels for name, _ in vessel.segments))
    none = np.empty(0)
    tree = CoronaryTree(
        side, heart, names, none.reshape(0, 3), none, none, none.astype(int), none.astype(int), none.astype(bool)
    )
    for vessel in vessels:
        tree = with_vessel(tree, vessel, rng, preset)
    return tree


def with_vessel(tree: CoronaryTree, vessel: Vessel, rng: np.random.Generator, preset: Preset) -> CoronaryTree:
    """Return the tree with one vessel more, of a segment that the tree names."""
    grown = len(tree.points)
    start = None
    if vessel.leaves:
        parent = tree.course(vessel.leaves[0])
        start = parent[min(int(vessel.leaves[1] * len(parent)), len(parent) - 1)]
    points = _lay(vessel, tree, start, rng, preset)
    share = np.linspace(0, 1, len(points))
    scale = preset.vessel_scale * np.exp(0.08 * preset.anatomy_variation * rng.standard_normal())
    upstream = np.arange(grown - 1, grown + len(points) - 1)
    upstream[0] = 0 if start is None else start
    moves = preset.anatomy_variation * rng.uniform(-0.03, 0.03, len(vessel.segments) - 1)
    ends = [end for _, end in vessel.segments[:-1]] + moves
    numbers = np.array([tree.names.index(name) for name, _ in vessel.segments])
    return CoronaryTree(
        side=tree.side,
        heart=tree.heart,
        names=tree.names,
        points=np.concatenate([tree.points, points]),
        radius=np.concatenate([tree.radius, scale * (vessel.radii[0] + share * (vessel.radii[1] - vessel.radii[0]))]),
        arc=np.concatenate(
            [tree.arc, SPACING * np.arange(len(points)) + (0 if start is None else tree.arc[start] + SPACING)]
        ),
        upstream=np.concatenate([tree.upstream, upstream]),
        segment=np.concatenate([tree.segment, numbers[np.searchsorted(ends, share, side="right")]]),
        unnamed=np.concatenate([tree.unnamed, np.full(len(points), vessel.unnamed)]),
    )


def _lay(vessel: Vessel, tree: CoronaryTree, start: int | None, rng: np.random.Generator, preset: Preset) -> np.ndarray:
    """Lay a vessel through its varied course: points [P, 3], `SPACING` apart."""
    vary = preset.anatomy_variation
    course = np.array(vessel.course, dtype=float)
    noise = rng.standard_normal(course.shape) * [0.02, 0.015, 3.0]
    if start is None:
        noise[0] *= 0.3  # the ostium hardly varies
    course += vary * noise
    if start is not None:
        place = tree.heart.to_place(tree.points[start])
        place[2] += 360 * np.round((course[0, 2] - place[2]) / 360)  # the same turn as the course
        course = np.vstack([place, course])
    knots = np.linspace(0, 1, len(course))
    dense = np.linspace(0, 1, 400)
    places = CubicSpline(knots, course)(dense)
    # Tortuosity: a slow wave across the course, one every 2 to 4 cm, that leaves both ends where they are.
    length = np.linalg.norm(np.diff(tree.heart.to_patient(places), axis=0), axis=1).sum()
    waves, phase = length / rng.uniform(20, 40), rng.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * waves * dense + phase) * np.sin(np.pi * dense)
    vary *= preset.tortuosity
    places[:, 0] += vary * rng.normal(0, 0.012) * wave
    places[:, 2] += vary * rng.normal(0, 2.5) * wave
    line = tree.heart.to_patient(places)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    first = 0 if start is None else SPACING
    at = np.arange(first, length[-1], SPACING)
    return np.stack([np.interp(at, length, line[:, axis]) for axis in range(3)], axis=1)
