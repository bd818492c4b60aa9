"""Clips that a sweep spends when it stops the trials that fall behind (ASHA), against running every trial to its end.

    python -m experiments.bench.sweep [--quick]

Two sweeps of the same drawn configurations (learning rates, over the range of ``tune_spaces/learning_rates.py`` and
above) on the demo's phantoms, one after the other: a clip is a clip on a machine of any speed. Bar: at most half of the
clips, and a best trial whose value on the validation patients is not worse by more than one standard deviation over
seeds: of the best configuration of the whole sweep, trained anew with seeds of which none was chosen for its value.
Clips are those that trials trained on until they ended, with what they went on for while it was being decided. A trial
that fails (a rate at which the loss is no number any more) has spent its clips, and is no candidate for the best.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from deepcoro.config import Config
from deepcoro.launch.space import load_space, with_fields
from deepcoro.launch.sweep import sweep
from deepcoro.launch.sweep_settings import Sweep
from experiments import demo
from experiments.bench.paired import machine, print_json

METRIC = "retrieval/report_to_video/mrr"
RATES = {"optim.lr": (1e-5, 3e-2), "optim.text_lr": (1e-6, 3e-2)}
HEADER = "from ray import tune\nOBJECTIVES = {objectives!r}\nSTART = {start!r}\n"


@click.command()
@click.option("--quick", is_flag=True, help="Fewer and shorter trials.")
@click.option("--seed", default=0, show_default=True, help="Of the configurations.")
def main(quick: bool, seed: int) -> None:
    """A small contrastive model; levels of ASHA at a ninth and a third of the steps."""
    num_trials, num_steps, num_seeds, num_studies = (8, 90, 3, 120) if quick else (18, 243, 5, 320)
    with tempfile.TemporaryDirectory(prefix="deepcoro-bench-") as place:
        folder = Path(place)
        config = make_config(folder, num_steps)
        demo.prepare(folder, config, num_studies, 0)
        points = draw(num_trials, seed)
        space = write_space(folder / "rates.py", RATES, points)
        began = time.perf_counter()
        whole = Results(sweep(Sweep(named(config, "whole"), load_space(space), num_trials, sampler="random")))
        middle = time.perf_counter()
        asha = sweep(Sweep(named(config, "asha"), load_space(space), num_trials, sampler="random", stopping="asha"))
        stopped, ended = Results(asha), time.perf_counter()
        best = with_fields(named(config, "seeds"), whole.best["params"])
        seeds = [{"seed": number} for number in range(1, num_seeds + 1)]
        again = Results(sweep(Sweep(best, load_space(write_seeds(folder / "seeds.py", seeds)), len(seeds))))

    if len(again.values) < num_seeds:
        raise RuntimeError(f"{num_seeds - len(again.values)} of {num_seeds} seeds of the best configuration failed")
    spread, worse = float(np.std(again.values, ddof=1)), whole.value - stopped.value
    ratio = stopped.clips / whole.clips
    print(f"\n{num_trials} configurations, up to {num_steps} steps of {config.training.batch_size} clips, {machine()}")
    for words, one, seconds in (("every trial to its end", whole, middle - began), ("ASHA", stopped, ended - middle)):
        told = f"{one.num_complete} to the end, {one.num_failed} failed"
        print(f"  {words:24} {one.clips:8d} clips, {seconds:6.0f} s, {told}, best {METRIC} {one.value:.3f}")
    print(f"  clips, ASHA over all     {ratio:8.3f}   (bar: 0.5)")
    print(f"  its best is worse by     {worse:8.3f}   (over {num_seeds} seeds its deviation is {spread:.3f})")
    figures = {
        "clips_whole": whole.clips,
        "clips_asha": stopped.clips,
        "best_whole": whole.value,
        "best_asha": stopped.value,
        "worse_by": worse,
        "seed_deviation": spread,
        "seed_values": again.values,
        "within_deviation": bool(worse <= spread),
        "same_best": whole.best["params"] == stopped.best["params"],
        "num_to_the_end": [whole.num_complete, stopped.num_complete],
        "num_failed": [whole.num_failed, stopped.num_failed],
        "seconds": [middle - began, ended - middle],
        "num_trials": num_trials,
        "num_steps": num_steps,
    }
    print_json("sweep", ratio, "lower", figures | {"device": machine()})


class Results:
    """What a sweep came to, from its folder."""

    def __init__(self, folder: Path) -> None:
        rows = json.loads((folder / "sweep.json").read_text())["trials"]
        failed = [row["error"] for row in rows if row["state"] == "fail"]
        complete = [row for row in rows if row["state"] == "complete"]
        if not complete:
            raise RuntimeError(f"no trial of {folder} came to its end; {len(failed)} failed: {failed[:1]}")
        self.num_failed = len(failed)
        self.num_complete = len(complete)
        self.values = [row["values"][METRIC] for row in complete]
        self.best: Mapping[str, Any] = max(complete, key=lambda row: row["values"][METRIC])
        self.value: float = self.best["values"][METRIC]
        batch = Config.load(folder / "config.yaml").training.batch_size
        self.clips: int = batch * sum(last_step(folder / "trials" / row["run"]) for row in rows)


def last_step(run: Path) -> int:
    """The last step that a run took; 0 of one that failed before its first."""
    if not (run / "metrics.jsonl").exists():
        return 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    return max((line["step"] for line in lines if "loss/total" in line), default=0)


def draw(number: int, seed: int) -> list[dict[str, float]]:
    """Configurations, drawn evenly over the logarithms."""
    generator = np.random.default_rng(seed)
    ends = np.log(list(RATES.values()))
    drawn = np.exp(generator.uniform(ends[:, 0], ends[:, 1], (number, len(RATES))))
    return [dict(zip(RATES, map(float, row), strict=True)) for row in drawn]


def write_space(path: Path, ranges: Mapping[str, tuple[float, float]], points: Sequence[Mapping[str, Any]]) -> Path:
    """A space of rates whose first points are ``points``: both sweeps try just these, in this order."""
    domains = ", ".join(f"{name!r}: tune.loguniform({low}, {high})" for name, (low, high) in ranges.items())
    head = HEADER.format(objectives={METRIC: "max"}, start=[dict(point) for point in points])
    path.write_text(f"{head}SPACE = {{{domains}}}\n")
    return path


def write_seeds(path: Path, points: Sequence[Mapping[str, Any]]) -> Path:
    """A space of seeds."""
    head = HEADER.format(objectives={METRIC: "max"}, start=[dict(point) for point in points])
    path.write_text(f"{head}SPACE = {{'seed': tune.choice({[point['seed'] for point in points]})}}\n")
    return path


def named(config: Config, name: str) -> Config:
    """``config`` under another name."""
    return config.merge({"name": name})


def make_config(folder: Path, num_steps: int) -> Config:
    """The demo's encoders, smaller, learning which report belongs to which cine and nothing else."""
    return demo.experiment().merge(
        {
            "root": str(folder / "runs"),
            "data": {"path": str(folder / "prepared"), "num_frames": 4, "frame_size": 48, "sample_fps": 3.0},
            "video_encoder": {"width": 64, "depth": 2, "num_heads": 4, "tubelet": (4, 8, 8)},
            "text_encoder": {"name": str(folder / "text_encoder")},
            "contrastive": {"embedding_dim": 64},
            "loss": {"weights": {"contrastive": 1.0, "captioning": 0.0, "masked_modeling": 0.0}},
            "optim": {"warmup_steps": 5},
            "training": {
                "num_steps": num_steps,
                "log_every": 1,
                "checkpoint_every": num_steps,
                "evaluate_every": num_steps // 9,
                "keep_checkpoints": 1,
                "pictures": False,
            },
            "evaluation": {"num_resamples": 100},
            "resources": {"cpus_per_worker": 0.5, "threads_per_worker": 1},
        }
    )


if __name__ == "__main__":
    main()
