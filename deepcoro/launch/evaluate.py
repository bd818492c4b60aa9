"""A trained run -> ``summary.json``, a printed table, values by row, and reports beside the truth."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch

from deepcoro import __version__
from deepcoro.config import Config
from deepcoro.data.reader import UnitReader
from deepcoro.data.schema import UNITS
from deepcoro.data.tables import PreparedDataset, Units
from deepcoro.evaluation.certainty import can_be_sure
from deepcoro.evaluation.evaluator import fit_baselines, measure, predict_units
from deepcoro.evaluation.neighbours import Neighbours, fit_neighbours
from deepcoro.evaluation.report import Metric, format_table, write_summary
from deepcoro.evaluation.rows import row_table, rows_path, write_rows
from deepcoro.inference.load import TrainedModel, load
from deepcoro.launch.going_on import check_same_dataset
from deepcoro.launch.resources import set_environment, start_ray
from deepcoro.training.checkpoint import Weights

TEST_LOG = "test_evaluations.jsonl"


def evaluate(
    run: str | Path,
    split: str = "val",
    checkpoint: str | int = "newest",
    num_examples: int = 8,
    num_neighbours: int = 2000,
    weights: Weights | None = None,
) -> dict[str, Metric]:
    """Measure a checkpoint of ``run`` on every unit of ``split``; print and save what was found.

    Writes into the run: ``summary.json``, the same as ``summary_<split>.json``; ``rows_<split>.parquet``, the values of
    each unit; ``reports_<split>.jsonl``, each unit with the true and the written report. A measurement on the test
    split is also noted in ``test_evaluations.jsonl``: who looks often, chooses by what was seen.

    Args:
        checkpoint: ``newest``, ``best`` or a step.
        num_examples: reports to print.
        num_neighbours: training units among which the nearest neighbour is looked for; 0 leaves it out.
        weights: ``trained``, or ``ema``, their average; ``None``: the average where there is one.

    Raises:
        UserError: there is no such checkpoint, it is damaged or has no average, or the split is empty.
    """
    set_environment()
    run = Path(run)
    trained = load(run, checkpoint, weights)
    config = trained.config
    dataset = PreparedDataset.open(config.data.path)
    check_same_dataset(trained.checkpoint, dataset)
    units = dataset.units(split, config.data.unit, config.data.filter)
    start_ray()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained.model.to(device)
    sure = can_be_sure(config, trained.tokenizer, training=False)
    indices = np.arange(len(units))
    records = predict_units(trained.model, config, units, indices, trained.tokenizer, device, probabilities=sure)
    constants = neighbours = None
    if config.loss.is_used("captioning"):
        train = dataset.units("train", config.data.unit, config.data.filter)
        constants = fit_baselines(train, config)
        if config.loss.is_used("contrastive") and num_neighbours > 0:
            neighbours = _neighbours(trained, train, num_neighbours, device)
    measured = measure(records, units, constants, config, neighbours)
    metrics, step = measured.metrics, trained.checkpoint.name
    if split == "test":  # before anything of it can be seen
        times = log_test_evaluation(run, step, metrics, trained.weights)
    about = {"split": split, "checkpoint": step, "weights": trained.weights}
    write_summary(run / "summary.json", metrics, about)
    write_summary(run / f"summary_{split}.json", metrics, about)
    about |= {
        "code_version": __version__,
        "dataset_fingerprint": str(dataset.card.get("fingerprint", "")),
        "reconstruction_of": _reconstruction_of(config),
    }
    write_rows(rows_path(run, split), row_table(units, records, measured.columns), about)

    patients = len(set(units.column("patient_id")))
    measured_on = f"{len(units)} {UNITS[config.data.unit]} of {patients} patients"
    print(f"\n{run}, checkpoint {step}, {trained.weights} weights, {split}: {measured_on}\n")
    print(format_table(metrics))
    if config.loss.is_used("masked_modeling") and not config.measures_reconstruction:
        target = config.masked_modeling.target
        print(f"\nNo reconstruction: with masked_modeling.target={target} features are predicted, and no pixels.")
    if config.loss.is_used("captioning"):
        written = _reports(records, UnitReader(config, units, None, training=False), units)
        lines = [json.dumps(row, ensure_ascii=False) for row in written]
        (run / f"reports_{split}.jsonl").write_text("\n".join(lines) + "\n")
        told = [row for row in written if row["true"] is not None]
        for place in np.linspace(0, len(told) - 1, min(num_examples, len(told))).astype(int):
            row = told[place]
            print(f"\n{row['unit_id']}\n  true     {row['true']}\n  written  {row['written']}")
    if split == "test":
        print(f"\nThis run has been measured on test {times} time{'s' if times > 1 else ''} ({run / TEST_LOG}).")
    print(flush=True)
    return metrics


def log_test_evaluation(run: Path, step: str, metrics: dict[str, Metric], weights: Weights) -> int:
    """Add a line (time, step, which weights, code version, values) to the run's list of measurements on test; returns
    their number."""
    values = {name: metric.value if np.isfinite(metric.value) else None for name, metric in metrics.items()}
    about = {"time": time.time(), "checkpoint": int(step), "weights": weights, "code_version": __version__}
    with (run / TEST_LOG).open("a") as stream:
        stream.write(json.dumps(about | {"metrics": values}, allow_nan=False) + "\n")
    return len((run / TEST_LOG).read_text().splitlines())


def _neighbours(trained: TrainedModel, train: Units, limit: int, device: torch.device) -> Neighbours | None:
    """Up to ``limit`` training units with a text, always the same, embedded by the model that is measured."""
    config = trained.config
    indices = np.flatnonzero(train.has_text(needs_report=config.data.text_needs_report))
    if len(indices) > limit:
        indices = np.sort(np.random.default_rng(0).choice(indices, limit, replace=False))
    records = predict_units(trained.model, config, train, indices, trained.tokenizer, device, embed_only=True)
    return fit_neighbours(records, train, config)


def _reconstruction_of(config: Config) -> str:
    """What is reconstructed from what: errors can be compared between runs where this is the same."""
    if not config.measures_reconstruction:
        return ""
    data, tubelet = config.data, "x".join(map(str, config.tubelet))
    clip = f"{data.num_frames}x{data.frame_size}x{data.frame_size} at {data.sample_fps} frames/s"
    masked = config.masked_modeling
    return f"{clip}, tubelets {tubelet}, {masked.strategy} masking of {masked.mask_ratio}"


def _reports(records: list[dict], reader: UnitReader, units: Units) -> list[dict[str, str | None]]:  # type: ignore[type-arg]
    rows = []
    for record in sorted(records, key=lambda record: record["unit"]):
        first = units.video_rows(record["unit"])[0]
        name = first["study_id"] if units.whole_study else first["video_id"]
        rows.append({"unit_id": name, "true": reader.text(record["unit"]), "written": record.get("generated")})
    return rows
