"""A prepared video file -> the frames asked for, uint8 [T, H, W].

What the DICOM door writes is MJPEG: each packet is a picture by itself, so PyAV decodes just the packets asked for and
hands out their luma as it stands. Any other codec goes through decord, or through PyAV where decord has no wheel. All
three agree to the last grey level. Files are always opened by path: decord kills the process on damaged data given as
bytes.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from pyarrow import fs

from deepcoro.errors import DataError

try:
    import decord
except ImportError:  # no wheel for this platform
    decord = None


def decode_frames(path: str, indices: np.ndarray, num_frames: int) -> np.ndarray:
    """Frames ``indices`` [T] of a grey video, uint8 [T, H, W].

    Args:
        num_frames: what the table says the file holds. Damage is often silent, so any other number is an error.

    Raises:
        DataError: the file is missing, empty, damaged, or not of that length.
    """
    if not Path(path).is_file() or Path(path).stat().st_size == 0:
        raise DataError(f"{path}: the video is missing or empty")
    indices = np.asarray(indices)
    try:
        found, frames = _read(path, indices, num_frames)
    except Exception as error:  # both decoders raise types of their own for damaged files; all mean the same here
        raise DataError(f"{path}: cannot be decoded: {error}") from error
    if found != num_frames:
        raise DataError(f"{path}: holds {found} frames, the table says {num_frames}")
    return frames


def _read(path: str, indices: np.ndarray, num_frames: int) -> tuple[int, np.ndarray]:
    with av.open(path) as container:
        if container.streams.video[0].codec_context.name == "mjpeg":
            return _read_pictures(container, indices, num_frames)
    if decord is not None:
        # decord cannot hand out frames of some narrow widths (24, 48, 72 pixels); PyAV reads them, and refuses damage.
        with contextlib.suppress(decord.DECORDError):
            return _read_decord(path, indices, num_frames)
    return _read_av(path, indices, num_frames)


def _read_pictures(
    container: av.container.InputContainer, indices: np.ndarray, num_frames: int
) -> tuple[int, np.ndarray]:
    wanted = set(indices.tolist())
    kept: dict[int, np.ndarray] = {}
    found = 0
    for packet in container.demux(video=0):
        if packet.size == 0:  # the end
            continue
        if found in wanted:
            (frame,) = packet.decode()
            kept[found] = _luma(frame)
        found += 1
    if found != num_frames:
        return found, np.empty((0, 0, 0), np.uint8)
    return found, np.stack([kept[index] for index in indices.tolist()])


def _luma(frame: av.VideoFrame) -> np.ndarray:
    """Grey levels 0-255 of a frame [H, W]; the first plane is that only where the range is full."""
    if frame.format.name not in ("yuvj420p", "yuvj422p", "yuvj444p", "gray"):
        return _grey(frame.to_ndarray(format="rgb24"))
    plane = frame.planes[0]
    return np.asarray(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]


def _grey(pixels: np.ndarray) -> np.ndarray:
    """[..., 3] -> [...]: of grey pixels their level, which is all three channels; of colours the luma of a JPEG (ITU-R
    BT.601), so that a file has the same levels whatever its codec."""
    red, green, blue = (pixels[..., channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red
    return (pixels @ np.array([0.299, 0.587, 0.114], np.float32)).round().astype(np.uint8)


def _read_decord(path: str, indices: np.ndarray, num_frames: int) -> tuple[int, np.ndarray]:
    reader = decord.VideoReader(path, num_threads=1)
    if len(reader) != num_frames:
        return len(reader), np.empty((0, 0, 0), np.uint8)
    wanted, back = np.unique(indices, return_inverse=True)
    frames = reader.get_batch(wanted).asnumpy()
    return len(reader), np.ascontiguousarray(_grey(frames))[back]


def _read_av(path: str, indices: np.ndarray, num_frames: int) -> tuple[int, np.ndarray]:
    wanted = set(indices.tolist())
    kept: dict[int, np.ndarray] = {}
    found = 0
    with av.open(path) as container:
        container.streams.video[0].thread_type = "NONE"
        for frame in container.decode(video=0):
            if found in wanted:
                kept[found] = _grey(frame.to_ndarray(format="rgb24"))
            found += 1
    if found != num_frames:
        return found, np.empty((0, 0, 0), np.uint8)
    return found, np.stack([kept[index] for index in indices.tolist()])


@dataclass(frozen=True)
class VideoFacts:
    """What a video file says of itself: frames, frames a second, and pixels."""

    num_frames: int
    fps: float
    height: int
    width: int


def probe(path: str) -> VideoFacts:
    """What ``path``, a video file of which no table tells, holds: the number of frames as ``decode_frames`` counts
    them.

    Raises:
        DataError: the file is missing, empty, no video, damaged, or does not tell its frame rate.
    """
    if not Path(path).is_file() or Path(path).stat().st_size == 0:
        raise DataError(f"{path}: the video is missing or empty")
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise DataError(f"{path}: holds no video")
            stream = container.streams.video[0]
            rate, height, width = stream.average_rate or stream.guessed_rate, stream.height, stream.width
        num_frames, _ = _read(path, np.zeros(1, int), -1)  # no file has -1: it is counted, and nothing is kept
    except DataError:
        raise
    except Exception as error:  # as above
        raise DataError(f"{path}: cannot be decoded: {error}") from error
    if not rate:
        raise DataError(f"{path}: does not tell its frame rate, by which its frames are chosen; write it anew with one")
    return VideoFacts(num_frames, float(rate), height, width)


@contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """A local path for ``uri``: itself if it is one, else a temporary copy that is gone afterwards."""
    if "://" not in uri:
        yield uri
        return
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (OSError, ValueError, NotImplementedError) as error:  # ArrowInvalid is a ValueError
        raise DataError(f"{uri}: is no URI that can be read: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / Path(path).name
        try:
            with filesystem.open_input_stream(path) as source:
                target.write_bytes(source.read())
        except OSError as error:
            raise DataError(f"{uri}: cannot be fetched: {error}") from error
        yield str(target)
