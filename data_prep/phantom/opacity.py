"""Everything dense between source and detector as discs: vessels with their contrast, catheter, calcium, wires.

Shape letters: T frames, P points of the lumen, Q all discs.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.interpolate import PchipInterpolator

from data_prep.phantom.anatomy import CoronaryTree
from data_prep.phantom.contrast import Bolus
from data_prep.phantom.heart import Heart, Motion
from data_prep.phantom.lumen import Lumen, Solids
from data_prep.phantom.projection import Camera
from data_prep.phantom.render import thickness

CATHETER_RADIUS = 1.0  # mm, six French
CATHETER_WALL = 0.45  # attenuation of the catheter, as a share of that of contrast
CHUNK = 8  # frames
CLOT_DENSITY = 0.85  # share of the contrast that a thrombus holds off


@dataclass(frozen=True)
class Discs:
    """Thin discs that face the detector, in pixels of one cine. The lumen's come first, in its order."""

    x: np.ndarray
    """[T, Q] columns."""
    y: np.ndarray
    """[T, Q] rows."""
    radius: np.ndarray
    """[T, Q] pixels."""
    height: np.ndarray
    """[T, Q] mm of contrast; below 0 where something holds contrast off."""
    lumen: int
    """How many belong to the lumen."""

    def shifted(self, right: np.ndarray, down: np.ndarray) -> "Discs":
        """Moved over the detector by [T] pixels: the table moves."""
        return replace(self, x=self.x + right[:, None], y=self.y + down[:, None])

    def lumen_only(self, keep: np.ndarray | None = None) -> "Discs":
        """Only the lumen's discs, or those of them where `keep` [P] is True."""
        take = np.arange(self.lumen) if keep is None else np.flatnonzero(keep)
        return Discs(self.x[:, take], self.y[:, take], self.radius[:, take], self.height[:, take], len(take))


def trace(
    lumen: Lumen,
    camera: Camera,
    motion: Motion,
    bolus: Bolus,
    times: np.ndarray,
    catheter: bool = True,
    others: Solids | None = None,
) -> Discs:
    """Where contrast and dense things are at `times` [T] in seconds; `others` are solids beside the tree's own."""
    tree, radius = lumen.tree, lumen.radius
    height = bolus.concentration(lumen.arc, times) * lumen.fill
    moved = motion.move(tree.heart, lumen.points, times)
    step = np.linalg.norm(moved - moved[:, lumen.upstream], axis=-1)
    height *= step
    count = len(radius)
    clot_at, clot_radius = moved[:, lumen.clot], lumen.clot_share * radius[lumen.clot]
    clot_height = -CLOT_DENSITY * height[:, lumen.clot]
    if catheter:
        line = _catheter(tree)
        # The tip rides with the ostium; further up, the aorta holds it still.
        follow = np.linspace(1, 0, len(line))[:, None]
        ostium = moved[:, :1] - tree.points[:1]
        moved = np.concatenate([moved, line + follow * ostium], axis=1)
        radius = np.concatenate([radius, np.full(len(line), CATHETER_RADIUS)])
        inside = np.maximum(bolus.concentration(np.zeros(1), times), CATHETER_WALL)
        spacing = np.linalg.norm(np.diff(line, axis=0), axis=1)
        height = np.concatenate([height, inside * np.append(spacing, 0)], axis=1)
    if len(lumen.clot):
        moved = np.concatenate([moved, clot_at], axis=1)
        radius = np.concatenate([radius, np.maximum(clot_radius, 0.05)])
        height = np.concatenate([height, clot_height], axis=1)
    solids = lumen.solids if others is None else lumen.solids + others
    if len(solids.points):
        moved = np.concatenate([moved, move_solids(solids, motion, tree.heart, times)], axis=1)
        radius = np.concatenate([radius, solids.radius])
        height = np.concatenate([height, np.broadcast_to(solids.height, (len(times), len(solids.height)))], axis=1)
    x, y, scale = camera.project(moved)
    return Discs(x, y, radius * scale, height, count)


def move_solids(solids: Solids, motion: Motion, heart: Heart, times: np.ndarray) -> np.ndarray:
    """Where solids [S] are at `times` [T]: mm [T, S, 3]."""
    moved = motion.move(heart, solids.points, times)
    return solids.points + solids.follow[:, None] * (moved - solids.points)


def contrast_path(
    lumen: Lumen, camera: Camera, motion: Motion, bolus: Bolus, times: np.ndarray, catheter: bool = True
) -> np.ndarray:
    """Return how many mm of contrast each ray passes, [T, size, size] float32, at `times` [T] in seconds."""
    return draw(trace(lumen, camera, motion, bolus, times, catheter), camera.size)


def draw(discs: Discs, size: int) -> np.ndarray:
    """Sum discs into a map of thickness in mm, [T, size, size] float32, nowhere below 0."""
    path = np.empty((len(discs.x), size, size), np.float32)
    for first in range(0, len(path), CHUNK):  # a few frames at a time stay in the processor's cache
        part = slice(first, first + CHUNK)
        drawn = thickness(discs.x[part], discs.y[part], discs.radius[part], discs.height[part], size)
        np.maximum(drawn, 0, out=path[part])
    return path


def _catheter(tree: CoronaryTree) -> np.ndarray:
    """Points from the ostium up the ascending aorta, [P, 3] mm, half a millimetre apart or a little more."""
    tip = tree.points[0]
    into = tip - tree.points[min(8, len(tree.points) - 1)]
    into /= np.linalg.norm(into)
    root = tip + 14 * into + np.array([0, 0, 6.0])
    arch = np.array([-14.0, 12.0, 75.0])
    top = np.array([4.0, 30.0, 125.0])
    share = np.linspace(0, 1, 280)[:, None]
    knots = np.array([0, 0.12, 0.62, 1.0])
    return PchipInterpolator(knots, np.stack([tip, root, arch, top]))(share[:, 0])
