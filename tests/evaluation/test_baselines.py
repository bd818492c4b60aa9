"""Constant answers: the chosen set against all sets, and scores worked by hand."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcoro.evaluation.baselines import (
    Baseline,
    best_constant_grades,
    best_constant_set,
    fit_constants,
    measure_constants,
    strongest,
)
from deepcoro.metrics.agreement import weighted_kappa
from deepcoro.metrics.findings import segments_in_view, significant_segments
from deepcoro.reports.grammar import Finding, render_report
from deepcoro.reports.vocabulary import SEGMENTS

LAD, RCA = Finding("prox_lad", stenosis=80), Finding("mid_rca", stenosis=90)


def rows(*items):
    """(tree, findings) pairs as the arguments of ``fit_constants``."""
    trees = [tree for tree, _ in items]
    findings = [found for _, found in items]
    reports = [render_report(found, tree=tree) for tree, found in items]
    return reports, trees, significant_segments(findings), segments_in_view(trees, [None] * len(items))


TRAIN = rows(*[("left", [LAD])] * 5, *[("left", [])] * 2, *[("right", [RCA])] * 3, *[("right", [])] * 1)


@given(st.lists(st.integers(0, 9).flatmap(lambda d: st.tuples(st.just(d), st.integers(d, 12))), min_size=1, max_size=7))
def test_no_other_set_has_a_larger_f1(cells):
    diseased, num_rows = np.array(cells).T

    def f1(chosen: np.ndarray) -> float:
        below = num_rows[chosen].sum() + diseased.sum()
        return 2 * diseased[chosen].sum() / below if below else 0.0

    best = max(f1(np.array(chosen)) for chosen in product([False, True], repeat=len(cells)))
    assert f1(best_constant_set(diseased, num_rows)) == pytest.approx(best)


def test_constants_are_fitted_on_what_is_given():
    constants = fit_constants(*TRAIN)
    assert constants.report == render_report([LAD], tree="left")
    assert constants.tree == "left"
    assert constants.segments.tolist() == np.isin(SEGMENTS, ["prox_lad", "mid_rca"]).tolist()


def test_scores_worked_by_hand():
    test = rows(("left", [LAD]), ("left", []), ("right", [RCA]), ("right", [RCA]))
    scores = measure_constants(fit_constants(*TRAIN), *test)
    assert scores["exact_match"] == Baseline(1 / 4, "most common report")
    assert scores["tree_accuracy"] == Baseline(1 / 2, "always left")
    assert scores["finding_f1"].value == pytest.approx(6 / 7)  # hits 3, one false LAD, none missed
    assert scores["finding_f1_tree_oracle"].value == scores["finding_f1"].value  # the view has told it the tree


def test_strict_scores_make_the_tree_worth_knowing():
    scores = measure_constants(fit_constants(*TRAIN, strict=True), *TRAIN)
    assert scores["finding_f1_tree_oracle"].value == pytest.approx(16 / 19)
    # LAD alone: hits 5, 6 false, 3 missed; both: hits 8, 14 false, none missed. Both is better: 16 / 30 over 10 / 19.
    assert scores["finding_f1"].value == pytest.approx(16 / 30)


def test_the_best_constant_grades_are_those_of_brute_force():
    generator = np.random.default_rng(0)
    gained = 0
    for trial in range(12):
        rows = generator.integers(0, 9, (4, 5)) * (generator.random((4, 5)) < 0.6)
        rows[:, 0] += 8 * (trial % 2)  # most are normal
        best = -1.0
        for chosen in [*product(range(5), repeat=4), tuple(best_constant_grades(rows))]:
            confusion = np.zeros((5, 5))
            for segment, grade in enumerate(chosen):
                confusion[:, grade] += rows[segment]
            ours = float(np.nan_to_num(weighted_kappa(confusion), nan=-1))
            best = max(best, ours)
        assert ours == pytest.approx(best)  # the last one is ours
        gained += best > 0.1
    assert gained > 6  # no constant of one grade has more than 0
    assert best_constant_grades(np.zeros((4, 5))).shape == (4,)
    with pytest.raises(ValueError, match=r"\[S, G\], got shape \(5,\)"):
        best_constant_grades(np.zeros(5))


def test_the_oracle_is_never_behind_the_constant_where_both_were_fitted():
    generator = np.random.default_rng(0)
    for _ in range(20):
        trees = [str(tree) for tree in generator.choice(["left", "right"], 30)]
        train = (
            ["text"] * 30,
            trees,
            generator.random((30, len(SEGMENTS))) < 0.2,
            segments_in_view(trees, [None] * 30),
        )
        for strict in (False, True):
            scores = measure_constants(fit_constants(*train, strict=strict), *train)
            assert scores["finding_f1_tree_oracle"].value >= scores["finding_f1"].value - 1e-12


def test_a_data_set_without_disease_or_trees_still_has_baselines():
    reports, _, significant, view = rows(("left", []), ("left", []))
    trees = [None, None]
    scores = measure_constants(fit_constants(reports, trees, significant, view), reports, trees, significant, view)
    assert scores["exact_match"].value == 1
    assert np.isnan(scores["tree_accuracy"].value) and np.isnan(scores["finding_f1"].value)


def test_the_strongest_is_the_hardest_to_beat():
    chance, blind, unknown = Baseline(0.1, "chance"), Baseline(0.3, "blind"), Baseline(float("nan"), "unknown")
    assert strongest(unknown, chance, blind) is blind
    assert strongest(unknown, chance, blind, lower_is_better=True) is chance
    assert strongest(unknown) is unknown


def test_mistakes_are_named():
    reports, trees, significant, view = TRAIN
    with pytest.raises(ValueError, match="got 10, 11, 11, 11"):
        fit_constants(reports[:-1], trees, significant, view)
    with pytest.raises(ValueError, match="1 or more; got 0, 0, 0, 0"):
        fit_constants([], [], significant[:0], view[:0])
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        best_constant_set([1, 1], [1])
    with pytest.raises(ValueError, match="at least as large"):
        best_constant_set([2], [1])
    with pytest.raises(ValueError, match="a tree for each of 11 reports, got 10"):
        measure_constants(fit_constants(*TRAIN), reports, trees[:-1], significant, view)
    with pytest.raises(ValueError, match="1 baseline or more"):
        strongest()


def test_constants_of_findings_by_hand():
    found = [
        [Finding("prox_lad", stenosis=10, thrombus=True)],
        [Finding("prox_lad", stenosis=80), Finding("d1", stenosis=90)],
        [Finding("prox_lad", stenosis=0, thrombus=True)],
        [],
    ]
    trees, dominances = ["left", "left", "left", "right"], ["right", None, "left", "left"]
    view = segments_in_view(trees, dominances)
    significant = significant_segments(found)
    constants = fit_constants(["a"] * 4, trees, significant, view, findings=found, dominances=dominances)
    assert constants.dominance == "left"
    percents, lesions, grades, often = (
        dict(zip(SEGMENTS, table.tolist(), strict=True))
        for table in (constants.percents, constants.lesion_percents, constants.grades, constants.often["thrombus"])
    )
    assert (percents["prox_lad"], lesions["prox_lad"]) == (10, 45) and (percents["d1"], lesions["d1"]) == (0, 90)
    assert percents["mid_rca"] == lesions["mid_rca"] == grades["mid_rca"] == 0
    assert [segment for segment, there in often.items() if there] == ["prox_lad"]
    assert constants.signs["thrombus"].tolist() == [segment == "prox_lad" for segment in SEGMENTS]  # 2 of the 3 left
    assert constants.signs["stenosis_50"].tolist() == [segment in ("prox_lad", "d1") for segment in SEGMENTS]
    assert not constants.signs["cto"].any()
    share = dict(zip(SEGMENTS, constants.prevalence.tolist(), strict=True))
    assert share["prox_lad"] == share["d1"] == 1 / 3 and share["mid_rca"] == 0
    without = fit_constants(["a"] * 4, trees, significant, view)
    assert (without.signs, without.often, without.dominance) == ({}, {}, None)
    assert without.prevalence is without.percents is without.lesion_percents is without.grades is None
    with pytest.raises(ValueError, match="each of 4 reports or of none, got 3"):
        fit_constants(["a"] * 4, trees, significant, view, findings=found[:3])


def test_a_segment_is_said_of_the_rows_that_show_it():
    clot, other = Finding("prox_lad", stenosis=50, thrombus=True), Finding("mid_rca", stenosis=50, thrombus=True)
    found = [[clot], [clot], [], *[[other]] * 4, *[[]] * 16]
    trees = ["left"] * 3 + ["right"] * 20
    view = segments_in_view(trees, [None] * 23)
    constants = fit_constants(["a"] * 23, trees, significant_segments(found), view, findings=found)
    # Of 6 with a clot, the LAD finds 2 in 3 rows: 4 / 9 > 12 / 29 with the RCA's 4 in 20 > 8 / 26 of the RCA alone.
    assert constants.signs["thrombus"].tolist() == [segment == "prox_lad" for segment in SEGMENTS]
