"""Stored pixels to what a reader at the workstation sees, as uint8, one frame in memory at a time.

A stored value passes through four steps (PS3.3 C.11): Modality (rescale or table), VOI (window or table), the scale to
0-255, and inversion where low means white. Each looks at one value alone, so that they are worked out once for each of
the at most 65,536 possible values, and a frame costs one table look-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels import apply_modality_lut, apply_voi, iter_pixels

from data_prep.dicom import jpeg_lossless
from data_prep.dicom.header import anywhere

jpeg_lossless.install()

X_RAY = ("1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.12.2")  # XA and RF image storage


def stored_frames(file: BinaryIO, dataset: Dataset, num_frames: int) -> Iterator[np.ndarray]:
    """Yield frames [H, W] of bit patterns: the stored bits of each pixel as an unsigned number, 0 to 2**bits - 1.

    Overlays that old files keep in the unused high bits are masked away. Raises whatever the decoder raises.
    """
    bits = dataset.BitsStored
    native = not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    shift = dataset.HighBit + 1 - bits if native else 0  # a decoder has already put the bits to the bottom
    file.seek(0)
    for index, frame in enumerate(iter_pixels(file, raw=True, correct_unused_bits=False)):
        if index == num_frames:  # the header's count is what the rest of the header speaks of
            return
        unsigned = frame.view(frame.dtype.str.replace("i", "u"))
        yield (unsigned >> shift) & (2**bits - 1) if shift or bits < 8 * frame.itemsize else unsigned


def display_table(dataset: Dataset, frames: Callable[[], Iterator[np.ndarray]]) -> tuple[np.ndarray, str]:
    """The uint8 level [2**bits] of each stored bit pattern, and which rule made it.

    - ``window``: window center and width, the first if there are several; one window for the whole cine, so that the
      same contrast is the same grey in every frame.
    - ``table``: a VOI table.
    - ``stored_range``: neither, 8 bits or fewer: all that the bits can hold, which leaves 8-bit pixels as they are.
    - ``values_present``: neither, more bits: from the lowest to the highest value of the cine, since scanners use a
      small part of 12 or 16 bits. It costs a second decoding.

    Args:
        dataset: The header.
        frames: Gives the stored frames from the start; called only for ``values_present``.
    """
    bits = dataset.BitsStored
    patterns = np.arange(2**bits)
    signed = dataset.PixelRepresentation == 1
    stored = np.where(patterns >= 2 ** (bits - 1), patterns - 2**bits, patterns) if signed else patterns
    values = _modality(stored, dataset)
    center, width = _first(anywhere(dataset, "WindowCenter")), _first(anywhere(dataset, "WindowWidth"))
    if center is not None and width is not None and width >= 1:
        level, rule = _window(values, center, width, anywhere(dataset, "VOILUTFunction") or "LINEAR"), "window"
    elif dataset.get("VOILUTSequence"):
        output_bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        level, rule = apply_voi(values.astype(np.int64), dataset) / (2**output_bits - 1), "table"
    elif bits <= 8:
        level, rule = _between(values, values.min(), values.max()), "stored_range"
    else:
        present = np.zeros(2**bits, bool)
        for frame in frames():
            present[frame] = True
        level, rule = _between(values, values[present].min(), values[present].max()), "values_present"
    table = np.floor(np.clip(level, 0, 1) * 255 + 0.5).astype(np.uint8)
    return (255 - table if dataset.PhotometricInterpretation == "MONOCHROME1" else table), rule


def fit(frame: np.ndarray, max_side: int | None) -> np.ndarray:
    """Shrink a uint8 frame [H, W] by area average until neither side is longer than ``max_side`` pixels."""
    if max_side is None or max(frame.shape) <= max_side:
        return frame
    scale = max_side / max(frame.shape)
    height, width = (max(1, round(side * scale)) for side in frame.shape)
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX))


def _modality(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    # In X-ray angiography a modality table may turn logarithmic pixels back into linear exposure. It serves
    # measurement; the window speaks of the stored pixels (PS3.3 C.8.7.1.1.2).
    relation = dataset.get("PixelIntensityRelationship")
    if dataset.get("SOPClassUID") in X_RAY and relation in ("LOG", "DISP"):
        return stored.astype(np.float64)
    if "ModalityLUTSequence" in dataset:
        return apply_modality_lut(stored, dataset).astype(np.float64)
    slope, intercept = _first(anywhere(dataset, "RescaleSlope")), _first(anywhere(dataset, "RescaleIntercept"))
    return stored * (1.0 if slope is None else slope) + (0.0 if intercept is None else intercept)


def _window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, with output 0 to 1."""
    if function == "SIGMOID":
        return 0.5 + 0.5 * np.tanh(2 * (values - center) / width)  # the logistic curve, without its overflow
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0, 1)
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """``low`` to 0 and ``high`` to 1; a constant picture is black."""
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    number = float(value[0] if isinstance(value, MultiValue) else value)
    return number if math.isfinite(number) else None
