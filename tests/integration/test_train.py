"""Whole runs on a small phantom: what they leave behind, that they go on, and that a user's mistakes cost nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import deepcoro
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import CheckpointError, ConfigError, DataError, ResourceError, RunStopped, TrainingError
from deepcoro.launch.evaluate import evaluate
from deepcoro.launch.lock import hold
from deepcoro.launch.train import train
from deepcoro.training.control import STOP_FILE
from deepcoro.training.validation import Validation


@pytest.fixture(scope="module")
def finished(local_ray, small_config, tmp_path_factory):
    """A run of 6 steps on two workers."""
    return train(small_config(tmp_path_factory.mktemp("runs"), "resources.num_workers=2"))


def test_a_run_leaves_its_folder_complete(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss/total" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    for line in steps:
        weighted = line["loss/contrastive"] + line["loss/captioning"] + 0.1 * line["loss/masked_modeling"]
        assert line["loss/total"] == pytest.approx(weighted, rel=1e-5)
        assert line["data/valid_share"] == 1.0
    assert any("validation/captioning/tree_accuracy" in line for line in lines)
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["3", "6"]
    newest = finished / "checkpoints" / "6"
    assert {p.name for p in newest.iterdir()} == {
        "model.safetensors",
        "training_state.pt",
        "config.yaml",
        "tokenizer",
        "text_encoder",
        "manifest.json",
    }
    manifest = json.loads((newest / "manifest.json").read_text())
    assert manifest["dataset_fingerprint"] and manifest["code_version"] == deepcoro.__version__
    state = torch.load(newest / "training_state.pt", weights_only=True)
    assert state["step"] == 6 and state["samples_seen"] == 72


def test_tensorboard_has_the_scalars(finished):
    board = EventAccumulator(str(finished / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    wanted = {"loss/total", "loss/contrastive", "loss_weight/captioning", "learning_rate/text", "optim/grad_norm"}
    wanted |= {"throughput/clips_per_second", "throughput/data_wait_share", "memory/process_peak_gb"}
    wanted |= {"throughput/tflops_per_second"}
    assert wanted <= tags and "throughput/mfu" not in tags  # of a CPU the peak is not known
    assert [event.step for event in board.Scalars("loss/total")] == [1, 2, 3, 4, 5, 6]


def test_a_loaded_run_is_ready_for_use(finished, phantom):
    trained = deepcoro.load(finished)
    units = PreparedDataset.open(str(phantom)).units("test")
    batch = UnitReader(trained.config, units, trained.tokenizer, training=False).read(np.arange(2), np.arange(2))
    clip = torch.from_numpy(batch["clip"])
    videos, reports = trained.embed_videos(clip), trained.embed_reports(["LAD: normal.", "RCA: normal."])
    assert videos.shape == reports.shape == (2, 32)
    torch.testing.assert_close(videos.norm(dim=1), torch.ones(2))
    assert len(trained.write_reports(clip)) == 2


def test_evaluation_counts_every_row_once_and_writes_the_summary(finished, phantom, capsys):
    metrics = evaluate(finished, "test")
    summary = json.loads((finished / "summary.json").read_text())["metrics"]
    assert summary.keys() == metrics.keys()
    entry = summary["retrieval/report_to_video/recall_at_5"]
    assert set(entry) == {"value", "low", "high", "baseline"} and 0 <= entry["low"] <= entry["high"] <= 1
    written = [json.loads(line) for line in (finished / "reports_test.jsonl").read_text().splitlines()]
    expected = PreparedDataset.open(str(phantom)).units("test").videos["video_id"].to_pylist()
    assert [row["unit_id"] for row in written] == expected
    assert "captioning/tree_accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("video_encoder.width=96", "video_encoder.width: 48 -> 96"),
        ("training.batch_size=24", "training.batch_size: 12 -> 24"),
        ("seed=5", "seed: 0 -> 5"),
    ],
)
def test_going_on_with_another_model_or_stream_is_refused_and_changes_nothing(finished, small_config, assignment, says):
    before = (finished / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=says):
        train(small_config(finished.parent, "resources.num_workers=2", "training.num_steps=9", assignment))
    assert (finished / "config.yaml").read_text() == before


def test_a_dataset_prepared_anew_is_refused(finished, phantom, small_config, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(phantom, other)
    card = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(card | {"fingerprint": "another"}))
    with pytest.raises(DataError, match="another dataset"):
        train(small_config(finished.parent, f"data.path={other}", "training.num_steps=9"))


def when_step(run, step, action):
    """Do ``action`` once the run has logged ``step``, from a thread of its own."""

    def wait():
        give_up = time.monotonic() + 120
        while time.monotonic() < give_up:
            if (run / "metrics.jsonl").exists() and f'"step": {step},' in (run / "metrics.jsonl").read_text():
                action()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def stop_by_signal(run):
    """SIGTERM to this process. Its main thread takes it up when it comes back to Python, in which time the workers
    train tens of these small steps: so they stand still until the request is out."""
    workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
    assert workers
    for worker in workers:
        worker.suspend()
    os.kill(os.getpid(), signal.SIGTERM)
    give_up = time.monotonic() + 20
    while not (run / STOP_FILE).exists() and time.monotonic() < give_up:
        time.sleep(0.01)
    for worker in workers:
        worker.resume()


def test_stopped_gone_on_with_and_damaged_a_run_ends_where_an_undisturbed_one_ends(
    local_ray, small_config, tmp_path, capsys
):
    settings = ("training.num_steps=30", "training.checkpoint_every=25", "training.ema_decay=0.9")
    undisturbed = train(small_config(tmp_path / "a", *settings))
    config = small_config(tmp_path / "b", *settings)
    run = tmp_path / "b" / config.name
    asking = when_step(run, 5, lambda: stop_by_signal(run))
    with pytest.raises(RunStopped, match="saved at step .* of 30; the same command goes on") as stopped:
        train(config)
    asking.join()
    assert stopped.value.exit_code == 143
    (step,) = (int(place.name) for place in (run / "checkpoints").iterdir())
    assert 5 <= step < 25  # it saved where it stood, and not where the next checkpoint was due
    assert not (run / "validation").exists()

    train(config)
    assert sorted(int(place.name) for place in (run / "checkpoints").iterdir()) == [step, 25, 30]
    files = ("model.safetensors", "model_ema.safetensors")
    for _ in range(2):  # as it ended, and as it ends again after its last checkpoints were damaged
        for file in files:
            weights, wanted = (load_file(folder / "checkpoints" / "30" / file) for folder in (run, undisturbed))
            assert weights.keys() == wanted.keys()
            for name in wanted:
                torch.testing.assert_close(weights[name], wanted[name], atol=1e-6, rtol=0)
        table = pq.read_table(run / "positions.parquet")
        assert sorted(table["position"].to_pylist()) == list(range(360))
        if not (run / "checkpoints" / "damaged-30").exists():
            (run / "checkpoints" / "30" / "config.yaml").write_text("")
            train(config)
    assert "config.yaml is not what was saved" in capsys.readouterr().err
    train(config)  # complete: nothing is trained and nothing changes
    assert "nothing to train" in capsys.readouterr().err

    told = json.loads((undisturbed / "validation" / "30.json").read_text())
    here = Validation(config, undisturbed, torch.device("cpu"))
    loss = "masked_modeling/mse"
    measured = {name: here.run(deepcoro.load(undisturbed, weights=name).model)[loss] for name in ("ema", "trained")}
    assert told["weights"] == "ema" and told["metrics"][loss] == pytest.approx(measured["ema"], rel=1e-5)
    assert measured["trained"] != pytest.approx(measured["ema"], rel=1e-4)


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_not_the_run(local_ray, small_config, tmp_path, capsys):
    config = small_config(tmp_path, "training.num_steps=20", "training.checkpoint_every=5")
    run = tmp_path / config.name
    run.mkdir()
    in_the_way = run / "checkpoints"
    in_the_way.write_text("as long as this is no folder, nothing can be saved in it")
    making_room = when_step(run, 12, in_the_way.unlink)
    train(config)
    making_room.join()
    assert sorted(int(place.name) for place in in_the_way.iterdir()) == [15, 20]
    problems = [json.loads(line)["problem"] for line in (run / "problems.jsonl").read_text().splitlines()]
    assert [f"checkpoint of step {step} could not be written" in text for step, text in zip((5, 10), problems)] == [
        True,
        True,
    ]
    assert "checkpoint of step 5 could not be written" in capsys.readouterr().err
    assert sorted(pq.read_table(run / "positions.parquet")["position"].to_pylist()) == list(range(240))


def test_two_runs_of_one_name_at_once(local_ray, small_config, tmp_path):
    config = small_config(tmp_path)
    with hold(tmp_path / config.name):
        with pytest.raises(ResourceError, match="being trained already, by process"):
            train(config)


@pytest.mark.long
@pytest.mark.parametrize("num_workers", [1, 2])
def test_validation_beside_the_workers_finds_the_best_checkpoint(local_ray, small_config, tmp_path, num_workers):
    config = small_config(
        tmp_path,
        f"resources.num_workers={num_workers}",
        "evaluation.asynchronous=true",
        "training.num_steps=12",
        "training.evaluate_every=4",
        "training.keep_checkpoints=1",
        "training.best_metric=masked_modeling/mse",
        "training.best_mode=max",  # the first one: nothing has been learnt yet
        "evaluation.max_units=4",
    )
    run = train(config)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = {
        line["step"]: line["validation/masked_modeling/mse"] for line in lines if "validation/data/valid_share" in line
    }
    assert sorted(values) == [4, 8, 12]
    best = json.loads((run / "best.json").read_text())
    assert best == {"step": 4, "metric": "masked_modeling/mse", "value": max(values.values())}
    kept = {int(place.name) for place in (run / "checkpoints").iterdir()}
    assert {4, 12} <= kept <= {4, 8, 12}  # 8 stays where its validation was not over when 12 was saved
    assert deepcoro.load(run, "best").checkpoint.name == "4"
    here = Validation(config, run, torch.device("cpu")).run(deepcoro.load(run).model)
    assert here["masked_modeling/mse"] == pytest.approx(values[12], rel=1e-5)  # as in step with the workers


def test_a_damaged_checkpoint_stops_the_run_with_its_name(local_ray, small_config, tmp_path):
    config = small_config(tmp_path, "training.num_steps=3")
    run = train(config)
    weights = run / "checkpoints" / "3" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="(?s)no checkpoint of .* is sound.*model.safetensors"):
        train(config.override(["training.num_steps=5"]))
    with pytest.raises(CheckpointError, match="model.safetensors"):
        deepcoro.load(run)


def test_studies_of_several_views_train(local_ray, small_config, tmp_path):
    run = train(small_config(tmp_path, "data.unit=study", "data.num_videos=3", "training.num_steps=3"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["data/valid_share"] == pytest.approx(2 / 3)  # a study has two views, three were asked for
    assert all(np.isfinite(line["loss/total"]) for line in lines if "loss/total" in line)


def test_without_any_report_no_text_model_is_loaded(local_ray, phantom, small_config, tmp_path, capsys):
    silent = tmp_path / "silent"
    silent.mkdir()
    (silent / "videos").symlink_to(phantom / "videos")
    for name in ("videos.parquet", "dataset.json"):
        (silent / name).write_bytes((phantom / name).read_bytes())
    studies = pq.read_table(phantom / "studies.parquet")
    for name in ("report", "findings"):
        place = studies.schema.get_field_index(name)
        studies = studies.set_column(
            place, studies.schema.field(name), pa.nulls(len(studies), studies.field(name).type)
        )
    pq.write_table(studies, silent / "studies.parquet")
    informed = ("loss.weights.grounding=0.05", "grounding.informs_captions=true")  # of captions that are left out
    settings = (f"data.path={silent}", "text_encoder.name=/nowhere", "training.num_steps=3", *informed)
    run = train(small_config(tmp_path, *settings))
    assert "no training video" in capsys.readouterr().err
    assert not (run / "tokenizer").exists() and not (run / "checkpoints" / "3" / "text_encoder").exists()
    names = set(load_file(run / "checkpoints" / "3" / "model.safetensors"))
    assert not any(name.startswith(("text_", "captioning", "lesion_summary")) for name in names)


def test_a_video_that_cannot_be_decoded_is_counted_and_told(local_ray, phantom, small_config, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("studies.parquet", "videos.parquet", "dataset.json"):
        (damaged / name).write_bytes((phantom / name).read_bytes())
    videos = pq.read_table(phantom / "videos.parquet")
    for uri in videos["uri"].to_pylist():
        target = damaged / uri
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((phantom / uri).read_bytes())
    train_ids = PreparedDataset.open(str(phantom)).units("train").videos["video_id"].to_pylist()
    broken = videos.filter(pc.is_in(videos["video_id"], value_set=pa.array(train_ids[:4])))
    for uri in broken["uri"].to_pylist():
        (damaged / uri).write_bytes(b"")
    run = train(small_config(tmp_path, f"data.path={damaged}", "training.num_steps=3"))
    problems = [json.loads(line) for line in (run / "problems.jsonl").read_text().splitlines()]
    assert {p["unit_id"] for p in problems} <= set(train_ids[:4]) and "empty" in problems[0]["problem"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shares = [line["data/valid_share"] for line in lines if "loss/total" in line]
    assert sum(round((1 - share) * 12) for share in shares) == len(problems) > 0


def test_a_run_that_can_read_nothing_stops(local_ray, phantom, small_config, tmp_path):
    unreadable = tmp_path / "unreadable"
    shutil.copytree(phantom, unreadable)
    for video in (unreadable / "videos").rglob("*.*"):
        video.write_bytes(b"")
    with pytest.raises(TrainingError, match="no video could be read in 10 steps"):
        train(
            small_config(tmp_path, f"data.path={unreadable}", "training.num_steps=12", "training.checkpoint_every=12")
        )


def test_a_run_that_diverges_stops_and_says_what_it_was_fed(local_ray, phantom, small_config, tmp_path):
    """With two workers: each holds half of the units, and the first one writes all of them down."""
    wild = ("optim.lr=1e30", "optim.warmup_steps=0", "training.num_steps=12", "training.max_bad_steps=3")
    wild += ("training.ema_decay=0.9", "training.checkpoint_every=1")
    with pytest.raises(TrainingError, match="3 steps in a row"):
        train(small_config(tmp_path, *wild, "resources.num_workers=2"))
    (run,) = tmp_path.rglob("bad_steps.jsonl")
    records = [json.loads(line) for line in run.read_text().splitlines()]
    first = records[0]["step"]
    assert [record["step"] for record in records] == [first, first + 1, first + 2]
    for record in records:
        batch = [unit["position"] for unit in record["units"]]
        assert batch == list(range((record["step"] - 1) * len(batch), record["step"] * len(batch)))
        assert len(batch) == 12 and all(unit["unit_id"] for unit in record["units"])
    newest = run.parent / "checkpoints" / str(first + 1)
    state = torch.load(newest / "training_state.pt", weights_only=True)
    assert state["average"]["num_updates"] == first - 1  # the two that were left out are none


@pytest.mark.parametrize(
    ("assignment", "error", "says"),
    [
        ("data.path=/nowhere", DataError, "/nowhere/studies.parquet is missing"),
        ("data.filter=\"coronary_tree == 'middle'\"", DataError, "'train' is empty after data.filter"),
        ("text_encoder.name=/nowhere", ConfigError, "no tokenizer could be loaded"),
        ("captioning.vocab_size=7", ConfigError, "captioning.vocab_size is 7"),
        ("root=s3://bucket/runs", ConfigError, "is a URI"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(local_ray, small_config, tmp_path, assignment, error, says):
    with pytest.raises(error, match=says):
        train(small_config(tmp_path, assignment))
    assert not list(tmp_path.rglob("checkpoints"))


def test_more_workers_than_the_machine_holds_are_refused_with_the_sum(local_ray, small_config, tmp_path):
    config = small_config(tmp_path, "resources.num_workers=4", "resources.cpus_per_worker=1")
    with pytest.raises(ResourceError, match=r"4\.34 CPUs \(4 workers x 1 \+ one data task of 0\.34\), and there are 4"):
        train(config)
