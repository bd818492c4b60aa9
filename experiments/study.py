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

import json
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from deepcoro.cli import plain_errors, run_experiment
from deepcoro.config import Config
from deepcoro.data.collate import to_torch
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.evaluation.intervals import Interval, paired_difference
from deepcoro.evaluation.report import align_columns, interval_text, number_text
from deepcoro.evaluation.rows import read_rows
from experiments import demo

DATA = Path("data/study")
# Two views of each tree, across each other: what one shortens or lays behind another vessel, the other may show.
VIEWS = {"left": ("LAO 35 CRA 25", "RAO 20 CAU 25"), "right": ("LAO 30 CRA 20", "RAO 30")}
LEVELS = ("study", "clip")
HITS, FALSE, MISSED = (f"captioning/{name}" for name in ("true_positives", "false_positives", "false_negatives"))
F1, ACCURACY = "captioning/finding_f1", "findings/accuracy"
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
    table, _ = read_rows(run, "test")
    frame = table.to_pandas().set_index("unit_id").sort_index()
    frame[ACCURACY] = 1 - (frame[FALSE] + frame[MISSED]) / num_segments
    metrics = json.loads((run / "summary_test.json").read_text())["metrics"]
    frame.attrs = {name: metrics[name]["baseline"] for name in (*RETRIEVAL, F1)}
    frame.attrs[ACCURACY] = 1 - float((frame[HITS] + frame[MISSED]).mean()) / num_segments  # nobody is ill
    return frame


def difference(first: list[pd.DataFrame], second: list[pd.DataFrame], name: str) -> tuple[float, float, Interval]:
    """A metric of two kinds of runs, each over all its seeds (values by their mean, F1 by its counts together), and
    first minus second, paired by patient."""

    def sides(frames: list[pd.DataFrame]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if name == F1:
            above = sum(2 * frame[HITS] for frame in frames)
            return above.to_numpy(), (above + sum(frame[FALSE] + frame[MISSED] for frame in frames)).to_numpy()
        values = np.mean([frame[name] for frame in frames], axis=0)
        return values, np.ones(len(values))

    a, b = sides(first), sides(second)
    patients = first[0]["patient_id"].to_numpy()
    return float(a[0].sum() / a[1].sum()), float(b[0].sum() / b[1].sum()), paired_difference(a, b, patients)


def tell(frames: dict[str, list[pd.DataFrame]]) -> None:
    """Print the table: each metric, and the difference of the two levels with its interval, and by seed. The interval
    holds the seeds as they are: a difference is told as one only if every seed has it."""
    rows = []
    for name in [*RETRIEVAL, F1, ACCURACY]:
        study, clip, whole = difference(frames["study"], frames["clip"], name)
        by_seed = [difference([a], [b], name)[2].value for a, b in zip(*frames.values(), strict=True)]
        seeds = "  ".join(f"{value:+.3f}" for value in by_seed)
        without = number_text(frames["study"][0].attrs[name])
        found = (*map(number_text, (study, clip)), without, number_text(whole.value))
        agree = whole.excludes(0) and len({value > 0 for value in by_seed}) == 1
        rows.append((name, *found, interval_text(whole.low, whole.high), seeds, "yes" if agree else "no"))
    header = ("metric", "study", "clip", "baseline", "study - clip", "95% interval", "by seed", "a difference")
    print(align_columns(header, rows, (False, True, True, True, True, True, False, False)))
    print("Baselines: chance; the same segments always; nobody is ill. Intervals are over patients, paired.")


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
        tell(frames)


if __name__ == "__main__":
    main()
