"""What became of each file, written down as it becomes known, so that an ingest that is killed goes on where it was.

A file beside the key, one JSON line a file; the newest line of a path counts. It holds what the dataset must not, such
as paths and days, and is for its owner only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_prep.dicom.discover import Found
from deepcoro.errors import DataError

Record = dict[str, Any]
_FORMAT = 1


class Journal:
    """The records of an ingest's files.

    Args:
        folder: Where the journals of a dataset lie.
        place: What all of them have in common: the ``input``, the ``output``, and the ``key``'s fingerprint.
        rules: What a record depends on beside its file. Each set of rules has a journal of its own, so that a slip in
            an option costs nothing.

    Raises:
        DataError: the file is of another input, output or key, or is damaged.
    """

    def __init__(self, folder: Path, place: Mapping[str, str], rules: Mapping[str, Any]) -> None:
        digest = hashlib.blake2b(json.dumps(dict(rules), sort_keys=True).encode(), digest_size=4).hexdigest()
        self.path = folder / f"records-{digest}.jsonl"
        self._place = dict(place)
        self._entries: dict[bytes, tuple[Found, Record]] = {}
        self._num_lines = 0
        self._others = [path for path in folder.glob("records-*.jsonl") if path != self.path]
        for path in (*self._others, self.path):
            self._check(path)
        if self.path.exists():
            self._read()
        else:
            self.rewrite([])
        self._file = self._open(self.path, os.O_APPEND)

    @property
    def is_of_other_rules(self) -> bool:
        """Whether the dataset was made by other rules before."""
        return bool(self._others)

    def record_of(self, found: Found) -> Record | None:
        """What became of a file; ``None`` where it is new or has changed since."""
        entry = self._entries.get(found.path)
        return entry[1] if entry is not None and entry[0] == found else None

    def files(self) -> list[Found]:
        """Every file there is a record of."""
        return [found for found, _ in self._entries.values()]

    def add(self, found: Found, record: Record) -> None:
        """Write a record down; ``flush`` makes it last."""
        self._entries[found.path] = (found, record)
        self._num_lines += 1
        self._file.write(_line(found, record))

    def flush(self) -> None:
        """Hand over to the system what was added: it stays even if this process is killed."""
        self._file.flush()

    def keep(self, files: Iterable[Found]) -> None:
        """Forget all but ``files``, lines that newer ones have replaced, and what was found by other rules."""
        for path in self._others:
            path.unlink()
        files = list(files)
        if len(files) < self._num_lines:
            self.rewrite(files)

    def rewrite(self, files: Iterable[Found]) -> None:
        """Write the file anew, with the records of ``files`` alone, a line each."""
        self._entries = {found.path: self._entries[found.path] for found in files}
        self._num_lines = len(self._entries)
        partial = self.path.with_name(self.path.name + ".partial")
        with self._open(partial, os.O_TRUNC) as file:
            file.write(json.dumps({"journal": _FORMAT, "place": self._place}) + "\n")
            file.writelines(_line(*entry) for entry in self._entries.values())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    @staticmethod
    def _open(path: Path, mode: int) -> Any:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o600), "w", encoding="ascii")

    def _check(self, path: Path) -> None:
        if not path.exists():
            return
        with path.open(encoding="ascii", errors="replace") as file:
            head = _parsed(file.readline())
        if head is None or head.get("journal") != _FORMAT:
            raise DataError(f"{path}: this is no journal of an ingest; remove it to have every file read anew")
        for name, ours in self._place.items():
            if head["place"].get(name) != ours:
                raise DataError(
                    f"{path}: what is here was made with the {name} {head['place'].get(name)}, and this is {ours}. "
                    "Name another --output, or remove this file to have every file read anew"
                )

    def _read(self) -> None:
        with self.path.open(encoding="ascii", errors="replace") as file:
            file.readline()  # see _check
            is_whole = True
            for line in file:
                entry = _parsed(line)
                if entry is None:  # torn by a process that was killed; nothing can follow it but what came later
                    is_whole = False
                    continue
                found = Found(os.fsencode(entry["path"]), entry["size"], entry["modified"])
                self._entries[found.path] = (found, entry["record"])
                self._num_lines += 1
        if not is_whole:
            self.rewrite(self.files())


def _line(found: Found, record: Record) -> str:
    # A path need not be valid text: what cannot be spelt is escaped, and comes back as it was.
    head = {"path": os.fsdecode(found.path), "size": found.size, "modified": found.modified}
    return json.dumps({**head, "record": record}) + "\n"


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and line.endswith("\n") else None
