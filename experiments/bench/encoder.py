"""Our encoder beside transformers' VideoMAE and TimeSformer with the same weights and clips; and what masking saves.

python -m experiments.bench.encoder [--quick]

Theirs runs on scaled_dot_product_attention where it can (TimeSformer has attention of its own), and gets the clip as
RGB, made before the clock starts. First both must give the same tokens. Memory is the peak of a process that does
nothing else, both libraries imported; on a GPU what torch allocated there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from deepcoro.config_encoder import ENCODER_SIZES, VideoEncoderConfig
from deepcoro.data.masking import Masking
from deepcoro.models.video_encoder import VideoEncoder
from experiments.bench.paired import Pairs, device, machine, peak_gb, print_json

# TimeSformer is published for pictures of 224 and, as "HR", of 448 pixels.
MODELS = ("videomae", "timesformer", "timesformer hr")
PASSES = ("forward", "forward + backward")
MASK_RATIOS = (0.75, 0.9)
VIEWS = 8  # clips of the study
TOLERANCE = 1e-3


@click.command()
@click.option("--quick", is_flag=True, help="Tiny encoders on small clips, three rounds.")
@click.option("--batch-size", type=int, help="Clips; 1 on a CPU, 16 on a GPU where it is not given.")
@click.option("--only", multiple=True, type=click.Choice([*MODELS, "ours"]), help="Leave out the others.")
@click.option("--alone", nargs=3, hidden=True, help="Model, whose, pass: run this once and print the memory it took.")
def main(quick: bool, batch_size: int | None, only: tuple[str, ...], alone: tuple[str, str, str] | None) -> None:
    """Base size at 16x224x224 (TimeSformer: 8 frames, a token a frame; HR: 4 frames of 448). The bars: 0.95 of theirs
    everywhere, 1.15 somewhere; 3 and 6 times faster with 0.75 and 0.9 of the tokens hidden."""
    rows = batch_size or (16 if torch.cuda.is_available() else 1)
    torch.manual_seed(0)
    if alone is not None:
        print(json.dumps(measure_alone(*alone, quick=quick, rows=rows)))
        return
    figures: dict[str, object] = {"device": machine(), "clips": rows, "precision": str(precision())[6:]}
    print(f"{'tiny' if quick else 'base'} encoders, {rows} clips, {machine()}, {figures['precision']}")
    models = [model for model in MODELS if not only or model in only]
    for model in models:  # before this process has grown: one that it starts begins with its peak
        for what in PASSES:
            for whose in ("ours", "theirs"):
                figures[f"{model}/{what}/{whose}/peak_gb"] = in_a_process(model, whose, what, quick, rows)
    rounds, ratios = 3 if quick else 5, []
    for model in models:
        ours, theirs, clip = both(model, quick, rows)
        for what in PASSES:
            runs = {"ours": pass_of(ours, clip, what), "theirs": pass_of(theirs, as_rgb(clip), what)}
            taken = in_turn(runs, rounds)
            name = f"{model}/{what}"
            ratios.append(tell(name, Pairs(taken["ours"], taken["theirs"]), figures))
            memory = [figures[f"{name}/{whose}/peak_gb"] for whose in runs]
            print(f"  {'':36} peak {memory[0]:.2f} beside {memory[1]:.2f} GB")
        del ours, theirs
    for attention in ("joint", "divided") if not only or "ours" in only else ():
        for name, pairs in masked(attention, quick, rows, rounds).items():
            tell(name, pairs, figures)
    if not only or "ours" in only:
        tell(f"study of {VIEWS} clips/forward", study(rounds), figures)
    print_json("encoder", min(ratios) if ratios else float("nan"), "higher", figures)


def tell(name: str, pairs: Pairs, figures: dict[str, object]) -> float:
    """Print a row and keep it."""
    (low, high), seconds = pairs.interval, [float(np.median(s)) for s in (pairs.ours, pairs.theirs)]
    print(
        f"  {name:36} {seconds[0]:8.3f} beside {seconds[1]:8.3f} s: {pairs.ratio:.2f} times faster "
        f"(95% interval {low:.2f} to {high:.2f}, {len(pairs.ours)} pairs)",
        flush=True,
    )
    figures[name] = {
        "ours_seconds": seconds[0],
        "theirs_seconds": seconds[1],
        "ratio": pairs.ratio,
        "low": low,
        "high": high,
    }
    return pairs.ratio


def masked(attention: str, quick: bool, rows: int, rounds: int) -> dict[str, Pairs]:
    """Forward and backward with some columns of tokens hidden, beside the same encoder on every token."""
    frames, size = (8, 96) if quick else (16, 224)
    shape = ENCODER_SIZES["tiny" if quick else "base"]
    encoder = VideoEncoder(frames, size, **shape, attention=attention, pool="mean").to(device(), precision())  # type: ignore[arg-type]
    clip = torch.randn(rows, *encoder.clip_shape, device=device(), dtype=precision())
    orders = [Masking("tube", encoder.grid).order(np.random.default_rng(row)) for row in range(rows)]
    order = torch.from_numpy(np.stack(orders).astype(np.int64)).to(device())
    per_frame = encoder.grid[1] * encoder.grid[2]
    runs = {"all": pass_of(encoder, clip, "forward + backward")}
    for ratio in MASK_RATIOS:
        visible = order[:, : (per_frame - round(per_frame * ratio)) * encoder.grid[0]]
        runs[f"{attention}, {ratio} hidden"] = pass_of(encoder, clip, "forward + backward", visible)
    taken = in_turn(runs, rounds)
    return {name: Pairs(taken[name], taken["all"]) for name in runs if name != "all"}


def study(rounds: int) -> Pairs:
    """The clips of a study in one forward pass, beside one clip after the other; small encoder, 8 frames of 112."""
    encoder = VideoEncoder(8, 112, **ENCODER_SIZES["small"], pool="mean").to(device(), precision()).eval()  # type: ignore[arg-type]
    clips = torch.randn(VIEWS, *encoder.clip_shape, device=device(), dtype=precision())

    @torch.no_grad()
    def at_once() -> Tensor:
        return encoder(clips)

    @torch.no_grad()
    def one_by_one() -> Tensor:
        return torch.cat([encoder(clip[None]) for clip in clips])

    assert_same(at_once(), one_by_one(), TOLERANCE if precision() == torch.float32 else 0.1)
    taken = in_turn({"at once": at_once, "one by one": one_by_one}, 3 * rounds)
    return Pairs(taken["at once"], taken["one by one"])


def both(model: str, quick: bool, rows: int) -> tuple[VideoEncoder, nn.Module, Tensor]:
    """Ours and theirs, with the same weights, and a clip."""
    # Of grey levels with mean and deviation 127.5 both make the same numbers from -1 to 1.
    from deepcoro.models.conversion import convert

    theirs = make_theirs(model, quick).eval()
    fields, weights = convert(theirs, (0.5,) * 3, (0.5,) * 3, 127.5, 127.5)
    frames, size = clip_of(model, quick)
    ours = VideoEncoder.from_config(frames, size, VideoEncoderConfig(**fields, pool="mean")).eval()
    ours.load_state_dict(weights)
    clip = torch.rand(rows, frames, size, size) * 2 - 1
    with torch.no_grad():
        tokens, wanted = ours(clip[:1]), theirs(as_rgb(clip[:1])).last_hidden_state
    if model != "videomae":  # numbered along places first
        wanted = torch.cat([wanted[:, :1], wanted[:, 1:].unflatten(1, (-1, frames)).transpose(1, 2).flatten(1, 2)], 1)
    assert_same(tokens, wanted, TOLERANCE)
    return ours.to(device(), precision()), theirs.to(device(), precision()), clip.to(device(), precision())


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """End the benchmark where tokens differ: a faster way to other numbers is none."""
    difference = (ours - theirs).abs().max().item()
    if not difference < tolerance:
        raise SystemExit(f"the two do not agree: tokens differ by {difference}")


def make_theirs(model: str, quick: bool) -> nn.Module:
    """A VideoMAE or TimeSformer with random weights."""
    from transformers import TimesformerConfig, TimesformerModel, VideoMAEConfig, VideoMAEModel

    frames, size = clip_of(model, quick)
    shape = ENCODER_SIZES["tiny" if quick else "base"]
    common: dict[str, Any] = {
        "image_size": size,
        "num_frames": frames,
        "hidden_size": shape["width"],
        "num_hidden_layers": shape["depth"],
        "num_attention_heads": shape["num_heads"],
        "intermediate_size": 4 * shape["width"],
    }
    if model == "videomae":
        return VideoMAEModel(VideoMAEConfig(**common, tubelet_size=2, attn_implementation="sdpa"))
    return TimesformerModel(TimesformerConfig(**common))


def make_ours(model: str, quick: bool) -> VideoEncoder:
    """An encoder of the same shape, with random weights."""
    frames, size = clip_of(model, quick)
    shape = ENCODER_SIZES["tiny" if quick else "base"]
    common: dict[str, Any] = {**shape, "patch_norm": False, "pool": "mean"}
    if model == "videomae":
        return VideoEncoder(frames, size, (2, 16, 16), **common, positions="learned", final_norm=False)
    common |= {"attention": "divided", "positions": "learned", "class_token": True}
    return VideoEncoder(frames, size, (1, 16, 16), **common)


def clip_of(model: str, quick: bool) -> tuple[int, int]:
    """Frames, and pixels of a side: the first two make as many tokens, the third twice as many."""
    frames, size = (8, 96) if quick else (16, 224)
    return {"videomae": (frames, size), "timesformer": (frames // 2, size), "timesformer hr": (4, 2 * size)}[model]


def as_rgb(clip: Tensor) -> Tensor:
    """[B, T, H, W] -> [B, T, 3, H, W]."""
    return clip.unsqueeze(2).expand(-1, -1, 3, -1, -1).contiguous()


def pass_of(model: nn.Module, clip: Tensor, what: str, visible: Tensor | None = None) -> Callable[[], object]:
    """What is timed: tokens alone, or tokens and the gradients of all weights."""

    def forward() -> Tensor:
        out = model(clip) if visible is None else model(clip, visible)
        return out if isinstance(out, Tensor) else out.last_hidden_state

    def without_gradients() -> None:
        with torch.no_grad():
            forward()

    def with_gradients() -> None:
        model.zero_grad(set_to_none=True)
        forward().square().mean().backward()

    return without_gradients if what == "forward" else with_gradients


def in_turn(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each, A B C A B C ..., after a round that does not count; a GPU is waited for."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(1 + rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return {name: np.array(taken) for name, taken in seconds.items()}


def in_a_process(model: str, whose: str, what: str, quick: bool, rows: int) -> float:
    """GB at the peak of a process that makes one model and runs it once."""
    command = [sys.executable, "-m", "experiments.bench.encoder", "--batch-size", str(rows)]
    command += [*(["--quick"] if quick else []), "--alone", model, whose, what]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(run.stdout.splitlines()[-1])["peak_gb"])


def measure_alone(model: str, whose: str, what: str, quick: bool, rows: int) -> dict[str, float]:
    """The memory of one pass."""
    from transformers import TimesformerModel, VideoMAEModel

    assert TimesformerModel is not None and VideoMAEModel is not None  # what it takes to import is no difference
    made = (make_theirs if whose == "theirs" else make_ours)(model, quick).to(device(), precision())
    frames, size = clip_of(model, quick)
    clip = torch.rand(rows, frames, size, size, device=device(), dtype=precision())
    pass_of(made, as_rgb(clip) if whose == "theirs" else clip, what)()
    return {"peak_gb": peak_gb()}


def precision() -> torch.dtype:
    """Half precision on a GPU."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


if __name__ == "__main__":
    main()
