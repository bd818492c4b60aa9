"""The clauses of a sentence, and where each belongs.

80% stenosis of the mid LAD with TIMI 2 flow, no thrombus   ->  three clauses, all of the mid LAD
"""

from __future__ import annotations

from deepcoro.reports.clauses import PLACES, Clause, NotRead, Place, Token, read_clause
from deepcoro.reports.synonyms import Synonyms
from deepcoro.reports.vocabulary import grade

_THERE_OR_NOT = {"thrombus", "calcification", "collaterals", "stent", "pci", "occlusion", "in_stent_restenosis"}
_DOMINANT = {"rca": "right", "lcx": "left"}
_THERE_OR_NOT |= {"stenosis", "significant"}


def clauses_of(tokens: list[Token], synonyms: Synonyms) -> list[Clause]:
    """The clauses between commas and joining words, each read.

    "No thrombus, calcification or stent" denies all three, and "no thrombus, calcification" is not read: a bare word
    after a negation may belong to it or not.

    Raises:
        NotRead: a clause is not understood.
    """
    parts: list[list[Token]] = [[]]
    for token in tokens:
        if token.kind not in ("comma", "joining"):
            parts[-1].append(token)
        if token.kind in ("comma", "joining", "colon"):
            parts.append([])
    parts = [part for part in parts if any(token.kind != "ignore" for token in part)]
    clauses: list[Clause] = []
    for at, part in enumerate(parts):
        negated = bool(clauses) and clauses[-1].negated and _bare(part)
        if negated and clauses[-1].has_place and any(token.kind in ("segments", "vessels") for token in part):
            negated = False  # "LAD: no stenosis, RCA: stent" starts afresh
        if negated:
            rest = parts[at:]
            bare = rest[: next((n for n, later in enumerate(rest) if not _bare(later)), len(rest))]
            if not any(token.kind == "alternative" for later in bare for token in later):
                raise NotRead("it may be negated or not")
        clauses.append(read_clause(part, synonyms, negated))
        clauses[-1].heading = part[-1].kind == "colon" and not clauses[-1].has_content
    return clauses


def _bare(part: list[Token]) -> bool:
    """Nothing but words for what may be there or not, and perhaps a place."""
    kinds = {token.kind for token in part} - {"ignore", "alternative", "colon", *PLACES}
    return bool(kinds) and kinds <= _THERE_OR_NOT


def only_place(clauses: list[Clause]) -> Place | None:
    """The place of a heading: one clause that names a vessel and says nothing of it."""
    if len(clauses) > 1:
        raise NotRead("vessels, and nothing said of them")
    return clauses[0].place(None)


def with_places(clauses: list[Clause], heading: Place | None) -> list[tuple[Place | None, Clause]]:
    """Each clause with its place: its own, else that of the clause before, else the only one of the sentence."""
    named = any(clause.has_place for clause in clauses)
    before: Place | None = None if named else heading
    waiting: list[Clause] = []  # clauses before the first place
    silent: list[Place] = []  # "LAD and LCX are normal": the LAD stands alone in its clause
    placed: list[tuple[Place | None, Clause]] = []
    for at, clause in enumerate(clauses):
        if clause.position is not None and not clause.has_place:
            if before is None:
                raise NotRead("a position without a vessel")
            if before.is_branch:
                if at == 0 or not clauses[at - 1].has_content:
                    clause.position = None  # "D1: ostial 90%" is of D1
                elif not any(earlier.vessel == before.vessel for earlier in clauses[:at]):
                    raise NotRead("in a branch, or in the vessel it leaves?")
            elif silent and silent[-1].segment is None:
                silent.pop()  # "LAD, mid 80%"
        context = before or heading
        if clause.segment == "posterolateral" and context is not None and context.vessel == "lcx":
            raise NotRead("a posterolateral branch of the LCX, or of the RCA?")
        before = clause.place(before)
        if clause.dominant:
            if before is None or before.segment is not None or before.vessel not in _DOMINANT:
                raise NotRead("dominant, and not of the RCA or the LCX")
            clause.dominance = _DOMINANT[before.vessel]
        names = clause.has_place or clause.position is not None
        if not clause.has_content:
            if names and before is not None and clause.dominance is None and (silent or not clause.heading):
                silent.append(before)
            placed.append((before, clause))
        elif before is None:
            waiting.append(clause)
        else:
            alone = silent if names else silent[:-1]  # "RCA, thrombus": the last is where the clause belongs
            if alone and (clause.said is None or clause.facts or clause.missing):
                raise NotRead("a vessel, and nothing said of it")
            placed += [(place, clause) for place in alone]
            silent = []
            placed.append((before, clause))
    if silent and len({*silent}) == 1 and waiting:
        silent = []  # "70% stenosis and thrombus in the mid LAD" with the place in a clause of its own
    if silent:
        raise NotRead("a vessel, and nothing said of it")
    places = {place for place, clause in placed if place is not None and clause.has_place and not clause.heading}
    if waiting and named and len(places) > 1:
        raise NotRead("of which of the vessels is not clear")
    only = next(iter(places)) if waiting and named else None
    placed = [(only, clause) for clause in waiting] + placed
    _complete(placed)
    return placed


def _complete(placed: list[tuple[Place | None, Clause]]) -> None:
    """A percent may stand in another clause than its stenosis: "severe stenosis of the mid LAD, 80%"."""
    for place, clause in placed:
        percents = [other.facts["stenosis"] for at, other in placed if at == place and "stenosis" in other.facts]
        if "percent" in clause.missing and len(percents) == 1:
            if clause.graded is not None and clause.graded != grade(percents[0]):
                raise NotRead("a grade that is not of its percent")
            clause.missing.discard("percent")
