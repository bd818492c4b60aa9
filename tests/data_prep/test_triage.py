"""Triage: it learns what can be seen and nothing else, says how sure it is, and overwrites no label."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

from data_prep.triage.classifier import Classifier, train_head
from data_prep.triage.clips import Shape, read_clips
from data_prep.triage.labels import fill, read_labels
from deepcoro.data.schema import VIDEOS_SCHEMA
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import DataError
from experiments import triage

SHAPE = Shape(num_frames=4, frame_size=32, sample_fps=4.0)
NUM_STUDIES = 120


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def archive(tmp_path_factory, write_video):
    """120 studies of one cine each: a dark square at the left or the right. Every third has no tree, all have a class;
    the attribute ``truth_class`` says what is to be seen, ``coin_class`` has nothing to do with it."""
    folder = tmp_path_factory.mktemp("archive") / "prepared"
    (folder / "videos").mkdir(parents=True)
    chance = np.random.default_rng(0)
    studies, videos = [], []
    for number in range(NUM_STUDIES):
        side = ("left", "right")[number % 2]
        frames = chance.integers(150, 200, (8, 32, 32), dtype=np.uint8)
        top, left = chance.integers(6, 16), (3 if side == "left" else 19) + chance.integers(0, 3)
        frames[:, top : top + 9, left : left + 9] = 30
        write_video(folder / "videos" / f"v{number:03}.avi", frames, 4)
        split = ("train", "train", "train", "train", "val", "test")[number // 2 % 6]
        studies.append({"study_id": f"s{number:03}", "patient_id": f"p{number:03}", "split": split})
        coin = ("heads", "tails")[int(chance.integers(2))]
        videos.append(
            {
                "video_id": f"v{number:03}",
                "study_id": f"s{number:03}",
                "uri": f"videos/v{number:03}.avi",
                "num_frames": 8,
                "height": 32,
                "width": 32,
                "fps": 4.0,
                "partial": False,
                "coronary_tree": None if number % 3 == 0 else side,
                "attributes": [("truth_class", side), ("coin_class", coin), ("one_class", "x")],
            }
        )
    from deepcoro.data.schema import STUDIES_SCHEMA

    pq.write_table(pa.Table.from_pylist(studies, schema=STUDIES_SCHEMA), folder / "studies.parquet")
    pq.write_table(pa.Table.from_pylist(videos, schema=VIDEOS_SCHEMA), folder / "videos.parquet")
    (folder / "dataset.json").write_text(json.dumps({"fingerprint": "made-for-tests", "pixel_mean": 160.0}))
    return folder


@pytest.fixture
def dataset(archive, tmp_path):
    """A copy of the tables; the videos are where they were."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    for path in archive.iterdir():
        if path.is_file() and path.name[0] != ".":
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "videos").symlink_to(archive / "videos")
    return folder


def rows(folder):
    return pq.read_table(folder / "videos.parquet").to_pylist()


def learn(folder, column, num_steps=60, **more):
    opened = PreparedDataset.open(str(folder))
    labels = read_labels(opened, column)
    result = triage.learn(opened, labels, SHAPE, None, 0.9, num_steps, 1000, 0, **more)
    return opened, labels, result


def run(monkeypatch, folder, *arguments, num_steps="100"):
    monkeypatch.setattr(triage, "Shape", lambda: SHAPE)
    return CliRunner().invoke(triage.main, [str(folder), "--num-steps", num_steps, *arguments])


def test_what_can_be_seen_is_learned_and_filled_in(dataset, monkeypatch):
    before = rows(dataset)
    done = run(monkeypatch, dataset, "--fill", "--threshold", "0.6")
    assert done.exit_code == 0, done.output
    after = rows(dataset)
    filled = 0
    for old, new in zip(before, after, strict=True):
        told, was = dict(new["attributes"]), dict(old["attributes"])
        if old["coronary_tree"] is not None:
            assert new == old  # a label is never touched
        elif new["coronary_tree"] is not None:
            filled += 1
            assert new["coronary_tree"] == told["truth_class"]
            assert told["coronary_tree_source"] == "triage" and 0.6 <= float(told["coronary_tree_probability"]) <= 1
            assert {k: told[k] for k in was} == was
        else:
            assert new == old
    assert filled >= 0.8 * NUM_STUDIES / 3, done.output
    assert f"{filled} were filled in" in done.output
    card = json.loads((dataset / "dataset.json").read_text())
    assert card["fingerprint"] != "made-for-tests" and card["pixel_mean"] == 160.0


def test_one_seed_gives_one_classifier(dataset):
    (opened, _, first), (_, _, second) = learn(dataset, "coronary_tree", 8), learn(dataset, "coronary_tree", 8)
    clips = read_clips(opened, np.arange(NUM_STUDIES), SHAPE).pixels
    assert (first.classifier(clips) == second.classifier(clips)).all()


def test_what_cannot_be_seen_is_not_filled_in(dataset, monkeypatch):
    table = rows(dataset)
    for number, row in enumerate(table):
        if number % 5 == 0:
            row["attributes"] = [pair for pair in row["attributes"] if pair[0] != "coin_class"]
    pq.write_table(pa.Table.from_pylist(table, schema=VIDEOS_SCHEMA), dataset / "videos.parquet")
    before = rows(dataset)
    done = run(monkeypatch, dataset, "--column", "coin_class", "--fill", "--threshold", "0", num_steps="40")
    assert done.exit_code == 2 and "not better than always giving" in done.output
    assert rows(dataset) == before


def test_what_was_filled_in_is_no_label_and_can_be_taken_back(dataset):
    before = rows(dataset)
    labels = read_labels(PreparedDataset.open(str(dataset)), "coronary_tree")
    missing = {row: f"v{row:03}" for row in range(0, NUM_STUDIES, 3)}
    fill(str(dataset), labels, missing, dict.fromkeys(missing, ("left", 0.95)))
    again = read_labels(PreparedDataset.open(str(dataset)), "coronary_tree")
    assert again.values.tolist() == labels.values.tolist()
    assert np.flatnonzero(again.filled).tolist() == list(missing)
    fill(str(dataset), again, missing, {})  # another classifier that is sure of nothing
    assert rows(dataset) == before


def test_a_label_is_never_overwritten(dataset):
    labels = read_labels(PreparedDataset.open(str(dataset)), "coronary_tree")
    with pytest.raises(ValueError, match="not ours to overwrite"):
        fill(str(dataset), labels, {1: "v001"}, {1: ("left", 0.99)})


def test_a_class_of_the_attributes_is_filled_in_there(dataset):
    table = rows(dataset)
    table[0]["attributes"] = [("coin_class", "heads")]
    pq.write_table(pa.Table.from_pylist(table, schema=VIDEOS_SCHEMA), dataset / "videos.parquet")
    labels = read_labels(PreparedDataset.open(str(dataset)), "truth_class")
    assert [row for row, value in enumerate(labels.values) if value is None] == [0]
    fill(str(dataset), labels, {0: "v000"}, {0: ("left", 0.91234)})
    assert dict(rows(dataset)[0]["attributes"]) == {
        "coin_class": "heads",
        "truth_class": "left",
        "truth_class_source": "triage",
        "truth_class_probability": "0.9123",
    }


def test_what_there_is_to_learn_from_is_checked(dataset):
    with pytest.raises(DataError, match="needs two classes of 8 labelled videos or more in train; it has x 80"):
        learn(dataset, "one_class")
    with pytest.raises(DataError, match="no video has 'other_class'.*coin_class, one_class, truth_class"):
        learn(dataset, "other_class")
    table = rows(dataset)
    for number, row in enumerate(table):
        if number // 2 % 6 == 5:
            row["coronary_tree"] = None
    pq.write_table(pa.Table.from_pylist(table, schema=VIDEOS_SCHEMA), dataset / "videos.parquet")
    with pytest.raises(DataError, match="no video of test has a coronary_tree"):
        learn(dataset, "coronary_tree")


def test_videos_that_cannot_be_read_are_left_out_and_told(dataset, tmp_path):
    (dataset / "videos").unlink()
    (dataset / "videos").mkdir()
    source = PreparedDataset.open(str(dataset))
    found = read_clips(source, np.array([3, 5]), SHAPE)
    assert len(found.pixels) == len(found.rows) == 0 and found.unreadable.keys() == {3, 5}
    assert Classifier(("a", "b"), lambda clips: torch.zeros(len(clips), 2))(found.pixels).shape == (0, 2)


def test_the_numbers_are_those_counted_by_hand():
    """Six clips of three patients, told apart by their first pixel; the logits are chosen."""
    logits = torch.tensor([[3.0, 0], [3, 0], [0, 3], [0, 0.5], [0, 3], [0.5, 0]])
    classifier = Classifier(("a", "b"), lambda clips: logits[clips[:, 0, 0, 0].long()])
    clips = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    truth = np.array([0, 0, 0, 1, 1, 1])  # wrong: clips 2 and 5
    patients = np.array(["p", "p", "q", "q", "r", "r"])
    metrics, better = triage.measure(classifier, clips, truth, patients, 0.9)  # sigmoid(3) = 0.953
    assert {name: (m.value, m.baseline) for name, m in metrics.items()} == {
        "accuracy": (pytest.approx(4 / 6), pytest.approx(3 / 6)),
        "accuracy, a (3)": (pytest.approx(2 / 3), 1.0),
        "accuracy, b (3)": (pytest.approx(2 / 3), 0.0),
        "share with probability 0.9 or more": (pytest.approx(4 / 6), pytest.approx(np.nan, nan_ok=True)),
        "accuracy of those": (pytest.approx(3 / 4), pytest.approx(2 / 4 + 1 / 4)),
    }
    assert not better


def test_the_temperature_makes_the_probability_that_of_being_right():
    """Logits 10 apart, right three times in four: at T with 10 / T = ln 3 the probability is 3/4."""
    logits = torch.tensor([[10.0, 0.0]])
    classifier = Classifier(("a", "b"), lambda clips: logits.expand(len(clips), 2))
    clips = np.zeros((400, 1, 1, 1), np.uint8)
    truth = np.array([0, 0, 0, 1] * 100)
    cooled = classifier.cooled(clips, truth)
    assert cooled.temperature == pytest.approx(10 / np.log(3), rel=0.03)
    assert cooled(clips[:1])[0, 0] == pytest.approx(0.75, abs=0.01)
    assert classifier.cooled(clips, truth * 0).temperature == 1  # never surer than it was


def test_a_head_on_an_embedding_is_softmax_regression():
    """The same optimum as scikit-learn's: ours is the mean loss + |W|^2 / B, theirs C * sum + |W|^2 / 2."""
    chance = np.random.default_rng(0)
    table = torch.from_numpy(chance.normal(size=(90, 5))).float()
    trained = SimpleNamespace(embed_videos=lambda clips: table[clips[:, 0, 0, 0, 0].long()])
    labels = (table[:, 0] + 0.5 * torch.from_numpy(chance.normal(size=90)) > 0).long().numpy()
    labels[table[:, 1].numpy() > 1] = 2
    clips = np.arange(90, dtype=np.uint8).reshape(90, 1, 1, 1)
    ours = train_head(clips, labels, ("a", "b", "c"), trained)(clips)
    scaled = ((table - table.mean(0)) / table.std(0, correction=0)).numpy()
    theirs = LogisticRegression(C=0.5, max_iter=2000, tol=1e-8).fit(scaled, labels).predict_proba(scaled)
    assert np.abs(ours - theirs).max() < 2e-3


def test_training_varies_clips_and_never_mirrors_them():
    """A ramp from dark to bright: moved and made brighter, it still rises from left to right."""
    from data_prep.triage.classifier import _vary

    ramp = torch.arange(32, dtype=torch.uint8).mul(4).expand(8, 4, 32, 32)
    varied = _vary(ramp, np.random.default_rng(0))
    assert varied.shape == ramp.shape and not torch.equal(varied[0], varied[1])
    assert (varied.diff(dim=-1) >= 0).all() and (varied[..., -1] - varied[..., 0] > 50).all()
    assert varied.min() >= 0 and varied.max() <= 255


@pytest.mark.long
def test_phantoms_with_withheld_trees_get_them_back(tmp_path):
    """Through the whole door: half the trees of a phantom archive are taken out of its table before it is ingested."""
    from data_prep.dicom.ingest import ingest
    from data_prep.phantom.generate import write_phantom

    write_phantom(tmp_path / "phantom", 60, size=96, num_frames=16, fps=10.0)
    truth = pq.read_table(tmp_path / "phantom" / "videos.parquet").to_pylist()
    withheld = [row | {"coronary_tree": None} if number % 4 < 2 else row for number, row in enumerate(truth)]
    pq.write_table(pa.Table.from_pylist(withheld), tmp_path / "withheld.parquet")
    reports = tmp_path / "phantom" / "reports.parquet"
    for name, table in (("whole", tmp_path / "phantom" / "videos.parquet"), ("part", tmp_path / "withheld.parquet")):
        key = tmp_path / "a.key"
        ingest(tmp_path / "phantom" / "dicom", tmp_path / name, reports=reports, videos=table, key_path=key)
    done = CliRunner().invoke(triage.main, [str(tmp_path / "part"), "--fill", "--num-steps", "150"])
    assert done.exit_code == 0, done.output
    true = {row["video_id"]: row["coronary_tree"] for row in rows(Path(tmp_path / "whole"))}
    found = [row for row in rows(Path(tmp_path / "part")) if "coronary_tree_source" in dict(row["attributes"])]
    assert len(found) > 0.8 * len(true) / 2
    assert np.mean([row["coronary_tree"] == true[row["video_id"]] for row in found]) > 0.95
