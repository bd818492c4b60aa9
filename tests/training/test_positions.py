"""What positions.parquet says of a run that went on, fell back, or could not write."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from deepcoro.config import Config
from deepcoro.errors import TrainingError
from deepcoro.training.positions import FOLDER, PositionLog, check_positions


def read(run):
    return [tuple(row.values()) for row in pq.read_table(run / FOLDER).to_pylist()]


def take(log, first, last):
    for step in range(first, last + 1):
        log.add(step, np.array([2 * step - 2, 2 * step - 1]))


def checkpoint(log, step):
    log.gather()
    log.write(step)
    log.commit(step)


def test_each_checkpoint_adds_its_steps(tmp_path):
    log = PositionLog(tmp_path, 0)
    take(log, 1, 2)
    checkpoint(log, 2)
    take(log, 3, 3)
    checkpoint(log, 3)
    assert read(tmp_path) == [(1, 0, 0), (1, 0, 1), (2, 0, 2), (2, 0, 3), (3, 0, 4), (3, 0, 5)]
    assert pq.read_schema(next((tmp_path / FOLDER).iterdir())).names == ["step", "worker", "position"]


def test_a_start_takes_out_what_lies_beyond_its_checkpoint(tmp_path):
    log = PositionLog(tmp_path, 0)
    take(log, 1, 2)
    checkpoint(log, 2)
    take(log, 3, 4)
    log.gather()
    log.write(4)  # and killed before the checkpoint of step 4 was committed
    log = PositionLog(tmp_path, 2)
    assert [row[0] for row in read(tmp_path)] == [1, 1, 2, 2]
    take(log, 3, 5)
    checkpoint(log, 5)
    assert [row[2] for row in read(tmp_path)] == list(range(10))


def test_a_checkpoint_that_could_not_be_written_loses_no_position(tmp_path):
    log = PositionLog(tmp_path, 0)
    take(log, 1, 2)
    log.gather()
    log.write(2)  # but the checkpoint itself failed: no commit
    take(log, 3, 3)
    checkpoint(log, 3)
    assert [row[2] for row in read(tmp_path)] == list(range(6))


def test_positions_are_copied_out_of_the_batch(tmp_path):
    log, batch = PositionLog(tmp_path, 0), np.array([7, 8])
    log.add(1, batch)
    batch[:] = 0
    checkpoint(log, 1)
    assert [row[2] for row in read(tmp_path)] == [7, 8]


def test_batches_are_held_against_the_stream():
    """Steps of 12 rows on 2 workers in 2 parts: of step 5 (counted from 0) worker 1 has 63 to 65 and 69 to 71."""
    config = Config().override(["training.batch_size=12", "resources.num_workers=2", "training.accumulation_steps=2"])
    rows = [{"position": np.arange(63, 66)}, {"position": np.arange(69, 72)}]
    check_positions(config, 5, rows, 1, 2)
    for wrong in (rows[::-1], [rows[0], rows[0]], [rows[0], {"position": np.array([69, 71, 70])}]):
        with pytest.raises(TrainingError, match="step 6 on worker 1 should be positions (63 to 65|69 to 71)"):
            check_positions(config, 5, wrong, 1, 2)
    with pytest.raises(TrainingError, match="and got 63 to 65"):
        check_positions(config, 5, rows, 0, 2)
