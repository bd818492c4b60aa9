"""The records of all files to the tables of a prepared dataset, and the folder put in its place as a whole."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.dicom.identity import Key
from data_prep.dicom.journal import Record
from data_prep.dicom.quarantine import Unusable
from data_prep.dicom.tables import SideTables
from deepcoro.data.schema import QUARANTINE_SCHEMA, SPLITS, STUDIES_SCHEMA, VIDEOS_SCHEMA
from deepcoro.errors import DataError

ADDED = ("coronary_tree", "acquisition", "boxes")  # columns that are filled from elsewhere too


@dataclass(frozen=True)
class Tables:
    """The three tables as rows, and the sums of each video's pixels by split."""

    studies: list[Record]
    videos: list[Record]
    quarantine: list[Record]
    sums: dict[str, Counter[str]]


def settle(records: list[Record], known: Mapping[str, str]) -> list[Record]:
    """Keep of the files that repeat or contradict each other only the first in order.

    Of files of the same video the first whole one stays, or else the first that breaks off. A study has one patient, or
    that patient could be in two splits: the one it has in the dataset already, if a file still names that one, else the
    first that a file names. Files that name nobody are that patient's too.

    Args:
        records: Of all files, in order.
        known: Patient of each study that is in the dataset already.
    """
    named: dict[str, str] = {}
    whole: dict[str, Record] = {}
    for record in records:
        if "video" in record and not record["video"].get("partial"):
            whole.setdefault(record["video"]["video_id"], record)
        if "video" in record and record["study"]["named"]:
            study_id, patient_id = record["video"]["study_id"], record["study"]["patient_id"]
            if study_id not in named or known.get(study_id) == patient_id:
                named[study_id] = patient_id
    settled: list[Record] = []
    videos: set[str] = set()
    for record in records:
        if "video" in record:
            video_id, study = record["video"]["video_id"], record["study"]
            patient_id = named.get(record["video"]["study_id"], study["patient_id"])
            reason = None
            if video_id in videos or whole.get(video_id, record) is not record:
                reason = "duplicate"
            elif study["named"] and study["patient_id"] != patient_id:
                reason = "conflicting_patient"
            if reason is None:
                videos.add(video_id)
                if study["patient_id"] != patient_id:
                    record = {**record, "study": {**study, "patient_id": patient_id, "named": True}}
            else:
                unusable = Unusable(reason)
                record = {**record, "reason": unusable.reason, "detail": unusable.detail}
                record.pop("video")
        settled.append(record)
    return settled


def build_tables(
    records: list[Record], side: SideTables, key: Key, val_fraction: float, test_fraction: float
) -> Tables:
    """Turn settled records into rows; what a side table says goes before what the file says."""
    by_study: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if "video" in record:
            by_study[record["video"]["study_id"]].append(record)
    studies = {study_id: _study_row(study_id, group, side) for study_id, group in by_study.items()}
    _set_splits(list(studies.values()), side, key, val_fraction, test_fraction)
    _set_day_offsets(list(studies.values()))
    videos: list[Record] = []
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for study_id in sorted(by_study):
        for place, record in enumerate(_in_order(by_study[study_id])):
            video_id = record["video"]["video_id"]
            videos.append(
                {
                    "partial": False,
                    **record["video"],
                    "uri": record["path"],
                    "acquisition_order": place,
                    "attributes": list(record["video"]["attributes"].items()),
                    **side.videos.get(video_id, {}),
                }
            )
            sums[studies[study_id]["split"]].update(record["sums"])
    quarantine = [
        {name: record[name] for name in QUARANTINE_SCHEMA.names} for record in records if "video" not in record
    ]
    return Tables(
        [studies[study_id] for study_id in sorted(studies)],
        videos,
        sorted(quarantine, key=lambda row: row["source"]),
        sums,
    )


def carry_over(videos: list[Record], before: Mapping[str, Record]) -> None:
    """Let stay what other commands have added to the videos (boxes, classes) since the tables were made, where the file
    is the same and the tables of now say nothing else.

    Args:
        before: Rows that are in the dataset already, by video, with their ``uri``, ``attributes`` and ``ADDED``.
    """
    for video in videos:
        old = before.get(video["video_id"])
        if old is None or old["uri"] != video["uri"]:
            continue
        for name in ADDED:
            if video.get(name) is None:
                video[name] = old[name]
        video["attributes"] = list((dict(old["attributes"] or []) | dict(video["attributes"])).items())


def _study_row(study_id: str, group: list[Record], side: SideTables) -> Record:
    facts = [record["study"] for record in group]
    row: Record = {"study_id": study_id, "patient_id": facts[0]["patient_id"], "split": None, "attributes": []}
    for name in ("sex", "age_band", "day"):
        row[name] = next((fact[name] for fact in facts if fact[name] is not None), None)
    given = side.studies.get(study_id, {})
    return {**row, **{name: value for name, value in given.items() if value is not None}}


def _set_splits(studies: list[Record], side: SideTables, key: Key, val_fraction: float, test_fraction: float) -> None:
    """A patient's split: from the splits table, else from the reports, else from the key."""
    by_patient: dict[str, list[Record]] = defaultdict(list)
    for study in studies:
        by_patient[study["patient_id"]].append(study)
    for patient_id, group in by_patient.items():
        named = {side.study_splits[study["study_id"]] for study in group if study["study_id"] in side.study_splits}
        if patient_id in side.patient_splits:
            named.add(side.patient_splits[patient_id])
        named = named or {study["split"] for study in group if study["split"] is not None}
        if len(named) > 1:
            raise DataError(
                f"the tables put the {len(group)} studies of one patient (keyed id {patient_id}) into "
                f"{' and '.join(sorted(named))}; a patient is in one split only"
            )
        split = named.pop() if named else key.split_of(patient_id, val_fraction, test_fraction)
        for study in group:
            study["split"] = split


def _set_day_offsets(studies: list[Record]) -> None:
    """Dates become days since the patient's first study; the dates themselves go no further."""
    first: dict[str, int] = {}
    for study in studies:
        if study["day"] is not None:
            first[study["patient_id"]] = min(study["day"], first.get(study["patient_id"], study["day"]))
    for study in studies:
        day = study.pop("day")
        study["day_offset"] = None if day is None else day - first[study["patient_id"]]


def _in_order(group: list[Record]) -> list[Record]:
    """Videos of one study as they were acquired: by time if all have one, then by series and instance number."""
    timed = all(record["order"][0] for record in group)
    return sorted(group, key=lambda record: (record["order"][0] if timed else "", *record["order"][1:]))


def write_tables(folder: Path, tables: Tables, how: Record) -> Record:
    """Write the tables and then `dataset.json`, whose presence says that the dataset is complete; returns its content.

    The fingerprint is sha256 over the rows of all three tables, not over their files, whose bytes change with the
    version of the library that writes them.
    """
    digest = hashlib.sha256()
    parts = (
        ("studies", tables.studies, STUDIES_SCHEMA),
        ("videos", tables.videos, VIDEOS_SCHEMA),
        ("quarantine", tables.quarantine, QUARANTINE_SCHEMA),
    )
    for name, rows, schema in parts:
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
        digest.update(f"{name}\n".encode())
        for batch in table.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    description = {**how, "counts": _counts(tables), **_pixel_statistics(tables), "fingerprint": digest.hexdigest()}
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")
    return description


def _counts(tables: Tables) -> Record:
    splits = {study["study_id"]: study["split"] for study in tables.studies}
    patients = {study["patient_id"]: study["split"] for study in tables.studies}
    return {
        "found": len(tables.videos) + len(tables.quarantine),
        "ingested": len(tables.videos),
        "quarantined": len(tables.quarantine),
        "reasons": dict(sorted(Counter(row["reason"] for row in tables.quarantine).items())),
        "studies": len(splits),
        "reports": sum(1 for study in tables.studies if study.get("report") is not None or study.get("findings")),
        "patients": len(patients),
        "splits": {
            split: {
                "patients": sum(1 for value in patients.values() if value == split),
                "studies": sum(1 for value in splits.values() if value == split),
                "videos": sum(1 for video in tables.videos if splits[video["study_id"]] == split),
            }
            for split in SPLITS
        },
        "trees": dict(sorted(Counter(video.get("coronary_tree") or "unknown" for video in tables.videos).items())),
    }


def _pixel_statistics(tables: Tables) -> Record:
    """Mean and standard deviation of grey levels (0-255) over the training split, or over all where it is empty."""
    over = "train" if tables.sums["train"]["count"] else "all"
    sums = tables.sums["train"] if over == "train" else sum(tables.sums.values(), Counter())
    if not sums["count"]:
        return {"pixel_mean": None, "pixel_std": None, "pixel_split": over}
    mean = sums["total"] / sums["count"]
    variance = max(0.0, sums["squares"] / sums["count"] - mean**2)
    return {"pixel_mean": mean, "pixel_std": math.sqrt(variance), "pixel_split": over}


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A new folder beside ``output`` that takes its place when the block ends well; if it fails, nothing has changed.

    Raises:
        DataError: ``output`` holds something that is no prepared dataset, which is not ours to remove.
    """
    if output.exists() and not (output.is_dir() and ((output / "dataset.json").is_file() or not any(output.iterdir()))):
        raise DataError(f"{output}: this is there and is no prepared dataset; name another --output, or remove it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        fresh = output.parent / f".{output.name}.partial-{secrets.token_hex(4)}"
        fresh.mkdir()
    except OSError as error:
        raise DataError(f"{output}: cannot write there ({error.strerror})") from error
    try:
        yield fresh
        _swap(fresh, output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # after a swap it is gone; after a failure the first error counts


def _swap(fresh: Path, output: Path) -> None:
    if not output.exists():
        fresh.rename(output)
        return
    old = output.parent / f".{output.name}.old-{secrets.token_hex(4)}"
    output.rename(old)
    try:
        fresh.rename(output)
    except OSError:
        old.rename(output)
        raise
    shutil.rmtree(old)
