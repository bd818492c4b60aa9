"""A DICOM file opened: its header, read within bounds, and the stream in which its pixels stand.

Only listed tags are read, so that what the door does not know never enters memory. A deflated file is inflated as it is
read, never as a whole: a few kilobytes can hold gigabytes.
"""

from __future__ import annotations

import io
import os
import zlib
from typing import Any, BinaryIO, cast

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from data_prep.dicom.quarantine import Unusable

# A header is some kilobytes; with a functional group for each of 1,000 frames, some 2 MB. Parsed, one of nothing but
# tiny sequences takes a hundred times its size: the limit keeps a worker within 1 GB whatever the file.
MAX_HEADER_BYTES = 2**23
PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # float, double and integer pixels
CHUNK = 2**16


def read_header(file: BinaryIO, tags: tuple[str, ...]) -> tuple[Dataset, BinaryIO]:
    """Read the header down to the pixels, and no other tags than these keywords.

    Returns:
        The header, and the stream that stands where the pixel data element begins: ``file`` itself, or its inflated
        content.

    Raises:
        InvalidDicomError: no DICOM file.
        Unusable: the header is larger than any real one.
        Exception: whatever pydicom raises on damage.
    """
    wanted: list[BaseTag | int] = [Tag(keyword) for keyword in tags]
    file_meta = _deflated_meta(file)
    if file_meta is None:
        file.seek(0)
        limited = _Limited(file)
        return pydicom.dcmread(cast(BinaryIO, limited), stop_before_pixels=True, specific_tags=cast(Any, wanted)), file
    inflated = io.BufferedReader(Inflated(file, file.tell()), CHUNK)
    dataset = read_dataset(
        cast(BinaryIO, _Limited(inflated)),
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag in PIXEL_TAGS,
        specific_tags=wanted,
    )
    dataset.file_meta = file_meta
    return dataset, cast(BinaryIO, inflated)


def bytes_from(file: BinaryIO, start: int, wanted: int) -> int:
    """How many of ``wanted`` bytes from ``start`` on the stream really has; nothing is kept of them."""
    if isinstance(getattr(file, "raw", None), Inflated):
        return max(0, file.seek(start + wanted) - start)
    return max(0, min(wanted, file.seek(0, os.SEEK_END) - start))


class Inflated(io.RawIOBase):
    """The inflated bytes of a file from ``start`` on; to go back is to begin again."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self.file, self.start = file, start
        self._rewind()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes, forward at the price of inflating what lies between."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Inflate into the buffer; 0 at the end.

        Raises:
            Unusable: damage, behind which nothing can be read.
        """
        while not self.inflater.eof:
            data = self.inflater.unconsumed_tail or self.file.read(CHUNK)
            try:
                inflated = self.inflater.decompress(data, len(buffer))
            except zlib.error as error:
                raise Unusable("decode_error", "what is deflated is damaged") from error
            if inflated:
                buffer[: len(inflated)] = inflated
                self.position += len(inflated)
                return len(inflated)
            if not data:
                break
        return 0

    def tell(self) -> int:
        """Place in the inflated bytes."""
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, or as far as there are bytes; returns the place reached."""
        target = offset + (self.position if whence == os.SEEK_CUR else 0)
        if target < self.position:
            self._rewind()
        scratch = bytearray(CHUNK)
        while self.position < target:
            if not self.readinto(memoryview(scratch)[: min(CHUNK, target - self.position)]):
                break
        return self.position

    def _rewind(self) -> None:
        self.file.seek(self.start)
        self.inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self.position = 0


class _Limited:
    """A stream that refuses to give more than a header's worth of bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.left = file, MAX_HEADER_BYTES
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        # Asked for more than there is left, a file gives what it has: only what came is counted, but never more
        # than the limit is asked for.
        data = self.file.read(self.left + 1 if size < 0 else min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise Unusable("bad_header", f"the header is larger than {MAX_HEADER_BYTES >> 20} MiB")
        return data


def _deflated_meta(file: BinaryIO) -> Any:
    """The file's meta information if the rest is deflated, the file then standing behind it; else None."""
    file.seek(0)
    if file.read(132)[128:] != b"DICM":
        raise InvalidDicomError("no DICM mark")
    try:
        limited = cast(BinaryIO, _Limited(file))
        meta = read_dataset(limited, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        deflated = meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    except Exception:  # damage is for dcmread to judge, which knows more ways to read a file
        return None
    return pydicom.dataset.FileMetaDataset(meta) if deflated else None
