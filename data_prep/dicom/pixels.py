"""Stored pixels, one frame in memory at a time: grey as it is, colour as luma."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image
from pydicom.uid import RLELossless

from data_prep.dicom.codestream import JPEG, LOSSY
from data_prep.dicom.decoders import decode
from data_prep.dicom.frames import Frames
from data_prep.dicom.layout import LUMA_FIRST, Layout

LUMA = np.array([299, 587, 114], np.uint32)  # thousandths of red, green and blue, ITU-R BT.601


def stored_frames(file: BinaryIO, frames: Frames, layout: Layout) -> Iterator[np.ndarray]:
    """Yield frames [H, W] of bit patterns: the stored bits of each pixel as an unsigned number, 0 to 2**bits - 1.

    Overlays that old files keep in the unused high bits are masked away. Raises whatever the decoder raises.
    """
    for index in range(frames.count):
        source = frames.read(file, index, layout)
        if layout.syntax.is_encapsulated:
            frame, photometric = decode(source, layout)
            yield _patterns(_luma(frame, photometric), layout)
        else:
            yield _patterns(_native(source, layout), layout)


def fit(frame: np.ndarray, max_side: int | None) -> np.ndarray:
    """Shrink a uint8 frame [H, W] by area average until neither side is longer than ``max_side`` pixels."""
    if max_side is None or max(frame.shape) <= max_side:
        return frame
    scale = max_side / max(frame.shape)
    height, width = (max(1, round(side * scale)) for side in frame.shape)
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX))


def _native(source: bytes, layout: Layout) -> np.ndarray:
    kind = ("<" if layout.syntax.is_little_endian else ">") + f"u{layout.allocated // 8}"
    values = np.frombuffer(source, kind)
    shape = (layout.rows, layout.columns)
    if layout.photometric == "YBR_FULL_422":  # Y Y Cb Cr for two pixels
        return values.reshape(-1, 4)[:, :2].reshape(shape)
    if layout.samples == 1:
        return values.reshape(shape)
    colour = values.reshape(3, *shape).transpose(1, 2, 0) if layout.by_plane else values.reshape(*shape, 3)
    return _luma(colour, layout.photometric)


def _luma(frame: np.ndarray, photometric: str) -> np.ndarray:
    if frame.ndim == 2:
        return frame
    if photometric in LUMA_FIRST:
        return frame[..., 0]
    if frame.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).convert("L"))
    return ((frame.astype(np.uint32) @ LUMA + 500) // 1000).astype(np.uint16)


def _patterns(frame: np.ndarray, layout: Layout) -> np.ndarray:
    low, high = (-(2 ** (layout.bits - 1)), 2 ** (layout.bits - 1) - 1) if layout.signed else (0, 2**layout.bits - 1)
    if layout.syntax in LOSSY and layout.bits < 8 * frame.itemsize:
        # Lossy compression overshoots: cut off, since a mask would make the brightest pixel black.
        signed = layout.signed and layout.syntax not in JPEG
        frame = np.clip(frame, low, high) if signed else np.minimum(frame, 2**layout.bits - 1)
    unsigned = frame.view(frame.dtype.str.replace("i", "u")).astype(f"u{frame.itemsize}", copy=False)
    # The codecs put the bits to the bottom; RLE packs the container as it stands.
    in_place = layout.syntax == RLELossless or not layout.syntax.is_encapsulated
    shift = layout.high_bit + 1 - layout.bits if in_place else 0
    return (unsigned >> shift) & (2**layout.bits - 1) if shift or layout.bits < 8 * frame.itemsize else unsigned
