"""Reports of a whole prepared dataset: decoded by Ray Data ahead of the model, and written to Parquet as they come."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import ray

from deepcoro import __version__
from deepcoro.config import Config
from deepcoro.config_writing import Writing
from deepcoro.data.pipeline import evaluation_dataset
from deepcoro.data.schema import SPLITS, UNITS
from deepcoro.data.tables import PreparedDataset, Units
from deepcoro.errors import DataError
from deepcoro.inference.report_table import ReportTable, write_table
from deepcoro.inference.reports import ReportWriter
from deepcoro.inference.sheet import Row
from deepcoro.launch.report_pictures import save_sheet, sheet_rows
from deepcoro.launch.resources import set_environment, start_ray
from deepcoro.launch.writing import How, open_writer
from deepcoro.training.checkpoint import read_manifest

Part = tuple[str, Units, np.ndarray]  # a split, its units, and which of them


def generate_dataset(
    run: str | Path, data: str, split: str | None = None, limit: int | None = None, how: How | None = None
) -> str:
    """Write a report of every unit of ``data`` into the Parquet folder ``how.output``, and draw them; returns what is
    told at the end.

    A unit that cannot be read has a row with its ``problem`` and no text. What the run's ``data.filter`` leaves out has
    no row.

    Args:
        data: a prepared dataset, the run's own or another.
        split: ``None``: all of them.
        limit: so many units, at equal steps over all of them.

    Raises:
        CheckpointError: there is no such checkpoint, or it has no average.
        ConfigError: the run was trained without captioning, or cannot write so.
        DataError: no prepared dataset, or nothing is left of it; or the output is there already.
    """
    set_environment()
    how = how or How()
    how.check(makes_folders=True)
    writer = open_writer(run, how, boxes=True)
    dataset = PreparedDataset.open(data)
    config = writer.trained.config
    parts = choose_units(dataset, config, split, limit)
    start_ray()
    about = _about(run, writer, dataset, split, limit)
    trained, rows = writer.trained, list[Row]()
    pace = Pace(sum(len(indices) for _, _, indices in parts), UNITS[config.data.unit])
    table: contextlib.AbstractContextManager[ReportTable | None] = contextlib.nullcontext()
    if how.output is not None:
        table = write_table(how.output, about, trained.checkpoint.name, trained.weights)
    with table as written, pace:
        for name, units, indices in parts:
            for batch in pace.batches(_batches(config, units, indices)):
                reports = writer.write(batch, units)
                if written is not None:
                    written.add(reports, name)
                if how.picture is not None:
                    rows += sheet_rows(reports, units, config, name)
                pace.count(int(batch["valid"].sum()), reports)
    if how.picture is not None:
        save_sheet(rows, how.picture, f"{Path(run).name}, checkpoint {trained.checkpoint.name}, {trained.weights}")
    return f"{how.output or how.picture}: {pace.told()}"


def choose_units(dataset: PreparedDataset, config: Config, split: str | None, limit: int | None) -> list[Part]:
    """Units of a split, or of all, that the run's filter leaves; ``limit`` of them at equal steps.

    Raises:
        DataError: there are none.
    """
    units, empty = {}, None
    for name in SPLITS if split is None else (split,):
        try:
            units[name] = dataset.units(name, config.data.unit, config.data.filter)
        except DataError as error:  # of one split of several; where all are, it is told
            empty = error
    if not units and empty is not None:
        raise empty
    ends = np.cumsum([len(of_split) for of_split in units.values()])
    chosen = np.arange(ends[-1])
    if limit is not None and limit < len(chosen):
        chosen = np.unique(np.linspace(0, ends[-1] - 1, limit).round().astype(np.int64))
    parts = []
    for (name, of_split), end in zip(units.items(), ends, strict=True):
        own = chosen[(chosen >= end - len(of_split)) & (chosen < end)] - (end - len(of_split))
        if len(own):
            parts.append((name, of_split, own))
    return parts


def _batches(config: Config, units: Units, indices: np.ndarray) -> Iterator[Mapping[str, np.ndarray]]:
    """Batches of ``indices``, in their order, while Ray Data decodes those to come."""
    dataset = evaluation_dataset(config, ray.put(units), None, indices)
    dataset.context.execution_options.preserve_order = True
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)


class Pace:
    """How far and how fast: a line on the terminal, rewritten there, and now and then in a log.

    The rate is of the time from the first batch on, which Ray's start and the first decoding come before.
    """

    def __init__(self, total: int, unit: str, every_seconds: float = 15.0) -> None:
        self.total, self.unit = total, unit
        self.every_seconds = 1.0 if sys.stderr.isatty() else every_seconds
        self.done = self.clips = self.problems = self.unwritten = 0
        self.waited = 0.0
        self._first: float | None = None
        self._end = self._told_at = time.perf_counter()

    def __enter__(self) -> Pace:
        return self

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def batches(self, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
        """``batches``, and how long they were waited for."""
        iterator = iter(batches)
        while True:
            begin = time.perf_counter()
            batch = next(iterator, None)
            now = time.perf_counter()
            if self._first is None:
                self._first = now
            else:
                self.waited += now - begin
            if batch is None:
                return
            yield batch

    def count(self, clips: int, reports: list[Any]) -> None:
        """A batch of so many clips has been written."""
        self._end = time.perf_counter()
        self.clips, self.done = self.clips + clips, self.done + len(reports)
        self.problems += sum(bool(report.problem) for report in reports)
        self.unwritten += sum(report.text is None for report in reports)
        if self._end - self._told_at >= self.every_seconds:
            self._told_at = self._end
            left = timedelta(seconds=round(self.seconds / self.done * (self.total - self.done)))
            line = f"{self.done:,} of {self.total:,} {self.unit}  {self._rate()}  left {left}"
            if sys.stderr.isatty():
                print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            else:
                print(line, file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """From the first batch on."""
        return max(self._end - (self._first if self._first is not None else self._end), 1e-9)

    def _rate(self) -> str:
        return f"{self.clips / self.seconds:.1f} clips/s  {min(1.0, self.waited / self.seconds):.0%} of it waiting"

    def told(self) -> str:
        """All that was done, as a sentence."""
        lines = [
            f"{self.done - self.unwritten:,} reports of {self.done:,} {self.unit}; {self.clips:,} clips in "
            f"{self.seconds:.1f} s: {self.clips / self.seconds:.1f} clips/s, of which "
            f"{min(1.0, self.waited / self.seconds):.0%} of the time waiting for data (the first batch counts "
            "from when it was decoded)"
        ]
        if self.problems:
            lines.append(
                f"WARNING: {self.problems:,} {self.unit} have a problem (column problem), and {self.unwritten:,} of "
                "them no report"
            )
        return "\n".join(lines)


def _about(
    run: str | Path, writer: ReportWriter, dataset: PreparedDataset, split: str | None, limit: int | None
) -> dict[str, Any]:
    """What the files tell of how they were made."""
    trained = writer.trained
    part = trained.config.captioning
    how = {name: getattr(part, name) for name in Writing.model_fields} | {"structured": part.structured}
    fingerprint = str(dataset.card.get("fingerprint", ""))
    trained_on = str(read_manifest(trained.checkpoint)["dataset_fingerprint"])
    if trained_on != fingerprint:
        print(
            f"{dataset.root} is not the dataset that {run} was trained on (fingerprints {fingerprint[:12]} and "
            f"{trained_on[:12]}): its splits do not tell which patients the model has seen",
            file=sys.stderr,
        )
    return {
        "run": Path(run).name,
        "checkpoint": trained.checkpoint.name,
        "weights": trained.weights,
        "dataset_fingerprint": fingerprint,
        "trained_on_fingerprint": trained_on,
        "code_version": __version__,
        "unit": trained.config.data.unit,
        "filter": trained.config.data.filter,
        "split": split or "any",
        "limit": limit,
        "captioning": how,
    }
