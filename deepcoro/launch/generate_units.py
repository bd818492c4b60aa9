"""Reports of one study, or of one video file: printed, as JSON, and as a picture."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from deepcoro.data.pipeline import batches_of
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset, Units
from deepcoro.data.video_file import video_units
from deepcoro.errors import ConfigError, DataError
from deepcoro.inference.report_table import report_json
from deepcoro.inference.reports import ReportWriter, UnitReport
from deepcoro.launch.going_on import check_same_dataset
from deepcoro.launch.report_pictures import save_sheet, sheet_rows
from deepcoro.launch.writing import How, open_writer, save_text

_NUM_NEAREST = 3  # ids that are named where one is unknown


def generate_study(run: str | Path, study: str, split: str | None = None, how: How | None = None) -> list[UnitReport]:
    """Write a report for each clip of ``study``, or for the study where that is the unit.

    Args:
        run: its folder; the model, and the dataset that it was trained on.
        split: where the study has to stand; ``None``: wherever it stands.

    Raises:
        CheckpointError: there is no such checkpoint, or it has no average.
        ConfigError: the run was trained without captioning, or cannot write so.
        DataError: there is no such study, it stands in another split, or the run's filter leaves none of it; or what is
            to be written is there already.
    """
    how = how or How()
    how.check()
    writer = open_writer(run, how, boxes=_wants_boxes(how))
    trained = writer.trained
    dataset = PreparedDataset.open(trained.config.data.path)
    check_same_dataset(trained.checkpoint, dataset)
    found_in = find_split(dataset, study, split)
    units, indices = _units_of(dataset, study, found_in, trained.config.data.unit, trained.config.data.filter)
    reports = write_units(writer, units, indices)
    reader = UnitReader(trained.config, units, None, training=False)
    truths = [reader.text(report.unit) for report in reports]
    _tell(run, writer, how, reports, truths, {"study_id": study, "split": found_in})
    if how.picture is not None:
        rows = sheet_rows(reports, units, trained.config, found_in)
        save_sheet(rows, how.picture, f"{Path(run).name}, {_taken(writer)}")
    return reports


def generate_video(
    run: str | Path, video: str, angles: tuple[float, float] | None = None, how: How | None = None
) -> list[UnitReport]:
    """Write a report of one video file (AVI or MP4), which is read as evaluation reads: by time and by the same crop.

    Args:
        video: a path or a URI.
        angles: primary (LAO positive) and secondary (cranial positive), in degrees.

    Raises:
        CheckpointError, ConfigError: as ``generate_study``; also where the model does not look at angles.
        DataError: the file is not there, is a DICOM file or none that can be decoded, or holds one picture.
    """
    how = how or How()
    how.check()
    writer = open_writer(run, how, boxes=_wants_boxes(how))
    config, views = writer.trained.config, writer.trained.model.view_embedding
    if angles is not None and (config.level("captioning") == "clip" or views is None or views.angles is None):
        raise ConfigError(
            "--angles would do nothing: only a decoder of whole studies (captioning.level=study) looks at them, with "
            "study_pooling.angles; leave it out"
        )
    units = video_units(video, angles, whole_study=config.data.unit == "study")
    reports = write_units(writer, units, np.arange(1))
    if reports[0].text is None:
        raise DataError(reports[0].problem)
    _tell(run, writer, how, reports, None, {})
    if how.picture is not None:
        rows = sheet_rows(reports, units, config, None, knows_truth=False)
        save_sheet(rows, how.picture, f"{Path(run).name}, {_taken(writer)}")
    return reports


def write_units(writer: ReportWriter, units: Units, indices: np.ndarray) -> list[UnitReport]:
    """Reports of ``indices`` of ``units``, read in this process."""
    config = writer.trained.config
    reader = UnitReader(config, units, None, training=False)
    reports: list[UnitReport] = []
    for piece in batches_of([units.num_videos(unit) for unit in indices.tolist()], config.evaluation.batch_size):
        reports += writer.write(reader.read(indices[piece], indices[piece]), units)  # type: ignore[arg-type]
    return reports


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


def _wants_boxes(how: How) -> bool:
    return how.form == "json" or how.picture is not None


def _taken(writer: ReportWriter) -> str:
    return f"checkpoint {writer.trained.checkpoint.name}, {writer.trained.weights} weights"


def _tell(
    run: str | Path,
    writer: ReportWriter,
    how: How,
    reports: Sequence[UnitReport],
    truths: Sequence[str | None] | None,
    about: dict[str, str],
) -> None:
    """Print the reports, or write them to the file; ``truths`` are ``None`` where nobody knows them."""
    if how.form == "json":
        trained = writer.trained
        rows = [report_json(report) for report in reports]
        for row, truth in zip(rows, truths or [], strict=False):
            row["true"] = truth
        made_by = {"run": Path(run).name, "checkpoint": trained.checkpoint.name, "weights": trained.weights}
        told: dict[str, Any] = {**made_by, **about, "reports": rows}
        text = json.dumps(told, ensure_ascii=False, indent=1, allow_nan=False)
    else:
        named = "".join(f", {name} {value}" for name, value in _named(about))
        blocks = [
            _block(report, truths[at] if truths is not None else None, truths is not None)
            for at, report in enumerate(reports)
        ]
        text = "\n\n".join([f"{run}, {_taken(writer)}{named}", *blocks])
    if how.output is None:
        print(text)
    else:
        save_text(text + "\n", how.output)


def _named(about: dict[str, str]) -> list[tuple[str, str]]:
    return [("study", f"{about['study_id']} of split {about['split']}")] if about else []


def _block(report: UnitReport, truth: str | None, knows_truth: bool) -> str:
    """What is printed of one unit."""
    tree = ""
    if knows_truth and report.unit_id != report.study_id:
        tree = f"  {report.tree or 'tree unknown'}"
    lines = [f"{report.unit_id}{tree}"]
    if knows_truth:
        lines.append(f"  true     {truth or '(none)'}")
    lines.append(f"  written  {'(no video could be read)' if report.text is None else report.text or '(empty)'}")
    for finding in report.said.findings:
        known = report.probability(finding.segment)
        if known is not None and known.sentence is not None:
            lines.append(
                f"  {finding.segment}: significant with probability {known.significant:.3f}, this sentence "
                f"{known.sentence:.3f}"
            )
    if report.problem:
        lines.append(f"  problem  {report.problem}")
    return "\n".join(lines)
