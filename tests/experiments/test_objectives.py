"""What the two kinds of runs have in common, and which of them are measured again."""

import json

import pyarrow as pa
import pytest

from deepcoro.config_section import flatten
from deepcoro.evaluation.rows import rows_path, write_rows
from deepcoro.training.validation import is_due
from experiments import objectives


def test_nothing_differs_but_the_loss():
    sigmoid, softmax = (dict(flatten(objectives.experiment(k, 1).model_dump(mode="json"))) for k in objectives.KINDS)
    assert {key for key in sigmoid if sigmoid[key] != softmax[key]} == {"name", "contrastive.loss_type"}
    assert [each["contrastive.loss_type"] for each in (sigmoid, softmax)] == ["sigmoid", "softmax"]
    assert sigmoid["seed"] == 1
    assert objectives.experiment().loss.used == ["contrastive"]


@pytest.mark.parametrize("num_steps", [16, 100, 900])
def test_validations_are_spread_over_the_run_and_the_last_is_at_its_end(num_steps):
    config = objectives.experiment(num_steps=num_steps)
    due = [step for step in range(num_steps + 1) if is_due(config, step)]
    assert due[-1] == num_steps
    assert 7 <= len(due) <= 9


@pytest.mark.parametrize(("measured_at", "times"), [("16", 0), ("8", 1), (None, 1)])
def test_only_a_checkpoint_that_was_not_measured_is(tmp_path, monkeypatch, measured_at, times):
    calls = []
    monkeypatch.setattr(objectives, "committed_steps", lambda run: [8, 16])
    monkeypatch.setattr("deepcoro.launch.evaluate.evaluate", lambda run, split: calls.append((run, split)))
    if measured_at is not None:
        write_rows(rows_path(tmp_path, "test"), pa.table({"unit_id": ["x"]}), {"checkpoint": measured_at})
    objectives.measured(tmp_path, "test")
    assert calls == [(tmp_path, "test")] * times


def test_levels_are_those_of_validation(tmp_path):
    metrics = {}
    for number, name in enumerate(objectives.RECALL):
        metrics[name] = {"value": 0.9, "baseline": 0.1 + number}
        metrics[f"{name}_beside_tree_oracle"] = {"value": 0.9, "baseline": 0.2 + number}
    (tmp_path / "summary_val.json").write_text(json.dumps({"split": "val", "metrics": metrics}))
    first, second = objectives.levels_without_a_model(tmp_path).values()
    assert first == {"chance": 0.1, "tree oracle": 0.2}
    assert second == {"chance": 1.1, "tree oracle": 1.2}
