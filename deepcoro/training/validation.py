"""Validation while a run trains: when it is due, what was found, and which checkpoint is the best so far.

Results are kept as ``validation/<step>.json`` in the run's folder. That a step has been validated is told by its file,
so a run that was killed in between makes up for it, and a run that falls back to an earlier checkpoint takes out the
files of the steps that it will take again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist

from deepcoro.config import Config
from deepcoro.data.collate import to_torch
from deepcoro.data.pipeline import batches_of
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.data.text import ReportTokenizer
from deepcoro.evaluation.certainty import can_be_sure
from deepcoro.evaluation.evaluator import evaluation_indices, fit_baselines, predict_units, summarise
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.text_encoder import load_tokenizer
from deepcoro.training.board import Board, note
from deepcoro.training.checkpoint import committed_steps
from deepcoro.training.hparams import TRIAL_FILE

Intervals = Mapping[str, Mapping[str, float]]  # by metric: low, high and baseline, those that are known
_MOST_WAITING = 8  # checkpoints that are kept for tasks that validate beside the workers
_NUM_PICTURED = 8  # validation units that are drawn in TensorBoard


class Validation:
    """Measures a model on the validation patients: each worker its share of the rows, the first one the metrics.

    Args:
        run: its folder, where the tokenizer is.
        group: process group of all workers that moves Python objects, or ``None`` where there is one.
    """

    def __init__(self, config: Config, run: Path, device: torch.device, group: Any = None) -> None:
        self.config, self.device, self.group = config, device, group
        self.dataset = PreparedDataset.open(config.data.path)
        self.tokenizer = run_tokenizer(config, run)
        self.units = None
        if self.dataset.num_studies()["val"]:
            self.units = self.dataset.units("val", config.data.unit, config.data.filter)
        self._constants: Any = None
        self.intervals: Intervals = {}

    def run(self, model: MultitaskModel) -> dict[str, float]:
        """Metrics by name on the first worker; the others, and a dataset without validation patients, give none. Their
        ``intervals`` stand there afterwards."""
        if self.units is None:
            return {}
        rank, world = (dist.get_rank(self.group), dist.get_world_size(self.group)) if self.group is not None else (0, 1)
        indices = evaluation_indices(self.units, self.config, self.config.evaluation.max_units)
        own, sure = indices[rank::world], can_be_sure(self.config, self.tokenizer, training=True)
        records = predict_units(model, self.config, self.units, own, self.tokenizer, self.device, probabilities=sure)
        if self.group is not None:
            shares: list[Any] | None = [None] * world if rank == 0 else None
            dist.gather_object(records, shares, dst=0, group=self.group)
            if shares is None:
                return {}
            records = [record for share in shares for record in share]
        if self._constants is None and self.config.loss.is_used("captioning"):
            train = self.dataset.units("train", self.config.data.unit, self.config.data.filter)
            self._constants = fit_baselines(train, self.config)
        metrics = summarise(records, self.units, self._constants, self.config)
        told = {name: metric for name, metric in metrics.items() if np.isfinite(metric.value)}
        self.intervals = {
            name: {key: x for key in ("low", "high", "baseline") if np.isfinite(x := getattr(metric, key))}
            for name, metric in told.items()
        }
        return {name: metric.value for name, metric in told.items()}

    def batch_to_draw(self) -> dict[str, Any] | None:
        """A few validation units as a Batch, always the same."""
        if self.units is None:
            return None
        indices = evaluation_indices(self.units, self.config, _NUM_PICTURED)
        numbers = [self.units.num_videos(unit) for unit in indices.tolist()]
        indices = indices[batches_of(numbers, self.config.evaluation.batch_size)[0]]  # all are computed at once
        rows = UnitReader(self.config, self.units, self.tokenizer, training=False).read(indices, indices)
        return to_torch(cast(dict[str, Any], rows), self.device)


def run_tokenizer(config: Config, run: Path) -> ReportTokenizer | None:
    """The tokenizer that was saved with the run, where it reads text."""
    if not config.needs_text:
        return None
    return ReportTokenizer.from_pretrained(load_tokenizer(str(run / "tokenizer")), config.data.max_text_length)


def is_due(config: Config, step: int) -> bool:
    """Whether the model after ``step`` steps is to be validated: every so often, and at the end."""
    every = config.training.evaluate_every
    return step == config.training.num_steps or (step > 0 and every is not None and step % every == 0)


def write_result(
    run: Path,
    step: int,
    metrics: dict[str, float],
    seconds: float,
    config: Config,
    intervals: Intervals | None = None,
) -> None:
    """Keep the metrics of ``step``; with this it counts as validated. ``best.json`` is brought up to date.

    Args:
        intervals: of the metrics, as ``Validation.intervals`` has them.

    Raises:
        OSError: the disk is full.
    """
    folder = run / "validation"
    folder.mkdir(exist_ok=True)
    scratch = folder / f".{step}.partial"
    weights = "trained" if config.training.ema_decay is None else "ema"
    found = {"step": step, "weights": weights, "seconds": seconds, "metrics": metrics, "intervals": intervals or {}}
    scratch.write_text(json.dumps(found, indent=1) + "\n")
    scratch.rename(folder / f"{step}.json")
    best = config.training.best_metric
    if best is not None and best not in metrics:
        note(run, f"training.best_metric {best!r} is none of the metrics: {', '.join(metrics)}")
    elif best is not None:
        note_best(run, config)


def read_results(run: Path) -> dict[int, dict[str, float]]:
    """Metrics of each validated step of a run, oldest first."""
    files = sorted((run / "validation").glob("[0-9]*.json"), key=lambda path: int(path.stem))
    return {int(path.stem): json.loads(path.read_text())["metrics"] for path in files}


def read_intervals(run: Path, step: int) -> Intervals:
    """Of each metric at a validated step ``low``, ``high`` (95 %, over patients) and ``baseline``, as far as they are
    known; nothing of a step that has no result."""
    path = run / "validation" / f"{step}.json"
    return json.loads(path.read_text()).get("intervals", {}) if path.exists() else {}


def post_results(board: Board, run: Path, config: Config, steps: Iterable[int]) -> list[int]:
    """Put the results of ``steps`` on the board: their scalars, and at the end of the run its line of the tab HParams
    (a trial's is written by its sweep). Returns those that have no result yet."""
    missing = []
    for step in steps:
        path = run / "validation" / f"{step}.json"
        if not path.exists():
            missing.append(step)
            continue
        result = json.loads(path.read_text())
        scalars = {f"validation/{name}": value for name, value in result["metrics"].items()}
        board.scalars(step, scalars | {"validation/seconds": result["seconds"]})
        if step == config.training.num_steps and not (run / TRIAL_FILE).exists():
            board.hparams(config, result["metrics"])
    return missing


def unposted_steps(run: Path) -> list[int]:
    """Validated steps that the board has not: those of tasks that ended after the last step was logged."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    posted = {json.loads(line)["step"] for line in lines if '"validation/seconds"' in line}
    return [step for step in read_results(run) if step not in posted]


def drop_results_after(run: Path, step: int) -> None:
    """Take out the results of steps that will be taken again."""
    for path in (run / "validation").glob("[0-9]*.json"):
        if int(path.stem) > step:
            path.unlink()


def steps_to_keep(run: Path, config: Config) -> set[int]:
    """Steps whose checkpoints stay however old they are: the best one, and the newest that wait to be validated (not
    all: a validation that failed leaves no result)."""
    wants_best = config.training.best_metric is not None
    if not wants_best and not config.evaluation.asynchronous:
        return set()
    results, saved = read_results(run), committed_steps(run)
    waiting = [step for step in saved if is_due(config, step) and step not in results]
    best = note_best(run, config) if wants_best else None
    num_waiting = _MOST_WAITING if config.evaluation.asynchronous else 2
    return {*waiting[-num_waiting:], *([best] if best is not None else [])}


def note_best(run: Path, config: Config) -> int | None:
    """Write ``best.json`` (step, metric, value) anew: the best validated step whose checkpoint is there. The earlier
    one, among equals."""
    name, sign = config.training.best_metric, 1 if config.training.best_mode == "max" else -1
    values = {step: metrics[name] for step, metrics in read_results(run).items() if name in metrics}
    there = [step for step in committed_steps(run) if step in values]
    if not there:
        (run / "best.json").unlink(missing_ok=True)
        return None
    best = max(there, key=lambda step: (sign * values[step], -step))
    scratch = run / f".best-{uuid.uuid4().hex[:8]}.partial"  # a task that validates may write it at the same time
    scratch.write_text(json.dumps({"step": best, "metric": name, "value": values[best]}) + "\n")
    scratch.rename(run / "best.json")
    return best
