"""Curves as a run wrote them: what belongs to which step, and what is no curve."""

import pandas as pd
import pytest

from deepcoro.errors import DataError
from experiments.curves import mean_curve, read_curves

# As a run writes them: training and validation on lines of their own, also at one step; step 20 was written twice.
LINES = """\
{"step": 10, "time": 1.0, "loss/contrastive": 4.5, "contrastive/logit_scale": 10.0}
{"step": 20, "time": 2.0, "loss/contrastive": 9.0, "contrastive/logit_scale": 10.5}
{"step": 20, "time": 3.0, "validation/retrieval/report_to_video/recall_at_5": 0.25, "validation/seconds": 1.5}
{"step": 20, "time": 4.0, "loss/contrastive": 3.5, "contrastive/logit_scale": 11.0}
{"step": 2, "time": 0.5, "startup/data": 0.1}
{"step": 5, "time": 0.6, "loss/contrastive": 5}
{"step": 30, "time": 5.0, "loss/contra"""
RECALL = "validation/retrieval/report_to_video/recall_at_5"


def write(run, text):
    (run / "metrics.jsonl").write_text(text)
    return run


def test_each_name_has_its_own_steps_in_order_and_the_later_of_two_values(tmp_path):
    curves = read_curves(write(tmp_path, LINES), ["loss/contrastive", "contrastive/logit_scale", RECALL])
    assert {name: curve.to_dict() for name, curve in curves.items()} == {
        "loss/contrastive": {5: 5.0, 10: 4.5, 20: 3.5},
        "contrastive/logit_scale": {10: 10.0, 20: 11.0},
        RECALL: {20: 0.25},
    }
    assert list(curves["loss/contrastive"].index) == [5, 10, 20]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINES, r"has no loss/captioning: "),
        ('{"step": 1, "loss/captioning": 2.0}\n{"step": 2, \n', r"line 2: .*'{\"step\": 2"),
        ('{"loss/captioning": 2.0}\n', "line 1: expected a JSON object with a step"),
        ("[1]\n", "line 1: expected a JSON object with a step"),
    ],
)
def test_what_is_no_curve_is_told(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_curves(write(tmp_path, text), ["loss/captioning"])


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(DataError, match=r"metrics\.jsonl is missing"):
        read_curves(tmp_path, ["loss/total"])


def test_a_mean_is_over_the_steps_that_every_seed_has():
    curves = [pd.Series({10: 1.0, 20: 2.0, 30: 9.0}), pd.Series({20: 4.0, 10: 2.0}), pd.Series({10: 6.0, 20: 3.0})]
    assert mean_curve(curves).to_dict() == {10: 3.0, 20: 3.0}
