"""Reports and boxes of standard phantoms: all 18 segments, any view, every kind of lesion; half an hour on 2 cores.

    python -m experiments.overfit experiments/standard.py       # first: can it learn at all?
    python -m experiments.visibility experiments/standard.py    # and can it be seen?
    python -m experiments.standard [--num-studies 1600] [section.field=value ...]

A small model learns to write the report of a cine and to put a box around a finding (LocCa's three tasks), beside the
contrastive loss; masked modelling is left out, as it would take a third of the time. What it writes of the test
patients is held against what can be said without a look at the cine, paired by patient
(``deepcoro/evaluation/differences.py``). The first two need the data: ``--prepare-only`` makes it and ends.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np

from deepcoro.cli import plain_errors, run_experiment
from deepcoro.config import Config
from deepcoro.data.tables import PreparedDataset
from deepcoro.evaluation.differences import MODEL, measure_differences
from deepcoro.evaluation.evaluator import fit_baselines
from deepcoro.evaluation.report import align_columns, interval_text, number_text
from deepcoro.evaluation.truth import Truth
from experiments import demo

DATA = Path("data/standard")
NUM_FRAMES, FPS = 24, 10.0  # 2.4 s a cine, at the frame rates of the preset


def experiment() -> Config:
    """A small encoder on 8 frames of 128x128."""
    changes = {
        "name": "standard",
        "data": {
            "path": str(DATA / "prepared"),
            "frame_size": 128,
            "sample_fps": 4.0,
            "max_text_length": 160,
        },
        "video_encoder": {"tubelet": (4, 8, 8)},
        "text_encoder": {"name": str(DATA / "text_encoder")},
        "contrastive": {"logit_bias": -3.4},
        "captioning": {
            "max_position_embeddings": 160,
            "max_generation_length": 128,
            "tasks": {"report": 2.0, "aref": 1.0, "gcap": 0.5},
        },
        "loss": {"weights": {"contrastive": 0.2, "masked_modeling": 0.0}},
        "optim": {"warmup_steps": 100},
        "training": {"num_steps": 2000, "batch_size": 32, "checkpoint_every": 500},
    }
    return demo.experiment().merge(changes)


def format_differences(run: Path, config: Config) -> str:
    """A table: what the run's reports of the test cines are worth, beside answers that do not look."""
    dataset = PreparedDataset.open(config.data.path)
    train, test = (dataset.units(split, config.data.unit, config.data.filter) for split in ("train", "test"))
    written = [json.loads(line) for line in (run / "reports_test.jsonl").read_text().splitlines()]
    told = np.array([place for place, row in enumerate(written) if None not in (row["true"], row["written"])])
    constants = fit_baselines(train, config)
    assert constants is not None
    truth = Truth.of(test, told, config)
    rows = []
    for metric, answers in measure_differences([written[place]["written"] for place in told], truth, constants).items():
        for answer, (value, gain) in answers.items():
            numbers = (*map(number_text, (value + gain.value, value, gain.value)), interval_text(gain.low, gain.high))
            rows.append((metric, answer, *numbers, "yes" if gain.excludes(0) else "no"))
    header = ("metric", "answer", MODEL, "answer's", "difference", "95% interval", "a difference")
    return align_columns(header, rows, (False, False, True, True, True, True, False))


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("assignments", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@click.option("--num-studies", default=1600, show_default=True, type=click.IntRange(min=20))
@click.option("--seed", default=0, show_default=True, help="Of the phantoms.")
@click.option("--prepare-only", is_flag=True, help="Make the data and end.")
def main(assignments: tuple[str, ...], num_studies: int, seed: int, prepare_only: bool) -> None:
    """Prepare, train, evaluate on test, and tell the differences."""
    from deepcoro.launch.evaluate import evaluate

    with plain_errors():
        demo.prepare(DATA, experiment(), num_studies, seed, "standard", NUM_FRAMES, FPS)
        if prepare_only:
            return
        run = run_experiment(experiment, assignments)
        evaluate(run, split="test")
        table = format_differences(run, Config.load(run / "config.yaml"))
        (run / "differences.txt").write_text(table + "\n")
        print(table)


if __name__ == "__main__":
    main()
