"""A folded sentence to tokens, and a clause of it to what it says. Whatever is not understood raises ``NotRead``.

mid lad 80%, no thrombus  ->  [place mid_lad; stenosis 80]  [denied: thrombus]
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from deepcoro.reports.synonyms import POSITIONS, VESSEL_SEGMENTS, Synonyms
from deepcoro.reports.vocabulary import grade

MAX_RANGE = 20  # "70-80%" is read as its middle; a wider range says too little
MODERATE = 50  # percent
ROMAN = {"i": 1, "ii": 2, "iii": 3}
PLACES = ("segments", "vessels", "positions")
BESIDE = {"at", "au", "a la", "au niveau", "a", "level", "niveau"}  # "at D1" may be in D1, or in the vessel it leaves
SEEN = ("thrombus", "stent", "pci", "collaterals")  # statements that are there or not
_PERCENT = r"(?:%|percent|per cent|pour cent|pourcent)"
_NUMBERS = re.compile(
    r"(?:(?:flow|flux|grade)\s+)?timi(?:[\s:=-]+(?:flow|flux|grade|score))*[\s:=-]*(?P<timi>[0-3]|i{1,3})(?:\s*/\s*3)?"
    r"(?!\w|\s*[-/]\s*\d)(?:\s+(?:flow|flux)\b)?"
    r"|\bifr\b(?:\s+(?:of|is|was|value|de|a))*[\s:=]*(?P<ifr>[01][.,]\d{1,2})(?![\d%]|[.,]\d)"
    r"|\bmedina\b(?:\s+(?:class|type|classification))*[\s:=(]*(?P<medina>[01][\s,./-]{0,2}[01][\s,./-]{0,2}[01])(?!\d)\)?"
    rf"|(?<![\w.<>≤≥=-])(?<!\d,)[~≈]?\s*(?P<low>\d{{1,3}})\s*%?\s*(?:-|to|a)\s*(?P<high>\d{{1,3}})\s*{_PERCENT}(?!\w)"
    rf"|(?<![\w.<>≤≥=-])(?<!\d,)[~≈]?\s*(?P<percent>\d{{1,3}})\s*{_PERCENT}(?!\w)"
)
_OTHER = re.compile(r"[^\s,:()/'\"-]+|[^\s]")


class NotRead(Exception):
    """A sentence that is not understood: ``why``, and the phrases to list."""

    def __init__(self, why: str, phrases: tuple[str, ...] = ()) -> None:
        super().__init__(why)
        self.why = why
        self.phrases = phrases


@dataclass(frozen=True)
class Token:
    """A piece of a sentence: ``kind`` is a section of the synonyms, a number's name, ``comma`` or ``unknown``."""

    kind: str
    value: str
    text: str


@dataclass(frozen=True)
class Place:
    """Where a statement belongs: a segment, or a vessel (``lad``, ``left``, ``all``, ...) where no segment is named."""

    vessel: str | None = None
    segment: str | None = None

    @property
    def is_branch(self) -> bool:
        """A segment that leaves the vessel, such as D1 the LAD."""
        own = VESSEL_SEGMENTS[self.vessel][: len(POSITIONS)] if self.vessel is not None else ()
        return self.vessel is not None and self.segment is not None and self.segment not in own

    @property
    def segments(self) -> tuple[str, ...]:
        """The segments that a statement of the whole place is about: of a vessel its own, and not its branches, since
        "normal LAD, D1 80%" is no contradiction."""
        if self.segment is not None:
            return (self.segment,)
        members = VESSEL_SEGMENTS[self.vessel] if self.vessel is not None else ()
        return members[: len(POSITIONS)] if self.vessel in ("lad", "lcx", "rca") else members


@dataclass
class Clause:
    """What a part of a sentence says. ``missing`` names what an otherwise understood statement lacks."""

    vessel: str | None = None
    segment: str | None = None
    position: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    said: str | None = None  # "normal" or "not significant"
    missing: set[str] = field(default_factory=set)  # "percent", "amount of calcification"
    graded: str | None = None
    dominance: str | None = None
    dominant: bool = False  # its vessel is
    negated: bool = False
    heading: bool = False  # "LAD:"

    @property
    def has_place(self) -> bool:
        """It names a segment or a vessel, not a position alone."""
        return self.vessel is not None or self.segment is not None

    @property
    def only_place(self) -> bool:
        """It names a place and says nothing of it."""
        return self.has_place and not (self.has_content or self.dominance or self.dominant)

    @property
    def has_content(self) -> bool:
        """It says something of a place."""
        return bool(self.facts or self.denied or self.said or self.missing)

    def place(self, before: Place | None) -> Place | None:
        """Its place, or with a position alone that part of the vessel spoken of ``before``."""
        vessel = self.vessel or (before.vessel if before is not None and not self.has_place else None)
        if self.segment is not None:
            if self.vessel is not None:  # "LAD 80% at D1" is of the LAD, "LAD D1 80%" of the branch
                raise NotRead("two vessels in one statement")
            owner = next((name for name in ("lad", "lcx", "rca") if self.segment in VESSEL_SEGMENTS[name]), None)
            return Place(owner, self.segment)
        if self.position is not None:
            if vessel not in ("lad", "lcx", "rca"):
                raise NotRead("a position without a vessel that has one")
            return Place(vessel, VESSEL_SEGMENTS[vessel][POSITIONS.index(self.position)])
        return Place(self.vessel) if self.vessel is not None else before


def tokens_of(sentence: str, synonyms: Synonyms) -> list[Token]:
    """Cut a folded sentence into numbers, known phrases, commas, colons behind a place, and unknown words; other
    punctuation says nothing."""
    tokens: list[Token] = []
    at = 0
    while at < len(sentence):
        if match := _NUMBERS.match(sentence, at):
            kind = "range" if match["low"] else match.lastgroup or ""
            value = f"{match['low']}-{match['high']}" if match["low"] else match[kind]
            tokens.append(Token(kind, value, match[0].strip()))
        elif match := synonyms.pattern.match(sentence, at):
            section, key = synonyms.meanings[" ".join(re.sub(r"[-']", " ", match[0]).split())]
            tokens.append(Token(section, key, match[0]))
        elif match := _OTHER.match(sentence, at):
            # "no thrombus - occluded", "(no thrombus) calcified": neither a dash nor a bracket carries a negation on.
            ends = match[0] == ")" or (match[0] == "-" and sentence[at - 1 : match.end() + 1] == " - ")
            if match[0] == "," or (ends and any(token.kind == "negation" for token in tokens)):
                tokens.append(Token("comma", "", ","))
            elif match[0] == ":" and tokens and tokens[-1].kind in PLACES:
                tokens.append(Token("colon", "", ":"))
            elif match[0] not in ":()/'\"-":
                tokens.append(Token("unknown", "", match[0]))
        else:  # white space
            at += 1
            continue
        at = match.end()
    return tokens


def unknown_phrases(tokens: list[Token]) -> tuple[str, ...]:
    """Runs of unknown words, with the words that change nothing between them."""
    phrases: list[list[str]] = [[]]
    between: list[str] = []
    for token in tokens:
        if token.kind == "unknown":
            phrases[-1] += [*(between if phrases[-1] else []), token.text]
            between = []
        elif token.kind == "ignore":
            between.append(token.text)
        else:
            phrases.append([])
            between = []
    return tuple(" ".join(words) for words in phrases if words)


def read_clause(tokens: list[Token], synonyms: Synonyms, negated: bool = False) -> Clause:
    """What the tokens of one clause say; ``negated`` if it goes on with the negation of the clause before.

    Raises:
        NotRead: the tokens contradict each other, or their combination is not known.
    """
    clause = Clause(negated=negated)
    words: dict[str, list[str]] = {}  # of what is said to be there
    denied: dict[str, list[str]] = {}  # of what is said not to be there
    for at, token in enumerate(tokens):
        if token.kind == "segments" and _beside(tokens[:at]):
            raise NotRead("in a branch, or where it leaves its vessel?")
        if token.kind == "negation":
            clause.negated = True
        elif token.kind == "alternative" and not clause.negated:
            raise NotRead("it leaves open which of two is meant")
        elif token.kind in PLACES:
            words.setdefault(token.kind, []).append(token.value)
        elif token.kind not in ("ignore", "alternative", "comma", "joining", "colon"):
            (denied if clause.negated else words).setdefault(token.kind, []).append(token.value)
    clause.segment = _one(words.pop("segments", []), "two segments in one statement")
    clause.vessel = _one(words.pop("vessels", []), "two vessels in one statement")
    clause.position = _one(words.pop("positions", []), "two segments in one statement")
    clause.dominance = _one(words.pop("dominance", []), "two kinds of dominance")
    clause.dominant = words.pop("dominant", None) is not None
    if clause.negated and not denied:
        raise NotRead("a negation of nothing known")
    _read_denied(denied, clause)
    _read_numbers(words, clause)
    _read_narrowing(words, clause, synonyms)
    _read_others(words, clause)
    if words:
        raise NotRead("a combination that is not known")
    return clause


def _beside(before: list[Token]) -> bool:
    """Whether the words that lead up to a branch may mean its level in the vessel and not the branch itself."""
    start = next((at for at in range(len(before), 0, -1) if before[at - 1].kind != "ignore"), 0)
    # At the start "a" is the article: "a D1 stenosis".
    return any(token.text in BESIDE and (start > 0 or token.text != "a") for token in before[start:])


def _one(values: list[str], why: str) -> str | None:
    if len(set(values)) > 1:
        raise NotRead(why)
    return values[0] if values else None


def _read_denied(denied: dict[str, list[str]], clause: Clause) -> None:
    kinds = set(denied)
    for kind in kinds & {*SEEN, "occlusion", "in_stent_restenosis"}:
        clause.denied.add(kind)
        kinds.discard(kind)
    if "calcification" in kinds and set(denied["calcification"]) == {"unknown"}:
        clause.facts["calcification"] = "none"
        kinds.discard("calcification")
    if "stenosis" in kinds:
        clause.said = "not significant" if "significant" in kinds else "no stenosis"
        kinds -= {"stenosis", "significant"}
    if kinds:  # "no 80% stenosis", "not normal", "no severe stenosis": what then is there?
        raise NotRead("a negation that leaves open what is there")


def _read_numbers(words: dict[str, list[str]], clause: Clause) -> None:
    if "timi" in words:
        flow = _one(words.pop("timi"), "two TIMI grades in one statement") or ""
        clause.facts["timi"] = ROMAN[flow] if flow in ROMAN else int(flow)
    if "ifr" in words:
        ratio = float((_one(words.pop("ifr"), "two iFR values in one statement") or "").replace(",", "."))
        if ratio > 1:
            raise NotRead("an iFR above 1")
        clause.facts["ifr"] = ratio
    if "medina" in words:
        digits = re.findall(r"[01]", _one(words.pop("medina"), "two Medina classes in one statement") or "")
        clause.facts["medina"] = ",".join(digits)


def _read_narrowing(words: dict[str, list[str]], clause: Clause, synonyms: Synonyms) -> None:
    """Stenosis, occlusion and in-stent restenosis: they share the percent."""
    percent = _percent(words)
    graded = _one(words.pop("grades", []), "two grades in one statement")
    occlusion = set(words.pop("occlusion", []))
    restenosis = words.pop("in_stent_restenosis", None) is not None
    narrowed = words.pop("stenosis", None) is not None
    significant = words.pop("significant", None) is not None
    if percent is None and graded in synonyms.assumed_percents and (narrowed or restenosis):
        percent = synonyms.assumed_percents[graded]
    if percent is not None and graded is not None and grade(percent) != graded:
        raise NotRead("a grade that is not of its percent")
    if occlusion and percent not in (None, 100):
        raise NotRead("an occlusion that is not of its percent")
    if restenosis:
        if occlusion or percent is None:
            clause.missing.add("percent of the restenosis")
        else:
            clause.facts |= {"stent": True, "in_stent_restenosis": percent}
            words.pop("stent", None)
    elif percent is not None and "stent" in words:
        raise NotRead("a percent beside a stent: of the stent, or of the vessel?")
    elif occlusion or percent == 100:
        clause.facts |= {"stenosis": 100, "occlusion": "cto" if "cto" in occlusion else "total"}
    elif percent is not None:
        clause.facts["stenosis"] = percent
    elif narrowed:
        clause.missing.add("percent")
        clause.graded = graded
    elif significant or (graded is not None and (graded != "mild" or "not_significant" not in words)):
        raise NotRead("a grade of nothing known")


def _percent(words: dict[str, list[str]]) -> int | None:
    percents = [int(value) for value in words.pop("percent", [])] + [int(value) for value in words.pop("percents", [])]
    for value in words.pop("range", []):
        low, high = (int(end) for end in value.split("-"))
        if not 0 <= high - low <= MAX_RANGE:
            raise NotRead("a range that is too wide")
        percents.append((low + high) // 2)
    if len(set(percents)) > 1:
        raise NotRead("two percents in one statement")
    if percents and percents[0] > 100:
        raise NotRead("more than 100%")
    return percents[0] if percents else None


def _read_others(words: dict[str, list[str]], clause: Clause) -> None:
    for kind in SEEN:
        if words.pop(kind, None) is not None:
            clause.facts[kind] = True
    if "calcification" in words:
        amounts = set(words.pop("calcification"))
        amount = _one(sorted(amounts - {"unknown"}), "two amounts of calcification")
        if amount is None:
            clause.missing.add("amount of calcification")
        else:
            clause.facts["calcification"] = amount
    for kind in ("normal", "not_significant"):
        if words.pop(kind, None) is not None:
            if kind == "not_significant" and clause.graded in (None, "mild"):
                clause.missing.discard("percent")  # "non-obstructive disease": what it lacks is what it denies
                if 0 < clause.facts.get("stenosis", 0) < MODERATE:
                    continue  # "non-significant 40% stenosis": the percent says more
            if clause.said not in (None, kind.replace("_", " ")) or clause.missing or "stenosis" in clause.facts:
                raise NotRead("normal and not normal in one statement")
            clause.said = kind.replace("_", " ")
