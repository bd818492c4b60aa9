"""What each mask strategy hides, drawn: a phantom clip, every strategy, three ratios.

    python -m experiments.masks [--output masks.png]

At the top is the clip, some of its frames; below it, a line for each strategy and a block of the same frames for each
ratio. Hidden tokens are blue, with a trace of what is below them. The grid is the default one: 8 x 14 x 14 tokens, of
16 frames.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw

from data_prep.phantom.cines import take_cines
from data_prep.phantom.preset import preset_named
from data_prep.phantom.study import draw_patient
from deepcoro.config_masking import MaskedModelingConfig
from deepcoro.data.masking import STRATEGIES, Masking

RATIOS = (0.5, 0.75, 0.9)
GRID, TUBELET = (8, 14, 14), (2, 8, 8)
SHOWN = (1, 5, 9, 13)  # frames
LEFT, TOP, GAP = 70, 16, 4  # pixels for words, and between pictures
HIDDEN, TRACE = np.array([40, 70, 150]), 0.2  # colour, and how much of the picture is left in it


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default="masks.png", show_default=True)
@click.option("--preset", default="standard", show_default=True, help="Of the phantom.")
@click.option("--seed", default=0, show_default=True, help="Of the phantom, and of the masks.")
def main(output: Path, preset: str, seed: int) -> None:
    """Write the sheet and say where it is."""
    Image.fromarray(sheet(phantom_clip(preset, seed), seed)).save(output)
    click.echo(f"{output}: {', '.join(STRATEGIES)}, at ratios {', '.join(map(str, RATIOS))}")


def phantom_clip(preset: str, seed: int) -> np.ndarray:
    """The first cine of a phantom patient, [16, 112, 112] uint8, a second of it and more."""
    knobs = preset_named(preset)
    size = GRID[1] * TUBELET[1]
    cine = next(iter(take_cines(draw_patient(seed, 0, knobs), seed, knobs, size, 48, 15.0)))
    frames = np.linspace(len(cine.frames) // 4, len(cine.frames) * 3 // 4, GRID[0] * TUBELET[0]).astype(int)
    return cine.frames[frames]


def sheet(clip: np.ndarray, seed: int) -> np.ndarray:
    """All masks of one clip as a picture, [height, width, 3] uint8."""
    size = clip.shape[1]
    block = len(SHOWN) * (size + GAP) + 2 * GAP
    width, height = LEFT + len(RATIOS) * block, TOP + (len(STRATEGIES) + 1) * (size + GAP)
    picture = Image.new("RGB", (width, height), "white")
    words = ImageDraw.Draw(picture)
    for line, strategy in enumerate(["clip", *STRATEGIES]):
        y = TOP + line * (size + GAP)
        words.text((4, y + size // 2 - 6), strategy, fill="black")
        for column, ratio in enumerate(RATIOS):
            x = LEFT + column * block
            hidden = np.zeros(GRID, bool)
            if strategy == "clip":
                words.text((x, 2), f"asked to hide {ratio:.0%}", fill="black")
            else:
                hidden = mask(strategy, ratio, clip, seed)
                words.text((4, y + size // 2 + 8 + 12 * column), f"{hidden.mean():.1%}", fill="black")
            for frame, pixels in enumerate(painted(clip, hidden)[list(SHOWN)]):
                picture.paste(Image.fromarray(pixels), (x + frame * (size + GAP), y))
    return np.asarray(picture)


def mask(strategy: str, ratio: float, clip: np.ndarray, seed: int) -> np.ndarray:
    """Which tokens are hidden, of ``GRID`` shape."""
    part = MaskedModelingConfig(strategy=strategy, mask_ratio=ratio)  # type: ignore[arg-type]
    order = Masking.of(part, GRID).order(np.random.default_rng(seed), clip)
    hidden = np.zeros(GRID, bool)
    hidden.reshape(-1)[order[part.num_visible(GRID) :]] = True
    return hidden


def painted(clip: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """The clip in colour, [T, H, W, 3] uint8, with hidden tokens painted over."""
    pixels = hidden
    for axis, length in enumerate(TUBELET):
        pixels = pixels.repeat(length, axis=axis)
    colour = clip[..., None].repeat(3, axis=-1)
    over = (TRACE * colour + (1 - TRACE) * HIDDEN).round().astype(np.uint8)
    return np.where(pixels[..., None], over, colour)


if __name__ == "__main__":
    main()
