"""Findings <-> text: one canonical wording in which every report is written and from which it is read back.

    Left coronary tree. Left main: normal. Proximal LAD: 80% stenosis (severe), TIMI 2 flow. LCX: normal.

A report is a header per tree and then a sentence per vessel: ``normal``, or one sentence for each segment that has a
finding. ``parse_report(render_report(f)).findings == f`` for every valid list in the order of the vocabulary.
``reading.read_report`` reads this wording too, and beside it what clinicians write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import Any

from deepcoro.reports.vocabulary import (
    DOMINANCES,
    SEGMENT_NAMES,
    SEGMENTS,
    TREES,
    VESSELS,
    grade,
    is_significant,
    tree_of,
)

OCCLUSIONS = ("none", "total", "cto")
CALCIFICATIONS = ("none", "minimal", "moderate", "severe")


@dataclass(frozen=True)
class Finding:
    """What is said of one segment. ``None`` and ``False`` mean that nothing is said.

    Args:
        segment: one of ``SEGMENTS``.
        stenosis: percent of the diameter, a whole number 0 to 100; 100 exactly where there is an occlusion.
        occlusion: ``none``, ``total`` (acute, or not called chronic) or ``cto`` (chronic).
        timi: flow grade, 0 to 3.
        calcification: ``none``, ``minimal``, ``moderate`` or ``severe``.
        thrombus, stent, pci, collaterals: seen or not.
        in_stent_restenosis: percent of the diameter inside a stent, 0 to 100; implies ``stent``.
        ifr: instantaneous wave-free ratio, 0.00 to 1.00 in hundredths (abnormal at 0.89 and below).
        medina: bifurcation class such as ``1,1,0``.

    Raises:
        ValueError: a value is out of its range, or the finding says nothing.
    """

    segment: str
    stenosis: int | None = None
    occlusion: str = "none"
    timi: int | None = None
    calcification: str | None = None
    thrombus: bool = False
    stent: bool = False
    in_stent_restenosis: int | None = None
    pci: bool = False
    ifr: float | None = None
    medina: str | None = None
    collaterals: bool = False

    def __post_init__(self) -> None:
        def check(ok: bool, what: str) -> None:
            if not ok:
                raise ValueError(f"finding in {self.segment!r}: {what}")

        check(self.segment in SEGMENTS, f"unknown segment; known are {', '.join(SEGMENTS)}")
        check(self.occlusion in OCCLUSIONS, f"occlusion must be one of {OCCLUSIONS}, got {self.occlusion!r}")
        for name in ("stenosis", "timi", "in_stent_restenosis"):
            value = getattr(self, name)
            check(
                value is None or (isinstance(value, Integral) and not isinstance(value, bool)),
                f"{name} must be a whole number, got {value!r}",
            )
        check(
            self.stenosis is None or 0 <= self.stenosis <= 100,
            f"stenosis must be 0 to 100 percent, got {self.stenosis}",
        )
        check(
            (self.stenosis == 100) == (self.occlusion != "none"),
            f"stenosis 100 and an occlusion go together, got stenosis {self.stenosis} and occlusion {self.occlusion!r}",
        )
        check(self.timi is None or self.timi in (0, 1, 2, 3), f"TIMI flow must be 0 to 3, got {self.timi}")
        check(
            self.calcification is None or self.calcification in CALCIFICATIONS,
            f"calcification must be one of {CALCIFICATIONS}, got {self.calcification!r}",
        )
        check(
            self.in_stent_restenosis is None or (self.stent and 0 <= self.in_stent_restenosis <= 100),
            "in-stent restenosis must be 0 to 100 percent and needs stent=True",
        )
        check(
            self.ifr is None or (0 <= self.ifr <= 1 and round(self.ifr, 2) == self.ifr),
            f"iFR must be 0.00 to 1.00 in hundredths, got {self.ifr}",
        )
        check(
            self.medina is None or re.fullmatch(r"[01],[01],[01]", self.medina) is not None,
            f"Medina class must look like 1,1,0, got {self.medina!r}",
        )
        check(bool(self.clauses()), "it says nothing")

    @property
    def significant(self) -> bool:
        """>= 70 % (left main >= 50 %), or an occlusion."""
        return is_significant(self.segment, self.stenosis, self.occlusion)

    def to_dict(self) -> dict[str, Any]:
        """As a row of the ``findings`` column."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Finding:
        """From a row of the ``findings`` column; null booleans count as not seen, null occlusion as none."""
        values = {key: value for key, value in row.items() if value is not None}
        if "ifr" in values:
            values["ifr"] = round(float(values["ifr"]), 2)  # the column is 32-bit
        return cls(**values)

    def clauses(self) -> list[str]:
        """The phrases of this finding, in their fixed order; ``_read_clause`` is the inverse, phrase by phrase."""
        say: list[str] = []
        if self.occlusion != "none":
            say.append({"total": "total occlusion (100%)", "cto": "chronic total occlusion (100%)"}[self.occlusion])
        elif self.stenosis is not None:
            say.append("no stenosis" if self.stenosis == 0 else f"{self.stenosis}% stenosis ({grade(self.stenosis)})")
        if self.in_stent_restenosis is not None:
            say.append(f"in-stent restenosis {self.in_stent_restenosis}%")
        elif self.stent:
            say.append("stent in place")
        if self.calcification is not None:
            say.append("no calcification" if self.calcification == "none" else f"{self.calcification} calcification")
        say += [text for seen, text in ((self.thrombus, "thrombus"), (self.collaterals, "collateral filling")) if seen]
        if self.timi is not None:
            say.append(f"TIMI {self.timi} flow")
        if self.ifr is not None:
            say.append(f"iFR {self.ifr:.2f}")
        if self.medina is not None:
            say.append(f"Medina {self.medina}")
        if self.pci:
            say.append("treated by PCI")
        return say


@dataclass(frozen=True)
class ParsedReport:
    """A report read back: the trees it names, its findings, vessels called normal, and every phrase that could not be
    read."""

    findings: tuple[Finding, ...] = ()
    trees: tuple[str, ...] = ()
    dominance: str | None = None
    unread: tuple[str, ...] = field(default=())
    normal: tuple[str, ...] = ()

    @property
    def tree(self) -> str | None:
        """The tree, when exactly one is named."""
        return self.trees[0] if len(self.trees) == 1 else None


def render_report(findings: Iterable[Finding], dominance: str | None = None, tree: str | None = None) -> str:
    """Write findings as text: of the whole study, or only what lies in ``tree`` (what one cine can show).

    Raises:
        ValueError: two findings name one segment, or the dominance or tree is none that we know.
    """
    for name, given, known in (("dominance", dominance, DOMINANCES), ("tree", tree, TREES)):
        if given is not None and given not in known:
            raise ValueError(f"{name} must be one of {known} or None, got {given!r}")
    by_segment: dict[str, Finding] = {}
    for finding in findings:
        if finding.segment in by_segment:
            raise ValueError(f"two findings for segment {finding.segment!r}; join them into one")
        by_segment[finding.segment] = finding

    sentences: list[str] = []
    if tree is None and dominance is not None:
        sentences.append(f"{dominance.capitalize()} dominance.")
    for name in TREES if tree is None else (tree,):
        sentences.append(f"{name.capitalize()} coronary tree.")
        sentences += _tree_sentences(by_segment, name, dominance)
    return " ".join(sentences)


def render_finding(finding: Finding) -> str:
    """The sentence that a report has for one finding: ``Proximal LAD: 80% stenosis (severe), TIMI 2 flow.``"""
    return upper_first(f"{SEGMENT_NAMES[finding.segment]}: {', '.join(finding.clauses())}.")


def _tree_sentences(by_segment: dict[str, Finding], tree: str, dominance: str | None) -> list[str]:
    sentences = []
    for vessel, members, normal in vessels_of(tree, dominance):
        found = [by_segment[segment] for segment in members if segment in by_segment]
        for finding in found:
            sentences.append(render_finding(finding))
        if normal and not found:
            sentences.append(upper_first(f"{vessel}: normal."))
    return sentences


def vessels_of(tree: str, dominance: str | None = None) -> list[tuple[str, tuple[str, ...], bool]]:
    """The vessels that a report of ``tree`` speaks of, in its order: name, segments, and whether it is called normal
    where none of them has a finding."""
    vessels = []
    for home in TREES:
        for vessel, segments in VESSELS[home].items():
            members = tuple(segment for segment in segments if tree_of(segment, dominance) == tree)
            # Most hearts have no ramus, and where the circumflex feeds the inferior wall its LVP stands for the PDA:
            # these are named only with a finding.
            if members:
                vessels.append((vessel, members, vessel != "ramus" and home == tree))
    return vessels


def upper_first(text: str) -> str:
    """``text`` as a sentence begins."""
    return text[0].upper() + text[1:]


_SEGMENT_BY_NAME = {name.lower(): segment for segment, name in SEGMENT_NAMES.items()}
_VESSEL_NAMES = {vessel.lower(): vessel for tree in TREES for vessel in VESSELS[tree]}
_HEADER = re.compile(r"(left|right) coronary tree")
_DOMINANCE = re.compile(r"(right|left|balanced) dominance")
_CLAUSES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?P<chronic>chronic )?total occlusion \(100%\)"), "occlusion"),
    (re.compile(r"(?P<percent>\d{1,2})% stenosis \((?P<grade>mild|moderate|severe|critical)\)"), "stenosis"),
    (re.compile(r"no stenosis"), "no_stenosis"),
    (re.compile(r"in-stent restenosis (?P<percent>\d{1,3})%"), "in_stent_restenosis"),
    (re.compile(r"stent in place"), "stent"),
    (re.compile(r"(?P<amount>no|minimal|moderate|severe) calcification"), "calcification"),
    (re.compile(r"thrombus"), "thrombus"),
    (re.compile(r"collateral filling"), "collaterals"),
    (re.compile(r"timi (?P<flow>[0-3]) flow"), "timi"),
    (re.compile(r"ifr (?P<ratio>[01]\.\d\d)"), "ifr"),
    (re.compile(r"medina (?P<medina>[01],[01],[01])"), "medina"),
    (re.compile(r"treated by pci"), "pci"),
)


def parse_report(text: str) -> ParsedReport:
    """Read a report in the canonical wording, whatever its case and spacing. Never raises on text.

    A phrase that is not of the grammar, contradicts itself (a grade that is not of its percent) or repeats a segment is
    listed in ``unread`` and read as nothing.
    """
    findings: dict[str, Finding] = {}
    trees: list[str] = []
    dominance: str | None = None
    unread: list[str] = []
    normal: list[str] = []
    for sentence in re.split(r"\.(?:\s+|$)", _normalise(text)):
        header, dominated = _HEADER.fullmatch(sentence), _DOMINANCE.fullmatch(sentence)
        name, _, said = sentence.partition(": ")
        if not sentence:
            continue
        if header and header[1] not in trees:
            trees.append(header[1])
        elif dominated and dominance is None:
            dominance = dominated[1]
        elif name in _VESSEL_NAMES and said == "normal":
            normal.append(_VESSEL_NAMES[name])
        elif name in _SEGMENT_BY_NAME and _SEGMENT_BY_NAME[name] not in findings:
            segment = _SEGMENT_BY_NAME[name]
            finding, bad = _read_finding(segment, said.split(", "))
            unread += [f"{name}: {phrase}" for phrase in bad]
            if finding is not None:
                findings[segment] = finding
        else:
            unread.append(sentence)
    ordered = tuple(findings[s] for s in SEGMENTS if s in findings)
    return ParsedReport(ordered, tuple(trees), dominance, tuple(unread), tuple(dict.fromkeys(normal)))


def _normalise(text: str) -> str:
    """Undo what tokenizers do to spacing: ``80 % stenosis ( severe ) , iFR 0. 89`` -> ``80% stenosis (severe), ifr
    0.89``."""
    text = " ".join(text.lower().split())
    text = re.sub(r"\s+([,.:;%)])", r"\1", text)
    text = re.sub(r"\(\s+", "(", text)
    text = re.sub(r"(\d)\.\s(\d)", r"\1.\2", text)
    text = re.sub(r"([01]),\s?([01]),\s?([01])", r"\1,\2,\3", text)
    return re.sub(r"\s*-\s*", "-", text)


def _read_finding(segment: str, clauses: list[str]) -> tuple[Finding | None, list[str]]:
    values: dict[str, Any] = {}
    bad: list[str] = []
    for clause in clauses:
        read = _read_clause(clause)
        if read is None or read.keys() & values.keys():
            bad.append(clause)
        else:
            values |= read
    try:
        return (Finding(segment, **values) if values else None), bad
    except ValueError:  # phrases that are each of the grammar and together are not: the whole sentence is unread
        return None, clauses


def _read_clause(clause: str) -> dict[str, Any] | None:
    for pattern, kind in _CLAUSES:
        match = pattern.fullmatch(clause)
        if match is None:
            continue
        if kind == "occlusion":
            return {"occlusion": "cto" if match["chronic"] else "total", "stenosis": 100}
        if kind == "stenosis":
            percent = int(match["percent"])
            return {"stenosis": percent} if percent > 0 and grade(percent) == match["grade"] else None
        if kind == "no_stenosis":
            return {"stenosis": 0}
        if kind == "in_stent_restenosis":
            return {"stent": True, "in_stent_restenosis": int(match["percent"])}
        if kind == "calcification":
            return {"calcification": "none" if match["amount"] == "no" else match["amount"]}
        if kind == "timi":
            return {"timi": int(match["flow"])}
        if kind == "ifr":
            return {"ifr": float(match["ratio"])}
        if kind == "medina":
            return {"medina": match["medina"]}
        return {kind: True}
    return None
