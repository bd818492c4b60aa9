"""A run that starts from published weights, and goes on when they are gone; and a run that starts from that one."""

import json

import pytest

from deepcoro.config import Config
from deepcoro.launch.train import train
from tests.models.published import save_published


@pytest.mark.long
def test_a_run_from_published_weights_and_one_from_that(small_config, tmp_path, monkeypatch):
    save_published("timesformer", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    steps = ["training.num_steps=2", "optim.warmup_steps=1", "training.pictures=false"]
    losses = ["loss.weights.contrastive=0", "loss.weights.captioning=0"]
    config = small_config(tmp_path / "runs", "training.checkpoint_every=2", *losses)
    first = config.override(["video_encoder.pretrained=weights", *steps])
    run = train(first)
    saved = Config.load(run / "config.yaml").video_encoder
    assert saved.pretrained == str(tmp_path / "weights")
    assert saved.attention == "divided" and saved.position_grid == (4, 3, 3) and saved.tubelet == (1, 8, 8)

    (tmp_path / "weights").rename(tmp_path / "gone")
    train(first.override(["training.num_steps=4"]))
    manifest = json.loads((run / "checkpoints" / "4" / "manifest.json").read_text())
    assert manifest["step"] == 4

    second = train(config.override([f"video_encoder.pretrained={run}", "name=second", *steps]))
    about = Config.load(second / "config.yaml").video_encoder
    assert about.attention == "divided" and about.pretrained == str(run)
