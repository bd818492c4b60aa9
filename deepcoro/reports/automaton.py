"""Which text may follow in the canonical wording: an automaton whose every path is a report.

    automaton = ReportAutomaton.of()                            # any dominance, any tree or the whole study
    state = automaton.start
    [choice.phrases for choice in automaton.choices(state)]     # ("Right dominance.",), ("Left coronary tree.",), ...

The language of ``ReportAutomaton.of(dominances, trees)`` is exactly

    { render_report(findings, d, t)  for every valid list of findings, d in dominances, t in trees }

so that each of its texts is read back completely by ``parse_report``: segments of the dominance only, each once and in
order, a grade that is of its percent, 100 % only as an occlusion. A union of several ``d`` and ``t`` follows all of
them at once until the text tells them apart ("Left dominance." or a PDA told in the left tree).

A text is a row of phrases, each of whole words and joined by a space. Every phrase ends in a colon, comma or full stop,
and none begins another; so the way through a text is unique, and whoever writes token by token may spell each phrase
for itself (``models.structured``).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from deepcoro.reports.grammar import CALCIFICATIONS, Finding, parse_report, render_report, upper_first, vessels_of
from deepcoro.reports.vocabulary import DOMINANCES, SEGMENT_NAMES, SEGMENTS, TREES, grade

WORDS_OF_STENOSIS = ("none", "mild", "moderate", "severe", "critical", "total", "cto")


def _said(**values: object) -> str:
    """The one phrase of a finding with these values, as reports write it."""
    (phrase,) = Finding(SEGMENTS[0], **values).clauses()  # type: ignore[arg-type]
    return phrase


_OCCLUDED = {_said(stenosis=100, occlusion=word): word for word in ("total", "cto")}
# "80% stenosis (severe)" -> "severe": what a phrase of the first kind of clause says, one of WORDS_OF_STENOSIS.
STENOSIS_SAID: dict[str, str] = {_said(stenosis=percent): grade(percent) for percent in range(100)} | _OCCLUDED

# The kinds of clauses in their order, each with all that it may say. A sentence has at most one of a kind.
CLAUSES: dict[str, tuple[str, ...]] = {
    "stenosis": tuple(STENOSIS_SAID),
    "stent": (_said(stent=True), *(_said(stent=True, in_stent_restenosis=percent) for percent in range(101))),
    "calcification": tuple(_said(calcification=amount) for amount in CALCIFICATIONS),
    "thrombus": (_said(thrombus=True),),
    "collaterals": (_said(collaterals=True),),
    "timi": tuple(_said(timi=flow) for flow in range(4)),
    "ifr": tuple(_said(ifr=hundredths / 100) for hundredths in range(101)),
    "medina": tuple(_said(medina=f"{a},{b},{c}") for a in "01" for b in "01" for c in "01"),
    "pci": (_said(pci=True),),
}


class Sentences(NamedTuple):
    """A step of a report: a header, or what is said of a vessel.

    Args:
        header: the text, where it is a header.
        vessel, segments: of whom is spoken else.
        normal: whether the vessel is called normal where none of its segments has a finding.
        order: place in a report, comparable between reports of different dominance.
    """

    header: str
    vessel: str
    segments: tuple[str, ...]
    normal: bool
    order: tuple[int, int]


class Place(NamedTuple):
    """A place in one plan: between sentences (``clause`` -1: segments from ``member`` on may be named), or in the
    sentence of ``member``, where kinds of clauses from ``clause`` on may follow."""

    plan: int
    step: int
    member: int
    clause: int


State = frozenset[Place]  # the places where a report may be after one text


@dataclass(frozen=True)
class Choice:
    """What may be said next, and where that leads.

    Args:
        phrases: texts of one meaning but for their value, such as the percent.
        target: the state after any of them.
        kind: ``header``, ``name`` (of a segment), ``normal`` (a vessel), or one of the kinds of clauses.
        about: the segment or vessel, or the header's text.
        order: place in the report: what is named later has a higher one.
    """

    phrases: tuple[str, ...]
    target: State
    kind: str
    about: str
    order: tuple[int, int, int]


class ReportAutomaton:
    """See the head of this file.

    Args:
        plans: the steps of a report, for each kind of report that may be written.
        clauses: kinds of clauses in their order; ``CLAUSES``.
    """

    def __init__(
        self, plans: Sequence[tuple[Sentences, ...]], clauses: dict[str, tuple[str, ...]] | None = None
    ) -> None:
        self._plans = tuple(dict.fromkeys(plans))
        clauses = CLAUSES if clauses is None else clauses
        self._kinds = tuple(clauses)
        self._going_on = [tuple(f"{phrase}," for phrase in phrases) for phrases in clauses.values()]
        self._closing = [tuple(f"{phrase}." for phrase in phrases) for phrases in clauses.values()]
        self._known: dict[State, tuple[Choice, ...]] = {}
        self.kinds: tuple[tuple[str | None, str | None], ...] = ()  # (dominance, tree), of what ``of`` was asked for
        self.start: State = frozenset(Place(plan, 0, 0, -1) for plan in range(len(self._plans)))

    @classmethod
    def of(
        cls,
        dominances: Iterable[str | None] = (None, *DOMINANCES),
        trees: Iterable[str | None] = (None, *TREES),
    ) -> ReportAutomaton:
        """The reports of these dominances and trees, as ``render_report`` takes them.

        Args:
            dominances: those that may be written; ``None`` for reports that name none and are laid out as of right
                dominance. The default leaves it to the writer.
            trees: those that may be written; ``None`` for a whole study.

        Raises:
            ValueError: a word is unknown, or nothing is left to write.
        """
        dominances, trees = tuple(dominances), tuple(trees)
        for name, given, known in (("dominance", dominances, (None, *DOMINANCES)), ("tree", trees, (None, *TREES))):
            strange = [word for word in given if word not in known]
            if strange or not given:
                raise ValueError(f"expected one {name} or more of {known}, got {strange or 'none'}")
        made = cls([_plan(dominance, tree) for tree in trees for dominance in dominances])
        made.kinds = tuple((dominance, tree) for tree in trees for dominance in dominances)
        return made

    def choices(self, state: State) -> tuple[Choice, ...]:
        """All that may be said next."""
        if state not in self._known:
            merged: dict[tuple[str, ...], Choice] = {}
            for place in sorted(state):
                for choice in self._of_place(place):
                    same = merged.get(choice.phrases)
                    target = choice.target | same.target if same else choice.target
                    merged[choice.phrases] = Choice(choice.phrases, target, choice.kind, choice.about, choice.order)
            self._known[state] = tuple(merged.values())
        return self._known[state]

    def may_end(self, state: State) -> bool:
        """Whether the text so far is a report."""
        return any(place.clause < 0 and self._passable(place) for place in state)

    def read(self, text: str) -> list[tuple[State, Choice, str]] | None:
        """The way through ``text``: each state with the choice and the phrase taken there; ``None`` where the text is
        not of the language."""
        state, at, way = self.start, 0, []
        while at < len(text):
            for choice in self.choices(state):
                phrase = next((p for p in choice.phrases if text.startswith(p, at)), None)
                if phrase is not None and text[at + len(phrase) : at + len(phrase) + 1] in ("", " "):
                    break
            else:
                return None
            way.append((state, choice, phrase))
            state, at = choice.target, at + len(phrase) + 1
        return way if self.may_end(state) and not text.endswith(" ") else None

    def canonical(self, text: str) -> str:
        """The text of this language that says what ``text`` says, whatever its case, spacing, order or vessels left
        out; what ``parse_report`` cannot read of it is lost.

        Raises:
            ValueError: no text of the language says that (the other tree, a segment of another dominance).
        """
        read = parse_report(text)
        close = []
        for dominance, tree in self.kinds:
            made = render_report(read.findings, dominance, tree)
            again = parse_report(made)
            if (again.findings, again.dominance, set(again.trees)) == (read.findings, read.dominance, set(read.trees)):
                close.append((again.normal != read.normal, made))
        if not close:
            raise ValueError(f"no report of the canonical wording that may be written says {text!r}")
        return min(close, key=lambda one: one[0])[1]

    def random_text(self, chance: random.Random) -> str:
        """A report by uniform choices: unlike any real one, and likely to say everything sooner or later."""
        state = self.start
        text: list[str] = []
        while True:
            choices = self.choices(state)
            taken = chance.randrange(len(choices) + self.may_end(state))
            if taken == len(choices):
                return " ".join(text)
            text.append(chance.choice(choices[taken].phrases))
            state = choices[taken].target

    def states(self) -> list[State]:
        """Every state that a text can lead to."""
        found = {self.start: None}
        waiting = [self.start]
        while waiting:
            new = [c.target for c in self.choices(waiting.pop()) if c.target not in found]
            found.update(dict.fromkeys(new))
            waiting += dict.fromkeys(new)
        return list(found)

    def _of_place(self, place: Place) -> list[Choice]:
        steps = self._plans[place.plan]
        if place.clause >= 0:
            return self._in_sentence(place, steps[place.step])
        found: list[Choice] = []
        for number in range(place.step, len(steps)):
            step, first = steps[number], place.member if number == place.step else 0
            after = frozenset([Place(place.plan, number + 1, 0, -1)])
            if step.header:
                return [*found, Choice((step.header,), after, "header", step.header, (*step.order, -1))]
            for member in range(first, len(step.segments)):
                segment = step.segments[member]
                named = frozenset([Place(place.plan, number, member, 0)])
                name = upper_first(f"{SEGMENT_NAMES[segment]}:")
                found.append(Choice((name,), named, "name", segment, _order(step, segment)))
            if step.normal and first == 0:
                if step.vessel not in (SEGMENT_NAMES[segment] for segment in step.segments):
                    text = upper_first(f"{step.vessel}: normal.")
                    found.append(Choice((text,), after, "normal", step.vessel, _order(step, None)))
                return found
        return found

    def _in_sentence(self, place: Place, step: Sentences) -> list[Choice]:
        segment = step.segments[place.member]
        order = _order(step, segment)
        over = frozenset([place._replace(member=place.member + 1, clause=-1)])
        found: list[Choice] = []
        # "Left main:" and "PDA:" begin what is said of the segment as well as "Left main: normal."
        if place.clause == 0 and place.member == 0 and step.normal and SEGMENT_NAMES[segment] == step.vessel:
            after = frozenset([Place(place.plan, place.step + 1, 0, -1)])
            found.append(Choice(("normal.",), after, "normal", step.vessel, _order(step, None)))
        for number in range(place.clause, len(self._kinds)):
            kind = self._kinds[number]
            found.append(Choice(self._closing[number], over, kind, segment, order))
            if number + 1 < len(self._kinds):
                more = frozenset([place._replace(clause=number + 1)])
                found.append(Choice(self._going_on[number], more, kind, segment, order))
        return found

    def _passable(self, place: Place) -> bool:
        """Whether nothing more has to be said from here to the end of the plan."""
        steps = self._plans[place.plan][place.step :]
        return not any(
            step.header or (step.normal and (number > 0 or place.member == 0)) for number, step in enumerate(steps)
        )


def _order(step: Sentences, segment: str | None) -> tuple[int, int, int]:
    return (*step.order, len(SEGMENTS) if segment is None else SEGMENTS.index(segment))


def _plan(dominance: str | None, tree: str | None) -> tuple[Sentences, ...]:
    steps = []
    if tree is None and dominance is not None:
        steps.append(Sentences(f"{dominance.capitalize()} dominance.", "", (), False, (-1, -1)))
    vessels = [vessel for home in TREES for vessel, _, _ in vessels_of(home)]
    for number, name in enumerate(TREES):
        if tree in (None, name):
            steps.append(Sentences(f"{name.capitalize()} coronary tree.", "", (), False, (number, -1)))
            for vessel, segments, normal in vessels_of(name, dominance):
                steps.append(Sentences("", vessel, segments, normal, (number, vessels.index(vessel))))
    return tuple(steps)
