"""Which files there are: every regular file under a folder, each exactly once."""

from __future__ import annotations

import os
from pathlib import Path

from deepcoro.errors import DataError


def discover(root: Path) -> list[bytes]:
    """Find every regular file under ``root``, links followed, loops and second ways to one folder visited once.

    Pipes, sockets, devices and links that lead nowhere are no regular files. Paths are bytes because a file's name
    need not be valid text, and a name that cannot be spelt must not lose its file.

    Returns:
        Paths relative to ``root``, sorted.

    Raises:
        DataError: ``root`` is no folder, or a folder below it cannot be read (its files would be lost in silence).
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; --input takes the folder that holds the DICOM files")

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: this folder cannot be read ({error.strerror}); make it readable or move it")

    visited: set[tuple[int, int]] = set()
    found: list[bytes] = []
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders.sort()  # which of two ways to the same folder counts must not depend on the file system
        paths = (Path(folder, name) for name in names)
        found += [os.fsencode(path.relative_to(root)) for path in paths if path.is_file()]
    return sorted(found)
