"""Taking the cines of a rich phantom: which views, how the injection goes, what moves and what is in the way.

Shape letters: T frames.
"""

from collections.abc import Iterator

import numpy as np

from data_prep.phantom.contrast import Bolus, draw_bolus
from data_prep.phantom.detector import draw_detector
from data_prep.phantom.distractors import ecg_cables, pacing_wire, sternal_wires
from data_prep.phantom.heart import Heart, Motion
from data_prep.phantom.lumen import Lumen, Solids
from data_prep.phantom.opacity import Discs, draw, trace
from data_prep.phantom.preset import Preset
from data_prep.phantom.projection import Camera, frame_tree, view_angles
from data_prep.phantom.realism import Realism
from data_prep.phantom.study import TREES, Cine, Patient
from data_prep.phantom.thorax import draw_thorax
from data_prep.phantom.truth import lesion_boxes, vessel_mask

LABORATORY = 1_000_000  # numbers a study's stream of random numbers apart from those of its cines


def take_rich_cines(
    patient: Patient, seed: int, preset: Preset, realism: Realism, size: int, seconds: float, masks: bool
) -> Iterator[Cine]:
    """Take a patient's cines, the left tree first, of `seconds` each and `size` pixels square."""
    of_study = np.random.default_rng([seed, patient.index, LABORATORY])
    heart = patient.trees["left"].heart
    detector = draw_detector(of_study)
    on_chest, in_heart = draw_distractors(heart, realism, of_study)
    for number, (side, view) in enumerate(draw_views(preset, realism, of_study), start=1):
        rng = np.random.default_rng([seed, patient.index, number])
        lumen = patient.lumens[side]
        fps = _draw_rate(realism, rng)
        times = np.arange(max(2, round(seconds * fps))) / fps
        angles = np.array(view_angles(view)) + preset.angle_jitter * rng.standard_normal(2)
        primary, secondary = np.round(angles, 1).tolist()
        camera = frame_tree(lumen.tree.points, primary, secondary, preset.field_of_view, size)
        motion = _draw_breath(patient.motion, realism, rng)
        bolus = _draw_injection(seconds, motion, realism, rng)
        right, down = _draw_panning(times, camera, realism, rng)
        breath = np.rint(motion.breathing(times) / camera.pixel).astype(int)
        margin = int(max(np.abs(right).max(), np.abs(down).max())) + int(np.abs(breath).max()) + 1
        thorax = draw_thorax(camera, heart, on_chest, margin, rng, preset)
        discs = trace(lumen, camera, motion, bolus, times, others=in_heart).shifted(right, down)
        path = draw(_fine(discs, lumen), size)
        if rng.random() < realism.reflux_share:
            path += draw(_reflux(lumen, camera, motion, bolus, times, rng).shifted(right, down), size)
        photons = float(np.exp(rng.uniform(*np.log(realism.photons)))) * (128 / size) ** 2
        frames = detector.expose(
            thorax.moved(right, down, breath),
            path,
            detector.opening(size, rng),
            preset.attenuation,
            photons,
            camera.pixel,
            rng,
        )
        boxes = lesion_boxes(lumen, discs, bolus.concentration(lumen.arc, times), camera.pixel, size)
        yield Cine(side, camera, frames, fps, boxes, vessel_mask(lumen, discs, size) if masks else None)


def draw_views(preset: Preset, realism: Realism, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Draw (tree, view) for the cines of a study in their order: different views, at least one of each tree."""
    low, high = realism.num_views
    wanted = int(rng.integers(low, high + 1))
    num_right = min(max(1, round(wanted / 3)), len(preset.views["right"]))
    count = {"left": min(wanted - num_right, len(preset.views["left"])), "right": num_right}
    chosen = []
    for side in TREES:
        views = preset.views[side]
        for index in np.sort(rng.permutation(len(views))[: count[side]]):
            chosen.append((side, views[index]))
    return chosen


def draw_distractors(heart: Heart, realism: Realism, rng: np.random.Generator) -> tuple[Solids, Solids]:
    """Draw what a patient carries: (on the chest, which stands still; in the heart, which moves with it)."""
    on_chest = in_heart = Solids.none()
    if rng.random() < realism.sternal_wires_share:
        on_chest += sternal_wires(rng)
    if rng.random() < realism.ecg_leads_share:
        on_chest += ecg_cables(rng)
    if rng.random() < realism.pacing_wire_share:
        in_heart += pacing_wire(heart, rng)
    return on_chest, in_heart


def _draw_rate(realism: Realism, rng: np.random.Generator) -> float:
    weights = np.array(list(realism.frame_rates.values()))
    return list(realism.frame_rates)[rng.choice(len(weights), p=weights / weights.sum())]


def _draw_breath(motion: Motion, realism: Realism, rng: np.random.Generator) -> Motion:
    """The heart is somewhere else in its beat in every cine, and the patient breathes or does not."""
    deep = rng.random() < realism.breath_share
    return Motion(
        heart_rate=motion.heart_rate * rng.uniform(0.95, 1.05),
        start=rng.uniform(0, 1),
        lvef=motion.lvef,
        breath=rng.uniform(*realism.breath) if deep else motion.breath,
        scale=motion.scale,
        strength=motion.strength,
        breath_phase=rng.uniform(0, 1),
    )


def _draw_injection(seconds: float, motion: Motion, realism: Realism, rng: np.random.Generator) -> Bolus:
    bolus = draw_bolus(seconds, rng)
    weak = rng.random() < realism.weak_injection_share
    return Bolus(
        start=bolus.start,
        duration=bolus.duration * (rng.uniform(0.5, 0.8) if weak else 1.0),
        speed=bolus.speed,
        peak=rng.uniform(*realism.weak_injection) if weak else rng.uniform(0.9, 1.0),
        pulse=rng.uniform(0.3, 0.6) if weak else rng.uniform(0.0, 0.15),
        heart_rate=motion.heart_rate,
    )


def _draw_panning(
    times: np.ndarray, camera: Camera, realism: Realism, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """[T] whole pixels to the right and down by which the table moves the picture, from one rest to another."""
    if rng.random() >= realism.panning_share:
        return np.zeros(len(times), int), np.zeros(len(times), int)
    distance, way = rng.uniform(*realism.panning) / camera.pixel, rng.uniform(0, 2 * np.pi)
    start, end = np.sort(rng.uniform(0.2, 1.0, 2)) * times[-1]
    share = np.clip((times - start) / max(end - start, 0.2), 0, 1)
    moved = distance * (0.5 - 0.5 * np.cos(np.pi * share) - 0.5)
    return np.rint(moved * np.cos(way)).astype(int), np.rint(moved * np.sin(way)).astype(int)


def _fine(discs: Discs, lumen: Lumen) -> Discs:
    """Put a disc between two neighbours wherever they are too far apart on the detector to make a line."""
    first = lumen.upstream
    gap = np.hypot(discs.x[:, : discs.lumen] - discs.x[:, first], discs.y[:, : discs.lumen] - discs.y[:, first])
    wide = np.flatnonzero(gap.max(axis=0) > np.maximum(1.0, 0.8 * discs.radius[:, : discs.lumen].mean(axis=0)))
    if not len(wide):
        return discs
    x, y, radius = (0.5 * (array[:, wide] + array[:, first[wide]]) for array in (discs.x, discs.y, discs.radius))
    whole = discs.height.copy()
    whole[:, wide] *= 0.5
    return Discs(
        np.concatenate([discs.x, x], axis=1),
        np.concatenate([discs.y, y], axis=1),
        np.concatenate([discs.radius, radius], axis=1),
        np.concatenate([whole, 0.5 * discs.height[:, wide]], axis=1),
        discs.lumen,
    )


def _reflux(
    lumen: Lumen, camera: Camera, motion: Motion, bolus: Bolus, times: np.ndarray, rng: np.random.Generator
) -> Discs:
    """Contrast that spills into the aortic root: soft clouds beside the ostium that come in beats."""
    count = 7
    ostium = motion.move(lumen.tree.heart, lumen.points[:1], times)
    into = lumen.points[0] - lumen.points[min(8, len(lumen.points) - 1)]
    into /= np.linalg.norm(into)
    place = into * rng.uniform(2, 10, (count, 1)) + rng.normal(0, 3.0, (count, 3)) + np.array([0, 0, 3.0])
    x, y, scale = camera.project(ostium + place)
    beat = 0.6 + 0.4 * np.cos(2 * np.pi * motion.heart_rate / 60 * times[:, None] + rng.uniform(0, 2 * np.pi, count))
    height = bolus.concentration(np.zeros(1), times) * beat * rng.uniform(0.15, 0.55, count)
    return Discs(x, y, rng.uniform(2.5, 6.0, count) * scale, height, 0)
