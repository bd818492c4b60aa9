"""Which views of a study and which moments of a video a clip is made of: by time, not by index."""

from __future__ import annotations

import numpy as np


def frame_indices(
    num_frames: int,
    fps: float,
    clip_frames: int,
    sample_fps: float,
    time_jitter: float = 0.0,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Indices [T] of the frames of a clip that runs at ``sample_fps``, whatever the cine runs at (7.5 to 30 frames/s).

    The clip starts anywhere it fits (``rng``), or in the middle (no ``rng``: evaluation has no randomness). A video
    shorter than the clip starts at its first frame and holds its last. ``time_jitter`` varies the rate by up to that
    share.
    """
    if num_frames < 1 or fps <= 0 or sample_fps <= 0:
        raise ValueError(f"a video needs frames and rates above 0, got {num_frames} frames, {fps} and {sample_fps} fps")
    if rng is not None:
        sample_fps = sample_fps * (1 + time_jitter * rng.uniform(-1, 1))
    seconds = np.arange(clip_frames) / sample_fps
    slack = max(0.0, (num_frames - 1) / fps - seconds[-1])
    start = slack * (rng.uniform() if rng is not None else 0.5)
    # The frame on screen at that time; the small addend keeps a time that falls on a frame from rounding below it.
    indices = np.floor((start + seconds) * fps + 1e-6).astype(np.int64)
    return np.minimum(indices, num_frames - 1)


def choose_views(num_videos: int, num_views: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Indices of a study's videos, in acquisition order: ``num_views`` of them drawn without replacement, or (no
    ``rng``: evaluation) all."""
    if rng is None or num_videos <= num_views:
        return np.arange(num_videos)
    return np.sort(rng.choice(num_videos, num_views, replace=False))
