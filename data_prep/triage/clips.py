"""Rows of the table of videos -> clips of one shape, all in memory: a few thousand small ones train a classifier."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from deepcoro.data.augment import choose_crop, crop_and_resize
from deepcoro.data.decode import decode_frames, local_copy
from deepcoro.data.sampling import frame_indices
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import DataError

_THREADS = 2  # the decoder works outside Python's lock


@dataclass(frozen=True)
class Shape:
    """Of a clip: its frames, their side in pixels, and frames a second."""

    num_frames: int = 8
    frame_size: int = 96
    sample_fps: float = 4.0


@dataclass(frozen=True)
class Clips:
    """``pixels`` uint8 [B, T, H, W] of the table's ``rows`` [B]; ``unreadable``: row -> why it is not among them."""

    pixels: np.ndarray
    rows: np.ndarray
    unreadable: dict[int, str] = field(default_factory=dict)


def read_clips(dataset: PreparedDataset, rows: np.ndarray, shape: Shape) -> Clips:
    """The middle of each video, its largest centred square; no chance in it."""
    videos = dataset.tables.videos.read(rows)
    pixels = np.zeros((len(rows), shape.num_frames, shape.frame_size, shape.frame_size), np.uint8)
    unreadable: dict[int, str] = {}

    def read(number: int) -> None:
        video = videos[number]
        indices = frame_indices(video["num_frames"], video["fps"], shape.num_frames, shape.sample_fps)
        uri = video["uri"]
        if "://" not in uri and not uri.startswith("/"):
            uri = f"{dataset.root}/{uri}"
        try:
            with local_copy(uri) as path:
                frames = decode_frames(path, indices, video["num_frames"])
        except DataError as error:
            unreadable[int(rows[number])] = str(error)
        else:
            height, width = frames.shape[1:]
            pixels[number] = crop_and_resize(frames, choose_crop(height, width, (1, 1), None), shape.frame_size)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(read, range(len(rows))))
    if not unreadable:
        return Clips(pixels, rows)
    read_well = np.array([int(row) not in unreadable for row in rows], bool)
    return Clips(pixels[read_well], rows[read_well], unreadable)
