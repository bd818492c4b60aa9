"""When validation is due, what counts as done, and which checkpoint is the best."""

import json

import pytest

from deepcoro.training.board import Board
from deepcoro.training.hparams import TRIAL_FILE
from deepcoro.training.validation import (
    drop_results_after,
    is_due,
    note_best,
    post_results,
    read_intervals,
    read_results,
    steps_to_keep,
    unposted_steps,
    write_result,
)

METRIC = "retrieval/mrr"


@pytest.fixture
def saved(tmp_path):
    """``saved(10, 20)`` -> makes the run look as if checkpoints of these steps were committed."""

    def make(*steps):
        for step in steps:
            folder = tmp_path / "checkpoints" / str(step)
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")

    return make


@pytest.mark.parametrize(
    ("every", "due"), [("3", [3, 6, 9, 10]), ("null", [10]), ("20", [10])], ids=["now and then", "at the end", "rarely"]
)
def test_when_it_is_due(tiny_config, every, due):
    config = tiny_config(f"training.evaluate_every={every}")
    assert [step for step in range(11) if is_due(config, step)] == due


def test_results_come_back_in_the_order_of_steps_and_rolled_back_ones_go(tmp_path, tiny_config):
    for step in (100, 20, 3):
        write_result(tmp_path, step, {METRIC: step / 100}, 1.0, tiny_config())
    assert list(read_results(tmp_path).items()) == [(3, {METRIC: 0.03}), (20, {METRIC: 0.2}), (100, {METRIC: 1.0})]
    drop_results_after(tmp_path, 20)
    assert list(read_results(tmp_path)) == [3, 20]


@pytest.mark.parametrize(("mode", "best"), [("max", 20), ("min", 30)])
def test_the_best_is_among_the_checkpoints_that_are_there_and_the_first_of_equals(
    tmp_path, tiny_config, saved, mode, best
):
    config = tiny_config(f"training.best_metric={METRIC}", f"training.best_mode={mode}", "training.evaluate_every=10")
    saved(20, 30, 40)
    for step, value in {10: 0.9, 20: 0.5, 30: 0.1, 40: 0.5}.items():  # 10 was the best, and is gone
        write_result(tmp_path, step, {METRIC: value}, 1.0, config)
    assert note_best(tmp_path, config) == best
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "step": best,
        "metric": METRIC,
        "value": {20: 0.5, 30: 0.1}[best],
    }


def test_checkpoints_that_wait_for_their_validation_stay(tmp_path, tiny_config, saved):
    config = tiny_config(f"training.best_metric={METRIC}", "training.evaluate_every=2")
    saved(1, 2, 4, 6, 8)
    write_result(tmp_path, 2, {METRIC: 0.5}, 1.0, config)
    assert steps_to_keep(tmp_path, config) == {2, 6, 8}
    assert steps_to_keep(tmp_path, tiny_config("training.evaluate_every=2")) == set()
    # Beside the workers one is validated at a time, while more are saved.
    beside = tiny_config("training.evaluate_every=2", "evaluation.asynchronous=true")
    assert steps_to_keep(tmp_path, beside) == {4, 6, 8}


def test_a_metric_that_nobody_reports_makes_nothing_the_best(tmp_path, tiny_config, saved):
    config = tiny_config("training.best_metric=no/such")
    saved(10)
    write_result(tmp_path, 10, {METRIC: 0.5}, 1.0, config)
    assert "'no/such' is none of the metrics: retrieval/mrr" in (tmp_path / "problems.jsonl").read_text()
    assert note_best(tmp_path, config) is None and not (tmp_path / "best.json").exists()


def test_what_was_validated_beside_the_run_reaches_the_board_once(tmp_path, tiny_config):
    config = tiny_config("training.evaluate_every=2")
    board = Board(tmp_path, 1)
    for step in (2, 4):
        write_result(tmp_path, step, {METRIC: step / 10}, 1.5, config)
    assert unposted_steps(tmp_path) == [2, 4]
    post_results(board, tmp_path, config, [2])
    assert unposted_steps(tmp_path) == [4]
    post_results(board, tmp_path, config, unposted_steps(tmp_path))
    assert post_results(board, tmp_path, config, [6]) == [6]  # not over yet
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["validation/retrieval/mrr"]) for line in lines] == [(2, 0.2), (4, 0.4)]
    assert unposted_steps(tmp_path) == []


def test_intervals_are_kept_beside_the_metrics(tmp_path, tiny_config):
    ends = {METRIC: {"low": 0.25, "high": 0.75, "baseline": 0.1}}
    write_result(tmp_path, 4, {METRIC: 0.5}, 1.0, tiny_config(), ends)
    assert read_intervals(tmp_path, 4) == ends and read_results(tmp_path) == {4: {METRIC: 0.5}}
    assert read_intervals(tmp_path, 5) == {}


def test_a_trial_leaves_its_line_of_hparams_to_its_sweep(tmp_path, tiny_config):
    config = tiny_config("training.num_steps=4")
    for name, is_trial in (("trial", True), ("run", False)):
        run = tmp_path / name
        run.mkdir()
        if is_trial:
            (run / TRIAL_FILE).write_text("{}")
        write_result(run, 4, {METRIC: 0.5}, 1.0, config)
        board = Board(run, 1)
        post_results(board, run, config, [4])
        board.close()
        events = b"".join(path.read_bytes() for path in (run / "tensorboard").iterdir())
        assert (b"session_start_info" in events) != is_trial
