"""Reports on one picture: a row a unit, its frames with the boxes of its lesions, and beside them what was written and
what is true. Left and right are as in the video, never mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deepcoro.reports.vocabulary import SEGMENT_NAMES

MOST_FRAMES = 3  # of a row
_TILE, _TEXT, _GAP, _LINE, _FONT = 300, 520, 10, 18, 14  # pixels
_ONE_COLUMN = 4  # rows; more stand in two columns, so that twelve fit on a screen
_PAPER, _INK, _FAINT, _RULE, _NOTHING = "white", "black", "#666666", "#cccccc", "#444444"
WRITTEN_COLOUR, TRUE_COLOUR = "#ff9f1c", "#2ec4f1"  # told apart by those who see no red or green, and on grey
_DASH = 6  # pixels of the dashed line of a true box: where both lie upon each other, both are seen


@dataclass(frozen=True)
class Box:
    """Edges as fractions of the picture."""

    segment: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Frame:
    """A picture [H, W] uint8 with its boxes; ``label`` stands below it."""

    picture: np.ndarray
    label: str = ""
    written: Sequence[Box] = ()
    true: Sequence[Box] = ()


@dataclass(frozen=True)
class Row:
    """A unit.

    Args:
        title: its id, and what else tells it apart.
        frames: the first ``MOST_FRAMES`` are drawn; none where nothing could be read.
        written, true: reports; ``None`` where there is none.
        knows_truth: whether a true report is to be spoken of at all.
        notes: further lines, such as a problem.
    """

    title: str
    frames: Sequence[Frame] = ()
    written: str | None = None
    true: str | None = None
    knows_truth: bool = True
    notes: Sequence[str] = field(default=())


def draw_reports(rows: Sequence[Row], title: str = "") -> Image.Image:
    """The sheet of ``rows``, in their order: from above, and the second half in a second column where they are many.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("expected a row or more: there is nothing to draw")
    font, bold = ImageFont.load_default(_FONT), ImageFont.load_default(_FONT + 2)
    frames = max(1, *(min(len(row.frames), MOST_FRAMES) for row in rows))
    wide = frames * (_TILE + _GAP) + _GAP
    half = len(rows) if len(rows) <= _ONE_COLUMN else -(-len(rows) // 2)
    columns = [_column(part, wide, font, bold) for part in (rows[:half], rows[half:]) if part]
    legend = _GAP + 2 * _LINE
    size = (sum(column.width for column in columns), legend + max(column.height for column in columns))
    sheet = Image.new("RGB", size, _PAPER)
    _draw_legend(ImageDraw.Draw(sheet), title, font, sheet.width)
    for number, column in enumerate(columns):
        sheet.paste(column, (number * column.width, legend))
    return sheet


def _column(
    rows: Sequence[Row],
    left: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    bold: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> Image.Image:
    """Rows below one another; their words begin at pixel ``left``."""
    blocks = [_text(row, font) for row in rows]
    tall = [max(_frames_height(row), (len(block) + 1) * _LINE) for row, block in zip(rows, blocks, strict=True)]
    sheet = Image.new("RGB", (left + _TEXT + _GAP, sum(tall) + 2 * _GAP * len(rows)), _PAPER)
    draw, top = ImageDraw.Draw(sheet), 0
    for row, block, height in zip(rows, blocks, tall, strict=True):
        draw.line([(0, top), (sheet.width, top)], _RULE)
        for column in range(max(1, min(len(row.frames), MOST_FRAMES))):
            corner = (_GAP + column * (_TILE + _GAP), top + _GAP)
            if row.frames:
                _draw_frame(sheet, row.frames[column], corner, font)
            else:
                draw.rectangle([corner, (corner[0] + _TILE, corner[1] + _TILE)], fill=_NOTHING)
                middle = (corner[0] + _TILE / 2, corner[1] + _TILE / 2)
                draw.text(middle, "nothing could be read", "white", font, anchor="mm")
        draw.text((left, top + _GAP), row.title, _INK, bold)
        for number, (colour, line) in enumerate(block, start=1):
            draw.text((left, top + _GAP + number * _LINE + 4), line, colour, font)
        top += height + 2 * _GAP
    return sheet


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """``text`` in lines of up to ``width`` pixels, cut between words; a word that is longer stands alone."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _text(row: Row, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[tuple[str, str]]:
    """Colour and words of each line beside a row's frames, below its title."""
    parts = [("written", _INK, row.written if row.written is not None else "(none)")]
    if row.knows_truth:
        parts.append(("true", _INK, row.true if row.true is not None else "(none)"))
    parts += [("note", _FAINT, note) for note in row.notes]
    lines: list[tuple[str, str]] = []
    for name, colour, text in parts:
        if name != "note":
            lines.append((_FAINT, name))
        lines += [(colour, line) for line in wrap(text or "(empty)", font, _TEXT)]
    return lines


def _size(frame: Frame) -> tuple[int, int]:
    """Width and height of a frame as it is drawn."""
    height, width = frame.picture.shape
    scale = _TILE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _frames_height(row: Row) -> int:
    return max([_size(frame)[1] for frame in row.frames[:MOST_FRAMES]], default=_TILE) + _LINE


def _draw_frame(
    sheet: Image.Image,
    frame: Frame,
    corner: tuple[int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    size = _size(frame)
    shown = Image.fromarray(frame.picture).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(shown)
    for box in frame.true:
        _draw_box(draw, box, size, TRUE_COLOUR, font, dashed=True)
    for box in frame.written:
        _draw_box(draw, box, size, WRITTEN_COLOUR, font, dashed=False)
    sheet.paste(shown, corner)
    ImageDraw.Draw(sheet).text((corner[0], corner[1] + size[1] + 2), frame.label, _FAINT, font)


def _draw_box(
    draw: ImageDraw.ImageDraw,
    box: Box,
    size: tuple[int, int],
    colour: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    dashed: bool,
) -> None:
    """A true box has its segment's name below it, a written one above, so that two of one place can both be read."""
    (x0, x1), (y0, y1) = (sorted((low * side, high * side)) for low, high, side in _edges(box, size))
    if dashed:
        for x in np.arange(x0, x1, 2 * _DASH):
            for y in (y0, y1):
                draw.line([(x, y), (min(x + _DASH, x1), y)], colour, 2)
        for y in np.arange(y0, y1, 2 * _DASH):
            for x in (x0, x1):
                draw.line([(x, y), (x, min(y + _DASH, y1))], colour, 2)
    else:
        draw.rectangle([x0, y0, x1, y1], outline=colour, width=2)
    name = SEGMENT_NAMES.get(box.segment, box.segment)
    wide = font.getlength(name)
    at = min(max(x0, 0), max(0, size[0] - wide))
    below = y1 + 2 if y1 + _LINE < size[1] else y0 - _LINE
    above = y0 - _LINE if y0 >= _LINE else y1 + 2
    draw.text((at, below if dashed else above), name, colour, font, stroke_width=1, stroke_fill="black")


def _edges(box: Box, size: tuple[int, int]) -> tuple[tuple[float, float, int], tuple[float, float, int]]:
    return (box.x0, box.x1, size[0] - 1), (box.y0, box.y1, size[1] - 1)


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    title: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> None:
    """What the colours are, at the right, and the title at the left."""
    draw.text((_GAP, _GAP), title, _INK, font)
    at: float = width - _GAP
    for name, colour, dashed in (("true box", TRUE_COLOUR, True), ("written box", WRITTEN_COLOUR, False)):
        at -= font.getlength(name)
        draw.text((at, _GAP), name, _INK, font)
        at -= 30
        draw.rectangle([at - 4, _GAP, at + 24, _GAP + 14], fill="#555555")
        for start in range(0, 20, 2 * _DASH if dashed else 20):
            draw.line([(at + start, _GAP + 7), (at + min(20, start + (_DASH if dashed else 20)), _GAP + 7)], colour, 3)
        at -= 3 * _GAP
