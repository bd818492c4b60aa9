"""The two tables of a prepared dataset as Arrow: read, checked, and, where they are large, memory-mapped.

Parquet cannot give one row out of ten million, and ten million rows with their ids and addresses are too much for every
process to hold. So large tables are written once to a folder of this machine's temporary directory in Arrow's own
format, from which a row is read in microseconds without any copy. Who opens the dataset later maps what is there;
a process on another machine, to which such tables are only an address, makes its own.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock
from pyarrow import fs

from deepcoro.data.schema import SPLITS, STUDIES_SCHEMA, VIDEOS_SCHEMA, check_columns
from deepcoro.errors import DataError
from deepcoro.reports.vocabulary import DOMINANCES, SEGMENTS, TREES

SCHEMAS = {"studies": STUDIES_SCHEMA, "videos": VIDEOS_SCHEMA}
_IN_MEMORY_BYTES = 16 * 2**20  # tables up to this size (some 100,000 videos) are held, larger ones are mapped
_ROWS_AT_ONCE = 32_768
_MAX_MAPPED = 4  # datasets whose mapped tables are kept; the one unused for longest goes first
_KEPT_FILES = ("studies.arrow", "videos.arrow", "study_of_video.npy")
_FORMAT = 1  # of the mapped files; another number, and they are made anew


class Rows:
    """A table whose rows are read one by one, wherever it is cut into chunks."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        batches = table.to_batches()
        self._columns = [batch.columns for batch in batches]
        self._starts = np.cumsum([0] + [len(batch) for batch in batches])

    def __len__(self) -> int:
        return self.table.num_rows

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.table,)

    def read(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Rows by number, in the order of ``rows``."""
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        places = rows - self._starts[numbers]
        names = self.table.column_names
        return [  # value by value: for a single row, Arrow's take and slice cost several times more
            {name: column[place].as_py() for name, column in zip(names, self._columns[number], strict=True)}
            for number, place in zip(numbers.tolist(), places.tolist(), strict=True)
        ]


class Tables:
    """Both tables, and in which row of ``studies`` the study of each video stands.

    Mapped tables travel between processes as their address, those in memory as they are.

    Args:
        study_of_video: int32, one a video.
        source: path of the dataset and ``identity`` of its files where the tables are mapped, ``None`` in memory.
    """

    def __init__(
        self, studies: Rows, videos: Rows, study_of_video: np.ndarray, source: tuple[str, str] | None = None
    ) -> None:
        self.studies, self.videos, self.study_of_video, self.source = studies, videos, study_of_video, source

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source is not None:
            return reopen, self.source
        return Tables, (self.studies, self.videos, self.study_of_video)


def read_tables(path: str) -> Tables:
    """Read and check the tables of the dataset at ``path`` (folder or URI).

    Raises:
        DataError: a file or a column is missing, a file is damaged, a value is none of those that are known, a row
            refers to nothing, a patient is in two splits; or large tables cannot be written to the temporary directory.
    """
    filesystem, folder = locate(path)
    files, sizes, identity = {}, 0, hashlib.blake2b(digest_size=16)
    for name in SCHEMAS:
        where = f"{path}/{name}.parquet"
        try:
            stream = filesystem.open_input_file(f"{folder}/{name}.parquet")
            files[name] = pq.ParquetFile(stream)
            identity.update(_footer(stream))
        except FileNotFoundError:
            raise DataError(
                f"{where} is missing; make a prepared dataset with `python -m data_prep dicom` and set data.path"
            ) from None
        except (OSError, ValueError, pa.ArrowException) as error:  # not Parquet, or damaged
            raise DataError(f"{where} is not a Parquet file, or is damaged: {error}") from error
        metadata = files[name].metadata
        sizes += sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if sizes <= _IN_MEMORY_BYTES:
        studies, videos = (pa.Table.from_batches(_batches(files[n], SCHEMAS[n], path, n), SCHEMAS[n]) for n in SCHEMAS)
        return Tables(Rows(studies.combine_chunks()), Rows(videos.combine_chunks()), _check(studies, videos, path))
    # Rewriting a file may leave its size and its footer as they were, but not its time.
    times = [filesystem.get_file_info(f"{folder}/{name}.parquet").mtime_ns for name in SCHEMAS]
    # Links are not followed: on other machines they may lead elsewhere.
    path = path if "://" in path else os.path.abspath(path)  # noqa: PTH100  # pathlib's keeps "..", or follows links
    key = hashlib.blake2b(repr((_FORMAT, path, identity.hexdigest(), times)).encode(), digest_size=16).hexdigest()
    return _map(key, files, path, identity.hexdigest())


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """The file system of a folder or a URI, and the folder in it."""
    try:
        return fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path)
    except pa.ArrowException as error:
        raise DataError(f"data.path {path!r} is no place that can be read: {error}") from error


@functools.lru_cache(maxsize=4)
def reopen(path: str, identity: str) -> Tables:
    """The mapped tables of another process in this one, once a process.

    Raises:
        DataError: the dataset at ``path`` is not the one that the other process opened.
    """
    tables = read_tables(path)
    if tables.source != (path, identity):
        raise DataError(
            f"{path} holds other tables than those this run was started with; start it again, and leave the dataset "
            "alone while it runs"
        )
    return tables


def _footer(stream: pa.NativeFile) -> bytes:
    """The end of a Parquet file, which says how many bytes of what each column has where, with their extremes."""
    size = stream.size()
    length = int.from_bytes(stream.read_at(8, size - 8)[:4], "little")
    return size.to_bytes(8, "little") + stream.read_at(length, size - 8 - length)


def _batches(file: pq.ParquetFile, schema: pa.Schema, path: str, name: str) -> Iterator[pa.RecordBatch]:
    """The rows of a file with the columns and types of ``schema``; empty values are counted over the whole file."""
    where = f"{path}/{name}.parquet"
    check_columns(file.schema_arrow.empty_table(), schema, where)
    lenient = pa.schema([field.with_nullable(True) for field in schema])
    empty = dict.fromkeys((field.name for field in schema if not field.nullable), 0)
    # Group by group: read as a whole, a file's compressed bytes are all held to its end (pyarrow 26).
    groups = (file.iter_batches(_ROWS_AT_ONCE, [group]) for group in range(file.num_row_groups))
    read = itertools.chain.from_iterable(groups)
    while True:
        try:
            batch = next(read)
        except StopIteration:
            break
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{where} is not a Parquet file, or is damaged: {error}") from error
        table = check_columns(pa.Table.from_batches([batch]), lenient, where)
        for column in empty:
            empty[column] += table[column].null_count
        yield from pa.table(table.columns, schema=schema).to_batches()
    for column, number in empty.items():
        if number:
            raise DataError(f"{where}: column {column!r} has {number} empty values; it needs one a row")


def _map(key: str, files: dict[str, pq.ParquetFile], path: str, identity: str) -> Tables:
    """Map the tables kept under ``key``; where there are none, write and check them first."""
    shelf = _shelf()
    kept = shelf / key
    with FileLock(shelf / ".lock"):  # one process writes, and its neighbours wait for what it writes
        if not all((kept / name).exists() for name in _KEPT_FILES):  # such as when a cleaner went by
            shutil.rmtree(kept, ignore_errors=True)
            for left_over in shelf.glob("*.partial"):  # of a process that was killed: nobody writes without the lock
                shutil.rmtree(left_over)
            _write(kept, files, path)
            _tidy(shelf)
        os.utime(kept)
        studies, videos = (Rows(_map_file(kept / f"{name}.arrow")) for name in SCHEMAS)
        study_of_video = np.load(kept / "study_of_video.npy", mmap_mode="r")
    return Tables(studies, videos, study_of_video, (path, identity))


def _shelf() -> Path:
    """Where mapped tables are kept: for this user alone, since they say what the dataset says."""
    shelf = Path(tempfile.gettempdir()) / f"deepcoro-tables-{os.getuid()}"
    shelf.mkdir(mode=0o700, exist_ok=True)
    if shelf.stat().st_uid != os.getuid():
        raise DataError(f"{shelf} belongs to another user; set TMPDIR to a folder of your own")
    return shelf


def _write(kept: Path, files: dict[str, pq.ParquetFile], path: str) -> None:
    scratch = kept.with_suffix(".partial")
    scratch.mkdir()
    try:
        for name, schema in SCHEMAS.items():
            _write_file(scratch / f"{name}.arrow", _batches(files[name], schema, path, name), schema)
        pa.default_memory_pool().release_unused()  # what decoding took, before checking takes its own
        studies, videos = (_map_file(scratch / f"{name}.arrow") for name in SCHEMAS)
        study_of_video = _check(studies, videos, path)
        with (scratch / "study_of_video.npy").open("wb") as stream:
            np.save(stream, study_of_video)
            os.fsync(stream.fileno())
        scratch.rename(kept)
    except OSError as error:
        raise DataError(
            f"the tables of {path} are large and could not be written to {kept.parent} ({error}); make room there, or "
            "set TMPDIR to a folder on another disk"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # nothing is left of it when all went well


def _write_file(file: Path, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> None:
    with file.open("wb") as stream, pa.ipc.new_file(stream, schema) as writer, ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)  # decoded while this one is written
            writer.write_batch(batch)
        writer.close()
        stream.flush()
        os.fsync(stream.fileno())  # a machine that loses power must not find the file with holes


def _map_file(file: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def _tidy(shelf: Path) -> None:
    """Keep the last few; a process that has mapped one that goes keeps it until it ends."""
    kept = sorted((place for place in shelf.iterdir() if place.is_dir()), key=lambda place: place.stat().st_mtime)
    for place in kept[:-_MAX_MAPPED]:
        shutil.rmtree(place)


def _check(studies: pa.Table, videos: pa.Table, path: str) -> np.ndarray:
    """Refuse tables that are not sound, and return the row in ``studies`` of each video's study."""
    splits = pc.unique(studies["split"]).to_pylist()
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise DataError(f"{path}/studies.parquet: split must be one of {', '.join(SPLITS)}, got {unknown}")
    for table, name, column, known in (
        (studies, "studies", "dominance", DOMINANCES),
        (videos, "videos", "coronary_tree", TREES),
    ):
        if wrong := set(pc.unique(table[column]).to_pylist()) - {None, *known}:
            raise DataError(f"{path}/{name}.parquet: {column} must be one of {known}, got {sorted(wrong)}")
    named: set[str | None] = set()
    for chunk in studies["findings"].chunks:
        named |= set(pc.unique(pc.struct_field(pc.list_flatten(chunk), "segment")).to_pylist())
    if wrong := named - set(SEGMENTS):
        raise DataError(f"{path}/studies.parquet: findings name unknown segments {sorted(map(str, wrong))}")
    sound = pc.and_(pc.greater(videos["fps"], 0), pc.greater(videos["num_frames"], 0))
    if not pc.all(sound, min_count=0).as_py():
        raise DataError(f"{path}/videos.parquet: every video needs fps and num_frames above 0")
    if pc.count_distinct(studies["study_id"]).as_py() != studies.num_rows:
        raise DataError(f"{path}/studies.parquet: study_id must be unique, and some stand twice")
    pairs = studies.select(["patient_id", "split"]).group_by(["patient_id", "split"]).aggregate([])
    if pairs.num_rows != pc.count_distinct(studies["patient_id"]).as_py():
        raise DataError(f"{path}/studies.parquet: a patient stands in two splits; give each patient one")
    study_of_video = pc.index_in(videos["study_id"], value_set=studies["study_id"])
    if number := study_of_video.null_count:
        raise DataError(f"{path}/videos.parquet: {number} videos name a study_id that studies.parquet lacks")
    return study_of_video.to_numpy()
