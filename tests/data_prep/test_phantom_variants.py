"""Anatomy of the rich phantoms: who supplies which wall, how hearts differ, and that the ejection fraction is true."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from data_prep.phantom.heart import CAVITY, Motion, contraction_for, draw_heart
from data_prep.phantom.preset import preset_named
from data_prep.phantom.study import draw_patient
from data_prep.phantom.variants import OPTIONAL, draw_dominance, grow_variant
from deepcoro.reports.vocabulary import SEGMENTS, segments_of_tree

STANDARD, HARD = preset_named("standard"), preset_named("hard")


def grow(side, dominance, seed=0, preset=STANDARD):
    rng = np.random.default_rng(seed)
    return grow_variant(side, dominance, draw_heart(rng, preset), rng, preset, preset.realism)


@pytest.mark.parametrize("dominance", ["right", "left", "balanced"])
@pytest.mark.parametrize("preset", [STANDARD, HARD], ids=["standard", "hard"])
def test_each_tree_has_the_segments_that_its_dominance_gives_it(dominance, preset):
    for seed in range(3):
        left, right = grow("left", dominance, seed, preset), grow("right", dominance, seed, preset)
        assert set(left.names) <= set(segments_of_tree("left", dominance))
        assert set(right.names) <= set(segments_of_tree("right", dominance))
        assert {"prox_rca", "mid_rca", "dist_rca"} <= set(right.names)
        assert {"pda", "posterolateral"} <= set(left.names) | set(right.names)


@pytest.mark.parametrize(
    ("dominance", "side", "source"),
    [("right", "right", "dist_rca"), ("balanced", "right", "dist_rca"), ("left", "left", "dist_lcx")],
)
def test_the_inferior_groove_is_fed_by_the_dominant_artery(dominance, side, source):
    tree = grow(side, dominance)
    fed = tree.fed_through(int(tree.course(source)[0]))
    pda = tree.course("pda")
    assert fed[pda].all()
    angles = [abs(tree.heart.to_place(point)[2]) for point in tree.points[pda[len(pda) // 2 :]]]
    assert min(angles) > 150  # degrees; the inferior groove lies at 180


def test_a_left_dominant_right_artery_is_small():
    small, usual = grow("right", "left"), grow("right", "right")
    end_small, end_usual = (tree.radius[tree.course("dist_rca")[-1]] for tree in (small, usual))
    assert end_small < 0.7 * end_usual
    assert small.arc[small.course("dist_rca")[-1]] < usual.arc[usual.course("dist_rca")[-1]]


def test_all_18_segments_occur_and_branches_come_and_go():
    trees = [grow(side, d, seed) for seed in range(12) for side in ("left", "right") for d in ("right", "left")]
    assert {name for tree in trees for name in tree.names} == set(SEGMENTS)
    left = [tree for tree in trees if tree.side == "left"]
    for name in (*OPTIONAL, "bx"):
        assert 0 < sum(name in tree.names for tree in left) < len(left), name


def test_dominance_is_as_frequent_as_the_preset_says():
    rng = np.random.default_rng(0)
    drawn = [draw_dominance(rng, STANDARD.realism) for _ in range(4000)]
    for name, share in STANDARD.realism.dominance.items():
        assert drawn.count(name) / 4000 == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("dominance", ["right", "left", "balanced"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_twigs_are_connected_thin_and_without_a_name(side, dominance):
    tree = grow(side, dominance, seed=2, preset=HARD)
    gap = np.linalg.norm(tree.points - tree.points[tree.upstream], axis=1)
    assert gap.max() < 0.61
    assert np.all(tree.upstream[1:] < np.arange(1, len(gap)))
    assert tree.unnamed.any()
    assert tree.radius[tree.unnamed].max() < tree.radius[~tree.unnamed].max() * 0.6


def test_more_tortuous_vessels_are_longer_between_the_same_ends():
    def winding(tortuosity):
        preset = replace(STANDARD, realism=replace(STANDARD.realism, tortuosity=tortuosity, twigs=0.0))
        share = []
        for seed in range(6):
            tree = grow("right", "right", seed, preset)
            course = tree.course("pda")
            ends = tree.points[course[-1]] - tree.points[course[0]]
            share.append((tree.arc[course[-1]] - tree.arc[course[0]]) / np.linalg.norm(ends))
        return np.mean(share)

    assert winding(4.0) > winding(0.0) + 0.02


@pytest.mark.parametrize("lvef", [25, 40, 55, 70])
def test_the_ejection_fraction_is_the_loss_of_volume(lvef):
    """The surface of the moved heart, measured by its convex hull: what it loses has left the cavity."""
    heart = draw_heart(np.random.default_rng(lvef), STANDARD)
    motion = Motion(60, 0.0, lvef, breath=0.0, strength=contraction_for(lvef, heart))
    depth, angle = np.meshgrid(np.linspace(0, 0.995, 60), np.arange(0, 360, 6.0))
    surface = heart.to_patient(np.stack([depth.ravel(), np.ones(depth.size), angle.ravel()], axis=1))
    diastole, systole = (ConvexHull(points).volume for points in motion.move(heart, surface, np.array([0.0, 0.35])))
    assert (diastole - systole) / (CAVITY * diastole) == pytest.approx(lvef / 100, abs=0.015)


def test_every_patient_moves_by_the_ejection_fraction_of_the_table():
    moved = []
    for index in range(12):
        patient = draw_patient(5, index, STANDARD)
        tree = patient.trees["left"]
        beat = replace(patient.motion, start=0.0, breath=0.0)
        rest, systole = beat.move(tree.heart, tree.points, np.array([0.0, 0.35 * 60 / beat.heart_rate]))
        moved.append((patient.lvef, np.linalg.norm(systole - rest, axis=1).mean()))
    lvef, distance = np.array(moved).T
    assert np.corrcoef(lvef, distance)[0, 1] > 0.95
