"""What a trained model writes about units: the report, its findings, how sure it is of them, and where it sees them.

Letters: B units, V views, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from deepcoro.data.augment import choose_crop
from deepcoro.data.caption_tasks import Region
from deepcoro.data.sampling import frame_indices
from deepcoro.data.tables import Units
from deepcoro.data.text import ReportTokenizer
from deepcoro.errors import ConfigError
from deepcoro.evaluation.certainty import unit_probabilities
from deepcoro.evaluation.joining import join_texts
from deepcoro.evaluation.pointing import write_regions
from deepcoro.evaluation.units import (
    keep_to_reports,
    report_automaton,
    texts_by_unit,
    write_row_ids,
)
from deepcoro.inference.load import TrainedModel
from deepcoro.models.structured_probabilities import SegmentProbability
from deepcoro.reports.grammar import Finding, ParsedReport, parse_report, render_finding
from deepcoro.reports.vocabulary import SEGMENTS, tree_of

BLANK = 8  # grey levels: a clip whose pixels all lie this close together shows nothing


class PlacedBox(NamedTuple):
    """Where a finding is said to be: a frame of a video, and edges as fractions of its whole picture, as the ``boxes``
    of ``videos.parquet``."""

    video_id: str
    segment: str
    frame: int
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class UnitReport:
    """Of one unit.

    Args:
        unit: its number among the units that were read.
        tree: the one that the table says is in view; ``None``: unknown, or a whole study.
        text: the report; ``None`` where there was nothing to look at.
        said: the text, read back; what of it is not of the canonical wording is ``said.unread``.
        probabilities: of each segment that the report names or passes over; ``None`` where they were not asked for, or
            there are none of the report, and ``problem`` then says why.
        boxes: ``None`` where the model was not trained to tell them, or they were not asked for.
        problem: what went wrong, or nothing. A unit may have a report all the same, of the views that could be read.
    """

    unit: int
    unit_id: str
    study_id: str
    tree: str | None
    text: str | None = None
    said: ParsedReport = field(default_factory=ParsedReport)
    probabilities: tuple[SegmentProbability, ...] | None = None
    boxes: tuple[PlacedBox, ...] | None = None
    problem: str = ""

    def probability(self, segment: str) -> SegmentProbability | None:
        """Of ``segment``, where there is one."""
        return next((p for p in self.probabilities or () if p.segment == segment), None)


class ReportWriter:
    """Writes reports of rows as ``UnitReader`` reads them in evaluation.

    Args:
        trained: on the device on which it is to write.
        probabilities: whether to tell how sure the model is; costs some passes of the decoder a report.
        boxes: whether to ask for the boxes of findings, where the run was trained to tell them.

    Raises:
        ConfigError: the run was trained without captioning; or its tokenizer cannot write the canonical wording, and
            that is asked for (``captioning.structured``, or probabilities).
    """

    def __init__(self, trained: TrainedModel, probabilities: bool = False, boxes: bool = True) -> None:
        if trained.model.captioning_decoder is None or trained.tokenizer is None:
            raise ConfigError(
                f"{trained.checkpoint} was trained without captioning (loss.weights.captioning is 0): it cannot write"
            )
        self.trained, self.probabilities = trained, probabilities
        self.words: ReportTokenizer = trained.tokenizer
        keep_to_reports(self.words, trained.config, trained.config.captioning)  # what it refuses, it refuses now
        if probabilities:
            report_automaton(self.words, trained.config)
        self.points = boxes and trained.config.captioning.tasks.shares["aref"] > 0

    @torch.no_grad()
    def write(self, rows: Mapping[str, np.ndarray], units: Units) -> list[UnitReport]:
        """Of each row of a batch of ``units`` its report. A view in which all is equally dark (or bright) is none: the
        model would write something, and nobody should read it."""
        valid, problems = np.array(rows["valid"]), [[p] if p else [] for p in rows["problem"].tolist()]
        for row, view in np.argwhere(valid & is_blank(rows["clip"])).tolist():
            valid[row, view] = False
            name = units.video_rows(int(rows["position"][row]))[view]["video_id"]
            problems[row].append(f"{name}: blank, all its pixels lie within {BLANK} grey levels: nothing can be seen")
        whole = np.asarray(valid.any(axis=1))
        written = iter(self._write({k: rows[k][whole] for k in ("clip", "angles", "position")}, valid[whole], units))
        reports = []
        for place, unit in enumerate(rows["position"].tolist()):
            first = units.video_rows(unit)[0]
            found = next(written) if whole[place] else {}
            problem = "; ".join([*problems[place], *found.pop("problems", ())]).replace(f"{units.root}/", "")
            tree = None if units.whole_study else first["coronary_tree"]
            name = str(rows["unit_id"][place])
            reports.append(UnitReport(unit, name, first["study_id"], tree, **found, problem=problem))
        return reports

    def _write(self, rows: Mapping[str, np.ndarray], valid: np.ndarray, units: Units) -> list[dict[str, Any]]:
        """The fields of reports of rows that have something valid each."""
        if len(valid) == 0:
            return []
        model = self.trained.model
        seen = self.trained.look(*(torch.from_numpy(x) for x in (rows["clip"], valid, rows["angles"])))
        ids = write_row_ids(model, self.words, *seen).tolist()
        by_unit = texts_by_unit([self.words.decode(row) for row in ids], seen[1])
        cut = {self.words.decode(row) for row in ids if self.words.end_id not in row}
        joined = [join_texts(texts) for texts in by_unit]
        chosen = [report.parts for report in joined]
        found: list[dict[str, Any]] = []
        for report, texts in zip(joined, chosen, strict=True):
            text = report.text
            problems = [] if text else ["the model wrote an empty report"]
            if text and not cut.isdisjoint(texts):
                problems.append(f"the report was cut off after {len(ids[0])} tokens (captioning.max_generation_length)")
            found.append({"text": text, "said": parse_report(text), "problems": problems})
        if self.probabilities:
            self._add_probabilities(found, by_unit, chosen, seen)
        if self.points:
            self._add_boxes(found, by_unit, chosen, seen, rows["position"], units)
        return found

    def _add_probabilities(
        self,
        found: list[dict[str, Any]],
        by_unit: Sequence[Sequence[str | None]],
        chosen: Sequence[Sequence[str]],
        seen: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> None:
        """Of each text that a report is made of, asked of the first clip that says it, or, of one that no clip says so
        (``join_texts``), of the first that tells of its tree."""
        of_unit, asked, rows = [], [], []
        for unit, (of_rows, texts) in enumerate(zip(by_unit, chosen, strict=True)):
            for text in texts:
                of_unit.append(unit)
                asked.append(text)
                rows.append(unit * len(of_rows) + _first_that_says(of_rows, text))
        if not asked:
            return
        tokens, valid, views_at = seen
        if self.trained.config.level("captioning") == "clip":  # each clip as a unit by itself
            tokens, valid, views_at = tokens[rows], valid.flatten()[rows, None], views_at.flatten(0, 1)[rows, None]
        else:
            tokens = tokens.unflatten(0, tuple(valid.shape))[rows].flatten(0, 1)
            valid, views_at = valid[rows], views_at[rows]
        known = unit_probabilities(self.trained.model, self.words, tokens, valid, views_at, asked)
        told: dict[int, list[tuple[str, SegmentProbability]]] = {}
        for unit, text, (about, why) in zip(of_unit, asked, known, strict=True):
            if about is not None:
                told.setdefault(unit, []).extend((text, one) for one in about.segments)
                why = f"what is asked of {', '.join(about.left_out)} is too long" if about.left_out else ""
            if why:
                found[unit]["problems"].append(f"no probabilities{' of some' if about else ''}: {why}")
        for unit, pairs in told.items():
            found[unit]["probabilities"] = _one_per_segment(pairs, chosen[unit], found[unit]["said"].dominance)

    def _add_boxes(
        self,
        found: list[dict[str, Any]],
        by_unit: Sequence[Sequence[str | None]],
        chosen: Sequence[Sequence[str]],
        seen: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        positions: np.ndarray,
        units: Units,
    ) -> None:
        """Where the clips that say what the report says see it; all findings of all rows are asked for together."""
        clips, sentences, videos = [], [], []
        for unit, (of_rows, texts) in enumerate(zip(by_unit, chosen, strict=True)):
            of_unit = units.video_rows(int(positions[unit]))
            for view, text in enumerate(of_rows):
                if not text or text not in texts:
                    continue
                for finding in parse_report(text).findings:
                    if can_be_seen(finding):
                        clips.append(unit * len(of_rows) + view)
                        sentences.append(render_finding(finding))
                        videos.append((unit, of_unit[view]))
        regions = write_regions(self.trained.model, self.words, *seen, clips, sentences)
        for row in found:
            row["boxes"] = ()
        for (unit, video), region in zip(videos, regions, strict=True):
            if region is not None:
                found[unit]["boxes"] += (self._placed(video, region),)

    def _placed(self, video: Mapping[str, Any], region: Region) -> PlacedBox:
        """A region of a clip as one of its video."""
        data = self.trained.config.data
        indices = frame_indices(video["num_frames"], video["fps"], data.num_frames, data.sample_fps)
        crop = choose_crop(video["height"], video["width"], data.crop_scale, None)
        x0, x1 = ((crop.x0 + edge * crop.side) / video["width"] for edge in region.box[::2])
        y0, y1 = ((crop.y0 + edge * crop.side) / video["height"] for edge in region.box[1::2])
        return PlacedBox(video["video_id"], region.segment, int(indices[region.frame]), x0, y0, x1, y1)


def _first_that_says(texts: Sequence[str | None], text: str) -> int:
    """The place of the first of ``texts`` that is ``text``, or else of the first of the same tree."""
    if text in texts:
        return texts.index(text)
    tree = parse_report(text).tree
    return next(place for place, other in enumerate(texts) if other and parse_report(other).tree == tree)


def _one_per_segment(
    told: Sequence[tuple[str, SegmentProbability]], texts: Sequence[str], dominance: str | None
) -> tuple[SegmentProbability, ...]:
    """Texts of both trees pass over a PDA, say, and each has a probability of it. That of the text that names the
    segment counts, or else of the text of the tree in which it lies in this heart, where there is one.

    Args:
        told: texts, and what was found of each.
        texts: all of the report.
    """
    tree_of_text = {text: parse_report(text).tree for text in texts}
    kept: dict[str, SegmentProbability] = {}
    for text, one in told:
        home = tree_of(one.segment, dominance)
        at_home = tree_of_text[text] == home or home not in tree_of_text.values()
        if one.sentence is not None or (at_home and one.segment not in kept):
            kept[one.segment] = one
    return tuple(kept[segment] for segment in SEGMENTS if segment in kept)


def is_blank(clip: np.ndarray) -> np.ndarray:
    """Which of the clips [B, V, T, H, W] uint8 show nothing: bool [B, V]."""
    flat = clip.reshape(*clip.shape[:2], -1)
    return flat.max(axis=2) - flat.min(axis=2) <= BLANK


def can_be_seen(finding: Finding) -> bool:
    """Whether there is anything to point at: a narrowing, a thrombus, calcium or a stent, and no mere "no stenosis" or
    measured flow."""
    return bool(
        finding.stenosis
        or finding.in_stent_restenosis
        or finding.thrombus
        or finding.stent
        or finding.calcification not in (None, "none")
    )
