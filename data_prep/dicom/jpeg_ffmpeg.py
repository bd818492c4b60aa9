"""The two kinds of JPEG that Pillow cannot read, decoded by FFmpeg inside pydicom: lossless, and lossy with 12 bits.

Many cath labs store JPEG Lossless (process 14). pydicom itself only knows a GPL library and GDCM for both. FFmpeg is
exact on the 10-bit sample of the DICOM committee, but with 16 bits it reads a difference of 32,768 wrongly, so
that such streams are refused rather than decoded wrongly.
"""

from __future__ import annotations

import av
import numpy as np
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEGLossless

from data_prep.dicom.codestream import JPEG, read_stream

MAX_LOSSLESS_BITS = 15
DECODER_DEPENDENCIES = dict.fromkeys(JPEG, ("av",))


def is_available(uid: str) -> bool:
    """Whether this module decodes the transfer syntax (pydicom asks)."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: DecodeRunner) -> bytearray:
    """One grey frame to its stored values; pydicom's plugin interface.

    Raises:
        NotImplementedError: lossless with more than 15 bits.
        ValueError: no frame header, no frame, or not grey.
    """
    stream = read_stream(JPEGLossless, source)
    assert stream is not None
    if stream.lossless_jpeg and stream.bits > MAX_LOSSLESS_BITS:
        raise NotImplementedError(f"JPEG Lossless of {stream.bits} bits")
    codec = av.CodecContext.create("mjpeg", "r")
    codec.options = {"err_detect": "explode"}  # else it paints over damage
    pictures = codec.decode(av.Packet(source)) + codec.decode(None)
    if len(pictures) != 1 or pictures[0].format.name not in ("gray", "gray16le"):
        raise ValueError("not one grey picture")
    values = np.asarray(pictures[0].to_ndarray())
    if values.dtype == np.uint16:
        values = np.right_shift(values, 16 - stream.bits)  # FFmpeg puts the highest bit of the stream into bit 15
    runner.set_option("bits_allocated", 8 * values.itemsize)
    return bytearray(values.tobytes())
