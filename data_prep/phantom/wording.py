"""The report of a phantom: the canonical wording, or one of several ways in which people write; the truth stays.

A style is drawn once a study: the headings of trees, the order of trees and vessels, whether a segment is named in full
or by its letters, and the words for every phrase. Every number and every statement of the findings is in every style.
"""

from dataclasses import dataclass

import numpy as np

from data_prep.phantom.preset import Preset
from data_prep.phantom.study import Patient
from deepcoro.reports.grammar import Finding, render_report
from deepcoro.reports.vocabulary import SEGMENT_NAMES, TREES, VESSELS, grade, segments_of_tree

CANONICAL_SHARE = 0.25  # of the varied reports
WORDING = 2_000_000  # numbers a report's stream of random numbers apart from those of pictures

SHORT_NAMES = {
    "left_main": "LM",
    "prox_lad": "prox LAD",
    "mid_lad": "mid LAD",
    "dist_lad": "distal LAD",
    "d1": "D1",
    "d2": "D2",
    "bx": "ramus",
    "prox_lcx": "prox LCX",
    "mid_lcx": "mid LCX",
    "dist_lcx": "distal LCX",
    "om1": "OM1",
    "om2": "OM2",
    "lvp": "LVP",
    "prox_rca": "prox RCA",
    "mid_rca": "mid RCA",
    "dist_rca": "distal RCA",
    "pda": "PDA",
    "posterolateral": "PL",
}
LONG_VESSELS = {
    "left main": "left main coronary artery",
    "LAD": "left anterior descending artery",
    "LCX": "left circumflex artery",
    "RCA": "right coronary artery",
    "PDA": "posterior descending artery",
    "posterolateral": "posterolateral branches",
}
NORMAL = (
    "normal",
    "no significant disease",
    "free of disease",
    "no angiographic stenosis",
)
STENOSIS = (
    "{p}% stenosis",
    "{p}% narrowing",
    "{g} stenosis of {p}%",
    "{g} {p}% lesion",
    "{g} stenosis ({p}%)",
)
PHRASES = {
    "total": ("total occlusion (100%)", "acute total occlusion", "occluded (100%)", "100% acute occlusion"),
    "cto": ("chronic total occlusion (100%)", "CTO", "chronically occluded (100%)", "100% chronic occlusion"),
    "restenosis": ("in-stent restenosis {p}%", "{p}% in-stent restenosis", "stent with {p}% restenosis"),
    "stent": ("stent in place", "patent stent", "previous stent, patent"),
    "calcification": ("{c} calcification", "{c} calcifications", "{c}ly calcified"),
    "thrombus": ("thrombus", "with thrombus", "filling defect consistent with thrombus"),
    "collaterals": ("collateral filling", "distal vessel fills via collaterals", "collateralised"),
    "timi": ("TIMI {t} flow", "TIMI {t}", "flow TIMI {t}"),
    "medina": ("Medina {m}", "bifurcation lesion, Medina {m}", "Medina class {m}"),
}
DOMINANCE = ("{d} dominance", "{d}-dominant circulation", "{d} dominant system")


@dataclass(frozen=True)
class Style:
    """How one person writes."""

    phrases: dict[str, str]
    stenosis: str
    normal: str
    dominance: str
    long_names: bool
    right_first: bool
    headings: bool
    dominance_last: bool


def write_report(patient: Patient, seed: int, preset: Preset) -> str:
    """Return the report of a patient's findings."""
    canonical = render_report(patient.findings, dominance=patient.dominance)
    if preset.realism is None or not preset.realism.varied_reports:
        return canonical
    rng = np.random.default_rng([seed, patient.index, WORDING])
    if rng.random() < CANONICAL_SHARE:
        return canonical
    return word_report(patient.findings, patient.dominance, draw_style(rng))


def draw_style(rng: np.random.Generator) -> Style:
    """Draw a way of writing."""
    return Style(
        phrases={kind: str(rng.choice(choices)) for kind, choices in PHRASES.items()},
        stenosis=str(rng.choice(STENOSIS)),
        normal=str(rng.choice(NORMAL)),
        dominance=str(rng.choice(DOMINANCE)),
        long_names=bool(rng.random() < 0.5),
        right_first=bool(rng.random() < 0.25),
        headings=bool(rng.random() < 0.5),
        dominance_last=bool(rng.random() < 0.3),
    )


def word_report(findings: list[Finding], dominance: str, style: Style) -> str:
    """Write findings in a style; a finding has one sentence, a vessel without any is called normal."""
    by_segment = {finding.segment: finding for finding in findings}
    sentences = []
    for tree in TREES[::-1] if style.right_first else TREES:
        if style.headings:
            sentences.append(f"{tree} coronary tree")
        in_tree = segments_of_tree(tree, dominance)
        for vessel, segments in (item for side in TREES for item in VESSELS[side].items()):
            members = [segment for segment in segments if segment in in_tree]
            found = [by_segment[segment] for segment in members if segment in by_segment]
            sentences += [f"{_name(finding.segment, style)}: {say(finding, style)}" for finding in found]
            if members and not found and vessel != "ramus":
                name = LONG_VESSELS.get(vessel, vessel) if style.long_names else vessel
                sentences.append(f"{name}: {style.normal}")
    sentences.insert(len(sentences) if style.dominance_last else 0, style.dominance.format(d=dominance))
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def say(finding: Finding, style: Style) -> str:
    """Return all that a finding states, in the order lesion, stent, calcium, thrombus, collaterals, flow, Medina."""
    phrase, parts = style.phrases, []
    if finding.occlusion != "none":
        parts.append(phrase[finding.occlusion])
    elif finding.stenosis is not None and finding.in_stent_restenosis != finding.stenosis:
        parts.append(style.stenosis.format(p=finding.stenosis, g=grade(finding.stenosis)))
    if finding.in_stent_restenosis is not None:
        parts.append(phrase["restenosis"].format(p=finding.in_stent_restenosis))
    elif finding.stent:
        parts.append(phrase["stent"])
    if finding.calcification not in (None, "none"):
        parts.append(phrase["calcification"].format(c=finding.calcification))
    if finding.thrombus:
        parts.append(phrase["thrombus"])
    if finding.collaterals:
        parts.append(phrase["collaterals"])
    if finding.timi is not None:
        parts.append(phrase["timi"].format(t=finding.timi))
    if finding.medina is not None:
        parts.append(phrase["medina"].format(m=finding.medina))
    return ", ".join(parts)


def _name(segment: str, style: Style) -> str:
    return SEGMENT_NAMES[segment] if style.long_names else SHORT_NAMES[segment]
