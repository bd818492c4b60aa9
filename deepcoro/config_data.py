"""What a config says of the data: which cines, and what a clip of one is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from deepcoro.config_section import Section

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Kept = Annotated[float, Field(gt=0, le=1)]


class DataConfig(Section):
    """What a clip is, and where it comes from."""

    path: str = "data/prepared"  # a prepared dataset: folder or URI
    unit: Literal["video", "study"] = "video"  # what the order permutes
    # Clips drawn from a study in training (all in evaluation). None: 4, or 1 where the unit is a video.
    num_videos: Positive = 1
    filter: str | None = None  # expression over the columns of both tables, such as "acquisition == 'diagnostic'"
    # Texts are learnt of those studies alone that have a report. Findings of the others, of which texts could be made,
    # serve their boxes (captioning's aref and gcap, grounding): for patients who were chosen because they are ill, and
    # from whom a report would learn to expect illness.
    text_needs_report: bool = False
    num_frames: Positive = 16
    frame_size: Positive = 224  # pixels, height and width
    sample_fps: Annotated[float, Field(gt=0)] = 7.5  # frames a second inside a clip, whatever the cine runs at
    max_text_length: Positive = 512  # tokens; a batch is padded to its own longest text
    crop_scale: tuple[Kept, Kept] = (0.8, 1.0)  # smallest and largest share of the side that is kept
    intensity_jitter: Share = 0.2  # brightness, contrast and gamma vary by up to this share
    time_jitter: Share = 0.1  # sample_fps varies by up to this share
    pixel_mean: float | None = None  # 0-255; None: what dataset.json says of the training split
    pixel_std: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("num_videos") is None:
            return values | {"num_videos": 4 if values.get("unit") == "study" else 1}
        return values

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.unit == "video" and self.num_videos != 1:
            raise ValueError(f"data.num_videos is {self.num_videos}, and a video has one view; set data.unit=study")
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"data.crop_scale must be (smallest, largest), got {self.crop_scale}")
        return self
