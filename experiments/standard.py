"""Reports and boxes of standard phantoms: all 18 segments, any view, every kind of lesion. Half an hour on 2 cores is
enough for a part of it: what came of it stands in the README ("What the phantom is").

    python -m experiments.overfit experiments/standard.py       # first: can it learn at all?
    python -m experiments.visibility experiments/standard.py    # and can it be seen?
    python -m experiments.standard [--num-studies 1600] [--num-dense 1600] [section.field=value ...]

The patients are standard phantoms, split as always, and those of test are what is measured. Those of train are joined
by as many *dense* ones, in which no tree is healthy: in a standard cine most segments are, and a model that sees one
diseased segment in twenty has to look at very many cines before it finds out what disease looks like. Of dense
patients boxes and findings are known and no reports (``data.text_needs_report``): they teach what a lesion looks like,
and not how often there is one.

A small model learns first where lesions lie (grounding), and then also to write the report of a cine and to put a box
around a finding (LocCa's three tasks), beside the contrastive loss; masked modelling is left out, as it would take a
third of the time. What it writes of the test patients is held against what can be said without a look at the cine,
paired by patient (``deepcoro/evaluation/differences.py``). The first two need the data: ``--prepare-only`` makes it
and ends.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deepcoro.cli import plain_errors, run_experiment
from deepcoro.config import Config
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import UserError
from deepcoro.evaluation.differences import MODEL, measure_differences
from deepcoro.evaluation.evaluator import fit_baselines
from deepcoro.evaluation.report import align_columns, interval_text, number_text
from deepcoro.evaluation.truth import Truth
from experiments import demo

if TYPE_CHECKING:
    from data_prep.phantom.preset import Preset

DATA = Path("data/standard")
DENSE = 1600  # further training patients, all of them ill
NUM_FRAMES, FPS = 24, 10.0  # 2.4 s a cine, at the frame rates of the preset


def experiment() -> Config:
    """A small encoder on 8 frames of 128x128, each token 8 pixels wide over the whole clip, on a convolutional stem. It
    learns where lesions are first, and the texts only once there is something to tell."""
    changes = {
        "name": "standard",
        "data": {
            "path": str(DATA / "prepared"),
            "frame_size": 128,
            "sample_fps": 4.0,
            "max_text_length": 160,
            "text_needs_report": True,
        },
        "video_encoder": {
            "width": 128,
            "depth": 2,
            "num_heads": 4,
            "tubelet": (8, 8, 8),
            "stem": "convolutional",
        },
        "grounding": {"cells_per_token": 1, "informs_captions": True},
        "text_encoder": {"name": str(DATA / "text_encoder")},
        "contrastive": {"logit_bias": -3.4},
        "captioning": {
            "max_position_embeddings": 160,
            "max_generation_length": 128,
            "tasks": {"report": 2.0, "aref": 1.0, "gcap": 0.25},
        },
        "loss": {
            "weights": {"contrastive": 0.2, "masked_modeling": 0.0, "grounding": 0.05},
            "start_fraction": {"contrastive": 0.4, "captioning": 0.4},
        },
        "optim": {"lr": 2e-3, "warmup_steps": 100},
        "training": {"num_steps": 2200, "batch_size": 32, "precision": "bf16", "checkpoint_every": 500},
        "resources": {"num_workers": 2, "cpus_per_worker": 0.8},
    }
    return demo.experiment().merge(changes)


def dense() -> Preset:
    """Standard phantoms with more to learn from in each cine: no tree is healthy, most have several lesions, and
    occlusions, which are seen first, are more often among them."""
    from data_prep.phantom.preset import preset_named

    standard = preset_named("standard")
    assert standard.realism is not None
    kinds = standard.realism.kinds | {"total": 2.0, "cto": 2.0}
    realism = replace(standard.realism, max_lesions=5, more_lesions_share=0.8, kinds=kinds)
    return replace(standard, name="dense", lesion_share=1.0, realism=realism)


def prepare(num_studies: int, num_dense: int, seed: int) -> None:
    """Standard phantoms, split by patient, and dense ones, all of them for training and without reports, in one
    dataset, and a text encoder of its reports. What is complete is left as it is."""
    from data_prep.dicom.ingest import ingest
    from data_prep.phantom.generate import write_phantom

    made = DATA / "archives.json"
    asked = {"num_studies": num_studies, "num_dense": num_dense, "seed": seed, "dense": "findings, no reports"}
    if made.exists() and json.loads(made.read_text()) != asked:
        raise UserError(f"{DATA} was prepared with {made.read_text()}: ask for that, or delete the folder")
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text(json.dumps(asked))
    phantoms, size, cores = DATA / "phantoms", experiment().data.frame_size, os.cpu_count() or 1
    archives: list[tuple[str, str | Preset, int, int, tuple[float, float]]] = [
        ("standard", "standard", num_studies, 0, (0.1, 0.25))
    ]
    if num_dense:
        archives.append(("dense", dense(), num_dense, num_studies, (0.0, 0.0)))
    for name, preset, number, first, held_out in archives:
        write_phantom(
            phantoms / name, number, seed, preset, size, NUM_FRAMES, FPS, *held_out, num_processes=cores,
            on_progress=demo.say(f"{name} phantom studies"), first=first,
        )  # fmt: skip
    if not (DATA / "prepared" / "dataset.json").exists():
        for table in ("reports", "videos"):
            rows = {name: pq.read_table(phantoms / name / f"{table}.parquet") for name, *_ in archives}
            if table == "reports" and num_dense:
                rows["dense"] = unread(rows["dense"])
            pq.write_table(pa.concat_tables(rows.values()), DATA / f"{table}.parquet")
        ingest(
            phantoms,
            DATA / "prepared",
            reports=DATA / "reports.parquet",
            videos=DATA / "videos.parquet",
            progress=demo.say("DICOM files"),
        )
    demo.make_text_encoder(DATA, experiment())


def unread(reports: pa.Table) -> pa.Table:
    """The same studies and findings, without the reports."""
    place = reports.schema.get_field_index("report")
    return reports.set_column(place, reports.schema.field(place), pa.nulls(len(reports), pa.string()))


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
@click.option("--num-dense", default=DENSE, show_default=True, type=click.IntRange(min=0))
@click.option("--seed", default=0, show_default=True, help="Of the phantoms.")
@click.option("--prepare-only", is_flag=True, help="Make the data and end.")
def main(assignments: tuple[str, ...], num_studies: int, num_dense: int, seed: int, prepare_only: bool) -> None:
    """Prepare, train, evaluate on test, and tell the differences."""
    from deepcoro.launch.evaluate import evaluate

    with plain_errors():
        prepare(num_studies, num_dense, seed)
        if prepare_only:
            return
        run = run_experiment(experiment, assignments)
        evaluate(run, split="test")
        table = format_differences(run, Config.load(run / "config.yaml"))
        (run / "differences.txt").write_text(table + "\n")
        print(table)


if __name__ == "__main__":
    main()
