"""The 18 coronary segments, the trees they belong to, and the grades of a stenosis.

Grades by percent of diameter: 0 none, below 50 mild, 50-69 moderate, 70-89 severe, 90 and more critical.
Significant disease is 70 % or more, in the left main 50 % or more, or any total occlusion.

Dominance says which artery feeds the inferior wall, and so in which cine its branches are seen:

    dominance         PDA     posterolateral   left posterolateral (lvp)
    right, unknown    right   right            left
    balanced          right   left             left
    left              left    left             left

In a left-dominant heart the LVP takes the PDA's place: the circumflex ends on the inferior wall, and a report names the
LVP under the LCX. A table may still hold a finding in ``pda`` or ``posterolateral`` of such a heart; it is then of the
left tree, since nothing of the right coronary reaches there. Every segment is in exactly one tree whatever the
dominance, so that the two trees' reports together never lose a finding and never tell one twice.
"""

from __future__ import annotations

from typing import Literal

Tree = Literal["left", "right"]
Dominance = Literal["right", "left", "balanced"]

TREES: tuple[str, ...] = ("left", "right")
DOMINANCES: tuple[str, ...] = ("right", "left", "balanced")

# In the order in which a report names them: along each vessel, from the ostium outwards.
SEGMENT_NAMES: dict[str, str] = {
    "left_main": "left main",
    "prox_lad": "proximal LAD",
    "mid_lad": "mid LAD",
    "dist_lad": "distal LAD",
    "d1": "first diagonal",
    "d2": "second diagonal",
    "bx": "ramus intermedius",
    "prox_lcx": "proximal LCX",
    "mid_lcx": "mid LCX",
    "dist_lcx": "distal LCX",
    "om1": "first obtuse marginal",
    "om2": "second obtuse marginal",
    "lvp": "left posterolateral",
    "prox_rca": "proximal RCA",
    "mid_rca": "mid RCA",
    "dist_rca": "distal RCA",
    "pda": "PDA",
    "posterolateral": "posterolateral branch",
}
SEGMENTS: tuple[str, ...] = tuple(SEGMENT_NAMES)

# The vessels a report has a sentence for, by tree. Each vessel lists its segments.
VESSELS: dict[str, dict[str, tuple[str, ...]]] = {
    "left": {
        "left main": ("left_main",),
        "LAD": ("prox_lad", "mid_lad", "dist_lad", "d1", "d2"),
        "ramus": ("bx",),
        "LCX": ("prox_lcx", "mid_lcx", "dist_lcx", "om1", "om2", "lvp"),
    },
    "right": {
        "RCA": ("prox_rca", "mid_rca", "dist_rca"),
        "PDA": ("pda",),
        "posterolateral": ("posterolateral",),
    },
}

# Segments that leave the right tree, by dominance (the table above).
_ON_THE_LEFT: dict[str, tuple[str, ...]] = {
    "right": (),
    "balanced": ("posterolateral",),
    "left": ("pda", "posterolateral"),
}


# Percents of the diameter at which a grade begins that can be significant, and that of an occlusion.
STENOSIS_LEVELS: tuple[int, ...] = (50, 70, 90, 100)


def tree_of(segment: str, dominance: str | None = None) -> str:
    """The tree in whose cines ``segment`` is seen. Unknown dominance counts as right, the most common.

    Raises:
        ValueError: ``segment`` or ``dominance`` is not one of the known words.
    """
    if segment not in SEGMENT_NAMES:
        raise ValueError(f"segment must be one of {SEGMENTS}, got {segment!r}")
    if dominance is not None and dominance not in DOMINANCES:
        raise ValueError(f"dominance must be one of {DOMINANCES}, got {dominance!r}")
    if segment in _ON_THE_LEFT[dominance or "right"]:
        return "left"
    return next(tree for tree in TREES if any(segment in members for members in VESSELS[tree].values()))


def segments_of_tree(tree: str, dominance: str | None = None) -> tuple[str, ...]:
    """Segments that can be seen in a cine of ``tree`` (``tree_of``), in the order in which a report names them.

    Raises:
        ValueError: ``tree`` or ``dominance`` is not one of the known words.
    """
    if tree not in TREES:
        raise ValueError(f"tree must be one of {TREES}, got {tree!r}")
    return tuple(segment for segment in SEGMENTS if tree_of(segment, dominance) == tree)


def grade(stenosis: int) -> str:
    """Word for a stenosis of ``stenosis`` percent of the diameter (0-100)."""
    if not 0 <= stenosis <= 100:
        raise ValueError(f"stenosis must be 0 to 100 percent, got {stenosis}")
    for floor, word in ((90, "critical"), (70, "severe"), (50, "moderate"), (1, "mild")):
        if stenosis >= floor:
            return word
    return "none"


def is_significant(segment: str, stenosis: int | None, occlusion: str) -> bool:
    """Whether a lesion counts as significant: >= 70 % (left main >= 50 %), or an occlusion of either kind."""
    floor = 50 if segment == "left_main" else 70
    return occlusion != "none" or (stenosis is not None and stenosis >= floor)
