"""Clips a second of the data path through Ray Data, beside a torch DataLoader that decodes the same positions.

python -m experiments.bench.data [--quick]

Both read the same blocks of the stream by the same function, on all cores, while the same local Ray is live; they take
turns, pair by pair. The consumer takes batches and does nothing else. Order is checked position by position. A run's
clock starts after a warm-up of twice the work in flight, and stops before the stream runs dry. Tasks that start
together end together, so the clips come in waves of what is in flight: the clock runs over whole waves, since with a
part of one it would measure where in a wave it was stopped.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import ray
import ray.data
import torch
from torch.utils.data import DataLoader, Dataset

from data_prep.dicom.ingest import ingest
from data_prep.phantom.generate import write_phantom
from deepcoro.config import Config
from deepcoro.data.order import Order, StreamLayout
from deepcoro.data.pipeline import iterate, stream_layout, training_dataset
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset, Units
from deepcoro.launch.resources import start_ray
from experiments.bench.paired import Pairs, print_json

BATCH = 16


@click.command()
@click.option("--quick", is_flag=True, help="Three pairs of fewer clips.")
@click.option("--pairs", "num_pairs", default=5, show_default=True)
@click.option("--batches-per-block", default=None, type=int, help="Default: that of the config.")
@click.option("--cpus-per-data-task", default=None, type=float, help="Default: that of the config.")
def main(quick: bool, num_pairs: int, batches_per_block: int | None, cpus_per_data_task: float | None) -> None:
    """16 frames of 224x224 out of 32 of 256x256; the bar is 0.85 of the DataLoader."""
    num_pairs = 3 if quick else num_pairs
    cores = os.cpu_count() or 1
    resources: dict[str, Any] = {"batches_per_block": batches_per_block}
    if cpus_per_data_task is not None:
        resources["cpus_per_data_task"] = cpus_per_data_task
    with tempfile.TemporaryDirectory(prefix="deepcoro-bench-") as folder:
        config = Config(
            data={"path": make_dataset(Path(folder)), "pixel_mean": 100.0, "pixel_std": 40.0},
            loss={"weights": {"contrastive": 0.0, "captioning": 0.0, "masked_modeling": 1.0}},
            training={"batch_size": BATCH, "num_steps": 10**6},
            resources=resources,
        )
        block = BATCH * config.batches_per_block
        in_flight = block * int(cores / config.resources.cpus_per_data_task)
        num_measured = in_flight * -(-(256 if quick else 1536) // in_flight)
        num_clips = 2 * in_flight + num_measured + in_flight
        config = config.merge({"training": {"num_steps": num_clips // BATCH}, "optim": {"warmup_steps": 0}})
        units = PreparedDataset.open(config.data.path).units("train")
        window = (2 * in_flight, num_measured)
        print(
            f"{len(units)} cines, blocks of {block} clips of 16x224x224, {cores} cores, "
            f"{config.resources.cpus_per_data_task:g} CPUs a task; {num_measured} clips a run after {window[0]}"
        )
        without_ray = [rate(through_loader(config, units, cores), *window) for _ in range(1 if quick else 2)]
        start_ray()
        reference = ray.put(units)
        stored = bytes_per_clip(config, reference)
        rates: tuple[list[float], list[float]] = ([], [])
        for number in range(num_pairs):
            rates[0].append(rate(through_ray(config, reference), *window))
            rates[1].append(rate(through_loader(config, units, cores), *window))
            print(f"  pair {number + 1}: Ray Data {rates[0][-1]:7.1f}   DataLoader {rates[1][-1]:7.1f} clips/s")
        ray.shutdown()
    pairs = Pairs(1 / np.array(rates[0]), 1 / np.array(rates[1]))
    low, high = pairs.interval
    clip = config.data.num_frames * config.data.frame_size**2
    print(f"  Ray Data                        {np.median(rates[0]):8.1f} clips/s")
    print(f"  DataLoader, Ray live beside it  {np.median(rates[1]):8.1f} clips/s")
    print(f"  DataLoader, no Ray              {np.median(without_ray):8.1f} clips/s")
    print(f"  of the DataLoader's rate        {pairs.ratio:8.2f}   (95% interval {low:.2f} to {high:.2f})")
    print(f"  bytes a clip in the store       {stored:8.0f}   ({stored / clip:.3f} of its pixels)")
    figures = {
        "ray_clips_per_second": float(np.median(rates[0])),
        "loader_clips_per_second": float(np.median(rates[1])),
        "loader_without_ray_clips_per_second": float(np.median(without_ray)),
        "low": low,
        "high": high,
        "bytes_per_clip": stored,
        "bytes_per_clip_over_pixels": stored / clip,
        "clips_per_block": block,
        "cpus_per_data_task": config.resources.cpus_per_data_task,
        "cores": cores,
    }
    print_json("data", pairs.ratio, "higher", figures)


def make_dataset(folder: Path) -> str:
    """Phantom cines of 32 frames of 256x256 that came in through the DICOM door."""
    write_phantom(folder / "raw", 16, seed=0, size=256, num_frames=32, fps=15.0)
    prepared, raw = folder / "prepared", folder / "raw"
    ingest(raw / "dicom", prepared, reports=raw / "reports.parquet", videos=raw / "videos.parquet")
    return str(prepared)


def rate(batches: Iterator[dict[str, Any]], skipped: int, measured: int) -> float:
    """Clips a second over ``measured`` clips after ``skipped``; the rest is taken too, so that nothing goes on beside
    what is measured next."""
    taken, begin, end = 0, 0.0, 0.0
    for batch in batches:
        positions = np.asarray(batch["position"])
        if not np.array_equal(positions, np.arange(taken, taken + len(positions))):
            raise RuntimeError(f"positions {positions} came where {taken} onwards should")
        if not np.asarray(batch["valid"]).all():
            raise RuntimeError("a cine could not be read")
        taken += len(positions)
        if taken == skipped:
            begin = time.perf_counter()
        if taken == skipped + measured:
            end = time.perf_counter()
    return measured / (end - begin)


def through_ray(config: Config, units: ray.ObjectRef[Units]) -> Iterator[dict[str, Any]]:
    """What a training worker iterates over."""
    dataset = training_dataset(config, units, None, 0)
    dataset.context.execution_options.preserve_order = True  # as launch.train asks Ray Train to
    [shard] = dataset.streaming_split(1, equal=True)
    yield from iterate(shard, config.micro_batch_size)


class Blocks(Dataset):
    """The blocks of the stream, as tensors, which a DataLoader's workers hand over in shared memory."""

    def __init__(self, config: Config, units: Units, layout: StreamLayout) -> None:
        self.layout, self.order = layout, Order(len(units), config.seed)
        self.reader = UnitReader(config, units, None, training=True)

    def __len__(self) -> int:
        return self.layout.num_blocks

    def __getitem__(self, block: int) -> dict[str, Any]:
        positions = self.layout.positions(block)
        rows: dict[str, Any] = dict(self.reader.read(positions, self.order.units(positions)))
        return {key: value if value.dtype.kind in "OUS" else torch.from_numpy(value) for key, value in rows.items()}


def through_loader(config: Config, units: Units, num_workers: int) -> Iterator[dict[str, Any]]:
    """The reference: blocks from worker processes, cut into batches."""
    blocks = Blocks(config, units, stream_layout(config, 0))
    start = {"num_workers": num_workers, "multiprocessing_context": "spawn"}  # a process that runs Ray must not fork
    for block in DataLoader(blocks, batch_size=None, **start):
        for begin in range(0, len(block["position"]), config.micro_batch_size):
            yield {key: values[begin : begin + config.micro_batch_size] for key, values in block.items()}


def bytes_per_clip(config: Config, units: ray.ObjectRef[Units]) -> float:
    """Size of a few blocks where they lie in the object store, over their clips."""
    per_block = config.micro_batch_size * config.batches_per_block
    few = config.merge({"training": {"num_steps": 4 * config.batches_per_block}})
    blocks = training_dataset(few, units, None, 0).materialize().to_arrow_refs()
    sizes = [place["object_size"] for place in ray.experimental.get_object_locations(blocks).values()]
    return sum(sizes) / (len(sizes) * per_block)


if __name__ == "__main__":
    main()
