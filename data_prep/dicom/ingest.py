"""The whole way, on Ray Data: find the files, convert each on the workers, settle them, write the tables.

    files -> blocks of paths -> convert (workers; writes videos) -> records -> settle -> tables -> in place

Frames never leave the task that decodes them. What comes back of a file is one small record, so that the
driver's memory grows with the number of files and not with their size.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

import deepcoro
from data_prep.dicom.convert import Rules, convert
from data_prep.dicom.dataset import Record, build_tables, keep_videos, replacing, settle, write_tables
from data_prep.dicom.discover import discover
from data_prep.dicom.encode import CODEC, EXTENSION, QUALITY
from data_prep.dicom.identity import load_or_create_key
from data_prep.dicom.quarantine import Unusable
from data_prep.dicom.tables import read_side_tables
from deepcoro.errors import DataError

FILES_PER_TASK = 32  # small cines take some 10 ms each: a task of few files would cost as much as its work
BLOCKS_PER_CPU = 4  # fewer files than that fill are dealt out evenly
TASK_CPUS = 1.0  # decoding keeps a CPU busy; with half a CPU a task, six pairs of runs showed no clear difference
CRASH_RETRIES = 1  # Ray Data would try a task whose process died again for ever


@dataclass(frozen=True)
class Summary:
    """What came of an ingest: the content of `dataset.json`, and what is said only to the person who ran it."""

    description: Record
    key_path: Path
    sources_path: Path
    unmatched_reports: int  # reports of studies that have no video here
    unnamed_studies: int  # studies without a patient id: each counts as a patient of its own
    notes: list[str]


def ingest(
    input_dir: Path,
    output_dir: Path,
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
    num_cpus: int | None = None,
    progress: Callable[[int, int], None] = lambda done, found: None,
) -> Summary:
    """Make a prepared dataset of every usable cine under ``input_dir``; quarantine tells of every other file, and why.

    Uses the Ray that is running, or that RAY_ADDRESS names (then all its nodes must see both folders); else starts one.

    Args:
        input_dir: Folder of DICOM files, any depth, any names.
        output_dir: The dataset's folder; a finished dataset there is replaced, and only by a finished one.
        reports: Table by ``study_id`` (StudyInstanceUID), see `tables.py`.
        videos: Table by ``sop_instance_uid``.
        splits: Table of ``patient_id`` or ``study_id``, and ``split``.
        modalities: Codes that are taken; None takes all.
        key_path: Key file, made if it is not there; by default beside the output.
        val_fraction: Expected share of patients in val, 0 to 1.
        test_fraction: Expected share of patients in test, 0 to 1.
        max_side: Longest side in pixels; what is larger is shrunk. None keeps all.
        keep_burned_in: Take videos whose header says that text is part of the picture.
        num_cpus: CPUs of the Ray that is started; None: all.
        progress: Called with files done and files found.

    Raises:
        DataError: anything wrong with what the user gave; the output is then as it was.
    """
    input_dir, output_dir = input_dir.resolve(), output_dir.resolve()
    key_path = (key_path or output_dir.with_name(output_dir.name + ".key")).resolve()
    _check_places(input_dir, output_dir, key_path)
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction > 1:
        raise DataError(f"val {val_fraction} and test {test_fraction}: each must be 0 or more, together at most 1")
    files = discover(input_dir)
    if not files:
        raise DataError(f"{input_dir}: there is no file in this folder")
    with replacing(output_dir) as folder:
        key = load_or_create_key(key_path)
        side = read_side_tables(key, reports, videos, splits)
        wanted = None if modalities is None else frozenset(code.upper() for code in modalities)
        rules = Rules(input_dir, folder / "videos", key, wanted, max_side, keep_burned_in)
        rules.videos.mkdir()
        records = settle(_convert_all(files, rules, num_cpus, progress))
        tables = build_tables(records, side, key, val_fraction, test_fraction)
        if len(tables.videos) + len(tables.quarantine) != len(files):
            raise RuntimeError(
                f"{len(files)} files were found, {len(tables.videos)} + {len(tables.quarantine)} recorded"
            )
        if not tables.videos and _has_videos(output_dir):
            reasons = ", ".join(sorted({row["reason"] for row in tables.quarantine}))
            raise DataError(
                f"{input_dir}: none of {len(files)} files became a video ({reasons}); "
                f"the dataset in {output_dir} is left as it is"
            )
        keep_videos(folder, records)
        how = {
            "format": 1,
            "made_by": "data_prep dicom",
            "version": deepcoro.__version__,
            "key": key.fingerprint,
            "how": {
                "modalities": "any" if wanted is None else sorted(wanted),
                "val_fraction": val_fraction,
                "test_fraction": test_fraction,
                "max_side": max_side,
                "keep_burned_in": keep_burned_in,
                "video": {"container": EXTENSION, "codec": CODEC, "quality": QUALITY, "range": "full"},
            },
        }
        description = write_tables(folder, tables, how)
    sources_path = key_path.with_name(f"{output_dir.name}.sources.csv")
    _write_sources(sources_path, files, records)
    known = {study["study_id"] for study in tables.studies}
    unnamed = {r["video"]["study_id"] for r in records if "video" in r and not r["study"]["named"]}
    return Summary(description, key_path, sources_path, len(side.studies.keys() - known), len(unnamed), side.ignored)


def _check_places(input_dir: Path, output_dir: Path, key_path: Path) -> None:
    if output_dir.is_relative_to(input_dir) or input_dir.is_relative_to(output_dir):
        raise DataError(
            f"{output_dir}: input and output must lie outside each other, or the next run finds its own files"
        )
    if key_path.is_relative_to(output_dir):
        raise DataError(f"{key_path}: the key must not travel with the dataset; name a place outside {output_dir}")
    if key_path.is_relative_to(input_dir):
        raise DataError(f"{key_path}: the key must lie outside the input, where it would count as a file to read")


def _convert_all(
    files: list[bytes], rules: Rules, num_cpus: int | None, progress: Callable[[int, int], None]
) -> list[Record]:
    """One record a file, in the order of ``files``.

    A file can crash the library that decodes it, and with it the process and the other files of its task. Ray tries
    such a task again and then goes on without it; what is missing afterwards is tried one file a task, and a file that
    still does not come back is recorded as what it is.
    """
    records: dict[int, Record] = {}
    with _ray(num_cpus) as cpus:
        for files_per_task in (FILES_PER_TASK, 1):
            missing = [index for index in range(len(files)) if index not in records]
            if not missing:
                break
            for record in _stream(files, missing, rules, files_per_task, cpus):
                records[record.pop("index")] = record
                progress(len(records), len(files))
    for index, path in enumerate(files):
        if index not in records:
            crash = Unusable("decoder_crash")
            source = rules.key.id_of("source", path)
            records[index] = {"source": source, "reason": crash.reason, "detail": crash.detail}
    return [records[index] for index in range(len(files))]


def _stream(files: list[bytes], indices: list[int], rules: Rules, files_per_task: int, cpus: int) -> Iterator[Record]:
    import ray.data

    num_blocks = max(-(-len(indices) // files_per_task), min(len(indices), cpus * BLOCKS_PER_CPU))
    items = [{"index": index, "path": files[index]} for index in indices]
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.max_errored_blocks = -1
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        # Ray announces the end of this way to set max_retries and, in 2.60, has no other.
        warnings.filterwarnings("ignore", message=".*ray_remote_args")
        dataset = ray.data.from_items(items, override_num_blocks=num_blocks).map_batches(
            cast(Any, _convert_batch),
            batch_size=None,
            num_cpus=TASK_CPUS,
            fn_kwargs={"rules": rules},
            max_retries=CRASH_RETRIES,
        )
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            for text in batch["record"]:
                record = json.loads(text)
                if "stop" in record:
                    raise DataError(record["stop"])
                if "bug" in record:
                    raise RuntimeError(record["bug"])
                yield record


def _convert_batch(batch: dict[str, np.ndarray], rules: Rules) -> dict[str, list[str]]:
    # As JSON, because the records of two files need not have the same columns.
    records: list[dict[str, Any]] = []
    for index, path in zip(batch["index"], batch["path"], strict=True):
        try:
            records.append({"index": int(index), **convert(path, rules)})
        except OSError as error:  # the output, not the file: see convert. It must end the job, with a message
            records.append({"stop": f"{rules.videos}: cannot write a video there ({error.strerror or error})"})
        except Exception:  # ours, not the file's; raised here, it would be taken for a crash of the decoder
            records.append({"bug": traceback.format_exc()})
    return {"record": [json.dumps(record) for record in records]}


@contextmanager
def _ray(num_cpus: int | None) -> Iterator[int]:
    """A Ray that is quiet; yields its number of CPUs. One that was running already is left running."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray.data

    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it prints plans, and tracebacks of crashes that quarantine reports
    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS")
        if address and num_cpus is not None:
            raise DataError("--num-cpus sizes a Ray that is started here; RAY_ADDRESS names one that is running")
        ray.init(
            address=address or "local",
            num_cpus=num_cpus,
            include_dashboard=False if not address else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        yield int(ray.cluster_resources().get("CPU", 1))
    finally:
        logger.setLevel(level)
        if started:
            ray.shutdown()


def _has_videos(output_dir: Path) -> bool:
    description = output_dir / "dataset.json"
    return description.is_file() and json.loads(description.read_text()).get("counts", {}).get("ingested", 0) > 0


def _write_sources(path: Path, files: list[bytes], records: list[Record]) -> None:
    """Which file each keyed source is: paths may name patients, so this stays beside the key, for its owner only."""
    partial = path.with_name(path.name + ".partial")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("source", "path", "video_id", "reason"))
        for name, record in zip(files, records, strict=True):
            video_id = record.get("video", {}).get("video_id", "")
            writer.writerow((record["source"], os.fsdecode(name), video_id, record.get("reason", "")))
    partial.replace(path)
