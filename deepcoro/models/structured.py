"""The automaton of reports over token ids: which ids may follow, so that what is written is a report.

    automaton = TokenAutomaton(ReportAutomaton.of(trees=("left", "right")), tokenizer)
    state = automaton.start
    automaton.allowed(state, left=64)          # ids that may follow, when 64 tokens may still be written
    state = automaton.step(state, token)

A report is spelled as the tokenizer itself spells it, and in no other way, so that a trained model meets what it was
trained on. Each phrase of ``reports.automaton`` becomes ids once, and the phrases that may follow a text a tree of ids
(a trie); states that may be followed by the same phrases share one. That a text's ids are those of its words, one after
the other, holds for tokenizers that part a text at its spaces (WordPiece, byte-level BPE); it is tried on every pair of
words that can meet and on random reports, and a tokenizer that does otherwise is refused.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from deepcoro.errors import ConfigError
from deepcoro.reports.automaton import Choice, ReportAutomaton, State

_ANCHOR = "normal"  # a word before the word that is spelled, since the first of a text may be spelled otherwise
_NUM_TRIED = 100  # random reports
_NUM_NAMED = 12  # words that an error lists


class Words(Protocol):
    """What is asked of a tokenizer: ``data.text.ReportTokenizer``."""

    start_id: int
    end_id: int
    pad_id: int

    def encode(self, texts: Sequence[str | None]) -> tuple[Any, Any]:
        """Texts -> ids [B, L] between start and end, padded, and lengths [B]."""
        ...

    def uncut(self) -> Words:
        """The same, of texts of any length."""
        ...

    def prompt(self, *texts: str) -> list[int]:
        """The start token and the ids of ``texts``, each by itself."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text."""
        ...


@dataclass(eq=False)
class Node:
    """A place inside the ids of the phrases that may follow a text.

    Args:
        children: by the next id.
        leaf: at the end of a phrase, the number of its choice (-1: the end token) and the phrase.
        nearest: of each choice that can still be met, the fewest ids to the end of one of its phrases.
    """

    children: dict[int, Node] = field(default_factory=dict)
    leaf: tuple[int, str] | None = None
    nearest: dict[int, int] = field(default_factory=dict)


@dataclass(eq=False)
class After:
    """What may follow a text: the choices of the text automaton, and their phrases as a tree of ids."""

    root: Node
    choices: tuple[Choice, ...]


class TokenState(NamedTuple):
    """After some ids: the last text that was complete, and how far into a phrase. ``after`` is ``None`` once the report
    has ended, or where it cannot be one."""

    after: After | None
    node: Node


ENDED = TokenState(None, Node())  # the end token was written
LOST = TokenState(None, Node())  # no report begins like this


class TokenAutomaton:
    """See the head of this file.

    Args:
        automaton: of the texts that may be written.
        words: the tokenizer, such as ``data.text.ReportTokenizer``.
        prefix: text that stands before every report and is given, such as a task's. It and the report are spelled each
            by itself, as training spells them (``ReportTokenizer.encode_after``); a space between them is in neither.

    Raises:
        ConfigError: the tokenizer does not know a word, does not spell a text word by word, or puts more around it than
            a start and an end token.
    """

    def __init__(self, automaton: ReportAutomaton, words: Words, prefix: str = "") -> None:
        self.automaton, self.words = automaton, words
        self._uncut = words.uncut()  # where texts for training are cut says nothing of how a word is spelled
        self._refuse_other_frames()
        self.prefix_ids: tuple[int, ...] = tuple(words.prompt(prefix.rstrip()))
        openings = {phrase.split()[0] for phrase in _phrases(automaton, [automaton.start])}
        phrases = _phrases(automaton, automaton.states())
        self._spelled = self._spell({word for phrase in phrases for word in phrase.split()}, _ANCHOR, " ")
        self._openings = self._spell(openings, "", "")
        self._refuse_joined_words()
        self._tries: dict[tuple[object, ...], Node] = {}
        self._after: dict[State, After] = {}
        self._fewest: dict[State, int] = {}
        self._shortest_of: dict[tuple[tuple[str, ...], bool], int] = {}
        self._roomy = max(self._to_end(state) for state in automaton.states())
        self._roomy += max(len(self.spell(phrase)) for phrase in phrases)
        self.start = self.at(automaton.start)

    def step(self, state: TokenState, token: int) -> TokenState:
        """The state after one more id; ``LOST`` for an id that may not follow."""
        after, node = state
        if after is None:
            return ENDED if state is ENDED and token in (self.words.pad_id, self.words.end_id) else LOST
        child = node.children.get(token)
        if child is None:
            return LOST
        if child.leaf is None:
            return TokenState(after, child)
        number = child.leaf[0]
        return ENDED if number < 0 else self.at(after.choices[number].target)

    def run(self, ids: Iterable[int], state: TokenState | None = None) -> TokenState:
        """The state after ``ids``, which follow ``state``; at first those after ``prefix_ids``."""
        state = self.start if state is None else state
        for token in ids:
            state = self.step(state, token)
        return state

    def allowed(self, state: TokenState, left: int | None = None) -> list[int]:
        """Ids that may follow, 1 or more: after the end only padding, and where no report begins like this only the
        end.

        Args:
            left: how many ids may still be written, the end token among them: only those are allowed after which a
                report can be closed in time. Less than ``needed(state)`` counts as that. ``None``: as many as wanted.
        """
        after, node = state
        if after is None:
            return [self.words.pad_id if state is ENDED else self.words.end_id]
        if left is None or left >= self._roomy:
            return list(node.children)
        need = {token: 1 + self._to_close(after, child) for token, child in node.children.items()}
        left = max(left, min(need.values()))
        return [token for token, fewest in need.items() if fewest <= left]

    def needed(self, state: TokenState) -> int:
        """The fewest ids that close the report, the end token among them; 0 when it has ended."""
        return 0 if state.after is None else self._to_close(state.after, state.node)

    def check_room(self, num_tokens: int, name: str = "captioning.max_generation_length") -> None:
        """Refuse a length in which a report cannot be told to its end.

        Raises:
            ConfigError: of a kind of report that may be written (a dominance and a tree), even the shortest is longer
                than ``num_tokens``, end token included.
        """
        longest = max(self._to_end(frozenset([place])) for place in self.automaton.start)
        if longest > num_tokens:
            raise ConfigError(
                f"{name} is {num_tokens}: too short for a report of the canonical wording, which needs {longest} "
                f"tokens where nothing was found, and more for each finding. Give that many or more, better twice, "
                "or write without captioning.structured"
            )

    def spell(self, phrase: str, first: bool = False) -> list[int]:
        """Ids of a phrase in a report, or at the beginning of one."""
        words = phrase.split()
        ids = list(self._openings[words[0]] if first else self._spelled[words[0]])
        return ids + [token for word in words[1:] for token in self._spelled[word]]

    def at(self, state: State) -> TokenState:
        """After a complete text."""
        if state not in self._after:
            choices, end, first = self.automaton.choices(state), self.automaton.may_end(state), self._is_first(state)
            key = (*(choice.phrases for choice in choices), end, first)
            if key not in self._tries:
                self._tries[key] = self._trie(choices, end, first)
            self._after[state] = After(self._tries[key], choices)
        after = self._after[state]
        return TokenState(after, after.root)

    def _is_first(self, state: State) -> bool:
        return state <= self.automaton.start

    def _trie(self, choices: Sequence[Choice], end: bool, first: bool) -> Node:
        root = Node()
        ways = [(n, phrase, self.spell(phrase, first)) for n, choice in enumerate(choices) for phrase in choice.phrases]
        for number, phrase, ids in [*ways, *([(-1, "", [self.words.end_id])] if end else [])]:
            node = root
            for depth, token in enumerate(ids):
                node.nearest[number] = min(node.nearest.get(number, len(ids)), len(ids) - depth)
                node = node.children.setdefault(token, Node())
                if node.leaf is not None:
                    break
            if node.leaf is not None or node.children:
                raise ConfigError(
                    f"the tokenizer cannot write structured reports: it spells {phrase!r} and another phrase that may "
                    "stand in its place so that one begins like the whole of the other. Use a tokenizer that keeps "
                    "punctuation apart or part of its word"
                )
            node.leaf, node.nearest = (number, phrase), {number: 0}
        return root

    def _to_close(self, after: After, node: Node) -> int:
        return min(
            fewest + (0 if number < 0 else self._to_end(after.choices[number].target))
            for number, fewest in node.nearest.items()
        )

    def _to_end(self, state: State) -> int:
        """The fewest ids from a complete text to the end of a report."""
        if state not in self._fewest:
            first = self._is_first(state)
            ways = [
                self._shortest(choice.phrases, first) + self._to_end(choice.target)
                for choice in self.automaton.choices(state)
            ]
            self._fewest[state] = min([*ways, *([1] if self.automaton.may_end(state) else [])])
        return self._fewest[state]

    def _shortest(self, phrases: tuple[str, ...], first: bool) -> int:
        key = (phrases, first)
        if key not in self._shortest_of:
            self._shortest_of[key] = min(len(self.spell(phrase, first)) for phrase in phrases)
        return self._shortest_of[key]

    def _ids(self, text: str) -> tuple[int, ...]:
        """Start token and text, without the end token."""
        rows, lengths = self._uncut.encode([text])
        return tuple(int(token) for token in rows[0][: int(lengths[0]) - 1])

    def _spell(self, words: set[str], before: str, space: str) -> dict[str, tuple[int, ...]]:
        """Ids of each word after ``before``."""
        given, spelled, unknown = self._ids(before), {}, []
        for word in sorted(words):
            ids = self._ids(before + space + word)
            spelled[word] = ids[len(given) :]
            if ids[: len(given)] != given:
                raise self._not_word_by_word(before + space + word)
            if self.words.decode(spelled[word]).lower() != word.lower():
                unknown.append(word)
        if unknown:
            raise ConfigError(
                f"the tokenizer cannot write structured reports: it does not know {len(unknown)} of the "
                f"{len(words)} words of the wording, such as {', '.join(unknown[:_NUM_NAMED])}. Take a tokenizer that "
                "has their letters and signs, or write without captioning.structured"
            )
        return spelled

    def _refuse_joined_words(self) -> None:
        """Every two words that can meet, and random reports."""
        anchor = self._ids(_ANCHOR)
        for one, two in sorted(_pairs(self.automaton)):
            if self._ids(f"{_ANCHOR} {one} {two}") != anchor + self._spelled[one] + self._spelled[two]:
                raise self._not_word_by_word(f"{one} {two}")
        chance = random.Random(0)
        for _ in range(_NUM_TRIED):
            text = self.automaton.random_text(chance)
            ids = (self.words.start_id, *self.spell(text, first=True))
            if self._ids(text) != ids or self.words.decode(ids).lower() != text.lower():
                raise self._not_word_by_word(text)

    def _refuse_other_frames(self) -> None:
        rows, lengths = self._uncut.encode([""])
        frame, wanted = [int(token) for token in rows[0][: int(lengths[0])]], [self.words.start_id, self.words.end_id]
        if frame != wanted:
            raise ConfigError(
                f"the tokenizer cannot write structured reports: it puts the ids {frame} around a text, and only a "
                f"start and an end token ({wanted}) may stand there. Give it a post-processor that does that, or write "
                "without captioning.structured"
            )

    def _not_word_by_word(self, text: str) -> ConfigError:
        return ConfigError(
            f"the tokenizer cannot write structured reports: it does not spell {text!r} word by word, or does not give "
            "it back. Use one that parts a text at its spaces (WordPiece, byte-level BPE), or write without "
            "captioning.structured"
        )


def _phrases(automaton: ReportAutomaton, states: Iterable[State]) -> list[str]:
    groups = dict.fromkeys(choice.phrases for state in states for choice in automaton.choices(state))
    return list(dict.fromkeys(phrase for group in groups for phrase in group))


def _pairs(automaton: ReportAutomaton) -> set[tuple[str, str]]:
    """Words that can stand one after the other."""
    met: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
    for state in automaton.states():
        for choice in automaton.choices(state):
            met |= {(choice.phrases, following.phrases) for following in automaton.choices(choice.target)}
    groups = {group for pair in met for group in pair} | {c.phrases for c in automaton.choices(automaton.start)}
    begins = {group: frozenset(phrase.split()[0] for phrase in group) for group in groups}
    ends = {group: frozenset(phrase.split()[-1] for phrase in group) for group in groups}
    pairs = {pair for group in groups for phrase in group for pair in itertools.pairwise(phrase.split())}
    return pairs.union(*(itertools.product(*two) for two in {(ends[one], begins[other]) for one, other in met}))
