"""Our contrastive losses beside the plain ones, which hold the whole matrix of logits: peak memory, and time.

python -m experiments.bench.contrastive [--quick] [--largest ROWS]

Forward and backward on random unit vectors of 512 numbers, each row its own positive. Every line of the table is a
process of its own, or one for each worker: it compares values and gradients, takes the memory of one pass over what
was there before it, and then the time of both in turn. With several workers (gloo) the plain loss gathers the texts of
all and holds its own rows x all columns; memory is that of one worker. Rows are those of all workers.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from deepcoro.losses.contrastive import CONTRASTIVE_LOSSES
from experiments.bench.paired import Pairs, machine, print_json, time_pairs

WIDTH = 512
KINDS = ("sigmoid", "softmax")
AT = 8192  # rows at which the bar is
TOLERANCE = 1e-4  # of the largest value


@click.command()
@click.option("--quick", is_flag=True, help="1k and 8k rows; three rounds, and one of the large.")
@click.option("--largest", type=int, default=16384, help="Most rows.")
@click.option("--alone", nargs=6, hidden=True, help="Kind, rows, rounds, workers, rank, folder: measure this here.")
def main(quick: bool, largest: int, alone: tuple[str, ...] | None) -> None:
    """The bars: at 8k rows in one process a quarter of the plain loss' memory or less, and 1.1 of its time or less."""
    if alone is not None:
        kind, rows, rounds, world, rank, folder = alone
        print(json.dumps(measure(kind, int(rows), int(rounds), int(world), int(rank), folder)))
        return
    sizes = [rows for rows in ((1024, AT) if quick else (1024, 2048, 4096, 8192, 16384)) if rows <= largest]
    at = min(AT, sizes[-1])
    shapes = [(rows, 1) for rows in sizes]
    if not torch.cuda.is_available():
        shapes += [(sizes[0] if quick else at, world) for world in (2, 4)]
    figures: dict[str, object] = {"device": machine(), "width": WIDTH}
    print(f"vectors of {WIDTH}, {machine()}; memory over what was there, forward + backward")
    ratios = []
    for kind in KINDS:
        for rows, world in shapes:
            found = in_processes(kind, rows, (1 if rows == AT else 3) if quick else 5, world)
            figures[f"{kind}/{rows} rows/{world} workers"] = found
            print(
                f"  {kind}, {rows:6} rows, {world} worker{'s' if world > 1 else ' '}: "
                f"{found['ours_mb']:7.0f} beside {found['plain_mb']:7.0f} MB: {found['memory_ratio']:5.1f} times less; "
                f"{found['ours_seconds']:7.3f} beside {found['plain_seconds']:7.3f} s: {found['time_ratio']:.2f} of "
                f"its time (95% interval {found['low']:.2f} to {found['high']:.2f})",
                flush=True,
            )
            if (rows, world) == (at, 1):
                ratios.append(found["memory_ratio"])
    print_json("contrastive", min(ratios), "higher", figures)


def in_processes(kind: str, rows: int, rounds: int, world: int) -> dict[str, float]:
    """What the first of ``world`` processes found."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "experiments.bench.contrastive", "--alone", kind, str(rows), str(rounds)]
        running = [
            subprocess.Popen([*command, str(world), str(rank), folder], stdout=subprocess.PIPE, text=True)
            for rank in range(world)
        ]
        told = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"{kind}, {rows} rows, {world} workers: a process failed")
    return json.loads(told[0].splitlines()[-1])


def measure(kind: str, rows: int, rounds: int, world: int, rank: int, folder: str) -> dict[str, float]:
    """Memory and seconds of both, on this worker's share of the rows."""
    if world > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    assert_same(kind, world, rank)  # and what is made once, such as threads and their buffers, is there
    leaves, key = draw(rows, world, rank)
    ours, plain = pass_of(our_loss, kind, leaves, key), pass_of(plain_loss, kind, leaves, key)
    memory = [peak_mb(run, leaves) for run in (ours, plain)]
    pairs: Pairs = time_pairs(ours, plain, rounds)
    inverse = Pairs(pairs.theirs, pairs.ours)  # our time over theirs
    low, high = inverse.interval
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    return {
        "ours_mb": memory[0],
        "plain_mb": memory[1],
        "memory_ratio": memory[1] / max(memory[0], 1e-3),
        "ours_seconds": float(np.median(pairs.ours)),
        "plain_seconds": float(np.median(pairs.theirs)),
        "time_ratio": inverse.ratio,
        "low": low,
        "high": high,
    }


def draw(rows: int, world: int, rank: int) -> tuple[list[Tensor], Tensor]:
    """This worker's videos and texts, scale and bias; and its keys, all different."""
    chance = torch.Generator().manual_seed(rank)
    share = rows // world
    unit = [F.normalize(torch.randn(share, WIDTH, generator=chance), dim=1) for _ in range(2)]
    leaves = [*unit, torch.tensor(10.0), torch.tensor(-8.0)]
    key = torch.arange(share) + share * rank
    return [x.to(device()).requires_grad_() for x in leaves], key.to(device())


def our_loss(kind: str, video: Tensor, text: Tensor, scale: Tensor, bias: Tensor, key: Tensor) -> Tensor:
    """As the training step calls it."""
    return CONTRASTIVE_LOSSES[kind](video, text, key, torch.ones_like(key, dtype=torch.bool), scale, bias)


def plain_loss(kind: str, video: Tensor, text: Tensor, scale: Tensor, bias: Tensor, key: Tensor) -> Tensor:
    """The formula on whole matrices."""
    texts, keys = text, key
    if dist.is_initialized():
        texts, keys = _Gather.apply(text), _Gather.apply(key)
    positive = key[:, None] == keys
    logits = scale * video @ texts.T
    if kind == "sigmoid":
        sign = torch.where(positive, 1.0, -1.0)
        return -F.logsigmoid(sign * (logits + bias)).sum()
    others = scale * text @ _Gather.apply(video).T if dist.is_initialized() else logits.T
    target = positive / positive.sum(dim=1, keepdim=True)
    directions = [F.cross_entropy(x, target, reduction="sum") for x in (logits, others)]
    return torch.stack(directions).sum() / 2


class _Gather(torch.autograd.Function):
    """The rows of all workers, who have as many each; backward, the sum of what all want changed in one's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def pass_of(loss: Callable[..., Tensor], kind: str, leaves: list[Tensor], key: Tensor) -> Callable[[], Tensor]:
    """Forward and backward."""

    def run() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        value = loss(kind, *leaves, key)
        value.backward()
        return value.detach()

    return run


def assert_same(kind: str, world: int, rank: int) -> None:
    """End the benchmark where the two differ: a smaller way to other numbers is none."""
    leaves, key = draw(64 * world, world, rank)
    found = []
    for loss in (our_loss, plain_loss):
        value = pass_of(loss, kind, leaves, key)()
        found.append([value, *(x.grad for x in leaves if x.grad is not None)])
        if world > 1:
            for scalar in (found[-1][0], *found[-1][3:]):  # of one worker alone they need not agree
                dist.all_reduce(scalar)
    for one, other in zip(*found, strict=True):
        difference = (one - other).abs().max()
        if not difference <= TOLERANCE * other.abs().max():
            raise SystemExit(f"the two do not agree: {kind} with {world} workers differs by {difference}")


def peak_mb(run: Callable[[], object], leaves: list[Tensor]) -> float:
    """Most memory that ``run`` took over what was there before it, gradients of ``leaves`` included."""
    for leaf in leaves:
        leaf.grad = None
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier runs left unused goes back to the system
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark falls to what is there now
    before = status_mb("VmRSS")
    run()
    return status_mb("VmHWM") - before


def status_mb(name: str) -> float:
    """A line of what Linux says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
