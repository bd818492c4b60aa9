"""A phantom archive on disk: valid DICOM, true tables, the same from the same seed."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from click.testing import CliRunner
from pydicom.uid import UID

from data_prep.phantom.cli import phantom
from data_prep.phantom.generate import Recipe, assign_splits, write_phantom
from data_prep.phantom.preset import preset_named
from deepcoro.data.schema import FINDING_TYPE, SPLITS
from deepcoro.errors import UserError
from deepcoro.reports.grammar import Finding, parse_report
from deepcoro.reports.vocabulary import segments_of_tree

SMALL = {"num_studies": 4, "seed": 11, "size": 64, "num_frames": 3, "fps": 15}


def digest(folder):
    """Hash of every file below a folder, but for the record that holds the time it took."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "archive"
    return folder, write_phantom(folder, **SMALL)


def test_the_same_bytes_from_any_number_of_processes_and_others_from_another_seed(archive, tmp_path):
    folder, _ = archive
    write_phantom(tmp_path / "two", **SMALL, num_processes=2)
    assert digest(tmp_path / "two") == digest(folder)
    write_phantom(tmp_path / "other", **{**SMALL, "seed": 12, "num_studies": 1})
    assert not set(digest(tmp_path / "other").values()) & set(digest(folder).values())


def test_dicom_files_are_what_they_say(archive):
    folder, summary = archive
    paths = sorted((folder / "dicom").glob("*/*/*.dcm"))
    assert len(paths) == summary.num_videos == 8
    truth = {row["sop_instance_uid"]: row for row in pq.read_table(folder / "videos.parquet").to_pylist()}
    seen = set()
    for path in paths:
        data = pydicom.dcmread(path)  # not forced: the file has its preamble and meta header
        assert data.SOPClassUID == "1.2.840.10008.5.1.4.1.1.12.1"
        assert data.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
        assert data.Modality == "XA"
        assert data.NumberOfFrames == 3
        assert data.FrameIncrementPointer == pydicom.tag.Tag("FrameTime")
        assert float(data.FrameTime) == pytest.approx(1000 / 15)
        assert data.CineRate == 15
        assert data.PhotometricInterpretation == "MONOCHROME2"
        assert data.BurnedInAnnotation == "NO"
        assert str(data.PatientName).startswith("PHANTOM^")
        assert path.parts[-3:] == (data.PatientID, data.StudyInstanceUID, f"{data.InstanceNumber}.dcm")
        assert all(
            UID(str(uid)).is_valid for uid in (data.SOPInstanceUID, data.StudyInstanceUID, data.SeriesInstanceUID)
        )
        assert data.pixel_array.shape == (3, 64, 64)
        assert data.pixel_array.dtype == np.uint8
        assert data.pixel_array.std() > 20
        assert data.ImagerPixelSpacing[0] * 64 == pytest.approx(128 * 1.4, rel=0.2)  # the field, magnified
        row = truth[data.SOPInstanceUID]
        expected = {"left": (35, 25), "right": (30, 20)}[row["coronary_tree"]]
        assert abs(data.PositionerPrimaryAngle - expected[0]) < 15
        assert abs(data.PositionerSecondaryAngle - expected[1]) < 15
        assert row["acquisition"] == "diagnostic"
        seen.add(data.SOPInstanceUID)
    assert seen == set(truth)


def test_reports_say_the_findings(archive):
    folder, _ = archive
    table = pq.read_table(folder / "reports.parquet")
    assert table.schema.field("findings").type.value_type == FINDING_TYPE
    rows = table.to_pylist()
    assert len({row["patient_id"] for row in rows}) == len({row["study_id"] for row in rows}) == 4
    known = set(segments_of_tree("left", "right")) | set(segments_of_tree("right", "right"))
    for row in rows:
        findings = {Finding.from_dict(finding) for finding in row["findings"]}
        read = parse_report(row["report"])
        assert read.unread == ()
        assert set(read.findings) == findings
        assert {finding.segment for finding in findings} <= known
        assert read.dominance == row["dominance"] == "right"
        assert 20 <= row["lvef"] <= 75


def test_split_counts_are_exact(tmp_path):
    recipe = Recipe(480, 0, preset_named("easy"), 64, 3, 15.0, val_fraction=0.10, test_fraction=0.25)
    splits = assign_splits(recipe)
    assert [splits.count(name) for name in ("train", "val", "test")] == [312, 48, 120]
    assert splits == assign_splits(recipe)
    assert splits != assign_splits(replace(recipe, seed=1))
    rows = {split: write_phantom(tmp_path, 9, size=32, num_frames=2).splits[split] for split in SPLITS}
    assert rows == {"train": 6, "val": 1, "test": 2}
    told = pq.read_table(tmp_path / "reports.parquet").column("split").to_pylist()
    assert {split: told.count(split) for split in SPLITS} == rows
    assert "val" in splits[:100]
    assert "test" in splits[:100]


def test_a_complete_archive_is_left_alone(archive):
    folder, first = archive
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = write_phantom(folder, **SMALL)
    assert not again.made
    assert again.splits == first.splits
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_parameters_or_other_files_are_refused(archive, tmp_path):
    with pytest.raises(UserError, match="another seed"):
        write_phantom(archive[0], **{**SMALL, "seed": 1})
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        write_phantom(tmp_path, **SMALL)


def test_an_unfinished_archive_is_made_again(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    one = {**SMALL, "num_studies": 1}
    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "a", **one, on_progress=stop)
    assert not (tmp_path / "a" / "phantom.json").exists()
    assert write_phantom(tmp_path / "a", **one).made
    write_phantom(tmp_path / "b", **one)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "dicom", "phantom.json", "reports.parquet", "videos.parquet",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_studies": 0},
        {"size": 8},
        {"num_frames": 1},
        {"fps": 0},
        {"val_fraction": 0.9},
        {"num_processes": 0},
        {"seed": -1},
    ],
)
def test_parameters_out_of_range_are_refused_by_name(wrong, tmp_path):
    with pytest.raises(UserError, match=next(iter(wrong))):
        write_phantom(tmp_path / "x", **{**SMALL, **wrong})
    assert not (tmp_path / "x").exists()


def test_command(tmp_path):
    arguments = ["--output", str(tmp_path / "x"), "--num-studies", "1", "--size", "32", "--num-frames", "2"]
    result = CliRunner().invoke(phantom, arguments)
    assert result.exit_code == 0, result.output
    assert "1 studies" in result.output
    assert json.loads((tmp_path / "x" / "phantom.json").read_text())["how"]["size"] == 32


def test_archives_of_other_patients_have_nobody_in_common(tmp_path):
    whole = write_phantom(tmp_path / "whole", 4, size=32, num_frames=2, test_fraction=0.0, val_fraction=0.0)
    later = write_phantom(
        tmp_path / "later", 2, size=32, num_frames=2, test_fraction=0.0, val_fraction=0.0, first=2
    )  # patients 2 and 3 of the same
    assert (whole.num_studies, later.num_studies) == (4, 2)
    found = pq.read_table(tmp_path / "later" / "reports.parquet").to_pylist()
    assert found == pq.read_table(tmp_path / "whole" / "reports.parquet").to_pylist()[2:]
    assert [row["patient_id"] for row in found] == ["PHANTOM-000002", "PHANTOM-000003"]
    for folder, number, asked in (("later", 2, 0), ("whole", 4, 5)):
        with pytest.raises(UserError, match="made with another first .see"):
            write_phantom(
                tmp_path / folder, number, size=32, num_frames=2, test_fraction=0.0, val_fraction=0.0, first=asked
            )
    with pytest.raises(UserError, match="phantom first must be 0 to 999997, got -1"):
        write_phantom(tmp_path / "none", 2, first=-1)
