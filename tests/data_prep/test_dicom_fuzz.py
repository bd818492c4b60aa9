"""Damage of every kind: each file gives a record, with a video or with its reason; nothing is raised, nothing hangs."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from data_prep.dicom import frames
from data_prep.dicom.convert import Rules, convert
from data_prep.dicom.quarantine import REASONS
from tests.data_prep.dicom_files import cine_bytes, cine_dataset, noise, rules

FAMILIES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
)
NUM_SEEDS = {ImplicitVRLittleEndian: 60, ExplicitVRBigEndian: 60}  # another header, the same pixels
NUM_FRAMES = 9


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> Rules:
    return rules(tmp_path_factory.mktemp("fuzz"))


def outcome(content: bytes, reads: Rules) -> dict[str, Any]:
    """The record of a file, after a look that it is one."""
    (reads.root / "file").write_bytes(content)
    record = convert(b"file", reads)
    json.dumps(record, allow_nan=False)
    left = [path for path in reads.videos.rglob("*") if path.is_file()]
    if "video" in record:
        video = record["video"]
        assert left == [reads.videos.parent / record["path"]]
        assert video["num_frames"] >= (8 if video["partial"] else 2)
        assert min(video["height"], video["width"]) >= 1 and 0.1 <= video["fps"] <= 1000
        left[0].unlink()
    else:
        assert record["reason"] in REASONS and record["detail"]
        assert not left
    return record


@pytest.mark.parametrize("syntax", FAMILIES, ids=lambda uid: uid.name)
def test_cut_at_every_tenth(syntax: UID, reads: Rules) -> None:
    content = cine_bytes(noise(NUM_FRAMES * 2, 33, 40), syntax=syntax)
    kept = []
    for tenth in range(10):
        record = outcome(content[: len(content) * tenth // 10], reads)
        assert record.get("reason", "truncated") in ("empty", "not_dicom", "no_pixel_data", "truncated", "bad_header")
        if "video" in record:
            assert record["video"]["partial"]
            kept.append(record["video"]["num_frames"])
    assert kept == sorted(kept) and len(kept) >= 3
    assert outcome(content, reads)["video"]["num_frames"] == NUM_FRAMES * 2


@pytest.mark.parametrize("syntax", FAMILIES, ids=lambda uid: uid.name)
def test_flipped_bits(syntax: UID, reads: Rules) -> None:
    content = np.frombuffer(cine_bytes(noise(NUM_FRAMES, 32, 32), syntax=syntax, FrameTime="40"), np.uint8)
    reasons = set()
    for seed in range(NUM_SEEDS.get(syntax, 200)):
        rng = np.random.default_rng([seed, len(content)])
        damaged = content.copy()
        # Half of the seeds damage the header alone, which is a small part of the file.
        end = len(content) if seed % 2 else 700
        places = rng.integers(132, end, 1 + seed % 8)
        damaged[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
        reasons.add(outcome(damaged.tobytes(), reads).get("reason", "video"))
    assert {"video", "bad_header"} <= reasons


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("defined_length", [True, False])
def test_sequences_ten_thousand_deep(listed: bool, defined_length: bool, reads: Rules) -> None:
    tag = (0x0028, 0x6100) if listed else (0x0019, 0x1010)
    depth = 10_000
    inner = b""
    for _ in range(depth):
        if defined_length:
            item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(inner)) + inner
            inner = struct.pack("<HH", *tag) + b"SQ\0\0" + struct.pack("<L", len(item)) + item
        else:
            break
    if not defined_length:
        opening = struct.pack("<HH", *tag) + b"SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
        closing = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
        inner = opening * depth + closing * depth
    content = cine_bytes(noise(NUM_FRAMES, 16, 16))
    at = content.index(struct.pack("<HH", 0x7FE0, 0x0010) + b"OB")  # before the pixels, the last in order
    record = outcome(content[:at] + inner + content[at:], reads)
    # Of defined length it is never entered; else nobody can tell where it ends without going in.
    assert ("video" in record) if defined_length else record["reason"] == "bad_header"


@pytest.mark.parametrize("syntax", FAMILIES, ids=lambda uid: uid.name)
def test_declared_beyond_all_measure(syntax: UID, reads: Rules) -> None:
    pixels = noise(NUM_FRAMES, 32, 32)
    huge = cine_bytes(pixels, syntax=syntax, Rows=65535, Columns=65535, NumberOfFrames=10_000)
    assert outcome(huge, reads)["reason"] == "bad_header"
    many = outcome(cine_bytes(pixels, syntax=syntax, NumberOfFrames=2**31 - 1), reads)
    assert (many["video"]["num_frames"], many["video"]["partial"]) == (NUM_FRAMES, True)
    for number in ("-3", "0"):
        assert outcome(cine_bytes(pixels, syntax=syntax, NumberOfFrames=number), reads)["reason"] == "single_frame"


TEXT = b"This is a report, and no picture at all. " * 300


@pytest.mark.parametrize("syntax", FAMILIES[4:], ids=lambda uid: uid.name)
@pytest.mark.parametrize("wrapped", [True, False])
def test_text_where_compressed_pixels_should_be(syntax: UID, wrapped: bool, reads: Rules) -> None:
    dataset = cine_dataset(noise(NUM_FRAMES, 32, 32), syntax=syntax)
    content = cine_bytes(noise(NUM_FRAMES, 32, 32), syntax=syntax)
    at = content.index(struct.pack("<HH", 0x7FE0, 0x0010) + b"OB") + 12
    text = encapsulate([TEXT] * NUM_FRAMES) if wrapped else TEXT
    assert dataset.NumberOfFrames == NUM_FRAMES
    assert outcome(content[:at] + text, reads)["reason"] == "decode_error"


def test_pieces_beyond_all_measure(reads: Rules, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAGMENTS", 1000)
    content = cine_bytes(noise(NUM_FRAMES, 32, 32), syntax=JPEGBaseline8Bit)
    at = content.index(struct.pack("<HH", 0x7FE0, 0x0010) + b"OB") + 12
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 1) + b"x"
    tiny = struct.pack("<HHL", 0xFFFE, 0xE000, 0) + item * 1001
    assert "pieces" in outcome(content[:at] + tiny, reads)["detail"]
    stream = b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x20\x00\x20\x01\x01\x11\x00" + bytes(2**21)
    assert outcome(content[:at] + encapsulate([stream] * NUM_FRAMES), reads)["reason"] == "decode_error"


def test_text_where_plain_pixels_should_be(reads: Rules) -> None:
    """Any bytes are pixels where nothing is compressed; too few of them are too few frames."""
    content = cine_bytes(noise(NUM_FRAMES, 32, 32))
    at = len(content) - NUM_FRAMES * 32 * 32
    assert outcome(content[:at] + TEXT[: NUM_FRAMES * 32 * 32], reads)["video"]["num_frames"] == NUM_FRAMES
    assert outcome(content[:at] + TEXT[:5000], reads)["reason"] == "truncated"
    assert outcome(TEXT, reads)["reason"] == "not_dicom"


def test_a_header_without_end(reads: Rules) -> None:
    """16 MiB in one tag."""
    content = cine_bytes(noise(NUM_FRAMES, 16, 16))
    at = content.index(struct.pack("<HH", 0x0028, 0x0002))
    long = struct.pack("<HH", 0x0020, 0x9999) + b"UN\0\0" + struct.pack("<L", 2**24) + bytes(2**24)
    assert "video" in outcome(content[:at] + long + content[at:], reads)  # not listed: stepped over
    listed = struct.pack("<HH", 0x0028, 0x1201) + b"OW\0\0" + struct.pack("<L", 2**24) + bytes(2**24)
    end = content.index(struct.pack("<HH", 0x7FE0, 0x0010) + b"OB")
    assert outcome(content[:end] + listed + content[end:], reads)["reason"] == "bad_header"


def test_a_file_that_the_system_does_not_give(reads: Rules, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    record = convert(b"folder", rules(tmp_path))
    assert record["reason"] == "unreadable"
    assert convert(b"gone", rules(tmp_path))["reason"] == "unreadable"
