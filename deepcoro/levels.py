"""What a row of a loss is: a unit of the batch, or each clip of a study by itself.

Both the model and the losses have to agree on it, and neither knows the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_REPORTS = ("input_ids", "text_length", "prefix_length", "has_report", "report_key", "severity")
_OF_CLIPS = (*_OF_REPORTS, "task", "caption_ids", "caption_length", "has_caption", "parallel")


def rows_at_level(batch: Mapping[str, Any], level: str) -> Mapping[str, Any]:
    """What belongs to each row of a loss (``data.schema.Batch``): the batch itself for studies, and for videos, which
    are units by themselves; for ``level`` clip of a study each of its B*V clips, with a text of its own."""
    if level == "study" or "clip_has_report" not in batch:
        return batch
    rows = {name: batch[f"clip_{name}"].flatten(0, 1) for name in _OF_CLIPS if f"clip_{name}" in batch}
    if "study_key" in batch:
        rows["study_key"] = batch["study_key"].repeat_interleave(batch["clip_has_report"].shape[1])
    return rows


def caption_text(rows: Mapping[str, Any]) -> tuple[Any, Any]:
    """Ids [R, L] and how many of them are text [R], of what captioning learns at the rows of its level: what the task
    of a row asks for, or, where there are no tasks, the report. Contrastive takes the report always."""
    names = ("caption_ids", "caption_length") if "caption_ids" in rows else ("input_ids", "text_length")
    return rows[names[0]], rows[names[1]]
