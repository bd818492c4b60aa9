"""The diseases of the rich phantoms: what a tree has, drawn so that everything that is reported can be seen.

A finding speaks of one segment, so a segment has one lesion. A bifurcation lesion is up to three: in the main vessel
before and after the branch and at the branch's mouth, and its Medina class (1 where each is narrowed) stands with the
first of them.
"""

from dataclasses import replace

import numpy as np

from data_prep.phantom.anatomy import CoronaryTree
from data_prep.phantom.findings import PLATEAU, Lesion, extent, narrow
from data_prep.phantom.preset import Preset
from data_prep.phantom.realism import Realism
from deepcoro.reports.grammar import Finding

TRIES = 8  # a lesion that would not be seen is drawn again this often
BIFURCATIONS = (
    ("left_main", "prox_lad", "prox_lcx"),
    ("prox_lad", "mid_lad", "d1"),
    ("mid_lad", "dist_lad", "d2"),
    ("prox_lcx", "mid_lcx", "om1"),
    ("mid_lcx", "dist_lcx", "om2"),
    ("dist_rca", "pda", "posterolateral"),
)
MEDINA = ("1,1,1", "1,1,0", "1,0,1", "0,1,1", "1,0,0", "0,1,0", "0,0,1")
CALCIUM = ("minimal", "moderate", "severe")


def draw_disease(tree: CoronaryTree, rng: np.random.Generator, preset: Preset, realism: Realism) -> tuple[Lesion, ...]:
    """Draw the lesions of a tree, in the order of its segments."""
    if rng.random() >= preset.lesion_share:
        return ()
    wanted = 1
    while wanted < realism.max_lesions and rng.random() < realism.more_lesions_share:
        wanted += 1
    lesions: list[Lesion] = []
    for _ in range(wanted):
        for _ in range(TRIES):
            drawn = _draw(tree, lesions, rng, preset, realism)
            if drawn and all_visible(tree, [*lesions, *drawn]):
                lesions += drawn
                break
    return tuple(sorted(lesions, key=lambda lesion: tree.names.index(lesion.finding.segment)))


def all_visible(tree: CoronaryTree, lesions: list[Lesion]) -> bool:
    """Whether contrast comes to every lesion, and comes in time: none lies behind an occlusion or slow flow."""
    _, reached = narrow(tree, lesions)
    for lesion in lesions:
        if lesion.finding.timi in (1, 2):
            behind = tree.fed_through(int(extent(tree, lesion)[-1]))
            behind[extent(tree, lesion)[-1]] = False
            reached &= ~behind
    return all(reached[extent(tree, lesion)[0]] for lesion in lesions)


def _draw(
    tree: CoronaryTree, lesions: list[Lesion], rng: np.random.Generator, preset: Preset, realism: Realism
) -> list[Lesion]:
    taken = {lesion.finding.segment for lesion in lesions}
    kind = list(realism.kinds)[_weighted(list(realism.kinds.values()), rng)]
    if kind == "bifurcation":
        return _draw_bifurcation(tree, taken, rng, realism)
    free = {
        name: frequency
        for name, frequency in preset.segments[tree.side].items()
        if name in tree.names and name not in taken and not (kind in ("total", "cto") and name == "left_main")
    }
    if not free:
        return []
    segment = list(free)[_weighted(list(free.values()), rng)]
    side = rng.uniform(0, 2 * np.pi)
    calcified = rng.choice(CALCIUM) if rng.random() < realism.calcification_share else None
    calcification = None if calcified is None else str(calcified)
    if kind in ("total", "cto"):
        chronic = kind == "cto"
        finding = Finding(
            segment,
            stenosis=100,
            occlusion=kind,
            timi=0,
            calcification=calcification,
            thrombus=not chronic and rng.random() < min(1.0, 3 * realism.thrombus_share),
            collaterals=chronic and rng.random() < realism.collaterals_share,
        )
        return [Lesion(finding, rng.uniform(0.3, 0.5), 0.3, side=side)]
    if kind == "calcium":
        finding = Finding(segment, calcification=str(rng.choice(CALCIUM)))
        return [_place(tree, Lesion(finding, 0.5, 0.0, side=side), rng.uniform(*realism.diffuse_length), rng)]
    if kind == "stent":
        percent = draw_percent(rng, realism) if rng.random() < realism.restenosis_share else None
        finding = Finding(segment, stenosis=percent, stent=True, in_stent_restenosis=percent)
        return [_place(tree, Lesion(finding, 0.5, 0.0, side=side), rng.uniform(*realism.stent_length), rng)]
    percent = draw_percent(rng, realism)
    finding = Finding(
        segment,
        stenosis=percent,
        timi=_draw_flow(percent, rng, realism),
        calcification=calcification,
        thrombus=kind == "focal" and percent >= 50 and rng.random() < realism.thrombus_share,
    )
    shape = "concentric" if kind == "focal" else kind
    length = realism.diffuse_length if kind == "diffuse" else realism.focal_length
    return [_place(tree, Lesion(finding, 0.5, 0.0, shape, side), rng.uniform(*length), rng)]


def _draw_bifurcation(tree: CoronaryTree, taken: set[str], rng: np.random.Generator, realism: Realism) -> list[Lesion]:
    there = [group for group in BIFURCATIONS if set(group) <= set(tree.names) and not set(group) & taken]
    if not there:
        return []
    group = there[rng.integers(len(there))]
    medina = str(rng.choice(MEDINA))
    lesions = []
    for number, (segment, narrowed) in enumerate(zip(group, medina.split(","), strict=True)):
        if narrowed == "0":
            continue
        percent = max(50, draw_percent(rng, realism))  # a Medina class counts narrowings of half the diameter
        course = tree.arc[tree.course(segment)]
        length = float(np.clip(rng.uniform(*realism.focal_length) / (course[-1] - course[0]), 0.1, 0.8))
        inside = length * PLATEAU / 2  # the full percent reaches the carina
        lesions.append(Lesion(Finding(segment, stenosis=percent), 1 - inside if number == 0 else inside, length))
    lesions[0] = replace(lesions[0], finding=replace(lesions[0].finding, medina=medina))
    return lesions


def draw_percent(rng: np.random.Generator, realism: Realism) -> int:
    """Draw a stenosis below 100 percent."""
    low, high = realism.percent
    step = realism.percent_step
    return int(np.clip(step * round(rng.uniform(low, high) / step), max(1, low), min(99, high)))


def _draw_flow(percent: int, rng: np.random.Generator, realism: Realism) -> int | None:
    if percent < 90:
        return None
    if rng.random() >= realism.slow_flow_share:
        return 3
    return 1 if percent >= 95 and rng.random() < 0.4 else 2


def _place(tree: CoronaryTree, lesion: Lesion, length: float, rng: np.random.Generator) -> Lesion:
    """Put a lesion of `length` mm somewhere into its segment, of which it takes nine tenths at most."""
    course = tree.arc[tree.course(lesion.finding.segment)]
    share = float(np.clip(length / (course[-1] - course[0]), 0.05, 0.9))
    return replace(lesion, centre=rng.uniform(share / 2, 1 - share / 2), length=share)


def _weighted(weights: list[float], rng: np.random.Generator) -> int:
    return int(rng.choice(len(weights), p=np.array(weights) / sum(weights)))
