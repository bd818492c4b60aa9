"""Arrays -> tensors, with no more padding than a batch needs."""

import numpy as np
import torch

from deepcoro.data.collate import to_torch, trim_text


def test_padding_no_row_needs_is_cut():
    rows = {"input_ids": np.arange(12).reshape(2, 6), "text_length": np.array([2, 4]), "clip": np.zeros(2)}
    assert trim_text(rows)["input_ids"].tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]
    assert rows["input_ids"].shape == (2, 6)
    assert trim_text({"clip": rows["clip"]}).keys() == {"clip"}


def test_values_and_types_on_the_way_to_torch():
    order = np.array([[65535, 0, 3]], np.uint16)
    rows = {
        "mask_order": order,
        "input_ids": np.array([[1, 2]], np.int32),
        "text_length": np.array([2], np.int32),
        "clip": np.full((1, 2), 200, np.uint8),
        "valid": np.array([[True]]),
        "unit_id": np.array(["a"]),
    }
    rows["clip"].flags.writeable = False
    batch = to_torch(rows, torch.device("cpu"))
    assert batch["mask_order"].tolist() == [[65535, 0, 3]]
    assert {key: batch[key].dtype for key in ("mask_order", "input_ids", "text_length", "clip", "valid")} == {
        "mask_order": torch.int64,
        "input_ids": torch.int64,
        "text_length": torch.int64,
        "clip": torch.uint8,
        "valid": torch.bool,
    }
    assert batch["unit_id"].tolist() == ["a"]
    batch["clip"].zero_()
    assert (rows["clip"] == 200).all()  # what Arrow owns is not written to
