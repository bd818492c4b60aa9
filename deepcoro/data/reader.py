"""One unit at one position -> one row of a Batch. No Ray here: any process that has the tables can read rows.

Letters: B rows, V views, T frames, H W pixels, N tokens of a clip, R boxes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deepcoro.config import Config
from deepcoro.data.augment import choose_crop, crop_and_resize, jitter_intensity, move_boxes
from deepcoro.data.caption_tasks import TASKS, Caption, Region, choose_caption, regions_in_view
from deepcoro.data.decode import decode_frames, local_copy
from deepcoro.data.lesion_maps import LesionMap, lesion_map
from deepcoro.data.masking import Masking
from deepcoro.data.order import generator
from deepcoro.data.sampling import choose_views, frame_indices
from deepcoro.data.schema import Batch
from deepcoro.data.tables import Units
from deepcoro.data.text import ReportTokenizer, percent_of_segment, severity, target_text, text_key
from deepcoro.errors import DataError
from deepcoro.reports.vocabulary import TREES

TRAINING, EVALUATION, CAPTIONING = 0, 1, 2  # what chance is drawn for (order.generator)
_MAX_BOXES = 8  # lesions shown at once in one clip; more are left out of the batch, not of the table


class UnitReader:
    """Reads rows of ``units`` as ``config`` describes them.

    Args:
        tokenizer: ``None`` where no loss reads text; then rows carry no tokens.
        training: with chance (view, moment, crop, intensity), or without (evaluation).
    """

    def __init__(self, config: Config, units: Units, tokenizer: ReportTokenizer | None, training: bool) -> None:
        self.config, self.units, self.tokenizer, self.training = config, units, tokenizer, training
        self._masking = Masking.from_config(config)
        captions = config.loss.is_used("captioning")
        self._has_tasks = captions and config.captioning.tasks.in_use
        self._draws_captions = training and captions and (self._has_tasks or config.captioning.parallel_share > 0)
        self._grounds, self._cells = config.loss.is_used("grounding"), config.grounding.cells(config.grid)
        self._captions_clips = config.needs_clip_texts and config.level("captioning") == "clip"
        # Beside texts of tasks the reports are for contrastive alone, if that compares those of the same level.
        of_level = not self._captions_clips or config.level("contrastive") == "clip"
        self._compares_reports = config.loss.is_used("contrastive") and of_level

    def read(self, positions: np.ndarray, unit_indices: np.ndarray) -> Batch:
        """Rows for ``positions`` [B] of the stream, where ``unit_indices`` [B] stand. Text is padded to these rows, and
        in evaluation, where a study gives all its videos, views are."""
        views = self.config.data.num_videos
        if not self.training:
            views = max(self.units.num_videos(unit) for unit in unit_indices.tolist())
        rows, texts, clip_texts, captions = [], [], [], []
        for position, unit in zip(positions.tolist(), unit_indices.tolist(), strict=True):
            row, text, of_its_clips, asked = self._row(position, unit, views)
            rows.append(row)
            texts.append(text)
            clip_texts += of_its_clips
            captions += asked
        batch: dict[str, Any] = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        batch["position"] = np.asarray(positions, np.int64)
        if self.tokenizer is not None:
            batch["task"] = np.zeros(len(rows), np.int8)
        batch |= self._texts(texts, batch["valid"].any(axis=1), None if self._captions_clips else captions)
        if self.config.needs_clip_texts:
            of_clips = self._texts(clip_texts, batch["valid"].reshape(-1), captions if self._captions_clips else None)
            batch |= {f"clip_{key}": x.reshape(len(rows), views, *x.shape[1:]) for key, x in of_clips.items()}
            if self.tokenizer is not None:
                cut = batch.pop("clip_num_cut").sum(axis=1)
                batch["num_cut"] = cut if self.config.reads_clip_texts_only else cut + batch["num_cut"]
        return Batch(**batch)  # type: ignore[typeddict-item]

    def _texts(
        self, texts: list[str | None], valid: np.ndarray, captions: list[Caption] | None
    ) -> dict[str, np.ndarray]:
        """What a batch says of its texts, each of which belongs to a row that is ``valid`` or not; and, where
        captioning has these rows, of what it is asked for there."""
        found: dict[str, np.ndarray] = {
            "has_report": np.array([t is not None for t in texts]) & valid,
            "report_key": np.array([text_key(t) for t in texts], np.int64),
        }
        if self.tokenizer is not None:
            encoded = self.tokenizer.encode_after([""] * len(texts), texts)
            found["input_ids"], found["text_length"], found["prefix_length"], cut = encoded
            if captions is not None and self._has_tasks:
                asked = self.tokenizer.encode_after([TASKS[c.task] for c in captions], [c.text for c in captions])
                found["caption_ids"], found["caption_length"], found["prefix_length"] = asked[:3]
                found["has_caption"] = np.array([c.text is not None for c in captions]) & valid
                found["task"] = np.array([[*TASKS].index(c.task) for c in captions], np.int8)
                cut = cut | asked.cut if self._compares_reports else asked.cut
            if captions is not None and self._draws_captions and self.config.captioning.parallel_share > 0:
                found["parallel"] = np.array([c.parallel for c in captions])
            found["num_cut"] = (cut & found.get("has_caption", found["has_report"])).astype(np.int64)
        return found

    def _captions(
        self, position: int, study: dict[str, Any], texts: list[str | None], regions: list[list[Region]]
    ) -> list[Caption]:
        """What captioning is asked for at a unit's rows, which have these texts: the reports, but where training draws
        a task for a clip with ``regions``."""
        if not self._draws_captions:
            return [Caption(text=text) for text in texts]
        # Draws of its own: a run with tasks sees the same clips as one without.
        chances = generator(self.config.seed, position, CAPTIONING).random((len(texts), 4))
        return [
            choose_caption(self.config.captioning, text, shown, study["findings"], chance)
            for text, shown, chance in zip(texts, regions, chances, strict=False)  # of a study there are no regions
        ]

    def text(self, unit: int) -> str | None:
        """The target text of a unit."""
        return self._target_text(*self._about(unit))

    def _target_text(self, study: dict[str, Any], tree: str | None, whole_study: bool) -> str | None:
        if self.config.data.text_needs_report and not study["report"]:
            return None
        return target_text(study, tree, whole_study)

    def _about(self, unit: int) -> tuple[dict[str, Any], str | None, bool]:
        """What the text of a unit is about: the study, the tree in view, and whether it is the whole study."""
        tree = None if self.units.whole_study else self.units.video_rows(unit)[0]["coronary_tree"]
        return self.units.study_row(unit), tree, self.units.whole_study

    def _row(
        self, position: int, unit: int, views: int
    ) -> tuple[dict[str, Any], str | None, list[str | None], list[Caption]]:
        """A row of ``views`` places, its text, the text of each place, and what captioning is asked for, of the row or
        of each place."""
        data = self.config.data
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
        if self._grounds:
            row["segments_at"] = np.zeros((views, math.prod(self._cells)), np.int32)
            row["lesions_known"] = np.zeros((views, math.prod(self._cells)), bool)
            row["stenosis_at"] = np.full((views, math.prod(self._cells)), -1, np.int8)
            row["edges_at"] = np.full((views, math.prod(self._cells), 4), np.nan, np.float32)
            row["tree"] = np.full(views, -1, np.int8)
        problems: list[str] = []
        clip_texts: list[str | None] = [None] * views
        regions: list[list[Region]] = [[] for _ in range(views)]
        about = self._about(unit)
        percents = percent_of_segment(about[0]) if self._grounds else {}
        weighs = self.config.contrastive.severity_weight > 0
        if weighs:
            row["severity"] = np.float32(severity(*about))
            if self.config.needs_clip_texts:
                row["clip_severity"] = np.zeros(views, np.float32)
        for view, index in enumerate(choose_views(len(videos), views, rng)):
            video, row["view_index"][view] = videos[index], index
            if self.config.needs_clip_texts:
                of_clip = (about[0], video["coronary_tree"], False)
                clip_texts[view] = self._target_text(*of_clip)
                if weighs:
                    row["clip_severity"][view] = severity(*of_clip)
            try:
                row["clip"][view], row["boxes"][view], regions[view], lesions = self._clip(video, rng, percents)
            except DataError as error:  # this view is marked, counted and told; the row keeps its place in the stream
                problems.append(str(error))
                continue
            row["valid"][view] = True
            if lesions is not None:
                row["segments_at"][view], row["lesions_known"][view] = lesions.segments, lesions.known
                row["stenosis_at"][view], row["edges_at"][view] = lesions.stenosis, lesions.edges
                row["tree"][view] = TREES.index(video["coronary_tree"]) if video["coronary_tree"] else -1
            row["angles"][view] = [
                np.nan if a is None else a for a in (video["primary_angle"], video["secondary_angle"])
            ]
        row["mask_order"] = np.stack([self._masking.order(chance, clip) for clip in row["clip"]])
        row["problem"], row["num_lost"] = "; ".join(problems), np.int64(len(problems))
        row["study_key"] = np.int64(text_key(videos[0]["study_id"]))
        row["unit_id"] = videos[0]["study_id"] if self.units.whole_study else videos[0]["video_id"]
        text = self._target_text(*about)
        captions = self._captions(position, about[0], clip_texts if self._captions_clips else [text], regions)
        return row, text, clip_texts, captions

    def _clip(
        self, video: dict[str, Any], rng: np.random.Generator | None, percents: dict[str, int]
    ) -> tuple[np.ndarray, np.ndarray, list[Region], LesionMap | None]:
        """A clip of a video, its boxes, the regions that captioning may ask for, and where its lesions are."""
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
        regions, lesions, shape = [], None, (height, width, crop)
        if self._draws_captions and self._has_tasks:
            regions = regions_in_view(indices, video["boxes"] or [], *shape)
        if self._grounds:
            lesions = lesion_map(indices, video["boxes"], *shape, self._cells, percents)
        return clip, boxes, regions, lesions


def _boxes_on(indices: np.ndarray, boxes: list[dict[str, Any]]) -> list[tuple[int, list[float]]]:
    """(frame of the clip, corners) of the boxes that lie on a sampled frame."""
    place = {int(frame): t for t, frame in reversed(list(enumerate(indices)))}
    return [(place[b["frame"]], [b["x0"], b["y0"], b["x1"], b["y1"]]) for b in boxes if b["frame"] in place]
