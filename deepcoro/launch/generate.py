"""What a trained model writes about one study, beside the truth."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch

from deepcoro.data.pipeline import batches_of
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset, Units
from deepcoro.errors import ConfigError, DataError
from deepcoro.inference.load import load
from deepcoro.launch.going_on import check_same_dataset
from deepcoro.training.checkpoint import Weights

_NUM_NEAREST = 3  # ids that are named where one is unknown


@dataclass(frozen=True)
class Written:
    """One unit: the tree in view (``None``: unknown, or a whole study), the true text, if there is one, the written
    one (``None`` where no view could be read), and what went wrong in reading."""

    unit_id: str
    tree: str | None
    true: str | None
    written: str | None
    problem: str


def generate(
    run: str | Path,
    study: str,
    split: str | None = None,
    checkpoint: str | int = "newest",
    weights: Weights | None = None,
) -> list[Written]:
    """Write a report for each clip of ``study``, or for the study where that is the unit, and print them.

    Args:
        run: its folder; the model, and the dataset that it was trained on.
        split: where the study has to stand; ``None``: wherever it stands.
        checkpoint: ``newest``, ``best`` or a step.
        weights: ``trained``, or ``ema``, their average; ``None``: the average where there is one.

    Raises:
        CheckpointError: there is no such checkpoint, or it has no average.
        ConfigError: the run was trained without captioning.
        DataError: there is no such study, it stands in another split, or the run's filter leaves none of it.
    """
    trained = load(run, checkpoint, weights)
    config = trained.config
    if not config.loss.is_used("captioning"):
        raise ConfigError(f"{run} was trained without captioning (loss.weights.captioning is 0): it cannot write")
    dataset = PreparedDataset.open(config.data.path)
    check_same_dataset(trained.checkpoint, dataset)
    found_in = find_split(dataset, study, split)
    units, indices = _units_of(dataset, study, found_in, config.data.unit, config.data.filter)
    trained.model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    reader = UnitReader(config, units, None, training=False)
    rows: list[Written] = []
    for piece in batches_of([units.num_videos(unit) for unit in indices.tolist()], config.evaluation.batch_size):
        some = indices[piece]
        batch = reader.read(some, some)
        whole = np.asarray(batch["valid"].any(axis=1))
        parts = (torch.from_numpy(batch[name][whole]) for name in ("clip", "valid", "angles"))
        written = iter(trained.write_reports(*parts) if whole.any() else [])
        for place, unit in enumerate(some.tolist()):
            tree = None if units.whole_study else units.video_rows(unit)[0]["coronary_tree"]
            name, problem = str(batch["unit_id"][place]), str(batch["problem"][place])
            rows.append(Written(name, tree, reader.text(unit), next(written) if whole[place] else None, problem))
    taken = f"checkpoint {trained.checkpoint.name}, {trained.weights} weights"
    print(f"{run}, {taken}, study {study} of split {found_in}")
    for row in rows:
        print(f"\n{row.unit_id}" + (f"  {row.tree or 'tree unknown'}" if not units.whole_study else ""))
        print(f"  true     {row.true or '(none)'}")
        print(f"  written  {row.written or '(no video could be read)'}")
        if row.problem:
            print(f"  problem  {row.problem}")
    return rows


def find_split(dataset: PreparedDataset, study: str, split: str | None = None) -> str:
    """The split in which ``study`` stands.

    Raises:
        DataError: there is no such study, or it stands in another one than ``split``.
    """
    place = pc.index(dataset.studies["study_id"], study).as_py()
    if place < 0:
        known = dataset.studies.select(["study_id", "split"]).to_pylist()
        splits = {row["study_id"]: row["split"] for row in known}
        near = difflib.get_close_matches(study, splits, n=_NUM_NEAREST)
        like = ", ".join(f"{name} ({splits[name]})" for name in near)
        raise DataError(
            f"{dataset.root} has no study {study!r}; "
            + (f"the nearest are {like}" if near else "none is like it: the column study_id of studies.parquet has all")
        )
    found = dataset.studies["split"][place].as_py()
    if split is not None and split != found:
        raise DataError(f"study {study} stands in split {found}, and not in {split}; leave out the split, or name that")
    return found


def _units_of(
    dataset: PreparedDataset, study: str, split: str, unit: str, keep: str | None
) -> tuple[Units, np.ndarray]:
    if not pc.any(pc.equal(dataset.videos["study_id"], study), min_count=0).as_py():
        raise DataError(f"study {study} has no video in {dataset.root}; there is nothing to look at")
    units = dataset.units(split, unit, keep)
    indices = np.flatnonzero(units.column("study_id") == study)
    if len(indices) == 0:
        raise DataError(f"data.filter {keep!r} of this run leaves no video of study {study}")
    return units, indices
