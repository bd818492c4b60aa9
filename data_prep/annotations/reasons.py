"""Why an annotation, or a row of classes, is not in the dataset: a small fixed vocabulary that can be counted."""

from __future__ import annotations

REASONS = {
    "malformed": "the annotation is no object with an image_id and a category_id",
    "unknown_image": "its image_id is none of the file's images",
    "unknown_video": "it names no video of the dataset",
    "ambiguous_video": "it may name several videos of the dataset",
    "set_aside": "it names a file that was not taken into the dataset",
    "no_frame": "its image has no frame_index, and its file name ends in no number",
    "frame_out_of_range": "the video has no such frame",
    "other_shape": "its image has another aspect ratio than the video",
    "unknown_category": "its category is none of the 18 segments, and no --category says what it is",
    "bad_box": "its bbox is not four finite numbers with a width and a height above 0",
    "box_outside": "its bbox reaches out of the picture by more than a pixel",
    "no_box": "it has no bbox",
    "no_segmentation": "it has no segmentation",
    "bad_segmentation": "its segmentation is neither polygons of three points or more nor a run-length code",
    "other_mask_size": "its run-length code has another size than its image",
    "mask_outside": "a polygon reaches out of the picture by more than a pixel",
    "empty_mask": "its segmentation covers no pixel of the video",
    "duplicate": "the same annotation came before in the file",
}


class LeftOut(Exception):
    """An annotation that is not used."""

    def __init__(self, reason: str) -> None:
        if reason not in REASONS:
            raise ValueError(f"{reason!r} is none of the reasons: {', '.join(REASONS)}")
        super().__init__(reason)
        self.reason = reason
