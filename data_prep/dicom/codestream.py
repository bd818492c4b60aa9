"""What a compressed picture says of itself, read before any decoder is let near it.

A decoder allocates what the stream declares, which need not be what the DICOM header declares: 40 bytes can ask for
gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

JPEG = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1})
JPEG_LS = frozenset({JPEGLSLossless, JPEGLSNearLossless})
J2K = frozenset({JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K})
LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K})
LOSSLESS_SOF = 0xC3
STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")  # of a JPEG or JPEG-LS, of a JPEG 2000 stream


@dataclass(frozen=True)
class Stream:
    """The frame header of a compressed picture."""

    rows: int
    columns: int
    components: int
    bits: int  # per sample
    lossless_jpeg: bool = False
    rgb: bool = False  # the stream says that its components are red, green and blue
    jfif: bool = False  # ... that they are luma and chroma


def read_stream(syntax: UID, source: bytes) -> Stream | None:
    """The frame header of a picture, or of its beginning; None for compressions that have none (RLE).

    Raises:
        ValueError: there is no such header.
    """
    if syntax in J2K:
        return _jpeg_2000(source)
    return _jpeg(source) if syntax in JPEG | JPEG_LS else None


def _jpeg(source: bytes) -> Stream:
    """ITU T.81 B.2.2; a JPEG-LS stream has the same header (T.87 C.2.2) with a marker of its own."""
    if source[:2] != b"\xff\xd8":
        raise ValueError("no JPEG stream")
    at, jfif = 2, False
    while at + 10 <= len(source) and source[at] == 0xFF:
        marker = source[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            components = source[at + 9]
            ids = source[at + 10 : at + 10 + 3 * components : 3]
            return Stream(
                rows=int.from_bytes(source[at + 5 : at + 7], "big"),
                columns=int.from_bytes(source[at + 7 : at + 9], "big"),
                components=components,
                bits=source[at + 4],
                lossless_jpeg=marker == LOSSLESS_SOF,
                rgb=bytes(ids).lower() == b"rgb",
                jfif=jfif,
            )
        jfif = jfif or (marker == 0xE0 and source[at + 4 : at + 8] == b"JFIF")
        at += 2 + int.from_bytes(source[at + 2 : at + 4], "big")
    raise ValueError("no frame header in the JPEG stream")


def _jpeg_2000(source: bytes) -> Stream:
    """ITU T.800 A.5.1 (SIZ), which stands first in the stream; boxes of a JP2 file may stand before it."""
    at = source.find(STARTS[1], 0, 4096)
    if at < 0 or len(source) < at + 46:
        raise ValueError("no frame header in the JPEG 2000 stream")
    right, bottom, left, top = (int.from_bytes(source[at + place : at + place + 4], "big") for place in (8, 12, 16, 20))
    components = int.from_bytes(source[at + 40 : at + 42], "big")
    return Stream(bottom - top, right - left, components, (source[at + 42] & 0x7F) + 1)
