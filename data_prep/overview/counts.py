"""What there is, counted: by split, tree, acquisition, dominance, segment and grade, and how values are distributed.

Everything is worked out on whole columns; no row becomes a Python object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.overview.tables import Prepared, flat_findings
from deepcoro.data.schema import SPLITS
from deepcoro.reports.vocabulary import SEGMENTS, grade

UNKNOWN = "unknown"
GRADES = ("none", "mild", "moderate", "severe", "critical", "total", "cto", "no grade")  # the columns of a segment
SIGNS = ("stent", "restenosis", "calcified", "thrombus", "collaterals", "PCI", "iFR", "Medina")
_GRADE_OF = np.array([GRADES.index(grade(percent)) for percent in range(101)])
_QUANTILES = (0, 0.05, 0.5, 0.95, 1)

BySplit = dict[str, int]


@dataclass(frozen=True)
class Spread:
    """Smallest, 5 %, median, 95 % and largest of the ``num`` values that are there."""

    num: int
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Counts:
    """All counts of a dataset.

    Args:
        totals: row -> split -> number; rows are patients, studies (with a report, ...), videos (partial, with boxes).
        categories: column -> value (``unknown`` where empty) -> split -> number.
        segments: segment -> split -> findings that name it.
        grades: segment -> grade -> findings; an occlusion counts as ``total`` or ``cto`` whatever its percent.
        signs: segment -> what else a finding says -> findings that say so.
        spreads: quantity -> how its values lie.
        sizes, rates: as written -> videos, the most frequent first.
        reports: of all reports: number, distinct texts.
        attributes: name in the videos' attributes -> value -> videos, the most frequent first.
        quarantine: reason -> files; None where there is no such table.
    """

    totals: dict[str, BySplit]
    categories: dict[str, dict[str, BySplit]]
    segments: dict[str, BySplit]
    grades: dict[str, dict[str, int]]
    signs: dict[str, dict[str, int]]
    spreads: dict[str, Spread]
    sizes: dict[str, int]
    rates: dict[str, int]
    reports: tuple[int, int]
    attributes: dict[str, dict[str, int]]
    quarantine: dict[str, int] | None


def count(prepared: Prepared) -> Counts:
    """Count everything in the tables; no video is opened."""
    studies, videos = prepared.studies, prepared.videos
    findings = flat_findings(studies)
    told = pc.fill_null(pc.greater(pc.utf8_length(studies["report"]), 0), False)
    reports = studies["report"].filter(told)
    size = pc.binary_join_element_wise(videos["width"].cast(pa.string()), videos["height"].cast(pa.string()), "x")
    segments, grades = _count_segments(findings)
    return Counts(
        totals=_count_totals(studies, videos, findings, told),
        categories={
            "coronary tree": cross(videos, "coronary_tree"),
            "acquisition": cross(videos, "acquisition"),
            "dominance": cross(studies, "dominance"),
            "sex": cross(studies, "sex"),
        },
        segments=segments,
        grades=grades,
        signs=_count_signs(findings),
        spreads=_spreads(studies, videos, reports),
        sizes=_most_frequent(size),
        rates=_most_frequent(pc.round(videos["fps"].cast(pa.float64()), ndigits=2)),
        reports=(len(reports), pc.count_distinct(reports).as_py()),
        attributes=_attributes(videos["attributes"]),
        quarantine=None if prepared.quarantine is None else _most_frequent(prepared.quarantine["reason"]),
    )


def cross(table: pa.Table, column: str) -> dict[str, BySplit]:
    """Rows of ``table`` by the values of a column and the split; values in the order of their names, unknown last."""
    counted = table.select([column, "split"]).group_by([column, "split"]).aggregate([([], "count_all")])
    values: dict[str, BySplit] = {}
    for row in sorted(counted.to_pylist(), key=lambda row: (row[column] is None, row[column] or "")):
        value = UNKNOWN if row[column] is None else row[column]
        of_value = values.setdefault(value, dict.fromkeys(SPLITS, 0))
        of_value[row["split"]] += row["count_all"]
    return values


def _count_totals(studies: pa.Table, videos: pa.Table, findings: pa.Table, told: pa.ChunkedArray) -> dict[str, BySplit]:
    patients = studies.select(["patient_id", "split"]).group_by(["patient_id", "split"]).aggregate([])
    num_findings = pc.list_value_length(studies["findings"])
    significant = np.zeros(studies.num_rows, bool)
    significant[findings["study"].to_numpy()[_is_significant(findings)]] = True
    return {
        "patients": _by_split(patients["split"]),
        "studies": _by_split(studies["split"]),
        "  with a report": _by_split(studies["split"].filter(told)),
        "  with findings": _by_split(studies["split"].filter(pc.is_valid(studies["findings"]))),
        "    without disease": _by_split(studies["split"].filter(pc.fill_null(pc.equal(num_findings, 0), False))),
        "    significant disease": _by_split(studies["split"].filter(pa.array(significant))),
        "videos": _by_split(videos["split"]),
        "  partial": _by_split(videos["split"].filter(videos["partial"])),
        "  with boxes": _by_split(videos["split"].filter(pc.fill_null(pc.greater(videos["num_boxes"], 0), False))),
    }


def _by_split(splits: pa.ChunkedArray) -> BySplit:
    counted = {item["values"]: item["counts"] for item in pc.value_counts(splits).to_pylist()}
    return {split: counted.get(split, 0) for split in SPLITS}


def _is_significant(findings: pa.Table) -> np.ndarray:
    """``vocabulary.is_significant`` for a whole column, bool [findings]."""
    stenosis = pc.fill_null(findings["stenosis"], -1).to_numpy()
    floor = np.where(pc.equal(findings["segment"], "left_main").to_numpy(), 50, 70)
    occluded = pc.not_equal(pc.fill_null(findings["occlusion"], "none"), "none").to_numpy()
    return occluded | (stenosis >= floor)


def _count_segments(findings: pa.Table) -> tuple[dict[str, BySplit], dict[str, dict[str, int]]]:
    stenosis = pc.fill_null(findings["stenosis"], -1).to_numpy()
    graded = np.where(stenosis < 0, GRADES.index("no grade"), _GRADE_OF[np.maximum(stenosis, 0)])
    for kind in ("total", "cto"):
        graded[pc.fill_null(pc.equal(findings["occlusion"], kind), False).to_numpy()] = GRADES.index(kind)
    segment = pc.index_in(findings["segment"], value_set=pa.array(SEGMENTS)).to_numpy()
    split = pc.index_in(findings["split"], value_set=pa.array(SPLITS)).to_numpy()
    by_grade = np.bincount(segment * len(GRADES) + graded, minlength=len(SEGMENTS) * len(GRADES))
    by_split = np.bincount(segment * len(SPLITS) + split, minlength=len(SEGMENTS) * len(SPLITS))
    rows = zip(SEGMENTS, by_split.reshape(-1, len(SPLITS)), by_grade.reshape(-1, len(GRADES)), strict=True)
    segments, grades = {}, {}
    for name, splits, numbers in rows:
        segments[name] = dict(zip(SPLITS, splits.tolist(), strict=True))
        grades[name] = dict(zip(GRADES, numbers.tolist(), strict=True))
    return segments, grades


def _count_signs(findings: pa.Table) -> dict[str, dict[str, int]]:
    segment = pc.index_in(findings["segment"], value_set=pa.array(SEGMENTS)).to_numpy()
    there = (
        findings["stent"],
        pc.greater(findings["in_stent_restenosis"], 0),
        pc.not_equal(findings["calcification"], "none"),
        findings["thrombus"],
        findings["collaterals"],
        findings["pci"],
        pc.is_valid(findings["ifr"]),
        pc.is_valid(findings["medina"]),
    )
    said = [np.bincount(segment[pc.fill_null(sign, False).to_numpy()], minlength=len(SEGMENTS)) for sign in there]
    rows = np.array(said).T.tolist()
    return {name: dict(zip(SIGNS, numbers, strict=True)) for name, numbers in zip(SEGMENTS, rows, strict=True)}


def _spreads(studies: pa.Table, videos: pa.Table, reports: pa.ChunkedArray) -> dict[str, Spread]:
    per_study = videos.select(["study_id"]).group_by("study_id").aggregate([([], "count_all")])["count_all"]
    seconds = pc.divide(videos["num_frames"].cast(pa.float64()), videos["fps"].cast(pa.float64()))
    quantities = {
        "videos a study": per_study,
        "duration, s": seconds,
        "frames": videos["num_frames"],
        "frames a second": videos["fps"],
        "width, pixels": videos["width"],
        "height, pixels": videos["height"],
        "pixel spacing, mm": videos["pixel_spacing"],
        "primary angle, degrees": videos["primary_angle"],
        "secondary angle, degrees": videos["secondary_angle"],
        "LVEF, %": studies["lvef"],
        "report, words": pc.count_substring_regex(reports, r"\S+"),
        "boxes a video": pc.if_else(pc.greater(videos["num_boxes"], 0), videos["num_boxes"], None),
        "findings a study": pc.list_value_length(studies["findings"]),
    }
    return {name: _spread(values) for name, values in quantities.items()}


def _spread(values: pa.ChunkedArray) -> Spread:
    there = values.drop_null().to_numpy()
    if len(there) == 0:
        return Spread(0, ())
    return Spread(len(there), tuple(float(q) for q in np.quantile(there, _QUANTILES)))


def _most_frequent(values: pa.ChunkedArray) -> dict[str, int]:
    counted = ((item["values"], item["counts"]) for item in pc.value_counts(values).to_pylist())
    ordered = sorted(counted, key=lambda item: (-item[1], str(item[0])))
    return {f"{value:g}" if isinstance(value, float) else str(value): number for value, number in ordered}


def _attributes(column: pa.ChunkedArray) -> dict[str, dict[str, int]]:
    counted: dict[str, dict[str, int]] = {}
    entries = [
        pa.table([chunk.keys, chunk.items], names=["name", "value"]).slice(*_span(chunk)) for chunk in column.chunks
    ]
    if not entries:
        return counted
    table = pa.concat_tables(entries).group_by(["name", "value"]).aggregate([([], "count_all")])
    order = [("name", "ascending"), ("count_all", "descending"), ("value", "ascending")]
    for row in table.sort_by(order).to_pylist():
        counted.setdefault(row["name"], {})[str(row["value"])] = row["count_all"]
    return counted


def _span(maps: pa.MapArray) -> tuple[int, int]:
    """Where the entries of a piece begin among those of the whole that it was cut from, and how many they are."""
    begin, end = maps.offsets[0].as_py(), maps.offsets[len(maps)].as_py()
    return begin, end - begin
