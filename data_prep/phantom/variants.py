"""How hearts differ: who supplies the inferior wall, which branches there are and how large, and twigs without a name.

right-dominant   RCA -> PDA and posterolateral
balanced         RCA -> PDA; LCX -> posterolateral
left-dominant    a small RCA; LCX -> LVP, posterolateral and PDA
"""

from dataclasses import replace

import numpy as np

from data_prep.phantom.anatomy import (
    LEFT_VESSELS,
    RAMUS,
    RIGHT_VESSELS,
    CoronaryTree,
    Vessel,
    lay_vessels,
    with_vessel,
)
from data_prep.phantom.heart import Heart
from data_prep.phantom.preset import Preset
from data_prep.phantom.realism import Realism

OPTIONAL = ("d1", "d2", "om1", "om2")
LCX_PARTS = (("prox_lcx", 0.30), ("mid_lcx", 0.55), ("dist_lcx", 1.0))
LONG_LCX = Vessel(
    LCX_PARTS,
    ("left_main", 1.0),
    ((-0.03, 1.08, 45), (0.01, 1.07, 72), (0.0, 1.06, 105), (0.02, 1.05, 142), (0.0, 1.05, 170)),
    (2.0, 1.3),
)
BALANCED_LCX = replace(LONG_LCX, course=LONG_LCX.course[:-1] + ((0.02, 1.05, 158),), radii=(1.85, 1.1))
LVP = Vessel((("lvp", 1.0),), ("dist_lcx", 0.45), ((0.15, 1.05, 136), (0.38, 1.04, 142), (0.62, 1.03, 146)), (1.0, 0.6))
LEFT_POSTEROLATERAL = Vessel(
    (("posterolateral", 1.0),), ("dist_lcx", 0.8), ((0.16, 1.06, 158), (0.36, 1.04, 162), (0.60, 1.03, 165)), (1.1, 0.7)
)
LEFT_PDA = Vessel(
    (("pda", 1.0),), ("dist_lcx", 1.0), ((0.2, 1.05, 178), (0.45, 1.04, 181), (0.78, 1.04, 183)), (1.2, 0.7)
)
SMALL_RCA = Vessel(
    (("prox_rca", 0.36), ("mid_rca", 0.72), ("dist_rca", 1.0)),
    None,
    ((-0.13, 0.50, -42), (-0.10, 0.80, -48), (0.0, 1.08, -62), (0.06, 1.12, -95), (0.05, 1.10, -130)),
    (1.5, 0.7),
)


def draw_dominance(rng: np.random.Generator, realism: Realism) -> str:
    """Draw right, left or balanced."""
    weights = np.array(list(realism.dominance.values()), dtype=float)
    return list(realism.dominance)[rng.choice(len(weights), p=weights / weights.sum())]


def grow_variant(
    side: str, dominance: str, heart: Heart, rng: np.random.Generator, preset: Preset, realism: Realism
) -> CoronaryTree:
    """Grow one patient's tree with its own branches; `side` is left or right, `dominance` right, left or balanced."""
    chosen = _left(dominance, rng, preset, realism) if side == "left" else _right(dominance)
    sized = []
    for vessel in chosen:
        spread = realism.branch_size * (0.4 if len(vessel.segments) > 1 else 1.0)  # the great vessels vary less
        size = float(np.exp(spread * rng.standard_normal()))
        sized.append(replace(vessel, radii=(size * vessel.radii[0], size * vessel.radii[1])))
    tree = lay_vessels(side, heart, sized, rng, preset)
    for twig in _draw_twigs(tree, rng, realism):
        tree = with_vessel(tree, twig, rng, preset)
    return tree


def _left(dominance: str, rng: np.random.Generator, preset: Preset, realism: Realism) -> list[Vessel]:
    missing = {name for name in OPTIONAL if rng.random() < realism.missing_branch_share}
    vessels = [vessel for vessel in LEFT_VESSELS if vessel.segments[0][0] not in missing]
    if dominance != "right":
        lcx = LONG_LCX if dominance == "left" else BALANCED_LCX
        vessels = [lcx if vessel.segments[0][0] == "prox_lcx" else vessel for vessel in vessels]
    if rng.random() < preset.ramus_share:
        vessels.append(RAMUS)
    if dominance == "left" or rng.random() < realism.lvp_share:
        vessels.append(LVP)
    if dominance != "right":
        vessels.append(LEFT_POSTEROLATERAL)
    if dominance == "left":
        vessels.append(LEFT_PDA)
    return vessels


def _right(dominance: str) -> list[Vessel]:
    if dominance == "left":
        thinner = [replace(v, radii=(0.7 * v.radii[0], v.radii[1])) for v in RIGHT_VESSELS if v.unnamed]
        return [SMALL_RCA, *thinner]
    gone = "posterolateral" if dominance == "balanced" else ""
    return [vessel for vessel in RIGHT_VESSELS if vessel.segments[0][0] != gone]


def _draw_twigs(tree: CoronaryTree, rng: np.random.Generator, realism: Realism) -> list[Vessel]:
    """Draw thin side branches that leave a named segment at an angle and run 10 to 40 mm over the heart."""
    twigs = []
    for name in tree.names:
        course = tree.course(name)
        length = tree.arc[course[-1]] - tree.arc[course[0]]
        if name == "left_main" or len(course) < 20:
            continue
        for _ in range(rng.poisson(realism.twigs * length / 40)):
            share = rng.uniform(0.15, 0.9)
            at = course[int(share * (len(course) - 1))]
            radius = tree.radius[at] * rng.uniform(0.25, 0.5)
            twigs.append(_twig(tree, name, share, course, float(radius), rng))
    return twigs


def _twig(
    tree: CoronaryTree, name: str, share: float, course: np.ndarray, radius: float, rng: np.random.Generator
) -> Vessel:
    index = min(int(share * len(course)), len(course) - 6)
    here, ahead = (tree.heart.to_place(tree.points[course[index + step]]) for step in (0, 5))
    # Directions on the heart's surface as (towards the apex, around), both in mm.
    around = tree.heart.radius * max(np.sqrt(1 - min(abs(here[0]), 0.95) ** 2), 0.4)
    turned = np.deg2rad((ahead[2] - here[2] + 180) % 360 - 180)
    heading = np.arctan2(turned * around, (ahead[0] - here[0]) * tree.heart.length)
    heading += np.deg2rad(rng.choice([-1, 1]) * rng.uniform(30, 70))
    bend = np.deg2rad(rng.normal(0, 25))
    length = rng.uniform(10, 40)
    depth, _, angle = here
    places = []
    for number in range(1, 4):
        depth = float(np.clip(depth + length / 3 * np.cos(heading) / tree.heart.length, -0.3, 0.97))
        angle += float(np.rad2deg(length / 3 * np.sin(heading) / around))
        heading += bend
        places.append((depth, float(here[1] + (1.04 - here[1]) * number / 3), angle))
    return Vessel(((name, 1.0),), (name, share), tuple(places), (radius / 1.05, 0.18), unnamed=True)
