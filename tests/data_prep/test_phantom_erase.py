"""Pairs of phantoms with and without a lesion: they differ where the lesion is, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest

from data_prep.phantom.cines import take_cines
from data_prep.phantom.disease import BIFURCATIONS
from data_prep.phantom.erase import erase_lesion
from data_prep.phantom.preset import preset_named
from data_prep.phantom.study import draw_patient
from deepcoro.errors import UserError
from deepcoro.metrics.erasure import compare_erased
from deepcoro.metrics.findings import ratio
from deepcoro.reports.vocabulary import SEGMENTS

EASY, STANDARD = preset_named("easy"), preset_named("standard")


def patient_with(preset, wanted):
    """The first that is as wanted."""
    return next(patient for index in range(200) if wanted(patient := draw_patient(4, index, preset)))


@pytest.mark.parametrize("preset", [EASY, STANDARD], ids=["plain", "rich"])
def test_only_the_lesion_goes(preset):
    """With so many photons that noise is nothing, pictures differ in and near the boxes of the lesion alone."""
    if preset.realism is None:
        preset = replace(preset, photons=1e9)
    else:
        preset = replace(preset, realism=replace(preset.realism, photons=(1e6, 1e6)))

    def narrowed(patient):
        found = patient.findings
        return len(found) > 1 and any(f.stenosis in range(70, 90) for f in found) and not any(f.medina for f in found)

    patient = patient_with(preset, narrowed)
    segment = next(f.segment for f in patient.findings if f.stenosis in range(70, 90))
    full, erased = erase_lesion(patient, 4, segment)
    assert full.findings == patient.findings
    assert erased.findings == [f for f in patient.findings if f.segment != segment]
    in_view = np.ones((1, len(SEGMENTS)), bool)
    told = compare_erased([full.findings], [erased.findings], [segment], in_view)  # a reader who sees all
    assert (ratio(*told.erased_terms), ratio(*told.others_terms)) == (1, 0)
    assert (erased.lvef, erased.motion, erased.dominance) == (patient.lvef, patient.motion, patient.dominance)
    changed = False
    for one, other in zip(*(take_cines(p, 4, preset, 96, 20, 15.0) for p in (full, erased)), strict=True):
        assert (one.tree, one.fps, one.camera.primary) == (other.tree, other.fps, other.camera.primary)
        assert not any(box["segment"] == segment for box in other.boxes)
        different = np.abs(one.frames.astype(int) - other.frames) > 3
        boxes = [box for box in one.boxes if box["segment"] == segment]
        near = np.zeros(one.frames.shape, bool)
        for box in boxes:
            x0, x1 = (int(96 * box[side]) + step for side, step in (("x0", -6), ("x1", 7)))
            y0, y1 = (int(96 * box[side]) + step for side, step in (("y0", -6), ("y1", 7)))
            near[:, max(0, y0) : y1, max(0, x0) : x1] = True  # anywhere along the beat: a frame may have no box
        assert not (different & ~near).any()
        changed |= bool((different & near).any())
    assert changed


def test_contrast_comes_again_behind_an_occlusion():
    patient = patient_with(EASY, lambda p: any(f.occlusion != "none" for f in p.findings))
    segment = next(f.segment for f in patient.findings if f.occlusion != "none")
    full, erased = erase_lesion(patient, 4, segment)
    side = next(side for side in full.lumens if any(name == segment for name, _ in full.lumens[side].extents))
    assert not full.lumens[side].fill.all() and erased.lumens[side].fill.sum() > full.lumens[side].fill.sum()


def test_what_cannot_be_erased_is_refused():
    patient = patient_with(EASY, lambda p: len(p.findings) == 1)
    there = patient.findings[0].segment
    absent = "mid_rca" if there != "mid_rca" else "mid_lad"
    with pytest.raises(UserError, match=f"no lesion in '{absent}' to erase; it has: {there}"):
        erase_lesion(patient, 4, absent)
    split = patient_with(STANDARD, lambda p: any(f.medina for f in p.findings))
    first = next(f.segment for f in split.findings if f.medina)
    assert any(first in group for group in BIFURCATIONS)
    with pytest.raises(UserError, match="Medina class would be wrong"):
        erase_lesion(split, 4, first)
