"""What the cells of the predecessor's columns mean: listed values only, and what a user adds with ``--class``.

Its class columns were filled by different people and networks, as words or as numbers whose order nobody wrote down. A
value that is not listed means nothing in a column that describes the video (it is kept as an attribute and counted); in
a column that would become a finding it sets the row aside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from deepcoro.errors import DataError
from deepcoro.reports.grammar import CALCIFICATIONS
from deepcoro.reports.vocabulary import DOMINANCES, TREES

FLAGS = ("cto", "collateral", "stent", "pcidone", "thrombus")
MISSING = ("", "-1", "nan", "null")

_YES_NO = {"yes": ("1", "true", "yes", "present"), "no": ("0", "false", "no", "none", "absent")}
# Column (of a segment: without its name) -> meaning -> values, in lower case, with a space for _ and -.
DEFAULTS: dict[str, dict[str, tuple[str, ...]]] = {
    "main_structure_class": {
        "left": ("left", "left coronary", "left coronary artery", "left coronary tree", "lca"),
        "right": ("right", "right coronary", "right coronary artery", "right coronary tree", "rca"),
    },
    "dominance_class": {word: (word, f"{word} dominant", f"{word} dominance") for word in DOMINANCES},
    "calcif": {
        "none": ("none", "no", "no calcification", "absent"),
        "minimal": ("minimal", "mild", "minimal calcification", "mild calcification"),
        "moderate": ("moderate", "moderate calcification"),
        "severe": ("severe", "severe calcification"),
    },
    **dict.fromkeys(FLAGS, _YES_NO),
}
MEANINGS: dict[str, tuple[str, ...]] = {
    "main_structure_class": (*TREES, "other"),
    "dominance_class": DOMINANCES,
    "calcif": CALCIFICATIONS,
    **dict.fromkeys(FLAGS, ("yes", "no")),
}


class BadValue(ValueError):
    """A cell that means nothing in its column; the message names the column and never the cell's text."""


class Meanings:
    """Looks up what a cell means.

    Args:
        given: ``COLUMN:VALUE=MEANING``, such as ``main_structure_class:0=left`` or ``calcif:1=minimal``; they go before
            the listed values.

    Raises:
        DataError: one of them cannot be read, or names an unknown column or meaning.
    """

    def __init__(self, given: Iterable[str] = ()) -> None:
        self._meaning = {
            (column, value): meaning
            for column, meanings in DEFAULTS.items()
            for meaning, values in meanings.items()
            for value in values
        }
        for text in given:
            match = re.fullmatch(r"\s*(\w+)\s*:(.*)=\s*(\w+)\s*", text)
            if match is None:
                raise DataError(f"--class {text!r}: write COLUMN:VALUE=MEANING, such as main_structure_class:0=left")
            column, value, meaning = match[1], plain(match[2]), match[3].lower()
            if column not in MEANINGS:
                raise DataError(f"--class {text!r}: no such column; columns with classes are {', '.join(MEANINGS)}")
            if meaning not in MEANINGS[column]:
                raise DataError(f"--class {text!r}: {column} may mean {', '.join(MEANINGS[column])}")
            self._meaning[column, value] = meaning

    def of(self, column: str, cell: Any) -> str | None:
        """The meaning of a cell; ``None`` for a missing or an unlisted one."""
        return self._meaning.get((column, plain(cell)))

    def must(self, column: str, cell: Any, name: str) -> str | None:
        """The meaning of a cell that has to have one unless it is missing.

        Raises:
            BadValue: it is not listed; with ``name``, the whole name of the column.
        """
        if missing(cell):
            return None
        meaning = self.of(column, cell)
        if meaning is None:
            raise BadValue(f"{name}: the value is none of those listed; --class {column}:VALUE=MEANING adds it")
        return meaning


def plain(cell: Any) -> str:
    """A cell as text in the form in which values are listed; 1.0 is 1."""
    text = "" if cell is None else str(cell)
    text = " ".join(re.sub(r"[_\-]+", " ", text).lower().split()) if not _is_number(text) else text.strip()
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def missing(cell: Any) -> bool:
    """An empty cell, -1, or a number that is none."""
    return cell is None or cell in ("", "-1", -1) or plain(cell) in MISSING


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*-?\d+(?:\.\d+)?\s*", text) is not None
