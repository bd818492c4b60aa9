"""The predecessor's table -> the rows that can be used, and those that are set aside with their reasons."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from data_prep.deidentify import deidentify
from data_prep.predecessor.findings import FINDING_COLUMNS, read_findings
from data_prep.predecessor.meanings import BadValue, Meanings, missing, plain
from data_prep.rows import Rows
from deepcoro.reports.grammar import Finding

CLASSES = ("main_structure_class", "contrast_agent_class", "stent_presence_class", "dominance_class")
NEEDED = ("FileName", "StudyInstanceUID")
OPTIONAL = ("Split", "Report", "SeriesTime", "PatientID", "SOPInstanceUID", *CLASSES, *FINDING_COLUMNS)
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

REASONS = {
    "no_identity": "the row has no FileName or no StudyInstanceUID",
    "duplicate": "a row before names the same video",
    "outside": "the name leads out of the folder of videos",
    "missing_video": "there is no such file in the folder of videos",
    "bad_value": "a cell means nothing in its column, or contradicts another",
    "conflicting_study": "a row before says something else of the same study (report, findings, split or patient)",
    "conflicting_split": "a row before puts the same patient into another split",
}


@dataclass
class Entry:
    """A row of the table. ``reason`` is None while it can be used; ids are the raw ones and go no further."""

    row: int
    name: str
    study: str = ""
    patient: str = ""
    split: str | None = None
    report: str | None = None
    findings: list[Finding] | None = None
    silent: tuple[str, ...] = ()
    tree: str | None = None
    dominance: str | None = None
    video: str = ""
    order: tuple[str, int] = ("", 0)
    attributes: dict[str, str] = field(default_factory=dict)
    path: Path | None = None
    reason: str | None = None
    detail: str | None = None

    @property
    def of_study(self) -> tuple[Any, ...]:
        """What all rows of a study have to agree on."""
        return (self.report, self.findings, self.split, self.patient)


@dataclass
class Read:
    """All rows, and what is told of them: values without a meaning, what was replaced in reports, notes."""

    entries: list[Entry]
    unlisted: Counter[tuple[str, str]]
    replaced: Counter[str]
    notes: list[str]


def read_table(rows: Rows, videos: Path, meanings: Meanings, known_values: Callable[[dict[str, Any]], Any]) -> Read:
    """Read every row; none is lost: an entry has a reason, or can be used.

    Raises:
        DataError: a needed column is missing.
    """
    rows.need(*NEEDED)
    read = Read([], Counter(), Counter(), list(rows.notes))
    strange = [name for name in rows.columns if name not in (*NEEDED, *OPTIONAL)]
    if strange:
        read.notes.append(f"{rows.path.name}: nobody reads the columns {', '.join(strange)}")
    first: dict[str, Entry] = {}
    splits: dict[str, str | None] = {}
    seen: set[str] = set()
    cleaned: dict[tuple[str, str], str] = {}
    for number, (_, row) in enumerate(rows, start=1):
        entry = Entry(number, _text(row, "FileName"))
        read.entries.append(entry)
        try:
            _read_row(entry, row, videos, meanings, read)
            if entry.reason is None:
                _read_report(entry, row, known_values, cleaned, read)
            if entry.reason is None:
                _compare(entry, seen, first, splits)
        except BadValue as error:
            entry.reason, entry.detail = "bad_value", str(error)
        if entry.reason is not None:
            entry.detail = entry.detail or REASONS[entry.reason]
    return read


def _read_row(
    entry: Entry,
    row: dict[str, Any],
    videos: Path,
    meanings: Meanings,
    read: Read,
) -> None:
    entry.study = _text(row, "StudyInstanceUID")
    if not entry.name or not entry.study:
        entry.reason = "no_identity"
        return
    entry.patient = _text(row, "PatientID") or entry.study  # nobody is named: then each study is a patient of its own
    entry.path, entry.reason = find_video(videos, entry.name)
    if entry.reason is not None:
        return
    inside = entry.path.relative_to(videos).as_posix() if entry.path is not None else ""
    entry.video = _text(row, "SOPInstanceUID") or inside
    entry.order = (_time(row), entry.row)
    word = _text(row, "Split").lower()
    if word and word not in SPLIT_WORDS:
        raise BadValue(f"Split: it may be {', '.join(SPLIT_WORDS)}")
    entry.split = SPLIT_WORDS.get(word)
    entry.findings, entry.silent = read_findings(row, meanings)
    tree = meanings.of("main_structure_class", row.get("main_structure_class"))
    entry.tree = tree if tree != "other" else None
    entry.dominance = meanings.of("dominance_class", row.get("dominance_class"))
    for name in CLASSES:
        if missing(row.get(name)):
            continue
        value = plain(row[name])
        if re.fullmatch(r"[\w .+/()]{1,40}", value) is None:
            raise BadValue(f"{name}: this is no name of a class")
        entry.attributes[name] = value
        if name in ("main_structure_class", "dominance_class") and meanings.of(name, row[name]) is None:
            read.unlisted[name, value] += 1


def _read_report(
    entry: Entry,
    row: dict[str, Any],
    known_values: Callable[[dict[str, Any]], Any],
    cleaned: dict[tuple[str, str], str],
    read: Read,
) -> None:
    """The report without persons; it stands in every row of its study, and is cleaned and counted once."""
    report = _text(row, "Report")
    if not report:
        return
    if (entry.study, report) not in cleaned:
        known = known_values(row)
        known["id"] = [*known.get("id", []), entry.study, _text(row, "PatientID")]
        cleaned[entry.study, report], replaced = deidentify(report, known)
        read.replaced += replaced
    entry.report = cleaned[entry.study, report]


def _compare(entry: Entry, seen: set[str], first: dict[str, Entry], splits: dict[str, str | None]) -> None:
    """Set aside what repeats or contradicts a row before: a study has one report, a patient one split."""
    names = {entry.video, str(entry.path)}
    if names & seen:
        entry.reason = "duplicate"
    elif first.setdefault(entry.study, entry).of_study != entry.of_study:
        entry.reason = "conflicting_study"
    elif splits.setdefault(entry.patient, entry.split) != entry.split:
        entry.reason = "conflicting_split"
    else:
        seen |= names
        study = first[entry.study]  # equal, and so the same objects: a row costs no findings of its own
        entry.findings, entry.report, entry.silent = study.findings, study.report, study.silent


def find_video(videos: Path, name: str) -> tuple[Path | None, str | None]:
    """The file that ``name`` means under ``videos``, or the reason why there is none.

    Names are relative to the folder, or whole paths of the machine the table was made on: then the longest end of the
    path that exists under the folder is meant.
    """
    parts = (PureWindowsPath(name) if "\\" in name or re.match(r"[A-Za-z]:", name) else PurePosixPath(name)).parts
    whole = bool(parts) and (parts[0].startswith(("/", "\\")) or ":" in parts[0])
    parts = parts[1:] if whole else parts
    if ".." in parts or "\0" in name or not parts:
        return None, "outside"
    if Path(name).is_relative_to(videos) and Path(name).is_file():
        return Path(name), None
    for start in range(len(parts) if whole else 1):
        path = videos.joinpath(*parts[start:])
        if _is_file(path):
            return path, None
    return None, "missing_video"


def _is_file(path: Path) -> bool:
    try:
        return os.path.isfile(path)  # noqa: PTH113 (a name too long for the file system is no file, and no error)
    except (OSError, ValueError):
        return False


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None or value != value else str(value).strip()


def _time(row: dict[str, Any]) -> str:
    """SeriesTime as text that sorts: 91530.5, 091530.500 and 09:15:30.5 are one moment."""
    digits = re.fullmatch(r"(\d{1,6})(?:\.(\d+))?", _text(row, "SeriesTime").replace(":", ""))
    return f"{digits[1]:0>6}.{(digits[2] or ''):0<6}" if digits else ""
