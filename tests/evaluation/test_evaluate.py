"""``evaluate`` on a run whose model is as it was born: what it writes, what it counts, which checkpoint it takes."""

import json

import numpy as np
import pytest
import ray
import torch

from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import CheckpointError
from deepcoro.evaluation.certainty import can_be_sure
from deepcoro.evaluation.evaluator import predict_units
from deepcoro.evaluation.rows import read_rows
from deepcoro.launch.compare import compare
from deepcoro.launch.evaluate import evaluate
from deepcoro.launch.resources import start_ray
from deepcoro.models.text_encoder import load_tokenizer
from deepcoro.training.checkpoint import save_checkpoint

LEFT = {"segment": "prox_lad", "stenosis": 80, "occlusion": "none"}


@pytest.fixture(scope="module")
def some_ray():
    """A Ray for these tests; one that others started stays as it is."""
    started_here = not ray.is_initialized()
    start_ray(num_cpus=2)
    yield
    if started_here:
        ray.shutdown()


@pytest.fixture(scope="module")
def data(make_dataset, tmp_path_factory):
    """Eight test studies of two cines, v05 of which is damaged, and two training studies."""
    folder = tmp_path_factory.mktemp("evaluated")
    studies = [
        {"study_id": f"s{n}", "split": "test" if n < 8 else "train", "dominance": "right", "findings": [LEFT] * (n % 2)}
        for n in range(10)
    ]
    videos = [
        {"video_id": f"v{n:02}", "study_id": f"s{n // 2}", "coronary_tree": ("left", "right")[n % 2]} for n in range(20)
    ]
    path = make_dataset(folder, studies, videos)
    (folder / "videos" / "v05.avi").write_bytes(b"")
    return path


@pytest.fixture(scope="module")
def run(data, some_ray, tiny_config, tiny_model, text_folder, tmp_path_factory):
    """A run with checkpoints of steps 3 and 6 of two different models."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = tiny_config(f"data.path={data}", "evaluation.batch_size=3", "evaluation.num_resamples=50")
    load_tokenizer(str(text_folder)).save_pretrained(folder / "tokenizer")
    average = {"num_updates": 3, "weights": dict(tiny_model(config, 5).named_parameters())}
    for step, kept in ((3, average), (6, None)):
        save_checkpoint(folder, step, tiny_model(config, step), {"step": step}, config, "made-for-tests", kept)
    return folder


def test_every_unit_stands_once_and_the_test_split_is_counted(run, data, capsys):
    metrics = evaluate(run, "test")
    table, about = read_rows(run, "test")
    assert about["checkpoint"] == "6" and about["dataset_fingerprint"] == "made-for-tests"
    rows = table.to_pylist()
    assert [row["unit_id"] for row in rows] == [f"v{n:02}" for n in range(16)]
    assert [row["unit_id"] for row in rows if not row["valid"]] == ["v05"]
    assert metrics["data/valid_share"].value == 15 / 16
    frame = table.to_pandas()
    for name in (
        "retrieval/report_to_video/recall_at_5",
        "retrieval/video_to_report/ndcg_at_10",
        "retrieval/alignment",
    ):
        assert frame[name].isna().tolist() == [n == 5 for n in range(16)]
        assert metrics[name].value == pytest.approx(frame[name].mean())
    assert metrics["masked_modeling/pixel_mse"].value == pytest.approx(frame["masked_modeling/pixel_mse"].mean())
    assert metrics["captioning/exact_match_beside_nearest_neighbour"].baseline_name == "nearest of 4"
    printed = capsys.readouterr().out
    assert "measured on test 1 time (" in printed and "checkpoint 6, trained weights, test" in printed
    written = json.loads((run / "summary.json").read_text())["metrics"]
    for name in (
        "stenosis_50_f1_beside_nearest_neighbour",
        "finding_macro_recall",
        "stenosis_mae_lesions",
        "missed_findings",
        "hallucinated_findings",
        "finding_recall/prox_lad",
    ):
        assert written[f"captioning/{name}"]["value"] == metrics[f"captioning/{name}"].value
        assert f"captioning/{name} " in printed
    assert metrics["captioning/missed_findings"].value == pytest.approx(frame["captioning/missed_findings"].mean())

    earlier = evaluate(run, "test", checkpoint=3, num_neighbours=0)
    assert "captioning/exact_match_beside_nearest_neighbour" not in earlier
    assert "measured on test 2 times (" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "test_evaluations.jsonl").read_text().splitlines()]
    assert [(line["checkpoint"], line["weights"]) for line in lines] == [(6, "trained"), (3, "ema")]
    assert lines[0]["metrics"]["retrieval/alignment"] == pytest.approx(metrics["retrieval/alignment"].value)
    assert lines[0]["metrics"].keys() == metrics.keys() and lines[0]["time"] <= lines[1]["time"]
    assert read_rows(run, "test")[1]["checkpoint"] == "3"
    summary = json.loads((run / "summary_test.json").read_text())
    assert (summary["checkpoint"], summary["weights"]) == ("3", "ema")
    trained = evaluate(run, "test", checkpoint=3, num_neighbours=0, weights="trained")
    assert trained["masked_modeling/mse"].value != earlier["masked_modeling/mse"].value
    capsys.readouterr()
    assert compare(run, run, "test")["retrieval/alignment"].value == 0
    assert f"second  {run}, checkpoint 3, trained weights" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="no checkpoint 4"):
        evaluate(run, "test", checkpoint=4)


def test_workers_together_have_every_unit_once_as_one_has(run, data, tiny_config, tiny_model, report_tokenizer):
    config = tiny_config(f"data.path={data}", "evaluation.batch_size=3")
    units, model, cpu = PreparedDataset.open(data).units("test"), tiny_model(config), torch.device("cpu")
    indices = np.arange(16)
    whole = predict_units(model, config, units, indices, report_tokenizer, cpu)
    whole.sort(key=lambda record: record["unit"])  # blocks arrive as they are ready
    assert [record["unit"] for record in whole] == list(range(16))
    shares = [predict_units(model, config, units, indices[rank::3], report_tokenizer, cpu) for rank in range(3)]
    assert [len(share) for share in shares] == [6, 5, 5]  # no row is added to make them equal
    together = sorted((record for share in shares for record in share), key=lambda record: record["unit"])
    for one, other in zip(whole, together, strict=True):
        assert one.keys() == other.keys() and one["unit"] == other["unit"]
        if one["valid"]:
            np.testing.assert_allclose(one["video_embedding"], other["video_embedding"], atol=1e-5)
            assert one["reconstruction"] == pytest.approx(other["reconstruction"], abs=1e-5)


def test_embedding_alone_gives_the_same_embeddings_and_nothing_else(run, data, tiny_config, tiny_model):
    config = tiny_config(f"data.path={data}")
    units, model, cpu = PreparedDataset.open(data).units("train"), tiny_model(config), torch.device("cpu")
    alone = predict_units(model, config, units, np.arange(4), None, cpu, embed_only=True)
    assert all(record.keys() == {"unit", "valid", "video_embedding"} for record in alone)
    lengths = [float(np.linalg.norm(record["video_embedding"])) for record in alone]
    assert lengths == pytest.approx([1, 1, 1, 1], abs=1e-5)


def test_a_model_that_writes_reports_is_asked_how_sure_it_is(
    data, some_ray, tiny_config, tiny_model, text_folder, tmp_path, capsys
):
    long = (
        "captioning.max_position_embeddings=160",
        "captioning.max_generation_length=150",
        "captioning.structured=true",
    )
    config = tiny_config(f"data.path={data}", "evaluation.num_resamples=20", "loss.weights.contrastive=0", *long)
    load_tokenizer(str(text_folder)).save_pretrained(tmp_path / "tokenizer")
    save_checkpoint(tmp_path, 1, tiny_model(config), {"step": 1}, config, "made-for-tests", None)
    metrics = evaluate(tmp_path, "test")
    assert metrics["captioning/segment_probabilities_share"].value == 1
    # Of the 15 cines that can be read those of the left tree show it, and of their studies every other one is ill.
    assert metrics["captioning/segment_auroc_segments"].value == 1
    assert metrics["captioning/segment_auroc"].value == metrics["captioning/segment_auroc/prox_lad"].value
    assert 0 < metrics["captioning/segment_auroc"].value < 1 and metrics["captioning/segment_auroc"].baseline == 0.5
    assert 0 < metrics["captioning/segment_brier"].value < 1 and 0 < metrics["captioning/segment_ece"].value < 1
    assert "captioning/segment_ece " in capsys.readouterr().out
    silent = config.override(["evaluation.finding_probabilities=never"])
    assert not can_be_sure(silent, None, training=False)
    for value in json.loads((tmp_path / "summary.json").read_text())["metrics"].values():
        assert value["value"] is not None
