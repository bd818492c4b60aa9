"""A change of the videos' table and its fingerprint: the whole of it or nothing, wherever it is cut off."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import update
from data_prep.dicom.dataset import Tables, write_tables
from data_prep.update import changing, read_rows, update_videos
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import DataError


@pytest.fixture
def dataset(tmp_path):
    """Two videos; tables and no files, written as the DICOM door does."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    study = {"study_id": "s", "patient_id": "p", "split": "train", "attributes": []}
    shape = {"study_id": "s", "num_frames": 24, "height": 256, "width": 512, "fps": 15.0, "partial": False}
    videos = [
        shape | {"video_id": v, "uri": f"videos/{v}.avi", "attributes": [("modality", "XA")]} for v in ("aa", "bb")
    ]
    quarantine = [{"source": "q", "reason": "empty", "detail": None}]
    write_tables(folder, Tables([study], videos, quarantine, defaultdict(Counter)), {"made_by": "a test"})
    return folder


def row(folder, video_id):
    return next(row for row in read_rows(folder, "videos") if row["video_id"] == video_id)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}


class Killed(BaseException):
    """As if the process had ended there."""


@pytest.mark.parametrize("step", range(7))
def test_killed_anywhere_the_dataset_is_the_old_or_the_new_one(dataset, monkeypatch, step):
    """Before each of the six operations on its files: two tables that go again, the complete `.next`, the old card that
    goes, the new table, the new card."""
    old = json.loads((dataset / "dataset.json").read_text())["fingerprint"]
    calls = 0

    def counting(function):
        def call(path, *arguments, **more):
            nonlocal calls
            if calls == step:
                raise Killed
            calls += 1
            return function(path, *arguments, **more)

        return call

    killed = False
    with monkeypatch.context() as patched:
        for name in ("rename", "unlink", "replace"):
            patched.setattr(Path, name, counting(getattr(Path, name)))
        try:
            with changing(str(dataset)) as folder:
                update_videos(folder, {"aa": {"coronary_tree": "left"}})
        except Killed:
            killed = True
    assert killed == (step < 6)
    if step in (4, 5):  # nobody takes it for complete
        with pytest.raises(DataError, match=r"dataset\.json is missing"):
            PreparedDataset.open(str(dataset))
    else:
        assert (PreparedDataset.open(str(dataset)).card["fingerprint"] == old) == (step < 4)
    with changing(str(dataset)):  # the next command brings it to its end
        pass
    found = PreparedDataset.open(str(dataset))
    assert found.videos["coronary_tree"].to_pylist()[0] == (None if step < 4 else "left")
    assert (found.card["fingerprint"] == old) == (step < 4)
    assert not list(dataset.glob(".next"))


def test_a_full_disk_changes_nothing(dataset, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    before = contents(dataset)
    monkeypatch.setattr(update, "write_tables", full)
    with pytest.raises(DataError, match="No space left"), changing(str(dataset)) as folder:
        update_videos(folder, {"aa": {"coronary_tree": "left"}})
    assert contents(dataset) == before and not list(dataset.glob(".next*"))


def test_two_processes_do_not_change_a_dataset_at_once(dataset):
    with changing(str(dataset)):
        with pytest.raises(DataError, match="another process"), changing(str(dataset)):
            pass
    with changing(str(dataset)):
        pass


def test_what_cannot_be_changed_is_refused(dataset, tmp_path):
    with pytest.raises(DataError, match="local folder"), changing("s3://bucket/x"):
        pass
    with pytest.raises(DataError, match=r"no dataset\.json"), changing(str(tmp_path / "nothing")):
        pass
    with pytest.raises(DataError, match="no video zz"), changing(str(dataset)) as folder:
        update_videos(folder, {"zz": {"coronary_tree": "left"}})
    table = pq.read_table(dataset / "videos.parquet")
    pq.write_table(table.append_column("mine", pa.nulls(len(table))), dataset / "videos.parquet")
    with pytest.raises(DataError, match=r"nobody knows \(mine\)"):
        read_rows(dataset, "videos")


def test_attributes_are_laid_over_those_that_are_there(dataset):
    with changing(str(dataset)) as folder:
        update_videos(folder, {"aa": {"attributes": {"x": "1", "modality": "RF"}}})
        assert dict(row(folder, "aa")["attributes"]) == {"modality": "RF", "x": "1"}
        update_videos(folder, {"aa": {"attributes": {"x": None}}})
        assert dict(row(folder, "aa")["attributes"]) == {"modality": "RF"}
