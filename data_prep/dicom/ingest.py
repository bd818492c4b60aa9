"""The whole way: find the files, convert those that are new, settle them with what is known, put the tables in place.

    files -> convert (workers; put videos in place) -> journal -> settle -> tables -> in place

What is in place is a function of the files, the user's tables, the rules and the key: an ingest that was killed and run
again, or was run as the archive grew, ends with the tables that one run over everything makes. ``dataset.json`` is
written last, and its presence says that the rest is there.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

import deepcoro
from data_prep.dicom.convert import Rules
from data_prep.dicom.dataset import ADDED, Tables, build_tables, carry_over, settle, write_tables
from data_prep.dicom.discover import Found, discover
from data_prep.dicom.encode import CODEC, EXTENSION, QUALITY
from data_prep.dicom.identity import Key, load_or_create_key
from data_prep.dicom.journal import Journal, Record
from data_prep.dicom.place import SCRATCH, Place
from data_prep.dicom.quarantine import Unusable
from data_prep.dicom.tables import SideTables, read_side_tables
from data_prep.dicom.workers import Work, convert_all
from data_prep.update import held
from deepcoro.errors import DataError

CONVERSION = 2  # raise it when conversion makes something else of the same file: then every file is read anew
TABLES = ("studies.parquet", "videos.parquet", "quarantine.parquet")
CARD = "dataset.json"
_IDS = {"studies": "study_id", "videos": "video_id"}


@dataclass(frozen=True)
class Summary:
    """What came of an ingest: the content of `dataset.json`, and what is said only to the person who ran it."""

    description: Record
    key_path: Path
    sources_path: Path
    num_converted: int  # files that were read this time
    num_gone: int  # files of earlier runs that are not under the input any more
    unnamed_studies: int  # studies without a patient id: each counts as a patient of its own
    unmatched: dict[str, int]  # rows of the user's tables that belong to nothing here, by table
    notes: list[str]


def ingest(
    input_dir: str | Path | Place,
    output_dir: str | Path | Place,
    *,
    reports: Path | None = None,
    videos: Path | None = None,
    splits: Path | None = None,
    modalities: tuple[str, ...] | None = ("XA", "RF"),
    key_path: Path | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    max_side: int | None = None,
    keep_burned_in: bool = False,
    keep_ids: bool = False,
    drop_missing: bool = False,
    resplit: bool = False,
    num_cpus: int | None = None,
    progress: Callable[[int, int], None] = lambda done, found: None,
) -> Summary:
    """Make a prepared dataset of every usable cine under ``input_dir``, or bring it up to date; quarantine tells of
    every other file, and why.

    Only files that are new, or whose size or time has changed, are read. Uses the Ray that is running, or that
    RAY_ADDRESS names (then all its nodes must see both folders); else starts one.

    Args:
        input_dir: Folder or URI of DICOM files, any depth, any names.
        output_dir: The dataset's folder or URI.
        reports: Table by ``study_id`` (StudyInstanceUID), see `tables.py`.
        videos: Table by ``sop_instance_uid``.
        splits: Table of ``patient_id`` or ``study_id``, and ``split``.
        modalities: Codes that are taken; None takes all.
        key_path: Key file, made if it is not there; by default beside the output, if that is a folder of this machine.
            The journal and the list of sources lie beside it.
        val_fraction: Expected share of patients in val, 0 to 1.
        test_fraction: Expected share of patients in test, 0 to 1.
        max_side: Longest side in pixels; what is larger is shrunk. None keeps all.
        keep_burned_in: Take videos whose header says that text is part of the picture.
        keep_ids: Call patients, studies and videos what the files call them, instead of by keyed ids.
        drop_missing: Take out what came of files that are not under the input any more; otherwise it stays.
        resplit: Allow studies that are in the dataset to move to another split.
        num_cpus: CPUs of the Ray that is started; None: all.
        progress: Called with files done and files found.

    Raises:
        DataError: anything wrong with what the user gave; tables that were there are then as they were.
    """
    source, target = Place.of(input_dir), Place.of(output_dir)
    key_path = _key_path(key_path, target)
    _check_places(source, target, key_path)
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction > 1:
        raise DataError(f"val {val_fraction} and test {test_fraction}: each must be 0 or more, together at most 1")
    found = discover(source)
    if not found:
        raise DataError(f"{source}: there is no file in this folder")
    key = _key(key_path, keep_ids, target)
    side = read_side_tables(key, reports, videos, splits)
    wanted = None if modalities is None else frozenset(code.upper() for code in modalities)
    rules = Rules(Path(), Path(), key, wanted, max_side, keep_burned_in)
    how = {
        "modalities": "any" if wanted is None else sorted(wanted),
        "max_side": max_side,
        "keep_burned_in": keep_burned_in,
        "video": {"container": EXTENSION, "codec": CODEC, "quality": QUALITY, "range": "full"},
    }
    name = Path(target.root).name
    with _journal(key_path.with_name(f"{name}.journal"), source, target, key, how) as journal:
        if journal.is_of_other_rules:
            side.ignored.append("the options changed: every file was read anew, and files that are gone are left out")
        files, records, num_converted = _settled_records(
            found, journal, Work(source, rules, target), drop_missing, num_cpus, progress
        )
        with _tables_held(target):
            tables = build_tables(records, side, key, val_fraction, test_fraction)
            before = _in_place(target, "videos", ("uri", "attributes", *ADDED))
            carry_over(tables.videos, {row["video_id"]: row for row in before})
            if len(tables.videos) + len(tables.quarantine) != len(files):
                raise RuntimeError(
                    f"{len(files)} files were found, {len(tables.videos)} + {len(tables.quarantine)} recorded"
                )
            _check_against(target, tables, resplit)
            card = {
                "format": 1,
                "made_by": "data_prep dicom",
                "version": deepcoro.__version__,
                "key": key.fingerprint,
                "how": how | {"keep_ids": keep_ids, "val_fraction": val_fraction, "test_fraction": test_fraction},
            }
            try:
                description = _put_in_place(target, tables, card)
            except OSError as error:
                raise DataError(
                    f"{target}: the tables cannot be written there ({error.strerror or error}); make room, or make it "
                    "writable, and run again: no file has to be read again"
                ) from error
            sources_path = key_path.with_name(f"{name}.sources.csv")
            _write_sources(sources_path, files, records)
            journal.keep(files)
            _tidy(target, tables)
    unnamed = {r["video"]["study_id"] for r in records if "video" in r and not r["study"]["named"]}
    num_gone = len(set(files) - set(found))
    return Summary(
        description,
        key_path,
        sources_path,
        num_converted,
        num_gone,
        len(unnamed),
        _unmatched(side, tables),
        side.ignored,
    )


def _key_path(given: Path | None, target: Place) -> Path:
    if given is not None:
        return given.resolve()
    if target.local is None:
        raise DataError(f"{target}: for an output that is no folder of this machine, name a key file with --key")
    return target.local.with_name(target.local.name + ".key")


def _check_places(source: Place, target: Place, key_path: Path) -> None:
    a, b = source.local, target.local
    if a and b and (a.is_relative_to(b) or b.is_relative_to(a)):
        raise DataError(f"{target}: input and output must lie outside each other, or the next run finds its own files")
    if target.local and key_path.is_relative_to(target.local):
        raise DataError(f"{key_path}: the key must not travel with the dataset; name a place outside {target}")
    if source.local and key_path.is_relative_to(source.local):
        raise DataError(f"{key_path}: the key must lie outside the input, where it would count as a file to read")


def _key(path: Path, keep_ids: bool, target: Place) -> Key:
    """The key of this dataset, or of one that is to be. Another one would give every study another id and split."""
    made_with = json.loads(target.read(CARD)).get("key") if target.exists(CARD) else None
    if made_with is None or path.exists():
        key = load_or_create_key(path, keep_ids)
        if made_with in (None, key.fingerprint):
            return key
    raise DataError(
        f"{target} was made with another key than {path}, or other --keep-ids, and its studies would get other ids and "
        "splits; name its key with --key, or another --output"
    )


@contextmanager
def _journal(folder: Path, source: Place, target: Place, key: Key, how: Record) -> Iterator[Journal]:
    """The journal of this dataset, held by this process alone."""
    if not folder.exists() and not target.is_empty() and not target.exists(CARD):
        raise DataError(f"{target}: this is there and is no prepared dataset; name another --output, or remove it")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            place = {"input": str(source), "output": str(target), "key": key.fingerprint}
            journal = Journal(folder, place, how | {"conversion": CONVERSION})
            try:
                yield journal
            finally:
                journal.close()
    except Timeout:
        raise DataError(f"{target}: another ingest is at work there; wait for it, or end it") from None


@contextmanager
def _tables_held(target: Place) -> Iterator[None]:
    """Keeps out those who change tables in a local folder, such as ``data_prep annotations``."""
    if target.local is None:  # nobody else changes tables there
        yield
        return
    target.local.mkdir(parents=True, exist_ok=True)
    with held(target.local):
        yield


def _settled_records(
    found: list[Found],
    journal: Journal,
    work: Work,
    drop_missing: bool,
    num_cpus: int | None,
    progress: Callable[[int, int], None],
) -> tuple[list[Found], list[Record], int]:
    """Every file with its record, in order of paths: those on record, and the others converted now.

    A video that is to be in the tables and is not in place is converted again: someone removed it, or it was the second
    of two files of one video, and the first has gone since.
    """
    here = {file.path for file in found}
    gone = [] if drop_missing else [file for file in journal.files() if file.path not in here]
    files = sorted(found + gone)
    records = {
        file.path: record
        for file in files
        if (record := journal.record_of(file)) is not None
        and not (file.path in here and record.get("reason") == "unreadable")  # the share may be back, the right given
    }
    in_place = work.target.names("videos")
    patients = {row["study_id"]: row["patient_id"] for row in _in_place(work.target, "studies", ("patient_id",))}
    num_converted = 0
    while True:
        missing = [file for file in files if file.path not in records]
        progress(len(records), len(files))
        for converted in convert_all(missing, work, num_cpus) if missing else ():
            for file, record in converted:
                journal.add(file, record)
                records[file.path] = record
                in_place.add(record.get("path", ""))
            journal.flush()
            num_converted += len(converted)
            progress(len(records), len(files))
        settled = settle([records[file.path] for file in files], patients)
        lost = [
            file
            for file, record in zip(files, settled, strict=True)
            if "video" in record and record["path"] not in in_place
        ]
        if not lost:
            return files, settled, num_converted
        for file in lost:
            record = records.pop(file.path)
            if file.path not in here:
                reason = Unusable("unreadable", "the file is gone, and so is the video that was made of it")
                records[file.path] = {"source": record["source"], "reason": reason.reason, "detail": reason.detail}


def _check_against(target: Place, tables: Tables, resplit: bool) -> None:
    """Refuse to lose a dataset, or to move a study to another split."""
    if not target.exists(CARD):
        return
    if not tables.videos and json.loads(target.read(CARD)).get("counts", {}).get("ingested", 0):
        reasons = ", ".join(sorted({row["reason"] for row in tables.quarantine}))
        raise DataError(
            f"none of {len(tables.quarantine)} files became a video ({reasons}); the dataset in {target} is left as it "
            "is"
        )
    if resplit:
        return
    splits = {row["study_id"]: row["split"] for row in _in_place(target, "studies", ("split",))}
    moved = sum(splits.get(study["study_id"], study["split"]) != study["split"] for study in tables.studies)
    if moved:
        raise DataError(
            f"{target}: {moved} of {len(splits)} studies would move to another split, and a model that was trained on "
            "them could be tested on them. Give the fractions, splits and reports that it was made with, or say "
            "--resplit"
        )


def _in_place(target: Place, table: str, columns: tuple[str, ...]) -> list[Record]:
    """Rows of ``studies`` or ``videos`` that are in the dataset already, with their id."""
    if not target.exists(f"{table}.parquet"):
        return []
    content = pa.BufferReader(target.read(f"{table}.parquet"))
    return pq.read_table(content, columns=[_IDS[table], *columns]).to_pylist()


def _put_in_place(target: Place, tables: Tables, card: Record) -> Record:
    """Write the tables, unless the same are there; a reader finds all of them or, for a moment, no ``dataset.json``."""
    with target.scratch() as folder:
        description = write_tables(folder, tables, card)
        if target.exists(CARD):
            if json.loads(target.read(CARD)) == description and all(target.exists(name) for name in TABLES):
                return description
            target.delete(CARD)
        for name in (*TABLES, CARD):
            target.put(folder / name, name)
    return description


def _tidy(target: Place, tables: Tables) -> None:
    """Remove videos that no table speaks of, and what processes that were killed have left."""
    for name in sorted(target.names("videos") - {video["uri"] for video in tables.videos}):
        target.delete(name)
    if target.exists(SCRATCH):
        target.filesystem.delete_dir(f"{target.root}/{SCRATCH}")


def _unmatched(side: SideTables, tables: Tables) -> dict[str, int]:
    """Rows of the user's tables that belong to no study, video or patient here."""
    studies = {study["study_id"] for study in tables.studies}
    patients = {study["patient_id"] for study in tables.studies}
    of_splits = len(side.study_splits.keys() - studies) + len(side.patient_splits.keys() - patients)
    return {
        "reports": len(side.studies.keys() - studies),
        "videos": len(side.videos.keys() - {video["video_id"] for video in tables.videos}),
        "splits": of_splits,
    }


def _write_sources(path: Path, files: list[Found], records: list[Record]) -> None:
    """Which file each keyed source is: paths may name patients, so this stays beside the key, for its owner only."""
    partial = path.with_name(path.name + ".partial")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("source", "path", "video_id", "reason"))
        for found, record in zip(files, records, strict=True):
            video_id = record.get("video", {}).get("video_id", "")
            writer.writerow((record["source"], os.fsdecode(found.path), video_id, record.get("reason", "")))
    partial.replace(path)
