"""What a config says of the captioning tasks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from deepcoro.config_section import Section

TaskShare = Annotated[float, Field(ge=0, le=1e6)]


class CaptionTasksConfig(Section):
    """How often a training row is asked for what (``data/caption_tasks.py``): shares of any sum above 0. A row that has
    no box in view is asked for its report, whatever was drawn."""

    report: TaskShare = 1.0  # Cap: the report
    aref: TaskShare = 0.0  # ARef: a finding, then its box
    gcap: TaskShare = 0.0  # GCap: a box, then its finding

    @model_validator(mode="after")
    def _check(self) -> CaptionTasksConfig:
        if self.report + self.aref + self.gcap == 0:
            raise ValueError("captioning.tasks are all 0: give report, aref or gcap a share above 0")
        return self

    @property
    def in_use(self) -> bool:
        """Whether anything but the report is asked for. Only then has the report a prefix too."""
        return self.aref + self.gcap > 0

    @property
    def shares(self) -> dict[str, float]:
        """By task, of sum 1."""
        given = {"report": self.report, "aref": self.aref, "gcap": self.gcap}
        return {task: share / sum(given.values()) for task, share in given.items()}
