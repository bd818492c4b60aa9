"""What captioning is asked for, by the prefix of its text (LocCa, 2403.19596): the report, or a finding and its place.

    Cap: Left coronary tree. Left main: normal. LAD: normal. LCX: normal.
    ARef: Proximal LAD: 80% stenosis (severe). Frame 3: 120 44 180 97.
    GCap: Frame 3: 120 44 180 97. Proximal LAD: 80% stenosis (severe).

What follows the prefix is learnt: of ARef and GCap one region of the clip, in words and in whole numbers of ordinary
tokens. A region is a lesion's box in one frame of the clip, as the model is shown it: which of the sampled frames (the
first is 0), and where its left, upper, right and lower edges lie in the crop, from 0 (left, top) to 500.

Letters: R boxes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepcoro.config import CaptioningConfig
from deepcoro.data.augment import Crop, move_boxes, visible_shares
from deepcoro.data.text import ReportTokenizer
from deepcoro.errors import ConfigError
from deepcoro.reports.grammar import Finding, render_finding

TASKS: dict[str, str] = {"report": "Cap:", "aref": "ARef:", "gcap": "GCap:"}  # the prefix of each, in batch order
BOX_SCALE = 500  # of a box's edges: at 224 pixels about half a pixel
LEAST_VISIBLE = 0.5  # share of a box's area that has to lie in the crop, or the box is not there
# Texts with all that a tokenizer must know: each digit at the head of a number and behind another, which word pieces
# learn apart.
WORDS = (*TASKS.values(), "Frame 0 1 2 3 4 5 6 7 8 9: 10 21 32 43 54 65 76 87 98 109 250 375 500.")
_REGION = re.compile(r"frame (\d+): (\d+) (\d+) (\d+) (\d+)\.", re.IGNORECASE)


@dataclass(frozen=True)
class Region:
    """A box of ``segment`` in frame ``frame`` of a clip: left, upper, right and lower edge as fractions of the
    crop."""

    segment: str
    frame: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Caption:
    """What captioning is asked for at one row: a task, its text (``None``: nothing), and whether all at once."""

    task: str = "report"
    text: str | None = None
    parallel: bool = False


def regions_in_view(
    indices: np.ndarray, boxes: Sequence[dict[str, Any]], height: int, width: int, crop: Crop
) -> list[Region]:
    """The rows ``boxes`` of a video of ``height`` x ``width`` that lie on its sampled frames ``indices`` [T], at least
    half inside ``crop``. A frame that was sampled twice is named by its first place."""
    place = {int(frame): t for t, frame in reversed(list(enumerate(indices)))}
    sampled = [box for box in boxes if box["frame"] in place]
    if not sampled:
        return []
    corners = np.array([[box["x0"], box["y0"], box["x1"], box["y1"]] for box in sampled], np.float64)
    moved, shares = move_boxes(corners, height, width, crop), visible_shares(corners, height, width, crop)
    return [
        Region(box["segment"], place[box["frame"]], tuple(edges))
        for box, edges, share in zip(sampled, moved.tolist(), shares.tolist(), strict=True)
        if share >= LEAST_VISIBLE
    ]


def choose_caption(
    part: CaptioningConfig,
    report: str | None,
    regions: Sequence[Region],
    findings: Sequence[dict[str, Any]] | None,
    chance: np.ndarray,
) -> Caption:
    """What one training row is asked for.

    Args:
        report: its target text.
        regions: of its clip.
        findings: of its study, as rows; a region whose segment has none cannot be told of.
        chance: [4] in [0, 1): of the task, of parallel prediction, of the segment, and of the frame among its regions.
    """
    shares = part.tasks.shares
    if report is None and part.tasks.in_use:  # boxes can be asked for all the same
        shares = shares | {"report": 0.0}
    ends = np.cumsum([*shares.values()])
    task = [*shares][int(np.searchsorted(ends / ends[-1], chance[0], side="right"))]
    told = {row["segment"]: row for row in findings or ()}
    known = [region for region in regions if region.segment in told]
    if task == "report" or not known:
        return Caption("report", report, bool(chance[1] < part.parallel_share))
    segments = [*dict.fromkeys(region.segment for region in known)]
    segment = segments[int(chance[2] * len(segments))]
    shown = [region for region in known if region.segment == segment]
    sentence = render_finding(Finding.from_dict(told[segment]))
    place = write_region(shown[int(chance[3] * len(shown))])
    return Caption(task, f"{sentence} {place}" if task == "aref" else f"{place} {sentence}")


def write_region(region: Region) -> str:
    """``Frame 3: 120 44 180 97.``"""
    edges = " ".join(str(round(edge * BOX_SCALE)) for edge in region.box)
    return f"Frame {region.frame}: {edges}."


def read_region(text: str) -> tuple[int, tuple[float, float, float, float]] | None:
    """The first frame and box that ``text`` tells of, whatever its case: what ``write_region`` wrote, to 1/1000 of the
    crop. ``None`` where it tells of none, or of one with no inside or beyond the crop."""
    found = _REGION.search(text)
    if found is None:
        return None
    frame, *edges = (int(number) for number in found.groups())
    x0, y0, x1, y1 = (edge / BOX_SCALE for edge in edges)
    return (frame, (x0, y0, x1, y1)) if x0 < x1 <= 1 and y0 < y1 <= 1 else None


def prompt_ids(words: ReportTokenizer, part: CaptioningConfig, task: str = "report", given: str = "") -> list[int]:
    """The ids that the decoder is given when it is asked for ``task``: the start token, the task's prefix where tasks
    are in use, and what is ``given`` of the text (for ``aref`` a finding's sentence, for ``gcap`` a region).

    Raises:
        ConfigError: a task that the model was not trained on.
    """
    if task != "report" and part.tasks.shares.get(task, 0) == 0:
        trained = ", ".join(name for name, share in part.tasks.shares.items() if share > 0)
        raise ConfigError(f"the model was not trained on the task {task!r} (captioning.tasks: {trained})")
    return words.prompt(TASKS[task] if part.tasks.in_use else "", given)


def check_words(words: ReportTokenizer, source: str) -> None:
    """Raise ``ConfigError`` where the tokenizer of ``source`` does not give the words of the tasks back, or one of the
    numbers that a region may have."""
    for text in (*WORDS, *(f"Frame 0: {number}." for number in range(BOX_SCALE + 1))):
        back = words.decode(words.prompt(text)[1:])
        if back.casefold().replace(" ", "") != text.casefold().replace(" ", ""):
            raise ConfigError(
                f"captioning.tasks: the tokenizer of {source!r} makes {back!r} of {text!r}; take one that knows these "
                "words (one of your own: learn them too, from deepcoro.data.caption_tasks.WORDS), or leave out aref "
                "and gcap"
            )
