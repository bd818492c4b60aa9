"""Seconds a step of the training loop with everything on, beside a bare loop over the same step; and a start by phase.

python -m experiments.bench.overhead [--quick]

Ours is ``launch.train.train`` on a small phantom: the data path at work (its stream is far too long to lie ready),
scalars each five steps, a checkpoint each fifty, positions checked. The bare loop is a process with the same model,
optimizer and number of torch threads, and takes batches of the same stream that lie ready in memory. The two take
turns, five steps each: while one works, the other is halted, so that a machine whose speed drifts slows both alike. Ray
lives beside both; what it costs the bare loop is measured when ours has ended, against the same loop alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

from data_prep.dicom.ingest import ingest
from data_prep.phantom.generate import write_phantom
from deepcoro.config import Config
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.models.text_encoder import save_small_text_encoder
from experiments.bench.paired import Pairs, machine, print_json

EVERY = 5  # steps a reading
WARMUP = 3  # readings of ours that do not count


@click.command()
@click.option("--quick", is_flag=True, help="Fewer pairs.")
def main(quick: bool) -> None:
    """6.5 million parameters, batch 16, 8 frames of 96x96; the bar is 5 % slower."""
    num_pairs = 4 if quick else 10
    with tempfile.TemporaryDirectory(prefix="deepcoro-bench-") as folder:
        config = make_config(Path(folder))
        file = Path(folder) / "config.yaml"
        config.save(file)
        run = Path(config.root) / config.name
        began = time.time()
        with start("ours", file, stdout=subprocess.PIPE) as ours:
            loop = Loop(ours, run)
            Config.load(run / "config.yaml").save(file)  # resolved, with the tokenizer's size
            with start("bare", file, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bare:
                bare_steps(bare)  # imports, model and warm-up
                ours_seconds, bare_seconds = [], []
                for number in range(num_pairs):
                    ours_seconds.append(loop.steps())
                    bare_seconds.append(bare_steps(bare))
                    print(f"  pair {number + 1}: loop {ours_seconds[-1]:.3f}, bare {bare_seconds[-1]:.3f} s a step")
                lines, phases = read_log(run)
                loop.worker.resume()
                ours.send_signal(signal.SIGTERM)  # it saves and ends
                imported = json.loads(ours.communicate()[0].splitlines()[0])["imported"]
                alone = [bare_steps(bare) for _ in range(max(3, num_pairs // 4))]
                bare.communicate()
    phases = {"process and imports": imported - began} | phases

    pairs = Pairs(1 / np.array(ours_seconds), 1 / np.array(bare_seconds))
    low, high = pairs.interval
    waits, told = (np.array([line[key] for line in lines]) for key in ("throughput/data_wait_share", "time"))
    # The log's shares are of all time; here the worker was halted for a part of it.
    wait = float(np.median(waits[WARMUP:] * np.diff(told)[WARMUP - 1 :] / (np.array(ours_seconds) * EVERY)))
    without_ray = float(np.median(alone)) / float(np.median(bare_seconds[-len(alone) :]))
    print(f"\n{num_pairs} pairs of {EVERY} steps, batch 16, 8 frames of 96x96, {machine()}")
    print(f"  training loop            {np.median(ours_seconds):8.3f} s a step")
    print(f"  bare loop                {np.median(bare_seconds):8.3f} s a step")
    print(f"  loop over bare           {pairs.ratio:8.3f}   (95% interval {low:.3f} to {high:.3f})")
    print(f"  bare without Ray beside  {without_ray:8.3f}   of its time with Ray (one stretch after the other)")
    print(f"  loop over bare alone     {pairs.ratio / without_ray:8.3f}   (from the two above)")
    print(f"  share waiting for data   {wait:8.3f}")
    print("  from the command to the first step, seconds by phase:")
    for name, seconds in phases.items():
        print(f"    {name:22} {seconds:8.2f}")
    figures: dict[str, object] = {
        "loop_seconds": float(np.median(ours_seconds)),
        "bare_seconds": float(np.median(bare_seconds)),
        "low": low,
        "high": high,
        "bare_without_ray": without_ray,
        "ratio_to_bare_without_ray": pairs.ratio / without_ray,
        "data_wait_share": wait,
        "startup_seconds": phases,
    }
    print_json("overhead", pairs.ratio, "lower", figures | {"device": machine()})


def make_config(folder: Path) -> Config:
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
            "num_steps": 10_000,  # it is stopped before
            "batch_size": 16,
            "precision": "fp32",
            "log_every": EVERY,
            "checkpoint_every": 50,
            "evaluate_every": None,
        },
        evaluation={"max_units": 4, "num_resamples": 10},
    )
    reader = UnitReader(config, PreparedDataset.open(str(prepared)).units("train"), None, training=False)
    reports = [text for unit in range(len(reader.units)) if (text := reader.text(unit))]
    save_small_text_encoder(reports, folder / "text_encoder", width=96)
    return config


def start(which: str, config: Path, **pipes: Any) -> subprocess.Popen[str]:
    """One of the two runs, in a process of its own; the bare one sees no more threads than a worker of Ray."""
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if which == "bare" else {})
    command = [sys.executable, "-m", "experiments.bench.overhead_runs", which, str(config)]
    return subprocess.Popen(command, text=True, env=environment, **pipes)


class Loop:
    """The training loop of ours: its worker is halted but for the steps that are asked for."""

    def __init__(self, ours: subprocess.Popen[str], run: Path) -> None:
        self.ours, self.run, self.num_lines = ours, run, WARMUP
        self._await_line()
        family = psutil.Process(ours.pid).children(recursive=True)
        [self.worker] = [process for process in family if process.name().startswith("ray::RayTrainWor")]
        self._halt()

    def steps(self) -> float:
        """Let the worker go on until its log has one line more: seconds a step."""
        already = self.halted - self.told  # of the next step, done before the halt
        begin = time.time()
        self.worker.resume()
        self.num_lines += 1
        self._await_line()
        seconds = already + self.told - begin
        self._halt()
        return seconds / EVERY

    def _await_line(self) -> None:
        while len(lines := read_log(self.run)[0]) < self.num_lines:
            if self.ours.poll() is not None:
                raise RuntimeError(f"the run ended with {self.ours.returncode}")
            time.sleep(0.005)
        self.told = lines[-1]["time"]

    def _halt(self) -> None:
        self.worker.suspend()
        self.halted = time.time()


def bare_steps(bare: subprocess.Popen[str]) -> float:
    """Have the bare loop take its steps: seconds a step."""
    assert bare.stdin is not None and bare.stdout is not None
    print(EVERY, file=bare.stdin, flush=True)
    return float(json.loads(bare.stdout.readline())["seconds"])


def read_log(run: Path) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Lines of ``metrics.jsonl`` with losses, and seconds of each phase of the start."""
    file, start = run / "metrics.jsonl", {}
    text = file.read_text() if file.exists() else ""
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    for line in lines:
        start |= {key.split("/")[1]: value for key, value in line.items() if key.startswith("startup/")}
    return [line for line in lines if "loss/total" in line], start


if __name__ == "__main__":
    main()
