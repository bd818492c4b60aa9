"""Classes from a table: each row reaches its video or is told, and a value is never guessed at."""

from __future__ import annotations

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.__main__ import main
from data_prep.classes.join import join_classes
from data_prep.triage.labels import read_labels
from deepcoro.data.schema import STUDIES_SCHEMA, VIDEOS_SCHEMA
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import DataError


@pytest.fixture
def dataset(tmp_path):
    """Two videos; triage has guessed the tree and the structure of the second."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    study = {"study_id": "s", "patient_id": "p", "split": "train"}
    shape = {"study_id": "s", "num_frames": 9, "height": 8, "width": 8, "fps": 15.0, "partial": False}
    guess = [("main_structure_class", "Other"), ("main_structure_class_source", "triage")]
    guess += [("main_structure_class_probability", "0.9100"), ("coronary_tree_source", "triage")]
    videos = [
        shape | {"video_id": "aa", "uri": "videos/aa.avi", "attributes": [("modality", "XA")]},
        shape | {"video_id": "bb", "uri": "videos/bb.avi", "attributes": guess, "coronary_tree": "left"},
    ]
    pq.write_table(pa.Table.from_pylist([study], schema=STUDIES_SCHEMA), folder / "studies.parquet")
    pq.write_table(pa.Table.from_pylist(videos, schema=VIDEOS_SCHEMA), folder / "videos.parquet")
    (folder / "dataset.json").write_text(json.dumps({"fingerprint": "made-for-tests"}))
    (tmp_path / "sources.csv").write_text(
        "source,path,video_id,reason\n1,P/1.dcm,aa,\n2,P/2.dcm,bb,\n3,P/3.dcm,,empty\n"
    )
    return folder


def table(tmp_path, text, encoding="utf-8"):
    (tmp_path / "classes.csv").write_text(text, encoding=encoding)
    return tmp_path / "classes.csv"


def videos(folder):
    rows = pq.read_table(folder / "videos.parquet").to_pylist()
    return {row["video_id"]: row | {"attributes": dict(row["attributes"])} for row in rows}


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["data_prep", "classes", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capsys.readouterr()


@pytest.mark.parametrize("mark", [",", ";", "\t", "α"])
def test_classes_reach_their_videos(dataset, tmp_path, mark):
    rows = ["FileName,main_structure_class,coronary_tree,notes", "x/P/1.dcm,Left Coronary,left,n", "P/2.dcm,,right,n"]
    text = "\n".join(rows).replace(",", mark)
    summary = join_classes(table(tmp_path, text), str(dataset), sources=tmp_path / "sources.csv")
    after = videos(dataset)
    assert after["aa"]["attributes"] == {"modality": "XA", "main_structure_class": "Left Coronary"}
    assert after["aa"]["coronary_tree"] == "left" and after["bb"]["coronary_tree"] == "right"
    assert after["bb"]["attributes"]["main_structure_class"] == "Other"  # an empty cell says nothing
    assert "coronary_tree_source" not in after["bb"]["attributes"]  # told now, and guessed no more
    assert summary.ignored == ["notes"] and summary.left_out == []
    labels = read_labels(PreparedDataset.open(str(dataset)), "coronary_tree")
    assert labels.values.tolist() == ["left", "right"]


def test_what_triage_guessed_is_a_label_once_it_is_told(dataset, tmp_path):
    join_classes(table(tmp_path, "video_id,main_structure_class\nbb,Graft\n"), str(dataset))
    assert videos(dataset)["bb"]["attributes"] == {"main_structure_class": "Graft", "coronary_tree_source": "triage"}
    opened = PreparedDataset.open(str(dataset))
    assert opened.card["fingerprint"] != "made-for-tests"
    assert read_labels(opened, "main_structure_class").values.tolist() == [None, "Graft"]


def test_rows_of_no_video_are_told_and_the_exit_code_says_so(dataset, tmp_path, monkeypatch, capsys):
    text = "path,x_class\nP/1.dcm,a\nP/3.dcm,a\nSMITH/9.dcm,b\n"
    arguments = ("--table", table(tmp_path, text), "--dataset", dataset, "--sources", tmp_path / "sources.csv")
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 1 and "row 2: set_aside" in out and "row 3: unknown_video" in out and "SMITH" not in out + err
    assert videos(dataset)["aa"]["attributes"]["x_class"] == "a"
    table(tmp_path, "path,x_class\nP/1.dcm,a\n")
    assert run(monkeypatch, capsys, *arguments)[0] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must say which video"),
        ("name,x_class\na,b\n", "must say which video"),
        ("video_id,notes\naa,b\n", "ends in _class"),
        ("video_id,coronary_tree\naa,middle\n", "row 1: coronary_tree is none of left, right"),
        ("video_id,x_class\naa,a\naa,b\n", "rows 1 and 2 tell different things"),
        ("video_id,x_class\naa\n", "row 1: it has 1 cells, the header line has 2"),
        ("video_id,x_class,x_class\naa,1,2\n", "two columns have one name"),
        ("video_id,x_class\nzz,a\n", "none of its rows is about a video"),
    ],
)
def test_a_table_that_does_not_fit_changes_nothing(dataset, tmp_path, text, words):
    before = (dataset / "videos.parquet").read_bytes()
    with pytest.raises(DataError, match=words):
        join_classes(table(tmp_path, text), str(dataset))
    assert (dataset / "videos.parquet").read_bytes() == before


def test_a_table_in_latin_1_is_read_as_such_or_refused(dataset, tmp_path):
    file = table(tmp_path, "video_id,structure_class\naa,pontage\nbb,coronaire gauche élargie\n", "latin-1")
    with pytest.raises(DataError, match=r"line 3: this is not utf-8-sig; .* --encoding \(latin-1\)"):
        join_classes(file, str(dataset))
    join_classes(file, str(dataset), encoding="latin-1")
    assert videos(dataset)["bb"]["attributes"]["structure_class"] == "coronaire gauche élargie"


def test_columns_may_be_named(dataset, tmp_path):
    file = table(tmp_path, "video_id,x_class,operator\naa,a,b\n")
    summary = join_classes(file, str(dataset), columns=["operator"])
    assert videos(dataset)["aa"]["attributes"] == {"modality": "XA", "operator": "b"} and summary.ignored == ["x_class"]
    with pytest.raises(DataError, match="has no column y"):
        join_classes(file, str(dataset), columns=["y"])
