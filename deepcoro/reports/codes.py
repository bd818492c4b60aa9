"""Codes of what a report says: SNOMED CT codes as DICOM lists them, each with the context group (PS3.16) that has it.

For exchange with systems that speak DICOM structured reports. Not every concept has a code in those groups: chronic and
acute total occlusion, iFR, the Medina class itself, collaterals and PCI have none, nor has the grade critical: they
are left out rather than given a code that means something near.
"""

from __future__ import annotations

from typing import NamedTuple

from deepcoro.reports.grammar import Finding
from deepcoro.reports.vocabulary import grade, tree_of


class Code(NamedTuple):
    """A coded concept (PS3.3 table 8.8-1): value, scheme designator, meaning, and the context group it is from."""

    code: str
    scheme: str
    meaning: str
    context_group: str


def _sct(group: str, **codes: tuple[str, str]) -> dict[str, Code]:
    return {name: Code(code, "SCT", meaning, group) for name, (code, meaning) in codes.items()}


# CID 3014 Coronary Artery Segment; the two posterolateral arteries as a whole are in CID 3015 Coronary Artery.
SEGMENT_CODES: dict[str, Code] = {
    **_sct(
        "CID 3014",
        left_main=("3227004", "Left Main Coronary Artery"),
        prox_lad=("68787002", "Proximal Left Anterior Descending Coronary Artery"),
        mid_lad=("91748002", "Mid Left Anterior Descending Coronary Artery"),
        dist_lad=("36672000", "Distal Left Anterior Descending Coronary Artery"),
        d1=("91750005", "1st Diagonal Coronary Artery"),
        d2=("91751009", "2nd Diagonal Coronary Artery"),
        bx=("244252004", "Intermediate Artery (Ramus)"),
        prox_lcx=("52433000", "Proximal Circumflex Coronary Artery"),
        mid_lcx=("91753007", "Mid Circumflex Coronary Artery"),
        dist_lcx=("6511003", "Distal Circumflex Coronary Artery"),
        om1=("91754001", "1st Marginal Coronary Artery"),
        om2=("91755000", "2nd Marginal Coronary Artery"),
        prox_rca=("91083009", "Proximal Right Coronary Artery"),
        mid_rca=("450960006", "Mid Right Coronary Artery"),
        dist_rca=("41879009", "Distal Right Coronary Artery"),
        pda=("53655008", "Posterior Descending Right Coronary Artery"),
    ),
    **_sct(
        "CID 3015",
        lvp=("57823005", "Left Posterolateral Circumflex Coronary Artery"),
        posterolateral=("17269004", "Posterolateral branch of right Coronary Artery"),
    ),
}
# The same two segments where they come from the circumflex.
_FROM_THE_LEFT: dict[str, Code] = {
    **_sct("CID 3014", pda=("91760001", "Left Posterior Descending Circumflex Coronary Artery")),
    "posterolateral": SEGMENT_CODES["lvp"],
}
VESSEL_CODES: dict[str, Code] = _sct(
    "CID 3016",
    LAD=("59438005", "Left Anterior Descending Coronary Artery"),
    LCX=("57396003", "Circumflex Coronary Artery"),
    RCA=("13647002", "Right Coronary Artery"),
)
TREE_CODES: dict[str, Code] = _sct(
    "CID 3016", left=("50018008", "Left Coronary Artery"), right=("13647002", "Right Coronary Artery")
)
DOMINANCE_CODES: dict[str, Code] = _sct(
    "CID 3710",
    right=("253728007", "Right Coronary Dominance"),
    left=("253729004", "Left Coronary Dominance"),
    balanced=("253730009", "Balanced Coronary Dominance"),
)
TIMI_CODES: dict[int, Code] = {
    0: Code("371867000", "SCT", "0: No Perfusion", "CID 3713"),
    1: Code("371866009", "SCT", "1: Penetration without Perfusion", "CID 3713"),
    2: Code("371864007", "SCT", "2: Partial Perfusion", "CID 3713"),
    3: Code("371865008", "SCT", "3: Complete Perfusion", "CID 3713"),
}
GRADE_CODES: dict[str, Code] = _sct(
    "CID 3832", mild=("255604002", "Mild"), moderate=("6736007", "Moderate"), severe=("24484000", "Severe")
)
DESCRIPTOR_CODES: dict[str, Code] = _sct(
    "CID 3712",
    stenosis=("386139002", "Stenotic"),
    calcification=("237897009", "Calcified"),
    thrombus=("396339007", "Thrombus"),
    stent=("386138005", "Stented"),
    in_stent_restenosis=("371893007", "Restenotic"),
    medina=("371894001", "Bifurcation"),
)


def code_of_segment(segment: str, dominance: str | None = None) -> Code:
    """The code of a segment; of PDA and posterolateral that of the artery they come from under ``dominance``.

    Raises:
        ValueError: ``segment`` or ``dominance`` is not one of the known words.
    """
    left = tree_of(segment, dominance) == "left"
    return _FROM_THE_LEFT[segment] if left and segment in _FROM_THE_LEFT else SEGMENT_CODES[segment]


def codes_of(finding: Finding, dominance: str | None = None) -> tuple[Code, ...]:
    """The segment's code and those of everything said of it that has one: what is there, never what is denied."""
    codes = [code_of_segment(finding.segment, dominance)]
    there = {
        "stenosis": finding.stenosis,
        "calcification": finding.calcification not in (None, "none"),
        "thrombus": finding.thrombus,
        "stent": finding.stent,
        "in_stent_restenosis": finding.in_stent_restenosis,
        "medina": finding.medina is not None,
    }
    codes += [DESCRIPTOR_CODES[name] for name, seen in there.items() if seen]
    word = grade(finding.stenosis) if finding.stenosis else ""
    codes += [GRADE_CODES[word]] if word in GRADE_CODES else []
    codes += [TIMI_CODES[finding.timi]] if finding.timi is not None else []
    return tuple(codes)
