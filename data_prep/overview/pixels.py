"""A bounded look at the pictures: grey levels of a sample of videos, and their middle frames on one sheet.

The sample depends on the ids alone: the videos are put in the order of their ids, which are keyed hashes and so in no
order of anything else, and taken at equal steps. No chance, and the same videos however the tables are sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from data_prep.overview.tables import Prepared
from deepcoro.data.decode import decode_frames, local_copy
from deepcoro.data.schema import SPLITS
from deepcoro.errors import DataError
from deepcoro.reports.vocabulary import TREES

FRAMES_OF_VIDEO = 4  # read for the intensities, at equal steps
SHEET_COLUMNS = 8  # videos of a split and tree on the sheet
_TILE, _LABEL, _LEFT, _GAP = 160, 18, 120, 4  # pixels: a picture, the line under it, the column of names, between
_PAPER, _INK, _FAINT = 255, 0, 120


@dataclass(frozen=True)
class Intensities:
    """Grey levels, 0 to 255, of the frames that were looked at.

    Args:
        means: of each video, sorted.
        mean, std: over all pixels.
        black, white: share of pixels at 0 and at 255, where nothing can be told apart any more.
        still: videos whose frames are all equal.
        unreadable: video id -> why.
    """

    means: np.ndarray
    mean: float
    std: float
    black: float
    white: float
    still: int
    unreadable: dict[str, str] = field(default_factory=dict)


def sample(videos: pa.Table, number: int) -> np.ndarray:
    """Up to ``number`` rows, int64, in the order of their ids."""
    ordered = pc.sort_indices(videos["video_id"]).to_numpy()
    if len(ordered) <= number:
        return ordered
    return ordered[np.linspace(0, len(ordered) - 1, number).round().astype(np.int64)]


def measure_intensities(prepared: Prepared, number: int) -> Intensities:
    """Read ``FRAMES_OF_VIDEO`` frames of up to ``number`` videos."""
    means, histogram, still = [], np.zeros(256, np.int64), 0
    unreadable: dict[str, str] = {}
    for video in _rows(prepared, sample(prepared.videos, number)):
        indices = np.linspace(0, video["num_frames"] - 1, FRAMES_OF_VIDEO).round().astype(int)
        try:
            frames = _read(prepared, video, np.unique(indices))
        except DataError as error:
            unreadable[video["video_id"]] = str(error)
            continue
        levels = np.bincount(frames.reshape(-1), minlength=256)
        histogram += levels
        means.append(levels @ np.arange(256) / levels.sum())
        still += len(frames) > 1 and bool((frames == frames[0]).all())
    total = max(1, histogram.sum())
    mean = float(histogram @ np.arange(256) / total) if means else np.nan
    std = float(np.sqrt(histogram @ (np.arange(256) - mean) ** 2 / total)) if means else np.nan
    black, white = histogram[0] / total, histogram[255] / total
    return Intensities(np.sort(means), mean, std, float(black), float(white), still, unreadable)


def write_sheet(prepared: Prepared, path: Path) -> dict[str, str]:
    """Write the contact sheet, a PNG: a row of middle frames for each split and tree. Returns videos that could not be
    read, with the reason.

    A label tells size and view, and nothing by which a patient or a video could be known.

    Raises:
        DataError: the file cannot be written, or there is no video.
    """
    videos, unreadable = prepared.videos, dict[str, str]()
    bands: list[tuple[str, list[tuple[Image.Image, str]]]] = []
    for split in SPLITS:
        for tree in (*TREES, None):
            of_tree = pc.is_null(videos["coronary_tree"]) if tree is None else pc.equal(videos["coronary_tree"], tree)
            wanted = pc.and_(pc.equal(videos["split"], split), pc.fill_null(of_tree, False)).to_numpy()
            rows = np.flatnonzero(wanted)
            if len(rows) == 0:
                continue
            chosen = rows[sample(videos.take(pa.array(rows)), SHEET_COLUMNS)]
            tiles = []
            for video in _rows(prepared, chosen):
                try:
                    (frame,) = _read(prepared, video, np.array([video["num_frames"] // 2]))
                except DataError as error:
                    unreadable[video["video_id"]] = str(error)
                    tiles.append((Image.new("L", (_TILE, _TILE), _FAINT), "not readable"))
                else:
                    tiles.append((Image.fromarray(frame), _label(video)))
            bands.append((f"{split}\n{tree or 'tree unknown'}\n{len(rows):,} videos", tiles))
    if not bands:
        raise DataError(f"{prepared.path} holds no video, so there is nothing for {path}")
    try:
        _draw(bands).save(path, "PNG", optimize=True)
    except OSError as error:
        raise DataError(f"{path}: the sheet cannot be written ({error.strerror or error})") from error
    return unreadable


def view_name(primary: float | None, secondary: float | None) -> str:
    """Angles in degrees, LAO and cranial positive, as they are said in the laboratory: ``LAO 30 CRA 20``."""
    words = []
    for angle, positive, negative in ((primary, "LAO", "RAO"), (secondary, "CRA", "CAU")):
        if angle is not None:
            words.append(f"{positive if angle >= 0 else negative} {abs(round(angle))}")
    return " ".join(words) or "view unknown"


def _label(video: dict[str, Any]) -> str:
    return f"{view_name(video['primary_angle'], video['secondary_angle'])}  {video['width']}x{video['height']}"


def _draw(bands: Sequence[tuple[str, Sequence[tuple[Image.Image, str]]]]) -> Image.Image:
    columns = max(len(tiles) for _, tiles in bands)
    height = _TILE + _LABEL + _GAP
    sheet = Image.new("L", (_LEFT + columns * (_TILE + _GAP), len(bands) * height), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, (name, tiles) in enumerate(bands):
        top = row * height
        draw.multiline_text((6, top + _TILE / 2), name, _INK, font, anchor="lm", spacing=4)
        for column, (picture, label) in enumerate(tiles):
            left = _LEFT + column * (_TILE + _GAP)
            scale = _TILE / max(picture.size)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            shown = picture.resize(size, Image.Resampling.LANCZOS)
            sheet.paste(shown, (left + (_TILE - size[0]) // 2, top + (_TILE - size[1]) // 2))
            draw.text((left + _TILE / 2, top + _TILE + _LABEL / 2), label, _INK, font, anchor="mm")
    return sheet


def _rows(prepared: Prepared, rows: np.ndarray) -> list[dict[str, Any]]:
    names = ("video_id", "uri", "num_frames", "height", "width", "primary_angle", "secondary_angle")
    return prepared.videos.select(names).take(pa.array(rows)).to_pylist()


def _read(prepared: Prepared, video: dict[str, Any], indices: np.ndarray) -> np.ndarray:
    uri = video["uri"]
    if "://" not in uri and not uri.startswith("/"):
        uri = f"{prepared.path}/{uri}"
    with local_copy(uri) as path:
        frames = decode_frames(path, indices, video["num_frames"])
    if frames.shape[1:] != (video["height"], video["width"]):
        height, width = frames.shape[1:]
        raise DataError(f"{uri}: holds {width}x{height} pixels, the table says {video['width']}x{video['height']}")
    return frames
