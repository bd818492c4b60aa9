"""The summary is valid JSON that is whole or absent; the table is aligned."""

import json
import math

import pytest

from deepcoro.evaluation.baselines import Baseline
from deepcoro.evaluation.intervals import Interval
from deepcoro.evaluation.report import Metric, format_table, write_summary

METRICS = {
    "retrieval/report_to_video/recall_at_5": Metric.of(Interval(0.5, 0.4, 0.6), Baseline(0.05, "chance")),
    "retrieval/video_to_report/median_rank": Metric(112.0, 100.0, 120.0, 250.5, "chance"),
    "masked_modeling/mse": Metric.of(Interval(0.00123, math.nan, math.nan)),
}


def test_summary_reads_back_and_unknown_is_null(tmp_path):
    path = tmp_path / "run" / "summary.json"
    write_summary(path, METRICS)
    content = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert content == {
        "metrics": {
            "retrieval/report_to_video/recall_at_5": {"value": 0.5, "low": 0.4, "high": 0.6, "baseline": 0.05},
            "retrieval/video_to_report/median_rank": {"value": 112.0, "low": 100.0, "high": 120.0, "baseline": 250.5},
            "masked_modeling/mse": {"value": 0.00123, "low": None, "high": None, "baseline": None},
        }
    }


def test_a_failed_write_leaves_the_old_summary_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_summary(path, METRICS)
    before = path.read_text()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_summary(path, {"other": Metric(1.0)})
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_table_worked_by_hand():
    assert format_table(METRICS).splitlines() == [
        "metric                                   value    95% interval  baseline  baseline is",
        "-------------------------------------  -------  --------------  --------  -----------",
        "retrieval/report_to_video/recall_at_5    0.500  0.400 to 0.600     0.050  chance",
        "retrieval/video_to_report/median_rank    112.0  100.0 to 120.0     250.5  chance",
        "masked_modeling/mse                    0.00123               -         -",
    ]


def test_no_metrics_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="got none"):
        write_summary(tmp_path / "summary.json", {})
    with pytest.raises(ValueError, match="got none"):
        format_table({})
