"""One AVI or MP4 of the predecessor -> one prepared video, or the reason why not. Runs in worker processes.

A decoder that crashes costs its process and that file, not the job: what was in work then is tried once more, one file
a process.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np

from data_prep.dicom.encode import write_video

ASSUMED_FPS = Fraction(15)  # the usual rate of a cath lab, where the file tells none
MIN_FRAMES = 8  # of a video that breaks off, so many are worth keeping
MAX_SIDE = 16_384


@dataclass(frozen=True)
class Job:
    """A file to convert: ``row`` of the table, where it is and where it goes."""

    row: int
    source: Path
    target: Path


def convert(job: Job) -> dict[str, Any]:
    """Convert one file; returns what can be pickled: ``reason`` and ``detail``, or the facts of the video.

    Raises:
        OSError: the video cannot be written: no fault of this file, and the end of the job.
    """
    try:
        if job.source.stat().st_size == 0:
            return {"reason": "empty", "detail": "the file has no bytes"}
        with job.source.open("rb") as file:
            file.read(1)
    except OSError:
        return {"reason": "unreadable", "detail": "the file system refused to give the file"}
    state: dict[str, Any] = {"broken": False, "error": None}
    try:
        with av.open(str(job.source)) as container:
            if not container.streams.video:
                return {"reason": "no_video", "detail": "the file holds no moving picture"}
            stream = container.streams.video[0]
            fps = stream.average_rate or stream.guessed_rate
            declared = stream.frames
            frames = _frames(container, stream, state)
            first = next(frames, None)
            if first is None:
                return {"reason": "decode_error", "detail": "no picture of the file can be decoded"}
            try:
                written = write_video(job.target, _after(first, frames), Fraction(fps or ASSUMED_FPS))
            except ValueError:
                job.target.unlink(missing_ok=True)
                return {"reason": "decode_error", "detail": "the pictures are of several sizes"}
    except av.error.FFmpegError as error:
        if state["error"] is None and job.target.exists():  # of what is written, not of what is read
            raise OSError(error.errno, "a video cannot be written") from None
        return {"reason": "no_video", "detail": "the file is no video that the decoder reads"}
    partial = state["broken"] or written.num_frames < declared
    if written.num_frames < 2 or (partial and written.num_frames < MIN_FRAMES):
        job.target.unlink(missing_ok=True)
        few = "truncated" if partial else "single_frame"
        return {"reason": few, "detail": f"{written.num_frames} of {max(declared, 1)} frames are there"}
    return {
        "num_frames": written.num_frames,
        "height": written.height,
        "width": written.width,
        "fps": float(fps or ASSUMED_FPS),
        "fps_source": "container" if fps else "assumed",
        "partial": partial,
        "sums": vars(written.sums),
    }


def _frames(container: Any, stream: Any, state: dict[str, Any]) -> Iterator[np.ndarray]:
    """Luma, uint8 [H, W], full range, up to the end or to the first damage."""
    stream.thread_type = "NONE"
    try:
        if not 0 < stream.width <= MAX_SIDE or not 0 < stream.height <= MAX_SIDE:
            return
        for frame in container.decode(stream):
            yield frame.to_ndarray(format="gray")
    except (av.error.FFmpegError, ValueError) as error:
        state["broken"], state["error"] = True, error


def _after(first: np.ndarray, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from frames


def convert_all(jobs: list[Job], num_processes: int | None) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Each job with what came of it, as they end, on ``num_processes`` processes (None: one a CPU)."""
    num = num_processes or os.cpu_count() or 1
    queue = deque(jobs)
    while queue:
        running: dict[Future[dict[str, Any]], Job] = {}
        try:
            with ProcessPoolExecutor(min(num, len(queue)), get_context("spawn")) as pool:
                while queue or running:
                    while queue and len(running) < 2 * num:
                        job = queue.popleft()
                        running[pool.submit(convert, job)] = job
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        yield running.pop(future), result
        except BrokenProcessPool:
            for job in running.values():
                yield job, _alone(job)


def _alone(job: Job) -> dict[str, Any]:
    job.target.unlink(missing_ok=True)
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(convert, job).result()
    except BrokenProcessPool:
        job.target.unlink(missing_ok=True)
        return {"reason": "decoder_crash", "detail": "the process that read the file died, twice"}
