"""Drawing masks, beside decoding the clips that they are for.

python -m experiments.bench.masks [--quick]

Cines of phantoms in the format of prepared videos; a clip is 16 frames of 64, read as training reads them
(`deepcoro.data.decode`), and its mask that of 8 x 14 x 14 tokens at ratio 0.75. The bars: under 2 % of the time to
decode for strategies that do not look at the clip, under 10 % for motion. Crop and size of the clip, which come after
decoding, are not counted: they are one more thing that a mask is short beside.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np

from deepcoro.config_masking import MaskedModelingConfig
from deepcoro.data.augment import choose_crop, crop_and_resize
from deepcoro.data.decode import decode_frames
from deepcoro.data.masking import STRATEGIES, Masking
from experiments.bench.paired import Pairs, machine, print_json, time_pairs
from experiments.bench.storage import CLIP_FRAMES, DEFAULT, FORMATS, make_cines, write

GRID, SIZE, RATIO = (8, 14, 14), 224, 0.75
BARS = {strategy: 0.1 if strategy == "motion" else 0.02 for strategy in STRATEGIES}


@click.command()
@click.option("--quick", is_flag=True, help="Few frames, clips and pairs.")
@click.option("--size", default=512, show_default=True, help="Of the prepared videos, in pixels.")
def main(quick: bool, size: int) -> None:
    """Prints a table; the figure is the largest share of its bar that a strategy takes: below 1, all bars are met."""
    with tempfile.TemporaryDirectory(prefix="deepcoro-bench-") as folder:
        found = measure(Path(folder), size, num_clips=6 if quick else 20, num_pairs=5 if quick else 9, quick=quick)
    print(
        f"masks of {'x'.join(map(str, GRID))} tokens beside decoding {CLIP_FRAMES} frames of {size}x{size}, {DEFAULT}"
    )
    print(f"  one core, {machine('cpu')}")
    print(f"  {'strategy':<10}{'mask, ms':>10}{'decode, ms':>12}{'share':>9}   95% interval      bar")
    figures: dict[str, object] = {"size": size, "device": machine("cpu")}
    worst = 0.0
    for strategy, (pairs, clips) in found.items():
        share, (low, high) = 1 / pairs.ratio, pairs.interval
        ours, theirs = (1000 * float(np.median(seconds)) / clips for seconds in (pairs.ours, pairs.theirs))
        interval = f"{1 / high:.2%} to {1 / low:.2%}"
        print(f"  {strategy:<10}{ours:>10.3f}{theirs:>12.2f}{share:>9.2%}   {interval:<16}{BARS[strategy]:>5.0%}")
        figures[strategy] = {"share": share, "low": 1 / high, "high": 1 / low, "mask_ms": ours, "decode_ms": theirs}
        worst = max(worst, share / BARS[strategy])
    print_json("masks", worst, "lower", figures)


def measure(folder: Path, size: int, num_clips: int, num_pairs: int, quick: bool) -> dict[str, tuple[Pairs, int]]:
    """By strategy, seconds of masks and of decoding ``num_clips`` clips, and that number."""
    rng, clips = np.random.default_rng(0), []
    form = next(form for form in FORMATS if form.name == DEFAULT)
    for number, cine in enumerate(make_cines(size, quick)[:4]):
        path = folder / f"{number}.{form.suffix}"
        write(path, cine, form)
        clips.append((str(path), len(cine)))
    asked = []
    for number in range(num_clips):
        path, length = clips[number % len(clips)]
        asked.append((path, np.sort(rng.choice(length, CLIP_FRAMES, replace=False)), length))
    crop = choose_crop(size, size, (1.0, 1.0), None)
    seen = [crop_and_resize(decode_frames(*request), crop, SIZE) for request in asked]

    def decode() -> None:
        for request in asked:
            decode_frames(*request)

    def masks_of(strategy: str) -> Pairs:
        part = MaskedModelingConfig(strategy=strategy, mask_ratio=RATIO)  # type: ignore[arg-type]
        masking = Masking.of(part, GRID, part.num_visible(GRID))

        def draw() -> None:
            for clip in seen:
                masking.order(rng, clip)

        return time_pairs(draw, decode, num_pairs)

    return {strategy: (masks_of(strategy), num_clips) for strategy in STRATEGIES}


if __name__ == "__main__":
    main()
