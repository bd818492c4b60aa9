"""Written reports of units -> rows of a sheet: which frames are shown, the boxes on them, and the truth beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepcoro.config import Config
from deepcoro.data.decode import decode_frames, local_copy
from deepcoro.data.reader import UnitReader
from deepcoro.data.sampling import frame_indices
from deepcoro.data.tables import Units
from deepcoro.errors import DataError
from deepcoro.inference.reports import UnitReport
from deepcoro.inference.sheet import MOST_FRAMES, Box, Frame, Row, draw_reports


def sheet_rows(
    reports: Sequence[UnitReport], units: Units, config: Config, split: str | None, knows_truth: bool = True
) -> list[Row]:
    """A row for each report of ``units``, with whole pictures as the files have them.

    Shown are the frames on which a finding is pointed at; where there are none, of each video one that was sampled: the
    one nearest to the middle that has a true box, or the middle one.

    Args:
        split: for the title.
        knows_truth: whether the dataset could have a text and boxes.
    """
    reader = UnitReader(config, units, None, training=False)
    rows = []
    for report in reports:
        frames, unreadable = [], []
        for video, number in _chosen(report, units, config):
            try:
                picture = _read(video, number, units.root)
            except DataError as error:
                unreadable.append(str(error))
                continue
            written = [Box(b.segment, b.x0, b.y0, b.x1, b.y1) for b in report.boxes or () if _is_on(b, video, number)]
            true = [
                Box(box["segment"], box["x0"], box["y0"], box["x1"], box["y1"])
                for box in video["boxes"] or ()
                if box["frame"] == number
            ]
            frames.append(Frame(picture, f"frame {number} of {video['num_frames']}", written, true))
        about = [report.unit_id, report.tree and f"{report.tree} tree", split]
        truth = reader.text(report.unit) if knows_truth else None
        notes = [report.problem] if report.problem else unreadable  # the same failure is told once
        pointed = {(box.video_id, box.frame) for box in report.boxes or ()}
        if len(pointed) > MOST_FRAMES:
            notes = [*notes, f"{MOST_FRAMES} of {len(pointed)} frames with findings shown"]
        title = "   ".join(part for part in about if part)
        rows.append(Row(title, frames, report.text, truth, knows_truth, notes))
    return rows


def save_sheet(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw ``rows`` into a PNG.

    Raises:
        DataError: the file cannot be written.
    """
    sheet = draw_reports(rows, title)
    try:
        sheet.save(path, "PNG", optimize=True)
    except OSError as error:
        raise DataError(f"{path}: the picture cannot be written ({error.strerror or error})") from error


def _chosen(report: UnitReport, units: Units, config: Config) -> list[tuple[dict[str, Any], int]]:
    """Videos and frames to show."""
    videos = {video["video_id"]: video for video in units.video_rows(report.unit)}
    pointed = dict.fromkeys((box.video_id, box.frame) for box in report.boxes or ())
    if pointed:
        return [(videos[name], frame) for name, frame in pointed][:MOST_FRAMES]
    return [(video, _middle(video, config)) for video in videos.values()][:MOST_FRAMES]


def _middle(video: Mapping[str, Any], config: Config) -> int:
    data = config.data
    sampled = frame_indices(video["num_frames"], video["fps"], data.num_frames, data.sample_fps)
    boxed = np.intersect1d(sampled, [box["frame"] for box in video["boxes"] or ()])
    choices, middle = (boxed if len(boxed) else sampled), sampled[len(sampled) // 2]
    return int(choices[np.argmin(np.abs(choices - middle))])


def _is_on(box: Any, video: Mapping[str, Any], number: int) -> bool:
    return box.video_id == video["video_id"] and box.frame == number


def _read(video: Mapping[str, Any], number: int, root: str) -> np.ndarray:
    uri = video["uri"] if "://" in video["uri"] or video["uri"].startswith("/") else f"{root}/{video['uri']}"
    with local_copy(uri) as path:
        (picture,) = decode_frames(path, np.array([number]), video["num_frames"])
    return picture
