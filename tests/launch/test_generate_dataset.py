"""Which units of a dataset are written, and what is told of the pace."""

import numpy as np
import pytest

from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import DataError
from deepcoro.inference.reports import UnitReport
from deepcoro.launch import generate_dataset as door
from deepcoro.launch.generate_dataset import Pace, choose_units


def chosen(folder, config, split=None, limit=None):
    parts = choose_units(PreparedDataset.open(folder), config, split, limit)
    return [(name, [units.video_rows(unit)[0]["video_id"] for unit in indices]) for name, units, indices in parts]


def test_all_splits_or_one_and_some_of_them_at_equal_steps(dataset_folder, tiny_config):
    config = tiny_config()
    train = ["v1", "v0", "v2", "v3", "v4", "v5", "v6"]
    assert chosen(dataset_folder, config) == [("train", train), ("val", ["v7"]), ("test", ["v8"])]
    assert chosen(dataset_folder, config, "val") == [("val", ["v7"])]
    assert chosen(dataset_folder, config, limit=3) == [("train", ["v1", "v4"]), ("test", ["v8"])]
    assert chosen(dataset_folder, config, "train", 1) == [("train", ["v1"])]
    assert chosen(dataset_folder, config, limit=99) == chosen(dataset_folder, config)


def test_what_the_filter_leaves_out_is_not_written_and_nothing_left_is_an_error(dataset_folder, tiny_config):
    pci = tiny_config("data.filter=acquisition == 'pci'")
    assert chosen(dataset_folder, pci) == [("train", ["v1"])]
    with pytest.raises(DataError, match="split 'val' is empty after data.filter"):
        chosen(dataset_folder, pci, "val")
    with pytest.raises(DataError, match="is empty after data.filter"):
        chosen(dataset_folder, tiny_config("data.filter=acquisition == 'none'"))
    with pytest.raises(DataError, match="cannot be read"):
        chosen(dataset_folder, tiny_config("data.filter=no_such_column == 1"))


def test_the_pace_counts_from_the_first_batch_on(monkeypatch):
    """Batches come after 5, 1 and 2 s, and each takes 3 s to write."""
    now = [0.0]
    monkeypatch.setattr(door.time, "perf_counter", lambda: now[0])

    def slow():
        for seconds in (5, 1, 2):
            now[0] += seconds
            yield {"valid": np.ones((2, 2), bool)}

    pace = Pace(7, "studies")
    fine, bad = UnitReport(0, "a", "a", None, "Normal."), UnitReport(1, "b", "b", None, problem="damaged")
    for _ in pace.batches(slow()):
        now[0] += 3
        pace.count(4, [fine, bad])
    told = pace.told()
    assert told.startswith("3 reports of 6 studies; 12 clips in 12.0 s: 1.0 clips/s, of which 25% of the time waiting")
    assert "3 studies have a problem (column problem), and 3 of them no report" in told
