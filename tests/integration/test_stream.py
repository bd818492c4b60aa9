"""The joint batch of step s is positions [s*B, (s+1)*B) of the stream, whatever the number of workers."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import ray
from ray.train import DataConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from deepcoro.data import pipeline
from deepcoro.data.order import Order
from deepcoro.data.pipeline import iterate, training_dataset
from deepcoro.data.tables import PreparedDataset
from deepcoro.launch.train import resolve


def record_positions(settings):
    """A worker that only notes what it was given, and takes its own time over it."""
    rank = ray.train.get_context().get_world_rank()
    seen = []
    for batch in iterate(ray.train.get_dataset_shard("train"), settings["micro"]):
        time.sleep(0.02 * rank)  # workers of unequal speed
        seen.append([batch["position"].tolist(), batch["unit_id"].tolist()])
    with open(f"{settings['folder']}/{rank}.json", "w") as stream:  # noqa: PTH123
        json.dump(seen, stream)


@pytest.mark.parametrize(
    ("num_workers", "accumulation", "start", "most_tasks"),
    [
        pytest.param(1, 1, 24, 1000, marks=pytest.mark.long),  # every run holds its batches against the stream too
        (2, 1, 0, 1000),
        pytest.param(3, 1, 12, 1000, marks=pytest.mark.long),
        (2, 2, 12, 1000),
        (2, 1, 12, 3),
    ],
    ids=["1 worker", "2 workers", "3 workers", "accumulated", "planned as a long run is"],
)
def test_joint_batch_is_the_streams_next_positions(
    local_ray, phantom, small_config, tmp_path, num_workers, accumulation, start, most_tasks
):
    config = small_config(
        tmp_path,
        f"resources.num_workers={num_workers}",
        f"training.accumulation_steps={accumulation}",
        "training.num_steps=9",
        "loss.weights.contrastive=0",
        "loss.weights.captioning=0",
    )
    dataset = PreparedDataset.open(str(phantom))
    units = dataset.units("train")
    config = resolve(config, dataset, units)
    reference = ray.put(units)

    def stream():  # called in a process of Ray's
        pipeline._MOST_TASKS = most_tasks
        return training_dataset(config, reference, None, start)

    TorchTrainer(
        record_positions,
        train_loop_config={"micro": config.micro_batch_size, "folder": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=str(tmp_path / "ray"), logging_config=LoggingConfig(log_level="ERROR")),
        datasets={"train": stream},
        dataset_config=DataConfig(execution_options=ray.data.ExecutionOptions(preserve_order=True)),
    ).fit()

    by_worker = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(num_workers)]
    size, names = config.training.batch_size, units.videos["video_id"].to_pylist()
    steps = config.training.num_steps - start // size
    assert {len(batches) for batches in by_worker} == {steps * accumulation}
    for step in range(steps):
        joint = [
            pair
            for batches in by_worker
            for positions, ids in batches[step * accumulation : (step + 1) * accumulation]
            for pair in zip(positions, ids, strict=True)
        ]
        begin = start + step * size
        assert sorted(position for position, _ in joint) == list(range(begin, begin + size))
        order = Order(len(units), config.seed).units(np.arange(begin, begin + size))
        assert [unit for _, unit in sorted(joint)] == [names[unit] for unit in order]
