"""Metrics of written reports: by hand, against scikit-learn, and the laws that hold for any reports."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, f1_score, precision_score, recall_score

from deepcoro.evaluation.baselines import fit_constants
from deepcoro.evaluation.captioning import measure_captioning
from deepcoro.evaluation.row_metrics import ROW_METRICS
from deepcoro.evaluation.said import parse_all
from deepcoro.evaluation.truth import Truth
from deepcoro.evaluation.written import measure_written
from deepcoro.metrics.findings import segments_in_view, significant_segments
from deepcoro.reports.grammar import Finding, render_report
from deepcoro.reports.vocabulary import DOMINANCES, SEGMENTS, grade, segments_of_tree

LAD80, LAD60 = Finding("prox_lad", stenosis=80), Finding("prox_lad", stenosis=60)
RCA = Finding("mid_rca", stenosis=100, occlusion="cto", calcification="severe")


def truth_of(rows, patients=None):
    """``rows`` of (findings, tree, dominance)."""
    texts = [render_report(found, dominance, tree) for found, tree, dominance in rows]
    seen = [segments_of_tree(tree, d) if tree else SEGMENTS for _, tree, d in rows]
    findings = [[f for f in found if f.segment in kept] for (found, _, _), kept in zip(rows, seen)]
    trees, dominances = [tree for _, tree, _ in rows], [d for _, _, d in rows]
    patients = np.arange(len(rows)) if patients is None else np.array(patients)
    return Truth(texts, findings, trees, dominances, [frozenset()] * len(rows), patients, patients)


def measured(texts, truth, constants=None, nearest=None, whole=True):
    view = segments_in_view(truth.trees, truth.dominances)
    metrics, columns = measure_written(parse_all(texts), truth, view, constants, nearest, 20, whole)
    return {name.removeprefix("captioning/"): metric for name, metric in metrics.items()}, columns


def constants_of(truth):
    view = segments_in_view(truth.trees, truth.dominances)
    return fit_constants(
        truth.texts,
        truth.trees,
        significant_segments(truth.findings),
        view,
        findings=truth.findings,
        dominances=truth.dominances,
    )


def test_four_studies_by_hand():
    truth = truth_of(
        [
            ([LAD80], None, "right"),
            ([LAD60, RCA], None, "right"),
            ([], None, "left"),
            ([Finding("d1", stent=True)], None, None),
        ]
    )
    texts = [
        render_report([LAD60], "right"),  # 20 % too little
        render_report([LAD80, Finding("om1", thrombus=True)], "left"),  # the RCA missed, a thrombus invented
        render_report([], "left"),
        "the heart is fine",  # nothing that can be read
    ]
    metrics, columns = measured(texts, truth)
    value = {name: metric.value for name, metric in metrics.items()}
    assert value["stenosis_50_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1))  # LAD twice; the RCA missed
    assert value["stenosis_70_f1"] == 0 and value["stenosis_70_precision"] == 0 and value["stenosis_50_precision"] == 1
    assert value["stenosis_50_recall"] == pytest.approx(2 / 3)
    assert value["stenosis_50_macro_f1"] == pytest.approx((1 + 0) / 2)
    assert value["stenosis_50_f1/prox_lad"] == 1 and value["stenosis_50_recall/mid_rca"] == 0
    assert value["cto_f1"] == value["calcification_f1"] == value["stent_f1"] == 0
    assert "thrombus_f1" not in value  # nobody has it
    assert "stenosis_70_f1/prox_lad" not in value  # the same as finding_f1/prox_lad
    # Numbers on both sides: 18 segments of each of four studies, without the om1, of which no percent is said, and the
    # d1, of which none is known; silence is 0, of a tree too that nothing is said of. The errors are 20, 20, and 100 in
    # the RCA. Of the cells with a true number three of four studies tell, without the om1.
    assert value["stenosis_mae"] == pytest.approx((20 + 20 + 100) / (4 * 18 - 2))
    assert value["stenosis_told"] == pytest.approx((3 * 18 - 1) / (4 * 18 - 1))
    assert value["stenosis_mae_lesions"] == pytest.approx((20 + 20 + 100) / 3)
    true, said = np.zeros((2, 70), int)
    true[:3], said[:3] = [3, 2, 4], [2, 3, 0]
    assert value["grade_kappa"] == pytest.approx(cohen_kappa_score(true, said, weights="quadratic", labels=range(5)))
    # Missed: the RCA's CTO (a stenosis too, and counted once) and its calcium, and the stent. Invented: the thrombus.
    assert columns["captioning/missed_findings"].tolist() == [0, 2, 0, 1] and value["missed_findings"] == 0.75
    assert columns["captioning/hallucinated_findings"].tolist() == [0, 1, 0, 0]
    assert value["hallucinated_findings"] == 0.25
    assert value["dominance_accuracy"] == pytest.approx(2 / 3)
    np.testing.assert_array_equal(columns["captioning/dominance_accuracy"], [1, 0, 1, np.nan])


def test_a_clip_is_asked_for_its_own_tree():
    truth = truth_of([([LAD80, RCA], "left", "right"), ([LAD80, RCA], "right", "right")])
    wrong, _ = measured([truth.texts[1], truth.texts[1]], truth)
    assert "dominance_accuracy" not in wrong
    assert wrong["finding_recall/prox_lad"].value == 0 and wrong["finding_f1/mid_rca"].value == 1
    assert wrong["hallucinated_findings"].value == 1  # the other artery's CTO and calcium
    assert wrong["stenosis_mae_lesions"].value == 80 / 2  # silence of the left tree
    # 13 segments of the left tree, of which the report says nothing, and 5 of the right, of which it tells.
    assert wrong["stenosis_mae"].value == pytest.approx(80 / 18) and wrong["stenosis_told"].value == 5 / 18


def test_an_ifr_counts_apart_from_all_that_a_picture_shows():
    truth = truth_of([([Finding("mid_lad", ifr=0.8), LAD80], "left", None), ([LAD80], "left", None)])
    reports = [[LAD60, Finding("mid_lad", ifr=0.8)], [LAD60], [LAD60, Finding("d1", ifr=0.8)]]
    told, silent, invented = (measured([render_report(r, tree="left")] * 2, truth)[0] for r in reports)
    apart = [metrics.pop("not_visible/ifr_f1").value for metrics in (told, silent, invented)]
    assert apart == [2 / 3, 0, 0] and silent["stenosis_mae"].value > 0  # 20 % off: the number of cells counts
    assert invented.keys() == silent.keys()
    assert {name: metric.value for name, metric in invented.items()} == {
        n: metric.value for n, metric in silent.items()
    }
    assert {name: metric.value for name, metric in told.items()} == {n: metric.value for n, metric in silent.items()}


def test_constants_beside_the_metrics():
    train = truth_of([([LAD80], None, "right")] * 3 + [([LAD60, RCA], None, "left")] * 2)
    constants = constants_of(train)
    assert constants.dominance == "right"
    test = truth_of([([LAD80], None, "right"), ([RCA], None, "left")])
    beside = {n: (m.baseline, m.baseline_name) for n, m in measured(test.texts, test, constants)[0].items()}
    # Of five, all have 60 % or more in the LAD and two the RCA: at 50 % the LAD alone pays most, as 10 / 12 > 14 / 17;
    # at 70 %, where three and two have it, both do: 10 / 15 > 6 / 10. The most common report has the LAD too.
    assert beside["stenosis_50_f1"] == (2 / 4, "most common report")  # a hit, one false, one missed
    assert beside["stenosis_70_f1"] == (pytest.approx(4 / 6), "always the same 2 segments")
    assert beside["cto_f1"] == (pytest.approx(2 / 3), "always the same 1 segments")
    assert beside["stenosis_50_precision"] == (1 / 2, "most common report") and beside["stenosis_50_recall"][0] == 1
    assert beside["stenosis_50_macro_f1"] == (pytest.approx(2 / 3), "always said")
    assert beside["finding_f1/prox_lad"] == (pytest.approx(2 / 3), "always said")
    assert beside["stenosis_mae_lesions"] == (0, "median of each segment")  # 80 and 100; the common report has 80 and 0
    assert beside["stenosis_mae"] == (pytest.approx(180 / 36), "most common report")
    assert beside["missed_findings"] == (1, "most common report")
    assert beside["hallucinated_findings"] == (1 / 2, "most common report")
    assert beside["stenosis_told"] == (1, "most common report")
    assert beside["dominance_accuracy"] == (1 / 2, "always right")
    true = np.zeros((2, 18), int)
    true[0, SEGMENTS.index("prox_lad")], true[1, SEGMENTS.index("mid_rca")] = 3, 4
    always = np.tile(constants.grades, (2, 1))
    kappa = cohen_kappa_score(true.ravel(), always.ravel(), weights="quadratic", labels=range(5))
    assert beside["grade_kappa"] == (pytest.approx(kappa), "always the same grades") and kappa > 0.1


def test_no_constant_text_beats_what_stands_beside_it():
    """Where the constants are fitted on the rows that are measured, no text for all does better."""
    # The most common report is of a healthy right tree: the best constants are others.
    rows = (
        [([], "right", "right")] * 5
        + [([LAD80], "left", "right")] * 4
        + [([RCA, Finding("d1", 70)], None, "right")] * 2
    )
    rows += [([LAD60, Finding("d1", 90, stent=True)], "left", "left"), ([Finding("d1", 50), LAD80], None, "right")]
    rows += [([Finding("mid_rca", 30)], "right", "left"), ([Finding("d1", 55)], "left", None)]
    truth = truth_of(rows)
    constants = constants_of(truth)
    texts = {*truth.texts, render_report([Finding(s, 70) for s in SEGMENTS], "right"), "x", ""}
    texts |= {render_report([Finding(s, percent)], "right") for s in SEGMENTS for percent in (50, 80)}
    generator = np.random.default_rng(0)
    for _ in range(40):
        said = [s for s in SEGMENTS if generator.random() < 0.15]
        texts.add(render_report([Finding(s, int(generator.integers(1, 99))) for s in said], "right"))
        texts.add(render_report([LAD80, *(Finding(s, 60) for s in said if s != "prox_lad")], "right", "left"))
    bounded = 0
    for text in sorted(texts):
        metrics, _ = measured([text] * len(rows), truth, constants)
        for name, metric in metrics.items():
            if name.startswith("stenosis_mae"):
                assert metric.value >= metric.baseline - 1e-9, (name, text)
            elif "_findings" not in name and name != "stenosis_told":
                assert metric.value <= metric.baseline + 1e-9, (name, text)
                bounded += 1
    assert bounded > 30 * len(texts)


def test_a_report_of_the_other_tree_is_not_spared_what_is_in_view():
    truth = truth_of([([LAD80], "left", "right")] * 2 + [([Finding("mid_rca", 60)], "right", "right")] * 2)
    honest = [truth.texts[0], render_report([], "right", "left"), truth.texts[2], render_report([], "right", "right")]
    elsewhere = [truth.texts[0], "x", truth.texts[2], render_report([], "right", "left")]
    right, evading = (measured(texts, truth)[0] for texts in (honest, elsewhere))
    for name in ("stenosis_mae", "stenosis_mae_lesions", "grade_kappa"):
        assert right[name].value == evading[name].value, name
    assert right["stenosis_told"].value == 1 and evading["stenosis_told"].value == 0.5


def test_few_who_have_it_have_no_interval():
    found = [[Finding("prox_lad", 80, thrombus=n < 1, stent=n < 5)] for n in range(40)]
    truth = truth_of([(of_row, None, "right") for of_row in found])
    metrics, _ = measured(truth.texts, truth)
    rare, enough = metrics["thrombus_f1"], metrics["stent_f1"]
    assert rare.value == 1 and np.isnan(rare.low) and np.isnan(rare.high)
    # Invented in all the others, F1 has a value in every resample; still one patient tells nothing of others.
    invented = [render_report([Finding("prox_lad", 80, thrombus=True)], "right")] * 40
    assert np.isnan(measured(invented, truth)[0]["thrombus_f1"].low)
    assert (enough.low, enough.high) == (1, 1)
    # Five rows of one patient are one patient.
    alone, _ = measured(truth.texts, truth_of([(of_row, None, "right") for of_row in found], np.arange(40) // 5))
    assert np.isnan(alone["stent_f1"].low) and not np.isnan(alone["finding_f1/prox_lad"].low)


def test_patients_and_not_rows_are_drawn():
    """All patients have the same rows, so that no resample differs."""
    rows = [([LAD80, RCA], None, "right"), ([LAD60], None, "right"), ([], None, "right")] * 8
    truth = truth_of(rows, np.arange(24) // 3)
    texts = [render_report([LAD80], "right"), render_report([LAD80, RCA], "right"), "x"] * 8
    metrics, _ = measure_captioning(texts, truth, constants_of(truth), None, None, 50)
    checked = 0
    for name, metric in metrics.items():
        if not np.isnan(metric.low):
            assert (metric.low, metric.high) == pytest.approx((metric.value, metric.value)), name
            checked += 0 < metric.value < 1
    assert checked > 20
    for name in (
        "exact_match",
        "finding_f1",
        "finding_precision",
        "finding_recall",
        "readable",
        "cto_f1",
        "grade_kappa",
    ):
        assert not np.isnan(metrics[f"captioning/{name}"].low), name


def test_rows_of_which_nothing_is_known_count_for_nothing():
    known = truth_of([([LAD80], None, "right"), ([RCA], None, "right")] * 5)
    both = truth_of([([LAD80], None, "right"), ([RCA], None, "right"), ([], None, "right")] * 5)
    both = replace(both, known=np.arange(15) % 3 != 2)
    wrong = render_report([Finding("d1", 90, stent=True)], "right")
    first, _ = measure_captioning([known.texts[0]] * 10, known, None, None, None, 20)
    second, columns = measure_captioning([known.texts[0], known.texts[0], wrong] * 5, both, None, None, None, 20)
    assert second["captioning/truth_read"].value == pytest.approx(2 / 3) and "captioning/truth_read" not in first
    for name in ("finding_f1", "finding_precision", "stenosis_mae", "hallucinated_findings", "grade_kappa", "cto_f1"):
        assert first[f"captioning/{name}"].value == second[f"captioning/{name}"].value, name
    assert np.isnan(columns["captioning/true_positives"][2::3]).all() and np.isnan(columns["captioning/cto/hits"][2])
    assert not np.isnan(columns["captioning/exact_match"]).any()


def test_a_whole_study_has_no_tree_to_be_told():
    truth = truth_of([([LAD80], None, "right"), ([RCA], None, "right")] * 3)
    metrics, _ = measure_captioning(truth.texts, truth, constants_of(truth), None, None, 20)
    assert "captioning/finding_f1_beside_tree_oracle" not in metrics and "captioning/tree_accuracy" not in metrics
    for name in ("finding_precision", "finding_recall", "readable"):
        assert not np.isnan(metrics[f"captioning/{name}"].baseline)
    clips = truth_of([([LAD80], "left", "right"), ([RCA], "right", "right")] * 3)
    metrics, _ = measure_captioning(clips.texts, clips, constants_of(clips), None, None, 20)
    assert "captioning/finding_f1_beside_tree_oracle" in metrics


def test_sums_of_rows_give_back_the_metrics():
    generator = np.random.default_rng(0)
    rows = [
        (
            [Finding(s, int(generator.integers(0, 99)), stent=True) for s in SEGMENTS if generator.random() < 0.3],
            None,
            "right",
        )
        for _ in range(20)
    ]
    truth = truth_of(rows)
    texts = [truth.texts[n] for n in generator.permutation(20)]
    metrics, columns = measured(texts, truth)
    found = 0
    for name, metric in ROW_METRICS.items():
        if all(column in columns for column in metric.columns):
            sums = np.array([columns[column].sum() for column in metric.columns])
            assert float(metric.value(sums)) == pytest.approx(metrics[name.removeprefix("captioning/")].value), name
            found += 1
    assert found == 3 + 3 + 1 + 4  # stenosis at 50 and at 70 %, stents, and three of percents with kappa


def test_the_nearest_neighbour_lends_its_report():
    truth = truth_of([([LAD80], None, "right"), ([RCA], None, "right")])
    lent = [truth.texts[0], truth.texts[0]]
    metrics, _ = measured(truth.texts, truth, nearest=("nearest of 9", lent))
    alone, _ = measured(lent, truth)
    beside = {name for name in metrics if name.endswith("_beside_nearest_neighbour")}
    for plain in ("stenosis_50_f1", "finding_macro_f1", "cto_f1", "grade_kappa", "missed_findings"):
        assert f"{plain}_beside_nearest_neighbour" in beside
    for name in beside:
        plain = name.removesuffix("_beside_nearest_neighbour")
        assert metrics[name].value == metrics[plain].value and metrics[name].baseline_name == "nearest of 9"
        assert metrics[name].baseline == alone[plain].value


def test_a_text_put_together_of_several_is_not_asked_for_the_dominance():
    truth = truth_of([([LAD80], None, "right")])
    metrics, columns = measured(truth.texts, truth, whole=False)
    assert "dominance_accuracy" not in metrics and "captioning/dominance_accuracy" not in columns


@st.composite
def findings(draw):
    found = []
    for segment in sorted(draw(st.sets(st.sampled_from(SEGMENTS), max_size=4)), key=SEGMENTS.index):
        occlusion = draw(st.sampled_from(["none", "none", "total", "cto"]))
        stenosis = 100 if occlusion != "none" else draw(st.none() | st.integers(0, 99))
        calcification = draw(st.sampled_from(["none", "minimal", "moderate", "severe"]))
        found.append(
            Finding(segment, stenosis, occlusion, None, calcification, draw(st.booleans()), draw(st.booleans()))
        )
    return found


ROWS = st.lists(
    st.tuples(findings(), st.sampled_from([None, "left", "right"]), st.none() | st.sampled_from(DOMINANCES)),
    min_size=2,
    max_size=6,
)


@settings(deadline=None, max_examples=40)
@given(ROWS)
def test_perfect_reports_have_the_best_values(rows):
    truth = truth_of(rows)
    metrics, columns = measured(truth.texts, truth, constants_of(truth))
    for name, metric in metrics.items():
        best = 0 if "mae" in name or name.endswith(("hallucinated_findings", "missed_findings")) else 1
        assert metric.value == best, name
        if not np.isnan(metric.baseline):
            assert metric.baseline >= 0 if best == 0 else metric.baseline <= 1
    for name, column in columns.items():
        if name.count("/") == 1:  # the others are parts of metrics
            assert np.nanmean(column) == (1 if "dominance" in name else 0)


@settings(deadline=None, max_examples=40)
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_reports_does_not_matter(rows, random):
    written = truth_of(random.sample(rows, len(rows))).texts  # of others, so full of mistakes
    order = random.sample(range(len(rows)), len(rows))
    patients = [f"patient {n // 2}" for n in range(len(rows))]
    here, _ = measured(written, truth_of(rows, patients))
    there, _ = measured([written[n] for n in order], truth_of([rows[n] for n in order], [patients[n] for n in order]))
    assert here.keys() == there.keys()
    for name, metric in here.items():
        other = there[name]
        assert (metric.value, metric.low, metric.high) == pytest.approx(
            (other.value, other.low, other.high), nan_ok=True
        )


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(findings(), findings()), min_size=2, max_size=6))
def test_studies_against_scikit_learn(pairs):
    """Whole studies, row by row and segment by segment in plain Python, and then scikit-learn."""
    truth = truth_of([(true, None, "right") for true, _ in pairs])
    metrics, _ = measured([render_report(said, "right") for _, said in pairs], truth)

    def table(side, holds):
        return np.array([[any(f.segment == s and holds(f) for f in pair[side]) for s in SEGMENTS] for pair in pairs])

    references = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    for floor in (50, 70):
        true, said = (table(side, lambda f, floor=floor: (f.stenosis or 0) >= floor) for side in (0, 1))
        diseased = np.flatnonzero(true.any(axis=0))
        for score, reference in references.items():
            if len(diseased) == 0:
                assert f"stenosis_{floor}_{score}" not in metrics
                continue
            if score != "precision" or said.any():
                micro = metrics[f"stenosis_{floor}_{score}"].value
                assert micro == pytest.approx(reference(true, said, average="micro", zero_division=0))
            macro = reference(true, said, average="macro", labels=diseased, zero_division=0)
            assert metrics[f"stenosis_{floor}_macro_{score}"].value == pytest.approx(macro)

    numbers = []  # of cells where both give one
    lesions = []
    for true, said in pairs:
        for segment in SEGMENTS:
            a, b = ([f.stenosis for f in side if f.segment == segment] or [0] for side in (true, said))
            if a[0] is not None and b[0] is not None:
                numbers.append((a[0], b[0]))
            if a[0]:
                lesions.append(abs(a[0] - (b[0] or 0)))
    assert metrics["stenosis_mae"].value == pytest.approx(np.mean([abs(a - b) for a, b in numbers]))
    assert ("stenosis_mae_lesions" in metrics) == bool(lesions)
    if lesions:
        assert metrics["stenosis_mae_lesions"].value == pytest.approx(np.mean(lesions))
    words = ["none", "mild", "moderate", "severe", "critical"]
    graded = [[words.index(grade(percent)) for percent in pair] for pair in numbers]
    if len({g for pair in graded for g in pair}) > 1:
        kappa = cohen_kappa_score(*zip(*graded), weights="quadratic", labels=range(5))
        assert metrics["grade_kappa"].value == pytest.approx(kappa, abs=1e-9)
