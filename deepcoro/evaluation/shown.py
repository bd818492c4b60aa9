"""Which lesions a unit's clips show, and where: what answers to "where?" are held against.

Letters: T frames of a clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deepcoro.config import Config
from deepcoro.data.augment import choose_crop
from deepcoro.data.caption_tasks import regions_in_view
from deepcoro.data.sampling import frame_indices
from deepcoro.data.tables import Units
from deepcoro.data.text import target_text
from deepcoro.reports.grammar import Finding, render_finding

Box = tuple[float, float, float, float]  # left, upper, right and lower edge as fractions of the crop


@dataclass(frozen=True)
class ShownLesion:
    """A lesion in a clip, as evaluation reads the clip.

    Args:
        segment: where it is.
        view: which of the unit's clips.
        finding: the sentence that a report has for it.
        boxes: by frame of the clip; of a frame that was sampled twice, at its first place. One or more.
        angles: primary and secondary angle of the view in degrees, ``None`` where unknown.
        report: the text that captioning learns where this clip is (of the clip, or of the whole study).
    """

    segment: str
    view: int
    finding: str
    boxes: Mapping[int, Box]
    angles: tuple[float, float] | None
    report: str | None

    @property
    def name(self) -> str:
        """What of the finding names the segment and the first thing that is said of it, which is its stenosis or
        occlusion where it has one: ``Proximal LAD: 80% stenosis (severe)``."""
        return self.finding.split(", ")[0].removesuffix(".")


def shown_lesions(units: Units, unit: int, config: Config) -> list[ShownLesion]:
    """The lesions of ``unit`` that have a box on a sampled frame of a clip and a finding, clip by clip; one that two
    clips show is there twice. Nothing is decoded: in evaluation there is no chance in what is sampled and cropped.

    The same rules as in training: at least half of the box in the crop, a finding of the box's segment in the study.
    """
    study, data = units.study_row(unit), config.data
    told = {row["segment"]: row for row in study["findings"] or ()}
    whole = config.level("captioning") == "study"
    lesions = []
    for view, video in enumerate(units.video_rows(unit)):
        boxes = [box for box in video["boxes"] or () if box["segment"] in told]
        if not boxes:
            continue
        indices = frame_indices(video["num_frames"], video["fps"], data.num_frames, data.sample_fps)
        crop = choose_crop(video["height"], video["width"], data.crop_scale, None)
        places: dict[str, dict[int, Box]] = {}
        for region in regions_in_view(indices, boxes, video["height"], video["width"], crop):
            places.setdefault(region.segment, {})[region.frame] = region.box
        angles = (video["primary_angle"], video["secondary_angle"])
        text = target_text(study, None if whole else video["coronary_tree"], whole)
        for segment, by_frame in places.items():
            sentence = render_finding(Finding.from_dict(told[segment]))
            lesions.append(ShownLesion(segment, view, sentence, by_frame, None if None in angles else angles, text))
    return lesions
