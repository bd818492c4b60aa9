"""From records to metrics and rows: every unit once, the nearest neighbour, what has no value is left null."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import DataError, UserError
from deepcoro.evaluation.baselines import Constants
from deepcoro.evaluation.evaluator import fit_baselines, measure, predict, summarise
from deepcoro.evaluation.neighbours import Neighbours, fit_neighbours
from deepcoro.evaluation.rows import read_rows, row_table, rows_path, write_rows
from deepcoro.evaluation.truth import Truth
from deepcoro.launch.metric_names import reported_metrics
from deepcoro.reports.grammar import Finding, render_report
from deepcoro.reports.vocabulary import SEGMENTS

LAD = {"segment": "prox_lad", "stenosis": 80, "occlusion": "none"}
RCA = {"segment": "mid_rca", "stenosis": 100, "occlusion": "total"}


@pytest.fixture(scope="module")
def dataset(make_dataset, tmp_path_factory):
    """Six validation studies of a left and a right cine each; v10 and v11 belong to a study without a word."""
    folder = tmp_path_factory.mktemp("measured")
    found = [[LAD], [LAD, RCA], [], [RCA], []]
    studies = [{"study_id": f"s{n}", "split": "val", "dominance": "right", "findings": f} for n, f in enumerate(found)]
    studies += [{"study_id": "s5", "split": "val"}]
    studies += [{"study_id": f"t{n}", "dominance": "right", "findings": f} for n, f in enumerate(found[:3])]
    names = [f"s{n}" for n in range(6)] + [f"t{n}" for n in range(3)]
    trees = ["left", "right"] * len(names)
    videos = [
        {"video_id": f"v{n:02}", "study_id": names[n // 2], "coronary_tree": tree, "uri": "videos/one.avi"}
        for n, tree in enumerate(trees)
    ]
    return PreparedDataset.open(make_dataset(folder, studies, videos))


def records_of(units, texts, seed=0, invalid=()):
    """Records as ``predict`` makes them: random embeddings, ``texts`` written, an error of 0.1 for each unit."""
    generator = np.random.default_rng(seed)
    names = ("normalised", "normalised_patch_mean", "pixels", "patch_mean", "interpolation", "interpolation_same_mean")
    records = []
    for unit in range(len(units)):
        video, text = generator.normal(size=(2, 8)).astype(np.float32)
        found = {"video_embedding": video, "text_embedding": text, "generated": texts[unit]}
        found["reconstruction"] = dict.fromkeys(names, 0.1 * unit)
        records.append({"unit": unit, "valid": unit not in invalid, **(found if unit not in invalid else {})})
    return records


@pytest.fixture
def config(tiny_config):
    return tiny_config("evaluation.num_resamples=50")


def test_features_are_not_measured_as_pixels(tiny_config, tiny_model, random_batch):
    alone = ("loss.weights.contrastive=0", "loss.weights.captioning=0")
    for target, measured in (("pixels", True), ("ema", False)):
        config = tiny_config(*alone, f"masked_modeling.target={target}")
        rows = {name: value.numpy() for name, value in random_batch(config).items()}
        found = list(predict(tiny_model(config), config, [rows], None, torch.device("cpu")))
        assert len(found) == 4 and all(("reconstruction" in record) == measured for record in found)
        assert ("masked_modeling/mse" in reported_metrics(config)) == measured


def test_what_is_known_of_units(dataset, config):
    units = dataset.units("val")
    truth = Truth.of(units, np.arange(12), config)
    assert truth.texts[0] == render_report([Finding.from_dict(LAD)], "right", "left") and truth.texts[10] is None
    assert truth.statements[0] == {"left", Finding.from_dict(LAD)}
    assert truth.statements[1] == {"right"} and truth.statements[3] == {"right", Finding.from_dict(RCA)}
    assert truth.take(np.array([3, 0])).studies.tolist() == ["s1", "s0"]
    whole = Truth.of(dataset.units("val", "study"), np.arange(6), config)
    assert whole.statements[1] == {Finding.from_dict(LAD), Finding.from_dict(RCA)} and whole.trees == [None] * 6


def test_a_report_in_free_words_is_read(dataset_folder, config):
    units = PreparedDataset.open(dataset_folder).units("train")
    row = units.videos["video_id"].to_pylist().index("v2")
    assert Truth.of(units, np.array([row]), config).statements == [frozenset()]  # "Normal coronary arteries."


def test_metrics_and_columns_of_a_split(dataset, config):
    units = dataset.units("val")
    texts = [text or "" for text in Truth.of(units, np.arange(12), config).texts]
    written = [texts[0], texts[1], texts[0], texts[1], *texts[4:]]  # v03 has an occlusion, and none is written
    measured = measure(records_of(units, written, invalid=(4,)), units, None, config)
    metrics, columns = measured.metrics, measured.columns
    assert metrics["data/valid_share"].value == pytest.approx(11 / 12)
    exact = columns["captioning/exact_match"]
    assert np.isnan(exact[[4, 10, 11]]).all() and metrics["captioning/exact_match"].value == np.nanmean(exact)
    assert np.nansum(exact) == 8 and exact[3] == 0
    read = [n for n in range(10) if n != 4]
    true = np.zeros((12, len(SEGMENTS)), int)
    true[[0, 2], SEGMENTS.index("prox_lad")] = true[[3, 7], SEGMENTS.index("mid_rca")] = 1
    said = true.copy()
    said[3] = 0
    reference = f1_score(true[read], said[read], average="micro")
    assert metrics["captioning/finding_f1"].value == pytest.approx(reference)
    assert columns["captioning/false_negatives"][3] == 1 and np.nansum(columns["captioning/true_positives"]) == 3
    assert columns["masked_modeling/mse"][11] == pytest.approx(1.1) and np.isnan(columns["masked_modeling/mse"][4])
    assert np.isnan(columns["retrieval/report_to_video/rank"][[4, 10, 11]]).all()
    assert "retrieval/study/report_to_video/mrr" in metrics
    assert "captioning/exact_match_beside_nearest_neighbour" not in metrics
    assert summarise(records_of(units, written, invalid=(4,)), units, None, config) == metrics


def test_neither_the_order_of_records_nor_the_number_of_workers_matters(dataset, config):
    units = dataset.units("val")
    records = records_of(units, ["Left coronary tree."] * 12)
    whole = measure(records, units, None, config)
    for world in (2, 5):
        shares = [record for rank in range(world) for record in records[rank::world]]
        parts = measure(shares, units, None, config)
        assert parts.metrics == whole.metrics
        for name, values in whole.columns.items():
            np.testing.assert_array_equal(parts.columns[name], values)


def test_a_unit_counts_once(dataset, config):
    units = dataset.units("val")
    records = records_of(units, [""] * 12)
    with pytest.raises(ValueError, match="one record a unit, got 13"):
        measure([*records, records[3]], units, None, config)
    with pytest.raises(ValueError, match="one record of each of 12 units, got 11"):
        row_table(units, records[:-1], {})


def test_nothing_that_could_be_read(dataset, config):
    units = dataset.units("val")
    measured = measure(records_of(units, [""] * 12, invalid=range(12)), units, None, config)
    assert measured.metrics.keys() == {"data/valid_share"} and measured.columns == {}


def test_units_that_are_studies_have_one_level(dataset, config):
    units = dataset.units("val", "study")
    metrics = measure(records_of(units, [""] * 6), units, None, config).metrics
    assert "retrieval/report_to_video/mrr" in metrics
    assert not any(
        name.startswith("retrieval/study/") or name.endswith("beside_tree_oracle")
        for name in metrics
        if "retrieval" in name
    )


def test_nearest_neighbour_by_hand(dataset, config):
    train, units = dataset.units("train"), dataset.units("val")
    # Two training cines: a diseased left one on the first axis, a normal right one on the second.
    lent = [{"unit": u, "valid": True, "video_embedding": v} for u, v in ((1, [0.0, 3.0]), (0, [2.0, 0.0]))]
    lent.append({"unit": 2, "valid": False})
    neighbours = fit_neighbours(lent, train, config)
    assert neighbours is not None and len(neighbours.texts) == 2
    records = records_of(units, [""] * 12)
    for record in records:
        left = record["unit"] % 2 == 0
        record["video_embedding"] = np.array([1.0, 0.1] if left else [0.1, 1.0], np.float32)
        record["text_embedding"] = record["video_embedding"]
    metrics = measure(records, units, None, config, neighbours).metrics
    beside = metrics["captioning/exact_match_beside_nearest_neighbour"]
    # Right for the left cines of s0 and s1, and for the right ones of s0, s2 and s4: 5 of 10.
    assert beside.baseline == 0.5 and beside.baseline_name == "nearest of 2"
    assert beside.value == metrics["captioning/exact_match"].value
    # Claims the LAD in five left cines, where two have it; of the two in the RCA it finds none.
    assert metrics["captioning/finding_f1_beside_nearest_neighbour"].baseline == pytest.approx(2 * 2 / (2 * 2 + 3 + 2))


def test_nearest_is_the_largest_cosine():
    generator = np.random.default_rng(0)
    lent, asked = generator.normal(size=(50, 4)), generator.normal(size=(30, 4))
    unit = lent / np.linalg.norm(lent, axis=1, keepdims=True)
    neighbours = Neighbours(unit.astype(np.float32), [""] * 50, np.zeros((50, len(SEGMENTS)), bool))
    assert neighbours.nearest(asked).tolist() == [max(range(50), key=lambda i: unit[i] @ row) for row in asked]


def test_neighbours_need_a_text(dataset, config):
    silent = [{"unit": 10, "valid": True, "video_embedding": [1.0]}]
    assert fit_neighbours(silent, dataset.units("val"), config) is None


def test_probabilities_of_findings_are_measured_where_a_model_gives_them(dataset, config):
    units = dataset.units("val")
    records = records_of(units, [""] * 12)
    without = measure(records, units, None, config).metrics
    assert not any("segment_" in name for name in without)
    for record in records:  # sure of the LAD of v00 and not of that of v02; the RCA as chance has it
        record["segment_probabilities"] = np.full(len(SEGMENTS), 0.5)
        record["segment_probabilities"][SEGMENTS.index("prox_lad")] = {0: 0.9, 2: 0.1}.get(record["unit"], 0.5)
    metrics = measure(records, units, None, config).metrics
    assert {name for name in metrics if name not in without} == {
        f"captioning/segment_{name}"
        for name in (
            "probabilities_share",
            "auroc_segments",
            "auroc",
            "auroc/prox_lad",
            "auroc/mid_rca",
            "brier",
            "ece",
        )
    }
    # Two of five left cines are diseased; the first is before all three others, the second behind them.
    assert metrics["captioning/segment_auroc/prox_lad"].value == 0.5
    assert metrics["captioning/segment_auroc/mid_rca"].value == 0.5
    assert metrics["captioning/segment_auroc_segments"].value == 2


def test_no_constant_text_beats_the_bound_of_a_blind_writer(dataset, config):
    """What one text for everyone reaches is at most what the best constants of these very rows do."""
    units = dataset.units("val")
    constants = fit_baselines(units, config)
    assert isinstance(constants, Constants)
    candidates = [
        render_report([Finding.from_dict(row) for row in found], "right") for found in ([LAD], [RCA], [LAD, RCA])
    ]
    candidates += [text for text in Truth.of(units, np.arange(12), config).texts if text is not None]
    for text in candidates:
        metrics = measure(records_of(units, [text] * 12), units, constants, config).metrics
        for name in ("captioning/exact_match", "captioning/finding_f1"):
            assert metrics[name].value <= metrics[name].baseline + 1e-12


def test_rows_are_written_and_read(dataset, config, tmp_path):
    units = dataset.units("val")
    records = records_of(units, [""] * 12, invalid=(4,))
    table = row_table(units, records, measure(records, units, None, config).columns)
    write_rows(rows_path(tmp_path, "val"), table, {"checkpoint": "6"})
    read, about = read_rows(tmp_path, "val")
    assert about == {"checkpoint": "6"} and [p.name for p in tmp_path.iterdir()] == ["rows_val.parquet"]
    assert read["unit_id"].to_pylist() == [f"v{n:02}" for n in range(12)]
    assert read["study_id"].to_pylist() == [f"s{n // 2}" for n in range(12)]
    assert read["patient_id"].to_pylist() == [f"p-s{n // 2}" for n in range(12)]
    assert [row["unit_id"] for row in read.to_pylist() if not row["valid"]] == ["v04"]
    empty = read.slice(4, 1).to_pylist()[0]
    assert all(value is None for name, value in empty.items() if "/" in name)
    silent = read.slice(10, 1).to_pylist()[0]
    assert silent["captioning/exact_match"] is None and silent["masked_modeling/mse"] is not None
    whole = dataset.units("val", "study")
    assert row_table(whole, records_of(whole, [""] * 6), {})["unit_id"].to_pylist() == [f"s{n}" for n in range(6)]


def test_rows_that_are_not_there_or_damaged(tmp_path):
    with pytest.raises(UserError, match=rf"deepcoro evaluate {tmp_path} --split test"):
        read_rows(tmp_path, "test")
    rows_path(tmp_path, "test").write_bytes(b"no table")
    with pytest.raises(DataError, match="measure the run again"):
        read_rows(tmp_path, "test")


def test_reports_in_free_words_are_measured_by_what_they_say(make_dataset, tmp_path, tiny_config):
    """Without a table of findings: what nobody can read is no healthy heart, to measure by or to fit constants on."""
    texts = ["The proximal LAD has an 80% stenosis. RCA: normal.", "Marked tortuosity. LAD and RCA normal."]
    splits = [(f"{split}{n}", split, texts[n % 2]) for split in ("train", "val") for n in range(12)]
    studies = [{"study_id": name, "split": split, "report": text} for name, split, text in splits]
    videos = [{"study_id": name, "uri": "videos/one.avi"} for name, _, _ in splits]
    dataset = PreparedDataset.open(make_dataset(tmp_path, studies, videos))
    config = tiny_config("data.unit=study", "evaluation.num_resamples=20")
    constants = fit_baselines(dataset.units("train", "study"), config)
    share = dict(zip(SEGMENTS, constants.prevalence.tolist(), strict=True))
    assert share["prox_lad"] == 1 and share["mid_lad"] == 0
    units = dataset.units("val", "study")
    canonical = render_report([Finding("prox_lad", stenosis=80)])
    for written in (texts[0], canonical):
        metrics = measure(records_of(units, [written] * 12), units, constants, config).metrics
        assert metrics["captioning/truth_read"].value == 0.5
        assert metrics["captioning/finding_f1"].value == metrics["captioning/grade_kappa"].value == 1
        assert metrics["captioning/hallucinated_findings"].value == 0 and metrics["captioning/stenosis_mae"].value == 0
    invented = render_report([Finding(segment, stenosis=90) for segment in SEGMENTS if segment != "prox_lad"])
    metrics = measure(records_of(units, [invented] * 12), units, constants, config).metrics
    assert metrics["captioning/hallucinated_findings"].value == 17 and metrics["captioning/finding_f1"].value == 0
