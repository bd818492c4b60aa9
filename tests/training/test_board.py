"""What a run writes down of itself, and how it counts its time."""

import json
import time

import numpy as np
import pytest
import torch

from deepcoro.training.board import Board, note_problems
from deepcoro.training.throughput import Throughput


def test_scalars_stand_in_both_places(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = Board(tmp_path, 0)
    board.scalars(1, {"loss/total": 2.5})
    board.scalars(2, {"loss/total": 1.5, "lr/video": 0.1})
    board.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss/total"]) for line in lines] == [(1, 2.5), (2, 1.5)]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/total")] == [(1, 2.5), (2, 1.5)]
    assert [e.step for e in events.Scalars("lr/video")] == [2]


def test_a_line_is_there_at_once(tmp_path):
    board = Board(tmp_path, 0)
    board.scalars(1, {"a": 1.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["a"] == 1.0
    board.close()


def test_a_resumed_run_takes_back_the_steps_it_does_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = Board(tmp_path, 0)
    for step in range(1, 6):
        first.scalars(step, {"a": float(step)})
    first.close()
    time.sleep(1.1)  # event files are named by the second
    second = Board(tmp_path, 3)
    for step in range(3, 6):
        second.scalars(step, {"a": 10.0 * step})
    second.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("a")] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]


def test_programs_see_no_step_twice_after_a_resume(tmp_path):
    for start in (1, 3):
        board = Board(tmp_path, start)
        for step in range(start, 6):
            board.scalars(step, {"a": float(step)})
        board.close()
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]


def test_problems_are_noted_with_their_unit(tmp_path):
    batch = {"unit_id": np.array(["a", "b"]), "problem": np.array(["", "v.avi: missing"])}
    note_problems(tmp_path, [batch, batch])
    lines = [json.loads(line) for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    assert lines == [{"unit_id": "b", "problem": "v.avi: missing"}] * 2


def test_no_problem_makes_no_file(tmp_path):
    note_problems(tmp_path, [{"unit_id": np.array(["a"]), "problem": np.array([""])}])
    assert not list(tmp_path.iterdir())


def test_waiting_for_data_is_told_from_working():
    def slow():
        for number in range(3):
            time.sleep(0.05)
            yield number

    throughput, seen = Throughput(torch.device("cpu")), []
    for number in throughput.waiting(slow()):
        seen.append(number)
        time.sleep(0.05)
        throughput.add(4)
    scalars = throughput.read()
    assert seen == [0, 1, 2]
    assert 0.3 < scalars["throughput/data_wait_share"] < 0.7
    assert 10 < scalars["throughput/clips_per_second"] <= 12 / 0.3
    assert scalars["memory/process_peak_gb"] > 0.01
    assert throughput.read()["throughput/clips_per_second"] == pytest.approx(0.0)
