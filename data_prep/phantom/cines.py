"""The cines of a phantom patient: plain ones here, rich ones in `acquisition.py`."""

from collections.abc import Iterator

import numpy as np

from data_prep.phantom.acquisition import take_rich_cines
from data_prep.phantom.background import chest, collimator
from data_prep.phantom.contrast import draw_bolus
from data_prep.phantom.opacity import draw, trace
from data_prep.phantom.preset import Preset
from data_prep.phantom.projection import frame_tree, view_angles
from data_prep.phantom.render import expose
from data_prep.phantom.study import TREES, Cine, Patient
from data_prep.phantom.truth import lesion_boxes, vessel_mask


def take_cines(
    patient: Patient, seed: int, preset: Preset, size: int, num_frames: int, fps: float, masks: bool = False
) -> Iterator[Cine]:
    """Take a patient's cines, the left tree first; each has its own random numbers.

    A plain phantom has every view of the preset, `num_frames` at `fps`. A rich one has views, frame rates and all else
    as `acquisition.py` draws them; its cines last as long as `num_frames` at `fps` do.
    """
    if preset.realism is not None:
        yield from take_rich_cines(patient, seed, preset, preset.realism, size, num_frames / fps, masks)
        return
    times = np.arange(num_frames) / fps
    number = 0
    for side in TREES:
        for view in preset.views[side]:
            number += 1
            rng = np.random.default_rng([seed, patient.index, number])
            tree, lumen = patient.trees[side], patient.lumens[side]
            angles = np.array(view_angles(view)) + preset.angle_jitter * rng.standard_normal(2)
            primary, secondary = np.round(angles, 1).tolist()
            camera = frame_tree(tree.points, primary, secondary, preset.field_of_view, size)
            background = chest(camera, tree.heart, rng, preset)
            bolus = draw_bolus(num_frames / fps, rng)
            discs = trace(lumen, camera, patient.motion, bolus, times)
            photons = preset.photons * (128 / size) ** 2
            opening = collimator(size, rng)
            frames = expose(background, draw(discs, size), opening, preset.attenuation, photons, rng)
            boxes = lesion_boxes(lumen, discs, bolus.concentration(lumen.arc, times), camera.pixel, size)
            yield Cine(side, camera, frames, fps, boxes, vessel_mask(lumen, discs, size) if masks else None)
