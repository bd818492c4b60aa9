"""The real archive of ../shared: every file is accounted for, and masked modelling learns from the real cine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.dicom.ingest import ingest
from deepcoro.launch.train import train

SHARED = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}"),
]


@pytest.fixture(scope="module")
def real(local_ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real") / "prepared"
    ingest(SHARED, folder, modalities=None, val_fraction=0, test_fraction=0)
    return folder


def test_every_file_is_accounted_for_and_the_real_cine_kept(real):
    videos, quarantine = pq.read_table(real / "videos.parquet"), pq.read_table(real / "quarantine.parquet")
    assert len(videos) + len(quarantine) == sum(path.is_file() for path in SHARED.rglob("*"))
    cine = [row for row in videos.to_pylist() if row["num_frames"] == 96]
    assert len(cine) == 1
    assert (cine[0]["height"], cine[0]["width"]) == (512, 512)
    assert (cine[0]["primary_angle"], cine[0]["secondary_angle"]) == (-32, 2)
    assert cine[0]["fps"] == pytest.approx(1000 / 33, rel=1e-3)


def test_a_hundred_steps_of_masked_modelling_bring_the_loss_down_by_a_fifth(real, small_config, tmp_path):
    config = small_config(
        tmp_path,
        f"data.path={real}",
        "data.filter='num_frames > 50'",
        "text_encoder.name=/nowhere",
        "training.num_steps=100",
        "training.batch_size=4",
        "training.checkpoint_every=100",
    )
    run = train(config)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss/masked_modeling"] for line in lines if "loss/total" in line]
    assert len(losses) == 100
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert not (run / "tokenizer").exists()
