"""Conversion on many CPUs: Ray Data streams paths to tasks and records back; frames never leave their task.

A file can crash the library that decodes it, and with it the process and the other files of its task. What did not come
back of a task is tried again, one file a task; a file that crashes there too is recorded as what it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from data_prep.dicom.convert import Rules, convert
from data_prep.dicom.discover import Found
from data_prep.dicom.encode import EXTENSION
from data_prep.dicom.journal import Record
from data_prep.dicom.place import Place
from data_prep.dicom.quarantine import Unusable
from deepcoro.errors import DataError

FILES_PER_TASK = 32  # small cines take some 10 ms each: a task of few files would cost as much as its work
BLOCKS_PER_CPU = 4  # fewer files than that fill are dealt out evenly
TASK_CPUS = 1.0  # decoding keeps a CPU busy; with half a CPU a task, six pairs of runs showed no clear difference
_HASH_LETTERS = 8


@dataclass(frozen=True)
class Work:
    """What is the same for every task: where files come from, by which rules they are converted, where videos go."""

    source: Place
    rules: Rules
    target: Place


def convert_all(files: list[Found], work: Work, num_cpus: int | None) -> Iterator[list[tuple[Found, Record]]]:
    """Records of ``files``, some at a time, as tasks end.

    Uses the Ray that is running, or that RAY_ADDRESS names; else starts one of ``num_cpus`` CPUs.

    Raises:
        DataError: a video cannot be written. What was yielded before stays converted.
    """
    left = {file.path: file for file in files}
    with _ray(num_cpus) as cpus:
        for files_per_task in (FILES_PER_TASK, 1):
            if not left:
                return
            for records in _stream(list(left), work, files_per_task, cpus):
                yield [(left.pop(path), record) for path, record in records]
    crash = Unusable("decoder_crash")
    for path, file in left.items():
        source = work.rules.key.id_of("source", path)
        yield [(file, {"source": source, "reason": crash.reason, "detail": crash.detail})]


def _stream(paths: list[bytes], work: Work, files_per_task: int, cpus: int) -> Iterator[list[tuple[bytes, Record]]]:
    import ray.data

    num_blocks = max(-(-len(paths) // files_per_task), min(len(paths), cpus * BLOCKS_PER_CPU))
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        # Ray announces the end of this way to set max_retries and, in 2.60, has no other.
        warnings.filterwarnings("ignore", message=".*ray_remote_args")
        dataset = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=num_blocks).map_batches(
            cast(Any, _convert_batch),
            batch_size=None,
            num_cpus=TASK_CPUS,
            fn_kwargs={"work": work},
            max_retries=0,  # Ray Data would try a task whose process died again for ever
        )
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            records = []
            for path, text in zip(batch["path"], batch["record"], strict=True):
                record = json.loads(text)
                if "stop" in record:
                    raise DataError(record["stop"])
                if "bug" in record:
                    raise RuntimeError(record["bug"])
                records.append((bytes(path), record))
            yield records


def _convert_batch(batch: dict[str, np.ndarray], work: Work) -> dict[str, list[Any]]:
    # As JSON, because the records of two files need not have the same columns.
    records: list[dict[str, Any]] = []
    paths = [bytes(path) for path in batch["path"]]
    try:
        with work.target.scratch() as scratch:
            for path in paths:
                records.append(_convert_one(path, work, scratch))
    except OSError as error:  # the output, not the file: see convert. It must end the job, with a message
        what = f"{work.target}: cannot write a video there ({error.strerror or error})"
        records = [{"stop": f"{what}; make it writable, or make room, and run again: it goes on where it stood"}]
    except Exception:  # ours, not the file's; raised here, it would be taken for a crash of the decoder
        records = [{"bug": traceback.format_exc()}]
    return {"path": paths[: len(records)], "record": [json.dumps(record) for record in records]}


def _convert_one(path: bytes, work: Work, scratch: Path) -> Record:
    """Convert a file; its video gets a name that tells its content, so that the same file always gives the same name,
    and one that has changed never overwrites what the tables still speak of."""
    root = work.source.local
    if root is None:
        root = scratch / "input"
        try:
            work.source.fetch(os.fsdecode(path), root / os.fsdecode(path))
        except OSError as error:
            reason = Unusable("unreadable", f"the file system refused to give the file ({type(error).__name__})")
            source = work.rules.key.id_of("source", path)
            return {"source": source, "reason": reason.reason, "detail": reason.detail}
    record = convert(path, replace(work.rules, root=root, videos=scratch / "videos"))
    if work.source.local is None:
        (root / os.fsdecode(path)).unlink()
    if "video" in record:
        written = scratch / record["path"]
        with written.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()[:_HASH_LETTERS]
        video_id = record["video"]["video_id"]
        record["path"] = f"videos/{content[:2]}/{video_id}.{content}.{EXTENSION}"
        work.target.put(written, record["path"])
    return record


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
