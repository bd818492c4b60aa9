"""A sheet of reports: pictures as they are, boxes where they belong, words that fit."""

import itertools

import numpy as np
import pytest
from PIL import ImageColor, ImageFont

from deepcoro.inference.sheet import TRUE_COLOUR, WRITTEN_COLOUR, Box, Frame, Row, draw_reports, wrap


def pixels(rows):
    return np.asarray(draw_reports(rows)).astype(int)


def places(sheet, colour):
    """Rows and columns of pixels of a colour, below the legend."""
    return [
        axis + (80 if not at else 0)
        for at, axis in enumerate(np.nonzero((sheet[80:] == ImageColor.getrgb(colour)).all(axis=2)))
    ]


def test_left_stays_left_and_up_stays_up():
    picture = np.zeros((40, 60), np.uint8)
    picture[:10, :15] = 255  # the upper left corner
    sheet = pixels([Row("v", [Frame(picture)])])
    frame = sheet[56:256, 10:310]  # 300 x 200 pixels, below the legend
    assert frame[5:40, 5:60].min() > 240
    assert frame[:, 120:].max() < 20 and frame[80:].max() < 20


def test_boxes_are_where_they_are_said_to_be_in_their_colours():
    black = np.zeros((100, 100), np.uint8)
    empty = pixels([Row("v", [Frame(black)])])
    for kind, colour in (("written", WRITTEN_COLOUR), ("true", TRUE_COLOUR)):
        sheet = pixels([Row("v", [Frame(black, **{kind: [Box("prox_lad", 0.2, 0.4, 0.5, 0.9)]})])])
        other = {"written": TRUE_COLOUR, "true": WRITTEN_COLOUR}[kind]
        assert len(places(sheet, other)[0]) == 0
        y, x = places(sheet, colour)
        inside = (sheet[185:315, 80:150] == empty[185:315, 80:150]).all()
        assert inside
        # An edge is 2 pixels wide; the name of the segment stands above or below it.
        assert (np.abs(x.min() - (10 + 0.2 * 299)) <= 3) and (x >= 10 + 0.2 * 299 - 3).all()
        near_right = np.abs(x - (10 + 0.5 * 299)) <= 2
        assert near_right.sum() > 50
        for edge in (0.4, 0.9):
            assert (np.abs(y - (56 + edge * 299)) <= 2).sum() > 40


def test_no_frame_no_report_and_long_texts_are_drawn():
    long = "Left coronary tree. " * 60
    rows = [
        Row("a", written=None, true="Normal.", notes=["v.avi: is damaged"]),
        Row("b", [Frame(np.zeros((10, 10), np.uint8))] * 5, written="", knows_truth=False),
        Row("c", [Frame(np.zeros((10, 30), np.uint8), "frame 3 of 9")], written=long, true=long),
    ]
    sheet = draw_reports(rows, "demo")
    assert sheet.width == 3 * 310 + 10 + 520 + 10  # three frames of a row at most
    assert sheet.height > draw_reports(rows[:2]).height + 400  # the long texts need their room
    many = draw_reports([Row("d", [Frame(np.zeros((10, 10), np.uint8))])] * 12)
    assert many.width > many.height / 2  # in two columns
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_reports([])


def test_words_are_kept_and_lines_fit():
    font = ImageFont.load_default(14)
    text = "Proximal LAD: 80% stenosis (severe), TIMI 2 flow. LCX: normal. " * 5
    lines = wrap(text, font, 200)
    assert " ".join(lines).split() == text.split()
    assert max(font.getlength(line) for line in lines) <= 200
    assert all(font.getlength(f"{a} {b.split()[0]}") > 200 for a, b in itertools.pairwise(lines))
    assert wrap("", font, 200) == [""]
