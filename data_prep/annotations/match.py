"""Which video and which frame an annotated picture is, and which segment a category."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.annotations.reasons import LeftOut
from deepcoro.errors import DataError
from deepcoro.reports.vocabulary import SEGMENT_NAMES, SEGMENTS

UNNAMED, SKIP = "unnamed", "skip"  # what --category may say besides a segment
_ENDINGS = (".dcm", ".dicom", ".ima", ".avi", ".mp4", ".mkv", ".mov", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_NUMBERED = re.compile(r"^(.+?)[/_#-](?:frame[_-]?)?(\d+)$", re.IGNORECASE)


class Videos:
    """Finds the video that a picture of a COCO file shows.

    A picture says it by ``video_id``, which is ours or one of the file's own ``videos`` with a ``name`` or
    ``file_name``; or by ``file_name``. A name is a path, whole or its last parts, of a file that was taken into the
    dataset (``sources``) or of a video in it; its ending does not count.

    Args:
        rows: of `videos.parquet`.
        sources: the door's `<name>.sources.csv`, or None.
        own: the ``videos`` of the COCO file, by id.

    Raises:
        DataError: ``sources`` cannot be read.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], sources: Path | None, own: Mapping[Any, str]) -> None:
        self.rows = {row["video_id"]: row for row in rows}
        self._own = own
        self._places: dict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)  # by last part
        for row in self.rows.values():
            self._add(row["uri"], row["video_id"])
        for path, video_id in _read_sources(sources) if sources else ():
            self._add(path, video_id)

    def find(self, image: Mapping[str, Any], first_frame: int) -> tuple[dict[str, Any], int]:
        """The row of the video, and the frame from 0.

        Args:
            image: of the COCO file's ``images``.
            first_frame: what the file calls a video's first frame.

        Raises:
            LeftOut: there is none, there are several, or the video is shorter.
        """
        name, frame = image.get("file_name"), image.get("frame_index", image.get("frame_id"))
        if "video_id" in image:
            told = image["video_id"]
            if not isinstance(told, (str, int)) or (told not in self.rows and told not in self._own):
                raise LeftOut("unknown_video")
            video_id = str(told) if told in self.rows else self.look_up(self._own[told])
        elif isinstance(name, str) and frame is not None:
            video_id = self.look_up(name)
        elif isinstance(name, str):
            if (numbered := _NUMBERED.match(_plain(name))) is None:
                raise LeftOut("no_frame")
            video_id, frame = self.look_up(numbered[1]), int(numbered[2])
        else:
            raise LeftOut("unknown_video")
        if frame is None and isinstance(name, str) and (numbered := _NUMBERED.match(_plain(name))):
            frame = int(numbered[2])
        if type(frame) is not int:
            raise LeftOut("no_frame")
        row = self.rows[video_id]
        if not 0 <= frame - first_frame < row["num_frames"]:
            raise LeftOut("frame_out_of_range")
        return dict(row), frame - first_frame

    def look_up(self, name: str) -> str:
        """The id of the video that a path stands for.

        Raises:
            LeftOut: there is none, or there are several.
        """
        asked = tuple(_plain(name).split("/"))
        places = self._places.get(asked[-1], [])
        whole = {video_id for parts, video_id in places if parts == asked}
        found = whole or {video_id for parts, video_id in places if _ends_alike(parts, asked)}
        if len(found) > 1:
            raise LeftOut("ambiguous_video")
        if not found:
            raise LeftOut("unknown_video")
        video_id = found.pop()
        if not video_id:
            raise LeftOut("set_aside")
        if video_id not in self.rows:
            raise LeftOut("unknown_video")
        return video_id

    def _add(self, path: str, video_id: str) -> None:
        parts = tuple(_plain(path).split("/"))
        self._places[parts[-1]].append((parts, video_id))


def _plain(path: str) -> str:
    """A path without the ways in which the same one is written differently."""
    path = re.sub(r"/(\./)+|/{2,}", "/", path.replace("\\", "/")).removeprefix("./").strip("/")
    for ending in _ENDINGS:  # and no other: the name of a DICOM file often is a UID, 1.2.840.113
        if path.lower().endswith(ending):
            return path[: -len(ending)]
    return path


def _ends_alike(first: Sequence[str], second: Sequence[str]) -> bool:
    shorter = min(len(first), len(second))
    return tuple(first[-shorter:]) == tuple(second[-shorter:])


def _read_sources(path: Path) -> list[tuple[str, str]]:
    """Paths and video ids; a file that was set aside has an empty id."""
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            if not {"path", "video_id"} <= set(reader.fieldnames or ()):
                raise DataError(f"{path}: a table of sources has the columns path and video_id")
            return [(row["path"] or "", row["video_id"] or "") for row in reader]
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: the table of sources cannot be read: {error}") from error


def read_categories(categories: Sequence[Mapping[str, Any]], given: Sequence[str]) -> dict[Any, str]:
    """What each category of the file stands for: a segment, ``unnamed``, ``skip``, or nothing, which is no entry.

    Args:
        categories: of the COCO file.
        given: ``NAME=SEGMENT`` of the user, which goes before the name itself. SEGMENT may be ``unnamed`` (a lesion or
            a vessel, and nobody says where) or ``skip``.

    Raises:
        DataError: what is given names no category of the file, or no segment.
    """
    said: dict[str, str] = {}
    names = {str(category.get("name")) for category in categories}
    for text in given:
        name, equals, segment = text.rpartition("=")
        if not equals or name not in names:
            raise DataError(f"--category {text}: it is NAME=SEGMENT with a category of the file: {_some(names)}")
        if segment not in (*SEGMENTS, UNNAMED, SKIP):
            raise DataError(f"--category {text}: SEGMENT is one of {', '.join(SEGMENTS)}, {UNNAMED} or {SKIP}")
        said[name] = segment
    known = {_letters(name): segment for segment, full in SEGMENT_NAMES.items() for name in (segment, full)}
    meant = {c.get("id"): said.get(str(c.get("name"))) or known.get(_letters(str(c.get("name")))) for c in categories}
    return {number: segment for number, segment in meant.items() if segment is not None}


def _letters(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def _some(names: Iterable[str]) -> str:
    named = sorted(names)
    return ", ".join(named[:30]) + (f" and {len(named) - 30} more" if len(named) > 30 else "")
