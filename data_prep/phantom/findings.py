"""Which lesions a patient has, and what they do to the lumen.

A stenosis narrows the diameter by its percent over a plateau, with smooth shoulders. Through an occlusion nothing
passes: an acute one ends bluntly, a chronic one (CTO) in a tapered stump. The lesions of the plain phantom are drawn
here, those of the rich ones in `disease.py`.

Shape letters: P points of a tree.
"""

from dataclasses import dataclass

import numpy as np

from data_prep.phantom.anatomy import CoronaryTree
from data_prep.phantom.preset import Preset
from deepcoro.reports.grammar import Finding

PLATEAU = 0.4  # share of a stenosis that has its full percent
STUMP = 14.0  # mm over which the stump of a chronic occlusion tapers
STUMP_SHOWN = 8.0  # mm of open vessel before an occlusion that count as the place of it


@dataclass(frozen=True)
class Lesion:
    """A finding with its place."""

    finding: Finding
    centre: float
    """Of a stenosis its middle, of an occlusion its start: share of the segment's length, in [0, 1]."""
    length: float
    """Of a stenosis, stent or calcified part, as a share of the segment's length; not used by an occlusion."""
    shape: str = "concentric"
    """Of a stenosis: concentric, eccentric (one wall stays in its place) or diffuse (uneven over its length)."""
    side: float = 0.0
    """Around the vessel, radians: where an eccentric plaque or calcium sits."""


def draw_lesions(tree: CoronaryTree, rng: np.random.Generator, preset: Preset) -> tuple[Lesion, ...]:
    """Draw the lesions of a tree: none, one or two, in the order of the tree's segments.

    No lesion lies where an occlusion keeps the contrast away: everything that is reported can be seen.
    """
    if rng.random() >= preset.lesion_share:
        return ()
    wanted = 1 + (rng.random() < preset.second_lesion_share)
    frequency = {name: f for name, f in preset.segments[tree.side].items() if name in tree.names}
    lesions: list[Lesion] = []
    while len(lesions) < wanted and frequency:
        weights = np.array(list(frequency.values()))
        name = list(frequency)[rng.choice(len(weights), p=weights / weights.sum())]
        del frequency[name]  # each segment is tried once
        lesion = _draw_lesion(name, rng, preset)
        if _all_visible(tree, [*lesions, lesion]):
            lesions.append(lesion)
    return tuple(sorted(lesions, key=lambda lesion: tree.names.index(lesion.finding.segment)))


def _draw_lesion(segment: str, rng: np.random.Generator, preset: Preset) -> Lesion:
    length = rng.uniform(*preset.lesion_length)
    if segment != "left_main" and rng.random() < preset.occlusion_share:
        kind = "cto" if rng.random() < preset.cto_share else "total"
        return Lesion(Finding(segment=segment, stenosis=100, occlusion=kind), rng.uniform(0.25, 0.5), length)
    percent = int(rng.choice(preset.percents))
    return Lesion(Finding(segment=segment, stenosis=percent), rng.uniform(0.42, 0.58), length)


def _all_visible(tree: CoronaryTree, lesions: list[Lesion]) -> bool:
    _, open_ = narrow(tree, lesions)
    return all(open_[tree.course(lesion.finding.segment)[0]] for lesion in lesions)


def narrow(tree: CoronaryTree, lesions: tuple[Lesion, ...] | list[Lesion]) -> tuple[np.ndarray, np.ndarray]:
    """Return the tree's lumen with these lesions: radius [P] in mm, and [P] True where contrast comes."""
    radius = tree.radius.copy()
    reached = np.ones(len(radius), dtype=bool)
    for lesion in lesions:
        course = tree.course(lesion.finding.segment)
        arc = tree.arc[course]
        length = arc[-1] - arc[0]
        place = arc[0] + lesion.centre * length
        if lesion.finding.occlusion == "none":
            depth = _shoulders((arc - place) / (lesion.length * length / 2))
            if lesion.shape == "diffuse":  # uneven, its full percent in the middle and twice on either side
                depth = depth * (0.8 + 0.2 * np.cos(4 * np.pi * (arc - place) / (lesion.length * length)))
            radius[course] *= 1 - (lesion.finding.stenosis or 0) / 100 * depth
            continue
        end = int(np.searchsorted(arc, place))
        reached &= ~tree.fed_through(int(course[end]))
        if lesion.finding.occlusion == "cto":
            radius[course[:end]] *= np.clip((place - arc[:end]) / STUMP, 0.15, 1)
    return radius, reached


def extent(tree: CoronaryTree, lesion: Lesion) -> np.ndarray:
    """Indices of the points, from proximal to distal, that a lesion takes up; of an occlusion, its stump's end."""
    course = tree.course(lesion.finding.segment)
    arc = tree.arc[course] - tree.arc[course[0]]
    place, half = lesion.centre * arc[-1], lesion.length * arc[-1] / 2
    before, after = (half, half) if lesion.finding.occlusion == "none" else (STUMP_SHOWN, STUMP_SHOWN / 4)
    taken = course[(arc >= place - before) & (arc <= place + after)]
    return taken if len(taken) else course[[np.abs(arc - place).argmin()]]


def _shoulders(place: np.ndarray) -> np.ndarray:
    """Return 1 on the plateau and 0 beyond the ends, with cosine shoulders; `place` is -1 and 1 at the ends."""
    outside = np.clip((np.abs(place) - PLATEAU) / (1 - PLATEAU), 0, 1)
    return 0.5 + 0.5 * np.cos(np.pi * outside)
