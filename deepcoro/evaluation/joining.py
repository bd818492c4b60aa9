"""Texts of one study's clips -> one report that does not contradict itself.

A clip's text tells of one tree, and says the dominance only by what it names: a PDA of the left tree is one of a
left-dominant heart, and a right tree that names no PDA is too. So texts of the two trees fit each other where there is
a dominance under which both are what ``render_report`` writes of their findings.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from deepcoro.reports.grammar import parse_report, render_report
from deepcoro.reports.vocabulary import DOMINANCES, TREES

_LAYOUTS = (None, *DOMINANCES)  # a report that names no dominance is laid out as of a right-dominant heart


def join_texts(texts: Sequence[str | None]) -> str:
    """Of each tree what most of its clips say, the left tree first.

    - Where texts can be read as reports: of the pairs of a left and a right text that fit each other, the one that most
      clips say (the earlier ones of equally many). A dominance is named before them where they fit under no other.
    - Where no pair fits: of each tree what most clips say. Of these two the one that fewer say, or else the right one,
      is written again as the other's heart has it: without what it says of segments that lie in the other tree there.
      The left one stays where as many say both, since it shows its dominance by a lesion, the right one by silence.
    - Where no pair fits and one of these two cannot be read, both are said as they stand.

    What names no tree, or both, is said as it stands, once.

    Args:
        texts: of the clips; ``None``: there is no clip.
    """
    told = [text for text in texts if text]
    said: dict[str, Counter[str]] = {}  # by tree
    parts: list[str | None] = []  # ``None``: the next tree
    for text in told:
        tree = parse_report(text).tree
        if tree is None:
            parts += [text] if text not in parts else []
        else:
            parts += [None] if tree not in said else []
            said.setdefault(tree, Counter())[text] += 1
    trees = iter(_of_trees(said))
    return " ".join(next(trees) if part is None else part for part in parts)


def _of_trees(said: dict[str, Counter[str]]) -> list[str]:
    """What is said of each tree, in the order of the trees."""
    ranked = [said[tree].most_common() for tree in TREES if tree in said]  # of equally many, the earlier first
    best = [texts[0][0] for texts in ranked]
    if len(ranked) < len(TREES):
        return best
    layouts = {text: _layouts(text) for texts in ranked for text, _ in texts}
    pairs = sorted(itertools.product(*ranked), key=lambda pair: -sum(votes for _, votes in pair))
    for (left, _), (right, _) in pairs:
        shared = [layout for layout in layouts[left] if layout in layouts[right]]
        if shared:
            return _under(shared[0], [left, right])
    if not all(layouts[text] for text in best):
        return best
    stays = 1 if ranked[1][0][1] > ranked[0][0][1] else 0
    other = 1 - stays
    findings = parse_report(best[other]).findings
    again = {layout: render_report(findings, layout, TREES[other]) for layout in layouts[best[stays]]}
    layout = max(again, key=lambda layout: len(again[layout]))  # under which least is lost
    best[other] = again[layout]
    return _under(layout, best)


def _under(layout: str | None, texts: list[str]) -> list[str]:
    return texts if layout is None else [f"{layout.capitalize()} dominance. {texts[0]}", *texts[1:]]


def _layouts(text: str) -> list[str | None]:
    """The dominances under which ``text`` is a report of its tree, read completely; none where it is not one."""
    read = parse_report(text)
    return [layout for layout in _LAYOUTS if parse_report(render_report(read.findings, layout, read.tree)) == read]
