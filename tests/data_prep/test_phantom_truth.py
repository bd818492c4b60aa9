"""Boxes and masks: they lie where the lesions and vessels are, and only while there is something to see."""

from dataclasses import replace

import numpy as np
import pytest

from data_prep.phantom.cines import take_cines
from data_prep.phantom.contrast import Bolus
from data_prep.phantom.findings import Lesion
from data_prep.phantom.heart import Motion
from data_prep.phantom.lumen import open_lumen
from data_prep.phantom.opacity import trace
from data_prep.phantom.preset import preset_named
from data_prep.phantom.projection import frame_tree
from data_prep.phantom.study import draw_patient
from data_prep.phantom.truth import MASKED, lesion_boxes, vessel_mask
from deepcoro.reports.grammar import Finding
from deepcoro.reports.vocabulary import SEGMENTS

EASY = preset_named("easy")
STANDARD = preset_named("standard")
FULL = Bolus(start=-100.0, duration=1000.0, speed=1e6)
STILL = Motion(heart_rate=60, start=0.0, lvef=60, breath=0.0, scale=0.0)
BEATING = Motion(heart_rate=60, start=0.0, lvef=60, breath=2.0)


def setting(*lesions, size=128):
    tree = draw_patient(0, 0, EASY).trees["right"]
    lumen = open_lumen(tree, lesions, np.random.default_rng(0))
    return lumen, frame_tree(tree.points, 30, 20, 128.0, size)


def middle(lumen, lesion):
    course = lumen.tree.course(lesion.finding.segment)
    return course[round(lesion.centre * (len(course) - 1))]


def inside(box, x, y, size):
    """Whether a place in pixels lies in a box; the centre of pixel 0 is half a pixel from the edge."""
    return box["x0"] < (x + 0.5) / size < box["x1"] and box["y0"] < (y + 0.5) / size < box["y1"]


@pytest.mark.parametrize(
    "finding",
    [
        Finding("mid_rca", stenosis=80),
        Finding("pda", stenosis=100, occlusion="total"),
        Finding("dist_rca", stent=True),
    ],
)
def test_a_box_holds_the_moving_lesion_in_every_frame(finding):
    lesion = Lesion(finding, 0.4, 0.4)
    lumen, camera = setting(lesion)
    times = np.arange(12) / 12
    discs = trace(lumen, camera, BEATING, FULL, times)
    boxes = lesion_boxes(lumen, discs, FULL.concentration(lumen.arc, times), camera.pixel, 128)
    assert [box["frame"] for box in boxes] == list(range(12))
    at = middle(lumen, lesion)
    x, y, _ = camera.project(BEATING.move(lumen.tree.heart, lumen.tree.points[[at]], times)[:, 0])
    assert np.ptp(x) + np.ptp(y) > 4  # it does move
    for box, column, row in zip(boxes, x, y):
        assert box["segment"] == finding.segment
        assert inside(box, column, row, 128)
        assert (box["x1"] - box["x0"]) * (box["y1"] - box["y0"]) < 0.12  # and is no larger than it has to be


def test_a_box_comes_with_the_contrast_and_goes_with_it():
    lesion = Lesion(Finding("dist_rca", stenosis=80), 0.5, 0.3)
    lumen, camera = setting(lesion)
    bolus = Bolus(start=0.2, duration=1.0, speed=150.0, washout=0.3)
    times = np.arange(0, 5, 0.05)
    discs = trace(lumen, camera, STILL, bolus, times)
    boxes = lesion_boxes(lumen, discs, bolus.concentration(lumen.arc, times), camera.pixel, 128)
    shown = times[[box["frame"] for box in boxes]]
    course = lumen.tree.course("dist_rca")
    first = course[int(0.35 * (len(course) - 1))]
    assert shown.min() == pytest.approx(0.2 + lumen.tree.arc[first] / 150, abs=0.2)
    assert 1.2 + lumen.tree.arc[first] / 150 < shown.max() < 4


def test_a_lesion_out_of_the_picture_has_no_box_and_one_at_its_edge_a_cut_one():
    lesion = Lesion(Finding("mid_rca", stenosis=80), 0.5, 0.4)
    lumen, camera = setting(lesion)
    discs = trace(lumen, camera, STILL, FULL, np.zeros(1))
    x = discs.x[0, middle(lumen, lesion)]
    arguments = (FULL.concentration(lumen.arc, np.zeros(1)), camera.pixel, 128)
    assert lesion_boxes(lumen, discs.shifted(np.array([500]), np.array([0])), *arguments) == []
    cut = lesion_boxes(lumen, discs.shifted(np.array([-x]), np.array([0])), *arguments)
    assert cut[0]["x0"] == 0
    assert 0 < cut[0]["x1"] < 0.2


def test_boxes_of_easy_cines_hold_the_projected_lesions():
    checked = 0
    for index in range(6):
        patient = draw_patient(2, index, EASY)
        for cine in take_cines(patient, 2, EASY, 48, 6, 5.0):
            for box in cine.boxes:
                lesion = next(le for le in patient.lesions[cine.tree] if le.finding.segment == box["segment"])
                tree = patient.trees[cine.tree]
                at = middle(patient.lumens[cine.tree], lesion)
                moved = patient.motion.move(tree.heart, tree.points[[at]], np.array([box["frame"] / 5.0]))[0, 0]
                x, y, _ = cine.camera.project(moved)
                assert inside(box, x, y, 48)
                checked += 1
    assert checked > 10


def test_boxes_of_standard_cines_hold_the_projected_lesions():
    still = replace(STANDARD, motion_scale=0.0, realism=replace(STANDARD.realism, panning_share=0.0))
    checked = 0
    for index in range(4):
        patient = draw_patient(3, index, still)
        for cine in take_cines(patient, 3, still, 48, 8, 5.0):
            for lesion in patient.lesions[cine.tree]:
                boxes = [box for box in cine.boxes if box["segment"] == lesion.finding.segment]
                at = middle(patient.lumens[cine.tree], lesion)
                x, y, _ = cine.camera.project(patient.lumens[cine.tree].points[at])
                assert all(inside(box, x, y, 48) for box in boxes)
                checked += len(boxes)
    assert checked > 20


def test_a_mask_is_where_contrast_is_and_names_the_segment():
    occlusion = Lesion(Finding("mid_rca", stenosis=100, occlusion="total"), 0.5, 0.3)
    lumen, camera = setting(occlusion)
    bolus = Bolus(start=0.5, duration=10.0, speed=1e4)
    times = np.array([0.0, 3.0])
    discs = trace(lumen, camera, STILL, bolus, times)
    mask = vessel_mask(lumen, discs, 128)
    assert mask.shape == (2, 128, 128)
    assert mask[0].max() == 0  # no contrast yet
    told = {SEGMENTS[k - 1] for k in np.unique(mask[1]) if k}
    assert told == {"prox_rca", "mid_rca"}  # nothing beyond the occlusion
    tree = lumen.tree
    course = tree.course("prox_rca")
    at = course[len(course) // 2]
    x, y, _ = camera.project(tree.points[at])
    row, column = round(float(y)), round(float(x))
    assert mask[1, row, column] == 1 + SEGMENTS.index("prox_rca")


def test_a_mask_is_as_wide_as_the_chord_is_thicker_than_its_threshold():
    lumen, camera = setting(size=512)
    tree = lumen.tree
    mask = vessel_mask(lumen, trace(lumen, camera, STILL, FULL, np.zeros(1)), 512)[0]
    course = tree.course("mid_rca")
    at = len(course) // 3
    (x, y), scale = np.array(camera.project(tree.points[course])[:2]), camera.project(tree.points[course])[2][at]
    along = np.array([x[at + 3] - x[at - 3], y[at + 3] - y[at - 3]])
    across = np.array([-along[1], along[0]]) / np.hypot(*along)
    steps = np.arange(-15, 15, 0.1)
    columns, rows = np.rint(x[at] + steps * across[0]).astype(int), np.rint(y[at] + steps * across[1]).astype(int)
    measured = (mask[rows, columns] == 1 + SEGMENTS.index("mid_rca")).sum() * 0.1
    radius = tree.radius[course[at]]
    expected = 2 * np.sqrt(radius**2 - (MASKED / 2) ** 2) * scale  # where the chord of the circle is that long
    assert expected > 12
    assert measured == pytest.approx(expected, abs=1.5)  # pixels


def test_masks_come_only_on_request():
    patient = draw_patient(0, 0, EASY)
    assert all(cine.mask is None for cine in take_cines(patient, 0, EASY, 48, 2, 5.0))
    for cine in take_cines(patient, 0, EASY, 48, 4, 5.0, masks=True):
        assert cine.mask.shape == cine.frames.shape
        assert cine.mask[-1].any()


@pytest.mark.parametrize("preset", ["standard", "hard"])
def test_every_finding_has_a_box_in_some_cine(preset):
    knobs = preset_named(preset)
    count = 0
    for index in range(6):
        patient = draw_patient(7, index, knobs)
        seen = {box["segment"] for cine in take_cines(patient, 7, knobs, 32, 12, 15.0) for box in cine.boxes}
        assert seen == {finding.segment for finding in patient.findings}
        count += len(seen)
    assert count >= 5
