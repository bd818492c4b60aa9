"""The predecessor's table and videos: every row accounted for, columns to findings by hand, pixels as they were."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from data_prep.__main__ import cli
from data_prep.dicom.identity import load_or_create_key
from data_prep.predecessor import videos as videos_module
from data_prep.predecessor.findings import FINDING_COLUMNS, read_findings
from data_prep.predecessor.ingest import Summary, ingest
from data_prep.predecessor.meanings import BadValue, Meanings
from data_prep.predecessor.table import find_video
from data_prep.predecessor.videos import Job, convert, convert_all
from deepcoro.data.schema import QUARANTINE_SCHEMA, STUDIES_SCHEMA, VIDEOS_SCHEMA
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import DataError
from deepcoro.reports.grammar import Finding

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ["FileName", "StudyInstanceUID", "Split", "Report", "main_structure_class", "contrast_agent_class"]
COLUMNS += ["stent_presence_class", "dominance_class", "SeriesTime", *FINDING_COLUMNS]


def video(path: Path, levels: list[int], codec: str = "mjpeg", fps: int = 15, size: int = 32) -> Path:
    """A grey video of one level a frame, written by PyAV as the predecessor's tools did: AVI or MP4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for level in levels:
            picture = av.VideoFrame.from_ndarray(np.full((size, size, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def row(name: str, study: str, **cells: Any) -> dict[str, Any]:
    return {**dict.fromkeys(COLUMNS, ""), **dict.fromkeys(FINDING_COLUMNS, "-1"), "FileName": name,
            "StudyInstanceUID": study, **cells}  # fmt: skip


def write_table(path: Path, rows: list[dict[str, Any]], separator: str = "α") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(output: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(output / f"{name}.parquet").to_pylist()


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)])


def check_sum(summary: Summary, num_rows: int) -> dict[str, int]:
    counts = summary.description["counts"]
    assert counts["found"] == num_rows == counts["ingested"] + counts["quarantined"]
    assert counts["quarantined"] == sum(counts["reasons"].values())
    return counts["reasons"]


FULL = {
    "mid_lad_stenosis": "80", "mid_lad_calcif": "severe", "mid_lad_IFRHYPEREMIE": "0.85",
    "mid_lad_bifurcation": "1,1,0", "prox_rca_cto": "1", "prox_rca_collateral": "1", "dist_rca_stenosis": "100",
    "dist_rca_thrombus": "1",
    "om1_stent": "1", "om1_stenosis": "60.0", "om1_pcidone": "1", "om2_stent": "1", "om2_stenosis": "10",
    "d1_stenosis": "0", "d1_calcif": "none", "left_main_stenosis": "0",
}  # fmt: skip
BY_HAND = [
    Finding("mid_lad", stenosis=80, calcification="severe", ifr=0.85, medina="1,1,0"),
    Finding("om1", stenosis=60, stent=True, in_stent_restenosis=60, pci=True),
    Finding("om2", stenosis=10, stent=True),
    Finding("prox_rca", stenosis=100, occlusion="cto", collaterals=True),
    Finding("dist_rca", stenosis=100, occlusion="total", thrombus=True),
]


def test_columns_become_findings() -> None:
    findings, silent = read_findings(row("a", "1", **FULL), Meanings())
    assert findings == BY_HAND
    assert set(silent) == {
        "prox_lad", "dist_lad", "d2", "prox_lcx", "mid_lcx", "dist_lcx", "bx", "lvp", "mid_rca", "pda",
        "posterolateral",
    }  # fmt: skip
    assert read_findings(row("a", "1"), Meanings())[0] is None
    assert read_findings(row("a", "1", d1_stenosis="0"), Meanings())[0] == []
    assert read_findings({}, Meanings())[0] is None


@pytest.mark.parametrize(
    ("cells", "finding"),
    [
        ({"d1_stenosis": 72.5}, Finding("d1", stenosis=73)),
        ({"d1_stenosis": "-1.0", "d1_thrombus": True}, Finding("d1", thrombus=True)),
        ({"d1_cto": "1.0", "d1_stenosis": "100"}, Finding("d1", stenosis=100, occlusion="cto")),
        ({"d1_calcif": "Moderate"}, Finding("d1", calcification="moderate")),
        ({"d1_bifurcation": "(1.0.1)"}, Finding("d1", medina="1,0,1")),
        ({"d1_bifurcation": 110.0}, Finding("d1", medina="1,1,0")),
        ({"d1_bifurcation": "Medina 0-1-1"}, Finding("d1", medina="0,1,1")),
        ({"d1_IFRHYPEREMIE": "0.891"}, Finding("d1", ifr=0.89)),
        ({"d1_stent": "yes", "d1_stenosis": "11"}, Finding("d1", stenosis=11, stent=True, in_stent_restenosis=11)),
    ],
)
def test_cells_in_several_writings(cells: dict[str, Any], finding: Finding) -> None:
    assert read_findings(row("a", "1", **cells), Meanings())[0] == [finding]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"d1_stenosis": "140"}, "d1_stenosis: 140 is no percent"),
        ({"d1_stenosis": "0.7"}, "d1_stenosis: 0.7 is no percent"),
        ({"d1_stenosis": "Quixote"}, "d1_stenosis: this is no number"),
        ({"d1_stenosis": "inf"}, "d1_stenosis: this is no number"),
        ({"d1_cto": "1", "d1_stenosis": "90"}, "d1_cto: a chronic total occlusion beside a stenosis of 90%"),
        ({"d1_calcif": "2"}, "d1_calcif: the value is none of those listed"),
        ({"d1_IFRHYPEREMIE": "85"}, "d1_IFRHYPEREMIE: 85 is no iFR"),
        ({"d1_bifurcation": "1,2,0"}, "d1_bifurcation: this is no Medina class"),
        ({"d1_bifurcation": "11"}, "d1_bifurcation: this is no Medina class"),
        ({"d1_collateral": "from the LAD"}, "d1_collateral: the value is none of those listed"),
    ],
)
def test_a_cell_that_means_nothing_is_named_and_not_quoted(cells: dict[str, Any], message: str) -> None:
    with pytest.raises(BadValue, match=message) as caught:
        read_findings(row("a", "1", **cells), Meanings())
    assert "Quixote" not in str(caught.value) and "LAD" not in str(caught.value)


def test_meanings_of_a_user_go_before_the_listed_ones() -> None:
    meanings = Meanings(["calcif:2=moderate", "main_structure_class:0=left", "main_structure_class:Left Main=other"])
    assert read_findings(row("a", "1", d1_calcif="2.0"), meanings)[0] == [Finding("d1", calcification="moderate")]
    assert [meanings.of("main_structure_class", cell) for cell in (0.0, "0", "left_main", "Right-Coronary", "x")] == [
        "left", "left", "other", "right", None,
    ]  # fmt: skip
    for wrong, message in (("calcif", "write COLUMN"), ("age:1=old", "no such column"), ("calcif:1=huge", "may mean")):
        with pytest.raises(DataError, match=message):
            Meanings([wrong])


@pytest.mark.parametrize("separator", ["α", ",", ";"])
def test_a_table_and_its_videos(tmp_path: Path, separator: str) -> None:
    source = tmp_path / "videos"
    video(source / "s1" / "left.avi", [10, 100, 200])
    video(source / "s1" / "right.mp4", [60] * 10, "mpeg4", fps=30)
    video(source / "s2.avi", [50, 50], size=48)
    report = {"Report": "Dr Quixote: mid LAD 80%, seen 2021-03-09.", "dominance_class": "right_dominant", **FULL}
    rows = [
        row("/mnt/old/place/s1/left.avi", "1.2.1", Split="train", SeriesTime="101500",
            main_structure_class="Left Coronary", contrast_agent_class="1", **report),
        row("s1/right.mp4", "1.2.1", Split="TRAIN", SeriesTime="91530.5",
            main_structure_class="Right Coronary", **report),
        row("s2.avi", "1.2.2", Split="test", main_structure_class="7"),
    ]  # fmt: skip
    table = write_table(tmp_path / "t.csv", rows, separator)
    summary = ingest(table, source, tmp_path / "out", num_processes=1)
    assert check_sum(summary, 3) == {}
    key = load_or_create_key(tmp_path / "out.key")
    for name, schema in (("studies", STUDIES_SCHEMA), ("videos", VIDEOS_SCHEMA), ("quarantine", QUARANTINE_SCHEMA)):
        assert pq.read_schema(tmp_path / "out" / f"{name}.parquet").equals(schema)
    studies = {study["study_id"]: study for study in read(tmp_path / "out", "studies")}
    first, second = (studies[key.id_of("study", uid)] for uid in ("1.2.1", "1.2.2"))
    assert [Finding.from_dict(item) for item in first["findings"]] == BY_HAND
    assert (first["split"], first["dominance"]) == ("train", "right")
    assert first["report"] == "Dr [NAME]: mid LAD 80%, seen [DATE]."
    assert first["patient_id"] == key.id_of("patient", "1.2.1")
    assert "pda" in dict(first["attributes"])["segments_missing"].split()
    assert (second["split"], second["findings"], second["report"], second["attributes"]) == ("test", None, None, [])
    videos = {video["video_id"]: video for video in read(tmp_path / "out", "videos")}
    left, right, other = (videos[key.id_of("video", name)] for name in ("s1/left.avi", "s1/right.mp4", "s2.avi"))
    assert [(v["coronary_tree"], v["acquisition_order"]) for v in (left, right, other)] == [
        ("left", 1), ("right", 0), (None, 0),
    ]  # fmt: skip
    assert [(v["num_frames"], v["fps"], v["height"], v["partial"]) for v in (left, right, other)] == [
        (3, 15, 32, False), (10, 30, 32, False), (2, 15, 48, False),
    ]  # fmt: skip
    assert dict(left["attributes"])["contrast_agent_class"] == "1"
    # Pixels, whatever the range of the codec: full in MJPEG, 16 to 235 in MPEG-4.
    assert np.abs(frames(tmp_path / "out" / left["uri"]).mean((1, 2)) - [10, 100, 200]).max() < 2
    assert np.abs(frames(tmp_path / "out" / right["uri"]).mean((1, 2)) - 60).max() < 2
    assert summary.description["pixel_mean"] == pytest.approx((10 + 100 + 200 + 10 * 60) / 13, abs=1.5)
    assert any("'7' means nothing here (1 rows)" in note for note in summary.notes)
    assert any("replaced in the report texts: dates 1, names 1" in note for note in summary.notes)
    assert PreparedDataset.open(str(tmp_path / "out")).num_studies() == {"train": 1, "val": 0, "test": 1}


def test_every_row_is_ingested_or_has_a_reason(tmp_path: Path) -> None:
    source = tmp_path / "videos"
    good = video(source / "good.avi", [20] * 20)
    (source / "empty.avi").touch()
    (source / "text.avi").write_text("no video at all, only words " * 50)
    video(source / "still.avi", [20])
    whole = good.read_bytes()
    for name, kept in (("cut.avi", 0.7), ("stub.avi", 0.45)):
        (source / name).write_bytes(whole[: int(len(whole) * kept)])
    (tmp_path / "secret.avi").write_bytes(whole)
    (source / "unnamed.avi").write_bytes(whole)
    video(source / "b.avi", [20] * 3)
    expected = {
        ("good.avi", "1"): None,
        ("good.avi", "1 "): "duplicate",
        ("/elsewhere/good.avi", "9"): "duplicate",
        ("b.avi", "1  "): "conflicting_study",  # another report
        ("b.avi", ""): "no_identity",
        ("", "1"): "no_identity",
        ("none.avi", "2"): "missing_video",
        ("../secret.avi", "2"): "outside",
        ("empty.avi", "2"): "empty",
        ("text.avi", "2"): "no_video",
        ("still.avi", "2"): "single_frame",
        ("cut.avi", "2"): None,
        ("stub.avi", "2"): "truncated",
        ("b.avi", "3"): "bad_value",
    }
    rows = [row(name, study) for name, study in expected]
    rows[3]["Report"] = "Another."
    rows[-1]["d1_stenosis"] = "140"
    summary = ingest(write_table(tmp_path / "t.csv", rows), source, tmp_path / "out", num_processes=2)
    check_sum(summary, len(rows))
    with (tmp_path / "out.sources.csv").open() as file:
        told = {int(item["row"]): item["reason"] or None for item in csv.DictReader(file)}
    assert told == dict(enumerate(expected.values(), start=1))
    partial = {item["num_frames"]: item["partial"] for item in read(tmp_path / "out", "videos")}
    assert partial.pop(20) is False and list(partial.values()) == [True] and 8 <= next(iter(partial)) < 20
    (bad,) = [item for item in read(tmp_path / "out", "quarantine") if item["reason"] == "bad_value"]
    assert bad["detail"] == "d1_stenosis: 140 is no percent, 0 to 100"
    assert any("files in videos are named by no row" in note for note in summary.notes)
    on_disk = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out" / "videos").rglob("*.*")}
    assert on_disk == {item["uri"] for item in read(tmp_path / "out", "videos")}


def test_the_dataset_names_nobody(tmp_path: Path) -> None:
    source = tmp_path / "videos"
    video(source / "Quixotewitz_7391846.avi", [20] * 3)
    cells = {"PatientID": "7391846", "patient_name": "Quixotewitz^Zebulina", "birth_date": "1939-02-17"}
    rows = [
        row("Quixotewitz_7391846.avi", "1.2.826.0.1.777.41", **cells,
            Report="QUIXOTEWITZ, Zebulina (7391846), 17.02.1939: LM normal. Dr Drumblethorpe."),
        row("Quixotewitz_none.avi", "1.2.826.0.1.777.41", **cells),
    ]  # fmt: skip
    ingest(write_table(tmp_path / "t.csv", rows), source, tmp_path / "out", num_processes=1)
    everything = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    everything += [json.dumps(read(tmp_path / "out", name)).encode() for name in ("studies", "videos", "quarantine")]
    everything += [str(path).encode() for path in (tmp_path / "out").rglob("*")]
    for secret in ("quixote", "zebulina", "7391846", "1939", "drumble", "777.41"):
        assert not any(secret.encode() in content.lower() for content in everything), secret
    assert read(tmp_path / "out", "studies")[0]["report"].endswith("LM normal. Dr [NAME].")
    for path in (tmp_path / "out.key", tmp_path / "out.sources.csv"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_patient_is_in_one_split(tmp_path: Path) -> None:
    source = tmp_path / "videos"
    for name in "abc":
        video(source / f"{name}.avi", [20] * 3)
    rows = [row("a.avi", "1", PatientID="P", Split="train"), row("b.avi", "2", PatientID="P", Split="test")]
    rows.append(row("c.avi", "3", PatientID="Q"))
    summary = ingest(
        write_table(tmp_path / "t.csv", rows), source, tmp_path / "out", num_processes=1, test_fraction=0.9
    )
    assert check_sum(summary, 3) == {"conflicting_split": 1}
    key = load_or_create_key(tmp_path / "out.key")
    splits = {study["patient_id"]: study["split"] for study in read(tmp_path / "out", "studies")}
    assert splits[key.id_of("patient", "P")] == "train"
    assert splits[key.id_of("patient", "Q")] == key.split_of(key.id_of("patient", "Q"), 0.1, 0.9)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a/b.avi", "a/b.avi"),
        ("/x/y/a/b.avi", "a/b.avi"),
        ("/b.avi", "b.avi"),
        (r"D:\x\a\b.avi", "a/b.avi"),
        ("x/a/b.avi", "missing_video"),
        ("a", "missing_video"),
        ("a/../b.avi", "outside"),
        ("/x/../b.avi", "outside"),
        ("a\0b", "outside"),
        ("/", "outside"),
        ("n" * 5000, "missing_video"),
    ],
)
def test_where_a_name_leads(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "a").mkdir()
    for path in ("a/b.avi", "b.avi"):
        (tmp_path / path).touch()
    path, reason = find_video(tmp_path, name)
    assert (str(path.relative_to(tmp_path)) if path else reason) == found


def _die(job: Job) -> dict[str, Any]:
    if "killer" in job.source.name:
        os.abort()
    return {"row": job.row}


def test_a_file_that_kills_its_decoder_costs_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos_module, "convert", _die)
    jobs = [Job(n, tmp_path / ("killer" if n == 2 else "good"), tmp_path / f"{n}.mp4") for n in range(4)]
    results = {job.row: result for job, result in convert_all(jobs, 1)}
    assert set(results) == set(range(4))
    assert {n for n, result in results.items() if result.get("reason") == "decoder_crash"} == {2}


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_video_never_raises(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(video(tmp_path / "a.avi", [20, 90, 160] * 5, ("mjpeg", "mpeg4")[seed % 2]).read_bytes())
    for at in rng.integers(0, len(content), 20):
        content[at] ^= 1 << int(rng.integers(8))
    (tmp_path / "a.avi").write_bytes(content[: int(len(content) * (1 if seed % 3 else 0.6))])
    result = convert(Job(1, tmp_path / "a.avi", tmp_path / "out.mp4"))
    assert ("reason" in result) != (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("header", "message"),
    [("FileName,Report\na,b\n", "'StudyInstanceUID' is missing"), ("FileName,StudyInstanceUID\n", "there is no row"),
     ("FileName,StudyInstanceUID\na,1\n", r"none of 1 rows became a video \(missing_video\)")],
)  # fmt: skip
def test_a_failure_leaves_what_was_there(tmp_path: Path, header: str, message: str) -> None:
    source = tmp_path / "videos"
    video(source / "a.avi", [20] * 3)
    ingest(write_table(tmp_path / "good.csv", [row("a.avi", "1")]), source, tmp_path / "out", num_processes=1)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    (tmp_path / "t.csv").write_text(header)
    with pytest.raises(DataError, match=message):
        ingest(tmp_path / "t.csv", source, tmp_path / "out", num_processes=1)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".out*"))


def test_the_command(tmp_path: Path) -> None:
    source = tmp_path / "videos"
    video(source / "a.avi", [20] * 3)
    table = write_table(tmp_path / "t.csv", [row("a.avi", "1", main_structure_class="0"), row("b.avi", "1")])
    options = ["--input", str(table), "--videos", str(source), "--output", str(tmp_path / "out"), "--num-cpus", "1"]
    result = CliRunner().invoke(cli, ["predecessor", *options, "--class", "main_structure_class:0=left"])
    assert result.exit_code == 0, result.output
    for words in ("found               2 rows", "missing_video", "trees  left 1", "out.key", "out.sources.csv"):
        assert words in result.output
    command = [sys.executable, "-m", "data_prep", "predecessor", *options[:3], str(tmp_path / "none"), *options[4:]]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 2 and "no such folder of videos" in failed.stderr and "Traceback" not in failed.stderr
