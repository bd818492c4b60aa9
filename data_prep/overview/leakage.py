"""What one split knows of another.

Leakage, for which there is no good reason (exit code 1):
- a patient with studies in two splits;
- a video whose file is equal, byte for byte, to one of another split. Preparing equal pictures gives equal files, so
  this finds a cine that came twice under two names or two patients.

Told, and left to the reader's judgement:
- a report that stands in two splits word for word. Reports of normal vessels are written from templates and repeat
  among people who have nothing to do with each other; what it means for a metric is how much can be had by heart;
- equal videos within a split, which weigh double.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from data_prep.overview.tables import Prepared
from deepcoro.data.schema import SPLITS

_THREADS = 4  # hashing runs outside Python's lock, and reading waits for the disk
_BYTES_AT_ONCE = 2**20
_FILES_AT_ONCE = 4096


@dataclass(frozen=True)
class Reports:
    """Texts that stand in more than one split, word for word.

    Args:
        num_texts: how many texts do.
        repeated: split -> (studies whose text stands in another split, studies with a report).
        held_out: val and test together -> studies whose text stands in train.
    """

    num_texts: int
    repeated: dict[str, tuple[int, int]]
    held_out: tuple[int, int]


@dataclass(frozen=True)
class Videos:
    """Groups of videos whose files are equal, as lists of video ids.

    Args:
        across: groups with videos of two splits.
        within: groups of one split.
        num_files, num_hashed: only files that share their size with another need to be hashed.
        unreadable: video id -> why its file could not be read.
    """

    across: list[list[str]]
    within: list[list[str]]
    num_files: int
    num_hashed: int
    unreadable: dict[str, str] = field(default_factory=dict)


def patients_in_two_splits(studies: pa.Table) -> dict[str, list[str]]:
    """Patient id -> the splits it stands in, of those that stand in more than one."""
    pairs = studies.select(["patient_id", "split"]).group_by(["patient_id", "split"]).aggregate([])
    counted = pairs.group_by("patient_id").aggregate([("split", "count"), ("split", "list")])
    several = counted.filter(pc.greater(counted["split_count"], 1)).sort_by("patient_id")
    return {row["patient_id"]: sorted(row["split_list"], key=SPLITS.index) for row in several.to_pylist()}


def equal_reports(studies: pa.Table) -> Reports:
    """Which reports stand in another split; spaces at the ends and differences of spacing do not count."""
    told = studies.filter(pc.fill_null(pc.greater(pc.utf8_length(studies["report"]), 0), False))
    if told.num_rows == 0:
        return Reports(0, dict.fromkeys(SPLITS, (0, 0)), (0, 0))
    text = pc.utf8_trim_whitespace(pc.replace_substring_regex(told["report"], r"\s+", " "))
    code = text.combine_chunks().dictionary_encode().indices.to_numpy()
    split = pc.index_in(told["split"], value_set=pa.array(SPLITS)).to_numpy()
    there = np.zeros((code.max() + 1, len(SPLITS)), bool)  # text x split
    there[code, split] = True
    elsewhere = there.sum(axis=1) > 1
    repeated = {
        name: (int(elsewhere[code[split == number]].sum()), int((split == number).sum()))
        for number, name in enumerate(SPLITS)
    }
    train = SPLITS.index("train")
    held_out = code[split != train]
    return Reports(int(elsewhere.sum()), repeated, (int(there[held_out, train].sum()), len(held_out)))


def equal_videos(prepared: Prepared, progress: Callable[[int, int], None] = lambda done, total: None) -> Videos:
    """Compare the files of all videos by their content (sha256).

    Args:
        progress: called with files hashed and files to hash.
    """
    videos = prepared.videos
    ids, splits = videos["video_id"].to_pylist(), videos["split"].to_pylist()
    files = [_file(prepared, uri) for uri in videos["uri"].to_pylist()]
    unreadable: dict[str, str] = {}
    sizes = np.full(len(files), -1, np.int64)
    for number, info in enumerate(_infos(files)):
        if info is None or info.type != fs.FileType.File or not info.size:
            unreadable[ids[number]] = (
                "the file is missing" if info is None or info.size is None else "the file is empty"
            )
        else:
            sizes[number] = info.size
    _, place, times = np.unique(sizes, return_inverse=True, return_counts=True)
    shared = np.flatnonzero((times[place] > 1) & (sizes >= 0))
    groups: dict[tuple[int, bytes], list[int]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(_digest, [files[number] for number in shared])
        for done, (number, digest) in enumerate(zip(shared.tolist(), digests, strict=True), start=1):
            if isinstance(digest, str):
                unreadable[ids[number]] = digest
            else:
                groups.setdefault((int(sizes[number]), digest), []).append(number)
            progress(done, len(shared))
    equal = [group for group in groups.values() if len(group) > 1]
    across = [group for group in equal if len({splits[number] for number in group}) > 1]
    within = [group for group in equal if len({splits[number] for number in group}) == 1]
    named = [[[ids[number] for number in group] for group in kind] for kind in (across, within)]
    return Videos(named[0], named[1], len(files), len(shared), unreadable)


_File = tuple[fs.FileSystem, str]


def _file(prepared: Prepared, uri: str) -> _File:
    """Where a video lies: relative to the dataset, at a path of its own, or at a URI."""
    if "://" in uri:
        return fs.FileSystem.from_uri(uri)
    if uri.startswith("/"):
        return fs.LocalFileSystem(), uri
    return prepared.filesystem, f"{prepared.folder}/{uri}"


def _infos(files: Sequence[_File]) -> Iterator[fs.FileInfo]:
    """What the file systems know of the files, asked for many at once."""
    for begin in range(0, len(files), _FILES_AT_ONCE):
        block = files[begin : begin + _FILES_AT_ONCE]
        if all(filesystem is block[0][0] for filesystem, _ in block):
            yield from block[0][0].get_file_info([path for _, path in block])
        else:
            yield from (filesystem.get_file_info(path) for filesystem, path in block)


def _digest(file: _File) -> bytes | str:
    """The hash of a file, or why there is none."""
    filesystem, path = file
    digest = hashlib.sha256()
    try:
        with filesystem.open_input_stream(path) as stream:
            while piece := stream.read(_BYTES_AT_ONCE):
                digest.update(piece)
    except OSError as error:
        return f"the file cannot be read ({error.strerror or type(error).__name__})"
    return digest.digest()
