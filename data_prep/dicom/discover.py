"""Which files there are: every regular file under a folder, each exactly once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from data_prep.dicom.place import Place
from deepcoro.errors import DataError


class Found(NamedTuple):
    """A file as it was found. Another size or time under the same path is another file.

    ``path`` is relative to the folder that was searched, and bytes, because a file's name need not be valid text and a
    name that cannot be spelt must not lose its file.
    """

    path: bytes
    size: int
    modified: int  # nanoseconds since 1970; 0 where the file system does not tell


def discover(place: Place) -> list[Found]:
    """Find every regular file under ``place``, sorted by path.

    On this machine links are followed, loops and second ways to one folder visited once. Pipes, sockets, devices and
    links that lead nowhere are no regular files.

    Raises:
        DataError: there is no such folder, or one below it cannot be read (its files would be lost in silence).
    """
    if place.local:
        return _discover_here(place.local)
    try:
        if not place.exists():
            raise DataError(f"{place}: no such folder; --input takes the folder that holds the DICOM files")
        files = place.files()
    except OSError as error:
        raise DataError(f"{place}: the files there cannot be listed ({error})") from error
    return sorted(Found(place.name_of(info).encode(), info.size, info.mtime_ns or 0) for info in files)


def _discover_here(root: Path) -> list[Found]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; --input takes the folder that holds the DICOM files")

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: this folder cannot be read ({error.strerror}); make it readable or move it")

    visited: set[tuple[int, int]] = set()
    found: list[Found] = []
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders.sort()  # which of two ways to the same folder counts must not depend on the file system
        for name in names:
            path = Path(folder, name)
            if path.is_file():
                status = path.stat()
                found.append(Found(os.fsencode(path.relative_to(root)), status.st_size, status.st_mtime_ns))
    return sorted(found)
