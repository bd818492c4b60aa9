"""From a tree and its lesions to what a cine can show: the open lumen and how contrast comes to it, and what else is
dense (calcium, stents) or holds the contrast off (thrombus).

Shape letters: P points of the tree and its collaterals, S solid specks, D discs of thrombus.
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

from data_prep.phantom.anatomy import SPACING, CoronaryTree
from data_prep.phantom.findings import Lesion, extent, narrow

SLOW = 2.0  # TIMI 2: contrast takes this many times longer behind the lesion
PENETRATION = 25.0  # mm that contrast comes beyond a lesion with TIMI 1
GAP = 12.0  # mm that a chronic occlusion is long
FAINT = 0.45  # share of the contrast that comes through collaterals
LATE = 50.0  # mm of way that the smallest vessels add to a collateral's own
LATEST = 260.0  # mm of way at most, so that a cine shows it
SPECKS = {"minimal": 4, "moderate": 10, "severe": 24}  # calcium, on every 10 mm
STRUT_PITCH = 4.5  # mm along a stent for one turn of a wire
WIRES = 4


@dataclass(frozen=True)
class Solids:
    """Small things that are dense with or without contrast, as discs."""

    points: np.ndarray
    """[S, 3] mm at end-diastole."""
    radius: np.ndarray
    """[S] mm."""
    height: np.ndarray
    """[S] mm of contrast that would be as dense."""
    follow: np.ndarray
    """[S] share of the heart's motion that they follow, 0 to 1."""

    @staticmethod
    def none() -> "Solids":
        """Nothing."""
        return Solids(np.empty((0, 3)), np.empty(0), np.empty(0), np.empty(0))

    def __add__(self, other: "Solids") -> "Solids":
        """Both."""
        return Solids(
            np.concatenate([self.points, other.points]),
            np.concatenate([self.radius, other.radius]),
            np.concatenate([self.height, other.height]),
            np.concatenate([self.follow, other.follow]),
        )


@dataclass(frozen=True)
class Lumen:
    """A diseased tree, ready to be filled. The tree's own points come first, then those of collaterals."""

    tree: CoronaryTree
    points: np.ndarray
    """[P, 3] mm at end-diastole; an eccentric stenosis moves them from the tree's."""
    radius: np.ndarray
    """[P] mm."""
    arc: np.ndarray
    """[P] way of the contrast, mm; longer than the tree's where the flow is slow."""
    fill: np.ndarray
    """[P] share of the contrast that comes, 0 (or False) to 1."""
    upstream: np.ndarray
    """[P] index of the neighbour towards the ostium."""
    solids: Solids
    clot: np.ndarray
    """[D] indices of the points in which thrombus lies."""
    clot_share: np.ndarray
    """[D] its radius as a share of the lumen's."""
    extents: tuple[tuple[str, np.ndarray], ...]
    """(segment, indices of its points) of every lesion."""


def open_lumen(tree: CoronaryTree, lesions: tuple[Lesion, ...], rng: np.random.Generator) -> Lumen:
    """Work the lesions into the tree; `rng` places specks of calcium and collaterals."""
    radius, reached = narrow(tree, lesions)
    points, arc, fill, upstream = tree.points, tree.arc, reached, tree.upstream
    solids, clots = Solids.none(), []
    for lesion in lesions:
        finding, taken = lesion.finding, extent(tree, lesion)
        across = _across(tree, taken)
        if lesion.shape == "eccentric":
            course = tree.course(finding.segment)
            toward = _directions(_across(tree, course), lesion.side)
            points = points.copy()
            points[course] += (tree.radius[course] - radius[course])[:, None] * toward
        if finding.timi in (1, 2):
            arc, fill = _slow(tree, int(taken[-1]), finding.timi, arc, fill)
        if finding.calcification not in (None, "none"):
            solids += _calcium(tree, taken, across, lesion, rng)
        if finding.stent:
            solids += _struts(tree, taken, across)
        if finding.thrombus:
            clots.append(_clot(tree, lesion, taken))
    lumen = Lumen(
        tree=tree,
        points=points,
        radius=radius,
        arc=arc,
        fill=fill,
        upstream=upstream,
        solids=solids,
        clot=np.concatenate([at for at, _ in clots]) if clots else np.empty(0, dtype=int),
        clot_share=np.concatenate([share for _, share in clots]) if clots else np.empty(0),
        extents=tuple((lesion.finding.segment, extent(tree, lesion)) for lesion in lesions),
    )
    for lesion in lesions:
        if lesion.finding.collaterals:
            lumen = _with_collateral(lumen, lesion, rng)
    return lumen


def _across(tree: CoronaryTree, course: np.ndarray) -> np.ndarray:
    """[n, 2, 3] two directions across a vessel at right angles: away from the heart, and sideways."""
    line = tree.points[course]
    if len(line) < 2:
        line = np.concatenate([line, line + [0, 0, 1.0]])
    along = np.gradient(line, axis=0)[: len(course)]
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    out = tree.points[course] - tree.heart.base
    out -= (out * along).sum(axis=1, keepdims=True) * along
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return np.stack([out, np.cross(along, out)], axis=1)


def _directions(across: np.ndarray, angle: np.ndarray | float) -> np.ndarray:
    """[n, 3] unit vectors across the vessel at angles [n] (or one) in radians."""
    angle = np.broadcast_to(angle, len(across))[:, None]
    return np.cos(angle) * across[:, 0] + np.sin(angle) * across[:, 1]


def _slow(tree: CoronaryTree, last: int, timi: int, arc: np.ndarray, fill: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    behind = tree.fed_through(last)
    beyond = np.where(behind, tree.arc - tree.arc[last], 0)
    slowed = arc + (SLOW - 1) * beyond
    return slowed, fill & ~(behind & (beyond > PENETRATION)) if timi == 1 else fill


def _calcium(
    tree: CoronaryTree, taken: np.ndarray, across: np.ndarray, lesion: Lesion, rng: np.random.Generator
) -> Solids:
    """Specks in the vessel's wall: severe calcium lies on both sides, less on one."""
    grade = str(lesion.finding.calcification)
    count = max(3, round(SPECKS[grade] * len(taken) * SPACING / 10))
    at = rng.integers(len(taken), size=count)
    angle = lesion.side + rng.normal(0, 0.5, count)
    if grade == "severe":
        angle += np.pi * rng.integers(2, size=count)
    away = tree.radius[taken[at]] * rng.uniform(1.0, 1.2, count)
    points = tree.points[taken[at]] + away[:, None] * _directions(across[at], angle)
    return Solids(points, rng.uniform(0.3, 0.6, count), rng.uniform(0.5, 1.4, count), np.ones(count))


def _struts(tree: CoronaryTree, taken: np.ndarray, across: np.ndarray) -> Solids:
    """Thin wires in crossing helices along the wall."""
    length = len(taken) * SPACING
    around = 2 * np.pi * float(tree.radius[taken].mean())
    turn = np.hypot(STRUT_PITCH, around)
    place = np.linspace(0, len(taken) - 1, max(2, int(length / STRUT_PITCH * turn / 0.4)))
    at = np.rint(place).astype(int)
    points = []
    for wire in range(WIRES):
        way = 1 if wire % 2 else -1
        angle = way * 2 * np.pi * place * SPACING / STRUT_PITCH + wire * np.pi / WIRES
        points.append(tree.points[taken[at]] + tree.radius[taken[at], None] * _directions(across[at], angle))
    count = WIRES * len(place)
    return Solids(np.concatenate(points), np.full(count, 0.13), np.full(count, 1.2), np.ones(count))


def _clot(tree: CoronaryTree, lesion: Lesion, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thrombus: in an occlusion at its end; at a stenosis just behind it, or before it where its segment ends."""
    course = tree.course(lesion.finding.segment)
    length = round(8.0 / SPACING)
    start, end = int(np.searchsorted(course, taken[0])), int(np.searchsorted(course, taken[-1]))
    if lesion.finding.occlusion != "none":
        stop = int(np.searchsorted(tree.arc[course] - tree.arc[course[0]], lesion.centre * _length(tree, course)))
        at = course[max(0, stop - length) : stop]
    elif end + length < len(course):
        at = course[end : end + length]
    else:
        at = course[max(0, start - length) : max(start, 1)]
    middle = np.linspace(-0.95, 0.95, len(at))
    return at, 0.8 * np.sqrt(1 - middle**2)


def _length(tree: CoronaryTree, course: np.ndarray) -> float:
    return float(tree.arc[course[-1]] - tree.arc[course[0]])


def _with_collateral(lumen: Lumen, lesion: Lesion, rng: np.random.Generator) -> Lumen:
    """A thin winding vessel from what is filled to the vessel beyond a chronic occlusion, which fills from there."""
    tree = lumen.tree
    course = tree.course(lesion.finding.segment)
    arc = tree.arc[course] - tree.arc[course[0]]
    stop = int(np.searchsorted(arc, lesion.centre * arc[-1]))
    beyond = tree.fed_through(int(course[stop]))
    open_again = beyond & (tree.arc - tree.arc[course[stop]] >= GAP)
    if not open_again.any():
        return lumen
    reach = np.flatnonzero(open_again & (tree.arc - tree.arc[course[stop]] < GAP + 15) & ~tree.unnamed)
    target = int(reach[rng.integers(len(reach))]) if len(reach) else int(np.flatnonzero(open_again)[0])
    bridge = int(course[max(0, stop - 8)])  # just before the stump
    filled = np.flatnonzero((lumen.fill[: len(tree.points)] == 1) & ~beyond & (tree.arc > 20))
    distance = np.linalg.norm(tree.points[filled] - tree.points[target], axis=1)
    near = filled[(distance > 12) & (distance < 40)]
    donor = int(near[rng.integers(len(near))]) if len(near) else bridge
    line = _winding(tree, donor, target, rng)
    start, length = float(lumen.arc[donor]), len(line) * SPACING
    arrival = min(start + 1.3 * length + LATE, LATEST)
    way = np.linspace(start, arrival, len(line))
    away = np.abs(tree.arc - tree.arc[target])
    own_arc, own_fill = lumen.arc.copy(), lumen.fill.astype(float)
    tree_points = np.arange(len(tree.points))[open_again]
    own_arc[tree_points] = np.minimum(arrival + 1.2 * away[open_again], LATEST + 60)
    own_fill[tree_points] = FAINT
    first = len(lumen.points)
    return Lumen(
        tree=tree,
        points=np.concatenate([lumen.points, line]),
        radius=np.concatenate([lumen.radius, np.full(len(line), 0.32)]),
        arc=np.concatenate([own_arc, way]),
        fill=np.concatenate([own_fill, np.full(len(line), 0.8)]),
        upstream=np.concatenate([lumen.upstream, [donor], np.arange(first, first + len(line) - 1)]),
        solids=lumen.solids,
        clot=lumen.clot,
        clot_share=lumen.clot_share,
        extents=lumen.extents,
    )


def _winding(tree: CoronaryTree, donor: int, target: int, rng: np.random.Generator) -> np.ndarray:
    """[n, 3] points from donor to target, bulging away from the heart and winding like a corkscrew."""
    ends = tree.points[[donor, target]]
    middle = ends.mean(axis=0)
    out = middle - tree.heart.base
    out /= np.linalg.norm(out)
    chord = np.linalg.norm(ends[1] - ends[0])
    across = np.cross(ends[1] - ends[0], out) / max(chord, 1e-6)
    middle = middle + out * 0.12 * chord + across * rng.normal(0, 0.25) * chord
    share = np.linspace(0, 1, max(12, int(1.8 * chord / SPACING)))
    line = CubicSpline([0, 0.5, 1], np.stack([ends[0], middle, ends[1]]))(share)
    turns = 2 * np.pi * chord / 7.0 * share[:, None]
    return line + 1.3 * np.sin(np.pi * share)[:, None] * (np.sin(turns) * across + np.cos(turns) * out)
