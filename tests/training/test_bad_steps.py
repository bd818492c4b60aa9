"""Steps that were left out: counted, written down, and too many in a row end the run."""

import json

import numpy as np
import pytest
import torch

from deepcoro.errors import TrainingError
from deepcoro.training.bad_steps import BadSteps
from deepcoro.training.step import StepResult

TOLD = {"loss_weights": {"captioning": 0.5}, "learning_rates": {"video": 1e-4}}


def result(loss=1.0, norm=2.0, skipped=False, overflowed=False):
    numbers = [torch.tensor(x) for x in (loss, norm, 1.0, 0, skipped, overflowed)]
    total, grad_norm, *rest = numbers
    return StepResult({"captioning": total}, total, grad_norm, {"video": grad_norm, "text": grad_norm}, *rest)


def rows(first, *units):
    return [{"position": np.arange(first, first + len(units)), "unit_id": np.array(units)}]


def bad(loss=float("nan")):
    return result(loss, float("inf"), skipped=True)


def read(run):
    return [json.loads(line) for line in (run / "bad_steps.jsonl").read_text().splitlines()]


def test_what_a_bad_step_was_made_of_is_written_down(tmp_path):
    counters = {}
    steps = BadSteps(tmp_path, 3, counters)
    steps.look(1, result(), rows(0, "a", "b"), TOLD)
    assert not (tmp_path / "bad_steps.jsonl").exists()
    steps.look(2, bad(), [*rows(4, "e", "f"), *rows(2, "c", "d")], TOLD)
    assert read(tmp_path) == [
        {
            "step": 2,
            "in_a_row": 1,
            "losses": {"captioning": "nan"},
            "total": "nan",
            "grad_norms": {"video": "inf", "text": "inf"},
            "loss_weights": {"captioning": 0.5},
            "learning_rates": {"video": 1e-4},
            "units": [{"position": 2 + n, "unit_id": unit} for n, unit in enumerate("cdef")],
        }
    ]
    (told,) = [json.loads(line)["problem"] for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    assert "a step was left out" in told and "3 in a row end the run" in told
    assert counters == {"bad_steps": 1, "bad_in_a_row": 1, "overflows": 0}


def test_only_those_that_follow_on_each_other_end_the_run(tmp_path):
    counters = {}
    steps = BadSteps(tmp_path, 3, counters)
    for step, bad_one in enumerate([1, 1, 0, 1, 1, 0, 0, 1, 1], start=1):
        steps.look(step, bad() if bad_one else result(), rows(step, "a"), TOLD)
    with pytest.raises(TrainingError, match=r"3 steps in a row .*up to step 10: .*'nan'.*bad_steps\.jsonl"):
        steps.look(10, bad(), rows(10, "a"), TOLD)
    assert counters["bad_steps"] == 7
    assert [record["in_a_row"] for record in read(tmp_path)] == [1, 2, 1, 2, 1, 2, 3]


def test_steps_that_will_be_taken_again_are_taken_out(tmp_path):
    steps = BadSteps(tmp_path, 9, {})
    for step in (3, 4, 5):
        steps.look(step, bad(), rows(step, "a"), TOLD)
    counters = {"bad_steps": 2, "bad_in_a_row": 2}  # of the checkpoint of step 4
    again = BadSteps(tmp_path, 9, counters, step=4)
    assert [record["step"] for record in read(tmp_path)] == [3, 4]
    again.look(5, bad(), rows(5, "a"), TOLD)
    assert counters["bad_in_a_row"] == read(tmp_path)[-1]["in_a_row"] == 3


def test_a_scale_that_is_being_looked_for_is_no_bad_step(tmp_path):
    counters = {}
    steps = BadSteps(tmp_path, 2, counters)
    overflow = result(1.0, float("inf"), skipped=True, overflowed=True)
    large = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    large.scale(torch.ones(()))  # a scaler has no scale before it is used
    for step in range(1, 20):
        steps.look(step, overflow, rows(step, "a"), TOLD, large)
    assert counters == {"bad_steps": 0, "bad_in_a_row": 0, "overflows": 19}
    small = torch.amp.GradScaler("cpu", init_scale=2.0**-11)
    small.scale(torch.ones(()))
    steps.look(20, overflow, rows(20, "a"), TOLD, small)
    with pytest.raises(TrainingError, match="2 steps in a row"):
        steps.look(21, overflow, rows(21, "a"), TOLD, small)
