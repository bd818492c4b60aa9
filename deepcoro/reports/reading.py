"""Reports as clinicians write them -> findings, and a list of what could not be read.

    "Subtotal occlusion of the mid LAD, TIMI 1. RCA: CTO with collaterals. Marked tortuosity."
    -> findings   mid LAD 99%, TIMI 1
       incomplete RCA: occlusion, collaterals (no segment is named)
       unread     marked tortuosity

Nothing is guessed. A sentence counts as read only if every word of it is known (``synonyms.yaml``) and its statements
fit together and fit what was said before; else nothing is taken from it. What is understood and yet is no finding,
because no segment or no percent is named, is ``incomplete``: a group may say in its own synonyms what to make of it
(``assume``).

The conventions: a range is its middle ("70-80%" is 75, rounded down); a subtotal occlusion is 99%; an occlusion that is
not called chronic is ``total``; an ostium is of the proximal segment; "no stenosis" of a segment is 0%, and "no
significant disease" is no finding. The canonical wording (``grammar``) is read as well, and the same.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from deepcoro.reports.clauses import Clause, NotRead, Place, tokens_of, unknown_phrases
from deepcoro.reports.grammar import Finding, ParsedReport, parse_report
from deepcoro.reports.sentences import split_sentences
from deepcoro.reports.statements import clauses_of, only_place, with_places
from deepcoro.reports.synonyms import VESSEL_SEGMENTS, Synonyms, load_synonyms
from deepcoro.reports.vocabulary import SEGMENTS, VESSELS, is_significant


@dataclass(frozen=True)
class Incomplete:
    """A statement that is understood and lacks a ``segment``, a ``percent`` or an ``amount of calcification``."""

    place: str
    missing: str


@dataclass(frozen=True)
class Unread:
    """A phrase that is not understood, why, and the sentence it stands in; folded to lower case."""

    phrase: str
    why: str
    sentence: str = field(default="", compare=False)


@dataclass(frozen=True)
class Reading:
    """What a report says.

    Args:
        findings: in the order of the vocabulary.
        dominance: as said, or ``None``.
        said: vessels or segments called ``normal`` or ``not significant``, such as ``("rca", "normal")``; ``all`` is
            the whole heart.
        incomplete: understood, and no finding.
        unread: not understood.
        num_sentences, num_read, num_skipped: sentences in all, those understood, and those of the procedure.
        num_assumed: statements whose segment the user's synonyms supplied.
    """

    findings: tuple[Finding, ...] = ()
    dominance: str | None = None
    said: tuple[tuple[str, str], ...] = ()
    incomplete: tuple[Incomplete, ...] = ()
    unread: tuple[Unread, ...] = ()
    num_sentences: int = 0
    num_read: int = 0
    num_skipped: int = 0
    num_assumed: int = 0

    @property
    def complete(self) -> bool:
        """Every sentence was understood, and every statement became what it says."""
        return not self.unread and not self.incomplete


def read_report(text: str, synonyms: Synonyms | None = None) -> Reading:
    """Read a report in free or canonical wording. Never raises on text.

    Args:
        text: the report, de-identified.
        synonyms: from ``load_synonyms``; the shipped ones by default.
    """
    synonyms = synonyms or load_synonyms()
    sentences = split_sentences(text)
    canonical = parse_report(text)
    if not canonical.unread:
        whole = _Reader(synonyms, num_read=len(sentences))
        with suppress(NotRead):  # a contradiction: then sentence by sentence, to say where
            whole._add(_of_canonical(canonical))
            return whole.reading(len(sentences))
    reader = _Reader(synonyms)
    for sentence in sentences:
        reader.read(sentence)
    return reader.reading(len(sentences))


@dataclass
class _Reader:
    """What a report has said so far. A sentence is added as a whole, or not at all."""

    synonyms: Synonyms
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # segment -> values of its finding
    denied: dict[str, set[str]] = field(default_factory=dict)
    said: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)  # (place, what) -> its segments
    dominance: str | None = None
    heading: Place | None = None  # "LAD:" on a line of its own
    incomplete: list[Incomplete] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    num_read: int = 0
    num_skipped: int = 0
    num_assumed: int = 0

    def read(self, sentence: str) -> None:
        canonical = parse_report(sentence)
        if not canonical.unread:
            try:
                self._add(_of_canonical(canonical))
                self.heading = None
                self.num_read += 1
            except NotRead as problem:
                self.unread.append(Unread(sentence, problem.why, sentence))
            return
        tokens = tokens_of(sentence, self.synonyms)
        kinds = {token.kind for token in tokens}
        if _of_something_else(kinds):
            self.num_skipped += 1
            self.heading = None
            return
        try:
            if "unknown" in kinds:
                raise NotRead("unknown words", unknown_phrases(tokens))
            if "skip" in kinds:
                raise NotRead("of the procedure, and of a place or a percent")
            if "measurements" in kinds:
                raise NotRead("another measurement, and a statement of a vessel")
            clauses = clauses_of(tokens, self.synonyms)
            if not clauses:
                raise NotRead("nothing known is said")
            if all(clause.only_place for clause in clauses):
                self.heading = only_place(clauses)
            else:
                placed = with_places(clauses, self.heading)
                self._add(placed)
                self._end_heading(placed)
            self.num_read += 1
        except NotRead as problem:
            # A sentence that is not understood may have named another vessel: what follows has to name its own.
            self.heading = None
            self.unread += [Unread(phrase, problem.why, sentence) for phrase in problem.phrases or (sentence,)]

    def _end_heading(self, placed: list[tuple[Place | None, Clause]]) -> None:
        """A heading ends where another place is named; "LAD:" does not end at its own segments and branches."""
        named = {place.vessel for place, clause in placed if clause.has_place and place is not None}
        if named and self.heading is not None and (self.heading.segment is not None or named != {self.heading.vessel}):
            self.heading = None

    def _add(self, placed: list[tuple[Place | None, Clause]]) -> None:
        """Take what a sentence says, if it fits what was said before."""
        facts = {segment: dict(values) for segment, values in self.facts.items()}
        denied = {segment: set(kinds) for segment, kinds in self.denied.items()}
        said, dominance = dict(self.said), self.dominance
        incomplete: list[Incomplete] = []
        num_assumed = 0
        for place, clause in placed:
            if clause.dominance is not None:
                if dominance not in (None, clause.dominance):
                    raise NotRead("another dominance was said before")
                dominance = clause.dominance
            if not clause.has_content:
                continue
            values = dict(clause.facts)
            if place is None:
                if values or clause.missing:
                    raise NotRead("no vessel is named")
                place = Place("all")
            assumed = self.synonyms.assumed_segments.get(place.vessel or "")
            if place.segment is None and assumed is not None and values:
                place = Place(place.vessel, assumed)
                num_assumed += 1
            name = place.segment or place.vessel or "all"
            if clause.said is not None:
                if clause.said == "no stenosis" and place.segment is not None:
                    values["stenosis"] = 0
                else:
                    what = "not significant" if clause.said == "not significant" else "normal"
                    said[name, what] = place.segments
            incomplete += [Incomplete(name, missing) for missing in sorted(clause.missing)]
            if place.segment is not None:
                _join(facts.setdefault(place.segment, {}), values)
            elif values.keys() - {"calcification"} or values.get("calcification", "none") != "none":
                incomplete.append(Incomplete(name, "segment"))
            for segment in place.segments:
                denied.setdefault(segment, set()).update(clause.denied)
        _check(facts, denied, said)
        self.facts, self.denied, self.said, self.dominance = facts, denied, said, dominance
        self.incomplete += dict.fromkeys(incomplete)
        self.num_assumed += num_assumed

    def reading(self, num_sentences: int) -> Reading:
        findings = tuple(Finding(segment, **self.facts[segment]) for segment in SEGMENTS if self.facts.get(segment))
        return Reading(
            findings,
            self.dominance,
            tuple(self.said),
            tuple(self.incomplete),
            tuple(self.unread),
            num_sentences,
            self.num_read,
            self.num_skipped,
            self.num_assumed,
        )


def _of_something_else(kinds: set[str]) -> bool:
    """A sentence of the procedure, or of a measurement that is none of a vessel."""
    if kinds & {"segments", "vessels", "positions"}:
        return False
    if "measurements" in kinds:
        return not kinds & {"stenosis", "occlusion", "in_stent_restenosis", "percents"}
    return "skip" in kinds and not kinds & {"percent", "range", "percents"}


def _of_canonical(parsed: ParsedReport) -> list[tuple[Place | None, Clause]]:
    placed: list[tuple[Place | None, Clause]] = []
    if parsed.dominance is not None:
        placed.append((None, Clause(dominance=parsed.dominance)))
    for finding in parsed.findings:
        values = {name: value for name, value in finding.to_dict().items() if value is not None and value is not False}
        segment = values.pop("segment")
        if values["occlusion"] == "none":
            del values["occlusion"]
        placed.append((Place(None, segment), Clause(facts=values)))
    for vessel in parsed.normal:
        (members,) = [VESSELS[tree][vessel] for tree in VESSELS if vessel in VESSELS[tree]]
        name = next((name for name in VESSEL_SEGMENTS if name == vessel.lower()), None)
        place = Place(name) if name is not None else Place(None, members[0])
        placed.append((place, Clause(said="normal")))
    return placed


def _join(known: dict[str, Any], values: dict[str, Any]) -> None:
    for name, value in values.items():
        if known.setdefault(name, value) != value:
            raise NotRead("it contradicts what was said of the segment before")


def _check(
    facts: dict[str, dict[str, Any]], denied: dict[str, set[str]], said: dict[tuple[str, str], tuple[str, ...]]
) -> None:
    """Refuse what cannot all be true of one segment."""
    contradiction = NotRead("it contradicts what was said of the segment before")
    for segment, values in facts.items():
        there = {name for name, value in values.items() if value is True}
        there |= {"occlusion"} if values.get("occlusion", "none") != "none" else set()
        there |= {"in_stent_restenosis"} if values.get("in_stent_restenosis") else set()
        if there & denied.get(segment, set()):
            raise contradiction
        narrowed = (values.get("stenosis") or 0) > 0 or values.get("thrombus") or values.get("in_stent_restenosis")
        significant = is_significant(segment, values.get("stenosis"), values.get("occlusion", "none"))
        for (_, what), segments in said.items():
            if segment in segments and (narrowed if what == "normal" else significant):
                raise contradiction
        if values:
            try:
                Finding(segment, **values)
            except ValueError as error:
                raise NotRead("values that do not go together") from error
