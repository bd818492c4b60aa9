"""Where each frame lies in a file, and how many are whole: found from lengths alone, before any pixel is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from data_prep.dicom.codestream import STARTS
from data_prep.dicom.layout import Layout
from data_prep.dicom.quarantine import Unusable
from data_prep.dicom.source import bytes_from

UNDEFINED_LENGTH = 0xFFFFFFFF
PIXEL_DATA = (0x7FE0, 0x0010)
ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
STREAM_END = b"\xff\xd9"  # of JPEG, JPEG-LS and JPEG 2000
# Far more than any cine has, and what keeps memory within bounds where a file is made of nothing but tiny pieces.
MAX_FRAGMENTS = 2**20
MAX_TABLE_BYTES = 2**23

Piece = tuple[int, int]  # a place in the file, and a number of bytes


@dataclass(frozen=True)
class Frames:
    """The whole frames of a file, in order."""

    pieces: list[list[Piece]]  # of a compressed frame; empty for uncompressed pixels
    start: int  # of uncompressed pixels
    count: int
    swapped: bool  # 8-bit pixels that a big-endian file keeps in 16-bit words

    def read(self, file: BinaryIO, index: int, layout: Layout) -> bytes:
        """The bytes of one frame, as stored.

        Raises:
            ValueError: far more bytes than the frame has uncompressed.
        """
        if self.pieces:
            if sum(length for _, length in self.pieces[index]) > 2 * layout.frame_bytes + 2**20:
                raise ValueError("the compressed frame is larger than the frame itself")
            return b"".join(_read(file, place, length) for place, length in self.pieces[index])
        place, length = self.start + index * layout.frame_bytes, layout.frame_bytes
        if not self.swapped:
            return _read(file, place, length)
        before = (place - self.start) % 2
        words = bytearray(_read(file, place - before, (before + length + 1) // 2 * 2))
        words[::2], words[1::2] = words[1::2], words[::2]
        return bytes(words[before : before + length])


def find_frames(file: BinaryIO, dataset: Dataset, layout: Layout, num_frames: int) -> Frames:
    """Find up to ``num_frames`` whole frames. The file stands where the header ended.

    Raises:
        Unusable: there is no integer pixel data, or what stands there is none.
    """
    syntax = layout.syntax
    order: Literal["little", "big"] = "little" if syntax.is_little_endian else "big"
    begin, head = file.tell(), file.read(12)
    if len(head) < 8 or tuple(int.from_bytes(head[at : at + 2], order) for at in (0, 2)) != PIXEL_DATA:
        raise Unusable("no_pixel_data" if len(head) in (0, 12) else "truncated")
    # Some writers change to implicit VR on the way, so that what stands here is looked at, not what was announced.
    explicit = head[4:6] in (b"OB", b"OW", b"UN")
    start = begin + (12 if explicit else 8)
    length = int.from_bytes(head[8:12] if explicit else head[4:8], order)
    if not syntax.is_encapsulated:
        there = bytes_from(file, start, min(length, num_frames * layout.frame_bytes))
        swapped = order == "big" and layout.allocated == 8 and head[4:6] == b"OW"
        return Frames([], start, there // layout.frame_bytes, swapped)
    pieces = _frames_of(file, dataset, layout, num_frames, _end(file, start, length))
    return Frames(pieces[:num_frames], start, min(num_frames, len(pieces)), False)


def _end(file: BinaryIO, start: int, length: int) -> int:
    size = file.seek(0, os.SEEK_END)
    file.seek(start)
    return size if length == UNDEFINED_LENGTH else min(size, start + length)


def _frames_of(file: BinaryIO, dataset: Dataset, layout: Layout, num_frames: int, end: int) -> list[list[Piece]]:
    """Fragments put together to frames (PS3.5 A.4): by a table of offsets, by number, or by how streams begin."""
    table, fragments, ended = _fragments(file, end)
    if not fragments:
        return []
    first = fragments[0][0] - 8
    offsets = _extended_offsets(dataset) or table
    by_place = {place - 8 - first: number for number, (place, _) in enumerate(fragments)}
    if len(offsets) == num_frames and offsets[0] == 0 and sorted(set(offsets)) == offsets:
        known = [by_place[offset] for offset in offsets if offset in by_place]
        # Offsets behind the last fragment belong to what is missing; any other must point at a fragment.
        if all(offset in by_place or offset > fragments[-1][0] - 8 - first for offset in offsets):
            return _whole(file, layout, _grouped(fragments, known), ended)
    if (len(fragments) == num_frames and ended) or layout.syntax == RLELossless:  # RLE: always one, PS3.5 A.4.2
        return [[fragment] for fragment in fragments]
    starts = [
        number
        for number, (place, length) in enumerate(fragments)
        if _read(file, place, min(length, 4)).startswith(STARTS)
    ]
    if not starts or starts[0] != 0:
        starts = list(range(len(fragments)))
    return _whole(file, layout, _grouped(fragments, starts), ended)


def _fragments(file: BinaryIO, end: int) -> tuple[list[int], list[Piece], bool]:
    """The basic table of offsets, the fragments that lie within the file, and whether they end as they should."""
    table: list[int] | None = None
    fragments: list[Piece] = []
    at = file.tell()
    while at + 8 <= end:
        file.seek(at)
        head = file.read(8)
        if head[:4] != ITEM:
            if table is None:
                raise Unusable("decode_error", "the pixel data is not made of items")
            return table, fragments, head[:4] == END
        length = int.from_bytes(head[4:], "little")
        if at + 8 + length > end:
            break
        if table is None:
            raw = file.read(length) if length <= MAX_TABLE_BYTES else b""
            table = [int.from_bytes(raw[place : place + 4], "little") for place in range(0, len(raw) - 3, 4)]
        elif len(fragments) == MAX_FRAGMENTS:
            raise Unusable("decode_error", f"the pixel data is made of more than {MAX_FRAGMENTS:,} pieces")
        elif length:
            fragments.append((at + 8, length))
        at += 8 + length
    return table or [], fragments, False


def _grouped(fragments: list[Piece], starts: list[int]) -> list[list[Piece]]:
    ends = [*starts[1:], len(fragments)]
    return [fragments[start:end] for start, end in zip(starts, ends, strict=True)]


def _whole(file: BinaryIO, layout: Layout, frames: list[list[Piece]], ended: bool) -> list[list[Piece]]:
    """Without the last frame, if the data broke off and that frame does not end as its compression ends."""
    if ended or not frames or layout.syntax == RLELossless:
        return frames
    place, length = frames[-1][-1]
    tail = _read(file, place + max(0, length - 10), min(length, 10))
    return frames if STREAM_END in tail else frames[:-1]


def _extended_offsets(dataset: Dataset) -> list[int]:
    """PS3.3 C.7.6.3.1.8: 64 bits each."""
    raw: Any = dataset.get("ExtendedOffsetTable") or b""
    return [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw) - 7, 8)]


def _read(file: BinaryIO, place: int, length: int) -> bytes:
    file.seek(place)
    data = file.read(length)
    if len(data) != length:
        raise OSError("the file became shorter while it was read")
    return data


def first_bytes(file: BinaryIO, frames: Frames) -> bytes:
    """Up to 64 KiB of the first compressed frame, where its own header stands."""
    pieces = frames.pieces[0]
    wanted, head = 2**16, b""
    for place, length in pieces:
        head += _read(file, place, min(length, wanted - len(head)))
        if len(head) >= wanted:
            break
    return head
