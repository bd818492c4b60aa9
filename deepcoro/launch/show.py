"""What a config, a run's folder or a prepared dataset is, as text for a person. Everything is read; nothing is started
or written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from pyarrow import fs

from deepcoro.config import Config
from deepcoro.config_section import flatten
from deepcoro.data.schema import SPLITS
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import UserError
from deepcoro.evaluation.report import Metric, format_table
from deepcoro.launch.sweep_show import is_sweep, show_sweep
from deepcoro.reports.vocabulary import TREES
from deepcoro.training.checkpoint import best_step, committed_steps

_METRIC = ("value", "low", "high", "baseline")  # of a metric in summary.json
_NUM_PROBLEMS = 5  # kinds of problems that are written out; the others are counted


def show(target: str) -> str:
    """What lies at ``target``: a run's or a sweep's folder, or a prepared dataset (a folder or a URI).

    Raises:
        UserError: it is neither, or cannot be read.
    """
    folder = Path(target)
    if "://" in target or (folder / "dataset.json").exists() or (folder / "studies.parquet").exists():
        return show_dataset(target)
    if (folder / "manifest.json").exists():
        run = folder.resolve().parent.parent
        raise UserError(f"{target} is one checkpoint; its run is shown by: deepcoro show {run}")
    if is_sweep(folder):
        return show_sweep(folder)
    if (folder / "config.yaml").exists():
        return show_run(folder)
    what = "is a folder that holds neither config.yaml nor dataset.json" if folder.is_dir() else "is not there"
    if folder.is_file():
        what = "is a file that is neither Python nor YAML"
    raise UserError(
        f"{target} {what}; give an experiment (experiments/demo.py), a YAML, a run's folder (runs/demo) or a prepared "
        "dataset (data/demo/prepared)"
    )


def show_config(config: Config) -> str:
    """Every field, as the YAML that a run saves."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip()


def differences(config: Config) -> list[str]:
    """Lines ``section.field: value (default)``, of the fields that are not at their default."""
    defaults = dict(flatten(Config().model_dump(mode="json")))
    changed = [(k, v) for k, v in flatten(config.model_dump(mode="json")) if v != defaults.get(k)]
    width = max((len(key) for key, _ in changed), default=0)
    return [f"{key.ljust(width)}  {_text(value)}  ({_text(defaults.get(key))})" for key, value in changed]


def show_run(run: Path) -> str:
    """State, config, checkpoints, newest losses and metrics, evaluations and problems of a run.

    Raises:
        UserError: its config cannot be read.
    """
    from deepcoro.launch.lock import is_running

    config = Config.load(run / "config.yaml")
    rows = list(_rows(run / "metrics.jsonl"))
    trained = [row for row in rows if "loss/total" in row]
    steps, total = committed_steps(run), config.training.num_steps
    reached = max([*steps, *(row["step"] for row in trained)], default=0)
    state = "running now" if is_running(run) else "finished" if total in steps else "not running, and not finished"
    lines = [f"{run}: {state}, step {reached} of {total}", ""]
    lines += ["config, where it differs from the default (in brackets)"]
    lines += indent(differences(config) or ["nowhere"])
    lines += ["", "checkpoints", *indent(_checkpoints(run, steps) or ["none yet"])]
    if trained:
        lines += ["", f"losses at step {trained[-1]['step']}", *indent(_scalars(trained[-1], "loss/"))]
    validated = [row for row in rows if any(name.startswith("validation/") for name in row)]
    if validated:
        lines += ["", f"validation at step {validated[-1]['step']}", *indent(_scalars(validated[-1], "validation/"))]
    for split in SPLITS:
        if (run / f"summary_{split}.json").exists():
            lines += ["", *_summary(run / f"summary_{split}.json", split)]
    return "\n".join([*lines, "", "problems", *indent(_problems(run / "problems.jsonl"))])


def show_dataset(path: str) -> str:
    """What was prepared: how, how much of it in each split, of what shape, and what was left out and why.

    Raises:
        DataError: it is no prepared dataset, or is damaged.
    """
    dataset = PreparedDataset.open(path)
    card = {key: value for key, value in dataset.card.items() if key != "counts"}  # the tables say those themselves
    facts = [[key, _text(value)] for key, value in flatten(card)]
    shapes = [["", "smallest", "median", "largest"]]
    for name in ("num_frames", "fps", "height", "width"):
        values = dataset.videos[name].to_numpy()
        if len(values):
            shapes.append([name, *(f"{of(values):g}" for of in (np.min, np.median, np.max))])
    return "\n".join(
        [
            f"{path}: a prepared dataset of {dataset.studies.num_rows} studies and {dataset.videos.num_rows} videos",
            "",
            "how it was made (dataset.json)",
            *indent(align(facts, right=False)),
            "",
            *align(_count_splits(dataset)),
            "",
            *align(shapes),
            "",
            *_quarantine(path),
        ]
    )


def align(rows: Sequence[Sequence[str]], right: bool = True) -> list[str]:
    """Rows of words as aligned lines; all columns but the first by their ends, where ``right``."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [c.rjust(w) if right else c.ljust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def indent(lines: Sequence[str]) -> list[str]:
    """Lines that belong to the one above."""
    return [f"  {line}" for line in lines]


def _count_splits(dataset: PreparedDataset) -> list[list[str]]:
    studies, videos = dataset.studies, dataset.videos
    split_of_video = studies["split"].take(pc.index_in(videos["study_id"], value_set=studies["study_id"]))
    rows = [["split", "patients", "studies", "reports", "findings", "videos", *TREES, "tree unknown"]]
    for split in [*SPLITS, "all"]:
        own = studies if split == "all" else studies.filter(pc.equal(studies["split"], split))
        seen = videos if split == "all" else videos.filter(pc.equal(split_of_video, split))
        told = pc.sum(pc.fill_null(pc.greater(pc.utf8_length(own["report"]), 0), False), min_count=0).as_py()
        trees = [pc.sum(pc.equal(seen["coronary_tree"], tree), min_count=0).as_py() for tree in TREES]
        numbers = [pc.count_distinct(own["patient_id"]).as_py(), own.num_rows, told]
        numbers += [own.num_rows - own["findings"].null_count, seen.num_rows, *trees, seen["coronary_tree"].null_count]
        rows.append([split, *map(str, numbers)])
    return rows


def _quarantine(path: str) -> list[str]:
    filesystem, folder = fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path)
    try:
        reasons = pq.read_table(f"{folder}/quarantine.parquet", columns=["reason"], filesystem=filesystem)["reason"]
    except FileNotFoundError:
        return ["quarantine: no quarantine.parquet here"]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}/quarantine.parquet cannot be read: {error}") from error
    if len(reasons) == 0:
        return ["quarantine: nothing was left out"]
    counted = Counter(reasons.to_pylist()).most_common()
    return [f"quarantine: {len(reasons)} files left out", *indent(align([[r, str(n)] for r, n in counted]))]


def _checkpoints(run: Path, steps: Sequence[int]) -> list[str]:
    best = best_step(run)
    rows = []
    for step in steps:
        size = sum(file.stat().st_size for file in (run / "checkpoints" / str(step)).rglob("*") if file.is_file())
        marks = ["newest"] if step == steps[-1] else []
        if step == best:
            note = json.loads((run / "best.json").read_text())
            marks.append(f"best ({note['metric']} {note['value']:.4g})")
        rows.append([str(step), f"{size / 1e6:.1f} MB", "  ".join(marks)])
    return align(rows, right=False)


def _scalars(row: dict[str, Any], group: str) -> list[str]:
    named = [[name.removeprefix(group), f"{row[name]:.4g}"] for name in row if name.startswith(group)]
    return align(named)


def _summary(path: Path, split: str) -> list[str]:
    try:
        summary = json.loads(path.read_text())
        metrics = {name: _metric(numbers) for name, numbers in summary["metrics"].items()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); measure the run again: deepcoro evaluate") from error
    which = f"checkpoint {summary.get('checkpoint')}, {summary.get('weights', 'trained')} weights"
    return [f"measured on {split}, {which}", *indent(format_table(metrics).split("\n"))]


def _metric(numbers: dict[str, float | None]) -> Metric:
    value, low, high, baseline = (np.nan if numbers[k] is None else numbers[k] for k in _METRIC)
    return Metric(float(value), float(low), float(high), float(baseline))  # type: ignore[arg-type]


def _problems(path: Path) -> list[str]:
    rows = list(_rows(path))
    units = {row["unit_id"] for row in rows if "unit_id" in row}
    lines = [f"{len(units)} units could not be read, wholly or in part (problems.jsonl says which and why)"]
    lines = lines if units else []
    others = Counter(str(row["problem"]).splitlines()[0] for row in rows if "unit_id" not in row).most_common()
    lines += [f"{number} times: {text}" for text, number in others[:_NUM_PROBLEMS]]
    if len(others) > _NUM_PROBLEMS:
        lines.append(f"and {len(others) - _NUM_PROBLEMS} other kinds, in problems.jsonl")
    return lines or ["none"]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that may be being written: a torn one is left out."""
    if path.exists():
        with path.open() as stream:
            yield from (json.loads(row) for row in stream if row.startswith("{") and row.endswith("}\n"))


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
