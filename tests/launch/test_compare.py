"""Two measured runs: differences against numpy and a bootstrap by hand; what cannot be compared is refused."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix, f1_score

from deepcoro.errors import DataError, UserError
from deepcoro.evaluation.row_metrics import kappa_columns
from deepcoro.evaluation.rows import rows_path, write_rows
from deepcoro.launch.compare import compare

MRR, RANK = "retrieval/report_to_video/mrr", "retrieval/report_to_video/rank"
STUDY, MSE = "retrieval/study/report_to_video/mrr", "masked_modeling/mse"
COUNTS = tuple(f"captioning/{kind}" for kind in ("true_positives", "false_positives", "false_negatives"))


@pytest.fixture
def run(tmp_path):
    """``run("name", columns, ids=, fingerprint=, reconstruction_of=)`` -> the folder of a run with rows of val."""

    def make(name, columns, ids=None, fingerprint="f" * 64, reconstruction_of="clips"):
        size = len(next(iter(columns.values())))
        numbers = np.arange(size) if ids is None else np.asarray(ids)
        table = {
            "unit_id": [f"v{n}" for n in numbers],
            "study_id": [f"s{n // 2}" for n in numbers],
            "patient_id": [f"p{n // 4}" for n in numbers],
            "valid": [True] * size,
        }
        table |= {key: pa.array(np.asarray(values, float), from_pandas=True) for key, values in columns.items()}
        folder = tmp_path / name
        folder.mkdir()
        about = {"checkpoint": "6", "dataset_fingerprint": fingerprint, "reconstruction_of": reconstruction_of}
        write_rows(rows_path(folder, "val"), pa.table(table), about)
        return folder

    return make


def test_differences_are_paired_by_unit_and_drawn_by_patient(run, capsys):
    generator = np.random.default_rng(0)
    a = generator.random(80)
    b = a - 0.05 + 0.01 * generator.normal(size=80)  # a small difference beside a large spread: only pairs show it
    order = generator.permutation(80)
    difference = compare(run("a", {MRR: a}), run("b", {MRR: b[order]}, ids=order))[MRR]
    assert difference.value == pytest.approx((a - b).mean())
    by_patient = (a - b).reshape(20, 4).mean(axis=1)
    means = [generator.choice(by_patient, 20).mean() for _ in range(4000)]
    assert (difference.low, difference.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=5e-4)
    assert difference.low > 0
    out = capsys.readouterr().out
    assert "the same 80 units of 20 patients" in out and "3 seeds" in out
    line = next(line for line in out.splitlines() if line.startswith(MRR))
    assert line.split()[1:4] == [f"{a.mean():.3f}", f"{b.mean():.3f}", f"{(a - b).mean():.3f}"]
    assert line.endswith("yes")


def test_a_run_beside_itself_differs_in_nothing(run, capsys):
    columns = {MRR: np.random.default_rng(1).random(40), RANK: np.arange(40.0), COUNTS[0]: np.ones(40)}
    columns |= {COUNTS[1]: np.zeros(40), COUNTS[2]: np.arange(40) % 2}
    first, second = run("a", columns), run("b", columns)
    differences = compare(first, second)
    assert {m.value for m in differences.values()} == {m.low for m in differences.values()} == {0.0}
    assert " yes" not in capsys.readouterr().out


def test_exchanged_runs_give_the_difference_with_the_other_sign(run):
    a, b = np.random.default_rng(2).random((2, 40))
    folders = run("a", {MRR: a}), run("b", {MRR: b})
    there, back = compare(*folders)[MRR], compare(*folders[::-1])[MRR]
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))


def test_each_kind_of_metric(run):
    generator = np.random.default_rng(3)
    sides = []
    for _ in range(2):
        counts = {name: generator.integers(0, 4, 40) for name in COUNTS}
        study = np.repeat(generator.random(20), 2)
        sides.append({RANK: generator.integers(1, 9, 40), STUDY: study, **counts})
    for side in sides:  # one cine of the first study could not be read: the study still has its value
        side[STUDY] = np.where(np.arange(40) == 0, np.nan, side[STUDY])
    differences = compare(run("a", sides[0]), run("b", sides[1]))
    tp, fp, fn = (np.array([side[name].sum() for side in sides]) for name in COUNTS)
    expected = {
        "captioning/finding_f1": 2 * tp / (2 * tp + fp + fn),
        "captioning/finding_precision": tp / (tp + fp),
        "captioning/finding_recall": tp / (tp + fn),
        "retrieval/report_to_video/median_rank": [np.median(side[RANK]) for side in sides],
        STUDY: [side[STUDY][1::2].mean() for side in sides],
    }
    assert differences.keys() == expected.keys()
    for name, (first, second) in expected.items():
        assert differences[name].value == pytest.approx(first - second)
        assert differences[name].low <= differences[name].value <= differences[name].high


def test_what_is_made_of_several_columns_is_paired(run):
    """Against scikit-learn on the cells; and a sign that three patients have has no interval."""
    generator = np.random.default_rng(5)
    true = generator.integers(0, 5, (40, 6))
    sides, kappas = [], []
    for share in (0.8, 0.3):
        said = np.where(generator.random(true.shape) < share, true, generator.integers(0, 5, true.shape))
        confusion = np.stack([confusion_matrix(t, s, labels=range(5)) for t, s in zip(true, said, strict=True)])
        columns = {f"captioning/grade_kappa/{name}": column for name, column in kappa_columns(confusion).items()}
        for sign in ("stent", "cto"):
            there = (true > 2) & ((sign == "stent") | (np.arange(40) < 12)[:, None])
            hits = (there & (said > 2)).sum(axis=1)
            columns |= {f"captioning/{sign}/hits": hits, f"captioning/{sign}/missed": there.sum(axis=1) - hits}
            columns[f"captioning/{sign}/false"] = ((said > 2) & ~there).sum(axis=1)
        columns |= {
            "captioning/stenosis_mae/error": abs(true - said).sum(axis=1),
            "captioning/stenosis_mae/number": np.full(40, 6),
        }
        sides.append((columns, said))
        kappas.append(cohen_kappa_score(true.ravel(), said.ravel(), weights="quadratic", labels=range(5)))
    differences = compare(run("a", sides[0][0]), run("b", sides[1][0]))
    assert differences.keys() == {
        f"captioning/{name}" for name in ("stent_f1", "cto_f1", "stenosis_mae", "grade_kappa")
    }
    kappa = differences["captioning/grade_kappa"]
    assert kappa.value == pytest.approx(kappas[0] - kappas[1]) and 0 < kappa.low < kappa.value < kappa.high
    first, second = (f1_score((true > 2).ravel(), (said > 2).ravel()) for _, said in sides)
    stent = differences["captioning/stent_f1"]
    assert stent.value == pytest.approx(first - second) and 0 < stent.low < stent.high
    errors = [abs(true - said).mean() for _, said in sides]
    assert differences["captioning/stenosis_mae"].value == pytest.approx(errors[0] - errors[1])
    assert np.isnan(differences["captioning/cto_f1"].low)


def test_a_unit_without_a_value_in_one_run_counts_for_neither(run, capsys):
    a, b = np.arange(12.0), np.arange(12.0) * 2
    a[3], b[5] = np.nan, np.nan
    difference = compare(run("a", {MRR: a}), run("b", {MRR: b}))[MRR]
    assert difference.value == pytest.approx(np.nanmean(a - b))
    assert "Up to 2 units" in capsys.readouterr().out


def test_runs_on_other_units_are_refused_with_their_number(run):
    first = run("a", {MRR: np.ones(10)})
    with pytest.raises(DataError, match=r"3 units of the first and 1 of the second are not in the other, of 10 and 8"):
        compare(first, run("b", {MRR: np.ones(8)}, ids=[3, 4, 5, 6, 7, 8, 9, 77]))
    with pytest.raises(DataError, match=r"other datasets \(fingerprints ffffffffffff and gggggggggggg; 0 units"):
        compare(first, run("c", {MRR: np.ones(10)}, fingerprint="g" * 64))


def test_a_run_that_was_not_measured_is_told_how(run, tmp_path):
    with pytest.raises(UserError, match=rf"deepcoro evaluate {tmp_path}/other --split val"):
        compare(run("a", {MRR: np.ones(4)}), tmp_path / "other")


def test_reconstruction_of_other_clips_is_left_out(run, capsys):
    first = run("a", {MRR: np.ones(8), MSE: np.ones(8)}, reconstruction_of="8 frames")
    second = run("b", {MRR: np.ones(8), MSE: np.ones(8)}, reconstruction_of="16 frames")
    assert compare(first, second).keys() == {MRR}
    assert "8 frames and 16 frames" in capsys.readouterr().out


def test_runs_of_other_tasks(run, capsys):
    first, second = run("a", {MRR: np.ones(8), MSE: np.ones(8)}), run("b", {MRR: np.ones(8)})
    assert compare(first, second).keys() == {MRR}
    assert f"Measured in one of them only: {MSE}." in capsys.readouterr().out
    with pytest.raises(UserError, match="share no metric on val"):
        compare(second, run("c", {MSE: np.ones(8)}))


def test_grounding_is_compared_by_lesion(run):
    """A unit's value is a mean over its lesions: one with three counts three times, one with none not at all."""
    lesions = [3, 1, None, 1]
    sides = [[1, 0, None, 0.5], [1 / 3, 0, None, 1]]
    folders = [
        run(name, {"grounding/hit_rate": values, "grounding/lesions": lesions, "grounding/pointing": values}
            | {"grounding/pointed_lesions": [1, 1, None, None]})
        for name, values in zip("ab", sides, strict=True)
    ]  # fmt: skip
    differences = compare(*folders)
    assert differences.keys() == {"grounding/hit_rate", "grounding/pointing"}
    assert differences["grounding/hit_rate"].value == pytest.approx((3 + 0.5) / 5 - (1 + 1) / 5)
    assert differences["grounding/pointing"].value == pytest.approx(1 / 2 - 1 / 6)
