"""Stored numbers to what a reader at the workstation sees, as uint8.

A stored value passes through four steps (PS3.3 C.11): Modality (rescale or table), VOI (window or table), the scale to
0-255, and inversion where low means white. Each looks at one value alone, so that they are worked out once for each of
the at most 65,536 possible values, and a frame costs one table look-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi

from data_prep.dicom.header import anywhere, per_frame
from data_prep.dicom.layout import COLOUR, PALETTE, Layout

X_RAY = ("1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.12.2")  # XA and RF image storage
PERCENTILES = (0.5, 99.5)
GREY_KEYWORDS = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction")
NUM_BINS = 2**16
IDENTITY = np.arange(256, dtype=np.uint8)
LUMA = np.array([0.299, 0.587, 0.114])

Facts = tuple[Any, ...]  # the values of GREY_KEYWORDS that hold for a frame
Frames = Callable[[], Iterator[np.ndarray]]


class Display:
    """The uint8 level of each stored bit pattern, for each frame of a cine.

    ``rule`` says what made it:

    - ``window``: window center and width, the first if there are several. Enhanced files may give each frame a rescale
      and a window of its own, and then each frame has its own.
    - ``table``: a VOI table.
    - ``stored_range``: neither, 8 bits or fewer: all that the bits can hold, which leaves 8-bit pixels as they are.
    - ``percentiles``: neither, more bits: from the 0.5th to the 99.5th percentile of the whole cine, since scanners use
      a small part of 12 or 16 bits and a few pixels may be far off. It costs a second decoding.
    - ``luma``, ``palette``: colour.
    """

    def __init__(self, dataset: Dataset, layout: Layout, frames: Frames, visible: np.ndarray | None = None) -> None:
        """Work out the rule.

        Args:
            dataset: The header.
            layout: Its pixels' layout.
            frames: Gives the stored frames from the start; called only for ``percentiles``.
            visible: Pixels [H, W] that count for percentiles, bool; None for all.
        """
        self.dataset, self.layout = dataset, layout
        patterns = np.arange(2**layout.bits)
        self.stored = np.where(patterns >= 2 ** (layout.bits - 1), patterns - 2**layout.bits, patterns)
        if not layout.signed:
            self.stored = patterns
        self.facts = _frame_facts(dataset)
        self.range: tuple[float, float] | None = None
        self.rule = self._rule()
        self._cached = lru_cache(maxsize=32)(self._table)
        if self.rule == "percentiles":
            self.range = self._percentiles(frames(), visible)

    def show(self, index: int, frame: np.ndarray) -> np.ndarray:
        """The uint8 levels [H, W] of stored frame number ``index``; the frame itself where they are its values."""
        table = self._cached(self._facts(index))
        return frame if frame.dtype == np.uint8 and np.array_equal(table, IDENTITY[: len(table)]) else table.take(frame)

    def _facts(self, index: int) -> Facts:
        return self.facts[min(index, len(self.facts) - 1)]

    def _rule(self) -> str:
        if self.layout.photometric == PALETTE:
            return "palette"
        if self.layout.photometric in COLOUR:
            return "luma"
        if all(_window_of(facts) for facts in self.facts):
            return "window"
        if self.dataset.get("VOILUTSequence"):
            return "table"
        return "stored_range" if self.layout.bits <= 8 else "percentiles"

    def _table(self, facts: Facts) -> np.ndarray:
        if self.rule == "palette":
            level = _palette(self.stored, self.dataset)
        elif self.rule == "luma":
            level = self.stored / (2**self.layout.bits - 1)
        else:
            level = self._grey(facts)
        table = np.floor(np.clip(level, 0, 1) * 255 + 0.5).astype(np.uint8)
        return 255 - table if self.layout.photometric == "MONOCHROME1" else table

    def _grey(self, facts: Facts) -> np.ndarray:
        values = self._modality(facts)
        if self.rule == "window":
            center, width = _window_of(facts) or (0.0, 1.0)
            return _windowed(values, center, width, facts[4] or "LINEAR")
        if self.rule == "table":
            output_bits = int(self.dataset.VOILUTSequence[0].LUTDescriptor[2])
            return apply_voi(values.astype(np.int64), self.dataset) / (2**output_bits - 1)
        return _between(values, *(self.range or (values.min(), values.max())))

    def _modality(self, facts: Facts) -> np.ndarray:
        # In X-ray angiography a modality table may turn logarithmic pixels back into linear exposure. It serves
        # measurement; the window speaks of the stored pixels (PS3.3 C.8.7.1.1.2).
        relation = self.dataset.get("PixelIntensityRelationship")
        if self.dataset.get("SOPClassUID") in X_RAY and relation in ("LOG", "DISP"):
            return self.stored.astype(np.float64)
        if "ModalityLUTSequence" in self.dataset:
            return apply_modality_lut(self.stored, self.dataset).astype(np.float64)
        slope, intercept = _first(facts[0]), _first(facts[1])
        return self.stored * (1.0 if slope is None else slope) + (0.0 if intercept is None else intercept)

    def _percentiles(self, frames: Iterator[np.ndarray], visible: np.ndarray | None) -> tuple[float, float]:
        """From a histogram of the values of the whole cine, without the pixels that are only padding."""
        known = dict.fromkeys(self.facts)
        low = min(float(self._modality(facts).min()) for facts in known)
        high = max(float(self._modality(facts).max()) for facts in known)
        counts = np.zeros(NUM_BINS, np.int64)
        places: dict[Facts, np.ndarray] = {}
        padding = self.dataset.get("PixelPaddingValue")
        for index, frame in enumerate(frames):
            facts = self._facts(index)
            if facts not in places:
                places = {facts: np.rint(_between(self._modality(facts), low, high) * (NUM_BINS - 1)).astype(np.int64)}
            seen = np.bincount((frame if visible is None else frame[visible]).ravel(), minlength=2**self.layout.bits)
            if isinstance(padding, int):
                seen[padding % 2**self.layout.bits] = 0
            np.add.at(counts, places[facts], seen)
        return _percentile_range(counts, low, high)


def _percentile_range(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    present = np.flatnonzero(counts)
    if not len(present):
        return low, low
    summed = np.cumsum(counts)
    ends = [int(np.searchsorted(summed, summed[-1] * share / 100)) for share in PERCENTILES]
    if ends[0] == ends[1]:  # nearly all of the picture is one value: then what little differs is the picture
        ends = [int(present[0]), int(present[-1])]
    first, last = (low + (high - low) * end / (NUM_BINS - 1) for end in ends)
    return first, last


def _frame_facts(dataset: Dataset) -> list[Facts]:
    """One for all frames, or one for each where an enhanced file says so."""
    common = tuple(anywhere(dataset, keyword) for keyword in GREY_KEYWORDS)
    frames = per_frame(dataset, GREY_KEYWORDS)
    if not frames:
        return [_hashable(common)]
    return [
        _hashable(own if own is not None else of_all for own, of_all in zip(frame, common, strict=True))
        for frame in frames
    ]


def _hashable(values: Any) -> Facts:
    return tuple(tuple(value) if isinstance(value, MultiValue) else value for value in values)


def _window_of(facts: Facts) -> tuple[float, float] | None:
    center, width = _first(facts[2]), _first(facts[3])
    return (center, width) if center is not None and width is not None and width >= 1 else None


def _windowed(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, with output 0 to 1."""
    if function == "SIGMOID":
        return 0.5 + 0.5 * np.tanh(2 * (values - center) / width)  # the logistic curve, without its overflow
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0, 1)
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _palette(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Luma 0 to 1 of each index (PS3.3 C.7.6.3.1.5)."""
    colours = apply_color_lut(stored.astype(np.uint16 if len(stored) > 256 else np.uint8), dataset)
    top = 2 ** (8 * colours.dtype.itemsize) - 1
    if dataset.RedPaletteColorLookupTableDescriptor[2] == 8 and colours.max() <= 255:
        top = 255  # 8-bit entries that the file keeps in 16-bit words
    return colours[..., :3] @ LUMA / top


def _between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """``low`` to 0 and ``high`` to 1; a constant picture is black."""
    return (values - low) / (high - low) if high > low else np.zeros_like(values, dtype=np.float64)


def _first(value: Any) -> float | None:
    if value is None or value == "" or value == ():
        return None
    number = float(value[0] if isinstance(value, tuple | list | MultiValue) else value)
    return number if math.isfinite(number) else None
