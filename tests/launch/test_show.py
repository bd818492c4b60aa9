"""What is shown of a config, a run and a prepared dataset is what lies there; anything else is one clear error."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from deepcoro.config import Config
from deepcoro.errors import UserError
from deepcoro.evaluation.report import Metric, write_summary
from deepcoro.launch.lock import hold
from deepcoro.launch.show import differences, show, show_config, show_run
from deepcoro.training.checkpoint import save_checkpoint


def line(text, start):
    """The words of the one line that begins so."""
    (found,) = [row for row in text.splitlines() if row.strip().startswith(start)]
    return found.split()


@pytest.fixture
def run(tmp_path, tiny_config, tiny_model):
    config = tiny_config("training.keep_checkpoints=2")
    config.save(tmp_path / "config.yaml")
    model = tiny_model(config)
    for step in (4, 8):
        save_checkpoint(tmp_path, step, model, {"step": step}, config, "made-for-tests")
    rows = [{"step": step, "time": 0.0, "loss/total": 9.0 / step, "loss/captioning": 1.0 / step} for step in (4, 8)]
    rows.append({"step": 8, "time": 1.0, "validation/captioning/finding_f1": 0.625})
    torn = '{"step": 9, "loss/to'  # by a process that is writing
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    return tmp_path


def test_a_config_is_shown_whole():
    assert Config(**yaml.safe_load(show_config(Config().override(["seed=7"])))) == Config(seed=7)


def test_differences_are_those_from_the_defaults_alone():
    assert differences(Config()) == []
    found = differences(Config().override(["optim.lr=0.5", "loss.weights.captioning=0.25"]))
    assert [row.split() for row in found] == [
        ["loss.weights.captioning", "0.25", "(1)"],
        ["optim.lr", "0.5", "(6.17133e-05)"],
    ]


def test_a_run_in_the_middle(run):
    text = show(str(run))
    assert text.splitlines()[0] == f"{run}: not running, and not finished, step 8 of 10"
    assert line(text, "data.num_frames") == ["data.num_frames", "4", "(16)"]
    size = sum(file.stat().st_size for file in (run / "checkpoints" / "8").rglob("*") if file.is_file())
    assert line(text, "8 ") == ["8", f"{size / 1e6:.1f}", "MB", "newest"]
    assert line(text, "4 ")[-1] == "MB"
    assert line(text, "total") == ["total", "1.125"] and line(text, "captioning ") == ["captioning", "0.125"]
    assert line(text, "captioning/finding_f1") == ["captioning/finding_f1", "0.625"]
    assert text.endswith("problems\n  none")


def test_a_run_that_somebody_trains_says_so(run):
    with hold(run):
        assert "running now" in show_run(run).splitlines()[0]
    assert "running now" not in show_run(run)


def test_a_finished_run_with_its_best_step_its_table_and_its_problems(run, tiny_config, tiny_model):
    config = tiny_config()
    save_checkpoint(run, 10, tiny_model(config), {"step": 10}, config, "made-for-tests")
    (run / "best.json").write_text(json.dumps({"step": 8, "metric": "captioning/finding_f1", "value": 0.625}))
    metrics = {"captioning/finding_f1": Metric(0.5, 0.25, 0.75, 0.125), "data/valid_share": Metric(1.0)}
    write_summary(run / "summary_test.json", metrics, {"split": "test", "checkpoint": "8", "weights": "ema"})
    problems = [{"unit_id": "v1", "problem": "damaged"}] * 3 + [{"unit_id": "v2", "problem": "damaged"}]
    problems += [{"problem": "the disk is full\nTraceback"}] * 2
    (run / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    text = show(str(run))
    assert text.splitlines()[0] == f"{run}: finished, step 10 of 10"
    assert line(text, "8 ")[3:] == ["best", "(captioning/finding_f1", "0.625)"]
    assert line(text, "10 ")[-1] == "newest"
    assert "measured on test, checkpoint 8, ema weights" in text
    assert re.search(r"captioning/finding_f1 +0\.500 +0\.250 to 0\.750 +0\.125", text)
    assert "2 units could not be read" in text and "2 times: the disk is full" in text
    assert "Traceback" not in text


def test_a_damaged_summary_is_named(run):
    (run / "summary_val.json").write_text('{"metrics": {"a": {"value": 1}}}')
    with pytest.raises(UserError, match=r"summary_val\.json cannot be read"):
        show_run(run)


def test_a_prepared_dataset(make_dataset, tmp_path):
    finding = {"segment": "mid_rca", "stenosis": 100, "occlusion": "cto"}
    studies = [
        {"study_id": "s0", "patient_id": "p0", "findings": [finding]},
        {"study_id": "s1", "patient_id": "p0", "report": "Normal."},
        {"study_id": "s2", "patient_id": "p1", "split": "test", "report": ""},
    ]
    videos = [
        {"study_id": "s0", "coronary_tree": "left"},
        {"study_id": "s0", "coronary_tree": "right", "num_frames": 30},
        {"study_id": "s1", "fps": 7.5},
        {"study_id": "s2", "coronary_tree": "right", "num_frames": 12},
    ]
    path = make_dataset(tmp_path, studies, videos)
    text = show(path)
    assert "no quarantine.parquet" in text
    # split, patients, studies, reports, findings, videos, left, right, tree unknown
    assert line(text, "train") == ["train", "1", "2", "1", "1", "3", "1", "1", "1"]
    assert line(text, "val ") == ["val", *"00000000"]
    assert line(text, "test ") == ["test", "1", "1", "0", "0", "1", "0", "1", "0"]
    assert line(text, "all ") == ["all", "2", "3", "1", "1", "4", "1", "2", "1"]
    assert line(text, "num_frames") == ["num_frames", "12", "24", "30"]  # 12, 24, 24, 30
    assert line(text, "fps") == ["fps", "7.5", "15", "15"]
    assert line(text, "fingerprint") == ["fingerprint", "made-for-tests"]

    reasons = [{"source": str(n), "reason": "colour" if n else "empty", "detail": None} for n in range(4)]
    pq.write_table(pa.Table.from_pylist(reasons), tmp_path / "quarantine.parquet")
    text = show(f"file://{path}")
    assert "4 files left out" in text
    assert line(text, "colour") == ["colour", "3"] and line(text, "empty") == ["empty", "1"]


def test_what_is_none_of_these_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="is not there.*runs/demo"):
        show(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds neither"):
        show(str(tmp_path / "empty"))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="neither Python nor YAML"):
        show(str(tmp_path / "notes.txt"))
    with pytest.raises(UserError, match=f"one checkpoint.*deepcoro show {run}"):
        show(str(run / "checkpoints" / "8"))
