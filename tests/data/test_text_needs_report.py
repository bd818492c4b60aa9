"""Studies whose findings are known and which have no report, where texts need one."""

import numpy as np
import torch

from deepcoro.data.collate import to_torch
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.losses.multitask import MultitaskLoss


def test_findings_without_a_report_serve_boxes_alone_where_texts_need_one(
    make_dataset, tmp_path, task_config, task_tokenizer
):
    findings = [{"segment": "prox_lad", "stenosis": 80, "occlusion": "none"}]
    box = {"segment": "prox_lad", "x0": 0.4, "y0": 0.4, "x1": 0.6, "y1": 0.6}
    boxes = {"boxes": [box | {"frame": frame} for frame in range(24)], "coronary_tree": "left"}
    said = {"a": "LAD: 80%.", "b": None}
    studies = [{"study_id": name, "findings": findings, "report": report} for name, report in said.items()]
    videos = [{"study_id": "a"} | boxes, {"study_id": "b"} | boxes, {"study_id": "b", "coronary_tree": "left"}]
    units = PreparedDataset.open(make_dataset(tmp_path, studies, videos)).units("train")
    shares = ("captioning.tasks.report=1", "captioning.tasks.gcap=0", "captioning.tasks.aref=0.001")
    for needs, has_report, has_caption, task in (
        ("true", [True, False, False], [True, True, False], [0, 1, 0]),
        ("false", [True, True, True], [True, True, True], [0, 0, 0]),
    ):
        config = task_config(*shares, f"data.text_needs_report={needs}")
        batch = UnitReader(config, units, task_tokenizer, training=True).read(np.arange(3), np.arange(3))
        assert batch["has_report"].tolist() == has_report
        assert batch["has_caption"].tolist() == has_caption
        assert batch["task"].tolist() == task
        loss = MultitaskLoss.from_config(config)
        batch = to_torch(batch, torch.device("cpu"))
        counts = loss.counts(batch, 1)
        assert counts["contrastive"] == sum(has_report)
        asked = (batch["caption_length"] - batch["prefix_length"])[batch["has_caption"]]
        assert counts["captioning"] == asked.sum()
    assert units.has_text(needs_report=True).tolist() == [True, False, False]
    assert units.has_text().all()
    assert (units.num_with_boxes(), units.num_with_boxes(told=True)) == (2, 2)
