"""One unit at one position -> one row of a Batch. No Ray here: any process that has the tables can read rows.

Letters: B rows, V views, T frames, H W pixels, N tokens of a clip, R boxes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deepcoro.config import Config
from deepcoro.data.augment import choose_crop, crop_and_resize, jitter_intensity, move_boxes
from deepcoro.data.decode import decode_frames, local_copy
from deepcoro.data.masking import mask_order
from deepcoro.data.order import generator
from deepcoro.data.sampling import choose_views, frame_indices
from deepcoro.data.schema import Batch
from deepcoro.data.tables import Units
from deepcoro.data.text import ReportTokenizer, severity, target_text, text_key
from deepcoro.errors import DataError

TRAINING, EVALUATION = 0, 1
_MAX_BOXES = 8  # lesions shown at once in one clip; more are left out of the batch, not of the table


class UnitReader:
    """Reads rows of ``units`` as ``config`` describes them.

    Args:
        tokenizer: ``None`` where no loss reads text; then rows carry no tokens.
        training: with chance (view, moment, crop, intensity), or without (evaluation).
    """

    def __init__(self, config: Config, units: Units, tokenizer: ReportTokenizer | None, training: bool) -> None:
        self.config, self.units, self.tokenizer, self.training = config, units, tokenizer, training

    def read(self, positions: np.ndarray, unit_indices: np.ndarray) -> Batch:
        """Rows for ``positions`` [B] of the stream, where ``unit_indices`` [B] stand. Text is padded to these rows, and
        in evaluation, where a study gives all its videos, views are."""
        views = self.config.data.num_videos
        if not self.training:
            views = max(self.units.num_videos(unit) for unit in unit_indices.tolist())
        rows, texts, clip_texts = [], [], []
        for position, unit in zip(positions.tolist(), unit_indices.tolist(), strict=True):
            row, text, of_its_clips = self._row(position, unit, views)
            rows.append(row)
            texts.append(text)
            clip_texts += of_its_clips
        batch: dict[str, Any] = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        batch["position"] = np.asarray(positions, np.int64)
        batch |= self._texts(texts, batch["valid"].any(axis=1))
        if self.tokenizer is not None:
            batch["task"] = np.zeros(len(rows), np.int8)
        if self.config.needs_clip_texts:
            of_clips = self._texts(clip_texts, batch["valid"].reshape(-1))
            batch |= {f"clip_{key}": x.reshape(len(rows), views, *x.shape[1:]) for key, x in of_clips.items()}
        return Batch(**batch)  # type: ignore[typeddict-item]

    def _texts(self, texts: list[str | None], valid: np.ndarray) -> dict[str, np.ndarray]:
        """What a batch says of its texts, each of which belongs to a row that is ``valid`` or not."""
        found: dict[str, np.ndarray] = {
            "has_report": np.array([t is not None for t in texts]) & valid,
            "report_key": np.array([text_key(t) for t in texts], np.int64),
        }
        if self.tokenizer is not None:
            found["input_ids"], found["text_length"] = self.tokenizer.encode(texts)
            found["prefix_length"] = np.ones(len(texts), np.int32)  # the start token is given
        return found

    def text(self, unit: int) -> str | None:
        """The target text of a unit."""
        return target_text(*self._about(unit))

    def _about(self, unit: int) -> tuple[dict[str, Any], str | None, bool]:
        """What the text of a unit is about: the study, the tree in view, and whether it is the whole study."""
        tree = None if self.units.whole_study else self.units.video_rows(unit)[0]["coronary_tree"]
        return self.units.study_row(unit), tree, self.units.whole_study

    def _row(self, position: int, unit: int, views: int) -> tuple[dict[str, Any], str | None, list[str | None]]:
        """A row of ``views`` places, its text, and the text of each place."""
        data, grid = self.config.data, self.config.grid
        # What is evaluated is the same in every run, so that runs of two seeds can be compared.
        chance = generator(*((self.config.seed, position, TRAINING) if self.training else (0, position, EVALUATION)))
        rng = chance if self.training else None
        videos = self.units.video_rows(unit)
        size = data.frame_size
        row: dict[str, Any] = {
            "clip": np.zeros((views, data.num_frames, size, size), np.uint8),
            "valid": np.zeros(views, bool),
            "angles": np.full((views, 2), np.nan, np.float32),
            "view_index": np.zeros(views, np.int64),
            "boxes": np.full((views, _MAX_BOXES, 5), np.nan, np.float32),
        }
        problems: list[str] = []
        clip_texts: list[str | None] = [None] * views
        about = self._about(unit)
        weighs = self.config.contrastive.severity_weight > 0
        if weighs:
            row["severity"] = np.float32(severity(*about))
            if self.config.needs_clip_texts:
                row["clip_severity"] = np.zeros(views, np.float32)
        for view, index in enumerate(choose_views(len(videos), views, rng)):
            video, row["view_index"][view] = videos[index], index
            if self.config.needs_clip_texts:
                of_clip = (about[0], video["coronary_tree"], False)
                clip_texts[view] = target_text(*of_clip)
                if weighs:
                    row["clip_severity"][view] = severity(*of_clip)
            try:
                row["clip"][view], row["boxes"][view] = self._clip(video, rng)
            except DataError as error:  # this view is marked, counted and told; the row keeps its place in the stream
                problems.append(str(error))
                continue
            row["valid"][view] = True
            row["angles"][view] = [
                np.nan if a is None else a for a in (video["primary_angle"], video["secondary_angle"])
            ]
        orders = [mask_order(self.config.masked_modeling.strategy, grid, chance) for _ in range(views)]
        row["mask_order"] = np.stack(orders)
        row["problem"], row["num_lost"] = "; ".join(problems), np.int64(len(problems))
        row["study_key"] = np.int64(text_key(videos[0]["study_id"]))
        row["unit_id"] = videos[0]["study_id"] if self.units.whole_study else videos[0]["video_id"]
        return row, target_text(*about), clip_texts

    def _clip(self, video: dict[str, Any], rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        data = self.config.data
        indices = frame_indices(
            video["num_frames"], video["fps"], data.num_frames, data.sample_fps, data.time_jitter, rng
        )
        uri = (
            video["uri"]
            if "://" in video["uri"] or video["uri"].startswith("/")
            else f"{self.units.root}/{video['uri']}"
        )
        with local_copy(uri) as path:
            frames = decode_frames(path, indices, video["num_frames"])
        height, width = frames.shape[1:]
        crop = choose_crop(height, width, data.crop_scale, rng)
        clip = crop_and_resize(frames, crop, data.frame_size)
        if rng is not None and data.intensity_jitter:
            clip = jitter_intensity(clip, data.intensity_jitter, rng)
        boxes = np.full((_MAX_BOXES, 5), np.nan, np.float32)
        shown = _boxes_on(indices, video["boxes"] or [])[:_MAX_BOXES]
        if shown:
            boxes[: len(shown), 0] = [frame for frame, _ in shown]
            boxes[: len(shown), 1:] = move_boxes(np.array([corners for _, corners in shown]), height, width, crop)
        return clip, boxes


def _boxes_on(indices: np.ndarray, boxes: list[dict[str, Any]]) -> list[tuple[int, list[float]]]:
    """(frame of the clip, corners) of the boxes that lie on a sampled frame."""
    place = {int(frame): t for t, frame in reversed(list(enumerate(indices)))}
    return [(place[b["frame"]], [b["x0"], b["y0"], b["x1"], b["y1"]]) for b in boxes if b["frame"] in place]
