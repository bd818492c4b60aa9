"""Pairs of reports worked by hand."""

import numpy as np
import pytest

from deepcoro.metrics.erasure import compare_erased
from deepcoro.metrics.findings import ratio, segments_in_view
from deepcoro.reports.grammar import Finding
from deepcoro.reports.vocabulary import SEGMENTS

WHOLE = np.ones((5, len(SEGMENTS)), dtype=bool)
LAD, RCA, OM = Finding("prox_lad", stenosis=80), Finding("mid_rca", stenosis=90), Finding("om1", stenosis=75)


def test_pairs_by_hand():
    before = [[LAD, RCA], [LAD], [LAD], [], []]
    after = [[RCA], [LAD], [Finding("prox_lad", stenosis=40), OM], [RCA], []]
    erasures = compare_erased(before, after, ["prox_lad", "prox_lad", "prox_lad", "mid_rca", "om1"], WHOLE[:5])
    assert erasures.named.tolist() == [True, True, True, False, False]
    assert erasures.kept.tolist() == [False, True, False, True, False]  # 40 % is not significant any more
    assert erasures.others_changed.tolist() == [0, 0, 1, 0, 0]
    assert ratio(*erasures.erased_terms) == pytest.approx(2 / 3)
    assert ratio(*erasures.invented_terms) == pytest.approx(2 / 5)
    assert ratio(*erasures.others_terms) == pytest.approx(1 / (5 * 17))


def test_a_cine_is_asked_for_the_segments_of_its_tree():
    """13 segments are of the left tree and 5 of the right; with left dominance 15 and 3."""
    view = segments_in_view(["left", "right", "left"], [None, "right", "left"])
    before, after = [[LAD, RCA, OM], [RCA, LAD], [LAD]], [[], [], []]
    erasures = compare_erased(before, after, ["prox_lad", "mid_rca", "prox_lad"], view)
    numerator, denominator = erasures.others_terms
    assert numerator.tolist() == [1, 0, 0] and denominator.tolist() == [12, 4, 14]
    with pytest.raises(ValueError, match="pair 0: the lesion was in 'mid_rca', which is not in view"):
        compare_erased([[RCA]], [[]], ["mid_rca"], view[:1])
    with pytest.raises(ValueError, match=r"\[1, 18\], got \(3, 18\)"):
        compare_erased([[LAD]], [[]], ["prox_lad"], view)


def test_who_follows_the_picture_and_who_does_not():
    before, after, segments = [[LAD, RCA], [OM]], [[RCA], []], ["prox_lad", "om1"]
    seeing = compare_erased(before, after, segments, WHOLE[:2])
    blind = compare_erased(before, before, segments, WHOLE[:2])
    assert (ratio(*seeing.erased_terms), ratio(*seeing.others_terms)) == (1, 0)
    assert (ratio(*blind.erased_terms), ratio(*blind.others_terms)) == (0, 0)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="got 1, 2, 1"):
        compare_erased([[]], [[], []], ["d1"], WHOLE[:1])
    with pytest.raises(ValueError, match="got 0, 0, 0"):
        compare_erased([], [], [], WHOLE[:0])
    with pytest.raises(ValueError, match="got 'heart'"):
        compare_erased([[]], [[]], ["heart"], WHOLE[:1])
