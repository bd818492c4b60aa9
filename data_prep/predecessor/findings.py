"""The columns of one row -> findings: nine columns for each of the 18 segments.

    <segment>_stenosis      percent; 100 is a total occlusion unless cto says that it is chronic
    <segment>_cto           a chronic total occlusion: stenosis is then 100 or missing
    <segment>_stent         a stent; a stenosis above 10% is then its restenosis as well
    <segment>_calcif, _IFRHYPEREMIE, _bifurcation (Medina), _collateral, _pcidone, _thrombus

-1 is missing. A segment whose columns say that nothing is wrong is a normal one and has no finding.
"""

from __future__ import annotations

import math
import re
from typing import Any

from data_prep.predecessor.meanings import BadValue, Meanings, missing, plain
from deepcoro.reports.grammar import Finding
from deepcoro.reports.vocabulary import SEGMENTS

KINDS = ("stenosis", "calcif", "IFRHYPEREMIE", "cto", "collateral", "bifurcation", "stent", "pcidone", "thrombus")
FINDING_COLUMNS = tuple(f"{segment}_{kind}" for segment in SEGMENTS for kind in KINDS)
RESTENOSIS_ABOVE = 10  # percent inside a stent


def read_findings(row: dict[str, Any], meanings: Meanings) -> tuple[list[Finding] | None, tuple[str, ...]]:
    """The findings of a row, and the segments of which it says nothing at all; findings are ``None`` if that is all.

    Raises:
        BadValue: a cell is out of its range or contradicts another; the message names the column.
    """
    findings: list[Finding] = []
    silent: list[str] = []
    for segment in SEGMENTS:
        cells = {kind: row.get(f"{segment}_{kind}") for kind in KINDS}
        if all(missing(cell) for cell in cells.values()):
            silent.append(segment)
            continue
        finding = _finding(segment, cells, meanings)
        findings += [finding] if finding is not None else []
    return (findings if len(silent) < len(SEGMENTS) else None), tuple(silent)


def _finding(segment: str, cells: dict[str, Any], meanings: Meanings) -> Finding | None:
    def flag(kind: str) -> bool:
        return meanings.must(kind, cells[kind], f"{segment}_{kind}") == "yes"

    percent = _percent(cells["stenosis"], f"{segment}_stenosis")
    values: dict[str, Any] = {
        "stenosis": percent,
        "calcification": meanings.must("calcif", cells["calcif"], f"{segment}_calcif"),
        "thrombus": flag("thrombus"),
        "stent": flag("stent"),
        "pci": flag("pcidone"),
        "ifr": _ratio(cells["IFRHYPEREMIE"], f"{segment}_IFRHYPEREMIE"),
        "medina": _medina(cells["bifurcation"], f"{segment}_bifurcation"),
        "collaterals": flag("collateral"),
    }
    if flag("cto"):
        if percent not in (None, 100):
            raise BadValue(f"{segment}_cto: a chronic total occlusion beside a stenosis of {percent}%")
        values |= {"occlusion": "cto", "stenosis": 100}
    elif percent == 100:
        values["occlusion"] = "total"
    if values["stent"] and values["stenosis"] is not None and values["stenosis"] > RESTENOSIS_ABOVE:
        values["in_stent_restenosis"] = values["stenosis"]
    seen = any(values[name] for name in ("stenosis", "thrombus", "stent", "pci", "collaterals", "medina"))
    if not seen and values["ifr"] is None and values["calcification"] in (None, "none"):
        return None
    return Finding(segment, **values)


def _percent(cell: Any, name: str) -> int | None:
    """Whole percents; 0.7 may be 70% or 1% and is refused."""
    number = _number(cell, name)
    if number is None:
        return None
    if not 0 <= number <= 100 or 0 < number < 1:
        raise BadValue(f"{name}: {number:g} is no percent, 0 to 100")
    return math.floor(number + 0.5)


def _ratio(cell: Any, name: str) -> float | None:
    number = _number(cell, name)
    if number is not None and not 0 <= number <= 1:
        raise BadValue(f"{name}: {number:g} is no iFR, 0 to 1")
    return None if number is None else round(number, 2)


def _number(cell: Any, name: str) -> float | None:
    if missing(cell):
        return None
    try:
        number = float(str(cell))
    except ValueError:
        raise BadValue(f"{name}: this is no number") from None
    if not math.isfinite(number):
        raise BadValue(f"{name}: this is no number")
    return number


def _medina(cell: Any, name: str) -> str | None:
    """1,1,0 in any writing; 0 or none is no bifurcation lesion."""
    if missing(cell) or plain(cell) in ("0", "none", "no"):
        return None
    between = r"[\s,./-]{0,2}"
    whole = plain(cell)  # a spreadsheet writes 110 as 110.0
    written = whole if re.fullmatch(r"[01]{3}", whole) else str(cell).strip().lower()
    match = re.fullmatch(rf"\(?\s*(?:medina)?\s*([01]){between}([01]){between}([01])\s*\)?", written)
    if match is None:
        raise BadValue(f"{name}: this is no Medina class such as 1,1,0")
    return ",".join(match.groups())
