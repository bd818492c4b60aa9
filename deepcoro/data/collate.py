"""Rows as they come out of the data path -> the Batch a step computes with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def trim_text(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Cut padding that none of these rows needs: a block is padded to its longest text, a batch to its own."""
    cut = {}
    for ids, length in (("input_ids", "text_length"), ("caption_ids", "caption_length")):
        for at in ("", "clip_"):
            if at + ids in rows:
                cut[at + ids] = rows[at + ids][..., : int(rows[at + length].max())]
    return {**rows, **cut}


def to_torch(rows: dict[str, np.ndarray], device: torch.device) -> dict[str, Any]:
    """Arrays become tensors on ``device``; text columns stay as they are."""
    import torch  # not above: data workers come by this file, and would start 2 s later each

    batch: dict[str, Any] = {}
    for key, values in rows.items():
        if values.dtype.kind in "OUS":
            batch[key] = values
            continue
        if key == "mask_order":
            values = values.astype(np.int64)  # torch cannot index with 16 bits
        # Arrow hands out read-only memory, which torch would warn about; a batch is small beside its decoding.
        tensor = torch.from_numpy(values if values.flags.writeable else values.copy())
        if device.type == "cuda":
            tensor = tensor.pin_memory()
        batch[key] = tensor.to(device, non_blocking=True)
    for key in ("input_ids", "text_length", "prefix_length", "caption_ids", "caption_length"):
        for name in (key, f"clip_{key}"):
            if name in batch:
                batch[name] = batch[name].long()
    return batch
