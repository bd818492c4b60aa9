"""Writing reports with what was computed once kept, beside the same decoder that computes everything anew for each
token.

python -m experiments.bench.generate [--quick]

Both write greedily, and no token ends a text; first they must write the same. Ours is ``deepcoro.models.generation``
as everything here uses it. The other runs the decoder's training pass over the whole text so far, with the video's keys
and values, and makes the logits of its last token only.
"""

from __future__ import annotations

import click
import numpy as np
import torch
from torch import Tensor

from deepcoro.config_writing import Writing
from deepcoro.models.captioning_decoder import CaptioningDecoder
from deepcoro.models.generation import generate
from experiments.bench.paired import device, machine, print_json, time_pairs

VOCABULARY, WIDTH, VIDEO_TOKENS, START, PAD = 30522, 512, 393, 101, 0
TOKENS, QUICK_TOKENS = 128, 32
PAIRS = {1: 5, 16: 1}  # clips at once, and pairs that are timed: 16 clips without a cache take minutes


@click.command()
@click.option("--quick", is_flag=True, help="32 tokens, and 4 clips for 16.")
@click.option("--beams", is_flag=True, help="Also what 4 beams take; timed once, beside greedy.")
def main(quick: bool, beams: bool) -> None:
    """6 layers x 512, 8 heads, 393 video tokens, 30,522 words, 128 tokens. The bar: five times faster for one clip."""
    num_tokens = QUICK_TOKENS if quick else TOKENS
    decoder = made()
    figures: dict[str, object] = {"device": machine(), "tokens": num_tokens, "video_tokens": VIDEO_TOKENS}
    ratios = []
    for clips, num_pairs in ({1: 3, 4: 1} if quick else PAIRS).items():
        tokens, mask = video(clips)
        ours = generate(decoder, tokens, mask, START, None, PAD, Writing(max_generation_length=num_tokens)).ids
        theirs = without_cache(decoder, tokens, mask, num_tokens)
        if not torch.equal(ours, theirs):
            raise SystemExit(f"the two do not write the same: {(ours != theirs).sum()} of {ours.numel()} tokens differ")
        timed = time_pairs(
            lambda tokens=tokens, mask=mask: generate(
                decoder, tokens, mask, START, None, PAD, Writing(max_generation_length=num_tokens)
            ),
            lambda tokens=tokens, mask=mask: without_cache(decoder, tokens, mask, num_tokens),
            num_pairs,
            warmup=0,  # both have just run
        )
        seconds = [float(np.median(s)) for s in (timed.ours, timed.theirs)]
        low, high = timed.interval
        print(
            f"  {clips:2d} clips  {seconds[0]:.2f} beside {seconds[1]:.2f} s: {timed.ratio:.1f} times faster (95% "
            f"interval {low:.1f} to {high:.1f}, {num_pairs} pairs), {1000 * seconds[0] / num_tokens:.1f} ms a token",
            flush=True,
        )
        ratios.append(timed.ratio)
        figures[f"batch_{clips}"] = {"seconds": seconds, "ratio": timed.ratio, "interval": [low, high]}
    print_json("generate", ratios[0], "higher", figures)


def made() -> CaptioningDecoder:
    """The decoder of the real experiment, untrained; its weights are larger, or it would repeat one word."""
    torch.manual_seed(0)
    decoder = CaptioningDecoder(VOCABULARY, WIDTH).to(device()).eval()
    for parameter in decoder.parameters():
        if parameter.ndim > 1:
            parameter.data *= 2
    return decoder


def video(clips: int) -> tuple[Tensor, Tensor]:
    """Video tokens [B, M, D] and their mask."""
    tokens = torch.randn(clips, VIDEO_TOKENS, WIDTH, generator=torch.Generator().manual_seed(0)).to(device())
    return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=device())


@torch.no_grad()
def without_cache(decoder: CaptioningDecoder, tokens: Tensor, mask: Tensor, num_tokens: int) -> Tensor:
    """Greedy ids [B, num_tokens], everything computed anew for each."""
    ids = torch.full((len(tokens), 1), START, device=tokens.device)
    for _ in range(num_tokens):
        last = decoder(ids, tokens, mask, return_hidden=True)[:, -1]
        ids = torch.cat([ids, (last @ decoder.output_weight.T).argmax(-1, keepdim=True)], dim=1)
    return ids[:, 1:]


if __name__ == "__main__":
    main()
