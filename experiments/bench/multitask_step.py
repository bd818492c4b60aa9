"""What masked modelling adds to a training step, and what one masked pass for all losses saves.

python -m experiments.bench.multitask_step [--size base] [--batch 1] [--quick]

Whole steps (``training.step.train_step``: forward, losses, backward, clipping, AdamW) of one model on one batch of
noise, with random weights and texts of 128 tokens without padding, in turn, so that each round is a pair of each with
the first:

- *masked modelling*: contrastive + captioning + masked modelling at the default ratio 0.75, beside contrastive +
  captioning. The bar: at most 1.35 times as long.
- *shared pass*: all three losses from one masked pass that hides half of the tokens, beside contrastive + captioning
  from all tokens. The bar: at most 0.7 of the time. Without masked modelling (FLIP alone) it is told too.

Sizes are those of ``bench/step.py``: base is the real experiment, 16x224x224 and BERT-base. On a CPU a batch is one
clip, with which five rounds take some five minutes of 2 idle cores, and ``--quick``, two rounds, half of that; the
update of the 240 million weights, which no mask makes shorter, then weighs more than in a real batch. On a GPU it is
32 clips.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch

from deepcoro.training.step import train_step
from experiments.bench.paired import Pairs, machine, peak_gb, print_json
from experiments.bench.step import SIZES, TOKENS, Workload

BOTH = ("contrastive", "captioning")
ALL = (*BOTH, "masked_modeling")
SHARED_RATIO = 0.5
BARS = {"masked modelling": 1.35, "shared pass": 0.7}
MEMORY = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # of Linux: begins a new peak, and tells it


@click.command()
@click.option("--size", type=click.Choice([*SIZES]), default="base", show_default=True)
@click.option("--batch", type=click.IntRange(min=1), help="Clips; 1 on a CPU, 32 on a GPU.")
@click.option("--quick", is_flag=True, help="Two rounds.")
def main(size: str, batch: int | None, quick: bool) -> None:
    """The ratio is the larger share of its bar that one of the two takes: below 1, both bars are met."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    precision, clips, num_pairs = {"cuda": "bf16", "cpu": "fp32"}[kind], batch or {"cuda": 32, "cpu": 1}[kind], 5
    if quick:
        num_pairs = 2
    work = Workload.make(size, clips, torch.device(kind), precision)
    shown = {ratio: work.config.masked_modeling.num_visible(work.config.grid, ratio) for ratio in (0.75, SHARED_RATIO)}
    steps = {
        "contrastive + captioning": step_of(work, BOTH, shown[0.75]),
        "masked modelling": step_of(work, ALL, shown[0.75]),
        "shared pass": step_of(work, ALL, shown[SHARED_RATIO], shared=True),
        "shared pass, no modelling": step_of(work, BOTH, shown[SHARED_RATIO], shared=True),
    }
    print(f"{size}, {clips} clips, texts of {TOKENS} tokens, {precision}, {machine(kind)}", flush=True)
    steps["masked modelling"]()  # makes the optimizer's state, all of it
    memory = {name: peak_of(step) for name, step in steps.items()}
    seconds = np.array([[time_of(step) for step in steps.values()] for _ in range(num_pairs)])
    found = {name: Pairs(seconds[:, n], seconds[:, 0]) for n, name in enumerate(steps) if n > 0}
    print(
        f"  {'beside contrastive + captioning':<32}{'ratio':>7}   {'95% interval':<16}{'s':>8}{'beside':>9}{'bar':>6}"
    )
    figures: dict[str, object] = {"device": machine(kind), "size": size, "clips": clips, "precision": precision}
    for name, pairs in found.items():
        about = told(pairs)
        figures[name] = about
        bar, times = f"{BARS[name]:.2f}" if name in BARS else "", f"{about['seconds']:>8.2f}{about['beside']:>9.2f}"
        interval = f"{about['low']:.3f} to {about['high']:.3f}"
        print(f"  {name:<32}{about['ratio']:>7.3f}   {interval:<16}{times}{bar:>6}")
    print("  memory at the peak, GB: " + ", ".join(f"{name} {peak:.2f}" for name, peak in memory.items()))
    figures["memory_gb"] = memory
    worst = max(told(found[name])["ratio"] / bar for name, bar in BARS.items())
    print_json("multitask_step", worst, "lower", figures)


def step_of(work: Workload, losses: tuple[str, ...], num_visible: int, shared: bool = False) -> Callable[[], object]:
    """A training step that computes ``losses``."""
    weights = {name: work.loss.loss_weights[name] for name in losses}

    def step() -> None:
        train_step(
            work.model, work.loss, work.optimizer, [work.batch], weights, num_visible, work.precision,
            shared_pass=shared,
        )  # fmt: skip

    return step


def told(pairs: Pairs) -> dict[str, float]:
    """Our time over the other's, with its interval, and the seconds of both."""
    low, high = pairs.interval
    ours, theirs = (float(np.median(seconds)) for seconds in (pairs.ours, pairs.theirs))
    return {"ratio": 1 / pairs.ratio, "low": 1 / high, "high": 1 / low, "seconds": ours, "beside": theirs}


def time_of(step: Callable[[], object]) -> float:
    """Seconds; a GPU is waited for."""
    begin = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def peak_of(step: Callable[[], object]) -> float:
    """GB at the peak of a run of ``step``, of the process or of a GPU; where neither can tell, of all runs so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        step()
        return peak_gb()
    begins, told_by = MEMORY
    if not begins.exists():
        step()
        return peak_gb()
    begins.write_text("5")
    step()
    (line,) = (line for line in told_by.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


if __name__ == "__main__":
    main()
