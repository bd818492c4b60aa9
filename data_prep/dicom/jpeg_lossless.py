"""JPEG Lossless (process 14), which many cath labs store, decoded by FFmpeg inside pydicom.

pydicom itself only knows a GPL library and GDCM for it. FFmpeg's decoder is exact on the 10-bit sample of the DICOM
committee; at 16 bits it overflows, so such streams are refused rather than decoded wrongly.
"""

from __future__ import annotations

import av
import numpy as np
from pydicom.pixels.decoders import JPEGLosslessDecoder, JPEGLosslessSV1Decoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEGLossless, JPEGLosslessSV1

LABEL = "ffmpeg"
MAX_BITS = 15
DECODER_DEPENDENCIES = {JPEGLossless: ("av",), JPEGLosslessSV1: ("av",)}


def install() -> None:
    """Offer the decoder to pydicom; asking twice is harmless."""
    for decoder in (JPEGLosslessDecoder, JPEGLosslessSV1Decoder):
        if LABEL not in decoder.available_plugins:
            decoder.add_plugin(LABEL, (__name__, "decode_frame"))


def is_available(uid: str) -> bool:
    """Whether this module decodes the transfer syntax (pydicom asks)."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: DecodeRunner) -> bytearray:
    """One grey frame of JPEG Lossless to its stored values; pydicom's plugin interface.

    Raises:
        NotImplementedError: more than 15 bits.
        ValueError: no frame header, no frame, or not grey.
    """
    bits = stream_bits(source)
    if bits > MAX_BITS:
        raise NotImplementedError(f"JPEG Lossless of {bits} bits")
    codec = av.CodecContext.create("mjpeg", "r")
    pictures = codec.decode(av.Packet(source)) + codec.decode(None)
    if len(pictures) != 1 or pictures[0].format.name not in ("gray", "gray16le"):
        raise ValueError("not one grey picture")
    values = np.asarray(pictures[0].to_ndarray())
    if values.dtype == np.uint16:
        values = np.right_shift(values, 16 - bits)  # FFmpeg puts the highest bit of the stream into bit 15
    runner.set_option("bits_allocated", 8 * values.itemsize)
    return bytearray(values.tobytes())


def stream_bits(source: bytes) -> int:
    """The sample precision in the frame header (SOF) of a JPEG stream, ITU T.81 B.2.2."""
    at = 2
    while at + 5 <= len(source):
        if source[at] != 0xFF:
            break
        marker = source[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return source[at + 4]
        at += 2 + int.from_bytes(source[at + 2 : at + 4], "big")
    raise ValueError("no frame header in the JPEG stream")
