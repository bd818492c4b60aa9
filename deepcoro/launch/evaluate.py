"""A trained run -> ``summary.json``, a printed table, and reports beside the truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset, Units
from deepcoro.evaluation.evaluator import fit_baselines, predict_units, summarise
from deepcoro.evaluation.report import Metric, format_table, write_summary
from deepcoro.inference.load import load
from deepcoro.launch.going_on import check_same_dataset
from deepcoro.launch.resources import set_environment, start_ray


def evaluate(run: str | Path, split: str = "val", num_examples: int = 8) -> dict[str, Metric]:
    """Measure the newest checkpoint of ``run`` on every unit of ``split``; print and save what was found.

    Writes ``summary.json``, the same as ``summary_<split>.json``, and ``reports_<split>.jsonl`` (each unit with the
    true and the written report) into the run.

    Raises:
        UserError: there is no checkpoint, it is damaged, or the split is empty.
    """
    set_environment()
    run = Path(run)
    trained = load(run)
    config = trained.config
    dataset = PreparedDataset.open(config.data.path)
    check_same_dataset(trained.checkpoint, dataset)
    units = dataset.units(split, config.data.unit, config.data.filter)
    start_ray()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained.model.to(device)
    records = predict_units(trained.model, config, units, np.arange(len(units)), trained.tokenizer, device)
    constants = None
    if config.loss.is_used("captioning"):
        constants = fit_baselines(dataset.units("train", config.data.unit, config.data.filter), config)
    metrics = summarise(records, units, constants, config)
    about = {"split": split, "checkpoint": trained.checkpoint.name}
    write_summary(run / "summary.json", metrics, about)
    write_summary(run / f"summary_{split}.json", metrics, about)

    patients = len(set(units.column("patient_id")))
    print(
        f"\n{run}, checkpoint {trained.checkpoint.name}, {split}: {len(units)} {config.data.unit}s of {patients} "
        "patients\n"
    )
    print(format_table(metrics))
    if config.loss.is_used("captioning"):
        written = _reports(records, UnitReader(config, units, None, training=False), units)
        lines = [json.dumps(row, ensure_ascii=False) for row in written]
        (run / f"reports_{split}.jsonl").write_text("\n".join(lines) + "\n")
        told = [row for row in written if row["true"] is not None]
        for place in np.linspace(0, len(told) - 1, min(num_examples, len(told))).astype(int):
            row = told[place]
            print(f"\n{row['unit_id']}\n  true     {row['true']}\n  written  {row['written']}")
    print(flush=True)
    return metrics


def _reports(records: list[dict], reader: UnitReader, units: Units) -> list[dict[str, str | None]]:  # type: ignore[type-arg]
    rows = []
    for record in sorted(records, key=lambda record: record["unit"]):
        first = units.video_rows(record["unit"])[0]
        name = first["study_id"] if units.whole_study else first["video_id"]
        rows.append({"unit_id": name, "true": reader.text(record["unit"]), "written": record.get("generated")})
    return rows
