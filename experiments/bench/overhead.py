"""Seconds a step of the training loop with everything on, beside a bare loop over the same step; and a start by phase.

python -m experiments.bench.overhead [--quick]

Ours is ``launch.train.train`` on a small phantom: data path live, scalars each ten steps, positions checked. The bare
loop is a process with the same model, optimizer and number of torch threads, and takes batches of the same stream that
lie ready in memory. Runs of the two take turns. A reading is the mean over ten steps, as the run's own log has them;
the ratio is that of the medians of a pair of runs, and its interval is drawn anew from the readings of each run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from data_prep.dicom.ingest import ingest
from data_prep.phantom.generate import write_phantom
from deepcoro.config import Config
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.models.text_encoder import save_small_text_encoder
from experiments.bench.paired import machine, print_json

EVERY = 10  # steps a reading
WARMUP = 2  # readings of each run that do not count


@click.command()
@click.option("--quick", is_flag=True, help="One pair of shorter runs.")
def main(quick: bool) -> None:
    """6.5 million parameters, batch 16, 8 frames of 96x96; the bar is 5 % slower."""
    num_pairs, num_steps = (1, 40) if quick else (3, 100)
    with tempfile.TemporaryDirectory(prefix="deepcoro-bench-") as folder:
        config = make_config(Path(folder), num_steps)
        ours: list[np.ndarray] = []
        bare: list[np.ndarray] = []
        logs: list[list[dict[str, float]]] = []
        starts: list[dict[str, float]] = []
        for number in range(num_pairs):
            log, start = train_alone(config.merge({"name": f"run{number}"}), Path(folder))
            logs.append(log)
            starts.append(start)
            ours.append(np.diff([line["time"] for line in log])[WARMUP - 1 :] / EVERY)
            bare.append(bare_alone(config.merge({"name": f"run{number}"}), Path(folder)))
            print(f"  pair {number + 1}: loop {np.median(ours[-1]):.3f}, bare {np.median(bare[-1]):.3f} s a step")

    ratio = float(np.median([np.median(a) / np.median(b) for a, b in zip(ours, bare, strict=True)]))
    low, high = interval(ours, bare)
    lines = [line for log in logs for line in log[WARMUP:]]
    wait = float(np.median([line["throughput/data_wait_share"] for line in lines]))
    told = [line["throughput/board_share"] for line in lines if "throughput/board_share" in line]
    print(f"\n{num_pairs} pairs of runs of {num_steps} steps, batch 16, 8 frames of 96x96, {machine()}")
    print(f"  training loop            {np.median(np.concatenate(ours)):8.3f} s a step")
    print(f"  bare loop                {np.median(np.concatenate(bare)):8.3f} s a step")
    print(f"  loop over bare           {ratio:8.3f}   (95% interval {low:.3f} to {high:.3f})")
    print(f"  share waiting for data   {wait:8.3f}")
    if told:
        print(f"  share of TensorBoard     {np.median(told):8.4f}")
    phases = {name: float(np.median([start[name] for start in starts if name in start])) for name in starts[0]}
    print("  from the command to the first step, seconds by phase:")
    for name, seconds in phases.items():
        print(f"    {name:22} {seconds:8.2f}")
    figures: dict[str, object] = {
        "loop_seconds": float(np.median(np.concatenate(ours))),
        "bare_seconds": float(np.median(np.concatenate(bare))),
        "low": low,
        "high": high,
        "data_wait_share": wait,
        "board_share": float(np.median(told)) if told else None,
        "startup_seconds": phases,
    }
    print_json("overhead", ratio, "lower", figures | {"device": machine()})


def interval(ours: list[np.ndarray], bare: list[np.ndarray]) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio: runs are drawn in pairs, and readings within each run."""
    chance = np.random.default_rng(0)
    drawn = [
        np.median(
            [
                np.median(chance.choice(ours[pair], len(ours[pair])))
                / np.median(chance.choice(bare[pair], len(bare[pair])))
                for pair in chance.integers(0, len(ours), len(ours))
            ]
        )
        for _ in range(2000)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def make_config(folder: Path, num_steps: int) -> Config:
    """A model whose step takes 0.5 to 1 s on a core, on phantoms of 16 frames of 96x96."""
    raw, prepared = folder / "raw", folder / "prepared"
    write_phantom(raw, 24, seed=0, size=96, num_frames=16, fps=10.0)
    ingest(raw / "dicom", prepared, reports=raw / "reports.parquet", videos=raw / "videos.parquet")
    config = Config(
        root=str(folder / "runs"),
        data={"path": str(prepared), "num_frames": 8, "frame_size": 96, "sample_fps": 5.0, "max_text_length": 128},
        video_encoder={"width": 256, "depth": 6, "num_heads": 4, "tubelet": (2, 12, 12)},
        text_encoder={"name": str(folder / "text_encoder")},
        contrastive={"embedding_dim": 128, "logit_bias": -3.0},
        captioning={
            "hidden_size": 128,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 384,
            "max_position_embeddings": 128,
            "max_generation_length": 16,
        },
        masked_modeling={"decoder_hidden_size": 64, "decoder_layers": 1, "decoder_heads": 2},
        optim={"warmup_steps": 5},
        training={
            "num_steps": num_steps,
            "batch_size": 16,
            "precision": "fp32",
            "log_every": EVERY,
            "checkpoint_every": num_steps,
            "evaluate_every": None,
        },
        evaluation={"max_units": 4, "num_resamples": 10},
    )
    reader = UnitReader(config, PreparedDataset.open(str(prepared)).units("train"), None, training=False)
    reports = [text for unit in range(len(reader.units)) if (text := reader.text(unit))]
    save_small_text_encoder(reports, folder / "text_encoder", width=96)
    return config


def train_alone(config: Config, folder: Path) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Lines of ``metrics.jsonl`` with losses, and seconds of each phase of the start, of a run in a fresh process."""
    file = folder / "config.yaml"
    config.save(file)
    began = time.time()
    said = subprocess.run(
        [sys.executable, "-m", "experiments.bench.overhead_runs", "ours", str(file)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    imported = json.loads(said.stdout.splitlines()[-1])["imported"]
    run = Path(config.root) / config.name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    start = {"process and imports": imported - began}
    for line in lines:
        start |= {key.split("/")[1]: value for key, value in line.items() if key.startswith("startup/")}
    return [line for line in lines if "loss/total" in line], start


def bare_alone(config: Config, folder: Path) -> np.ndarray:
    """Seconds a step of each reading of the bare loop in a fresh process, without the warm-up."""
    file = folder / "config.yaml"
    (Config.load(Path(config.root) / config.name / "config.yaml")).save(file)  # resolved, with the tokenizer's size
    said = subprocess.run(
        [sys.executable, "-m", "experiments.bench.overhead_runs", "bare", str(file)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return np.array(json.loads(said.stdout.splitlines()[-1])["seconds"])[WARMUP:]


if __name__ == "__main__":
    main()
