"""A whole dataset through Ray Data: each unit one row, in order, the same text as by itself."""

import json

import pyarrow.parquet as pq
import pytest

from deepcoro.errors import DataError
from deepcoro.inference.report_table import ABOUT
from deepcoro.launch.generate import generate
from deepcoro.models.text_encoder import load_tokenizer
from deepcoro.training.checkpoint import save_checkpoint


def test_every_unit_is_a_row_and_what_fails_leaves_nothing(
    local_ray, dataset_folder, tiny_config, tiny_model, text_folder, tmp_path, capsys, monkeypatch
):
    config = tiny_config(f"data.path={dataset_folder}", "evaluation.batch_size=2")
    run, output, sheet = tmp_path / "run", tmp_path / "reports", tmp_path / "sheet.png"
    load_tokenizer(str(text_folder)).save_pretrained(run / "tokenizer")
    save_checkpoint(run, 3, tiny_model(config), {"step": 3}, config, "made-for-tests")
    generate(run, data=dataset_folder, output=output, picture=sheet, limit=9)
    assert "8 reports of 9 videos; 8 clips in" in capsys.readouterr().out
    table = pq.read_table(output)
    rows = {row["unit_id"]: row for row in table.to_pylist()}
    assert [*rows] == ["v1", "v0", "v2", "v3", "v4", "v5", "v6", "v7", "v8"]
    assert [row["split"] for row in rows.values()] == ["train"] * 7 + ["val", "test"]
    assert rows["v6"]["text"] is None and "v6.avi" in rows["v6"]["problem"]
    assert all(row["text"] is not None for name, row in rows.items() if name != "v6")
    (alone,) = generate(run, "s1")
    assert rows["v2"]["text"] == alone.text
    about = json.loads(table.schema.metadata[ABOUT])
    assert (about["run"], about["checkpoint"], about["dataset_fingerprint"]) == ("run", "3", "made-for-tests")
    assert sheet.stat().st_size > 10_000

    def fail(*_):
        raise DataError("the disk is full")

    monkeypatch.setattr("deepcoro.inference.report_table.ReportTable._write", fail)
    with pytest.raises(DataError, match="the disk is full"):
        generate(run, data=dataset_folder, output=tmp_path / "other", split="val")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reports", "run", "sheet.png"]
