"""RLE Lossless (PS3.5 annex G), unpacked by Pillow in C: the standard's runs are the PackBits of TIFF.

pydicom has a decoder in Python; this one is some thirty times faster, and is tested against it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from data_prep.dicom.layout import Layout

HEADER_BYTES = 64
MAX_SEGMENTS = 15


def decode_rle(source: bytes, layout: Layout) -> np.ndarray:
    """One frame to its stored containers, uint8 or uint16 [H, W] or [H, W, 3].

    Raises:
        ValueError: other segments than the header of the file asks for, or one that ends early.
    """
    header = np.frombuffer(source[:HEADER_BYTES], "<u4")
    bytes_each = layout.allocated // 8
    number = layout.samples * bytes_each
    if len(header) != MAX_SEGMENTS + 1 or header[0] != number:
        raise ValueError("the frame has another number of segments than its pixels have bytes")
    ends = [*header[2 : number + 1].tolist(), len(source)]
    planes = []
    for begin, end in zip(header[1 : number + 1].tolist(), ends, strict=True):
        # As one line of the whole frame: some writers let a run go on from one row to the next.
        line = Image.frombytes("L", (layout.rows * layout.columns, 1), source[begin:end], "packbits", "L")
        planes.append(np.asarray(line).reshape(layout.rows, layout.columns))
    # A sample's bytes follow each other, the highest first; samples follow each other.
    values = [
        planes[at] if bytes_each == 1 else planes[at].astype(np.uint16) << 8 | planes[at + 1]
        for at in range(0, number, bytes_each)
    ]
    return values[0] if layout.samples == 1 else np.stack(values, -1)
