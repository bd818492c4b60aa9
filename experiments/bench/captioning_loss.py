"""The captioning loss from chunks of tokens beside cross-entropy of all logits at once: memory and time.

python -m experiments.bench.captioning_loss [--quick]

Both take hidden states and the output weight, every token asked, label smoothing 0.1, and give the loss and both
gradients; first they must give the same. Memory is the peak of a process that does one pass and nothing else, the
process itself and the inputs counted; on a GPU what torch allocated there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import click
import numpy as np
import torch
from torch import Tensor

from deepcoro.losses.captioning import captioning_loss, chunked_captioning_loss
from experiments.bench.paired import device, machine, peak_gb, print_json, time_pairs

WIDTH, VOCABULARY = 512, 30522
SHAPE, QUICK_SHAPE = (64, 256), (8, 128)  # reports, tokens
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@click.command()
@click.option("--quick", is_flag=True, help="A sixteenth of the tokens, three pairs.")
@click.option("--chunk-size", type=int, help="Tokens at once; 1024, or with --quick 256, where it is not given.")
@click.option("--pairs", type=int, help="Pairs of passes that are timed; 5 where it is not given.")
@click.option("--alone", hidden=True, help="ours, theirs or inputs: run this once and print the memory it took.")
def main(quick: bool, chunk_size: int | None, pairs: int | None, alone: str | None) -> None:
    """64 reports of 256 tokens, 30,522 words, width 512. The bars: memory five times lower, time not over 1.15."""
    shape = QUICK_SHAPE if quick else SHAPE
    chunk_size = chunk_size or (256 if quick else 1024)
    if alone is not None:
        print(json.dumps(measure_alone(alone, shape, chunk_size)))
        return
    print(f"{shape[0]} reports of {shape[1]} tokens, {VOCABULARY} words, chunks of {chunk_size}, {machine()}")
    peaks = {whose: in_a_process(whose, quick, chunk_size) for whose in ("inputs", "ours", "theirs")}
    ratio = peaks["theirs"] / peaks["ours"]
    own = (peaks["theirs"] - peaks["inputs"]) / (peaks["ours"] - peaks["inputs"])
    print(f"  peak memory  {peaks['ours']:.2f} beside {peaks['theirs']:.2f} GB: {ratio:.1f} times lower", flush=True)
    print(f"               of which {peaks['inputs']:.2f} GB are inputs and process; without them {own:.1f} times")
    hidden, weight, targets = inputs(shape)
    ours, theirs = (pass_of(whose, hidden, weight, targets, chunk_size) for whose in ("ours", "theirs"))
    assert_same(ours(), theirs())
    timed = time_pairs(ours, theirs, pairs or (3 if quick else 5))
    low, high = timed.interval
    seconds = [float(np.median(s)) for s in (timed.ours, timed.theirs)]
    print(
        f"  seconds      {seconds[0]:.3f} beside {seconds[1]:.3f}: {1 / timed.ratio:.2f} of their time "
        f"(95% interval {1 / high:.2f} to {1 / low:.2f}, {len(timed.ours)} pairs)"
    )
    figures: dict[str, object] = {
        "device": machine(),
        "precision": str(precision())[6:],
        "shape": [*shape, VOCABULARY],
        "chunk_size": chunk_size,
        "peak_gb": peaks,
        "memory_ratio_without_inputs": own,
        "seconds": {"ours": seconds[0], "theirs": seconds[1]},
        "time_ratio": 1 / timed.ratio,
        "time_interval": [1 / high, 1 / low],
    }
    print_json("captioning_loss", ratio, "higher", figures)


def inputs(shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [B, L, WIDTH], output weight [VOCABULARY, WIDTH] and targets [B, L], all asked."""
    chance = torch.Generator().manual_seed(0)
    hidden = torch.randn(*shape, WIDTH, generator=chance).to(device(), precision()).requires_grad_()
    weight = (0.02 * torch.randn(VOCABULARY, WIDTH, generator=chance)).to(device()).requires_grad_()
    return hidden, weight, torch.randint(0, VOCABULARY, shape, generator=chance).to(device())


def pass_of(
    whose: str, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int
) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """One forward and backward pass -> the mean loss and both gradients."""

    def once() -> tuple[Tensor, Tensor, Tensor]:
        hidden.grad = weight.grad = None
        if whose == "ours":
            total = chunked_captioning_loss(hidden, weight, targets, chunk_size=chunk_size)
        else:
            total = captioning_loss(hidden @ weight.to(hidden.dtype).T, targets)
        mean = total / targets.numel()
        mean.backward()
        assert hidden.grad is not None and weight.grad is not None
        return mean.detach(), hidden.grad, weight.grad

    return once


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    """End the benchmark where loss or gradients differ: a cheaper way to other numbers is none."""
    for what, a, b in zip(("loss", "gradient of hidden", "gradient of weight"), ours, theirs, strict=True):
        difference = ((a - b).abs().max() / b.abs().max()).item()
        if not difference < TOLERANCE[precision()]:
            raise SystemExit(f"the two do not agree: {what} differs by {difference} of its largest value")


def in_a_process(whose: str, quick: bool, chunk_size: int) -> float:
    """GB at the peak of a process that does one pass."""
    command = [sys.executable, "-m", "experiments.bench.captioning_loss", "--chunk-size", str(chunk_size)]
    command += [*(["--quick"] if quick else []), "--alone", whose]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(run.stdout.splitlines()[-1])["peak_gb"])


def measure_alone(whose: str, shape: tuple[int, int], chunk_size: int) -> dict[str, float]:
    """The memory of one pass, or of making the inputs alone."""
    hidden, weight, targets = inputs(shape)
    if whose != "inputs":
        pass_of(whose, hidden, weight, targets, chunk_size)()
    return {"peak_gb": peak_gb()}


def precision() -> torch.dtype:
    """Of the hidden states and the products: half on a GPU."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


if __name__ == "__main__":
    main()
