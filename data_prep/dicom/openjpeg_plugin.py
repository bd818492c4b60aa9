"""JPEG 2000 and High-Throughput JPEG 2000, decoded by OpenJPEG inside pydicom.

The library (pylibjpeg-openjpeg) offers itself to pydicom through a further package that holds nothing else we need.
"""

from __future__ import annotations

import openjpeg
from pydicom.pixels.decoders.base import DecodeRunner

from data_prep.dicom.codestream import J2K

DECODER_DEPENDENCIES = dict.fromkeys(J2K, ("pylibjpeg-openjpeg",))


def is_available(uid: str) -> bool:
    """Whether this module decodes the transfer syntax (pydicom asks)."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: DecodeRunner) -> bytearray:
    """One frame to its stored values; pydicom's plugin interface.

    Raises:
        RuntimeError: the stream is damaged.
        ValueError: it is no JPEG 2000 stream.
    """
    frame = openjpeg.decode_pixel_data(source, version=2)
    if str(runner.photometric_interpretation) in ("YBR_ICT", "YBR_RCT"):
        runner.set_option("photometric_interpretation", "RGB")  # the stream's own transform has been undone
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 if runner.get_option("j2k_precision", runner.bits_stored) <= 8 else 16)
    return bytearray(frame)
