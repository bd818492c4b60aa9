"""Texts in any wording: the phantom's styles against its own findings, and sentences read by hand."""

import numpy as np
import pytest

from data_prep.phantom.wording import draw_style, word_report
from deepcoro.reports.grammar import Finding, parse_report, render_report
from deepcoro.reports.texts import read_text

FINDINGS = (
    Finding("prox_lad", stenosis=80, calcification="severe"),
    Finding("mid_lcx", stent=True, in_stent_restenosis=60),
    Finding("mid_rca", stenosis=100, occlusion="cto", collaterals=True),
)


def test_every_style_says_what_the_canonical_wording_says():
    canonical = read_text(render_report(FINDINGS, "right"))
    assert canonical.findings == FINDINGS and canonical.trees == ("left", "right") and canonical.unread == ()
    misread = 0
    for seed in range(20):
        text = word_report(list(FINDINGS), "right", draw_style(np.random.default_rng(seed)))
        read = read_text(text)
        said = tuple(finding for finding in read.findings if finding.stenosis != 0)  # some say that a segment has none
        assert (said, set(read.trees), read.dominance) == (FINDINGS, {"left", "right"}, "right"), text
        assert read.unread == read.unclear == () and read.tree is None
        misread += parse_report(text).findings != FINDINGS
    assert misread > 10  # the canonical parser alone does not read them


@pytest.mark.parametrize(
    ("text", "trees", "unread", "unclear"),
    [
        ("The proximal LAD has an 80% stenosis.", ("left",), (), ()),
        ("Proximal LAD: 80% stenosis (severe).", ("left",), (), ()),
        ("Right coronary tree. Proximal LAD: 80% stenosis (severe).", ("right",), (), ()),  # headings say it themselves
        ("LAD: prox 80%. RCA occluded.", ("left", "right"), ("rca: no segment is named",), "prox_rca mid_rca dist_rca"),
        ("Prox LAD 80%. Mid RCA like a snake.", ("left", "right"), ("like a snake",), "mid_rca"),
        ("Prox LAD 80%, mid LAD: foo. PDA: foo.", ("left", "right"), ("foo", "foo"), "prox_lad mid_lad pda"),
        ("Prox LAD 80%. The right coronary artery is foo.", ("left", "right"), None, None),
        ("Normal coronary arteries.", ("left", "right"), (), ()),
        ("The heart is fine.", (), ("heart is fine",), ()),
        ("", (), (), ()),
    ],
)
def test_texts_by_hand(text, trees, unread, unclear):
    read = read_text(text)
    assert read.trees == trees
    if unread is not None:
        assert read.unread == unread and read.unclear == tuple(unclear.split() if unclear else ())


def test_a_percent_that_its_grade_denies_is_unclear():
    read = read_text("Left coronary tree. Left main: normal. Proximal LAD: 80% stenosis (moderate). LCX: normal.")
    assert read.findings == () and read.trees == ("left",) and read.unclear == ("prox_lad",) and read.unread
    # What the grammar reads of a sentence stands, whatever stands beside it.
    read = read_text("Left coronary tree. Proximal LAD: 80% stenosis (severe), foo. LCX: normal.")
    assert read.findings == (Finding("prox_lad", stenosis=80),) and read.unread == ("foo",) and read.unclear == ()
