"""Pairs of reports worked by hand."""

import pytest

from deepcoro.metrics.erasure import compare_erased
from deepcoro.metrics.findings import ratio
from deepcoro.reports.grammar import Finding

LAD, RCA, OM = Finding("prox_lad", stenosis=80), Finding("mid_rca", stenosis=90), Finding("om1", stenosis=75)


def test_pairs_by_hand():
    before = [[LAD, RCA], [LAD], [LAD], [], []]
    after = [[RCA], [LAD], [Finding("prox_lad", stenosis=40), OM], [RCA], []]
    erasures = compare_erased(before, after, ["prox_lad", "prox_lad", "prox_lad", "mid_rca", "om1"])
    assert erasures.named.tolist() == [True, True, True, False, False]
    assert erasures.kept.tolist() == [False, True, False, True, False]  # 40 % is not significant any more
    assert erasures.others_changed.tolist() == [0, 0, 1, 0, 0]
    assert ratio(*erasures.erased_terms) == pytest.approx(2 / 3)
    assert ratio(*erasures.invented_terms) == pytest.approx(2 / 5)
    assert ratio(*erasures.others_terms) == pytest.approx(1 / (5 * 17))


def test_who_follows_the_picture_and_who_does_not():
    before, after, segments = [[LAD, RCA], [OM]], [[RCA], []], ["prox_lad", "om1"]
    seeing = compare_erased(before, after, segments)
    blind = compare_erased(before, before, segments)
    assert (ratio(*seeing.erased_terms), ratio(*seeing.others_terms)) == (1, 0)
    assert (ratio(*blind.erased_terms), ratio(*blind.others_terms)) == (0, 0)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="got 1, 2, 1"):
        compare_erased([[]], [[], []], ["d1"])
    with pytest.raises(ValueError, match="got 0, 0, 0"):
        compare_erased([], [], [])
    with pytest.raises(ValueError, match="got 'heart'"):
        compare_erased([[]], [[]], ["heart"])
