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
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from data_prep.dicom import jpeg_ffmpeg, openjpeg_plugin
from data_prep.dicom.codestream import J2K, JPEG, JPEG_LS, Stream, read_stream
from data_prep.dicom.layout import LUMA_FIRST, Layout
from data_prep.dicom.quarantine import Unusable

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
PLUGINS = {
    JPEGBaseline8Bit: "pillow",
    JPEGExtended12Bit: "pillow",  # and jpeg_ffmpeg for 12 bits
    JPEGLossless: "ffmpeg",
    JPEGLosslessSV1: "ffmpeg",
    RLELossless: "pydicom",
    **dict.fromkeys(JPEG_LS, "pyjpegls"),
    **dict.fromkeys(J2K, "openjpeg"),
}


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
    if syntax not in NATIVE and syntax not in PLUGINS:
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
    if stream is not None and (stream.rows, stream.columns, stream.components) != (
        layout.rows,
        layout.columns,
        layout.samples,
    ):
        raise ValueError("the stream holds a picture of another size than the header says")
    if layout.syntax in JPEG and layout.samples == 3:
        return _colour_jpeg(source, stream, layout), "MONOCHROME2"
    plugin = PLUGINS[layout.syntax]
    if layout.syntax == JPEGExtended12Bit and stream is not None and stream.bits > 8:
        plugin = "ffmpeg"
    bits = layout.bits if stream is None else stream.bits
    options: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": 1,
        "samples_per_pixel": layout.samples,
        "photometric_interpretation": layout.photometric,
        "bits_allocated": layout.allocated if stream is None else (8 if bits <= 8 else 16),
        "bits_stored": bits,
        "pixel_representation": int(layout.signed),
        "planar_configuration": int(layout.by_plane),
        "correct_unused_bits": False,
        "allow_excess_frames": False,
    }
    frame, facts = get_decoder(layout.syntax).as_array(
        encapsulate([source], has_bot=False), raw=True, decoding_plugin=plugin, **options
    )
    return frame, str(facts["photometric_interpretation"])


def _colour_jpeg(source: bytes, stream: Stream | None, layout: Layout) -> np.ndarray:
    """Luma [H, W]: where the stream holds luma and chroma, its first component as it stands."""
    try:
        image = Image.open(io.BytesIO(source), formats=("JPEG",))
        says_so = stream is None or stream.rgb or stream.jfif or "adobe_transform" in image.info
        if says_so or layout.photometric in LUMA_FIRST:
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
