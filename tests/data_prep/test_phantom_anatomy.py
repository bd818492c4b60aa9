"""Phantom trees, their diseases and their motion, against geometry worked out by hand."""

import numpy as np
import pytest

from data_prep.phantom.anatomy import CoronaryTree, grow_tree
from data_prep.phantom.contrast import Bolus
from data_prep.phantom.findings import Lesion, draw_lesions, narrow
from data_prep.phantom.heart import Motion, draw_heart
from data_prep.phantom.preset import preset_named
from data_prep.phantom.study import draw_patient
from deepcoro.errors import UserError
from deepcoro.reports.grammar import Finding
from deepcoro.reports.vocabulary import segments_of_tree

EASY = preset_named("easy")
LEFT_ONLY = {
    "left_main",
    "prox_lad",
    "mid_lad",
    "dist_lad",
    "d1",
    "d2",
    "prox_lcx",
    "mid_lcx",
    "dist_lcx",
    "om1",
    "om2",
}
RIGHT_ONLY = {"prox_rca", "mid_rca", "dist_rca", "pda", "posterolateral"}


def tree(side: str, seed: int = 0) -> CoronaryTree:
    rng = np.random.default_rng(seed)
    return grow_tree(side, draw_heart(rng, EASY), rng, EASY)


@pytest.mark.parametrize("seed", range(4))
def test_each_tree_names_its_own_segments(seed):
    assert set(tree("left", seed).names) - {"bx"} == LEFT_ONLY
    assert set(tree("right", seed).names) == RIGHT_ONLY
    for side in ("left", "right"):
        assert set(tree(side, seed).names) <= set(segments_of_tree(side, "right"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_vessels_are_connected_and_arc_is_the_way_travelled(side):
    grown = tree(side)
    gap = np.linalg.norm(grown.points - grown.points[grown.upstream], axis=1)
    assert gap.max() < 0.61
    assert np.all(grown.upstream[1:] < np.arange(1, len(gap)))
    way = np.zeros(len(gap))
    for i in range(1, len(gap)):
        way[i] = way[grown.upstream[i]] + gap[i]
    np.testing.assert_allclose(grown.arc, way, rtol=0.02, atol=0.1)


def test_patients_differ_and_are_repeated_by_their_seed():
    one, again, other = draw_patient(3, 5, EASY), draw_patient(3, 5, EASY), draw_patient(3, 6, EASY)
    np.testing.assert_array_equal(one.trees["left"].points, again.trees["left"].points)
    assert one.lesions == again.lesions
    assert not np.array_equal(one.trees["right"].points[:50], other.trees["right"].points[:50])


@pytest.mark.parametrize(
    ("side", "segment", "gone", "kept"),
    [
        ("left", "prox_lad", {"mid_lad", "dist_lad", "d1", "d2"}, {"left_main", "prox_lcx", "dist_lcx", "om1", "om2"}),
        ("left", "prox_lcx", {"mid_lcx", "dist_lcx", "om1", "om2"}, {"left_main", "prox_lad", "dist_lad", "d1"}),
        ("left", "mid_lad", {"dist_lad", "d2"}, {"prox_lad", "d1", "om1"}),
        ("right", "mid_rca", {"dist_rca", "pda", "posterolateral"}, {"prox_rca"}),
        ("right", "pda", set(), {"dist_rca", "posterolateral"}),
    ],
)
@pytest.mark.parametrize("kind", ["total", "cto"])
def test_nothing_fills_beyond_an_occlusion(side, segment, gone, kept, kind):
    grown = tree(side)
    lesion = Lesion(Finding(segment=segment, stenosis=100, occlusion=kind), centre=0.4, length=0.5)
    _, reached = narrow(grown, [lesion])
    for name in gone:
        assert not reached[grown.course(name)].any(), name
    for name in kept:
        assert reached[grown.course(name)].all(), name
    assert reached[grown.course(segment)].mean() == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize("percent", [30, 70, 90])
def test_stenosis_takes_its_percent_of_the_diameter_there_and_nowhere_else(percent):
    grown = tree("right")
    radius, reached = narrow(grown, [Lesion(Finding(segment="mid_rca", stenosis=percent), centre=0.5, length=0.6)])
    left = radius / grown.radius
    course = grown.course("mid_rca")
    assert reached.all()
    assert left[course].min() == pytest.approx(1 - percent / 100)
    assert left[course[len(course) // 2]] == pytest.approx(1 - percent / 100)
    outside = np.ones(len(left), bool)
    outside[course[int(0.19 * len(course)) : int(0.81 * len(course)) + 1]] = False
    np.testing.assert_allclose(left[outside], 1, atol=1e-3)


def test_reported_lesions_can_be_seen_and_are_as_frequent_as_the_preset_says():
    left, right = tree("left"), tree("right")
    rng = np.random.default_rng(0)
    drawn = [draw_lesions(t, rng, EASY) for t in [left, right] * 600]
    counts = np.array([len(lesions) for lesions in drawn])
    findings = [lesion.finding for lesions in drawn for lesion in lesions]
    assert 0.55 < (counts > 0).mean() < 0.65
    assert counts.max() == 2
    assert 0.65 < np.mean([f.occlusion != "none" for f in findings]) < 0.75
    assert {f.stenosis for f in findings} == {70, 80, 90, 100}
    downstream = {"prox_lad": {"mid_lad", "d1"}, "prox_lcx": {"om1"}, "prox_rca": RIGHT_ONLY, "mid_rca": RIGHT_ONLY}
    for lesions in drawn:
        if len(lesions) == 2 and lesions[0].finding.occlusion != "none":
            assert lesions[1].finding.segment not in downstream.get(lesions[0].finding.segment, set())


def test_contrast_arrives_later_further_away():
    bolus = Bolus(start=0.1, duration=5.0, speed=100.0)
    times = np.arange(0, 3, 0.01)
    filled = bolus.concentration(np.array([0.0, 50.0, 150.0]), times)
    arrival = times[(filled > 0.01).argmax(axis=0)]
    np.testing.assert_allclose(arrival, [0.1, 0.6, 1.6], atol=0.03)
    assert filled.min() >= 0
    assert filled.max() <= 1
    assert filled[-1].min() > 0.9


def test_contrast_washes_out():
    bolus = Bolus(start=0.0, duration=1.0, speed=100.0, washout=0.5)
    full, later = bolus.concentration(np.zeros(1), np.array([1.0, 1.5]))[:, 0]
    assert later / full == pytest.approx(np.exp(-1), rel=0.01)


def test_a_better_heart_moves_more_and_one_beat_returns_it():
    grown = tree("right")
    moves = {}
    for lvef in (30, 60):
        motion = Motion(heart_rate=60, start=0.0, lvef=lvef, breath=0.0)
        rest, systole, next_rest = motion.move(grown.heart, grown.points, np.array([0.0, 0.35, 1.0]))
        np.testing.assert_allclose(rest, grown.points, atol=1e-9)
        np.testing.assert_allclose(next_rest, grown.points, atol=1e-9)
        moves[lvef] = np.linalg.norm(systole - rest, axis=1).mean()
    assert moves[60] == pytest.approx(2 * moves[30], rel=0.1)
    assert 4 < moves[60] < 20


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(UserError, match="easy"):
        preset_named("esay")
