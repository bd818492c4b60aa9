"""The file of phrases that clinicians use, checked and made ready to be looked up (``synonyms.yaml``).

A user's file has the same form and is added to the shipped one. One phrase has one meaning: a user's phrase that the
shipped file gives another meaning is refused, so that nobody changes what a report says without knowing it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from deepcoro.errors import DataError
from deepcoro.reports.grammar import CALCIFICATIONS
from deepcoro.reports.sentences import fold
from deepcoro.reports.vocabulary import DOMINANCES, SEGMENTS

# The segments of a vessel by position; a vessel without positions is several segments that only a number tells apart.
POSITIONS = ("prox", "mid", "dist")
VESSEL_SEGMENTS: dict[str, tuple[str, ...]] = {
    "lad": ("prox_lad", "mid_lad", "dist_lad", "d1", "d2"),
    "lcx": ("prox_lcx", "mid_lcx", "dist_lcx", "om1", "om2", "lvp"),
    "rca": ("prox_rca", "mid_rca", "dist_rca", "pda", "posterolateral"),
    "diagonal": ("d1", "d2"),
    "marginal": ("om1", "om2"),
    "left": SEGMENTS[: SEGMENTS.index("prox_rca")],
    "right": SEGMENTS[SEGMENTS.index("prox_rca") :],
    "all": SEGMENTS,
}
GRADES = ("mild", "moderate", "severe", "critical")

# Sections of the file: None is a plain list of phrases, else the keys that may stand under it (empty: whole percents).
SECTIONS: dict[str, tuple[str, ...] | None] = {
    "segments": SEGMENTS,
    "vessels": tuple(VESSEL_SEGMENTS),
    "positions": POSITIONS,
    "stenosis": None,
    "significant": None,
    "percents": (),
    "grades": GRADES,
    "occlusion": ("total", "cto"),
    "normal": None,
    "not_significant": None,
    "in_stent_restenosis": None,
    "stent": None,
    "pci": None,
    "thrombus": None,
    "calcification": (*CALCIFICATIONS[1:], "unknown"),
    "collaterals": None,
    "dominance": DOMINANCES,
    "dominant": None,
    "negation": None,
    "alternative": None,
    "joining": None,
    "ignore": None,
    "skip": None,
    "measurements": None,
}


@dataclass(frozen=True)
class Synonyms:
    """Phrases and their meanings.

    Args:
        meanings: folded phrase -> (section, key under it or "").
        pattern: matches any phrase, the longest first, as whole words; a space in it stands for any spacing.
        assumed_segments: vessel -> segment, and
        assumed_percents: grade -> percent, for statements that name none. Empty unless the user's file says so.
    """

    meanings: dict[str, tuple[str, str]]
    pattern: re.Pattern[str]
    assumed_segments: dict[str, str]
    assumed_percents: dict[str, int]


@lru_cache(maxsize=8)
def load_synonyms(path: Path | None = None) -> Synonyms:
    """The shipped phrases, and those of the file at ``path``.

    Raises:
        DataError: the file cannot be read, has an unknown key, or gives a phrase two meanings; with file and key.
    """
    shipped = resources.files("deepcoro.reports") / "synonyms.yaml"
    meanings: dict[str, tuple[str, str]] = {}
    assume: dict[str, Any] = {"segment": {}, "percent": {}}
    sources = [("synonyms.yaml", shipped.read_text("utf-8"))]
    if path is not None:
        try:
            sources.append((str(path), path.read_text("utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: the synonyms cannot be read ({error}); it must be YAML in UTF-8") from error
    for where, text in sources:
        try:
            content = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise DataError(f"{where}: this is no YAML: {error}") from error
        if not isinstance(content, dict):
            raise DataError(f"{where}: the file must map sections to phrases; sections are {', '.join(SECTIONS)}")
        given = content.pop("assume", None) or {}
        for phrase, meaning in _phrases(content, where):
            if meanings.setdefault(phrase, meaning) != meaning:
                raise DataError(
                    f"{where}: {phrase!r} stands under {'.'.join(filter(None, meaning))} and means "
                    f"{'.'.join(filter(None, meanings[phrase]))} already; a phrase has one meaning"
                )
        _check_assume(given, where)
        for name, values in given.items():
            assume[name] = {**assume[name], **(values or {})}
    longest_first = sorted(meanings, key=lambda phrase: (-len(phrase), phrase))
    words = "|".join(re.escape(phrase).replace(r"\ ", r"[\s'-]+") for phrase in longest_first)
    return Synonyms(meanings, re.compile(rf"(?<![\w.])(?:{words})(?!\w)"), assume["segment"], assume["percent"])


def _phrases(content: dict[Any, Any], where: str) -> Iterator[tuple[str, tuple[str, str]]]:
    for section, entries in content.items():
        _known(section, tuple(SECTIONS), f"{where}: section")
        keys = SECTIONS[section]
        if keys is None:
            yield from ((phrase, (section, "")) for phrase in _list(entries, f"{where}: {section}"))
            continue
        if not isinstance(entries, dict):
            raise DataError(f"{where}: {section} must map {', '.join(keys) or 'percents'} to phrases")
        for key, phrases in entries.items():
            if keys:
                _known(key, keys, f"{where}: {section}")
            elif not isinstance(key, int) or not 0 <= key <= 100:
                raise DataError(f"{where}: {section}: {key!r} must be a whole percent, 0 to 100")
            yield from ((phrase, (section, str(key))) for phrase in _list(phrases, f"{where}: {section}.{key}"))


def _list(phrases: Any, where: str) -> Iterator[str]:
    if not isinstance(phrases, list):
        raise DataError(f"{where} must be a list of phrases")
    for phrase in phrases:
        if not isinstance(phrase, str):
            raise DataError(f"{where}: {phrase!r} is no text; put the word in quotes")
        folded = " ".join(re.sub(r"[-']", " ", fold(phrase)).split())
        if not folded:
            raise DataError(f"{where}: a phrase is empty")
        yield folded


def _check_assume(given: Any, where: str) -> None:
    if not isinstance(given, dict):
        raise DataError(f"{where}: assume must hold segment and percent")
    for name, values in given.items():
        _known(name, ("segment", "percent"), f"{where}: assume")
        for key, value in (values or {}).items():
            _known(key, tuple(VESSEL_SEGMENTS) if name == "segment" else GRADES, f"{where}: assume.{name}")
            if name == "segment" and value not in VESSEL_SEGMENTS[key]:
                raise DataError(f"{where}: assume.segment.{key}: {value!r} must be one of {VESSEL_SEGMENTS[key]}")
            if name == "percent" and not (isinstance(value, int) and 1 <= value <= 99):
                raise DataError(f"{where}: assume.percent.{key}: {value!r} must be a whole percent, 1 to 99")


def _known(word: Any, words: tuple[str, ...], where: str) -> None:
    if word in words:
        return
    near = difflib.get_close_matches(str(word), words, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(f"{where}: {word!r} is not known{meant} Known are {', '.join(words)}")
