"""Findings with their probabilities: what a writer of reports holds for true of each segment, whatever words it chose.

A report names the segments of the canonical wording in one order, so that each has one place where it is named or
passed over: its *slot*. A sentence about a segment says its stenosis first or not at all, so that the slot has one
place for the grade, too. Written q below is the model with the automaton's mask: of each next token, the softmax over
the ids that may follow (as ``StructuredReports`` masks them, with room enough and at temperature 1). Then for a segment
s of a report

    words[w] = q(what the report says of s is w  |  the report up to the slot of s)

    unnamed            s has no sentence, whatever vessel is then called normal and whoever is named next
    unsaid             s has a sentence, and it says no stenosis first (a stent, a flow, ...)
    none ... cto       s has a sentence that begins with a stenosis of this grade, summed over all its percents and over
                       all that may follow

The report up to the slot is teacher-forced: headers, and the sentences of earlier segments, as the report has them. In
the slot the sum is over all that could be written there; what the report says after it plays no part. Where several
segments could be named at one place, s is asked for given that none of those before it in the order is named there:
these are the factors of the chain rule, so that no probability is counted twice. No sum is cut: where ids that may
follow lead to different words, the model is asked again after each of them. Ids that alone may follow cost nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deepcoro.models.branches import Question
from deepcoro.models.captioning_decoder import CaptioningDecoder
from deepcoro.models.structured import After, Node, TokenAutomaton
from deepcoro.reports.automaton import STENOSIS_SAID, WORDS_OF_STENOSIS, State
from deepcoro.reports.grammar import parse_report
from deepcoro.reports.vocabulary import VESSELS, is_significant

WORDS = ("unnamed", "unsaid", *WORDS_OF_STENOSIS)
_PERCENT = {"none": 0, "mild": 1, "moderate": 50, "severe": 70, "critical": 90, "total": 100, "cto": 100}

NextScores = Callable[[Sequence[tuple[int, ...]]], Tensor]  # ids of R texts -> scores [R, V] of what follows each

Order = tuple[int, int, int]
_BEYOND: Order = (99, 0, 0)  # after the segments that are asked for
_Outcome = tuple[Order, str]  # what was named in a slot, and which of WORDS


@dataclass(frozen=True)
class SegmentProbability:
    """Of one segment.

    Args:
        segment: one of ``SEGMENTS``.
        words: of each of ``WORDS`` its probability; they sum to 1. NaN where the model gives what the report says
            before the segment less chance than a number can hold (1e-308).
        sentence: the probability of the report's sentence on it, word for word, given all before; ``None`` where the
            report has none.
    """

    segment: str
    words: dict[str, float]
    sentence: float | None

    @property
    def significant(self) -> float:
        """That the stenosis is significant: >= 70 % (left main >= 50 %), or an occlusion."""
        return sum(
            share
            for word, share in self.words.items()
            if word in _PERCENT
            and is_significant(self.segment, _PERCENT[word], word if word in ("total", "cto") else "none")
        )


@dataclass(frozen=True)
class ReportProbabilities:
    """Of a report: its canonical text, the log of that text's probability under q (NaN where it is too long to be
    read), its segments in their order, and those left out since what is asked of them is too long."""

    text: str
    log_probability: float
    segments: tuple[SegmentProbability, ...]
    left_out: tuple[str, ...] = ()


def report_probabilities(automaton: TokenAutomaton, text: str, next_scores: NextScores) -> ReportProbabilities:
    """The segments that ``text`` speaks of or passes over, with their probabilities (see the head of this file).

    Args:
        automaton: of the reports that may be written.
        text: a report of its language, such as a written one, or any other that says the same and nothing else
            (``ReportAutomaton.canonical``): case, spacing and order change nothing.
        next_scores: the model: texts from the start token on -> log-probabilities, or logits, of the next token [R, V].

    Raises:
        ValueError: no report of the automaton's language says that, a phrase of it cannot be read, or it contradicts
            itself.
    """
    asked = ReportQuestions(automaton, text)
    scores = next_scores([ids for ids, _ in asked.questions])
    pairs = zip(asked.questions, scores, strict=True)
    return asked.answered([row[list(tokens)].double().log_softmax(0).tolist() for (_, tokens), row in pairs])


class ReportQuestions:
    """All that has to be asked of a model to have the probabilities of a report; what to ask hangs on no answer.

    ``questions`` are pairs: ids of a text from the start token on, and the ids, two or more, of which one follows.

    Args:
        automaton, text: as of ``report_probabilities``.
        positions: tokens that can be read at most; segments of which more would have to be are left out.

    Raises:
        ValueError: as ``report_probabilities``.
    """

    def __init__(self, automaton: TokenAutomaton, text: str, positions: int | None = None) -> None:
        if automaton.automaton.read(text) is None:
            _refuse_lossy(text)
            text = automaton.automaton.canonical(text)
        room = math.inf if positions is None else positions
        self.text, self._automaton = text, automaton
        slots, self.ids = _slots(automaton, text)
        places = _open_places(automaton, self.ids)
        self._spelled = [(place, tokens) for place, tokens in places if place <= room]
        self._whole = len(self._spelled) == len(places)
        self.questions: list[Question] = [(self.ids[:place], tokens) for place, tokens in self._spelled]
        self._slots: list[_Slot] = []
        self._first: list[int] = []  # number of the first question of each slot
        left_out: list[str] = []
        for slot in slots:
            forks = [(slot.ids + ids, tokens) for ids, tokens, _ in _ways(automaton, slot).forks]
            if max([slot.end - 1, *(len(ids) for ids, _ in forks)]) > room:
                left_out += [segment for segment, _ in slot.asked(automaton)]
                continue
            self._slots.append(slot)
            self._first.append(len(self.questions))
            self.questions += forks
        self.left_out = tuple(left_out)

    @property
    def answers_some(self) -> bool:
        """Whether there is a segment that is not left out."""
        return bool(self._slots)

    def answered(self, answers: Sequence[Sequence[float]]) -> ReportProbabilities:
        """``answers``: for each question log q of each of its ids."""
        logs = [0.0] * len(self.ids)
        for (place, tokens), of_tokens in zip(self._spelled, answers[: len(self._spelled)], strict=True):
            logs[place] = of_tokens[tokens.index(self.ids[place])]
        found = []
        for slot, first in zip(self._slots, self._first, strict=True):
            outcomes = _ways(self._automaton, slot).outcomes(answers[first:])
            for segment, order in slot.asked(self._automaton):
                reached = {at: mass for at, mass in outcomes.items() if at[0] >= order}
                total = sum(reached.values()) or math.nan  # 0 where the model holds what is said before for impossible
                words = dict.fromkeys(WORDS, 0.0 * total)
                for (named, word), mass in reached.items():
                    words[word if named == order else "unnamed"] += mass / total
                sentence = math.exp(sum(logs[slot.begin : slot.end])) if slot.named == segment else None
                found.append(SegmentProbability(segment, words, sentence))
        return ReportProbabilities(self.text, sum(logs) if self._whole else math.nan, tuple(found), self.left_out)


def decoder_scores(decoder: CaptioningDecoder, video_tokens: Tensor, video_mask: Tensor, rows: int = 64) -> NextScores:
    """``next_scores`` of one unit: ``video_tokens`` [1, M, D] and ``video_mask`` [1, M].

    Args:
        rows: texts that are looked at at once.
    """

    @torch.no_grad()
    def next_scores(texts: Sequence[tuple[int, ...]]) -> Tensor:
        found = []
        for begin in range(0, len(texts), rows):
            some = [torch.tensor(text, device=video_tokens.device) for text in texts[begin : begin + rows]]
            ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)  # padded at the end: no token looks there
            memory = video_tokens.expand(len(some), -1, -1), video_mask.expand(len(some), -1)
            hidden = decoder(ids, *memory, return_hidden=True)
            last = torch.tensor([len(text) - 1 for text in some], device=ids.device)
            found.append((hidden[torch.arange(len(some), device=ids.device), last] @ decoder.output_weight.T).float())
        return torch.cat(found)

    return next_scores


def _refuse_lossy(text: str) -> None:
    """Raise ``ValueError`` where the canonical report of what was read would not say all that ``text`` says."""
    read = parse_report(text)
    if read.unread:
        raise ValueError(f"it says what is not of the canonical wording: {'; '.join(read.unread)}")
    found = {finding.segment for finding in read.findings}
    for vessels in VESSELS.values():
        for vessel in read.normal:
            if found & set(vessels.get(vessel, ())):
                raise ValueError(f"it contradicts itself: {vessel} is normal, and a segment of it has a finding")


@dataclass(frozen=True)
class _Slot:
    """A place between sentences, and the sentence that the report has there.

    Args:
        state: of the texts, before the sentence.
        ids: the report so far.
        begin, end: the sentence's place in the ids of the report.
        order: of what it names.
        named: the segment of a sentence with a finding.
    """

    state: State
    ids: tuple[int, ...]
    begin: int
    end: int
    order: Order
    named: str | None

    def asked(self, automaton: TokenAutomaton) -> list[tuple[str, Order]]:
        """Segments that could be named here, and that the report names or passes over here."""
        choices = automaton.automaton.choices(self.state)
        return [(c.about, c.order) for c in choices if c.kind == "name" and c.order <= self.order]


def _slots(automaton: TokenAutomaton, text: str) -> tuple[list[_Slot], tuple[int, ...]]:
    """The places of a report where segments are named or passed over, and its ids, start and end tokens included."""
    way = automaton.automaton.read(text)
    assert way is not None
    slots: list[_Slot] = []
    ids = automaton.prefix_ids
    for number, (state, choice, phrase) in enumerate(way):
        before, ids = ids, ids + tuple(automaton.spell(phrase, first=number == 0))
        # A name may turn out to be that of a normal vessel: "Left main:" with "normal." after it.
        if choice.kind in ("header", "name") or (choice.kind == "normal" and way[number - 1][1].kind != "name"):
            named = choice.about if choice.kind == "name" else None
            slots.append(_Slot(state, before, len(before), len(ids), choice.order, named))
        elif choice.kind == "normal":
            slots[-1] = replace(slots[-1], end=len(ids), named=None)
        else:
            slots[-1] = replace(slots[-1], end=len(ids))
    slots.append(_Slot(way[-1][1].target, ids, len(ids), len(ids) + 1, _BEYOND, None))
    return [slot for slot in slots if slot.asked(automaton)], (*ids, automaton.words.end_id)


def _open_places(automaton: TokenAutomaton, ids: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
    """Places of ``ids`` where others may stand, and which; not those of the prefix, which is given."""
    state, found = automaton.start, []
    for place in range(len(automaton.prefix_ids), len(ids)):
        allowed = automaton.allowed(state)
        if len(allowed) > 1:
            found.append((place, tuple(allowed)))
        state = automaton.step(state, ids[place])
    return found


@dataclass(frozen=True)
class _Ways:
    """All that could be written in a slot, down to ids that all lead to one outcome.

    Args:
        first: what is decided before any id is written, or the number of the first fork.
        forks: ids after those before the slot; the ids that may follow; and where each of them leads: an outcome, or
            the number of the fork that is met next.
    """

    first: _Outcome | int
    forks: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[_Outcome | int, ...]], ...]

    def outcomes(self, answers: Sequence[Sequence[float]]) -> dict[_Outcome, float]:
        """The mass of each outcome, from log q at each fork."""
        found: dict[_Outcome, float] = {}
        waiting: list[tuple[_Outcome | int, float]] = [(self.first, 1.0)]
        while waiting:
            lead, mass = waiting.pop()
            if isinstance(lead, tuple):
                found[lead] = found.get(lead, 0.0) + mass
            else:
                logs = answers[lead]
                waiting += [(to, mass * math.exp(log)) for to, log in zip(self.forks[lead][2], logs, strict=True)]
        return found


def _ways(automaton: TokenAutomaton, slot: _Slot) -> _Ways:
    return _ways_from(automaton, slot.state, slot.order)


@functools.lru_cache(maxsize=4096)  # of the same few states again and again, each some milliseconds
def _ways_from(automaton: TokenAutomaton, state: State, written: Order) -> _Ways:
    """``written``: the order of what the report has in the slot."""
    forks: list[Any] = []

    def lead(at: _At, ids: tuple[int, ...]) -> _Outcome | int:
        while True:
            ahead = {_outcome(at, *leaf, written) for leaf in _leaves(at.node)}
            outcome = ahead.pop()
            if not ahead and outcome is not None:
                return outcome
            children = tuple(at.node.children)
            if len(children) > 1:
                break
            at, ids = _followed(automaton, at, children[0]), (*ids, *children)  # costs nothing: no other may follow
        number = len(forks)
        forks.append(None)
        forks[number] = (ids, children, tuple(lead(_followed(automaton, at, c), (*ids, c)) for c in children))
        return number

    after, node = automaton.at(state)
    assert after is not None
    return _Ways(lead(_At(after, node), ()), tuple(forks))


@dataclass(frozen=True)
class _At:
    """A place in what could be written in a slot: at ``node`` of what may follow ``after``, and inside the sentence of
    ``segment``, or before any."""

    after: After
    node: Node
    segment: str | None = None


def _followed(automaton: TokenAutomaton, at: _At, token: int) -> _At:
    child = at.node.children[token]
    if child.leaf is not None and child.leaf[0] >= 0:
        choice = at.after.choices[child.leaf[0]]
        after, root = automaton.at(choice.target)
        if choice.kind == "name" and after is not None:
            return _At(after, root, choice.about)
    return _At(at.after, child, at.segment)


def _outcome(at: _At, number: int, phrase: str, written: Order) -> _Outcome | None:
    """What a phrase that may follow decides; ``None``: a name, after which the sentence has to be seen."""
    choice = at.after.choices[number] if number >= 0 else None  # the end of the report
    if choice is None or choice.order > written:
        return _BEYOND, "unnamed"
    if choice.kind == "name":
        return None
    if at.segment is None or choice.kind == "normal":
        return choice.order, "unnamed"
    return choice.order, STENOSIS_SAID[phrase[:-1]] if choice.kind == "stenosis" else "unsaid"


def _leaves(node: Node) -> Iterator[tuple[int, str]]:
    if node.leaf is not None:
        yield node.leaf
    for child in node.children.values():
        yield from _leaves(child)
