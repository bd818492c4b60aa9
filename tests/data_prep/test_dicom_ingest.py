"""The whole DICOM door: every file accounted for, nobody named, ids and splits that keep, tables, safe output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import tag_for_keyword
from pydicom.tag import Tag

from data_prep.dicom import ingest as ingest_module
from data_prep.dicom import workers as workers_module
from data_prep.dicom.discover import discover
from data_prep.dicom.identity import Key, load_or_create_key
from data_prep.dicom.ingest import ingest
from data_prep.dicom.place import Place
from data_prep.dicom.quarantine import REASONS
from deepcoro.data.schema import QUARANTINE_SCHEMA, STUDIES_SCHEMA, VIDEOS_SCHEMA
from deepcoro.errors import DataError
from tests.data_prep.archive import by_reason, cine, patients, rows

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data"
# What must never be found in a dataset.
SECRETS = {
    "PatientName": "Quixotewitz^Zebulina",
    "PatientID": "MRN-7391846",
    "PatientBirthDate": "19390217",
    "AccessionNumber": "ACC-5518203",
    "StudyDate": "20210309",
    "StudyInstanceUID": "1.2.826.0.1.777.41",
    "SOPInstanceUID": "1.2.826.0.1.777.42",
    "SeriesInstanceUID": "1.2.826.0.1.777.43",
    "InstitutionName": "Vexleyham General",
    "ReferringPhysicianName": "Drumblethorpe^Ida",
    "StudyDescription": "Coronary for Zebulina",
}


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """One Ray for the module: starting it takes longer than all the rest."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40)
    yield
    ray.shutdown()


def test_every_file_is_ingested_or_has_a_reason(tmp_path: Path) -> None:
    source = tmp_path / "in"
    cine(source / "a" / "good.dcm", "P", "1.1", "1.1.1")
    cine(source / "a" / "z-again.dcm", "P", "1.1", "1.1.1")
    cine(source / "z-stranger.dcm", "Q", "1.1", "1.1.2")
    cine(source / "no name at all \udcff", "P", "1.1", "1.1.3")
    cine(source / "ct.dcm", "P", "1.1", "1.1.4", Modality="CT")
    cine(source / "still.dcm", "P", "1.1", "1.1.5", np.zeros((1, 8, 8), np.uint8))
    rgb = {"SamplesPerPixel": 3, "PhotometricInterpretation": "HSV", "PlanarConfiguration": 0}
    cine(source / "rgb.dcm", "P", "1.1", "1.1.6", np.zeros((2, 8, 8, 3), np.uint8), **rgb)
    cine(source / "wide.dcm", "P", "1.1", "1.1.7", np.zeros((2, 8, 8), np.uint32))
    cine(source / "text.dcm", "P", "1.1", "1.1.8", BurnedInAnnotation="YES")
    cine(source / "nobody.dcm", "P", "", "1.1.9")
    cine(source / "odd.dcm", "P", "1.1", "1.1.10", Rows=0)
    cine(source / "cut.dcm", "P", "1.1", "1.1.11")
    (source / "cut.dcm").write_bytes((source / "cut.dcm").read_bytes()[:-300])
    (source / "cut-header.dcm").write_bytes((source / "rgb.dcm").read_bytes()[:180])
    (source / "empty").touch()
    (source / "notes.txt").write_text("not an image")
    (source / "loop").symlink_to(source, target_is_directory=True)
    (source / "dangling").symlink_to(source / "nothing")
    os.mkfifo(source / "pipe")
    summary = ingest(source, tmp_path / "out")
    reasons = by_reason(summary)
    assert set(reasons) <= set(REASONS)
    for reason in (
        "duplicate",
        "conflicting_patient",
        "other_modality",
        "single_frame",
        "colour",
        "unsupported_pixels",
    ):
        assert reasons.pop(reason) == 1, reason
    for reason in ("burned_in_annotation", "no_identity", "truncated", "empty", "not_dicom"):
        assert reasons.pop(reason) == 1, reason
    assert sum(reasons.values()) == 2 and set(reasons) <= {"bad_header", "no_pixel_data"}
    assert summary.description["counts"]["found"] == 15
    assert summary.description["counts"]["ingested"] == 2
    for name, schema in (("studies", STUDIES_SCHEMA), ("videos", VIDEOS_SCHEMA), ("quarantine", QUARANTINE_SCHEMA)):
        assert pq.read_schema(tmp_path / "out" / f"{name}.parquet").equals(schema)
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out" / "videos").rglob("*.*"))
    assert files == sorted(row["uri"] for row in rows(tmp_path / "out", "videos"))


def test_the_dataset_names_nobody(tmp_path: Path) -> None:
    source = tmp_path / "in"
    cine(source / "Quixotewitz" / "one.dcm", "", "", "", **SECRETS, PatientAge="082Y", PatientSex="F")
    broken = {**SECRETS, "SOPInstanceUID": "1.2.826.0.1.777.99"}
    cine(source / "Quixotewitz" / "two.dcm", "", "", "", **broken)
    (source / "Quixotewitz" / "two.dcm").write_bytes((source / "Quixotewitz" / "two.dcm").read_bytes()[:-9])
    output = tmp_path / "out"
    assert by_reason(ingest(source, output)) == {"truncated": 1}
    words = {word.lower() for value in [*SECRETS.values(), "777.99"] for word in value.replace("^", " ").split()}
    words -= {"coronary", "for", "general"}
    everything = [(str(path.relative_to(output)), path.read_bytes()) for path in output.rglob("*") if path.is_file()]
    everything += [(name, json.dumps(rows(output, name)).encode()) for name in ("studies", "videos", "quarantine")]
    assert len(everything) == 6 + 3  # three tables, the card, the lock, a video
    for name, content in everything:
        for word in words:
            assert word.encode() not in content.lower(), (name, word)
            assert word not in name.lower()
    (study,) = rows(output, "studies")
    assert (study["sex"], study["age_band"], study["day_offset"]) == ("F", "80-89", 0)
    # What the hospital needs to find a file again lies beside the key, for its owner only.
    for path in (tmp_path / "out.key", tmp_path / "out.sources.csv"):
        assert path.stat().st_mode & 0o777 == 0o600
    (quarantined,) = rows(output, "quarantine")
    assert f"{quarantined['source']},Quixotewitz/two.dcm,,truncated" in (tmp_path / "out.sources.csv").read_text()


def test_nothing_that_any_text_tag_says_leaves_the_door(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every text element of the DICOM dictionary holds a word, a date or an id to look for."""
    texts = {"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
    needed = {"StudyInstanceUID", "SOPInstanceUID", "SOPClassUID", "PatientID"}
    planted = dict.fromkeys(texts, "Zqplanted") | {"DA": "19390217", "DT": "19390217101112.5"}
    tags: dict[str, Any] = {}
    for kind, count, *_, retired, keyword in DicomDictionary.values():
        if keyword and kind in planted and count in ("1", "1-n") and not retired and keyword not in needed:
            tags[keyword] = planted[kind]
        elif keyword and kind == "UI" and keyword not in needed | {"TransferSyntaxUID"} and count == "1":
            tags[keyword] = "1.2.826.0.1.777.55"
    assert len(tags) > 800
    tags = {name: value for name, value in tags.items() if Tag(tag_for_keyword(name)).group not in (0, 2, 4)}
    for name, length in (("good", 0), ("cut", 9)):
        path = tmp_path / "in" / f"Zqplanted {name}"
        cine(path, "Zqplanted", "1.2.826.0.1.777.55.1", f"1.2.826.0.1.777.55.{2 + length}", **tags)
        if length:
            path.write_bytes(path.read_bytes()[:-length])
    summary = ingest(tmp_path / "in", tmp_path / "out")
    assert summary.description["counts"]["found"] == 2 and summary.description["counts"]["ingested"] == 1
    said = "".join(capfd.readouterr()).encode()
    everything = [said] + [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    everything += [str(path.relative_to(tmp_path)).encode() for path in (tmp_path / "out").rglob("*")]
    everything += [json.dumps(rows(tmp_path / "out", name)).encode() for name in ("studies", "videos", "quarantine")]
    for content in everything:
        for word in (b"zqplanted", b"19390217", b"777.55"):
            assert word not in content.lower()


def test_research_ids_can_be_kept(tmp_path: Path) -> None:
    source = tmp_path / "in"
    cine(source / "a.dcm", "P7", "1.1", "1.1.1")
    cine(source / "b.dcm", "no/name", "1.2", "1.2.1")
    ingest(source, tmp_path / "out", keep_ids=True)
    key = load_or_create_key(tmp_path / "out.key")
    assert {row["patient_id"] for row in rows(tmp_path / "out", "studies")} == {"P7", key.id_of("patient", "no/name")}
    assert {row["video_id"] for row in rows(tmp_path / "out", "videos")} == {"1.1.1", "1.2.1"}
    with pytest.raises(DataError, match="made with another key than .*keep-ids"):
        ingest(source, tmp_path / "out")


def test_ids_and_splits_belong_to_the_key(tmp_path: Path) -> None:
    source = patients(tmp_path / "in")
    first = ingest(source, tmp_path / "a", val_fraction=0.3, test_fraction=0.3)
    again = ingest(source, tmp_path / "b", key_path=tmp_path / "a.key", val_fraction=0.3, test_fraction=0.3)
    assert first.description == again.description
    for name in ("studies", "videos"):
        assert rows(tmp_path / "a", name) == rows(tmp_path / "b", name)
    ingest(source, tmp_path / "c")
    for column in ("study_id", "patient_id"):
        ids = [{row[column] for row in rows(tmp_path / output, "studies")} for output in "ac"]
        assert not ids[0] & ids[1]
    studies = rows(tmp_path / "a", "studies")
    assert len({row["patient_id"] for row in studies}) == 12
    assert len({(row["patient_id"], row["split"]) for row in studies}) == 12
    assert sorted(row["day_offset"] for row in studies) == [0] * 12 + [5] * 12
    # Incremental: without half of the patients the others are where they were.
    for patient in range(6):
        for path in source.glob(f"{patient}-*.dcm"):
            path.unlink()
    ingest(source, tmp_path / "d", key_path=tmp_path / "a.key", val_fraction=0.3, test_fraction=0.3)
    assert all(row in studies for row in rows(tmp_path / "d", "studies"))


def test_split_fractions_hold_over_many_patients() -> None:
    key = Key(b"k" * 32)
    splits = [key.split_of(f"{patient}", 0.1, 0.2) for patient in range(20_000)]
    assert splits.count("val") / 20_000 == pytest.approx(0.1, abs=0.01)
    assert splits.count("test") / 20_000 == pytest.approx(0.2, abs=0.01)


def test_another_key_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    source, output = patients(tmp_path / "in", 2), tmp_path / "out"
    ingest(source, output, key_path=tmp_path / "safe" / "site.key")
    before = rows(output, "studies")
    with pytest.raises(DataError, match="made with another key than .*out.key.*--key"):
        ingest(source, output)
    assert not (tmp_path / "out.key").exists()
    load_or_create_key(tmp_path / "other.key")
    with pytest.raises(DataError, match="made with another key"):
        ingest(source, output, key_path=tmp_path / "other.key")
    assert rows(output, "studies") == before
    assert ingest(source, output, key_path=tmp_path / "safe" / "site.key").num_converted == 0


def test_blanks_around_a_patients_id_make_no_other_patient(tmp_path: Path) -> None:
    source = patients(tmp_path / "in", 1)
    (tmp_path / "reports.csv").write_text("study_id,patient_id\n1.2.3.0.0, P0 \n1.2.3.0.1,  \n")
    ingest(source, tmp_path / "out", reports=tmp_path / "reports.csv")
    key = load_or_create_key(tmp_path / "out.key")
    assert [row["patient_id"] for row in rows(tmp_path / "out", "studies")] == [key.id_of("patient", "P0")] * 2


def test_side_tables_are_joined(tmp_path: Path) -> None:
    source = patients(tmp_path / "in", 3)
    findings = [{"segment": "mid_rca", "stenosis": 70}]
    reports = [
        {"study_id": "1.2.3.0.0", "report": "70% stenosis", "findings": findings, "dominance": "right", "lvef": 55},
        {"study_id": "1.2.3.1.0", "report": "Normal.", "split": "val", "room": "3"},
        {"study_id": "9.9.9", "report": "of nobody"},
    ]
    (tmp_path / "reports.jsonl").write_text("\n".join(json.dumps(row) for row in reports))
    (tmp_path / "videos.csv").write_text(
        "sop_instance_uid,coronary_tree,acquisition,boxes\n"
        '1.2.3.0.0.1,right,diagnostic,"[{""segment"": ""mid_rca"", ""frame"": 1, ""x0"": 0.5}]"\n'
    )
    pq.write_table(pa.table({"patient_id": ["P0", "P2"], "split": ["test", "train"]}), tmp_path / "splits.parquet")
    output = tmp_path / "out"
    tables = {"reports": tmp_path / "reports.jsonl", "videos": tmp_path / "videos.csv"}
    summary = ingest(source, output, splits=tmp_path / "splits.parquet", **tables)
    assert summary.unmatched == {"reports": 1, "videos": 0, "splits": 0}
    assert "room" in summary.notes[0]
    studies = {row["study_id"]: row for row in rows(output, "studies")}
    key = load_or_create_key(tmp_path / "out.key")
    first = studies[key.id_of("study", "1.2.3.0.0")]
    assert (first["report"], first["dominance"], first["lvef"]) == ("70% stenosis", "right", 55)
    assert first["findings"][0]["segment"] == "mid_rca" and first["findings"][0]["timi"] is None
    assert studies[key.id_of("study", "1.2.3.0.1")]["report"] is None
    expected = {"P0": "test", "P1": "val", "P2": "train"}
    assert {row["patient_id"]: row["split"] for row in studies.values()} == {
        key.id_of("patient", patient): split for patient, split in expected.items()
    }
    (video,) = [row for row in rows(output, "videos") if row["coronary_tree"]]
    assert video["video_id"] == key.id_of("video", "1.2.3.0.0.1")
    assert (video["coronary_tree"], video["acquisition"], video["boxes"][0]["x0"]) == ("right", "diagnostic", 0.5)


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        ("reports", "study,report\n1,x\n", r"'study_id' is missing; the table has study, report"),
        ("reports", "study_id,report\n1,x\n1,y\n", r"row 2.*stands here again"),
        ("reports", "study_id,dominance\n1,both\n", r"row 1: 'dominance' is 'both'; it may be right, left, balanced"),
        ("reports", 'study_id,findings\n1,"[{""segmnt"": 1}]"\n', r"unknown segmnt"),
        ("reports", "study_id,lvef\n1,good\n", r"row 1: 'lvef'"),
        ("videos", "uid\n1\n", r"'sop_instance_uid' is missing"),
        ("splits", "patient_id,split\nP0,training\n", r"'split' is 'training'; it may be train, val, test"),
        ("splits", "study_id,split\n1.2.3.0.0,val\n1.2.3.0.1,test\n", r"one patient .* test and val"),
    ],
)
def test_a_wrong_table_is_explained(tmp_path: Path, table: str, text: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        ingest(patients(tmp_path / "in", 1), tmp_path / "out", **{table: path})  # type: ignore[arg-type]
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_failure_leaves_the_previous_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = patients(tmp_path / "in", 2), tmp_path / "out"
    ingest(source, output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(ingest_module, "write_tables", fail)
    with pytest.raises(DataError, match=r"cannot be written there \(no space left\).*no file has to be read again"):
        ingest(source, output)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "notes.txt").write_text("no cine")
    with pytest.raises(DataError, match=r"made with the input .*, and this is .*junk"):
        ingest(tmp_path / "junk", output)
    with pytest.raises(DataError, match=r"none of 4 files became a video \(other_modality\)"):
        ingest(source, output, modalities=("CT",))
    with pytest.raises(DataError, match="is no prepared dataset"):
        ingest(source, tmp_path / "junk")
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    cine(source / "new.dcm", "P9", "1.9", "1.9.1")
    summary = ingest(source, output)
    assert summary.description["counts"]["ingested"] == 5
    assert summary.num_converted == 1  # the slip with the modalities cost nothing


def test_a_file_that_kills_its_decoder_costs_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = patients(tmp_path / "in", 2)
    (source / "killer").write_bytes(b"x")
    convert_batch = workers_module._convert_batch

    def die(batch: dict[str, np.ndarray], work: Any) -> Any:
        if b"killer" in list(batch["path"]):
            with (tmp_path / "deaths").open("a") as file:
                file.write("x")
            os.abort()
        return convert_batch(batch, work)

    monkeypatch.setattr(workers_module, "_convert_batch", die)
    summary = ingest(source, tmp_path / "out")
    assert by_reason(summary) == {"decoder_crash": 1}
    assert (tmp_path / "deaths").read_text() == "xx"
    assert summary.description["counts"]["ingested"] == 4


def test_statistics_and_order(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for place, (time, level) in enumerate([("120000", 40), ("110000", 20), ("130000", 60)]):
        frames = np.full((2, 32, 32), level, np.uint8)
        frames[1] = 2 * level
        tags = {"AcquisitionDate": "20200101", "AcquisitionTime": time, "ImagerPixelSpacing": [0.3, 0.3]}
        cine(source / f"{place}.dcm", "P", "1.1", f"1.1.{place}", frames, **tags, PositionerPrimaryAngle=level)
    summary = ingest(source, tmp_path / "out", val_fraction=0, test_fraction=0, max_side=16)
    videos = rows(tmp_path / "out", "videos")
    assert [(row["acquisition_order"], row["primary_angle"]) for row in videos] == [(0, 20), (1, 40), (2, 60)]
    assert {(row["height"], row["width"], row["num_frames"]) for row in videos} == {(16, 16, 2)}
    assert videos[0]["pixel_spacing"] == pytest.approx(0.6)
    levels = np.array([40, 80, 20, 40, 60, 120])
    assert summary.description["pixel_mean"] == pytest.approx(levels.mean())
    assert summary.description["pixel_std"] == pytest.approx(levels.std())


def test_discover_is_sorted_and_survives_loops(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("z", "b/2", "b/c/1", "a"):
        (tmp_path / name).touch()
    (tmp_path / "b" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "b" / "c" / "beside").symlink_to(tmp_path / "b", target_is_directory=True)
    assert [file.path for file in discover(Place.of(tmp_path))] == [b"a", b"b/2", b"b/c/1", b"z"]


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    with pytest.raises(DataError, match="no key file"):
        load_or_create_key(tmp_path / "key")


def test_mistakes_on_the_command_line_end_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep", "dicom", "--input", str(tmp_path / "none")]
    result = subprocess.run([*command, "--output", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and "no such folder" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_command_prints_a_summary(tmp_path: Path) -> None:
    from data_prep.__main__ import cli

    source = patients(tmp_path / "in", 2)
    (source / "notes.txt").write_text("no cine")
    command = ["dicom", "--input", str(source), "--output", str(tmp_path / "out"), "--list"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert "\nnotes.txt  not_dicom\n" in result.output and result.output.count(".dcm    video ") == 4
    for words in ("found               5 files", "not_dicom", "2 patients, 4 studies", "out.key", "out.sources.csv"):
        assert words in result.output


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is absent")
def test_real_files(tmp_path: Path) -> None:
    summary = ingest(REAL, tmp_path / "out")
    by_reason(summary)
    assert summary.description["counts"]["found"] == sum(1 for path in REAL.rglob("*") if path.is_file())
    (video,) = rows(tmp_path / "out", "videos")
    assert (video["num_frames"], video["height"], video["width"]) == (96, 512, 512)
    assert (video["primary_angle"], video["secondary_angle"]) == (-32, 2)
    assert video["fps"] == pytest.approx(1000 / 33)
