"""Diseases of the rich phantoms, against what each of them is by definition."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from data_prep.phantom.contrast import Bolus
from data_prep.phantom.disease import BIFURCATIONS, draw_disease
from data_prep.phantom.findings import Lesion, extent
from data_prep.phantom.heart import Motion, draw_heart
from data_prep.phantom.lumen import GAP, PENETRATION, SLOW, open_lumen
from data_prep.phantom.opacity import contrast_path, move_solids
from data_prep.phantom.preset import preset_named
from data_prep.phantom.projection import frame_tree
from data_prep.phantom.realism import KINDS
from data_prep.phantom.variants import grow_variant
from deepcoro.reports.grammar import Finding, parse_report, render_report

STANDARD, HARD = preset_named("standard"), preset_named("hard")
FULL = Bolus(start=-100.0, duration=1000.0, speed=1e6)
STILL = Motion(heart_rate=60, start=0.0, lvef=60, breath=0.0, scale=0.0)


@cache
def tree(side="right", seed=0):
    rng = np.random.default_rng(seed)
    preset = replace(STANDARD, realism=replace(STANDARD.realism, missing_branch_share=0.0))
    return grow_variant(side, "right", draw_heart(rng, preset), rng, preset, preset.realism)


def opened(*lesions, side="right"):
    return open_lumen(tree(side), lesions, np.random.default_rng(0))


def only(kind, **knobs):
    return replace(STANDARD, lesion_share=1.0, realism=replace(STANDARD.realism, kinds={kind: 1.0}, **knobs))


def drawn(preset, count=40):
    """Lesions of `count` trees with disease of a preset, with the tree."""
    rng = np.random.default_rng(1)
    for number in range(count):
        grown = tree(("left", "right")[number % 2])
        yield grown, draw_disease(grown, rng, preset, preset.realism)


@pytest.mark.parametrize("kind", ["focal", "eccentric", "diffuse", "bifurcation", "stent"])
def test_the_diameter_at_a_lesion_is_the_reference_less_its_percent(kind):
    seen = 0
    for grown, lesions in drawn(only(kind, restenosis_share=1.0)):
        lumen = open_lumen(grown, lesions, np.random.default_rng(0))
        for lesion in lesions:
            course = grown.course(lesion.finding.segment)
            left = (lumen.radius[: len(grown.radius)] / grown.radius)[course].min()
            # Of a lesion of few points the middle may fall between two of them.
            assert left == pytest.approx(1 - lesion.finding.stenosis / 100, abs=0.01)
            seen += 1
    assert seen > 30


def test_a_wall_stays_in_its_place_beside_an_eccentric_plaque():
    lesion = Lesion(Finding("mid_rca", stenosis=60), 0.5, 0.5, "eccentric", side=1.0)
    grown, lumen = tree(), opened(lesion)
    at = extent(grown, lesion)[len(extent(grown, lesion)) // 2]
    shift = lumen.points[at] - grown.points[at]
    wide, narrow = grown.radius[at], lumen.radius[at]
    assert np.linalg.norm(shift) == pytest.approx(wide - narrow)
    along = grown.points[at + 1] - grown.points[at - 1]
    assert abs(shift @ along) < 0.02 * np.linalg.norm(along)
    towards = shift / np.linalg.norm(shift)
    np.testing.assert_allclose(lumen.points[at] + narrow * towards, grown.points[at] + wide * towards)
    untouched = np.setdiff1d(np.arange(len(grown.points)), grown.course("mid_rca"))
    np.testing.assert_array_equal(lumen.points[untouched], grown.points[untouched])


@pytest.mark.parametrize("preset", [STANDARD, HARD], ids=["standard", "hard"])
def test_findings_are_valid_one_a_segment_and_can_be_seen(preset):
    findings = []
    for grown, lesions in drawn(preset, 150):
        lumen = open_lumen(grown, lesions, np.random.default_rng(0))
        assert [lesion.finding.segment for lesion in lesions] == [segment for segment, _ in lumen.extents]
        for _, taken in lumen.extents:
            assert lumen.fill[taken[0]] == 1  # contrast comes undiluted
            assert lumen.arc[taken[0]] == grown.arc[taken[0]]  # and without delay
        of_tree = [lesion.finding for lesion in lesions]
        assert set(parse_report(render_report(of_tree)).findings) == set(of_tree)
        findings += of_tree
    percents = [f.stenosis for f in findings if f.stenosis is not None and f.stenosis < 100]
    low, high = preset.realism.percent
    assert low <= min(percents)
    assert max(percents) <= high
    assert all(percent % preset.realism.percent_step == 0 for percent in percents)
    for told in ("thrombus", "stent", "collaterals"):
        assert any(getattr(f, told) for f in findings), told
    assert {f.calcification for f in findings} == {None, "minimal", "moderate", "severe"}
    assert {f.occlusion for f in findings} == {"none", "total", "cto"}
    assert {f.timi for f in findings} >= {None, 0, 2, 3}
    assert not any(f.segment == "left_main" and f.occlusion != "none" for f in findings)
    assert set(preset.realism.kinds) <= set(KINDS)


def told(group, medina):
    """Segments of a bifurcation that a Medina class calls narrowed."""
    return {segment for segment, bit in zip(group, medina.split(",")) if bit == "1"}


def test_medina_says_where_a_bifurcation_is_narrowed_to_the_carina():
    seen = set()
    for grown, lesions in drawn(only("bifurcation", max_lesions=1)):
        if not lesions:
            continue
        medina = next(lesion.finding.medina for lesion in lesions if lesion.finding.medina)
        lumen = open_lumen(grown, lesions, np.random.default_rng(0))
        narrowed = {lesion.finding.segment: lesion.finding.stenosis for lesion in lesions}
        group = next(group for group in BIFURCATIONS if told(group, medina) == set(narrowed))
        assert sum(lesion.finding.medina is not None for lesion in lesions) == 1
        for number, (segment, bit) in enumerate(zip(group, medina.split(","))):
            at = grown.course(segment)[-1 if number == 0 else 0]
            left = lumen.radius[at] / grown.radius[at]
            if bit == "1":
                assert narrowed[segment] >= 50
                assert left == pytest.approx(1 - narrowed[segment] / 100)
            else:
                assert segment not in narrowed
                assert left == 1
        seen.add(medina)
    assert len(seen) >= 5


@pytest.mark.parametrize(("timi", "late"), [(3, 1.0), (2, SLOW)])
def test_contrast_takes_longer_behind_a_lesion_with_timi_2(timi, late):
    lesion = Lesion(Finding("prox_rca", stenosis=90, timi=timi), 0.5, 0.3)
    lumen, grown = opened(lesion), tree()
    end, far = int(extent(grown, lesion)[-1]), int(grown.course("dist_rca")[-1])
    times = np.arange(0, 6, 0.005)
    filled = Bolus(0.0, 100.0, speed=100.0, rise=0.01).concentration(lumen.arc[[end, far]], times) > 0.5
    arrival = times[filled.argmax(axis=0)]
    way = grown.arc[far] - grown.arc[end]
    assert arrival[1] - arrival[0] == pytest.approx(late * way / 100, abs=0.05)
    assert lumen.fill.all()


def test_contrast_stops_short_behind_a_lesion_with_timi_1():
    lesion = Lesion(Finding("prox_rca", stenosis=97, timi=1), 0.5, 0.3)
    lumen, grown = opened(lesion), tree()
    end = int(extent(grown, lesion)[-1])
    behind = grown.fed_through(end)
    beyond = grown.arc - grown.arc[end]
    assert lumen.fill[behind & (beyond < PENETRATION)].all()
    assert not lumen.fill[behind & (beyond > PENETRATION)].any()
    assert lumen.fill[~behind].all()


def test_behind_a_chronic_occlusion_collaterals_fill_late_and_faintly():
    grown = tree()
    cto = Lesion(Finding("prox_rca", stenosis=100, occlusion="cto", timi=0, collaterals=True), 0.4, 0.3)
    lumen = opened(cto)
    own = len(grown.points)
    course = grown.course("prox_rca")
    stop = course[int(np.ceil(0.4 * (len(course) - 1)))]
    beyond = grown.fed_through(int(stop))
    way = grown.arc - grown.arc[stop]
    assert not lumen.fill[:own][beyond & (way < GAP - 1)].any()
    filled = lumen.fill[:own][beyond & (way > GAP + 1)]
    assert np.all((filled > 0) & (filled < 0.6))
    assert np.all(lumen.arc[:own][beyond & (way > GAP)] > grown.arc[beyond & (way > GAP)])
    assert len(lumen.points) > own
    path = lumen.points[own:]
    assert np.linalg.norm(path[0] - grown.points[lumen.upstream[own]]) < 0.5  # it starts on a filled vessel
    assert np.linalg.norm(path[-1] - grown.points[:own][beyond & (way >= GAP)], axis=1).min() < 0.5
    assert not beyond[lumen.upstream[own]]


@pytest.mark.parametrize("kind", ["total", "cto"])
def test_without_collaterals_nothing_comes_beyond_an_occlusion(kind):
    lesion = Lesion(Finding("mid_rca", stenosis=100, occlusion=kind, timi=0, thrombus=kind == "total"), 0.4, 0.3)
    lumen = opened(lesion)
    beyond = tree().fed_through(int(tree().course("dist_rca")[0]))
    assert not lumen.fill[beyond].any()
    assert len(lumen.points) == len(tree().points)


def still_path(lumen, bolus=FULL):
    camera = frame_tree(tree().points, 35, 5, 128.0, 256)
    return camera, contrast_path(lumen, camera, STILL, bolus, np.zeros(1), catheter=False)[0]


def test_thrombus_holds_contrast_off_inside_the_lumen():
    plain = Lesion(Finding("mid_rca", stenosis=60), 0.3, 0.3)
    with_clot = Lesion(Finding("mid_rca", stenosis=60, thrombus=True), 0.3, 0.3)
    camera, without = still_path(opened(plain))
    _, held = still_path(opened(with_clot))
    missing = without - held
    assert held.min() >= 0
    assert missing.min() > -1e-4
    rows, columns = np.nonzero(missing > 0.2)
    x, y, scale = camera.project(tree().points[tree().course("mid_rca")])
    nearest = np.hypot(columns[:, None] - x, rows[:, None] - y).min(axis=1)
    assert nearest.max() < 2.5 * scale.mean()  # within the vessel
    assert missing.sum() / scale.mean() ** 2 > 5  # mm3


@pytest.mark.parametrize("thing", ["calcium", "stent"])
def test_calcium_and_stents_are_dense_before_contrast_and_move_with_the_wall(thing):
    finding = Finding("mid_rca", calcification="severe") if thing == "calcium" else Finding("mid_rca", stent=True)
    lesion = Lesion(finding, 0.5, 0.4)
    lumen, grown = opened(lesion), tree()
    taken = extent(grown, lesion)
    away = np.linalg.norm(lumen.solids.points[:, None] - grown.points[taken], axis=-1)
    nearest = taken[away.argmin(axis=1)]
    apart = away.min(axis=1) / grown.radius[nearest]
    assert apart.min() > 0.9
    assert apart.max() < (1.25 if thing == "calcium" else 1.1)
    never = Bolus(start=1e6, duration=1.0, speed=100.0)
    _, before = still_path(lumen, never)
    assert before.max() > 0.2
    motion = Motion(60, 0.0, 60, breath=0.0)
    moved = move_solids(lumen.solids, motion, grown.heart, np.array([0.35]))[0] - lumen.solids.points
    wall = motion.move(grown.heart, grown.points[nearest], np.array([0.35]))[0] - grown.points[nearest]
    assert np.linalg.norm(wall, axis=1).mean() > 3
    assert np.linalg.norm(moved - wall, axis=1).max() < 1.0


def test_more_calcium_is_more_to_see():
    amounts = []
    for grade in ("minimal", "moderate", "severe"):
        solids = opened(Lesion(Finding("mid_rca", calcification=grade), 0.5, 0.5)).solids
        amounts.append((np.pi * solids.radius**2 * solids.height).sum())
    assert amounts[0] * 1.5 < amounts[1]
    assert amounts[1] * 1.5 < amounts[2]
