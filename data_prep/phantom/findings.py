"""Which lesions a patient has, and what they do to the lumen.

A stenosis narrows the diameter by its percent over a plateau, with smooth shoulders. Through an occlusion nothing
passes: an acute one ends bluntly, a chronic one (CTO) in a tapered stump.

Shape letters: P points of a tree.
"""

from dataclasses import dataclass

import numpy as np

from data_prep.phantom.anatomy import CoronaryTree
from data_prep.phantom.preset import Preset
from deepcoro.reports.grammar import Finding

PLATEAU = 0.4  # share of a stenosis that has its full percent
STUMP = 14.0  # mm over which the stump of a chronic occlusion tapers


@dataclass(frozen=True)
class Lesion:
    """A finding with its place."""

    finding: Finding
    centre: float
    """Of a stenosis its middle, of an occlusion its start: share of the segment's length, in [0, 1]."""
    length: float
    """Of a stenosis, as a share of the segment's length; not used by an occlusion."""


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
        if lesion.finding.occlusion == "none" and lesion.finding.stenosis is not None:
            depth = _shoulders((arc - place) / (lesion.length * length / 2))
            radius[course] *= 1 - lesion.finding.stenosis / 100 * depth
            continue
        end = int(np.searchsorted(arc, place))
        reached &= ~tree.fed_through(int(course[end]))
        if lesion.finding.occlusion == "cto":
            radius[course[:end]] *= np.clip((place - arc[:end]) / STUMP, 0.15, 1)
    return radius, reached


def _shoulders(place: np.ndarray) -> np.ndarray:
    """Return 1 on the plateau and 0 beyond the ends, with cosine shoulders; `place` is -1 and 1 at the ends."""
    outside = np.clip((np.abs(place) - PLATEAU) / (1 - PLATEAU), 0, 1)
    return 0.5 + 0.5 * np.cos(np.pi * outside)
