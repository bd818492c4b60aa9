"""The whole way: read the table, convert the videos, write the dataset.

    table -> entries -> convert (worker processes; write videos) -> rows -> in place

Every row of the table is ingested or quarantined, and the two add up.
"""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepcoro
from data_prep.dicom.dataset import Tables, replacing, write_tables
from data_prep.dicom.encode import CODEC, EXTENSION, QUALITY
from data_prep.dicom.identity import Key, load_or_create_key
from data_prep.dicom.tables import known_values
from data_prep.predecessor.meanings import Meanings
from data_prep.predecessor.table import Entry, Read, read_table
from data_prep.predecessor.videos import Job, convert_all
from data_prep.rows import read_rows
from deepcoro.errors import DataError


@dataclass(frozen=True)
class Summary:
    """What came of it: the content of ``dataset.json``, and what is told only to the person who ran it."""

    description: dict[str, Any]
    key_path: Path
    sources_path: Path
    replaced: Counter[str]
    notes: list[str] = field(default_factory=list)


def ingest(
    table: Path,
    videos: Path,
    output: Path,
    *,
    classes: tuple[str, ...] = (),
    key_path: Path | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    num_processes: int | None = None,
    progress: Callable[[int, int], None] = lambda done, found: None,
) -> Summary:
    """Make a prepared dataset of the predecessor's table and its videos.

    Args:
        table: CSV (commas or α), Parquet or JSON lines with the columns of ``table.py``.
        videos: the folder that ``FileName`` is looked up in.
        output: the dataset's folder; a finished dataset there is replaced, and only by a finished one.
        classes: ``COLUMN:VALUE=MEANING``, see ``Meanings``.
        key_path: key file, made if it is not there; by default beside the output.
        val_fraction, test_fraction: expected shares of the patients to which the table gives no split.
        num_processes: worker processes; None: one a CPU.
        progress: called with rows done and rows found.

    Raises:
        DataError: anything wrong with what the user gave; the output is then as it was.
    """
    videos, output = videos.resolve(), output.resolve()
    key_path = (key_path or output.with_name(output.name + ".key")).resolve()
    if not videos.is_dir():
        raise DataError(f"{videos}: there is no such folder of videos")
    if output.is_relative_to(videos) or videos.is_relative_to(output) or key_path.is_relative_to(output):
        raise DataError(f"{output}: videos, output and key must lie outside each other")
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction > 1:
        raise DataError(f"val {val_fraction} and test {test_fraction}: each must be 0 or more, together at most 1")
    read = read_table(read_rows(table), videos, Meanings(classes), known_values)
    if not read.entries:
        raise DataError(f"{table}: there is no row in this table")
    with replacing(output) as folder:
        key = load_or_create_key(key_path)
        converted = _convert(read.entries, folder, key, num_processes, progress)
        notes = read.notes + _notes(read, videos)
        tables = _tables(read.entries, converted, key, val_fraction, test_fraction, notes)
        if len(tables.videos) + len(tables.quarantine) != len(read.entries):
            raise RuntimeError(f"{len(read.entries)} rows, {len(tables.videos)} + {len(tables.quarantine)} recorded")
        if not tables.videos:
            reasons = ", ".join(sorted({row["reason"] for row in tables.quarantine}))
            raise DataError(f"{table}: none of {len(read.entries)} rows became a video ({reasons}); nothing is written")
        how = {
            "format": 1,
            "made_by": "data_prep predecessor",
            "version": deepcoro.__version__,
            "key": key.fingerprint,
            "how": {
                "classes": sorted(classes),
                "val_fraction": val_fraction,
                "test_fraction": test_fraction,
                "video": {"container": EXTENSION, "codec": CODEC, "quality": QUALITY, "range": "full"},
            },
        }
        description = write_tables(folder, tables, how)
    sources_path = key_path.with_name(f"{output.name}.sources.csv")
    _write_sources(sources_path, read.entries, key)
    return Summary(description, key_path, sources_path, read.replaced, notes)


def _convert(
    entries: list[Entry], folder: Path, key: Key, num_processes: int | None, progress: Callable[[int, int], None]
) -> dict[int, dict[str, Any]]:
    """What came of the video of each usable row; a row whose video is unusable gets its reason."""
    by_row = {entry.row: entry for entry in entries}
    jobs = []
    for entry in entries:
        if entry.reason is None and entry.path is not None:
            video_id = key.id_of("video", entry.video)
            target = folder / "videos" / video_id[:2] / f"{video_id}.{EXTENSION}"
            target.parent.mkdir(parents=True, exist_ok=True)
            jobs.append(Job(entry.row, entry.path, target))
    converted: dict[int, dict[str, Any]] = {}
    done = len(entries) - len(jobs)
    try:
        for job, result in convert_all(jobs, num_processes):
            done += 1
            progress(done, len(entries))
            if "reason" in result:
                by_row[job.row].reason, by_row[job.row].detail = result["reason"], result["detail"]
            else:
                converted[job.row] = result
    except OSError as error:
        raise DataError(f"{folder.parent}: cannot write a video there ({error.strerror or error})") from error
    return converted


def _tables(
    entries: list[Entry],
    converted: dict[int, dict[str, Any]],
    key: Key,
    val_fraction: float,
    test_fraction: float,
    notes: list[str],
) -> Tables:
    by_study: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.row in converted:
            by_study[key.id_of("study", entry.study)].append(entry)
    studies, videos = [], []
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    torn = 0
    for study_id in sorted(by_study):
        group = sorted(by_study[study_id], key=lambda entry: entry.order)
        patient_id = key.id_of("patient", group[0].patient)
        split = group[0].split or key.split_of(patient_id, val_fraction, test_fraction)
        dominances = {entry.dominance for entry in group} - {None}
        torn += len(dominances) > 1
        studies.append(
            {
                "study_id": study_id,
                "patient_id": patient_id,
                "split": split,
                "dominance": dominances.pop() if len(dominances) == 1 else None,
                "report": group[0].report,
                "findings": None if group[0].findings is None else [f.to_dict() for f in group[0].findings],
                "attributes": [("segments_missing", " ".join(group[0].silent))] if _half_silent(group[0]) else [],
            }
        )
        for place, entry in enumerate(group):
            facts = dict(converted[entry.row])
            sums[split].update(facts.pop("sums"))
            video_id = key.id_of("video", entry.video)
            attributes = {**entry.attributes, "fps_source": facts.pop("fps_source")}
            videos.append(
                {
                    **facts,
                    "video_id": video_id,
                    "study_id": study_id,
                    "uri": f"videos/{video_id[:2]}/{video_id}.{EXTENSION}",
                    "coronary_tree": entry.tree,
                    "acquisition_order": place,
                    "attributes": list(attributes.items()),
                }
            )
    if silent := sum(1 for study in studies if study["attributes"]):
        notes.append(
            f"{silent:,} studies have columns for some segments only: the others count as normal in their texts"
        )
    if torn:
        notes.append(f"{torn:,} studies have videos of several dominances: none was taken")
    quarantine = [
        {"source": _source(entry, key), "reason": entry.reason, "detail": entry.detail}
        for entry in entries
        if entry.row not in converted
    ]
    return Tables(studies, videos, sorted(quarantine, key=lambda row: row["source"]), sums)


def _half_silent(entry: Entry) -> bool:
    """Columns say something of some segments and nothing of others: a report would call those normal too."""
    return entry.findings is not None and bool(entry.silent)


def _source(entry: Entry, key: Key) -> str:
    return key.id_of("source", entry.name)


def _notes(read: Read, videos: Path) -> list[str]:
    notes = [
        f"{name}: {value!r} means nothing here ({number:,} rows); --class {name}:{value}=MEANING tells"
        for (name, value), number in sorted(read.unlisted.items())
    ]
    named = {entry.path for entry in read.entries if entry.path is not None}
    others = sum(1 for path in videos.rglob("*") if path.is_file() and path not in named)
    if others:
        notes.append(f"{others:,} files in {videos.name} are named by no row")
    if read.replaced:
        counts = ", ".join(f"{kind}s {number:,}" for kind, number in sorted(read.replaced.items()))
        notes.append(f"replaced in the report texts: {counts}")
    return notes


def _write_sources(path: Path, entries: list[Entry], key: Key) -> None:
    """Which row each keyed source is: names may identify patients, so this stays beside the key, for its owner only."""
    partial = path.with_name(path.name + ".partial")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("source", "row", "file_name", "video_id", "reason"))
        for entry in entries:
            video_id = key.id_of("video", entry.video) if entry.reason is None else ""
            writer.writerow((_source(entry, key), entry.row, entry.name, video_id, entry.reason or ""))
    partial.replace(path)
