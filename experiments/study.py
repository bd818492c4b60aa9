"""Clips of a study together, or each by itself: what pooling views gains, on phantoms with four cines a study.

    python -m experiments.study [--seeds 3] [--num-studies 600]

Two runs a seed read the same clips of the same studies in the same order. One takes the clips of a study together:
attention over them, told the angles of each, gives the vector that is compared with the whole report, and the decoder
reads them all and writes that report. The other takes each clip by itself, with the findings of the tree in view as its
text; a study is then the mean of its clips' vectors, beside the mean of its texts' ones, and its report what was
written of its clips, one text a tree. So a step of the first has 8 reports, of the second 32 shorter ones; its bias
starts where as many rows want it, and equal seeds begin with other weights. Both are measured on the same test studies,
and their difference is taken study by study.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pandas as pd
from PIL import Image

from deepcoro.cli import plain_errors, run_experiment
from deepcoro.config import Config
from deepcoro.data.collate import to_torch
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from experiments import demo, kinds
from experiments.kinds import F1, FALSE, HITS, MISSED

DATA = Path("data/study")
# Two views of each tree, across each other: what one shortens or lays behind another vessel, the other may show.
VIEWS = {"left": ("LAO 35 CRA 25", "RAO 20 CAU 25"), "right": ("LAO 30 CRA 20", "RAO 30")}
LEVELS = ("study", "clip")
ACCURACY = "findings/accuracy"
RETRIEVAL = [f"retrieval/{way}/recall_at_{k}" for way in ("report_to_video", "video_to_report") for k in (1, 5)]
_NUM_DRAWN = 8


def experiment(level: str = "study", seed: int = 0) -> Config:
    """The demo's model on four clips of each of eight studies a step."""
    changes = {
        "name": f"study_{level}_{seed}",
        "seed": seed,
        "data": {"path": str(DATA / "prepared"), "unit": "study", "num_videos": 4, "max_text_length": 192},
        "text_encoder": {"name": str(DATA / "text_encoder")},
        "contrastive": {"level": level, "logit_bias": -2.0 if level == "study" else -3.4},  # -log(rows - 1)
        "captioning": {"level": level, "max_position_embeddings": 192, "max_generation_length": 160},
        "training": {"num_steps": 1000, "batch_size": 8, "checkpoint_every": 500},
    }
    return demo.experiment().merge(changes)


def values_of(run: Path, num_segments: int) -> pd.DataFrame:
    """The run's values, one row a test study, with the share of ``num_segments`` rightly called diseased or not; and
    what a metric is without a look at the videos, in ``attrs``."""
    frame = kinds.values_of(run, [*RETRIEVAL, F1])
    frame[ACCURACY] = 1 - (frame[FALSE] + frame[MISSED]) / num_segments
    frame.attrs[ACCURACY] = 1 - float((frame[HITS] + frame[MISSED]).mean()) / num_segments  # nobody is ill
    return frame


def draw_attention(run: Path, to: Path) -> None:
    """Draw where the video embedding of some test studies comes from, each by its first clip."""
    import torch

    import deepcoro
    from deepcoro.training.pictures import draw_pictures

    trained = deepcoro.load(run)
    config = trained.config
    units = PreparedDataset.open(config.data.path).units("test", config.data.unit, config.data.filter)
    rows = np.arange(min(_NUM_DRAWN, len(units)))
    batch = to_torch(UnitReader(config, units, trained.tokenizer, training=False).read(rows, rows), torch.device("cpu"))
    drawn = draw_pictures(trained.model, config, batch, trained.tokenizer).attention
    Image.fromarray(np.concatenate(list(drawn))).save(to)


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("assignments", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--num-studies", default=600, show_default=True, type=click.IntRange(min=20))
def main(assignments: tuple[str, ...], seeds: int, num_studies: int) -> None:
    """Train both kinds for each seed, measure them on test, and tell the difference."""
    from data_prep.phantom.preset import preset_named
    from deepcoro.launch.evaluate import evaluate

    with plain_errors():
        preset = replace(preset_named("easy"), name="easy, two views", views=VIEWS)
        demo.prepare(DATA, experiment(), num_studies, 0, preset)
        frames: dict[str, list[pd.DataFrame]] = {level: [] for level in LEVELS}
        for seed in range(seeds):
            for level in LEVELS:
                run = run_experiment(lambda level=level, seed=seed: experiment(level, seed), assignments)
                evaluate(run, split="test")
                frames[level].append(values_of(run, sum(map(len, preset.segments.values()))))
                draw_attention(run, run / "attention.png")
        print(kinds.format_differences(frames, [*RETRIEVAL, F1, ACCURACY]))
        print("Baselines: chance; the same segments always; nobody is ill. Intervals are over patients, paired.")


if __name__ == "__main__":
    main()
