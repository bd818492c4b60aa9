"""A local Ray with four logical CPUs, and a small phantom that came in through the DICOM door."""

from __future__ import annotations

import pytest

from data_prep.dicom.ingest import ingest
from data_prep.phantom.generate import write_phantom
from deepcoro.config import Config
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.models.text_encoder import save_small_text_encoder
from tests.integration.sweeping import SPACE


@pytest.fixture(scope="session")
def local_ray():
    import ray

    from deepcoro.launch.resources import start_ray

    start_ray(num_cpus=4)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def phantom(tmp_path_factory, local_ray):
    """24 phantom studies of two small cines each, as a prepared dataset."""
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder / "raw", 24, seed=3, size=64, num_frames=16, fps=10.0)
    prepared = folder / "prepared"
    ingest(
        folder / "raw" / "dicom",
        prepared,
        reports=folder / "raw" / "reports.parquet",
        videos=folder / "raw" / "videos.parquet",
    )
    return prepared


@pytest.fixture(scope="session")
def phantom_text(phantom, tmp_path_factory):
    """A tiny text encoder whose tokenizer knows the phantom's reports, by clip and by study."""
    reports = []
    for unit in ("video", "study"):
        units = PreparedDataset.open(str(phantom)).units("train", unit)
        reader = UnitReader(Config(), units, None, training=False)
        reports += [reader.text(number) for number in range(len(units))]
    folder = tmp_path_factory.mktemp("text") / "encoder"
    save_small_text_encoder(reports, folder, width=32, depth=1, num_heads=2)
    return folder


@pytest.fixture(scope="session")
def small_config(phantom, phantom_text):
    """``small_config(root, "section.field=value", ...)`` -> a Config that trains on the phantom in seconds."""

    def make(root, *assignments):
        config = Config(
            name="small",
            root=str(root),
            data={
                "path": str(phantom),
                "num_frames": 4,
                "frame_size": 48,
                "sample_fps": 3.0,
                "max_text_length": 128,
            },
            video_encoder={"size": "tiny", "width": 48, "depth": 2, "num_heads": 3, "tubelet": (2, 12, 12)},
            text_encoder={"name": str(phantom_text)},
            contrastive={"embedding_dim": 32, "logit_bias": -2.0},
            captioning={
                "hidden_size": 48,
                "num_layers": 1,
                "num_heads": 3,
                "intermediate_size": 96,
                "max_position_embeddings": 128,
                "max_generation_length": 24,
                "dropout": 0.0,
            },
            masked_modeling={"decoder_hidden_size": 48, "decoder_layers": 1, "decoder_heads": 3},
            optim={"lr": 1e-3, "text_lr": 1e-3, "captioning_lr": 1e-3, "mvm_lr": 1e-3, "warmup_steps": 2},
            training={
                "num_steps": 6,
                "batch_size": 12,
                "precision": "fp32",
                "log_every": 1,
                "checkpoint_every": 3,
                "evaluate_every": None,
            },
            resources={"cpus_per_worker": 0.5, "threads_per_worker": 1, "batches_per_block": 2},
            evaluation={"batch_size": 16, "num_resamples": 100},
        )
        return config.override(assignments)

    return make


@pytest.fixture(scope="session")
def tiny_sweep(make_dataset, tiny_config, tmp_path_factory):
    """``tiny_sweep("section.field=value", ...)`` -> a folder with experiment.yaml and space.py: twelve cines of twelve
    patients to train on, four to validate, and trials of a second."""
    data = tmp_path_factory.mktemp("data")
    studies, videos = [], []
    for number in range(16):
        side, segment = ("left", "prox_lad") if number % 2 else ("right", "mid_rca")
        finding = {"segment": segment, "stenosis": 50 + 5 * (number // 2), "occlusion": "none"}
        told = {"dominance": "right", "findings": [finding]}
        split = "train" if number < 12 else "val"
        studies.append({"study_id": f"s{number}", "split": split, **told})
        videos.append({"video_id": f"v{number}", "study_id": f"s{number}", "coronary_tree": side})
    path = make_dataset(data, studies, videos)

    def make(*assignments):
        folder = tmp_path_factory.mktemp("sweep")
        config = tiny_config(
            f"root={folder / 'runs'}",
            f"data.path={path}",
            "name=s",
            "loss.weights.captioning=0",
            "training.num_steps=12",
            "training.checkpoint_every=4",
            "training.evaluate_every=6",
            "training.log_every=1",
            "training.pictures=false",
            "resources.cpus_per_worker=0.5",
            "resources.threads_per_worker=1",
            "evaluation.num_resamples=10",
            *assignments,
        )
        config.save(folder / "experiment.yaml")
        (folder / "space.py").write_text(SPACE)
        return folder

    return make
