"""One phantom patient, all from (seed, index): findings, ejection fraction and cines."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from data_prep.phantom.anatomy import CoronaryTree, grow_tree
from data_prep.phantom.background import chest, collimator
from data_prep.phantom.contrast import Bolus, draw_bolus
from data_prep.phantom.findings import Lesion, draw_lesions, narrow
from data_prep.phantom.heart import Motion, draw_heart, draw_motion
from data_prep.phantom.preset import Preset
from data_prep.phantom.projection import Camera, frame_tree, view_angles
from data_prep.phantom.render import expose, thickness
from deepcoro.reports.grammar import Finding

TREES = ("left", "right")
CATHETER_RADIUS = 1.0  # mm, six French
CATHETER_WALL = 0.45  # attenuation of the catheter, as a share of that of contrast


@dataclass(frozen=True)
class Patient:
    """What is true of a phantom patient before any picture is taken."""

    index: int
    lvef: float
    """Percent."""
    trees: dict[str, CoronaryTree]
    lesions: dict[str, tuple[Lesion, ...]]
    motion: Motion

    @property
    def findings(self) -> list[Finding]:
        """All findings, the left tree first."""
        return [lesion.finding for tree in TREES for lesion in self.lesions[tree]]


@dataclass(frozen=True)
class Cine:
    """One acquisition."""

    tree: str
    """left or right."""
    camera: Camera
    frames: np.ndarray
    """[T, H, W] uint8."""


def draw_patient(seed: int, index: int, preset: Preset) -> Patient:
    """Draw patient number `index` of the data set with this seed."""
    rng = np.random.default_rng([seed, index, 0])
    heart = draw_heart(rng, preset)
    trees = {side: grow_tree(side, heart, rng, preset) for side in TREES}
    lesions = {side: draw_lesions(trees[side], rng, preset) for side in TREES}
    occluded = sum(lesion.finding.occlusion != "none" for side in TREES for lesion in lesions[side])
    lvef = float(np.clip(np.round(rng.normal(58 - 6 * occluded, 9)), 20, 75))
    return Patient(index, lvef, trees, lesions, draw_motion(lvef, rng, preset))


def take_cines(patient: Patient, seed: int, preset: Preset, size: int, num_frames: int, fps: float) -> Iterator[Cine]:
    """Take every view of the preset, the left tree first; each has its own random numbers."""
    times = np.arange(num_frames) / fps
    number = 0
    for side in TREES:
        for view in preset.views[side]:
            number += 1
            rng = np.random.default_rng([seed, patient.index, number])
            tree = patient.trees[side]
            angles = np.array(view_angles(view)) + preset.angle_jitter * rng.standard_normal(2)
            primary, secondary = np.round(angles, 1).tolist()
            camera = frame_tree(tree.points, primary, secondary, preset.field_of_view, size)
            background = chest(camera, tree.heart, rng, preset)
            bolus = draw_bolus(num_frames / fps, rng)
            path = contrast_path(tree, patient.lesions[side], camera, patient.motion, bolus, times)
            photons = preset.photons * (128 / size) ** 2
            opening = collimator(size, rng)
            yield Cine(side, camera, expose(background, path, opening, preset.attenuation, photons, rng))


def contrast_path(
    tree: CoronaryTree,
    lesions: tuple[Lesion, ...],
    camera: Camera,
    motion: Motion,
    bolus: Bolus,
    times: np.ndarray,
    catheter: bool = True,
) -> np.ndarray:
    """Return how many mm of contrast each ray passes, [T, size, size] float32, at `times` [T] in seconds."""
    radius, reached = narrow(tree, lesions)
    height = bolus.concentration(tree.arc, times) * reached
    moved = motion.move(tree.heart, tree.points, times)
    step = np.linalg.norm(moved - moved[:, tree.upstream], axis=-1)
    height *= step
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
    x, y, scale = camera.project(moved)
    return thickness(x, y, radius * scale, height, camera.size)


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
