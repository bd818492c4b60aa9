"""Writing reports with what was computed once kept, beside the same decoder that computes everything anew for each
token.

python -m experiments.bench.generate [--quick]

Both write greedily, no token ends a text, and they must write the same. Ours is ``deepcoro.models.generation`` as
everything here uses it. The other runs the training pass of the decoder over the whole text so far, with the keys and
values of the video, and makes the logits of its last token only.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import numpy as np
import torch
from torch import Tensor

from deepcoro.config_writing import Writing
from deepcoro.models.captioning_decoder import CaptioningDecoder
from deepcoro.models.generation import generate
from experiments.bench.paired import device, machine, print_json, time_pairs

VOCABULARY, WIDTH, VIDEO_TOKENS, START, PAD = 30522, 512, 393, 101, 0
BEAMS = 4


@click.command()
@click.option("--quick", is_flag=True, help="32 tokens for 128, and 4 clips for 16.")
@click.option("--clips", type=int, multiple=True, help="Clips at once; 1 and 16 where it is not given.")
@click.option("--tokens", "num_tokens", type=int, help="Tokens that are written; 128 where it is not given.")
@click.option("--pairs", type=int, help="Pairs that are timed; 5 of one clip and 1 of more where it is not given.")
def main(quick: bool, clips: tuple[int, ...], num_tokens: int | None, pairs: int | None) -> None:
    """6 layers x 512, 8 heads, 393 video tokens, 30,522 words, 128 tokens. The bar: five times faster for one clip."""
    num_tokens, clips = num_tokens or (32 if quick else 128), clips or ((1, 4) if quick else (1, 16))
    decoder = made()
    print(f"{num_tokens} tokens after {VIDEO_TOKENS} video tokens, {VOCABULARY} words, {machine()}")
    figures: dict[str, object] = {"device": machine(), "tokens": num_tokens, "video_tokens": VIDEO_TOKENS}
    ratios = []
    for number in clips:
        own, ratio = compare(decoder, number, num_tokens, pairs or (1 if number > 1 else 3 if quick else 5))
        figures[f"clips_{number}"] = own
        ratios.append(ratio)
    print_json("generate", ratios[0], "higher", figures)


def compare(decoder: CaptioningDecoder, clips: int, num_tokens: int, num_pairs: int) -> tuple[dict[str, object], float]:
    """Figures of ``clips`` clips at once, and how many times faster ours is."""
    tokens, mask = video(clips)
    texts: dict[str, Tensor] = {}

    def ours(length: int = num_tokens, num_beams: int = 1) -> None:
        writing = Writing(max_generation_length=length, num_beams=num_beams)
        texts["ours"] = generate(decoder, tokens, mask, START, None, PAD, writing).ids

    def theirs(length: int = num_tokens) -> None:
        texts["theirs"] = without_cache(decoder, tokens, mask, length)

    for run in (ours, theirs):
        run(2)  # a warm-up: whole texts without a cache take minutes
    timed = time_pairs(ours, theirs, num_pairs, warmup=0)
    if not torch.equal(texts["ours"], texts["theirs"]):
        different = int((texts["ours"] != texts["theirs"]).sum())
        raise SystemExit(f"the two do not write the same: {different} of {texts['ours'].numel()} tokens differ")
    beams = seconds_of(lambda: ours(num_beams=BEAMS))
    seconds = [float(np.median(s)) for s in (timed.ours, timed.theirs)]
    low, high = timed.interval
    print(
        f"  {clips:2d} clips  {seconds[0]:.2f} beside {seconds[1]:.2f} s: {timed.ratio:.1f} times faster (95% interval "
        f"{low:.1f} to {high:.1f}, {num_pairs} pairs); {1000 * seconds[0] / num_tokens:.1f} ms a token, "
        f"of {BEAMS} beams {1000 * beams / num_tokens:.1f}",
        flush=True,
    )
    figures: dict[str, object] = {
        "seconds": {"ours": seconds[0], "theirs": seconds[1], "beams": beams},
        "ratio": timed.ratio,
        "interval": [low, high],
        "pairs": num_pairs,
    }
    return figures, timed.ratio


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


def seconds_of(run: Callable[[], None]) -> float:
    """Seconds that one ``run`` takes."""
    begin = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
