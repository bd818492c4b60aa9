"""Grey frames to a prepared video file, and how to read what was written.

Motion JPEG in MP4, every frame a key frame: a training clip reads any moment at the cost of that frame alone. MP4
because its frame table stands at the end: a file that was cut short is refused by every reader, where AVI and Matroska
play what is left without a word; and because it keeps any rational frame rate, where Matroska rounds to milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.reformatter import ColorRange

EXTENSION = "mp4"
CODEC = "mjpeg"
QUALITY = 3  # MJPEG's quantiser, 1 (best) to 31; its default loses 8 dB against this
# So many squares of levels stay below 2**24, up to which float32 counts exactly, and it is twice as fast as integers.
EXACT = 256


@dataclass
class PixelSums:
    """Integer sums from which mean and standard deviation over any set of videos follow exactly (levels 0-255)."""

    count: int = 0
    total: int = 0
    squares: int = 0

    def add(self, frame: np.ndarray) -> None:
        """Count the pixels of one uint8 frame."""
        values = frame.astype(np.float32).ravel()
        whole = values.size // EXACT * EXACT
        for part in (values[:whole].reshape(-1, EXACT), values[whole:][None]):
            self.total += int(part.sum(axis=1).astype(np.int64).sum())
            self.squares += int(np.vecdot(part, part).astype(np.int64).sum())
        self.count += frame.size


@dataclass(frozen=True)
class Written:
    """What went into a video file."""

    num_frames: int
    height: int
    width: int
    sums: PixelSums


def write_video(path: Path, frames: Iterable[np.ndarray], fps: Fraction) -> Written:
    """Write uint8 frames [H, W], one at a time, as full-range grey MJPEG; at least one frame, all of one size.

    Black stays 0 and white stays 255: the stream is tagged full range, without which a reader would stretch 16-235.

    Raises:
        ValueError: no frame, or a frame of another size or type.
        OSError: the file cannot be written. Whatever ``frames`` raises passes through; the caller removes the file.
    """
    sums = PixelSums()
    shape: tuple[int, ...] | None = None
    num_frames = 0
    with av.open(str(path), "w") as container:
        stream = cast(av.VideoStream, container.add_stream(CODEC, rate=fps))
        for frame in frames:
            if shape is None:
                shape = frame.shape
                stream.height, stream.width = shape
                stream.pix_fmt = "yuvj420p"
                stream.codec_context.color_range = ColorRange.JPEG
                stream.codec_context.qmin = stream.codec_context.qmax = QUALITY
                stream.codec_context.thread_count = 1  # the tasks are what runs side by side
            if frame.shape != shape or frame.dtype != np.uint8:
                raise ValueError(
                    f"{path.name}: frame {num_frames} is {frame.dtype} {frame.shape}, expected uint8 {shape}"
                )
            picture = _picture(frame)
            picture.pts = num_frames
            container.mux(stream.encode(picture))
            sums.add(frame)
            num_frames += 1
        if shape is None:
            raise ValueError(f"{path.name}: there is no frame to write")
        container.mux(stream.encode(None))
    return Written(num_frames, shape[0], shape[1], sums)


def _picture(frame: np.ndarray) -> av.VideoFrame:
    """The frame as luma with neutral chroma, written into the planes: to convert would cost more than to encode."""
    height, width = frame.shape
    picture = av.VideoFrame(width, height, "yuvj420p")
    picture.color_range = ColorRange.JPEG
    luma, *chroma = (
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size) for plane in picture.planes
    )
    luma[:height, :width] = frame
    for plane in chroma:
        plane[:] = 128
    return picture
