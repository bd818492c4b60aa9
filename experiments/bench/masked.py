"""Encoder forward and backward at mask ratio 0.9, beside the same encoder on every token.

python -m experiments.bench.masked [--quick]
"""

from __future__ import annotations

import click
import torch

from deepcoro.config_encoder import ENCODER_SIZES
from deepcoro.models.video_encoder import VideoEncoder
from experiments.bench.paired import machine, print_json, time_pairs

MASK_RATIO = 0.9


@click.command()
@click.option("--quick", is_flag=True, help="The small encoder and three pairs.")
@click.option("--batch-size", default=1, show_default=True)
def main(quick: bool, batch_size: int) -> None:
    """Base size at 16x224x224; the bar is 5 times faster."""
    size = "small" if quick else "base"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    encoder = VideoEncoder(**ENCODER_SIZES[size]).to(device, dtype)
    clip = torch.randn(batch_size, *encoder.clip_shape, device=device, dtype=dtype)
    num_visible = encoder.num_tokens - round(encoder.num_tokens * MASK_RATIO)
    order = torch.stack([torch.randperm(encoder.num_tokens) for _ in range(batch_size)]).to(device)

    def masked() -> None:
        encoder(clip, order[:, :num_visible]).square().mean().backward()

    def dense() -> None:
        encoder(clip).square().mean().backward()

    pairs = time_pairs(masked, dense, num_pairs=3 if quick else 5)
    low, high = pairs.interval
    print(f"{size} encoder, {batch_size} clips of 16x224x224, forward + backward, {machine()}, {str(dtype)[6:]}")
    print(f"  all {encoder.num_tokens} tokens   {pairs.theirs.mean():8.3f} s")
    print(f"  {num_visible} visible tokens {pairs.ours.mean():8.3f} s")
    print(f"  times faster     {pairs.ratio:8.2f}   (95% interval {low:.2f} to {high:.2f}, {len(pairs.ours)} pairs)")
    figures = {
        "dense_seconds": pairs.theirs.mean(),
        "masked_seconds": pairs.ours.mean(),
        "low": low,
        "high": high,
        "device": machine(),
    }
    print_json("masked", pairs.ratio, "higher", figures)


if __name__ == "__main__":
    main()
