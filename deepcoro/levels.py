"""What a row of a loss is: a unit of the batch, or each clip of a study by itself.

Both the model and the losses have to agree on it, and neither knows the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_CLIPS = ("input_ids", "text_length", "prefix_length", "has_report", "report_key", "severity")


def rows_at_level(batch: Mapping[str, Any], level: str) -> Mapping[str, Any]:
    """What belongs to each row of a loss (``data.schema.Batch``): the batch itself for studies, and for videos, which
    are units by themselves; for ``level`` clip of a study each of its B*V clips, with a text of its own."""
    if level == "study" or "clip_has_report" not in batch:
        return batch
    rows = {name: batch[f"clip_{name}"].flatten(0, 1) for name in _OF_CLIPS if f"clip_{name}" in batch}
    if "study_key" in batch:
        rows["study_key"] = batch["study_key"].repeat_interleave(batch["clip_has_report"].shape[1])
    return rows
