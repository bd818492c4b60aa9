"""What a text says, in whatever wording: the canonical one, or where that leaves something unread, a clinician's.

    "Right dominant circulation. The proximal LAD has an 80% stenosis. RCA: occluded."
    -> findings  proximal LAD 80%
       trees     left, right
       unread    "rca: no segment is named"
       unclear   proximal, mid and distal RCA

Metrics read both the true and the written reports with it: what is held against each other is what is said, not how.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from deepcoro.reports.clauses import Place, tokens_of
from deepcoro.reports.grammar import Finding, ParsedReport, parse_report
from deepcoro.reports.reading import Reading, read_report
from deepcoro.reports.synonyms import POSITIONS, VESSEL_SEGMENTS, load_synonyms
from deepcoro.reports.vocabulary import SEGMENTS, TREES, VESSELS, tree_of

_KEPT = 2**15  # texts that are remembered: free wording takes milliseconds each


@dataclass(frozen=True)
class ReadText(ParsedReport):
    """A text read as far as it can be.

    ``trees`` are those of its headings ("Left coronary tree."); where it has none, those of the vessels it speaks of.

    Args:
        unclear: segments that are named in what could not be read, or in what lacks a segment or a percent, and of
            which nothing else is said: neither a finding nor that they are normal. In the order of the vocabulary.
    """

    unclear: tuple[str, ...] = ()


@lru_cache(maxsize=_KEPT)
def read_text(text: str) -> ReadText:
    """Read a text in canonical or free wording. Never raises on text.

    A phrase that the canonical wording has is read as such also where its sentence as a whole is not understood.
    """
    parsed = parse_report(text)
    places = [_HOME[vessel] for vessel in parsed.normal]
    if not parsed.unread:
        trees = parsed.trees or _trees_of(parsed.findings, places, parsed.dominance)
        return ReadText(parsed.findings, trees, parsed.dominance, (), parsed.normal)
    reading = read_report(text)
    by_segment = {finding.segment: finding for finding in (*parsed.findings, *reading.findings)}
    findings = tuple(by_segment[segment] for segment in SEGMENTS if segment in by_segment)
    dominance = parsed.dominance or reading.dominance
    places += [_place(name) for name, _ in reading.said]
    named = [_place(item.place) for item in reading.incomplete] + _places_of_unread(reading)
    clear = {*by_segment, *(segment for place in places for segment in place.segments)}
    unclear = {segment for place in named for segment in place.segments} - clear
    return ReadText(
        findings,
        parsed.trees or _trees_of(findings, places + named, dominance),
        dominance,
        (
            *(item.phrase for item in reading.unread),
            *(f"{item.place}: no {item.missing} is named" for item in reading.incomplete),
        ),
        parsed.normal,
        tuple(segment for segment in SEGMENTS if segment in unclear),
    )


def _place(name: str) -> Place:
    """Of a name in ``Reading.said`` or ``Incomplete.place``."""
    return Place(None, name) if name in SEGMENTS else Place(name)


_HOME = {  # what a canonical "LAD: normal" is about
    vessel: Place(vessel.lower()) if vessel in ("LAD", "LCX", "RCA") else Place(None, members[0])
    for tree in TREES
    for vessel, members in VESSELS[tree].items()
}


def _places_of_unread(reading: Reading) -> list[Place]:
    """What the sentences that are not understood name, without "the left coronary artery" and all that is as wide."""
    places = []
    for item in reading.unread:
        tokens = tokens_of(item.sentence, load_synonyms())
        positions = [POSITIONS.index(token.value) for token in tokens if token.kind == "positions"]
        for token in tokens:
            if token.kind == "vessels" and token.value in ("lad", "lcx", "rca") and positions:
                places += [Place(token.value, VESSEL_SEGMENTS[token.value][position]) for position in positions]
            elif token.kind in ("segments", "vessels") and token.value not in (*TREES, "all"):
                places.append(_place(token.value))
    return places


def _trees_of(findings: Iterable[Finding], places: Iterable[Place], dominance: str | None) -> tuple[str, ...]:
    found = {tree_of(finding.segment, dominance) for finding in findings}
    for place in places:
        if place.segment is not None:
            found.add(tree_of(place.segment, dominance))
        else:  # a vessel leaves its own tree whatever is on its branches
            found.update(tree_of(segment) for segment in place.segments)
    return tuple(tree for tree in TREES if tree in found)
