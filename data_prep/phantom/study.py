"""One phantom patient, all from (seed, index): anatomy, findings and ejection fraction."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_prep.phantom.anatomy import CoronaryTree, grow_tree
from data_prep.phantom.disease import draw_disease
from data_prep.phantom.findings import Lesion, draw_lesions
from data_prep.phantom.heart import Motion, contraction_for, draw_heart, draw_motion
from data_prep.phantom.lumen import Lumen, open_lumen
from data_prep.phantom.preset import Preset
from data_prep.phantom.projection import Camera
from data_prep.phantom.realism import Realism
from data_prep.phantom.variants import draw_dominance, grow_variant
from deepcoro.reports.grammar import Finding

TREES = ("left", "right")


@dataclass(frozen=True)
class Patient:
    """What is true of a phantom patient before any picture is taken."""

    index: int
    lvef: float
    """Percent."""
    trees: dict[str, CoronaryTree]
    lesions: dict[str, tuple[Lesion, ...]]
    lumens: dict[str, Lumen]
    motion: Motion
    dominance: str = "right"
    """right, left or balanced."""

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
    fps: float
    """Frames a second."""
    boxes: list[dict[str, Any]] = field(default_factory=list)
    """Rows of BOX_TYPE."""
    mask: np.ndarray | None = None
    """[T, H, W] uint8, see `truth.vessel_mask`; None where nobody asked for it."""


def draw_patient(seed: int, index: int, preset: Preset) -> Patient:
    """Draw patient number `index` of the data set with this seed."""
    rng = np.random.default_rng([seed, index, 0])
    if preset.realism is not None:
        return _draw_rich_patient(seed, index, preset, preset.realism, rng)
    heart = draw_heart(rng, preset)
    trees = {side: grow_tree(side, heart, rng, preset) for side in TREES}
    lesions = {side: draw_lesions(trees[side], rng, preset) for side in TREES}
    lvef = _draw_lvef(lesions, rng)
    lumens = {side: open_lumen(trees[side], lesions[side], rng) for side in TREES}  # plain lesions draw nothing
    return Patient(index, lvef, trees, lesions, lumens, draw_motion(lvef, rng, preset))


def _draw_rich_patient(seed: int, index: int, preset: Preset, realism: Realism, rng: np.random.Generator) -> Patient:
    heart = draw_heart(rng, preset)
    dominance = draw_dominance(rng, realism)
    trees = {side: grow_variant(side, dominance, heart, rng, preset, realism) for side in TREES}
    lesions = {side: draw_disease(trees[side], rng, preset, realism) for side in TREES}
    lvef = _draw_lvef(lesions, rng)
    lumens = {side: open_lumen(trees[side], lesions[side], rng) for side in TREES}
    motion = Motion(
        heart_rate=rng.uniform(*realism.heart_rate),
        start=rng.uniform(0, 1),
        lvef=lvef,
        breath=rng.uniform(0.3, 1.5),
        scale=preset.motion_scale,
        strength=contraction_for(lvef, heart),
    )
    return Patient(index, lvef, trees, lesions, lumens, motion, dominance)


def _draw_lvef(lesions: dict[str, tuple[Lesion, ...]], rng: np.random.Generator) -> float:
    occluded = sum(lesion.finding.occlusion != "none" for of_tree in lesions.values() for lesion in of_tree)
    return float(np.clip(np.round(rng.normal(58 - 6 * occluded, 9)), 20, 75))
