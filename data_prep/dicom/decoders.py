"""Which library decodes which transfer syntax, and one compressed frame decoded.

All are permissive, and each syntax has one decoder, so that a file gives the same picture on every machine.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from data_prep.dicom import jpeg_ffmpeg, openjpeg_plugin
from data_prep.dicom.codestream import J2K, JPEG, JPEG_LS, Stream, read_stream
from data_prep.dicom.layout import LUMA_FIRST, Layout
from data_prep.dicom.quarantine import Unusable
from data_prep.dicom.rle import decode_rle

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
# pydicom's name of the decoder. Pillow reads the lossy 8-bit kinds of JPEG and the packed bits of RLE; of what else is
# called JPEG Baseline or Extended, FFmpeg reads 12 bits.
PLUGINS = {
    **dict.fromkeys(JPEG, "ffmpeg"),
    **dict.fromkeys(JPEG_LS, "pyjpegls"),
    **dict.fromkeys(J2K, "openjpeg"),
}
READ = frozenset({*NATIVE, RLELossless, *PLUGINS})


def install() -> None:
    """Offer our two plugins to pydicom; asking twice is harmless."""
    for label, module in (("ffmpeg", jpeg_ffmpeg), ("openjpeg", openjpeg_plugin)):
        for uid in module.DECODER_DEPENDENCIES:
            if label not in (decoder := get_decoder(uid)).available_plugins:
                decoder.add_plugin(label, (module.__name__, "decode_frame"))


install()


def check_syntax(syntax: UID) -> None:
    """Refuse a transfer syntax that no decoder at hand reads.

    Raises:
        Unusable: with its name.
    """
    if syntax not in READ:
        raise _unsupported(syntax)


def check_stream(layout: Layout, head: bytes) -> None:
    """Refuse the kinds of a syntax that its decoder does not read; ``head`` begins the first compressed frame.

    Raises:
        Unusable: with the transfer syntax and why.
    """
    syntax = layout.syntax
    try:
        stream = read_stream(syntax, head)
    except ValueError as error:
        raise Unusable("decode_error", f"the pixels ({syntax.name}) hold no picture of that kind") from error
    if stream is None:
        return
    if stream.bits > 16 or (stream.lossless_jpeg and stream.bits > jpeg_ffmpeg.MAX_LOSSLESS_BITS):
        raise _unsupported(syntax, f" with {stream.bits} bits")
    if stream.components != 1 and (stream.lossless_jpeg or (syntax in JPEG and stream.bits > 8)):
        raise _unsupported(syntax, " in colour")


def decode(source: bytes, layout: Layout) -> tuple[np.ndarray, str]:
    """One frame [H, W] or [H, W, 3] of stored numbers, and its photometric interpretation.

    Colour JPEG comes back as luma alone, ``MONOCHROME2``.

    Raises:
        Exception: whatever the decoder raises.
        ValueError: the stream is of another size than the header says; nothing was allocated for it.
    """
    stream = read_stream(layout.syntax, source)
    if stream is None:
        return decode_rle(source, layout), layout.photometric
    if (stream.rows, stream.columns, stream.components) != (layout.rows, layout.columns, layout.samples):
        raise ValueError("the stream holds a picture of another size than the header says")
    if layout.syntax in JPEG and stream.bits == 8 and not stream.lossless_jpeg:
        return _jpeg(source, stream, layout), "MONOCHROME2"
    options: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": 1,
        "samples_per_pixel": layout.samples,
        "photometric_interpretation": layout.photometric,
        "bits_allocated": 8 if stream.bits <= 8 else 16,
        "bits_stored": stream.bits,
        "pixel_representation": int(layout.signed),
        "planar_configuration": int(layout.by_plane),
        "allow_excess_frames": False,
    }
    frame, facts = get_decoder(layout.syntax).as_array(
        encapsulate([source], has_bot=False), raw=True, decoding_plugin=PLUGINS[layout.syntax], **options
    )
    return frame, str(facts["photometric_interpretation"])


def _jpeg(source: bytes, stream: Stream, layout: Layout) -> np.ndarray:
    """Lossy 8-bit JPEG by Pillow: grey [H, W], or luma, which is the first component where the stream holds it."""
    try:
        image = Image.open(io.BytesIO(source), formats=("JPEG",))
        known = layout.samples == 1 or layout.photometric in LUMA_FIRST or stream.rgb or stream.jfif
        if known or "adobe_transform" in image.info:
            image.draft("L", image.size)
            return np.asarray(image)
        # Three components of which only the DICOM header says that they are red, green and blue: libjpeg would take
        # them for luma and chroma, so they are handed out untouched.
        image.draft("YCbCr", image.size)
        return np.asarray(Image.fromarray(np.asarray(image)).convert("L"))
    except OSError as error:  # Pillow's word for damage, which is none of the file system's
        raise ValueError("the JPEG stream is damaged") from error


def _unsupported(syntax: UID, what: str = "") -> Unusable:
    return Unusable("unsupported_transfer_syntax", f"no decoder at hand reads {syntax.name}{what}")
