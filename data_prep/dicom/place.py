"""A folder on any file system that pyarrow knows: a path of this machine, or a URI such as s3://bucket/folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from deepcoro.data.table_files import locate


@dataclass(frozen=True)
class Place:
    """``root`` on ``filesystem``; names below are relative to it, with slashes. Travels between processes."""

    filesystem: fs.FileSystem
    root: str

    @classmethod
    def of(cls, address: str | Path | Place) -> Place:
        """The place that a path or a URI names.

        Raises:
            DataError: no file system answers to the URI.
        """
        if isinstance(address, Place):
            return address
        filesystem, root = locate(str(address))
        return cls(filesystem, str(Path(root).resolve()) if isinstance(filesystem, fs.LocalFileSystem) else root)

    def __str__(self) -> str:
        return self.root if self.local else f"{self.filesystem.type_name}:{self.root}"

    @property
    def local(self) -> Path | None:
        """The folder as a path of this machine; ``None`` where it is none."""
        return Path(self.root) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or a folder of that name."""
        return self.filesystem.get_file_info(self._path(name)).type != fs.FileType.NotFound

    def is_empty(self) -> bool:
        """Whether nothing is in the folder, or there is no such folder; a file is something."""
        if self.filesystem.get_file_info(self.root).type == fs.FileType.File:
            return False
        return not self.filesystem.get_file_info(fs.FileSelector(self.root, allow_not_found=True))

    def files(self, under: str = "") -> list[fs.FileInfo]:
        """Every regular file under a folder, at any depth; none where there is no such folder."""
        selector = fs.FileSelector(self._path(under), recursive=True, allow_not_found=True)
        return [info for info in self.filesystem.get_file_info(selector) if info.type == fs.FileType.File]

    def names(self, under: str = "") -> set[str]:
        """Names of these files."""
        return {self.name_of(info) for info in self.files(under)}

    def name_of(self, info: fs.FileInfo) -> str:
        """The name of one of ``files``."""
        return info.path.removeprefix(self.root).lstrip("/")

    def read(self, name: str) -> bytes:
        """A file's content."""
        with self.filesystem.open_input_stream(self._path(name)) as stream:
            return stream.read()

    def fetch(self, name: str, to: Path) -> None:
        """Copy a file to this machine."""
        to.parent.mkdir(parents=True, exist_ok=True)
        with self.filesystem.open_input_stream(self._path(name)) as stream, to.open("wb") as file:
            shutil.copyfileobj(stream, file)

    def put(self, file: Path, name: str) -> None:
        """Move a file of this machine here; whoever reads ``name`` sees the whole of it or what was there before.

        Raises:
            OSError: it cannot be written.
        """
        path = self._path(name)
        if self.local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            file.replace(path)
            return
        self.filesystem.create_dir(str(Path(path).parent), recursive=True)
        with file.open("rb") as stream, self.filesystem.open_output_stream(path) as written:
            shutil.copyfileobj(stream, written)
        file.unlink()

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is gone already."""
        if self.exists(name):
            self.filesystem.delete_file(self._path(name))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A new folder on this machine from which ``put`` costs little; it is removed afterwards."""
        parent = None
        if self.local:
            parent = self.local / SCRATCH
            parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix="deepcoro-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root


SCRATCH = ".partial"  # in a local folder; what a process that was killed left there goes with the next ingest
