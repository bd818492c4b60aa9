"""Change columns of a prepared dataset's videos, with the fingerprint that stands for them, wholly or not at all.

Two files change, `videos.parquet` and `dataset.json`, and no file system replaces two at once. So the new ones are
written to `.next/` in the dataset; then the old `dataset.json` goes, without which no reader takes the dataset for
complete; then the new table comes and last the new `dataset.json`. Killed in between, the dataset is refused by all
readers until any command that changes it runs again, which first puts in place what stands in `.next/`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from data_prep.dicom.dataset import Tables, write_tables
from deepcoro.data.schema import QUARANTINE_SCHEMA, STUDIES_SCHEMA, VIDEOS_SCHEMA, check_columns
from deepcoro.errors import DataError

_NEXT = ".next"
_LOCK = ".update.lock"
_SCHEMAS = {"studies": STUDIES_SCHEMA, "videos": VIDEOS_SCHEMA, "quarantine": QUARANTINE_SCHEMA}


@contextmanager
def changing(dataset: str) -> Iterator[Path]:
    """The folder of a dataset that this process alone may change, after an interrupted change was brought to its end.

    Raises:
        DataError: it is no finished prepared dataset in a local folder, or another process is changing it.
    """
    if "://" in dataset:
        raise DataError(f"{dataset}: only a dataset in a local folder can be changed; copy it here and back")
    folder = Path(dataset)
    if not (folder / "dataset.json").is_file() and not (folder / _NEXT / "dataset.json").is_file():
        raise DataError(f"{folder} holds no dataset.json: it is no finished prepared dataset")
    with held(folder):
        _finish(folder)
        yield folder


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps everyone else from changing the tables in ``folder``.

    Raises:
        DataError: another process is changing them, or the folder cannot be written to.
    """
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise DataError(f"{folder} is being changed by another process; wait for it to end") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be written to ({error.strerror or error})") from error
    try:
        yield
    finally:
        lock.release()


def read_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of ``studies``, ``videos`` or ``quarantine`` (none where that last is not there).

    Raises:
        DataError: the table is missing or damaged, or has columns that would be lost in rewriting it.
    """
    where = folder / f"{name}.parquet"
    if name == "quarantine" and not where.exists():
        return []
    try:
        table = pq.read_table(where)
    except FileNotFoundError:
        raise DataError(f"{where} is missing; prepare the dataset again") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{where} is not a Parquet file, or is damaged: {error}") from error
    if unknown := set(table.column_names) - set(_SCHEMAS[name].names):
        raise DataError(f"{where} has columns that nobody knows ({', '.join(sorted(unknown))}) and would lose them")
    return check_columns(table, _SCHEMAS[name], str(where)).to_pylist()


def update_videos(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Set columns of some videos; returns the fingerprint before and after.

    Args:
        folder: from ``changing``.
        changes: video id -> column -> value. ``attributes`` is a mapping that is laid over what is there; a value of
            None takes that attribute away.

    Raises:
        DataError: a video id is not in the table, a value does not fit its column, or the disk is full; then nothing
            has changed.
    """
    rows = {name: read_rows(folder, name) for name in _SCHEMAS}
    by_id = {row["video_id"]: row for row in rows["videos"]}
    if unknown := changes.keys() - by_id.keys():
        raise DataError(f"{folder}/videos.parquet has no video {sorted(unknown)[0]}")
    for video_id, columns in changes.items():
        row = by_id[video_id]
        for column, value in columns.items():
            if column == "attributes":
                laid = {**dict(row["attributes"] or []), **value}
                value = [(key, told) for key, told in laid.items() if told is not None]
            row[column] = value
    try:
        card = json.loads((folder / "dataset.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}/dataset.json cannot be read ({error}); prepare the dataset again") from error
    scratch = folder / f"{_NEXT}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir()
        # The sums of the pixels are not known here and not needed: the pixels have not changed.
        tables = Tables(rows["studies"], rows["videos"], rows["quarantine"], defaultdict(Counter))
        written = write_tables(scratch, tables, {})
        before = str(card.get("fingerprint"))
        card |= {"counts": written["counts"], "fingerprint": written["fingerprint"]}
        (scratch / "dataset.json").write_text(json.dumps(card, indent=2) + "\n")
        for name in ("studies", "quarantine"):  # written for the fingerprint; the old files hold the same rows
            (scratch / f"{name}.parquet").unlink()
        for name in ("videos.parquet", "dataset.json"):
            _sync(scratch / name)
        scratch.rename(folder / _NEXT)
    except (OSError, pa.ArrowException, TypeError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise DataError(f"{folder}: the changed tables cannot be written, and nothing was changed: {error}") from error
    (folder / "dataset.json").unlink()
    _finish(folder)
    return before, written["fingerprint"]


def _finish(folder: Path) -> None:
    """Put in place what stands in `.next/`, if the change had begun; else clear it away."""
    following = folder / _NEXT
    if not (folder / "dataset.json").exists():
        if (following / "videos.parquet").exists():
            (following / "videos.parquet").replace(folder / "videos.parquet")
        (following / "dataset.json").replace(folder / "dataset.json")
        _sync(folder)
    shutil.rmtree(following, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
