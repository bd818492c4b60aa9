"""Original, masked, reconstructed: what a run makes of clips that it is shown a part of, for every mask strategy.

    python -m experiments.strips RUN [--output strips.png]                            # a phantom
    python -m experiments.strips RUN --data /data/prepared [--split val]              # cines of a prepared dataset
    python -m experiments.strips RUN --strategies tube --ratio 0.9

RUN is any run with masked modelling, such as ``runs/demo`` or one of ``experiments.mask_strategies``. A line of the
sheet is a clip under one strategy: up to 8 frames, and below one another the original, what the model was shown (the
rest flat grey), and the same with the hidden tokens as the model predicts them. Where targets are normalised
(``norm_predict_loss``), each hidden token has its own true mean and deviation put back, which the model does not know:
its own is the pattern inside a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image, ImageDraw

import deepcoro
from data_prep.phantom.cines import take_cines
from data_prep.phantom.preset import preset_named
from data_prep.phantom.study import draw_patient
from deepcoro.cli import plain_errors
from deepcoro.config import Config
from deepcoro.data.masking import STRATEGIES, Masking
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import ConfigError, DataError, UserError
from deepcoro.models.multitask import MultitaskModel
from deepcoro.training.pictures import draw_pictures

LEFT, TOP, GAP = 110, 4, 8  # pixels for words, and between strips
SECONDS = 3.0  # of a phantom


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), default="strips.png", show_default=True)
@click.option("--data", help="A prepared dataset; a phantom, if none is given.")
@click.option("--split", default="val", show_default=True, type=click.Choice(["train", "val", "test"]))
@click.option("--num-clips", default=1, show_default=True, type=click.IntRange(min=1), help="Of the dataset.")
@click.option("--strategies", multiple=True, type=click.Choice([*STRATEGIES]), help="All, if none is given.")
@click.option("--ratio", type=click.FloatRange(0, 1, True, True), help="The run's, if none is given.")
@click.option("--seed", default=0, show_default=True, help="Of the phantom, and of the masks.")
def main(
    run: Path,
    output: Path,
    data: str | None,
    split: str,
    num_clips: int,
    strategies: Sequence[str],
    ratio: float | None,
    seed: int,
) -> None:
    """Write the sheet and say where it is."""
    with plain_errors():
        trained = deepcoro.load(run)
        if trained.model.masked_video_modeling is None:
            raise UserError(f"{run} was trained without masked modelling: it fills nothing in")
        if not trained.config.measures_reconstruction:
            target = trained.config.masked_modeling.target
            raise UserError(f"{run} predicts features (masked_modeling.target={target}), which are no picture")
        config = masked_alone(trained.config, ratio)
        clips = {"phantom": phantom_clip(config, seed)}
        if data is not None:
            clips = dataset_clips(config, data, split, num_clips)
        lines, left_out = strips(trained.model, config, clips, strategies or [*STRATEGIES], seed)
    Image.fromarray(sheet(lines)).save(output)
    click.echo(f"{output}: {len(lines)} strips" + "".join(f"\nleft out: {reason}" for reason in left_out))


def masked_alone(config: Config, ratio: float | None) -> Config:
    """A run's config, as if it had masked modelling alone, at ``ratio`` where that is given."""
    off = {"contrastive": 0.0, "captioning": 0.0, "distillation": 0.0}
    masked = {"mask_ratio_follows": "nothing"} | ({} if ratio is None else {"mask_ratio": ratio})
    changes: dict[str, Any] = {
        "loss": {"weights": off | {"masked_modeling": 1.0}, "use_scheduler": False, "start_fraction": off},
        "contrastive": {"level": None},
        "captioning": {"level": None},
        "grounding": {"informs_captions": False},
        "shared_pass": {"enabled": False, "mask_ratio": None, "unmasked_tail": 0.0},
        "masked_modeling": masked,
    }
    return config.merge(changes)


def phantom_clip(config: Config, seed: int) -> np.ndarray:
    """The first cine of a phantom patient of the easy preset in the run's clips, [T, H, W] uint8."""
    preset, size, wanted = replace(preset_named("easy"), name="strips"), config.data.frame_size, config.data.num_frames
    fps = max(10.0, wanted / SECONDS)
    cine = next(iter(take_cines(draw_patient(10**7 + seed, 0, preset), seed, preset, size, round(SECONDS * fps), fps)))
    return cine.frames[np.linspace(len(cine.frames) // 6, len(cine.frames) - 1, wanted).astype(int)]


def dataset_clips(config: Config, path: str, split: str, number: int) -> dict[str, np.ndarray]:
    """The first clips of a split that can be read, as an evaluation sees them, by the name of their unit."""
    units = PreparedDataset.open(path).units(split, "video", config.data.filter)
    reader, clips = UnitReader(config.merge({"data": {"path": path, "unit": "video"}}), units, None, False), {}
    for unit in range(len(units)):
        batch = reader.read(np.array([unit]), np.array([unit]))
        if batch["valid"][0, 0]:
            clips[str(batch["unit_id"][0])] = batch["clip"][0, 0]
        if len(clips) == number:
            return clips
    if not clips:
        raise DataError(f"{path}: split {split} has {len(units)} videos, and none could be read; try another --split")
    return clips


def strips(
    model: MultitaskModel, config: Config, clips: dict[str, np.ndarray], strategies: Sequence[str], seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """A strip [H', W'] uint8 for each clip and strategy, by their names; and why others were left out."""
    lines, left_out = {}, []
    for strategy in strategies:
        try:
            part = config.merge({"masked_modeling": {"strategy": strategy}})
        except ConfigError as error:  # as times, of clips of one token along time
            left_out.append(f"{strategy}: {error}")
            continue
        masking = Masking.from_config(part)
        for name, clip in clips.items():
            order = masking.order(np.random.default_rng(seed), clip).astype(np.int64)
            batch = {
                "clip": torch.from_numpy(clip)[None, None],
                "valid": torch.ones(1, 1, dtype=torch.bool),
                "mask_order": torch.from_numpy(order)[None, None],
                "unit_id": [name],
            }
            drawn = draw_pictures(model, part, batch, None).strips
            assert drawn is not None
            hidden = 1 - part.num_visible / part.num_tokens
            lines[f"{name[:14]}\n{strategy}\n{hidden:.0%} hidden"] = drawn[0]
    return lines, left_out


def sheet(lines: dict[str, np.ndarray]) -> np.ndarray:
    """Strips below one another with their names beside them, [height, width] uint8."""
    height = TOP + sum(len(strip) + GAP for strip in lines.values())
    picture = Image.new("L", (LEFT + max((strip.shape[1] for strip in lines.values()), default=0), height), "white")
    words, y = ImageDraw.Draw(picture), TOP
    for name, strip in lines.items():
        words.text((4, y + 4), name, fill="black")
        picture.paste(Image.fromarray(strip), (LEFT, y))
        y += len(strip) + GAP
    return np.asarray(picture)


if __name__ == "__main__":
    main()
