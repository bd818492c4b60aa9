"""The benchmarks compare like with like: the bare loop writes what the door writes, each format keeps its promise."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from data_prep.dicom.convert import convert
from experiments.bench.ingest import bare_loop, make_files, rules_for
from experiments.bench.storage import FORMATS, by_decord, write
from tests.data_prep.dicom_files import noise


def test_the_bare_loop_writes_what_the_door_writes(tmp_path: Path) -> None:
    files = make_files(tmp_path, 64, 9)
    assert len(files) == 4
    for kind, paths in files.items():
        record = convert(paths[0].name.encode(), rules_for(tmp_path))
        bare_loop(paths[0], tmp_path / "bare.mp4")
        ours, bare = (
            by_decord(str(path), np.arange(9), 9) for path in (tmp_path / record["path"], tmp_path / "bare.mp4")
        )
        if "no window" in kind:  # the percentiles spread what the bare loop leaves as it is
            assert np.corrcoef(ours.ravel(), bare.ravel())[0, 1] > 0.98
        else:
            assert np.abs(ours.astype(int) - bare).max() <= 12
            assert np.abs(ours.astype(int) - bare).mean() < 1


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_formats_are_full_range_and_of_the_right_kind(tmp_path: Path, form) -> None:
    if form.codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {form.codec}")
    cine = noise(17, 64, 96)
    cine[:, :16, :16], cine[:, :16, 16:32] = 0, 255
    path = tmp_path / f"video.{form.suffix}"
    write(path, cine, form)
    decoded = by_decord(str(path), np.arange(17), 17)
    assert decoded[:, 4:12, 4:12].max() <= 4 and decoded[:, 4:12, 20:28].min() >= 251
    assert np.array_equal(decoded, cine) == (form.codec == "ffv1")
    with av.open(str(path)) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    expected = 8 if form.options.get("g") == "8" else 1
    assert [at for at, key in enumerate(keys) if key] == list(range(0, 17, expected))
