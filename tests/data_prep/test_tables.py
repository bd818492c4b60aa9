"""The user's tables: what is read of them, and that what is wrong is refused with file, row and field."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given

from data_prep.deidentify import deidentify
from data_prep.dicom.identity import Key
from data_prep.dicom.tables import SideTables, read_side_tables
from data_prep.rows import read_rows
from deepcoro.errors import DataError
from deepcoro.reports.grammar import render_report
from tests.reports.test_grammar import finding_lists

KEY = Key(b"k" * 32)
TEXT = "Sténose sévère de l'IVA, 80%"


def read(path: Path, **tables: Path | None) -> SideTables:
    return read_side_tables(KEY, **{"reports": path, "videos": None, "splits": None, **tables})


def write(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(content.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("encoding", "noted"),
    [("utf-8", False), ("utf-8-sig", False), ("utf-16", False), ("latin-1", True), ("cp1252", True)],
)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_as_spreadsheets_write_it(tmp_path: Path, encoding: str, noted: bool, separator: str) -> None:
    text = TEXT if encoding != "cp1252" else TEXT.replace("'", "’")
    content = f'study_id{separator}report\r\n007{separator}"{text}"\r\n1.2{separator}\r\n'
    tables = read(write(tmp_path / "reports.csv", content, encoding))
    assert tables.studies[KEY.id_of("study", "007")]["report"] == text
    assert tables.studies[KEY.id_of("study", "1.2")]["report"] is None
    assert [note for note in tables.ignored if "Latin-1" in note] == tables.ignored
    assert bool(tables.ignored) is noted


def test_the_same_table_in_three_formats(tmp_path: Path) -> None:
    findings = [{"segment": "mid_lad", "stenosis": 80}]
    row = {"study_id": "7", "report": TEXT, "findings": findings, "lvef": 55.0, "sex": "F", "age_band": "60-69"}
    write(tmp_path / "a.jsonl", json.dumps(row) + "\n\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "b.parquet")
    cells = [json.dumps(v).replace('"', '""') if isinstance(v, list) else str(v) for v in row.values()]
    write(tmp_path / "c.csv", ",".join(row) + "\n" + ",".join(f'"{cell}"' for cell in cells) + "\n")
    one, two, three = (read(tmp_path / name).studies for name in ("a.jsonl", "b.parquet", "c.csv"))
    assert one == two == three
    (study,) = one.values()
    assert (study["report"], study["findings"], study["lvef"], study["sex"]) == (TEXT, findings, 55.0, "F")


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("reports", "study_id,report\n1,a\n2,b\n1,c\n", r"t.csv, row 3: the 'study_id' of .*row 1 stands here again"),
        ("reports", "study_id,report\n ,a\n", r"row 1: 'study_id' is empty"),
        ("reports", "study_id,report\n1\n", r"row 1 has fewer cells than the header line"),
        ("reports", "study_id,report\n1,a,b\n", r"row 1 has more cells than the header line"),
        ("reports", "study_id,report,report\n1,a,b\n", r"names 'report' more than once"),
        ("reports", "study_id,report\n1,\0\n", r"zero bytes"),
        ("reports", 'study_id,report\n1,"a\n', r"cannot be read"),
        ("reports", "study_id,sex\n1,female\n", r"row 1: 'sex' is 'female'; it may be M, F, O"),
        ("reports", "study_id,age_band\n1,67\n", r"row 1: 'age_band' is '67'; it may be 0-9, 10-19"),
        ("reports", "study_id,lvef\n1,155\n", r"row 1: 'lvef': it must be 0 to 100 percent, got 155"),
        ("reports", "study_id,lvef\n1,good\n", r"row 1: 'lvef'"),
        (
            "reports",
            'study_id,findings\n1,"[{""segment"": ""d1"", ""stenosis"": 140}]"\n',
            r"row 1: 'findings': finding in 'd1': stenosis must be 0 to 100 percent, got 140",
        ),
        (
            "reports",
            'study_id,findings\n1,"[{""segment"": ""aorta"", ""stenosis"": 40}]"\n',
            r"row 1: 'findings': finding in 'aorta': unknown segment; known are left_main",
        ),
        (
            "reports",
            'study_id,findings\n1,"[{""segment"": ""d1"", ""stenosis"": 40.5}]"\n',
            r"row 1: 'findings': finding in 'd1': stenosis must be a whole number, got 40.5",
        ),
        ("reports", 'study_id,findings\n1,"[{""segment"": ""d1""}]"\n', r"row 1: 'findings': .* says nothing"),
        ("reports", "study_id,findings\n1,none\n", r"row 1: 'findings'"),
        ("videos", "sop_instance_uid,coronary_tree\n1,middle\n", r"row 1: 'coronary_tree' is 'middle'"),
        ("videos", "sop_instance_uid\n1\n1\n", r"row 2: .*stands here again"),
        (
            "videos",
            'sop_instance_uid,boxes\n1,"[{""segment"": ""aorta"", ""x0"": 0.5}]"\n',
            r"row 1: 'boxes': unknown segment 'aorta'",
        ),
        ("videos", 'sop_instance_uid,boxes\n1,"[{""segment"": ""d1"", ""x0"": 50}]"\n', r"'boxes': .* 0 to 1, got"),
        ("videos", 'sop_instance_uid,boxes\n1,"[{""x0"": 0.5, ""x1"": 0.4}]"\n', r"'boxes': x0 must be less than x1"),
        ("splits", "patient_id,split\n1,train\n1,test\n", r"row 2: this patient stands in the table before"),
        ("splits", "patient_id,split\n,train\n", r"row 1: a row needs a split and a patient_id or a study_id"),
    ],
)
def test_what_is_wrong_is_refused_with_file_row_and_field(
    tmp_path: Path, table: str, content: str, message: str
) -> None:
    path = write(tmp_path / "t.csv", content)
    with pytest.raises(DataError, match=message) as caught:
        read_side_tables(KEY, **{"reports": None, "videos": None, "splits": None, table: path})
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"study_id": 1}\n[1]\n', r"line 2: every line must be one JSON object"),
        ("t.jsonl", b'{"study_id": 1}\n{"a":\n', r"line 2 is no JSON object"),
        ("t.parquet", b"PAR1 and no more", r"cannot be read"),
        ("t.csv", b"\xff\xfes\x00t\x00u", r"cannot be read"),
        ("t.xlsx", b"", r"a table ends in .csv, .parquet"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_rows(tmp_path / name)
    assert name in str(caught.value)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.csv.*cannot be read"):
        read_rows(tmp_path / "none.csv")


PERSON: dict[str, Any] = {
    "study_id": "1.2.826.0.1.777.41",
    "patient_id": "MRN-7391846",
    "patient_name": "Quixotewitz^Zebulina",
    "birth_date": "1939-02-17",
    "study_date": datetime.date(2021, 3, 9),
    "physician": "Drumblethorpe, Ida",
    "accession_number": "ACC-5518203",
}
PLANTED = (
    "Zebulina QUIXOTEWITZ (17/02/1939, MRN 7391846, acc. 5518203), seen 09.03.2021 by "
    "Ida Drumblethorpe and Dr Unlisted; study 1.2.826.0.1.777.41, phone 514-555-0134. Mrs. quixotewitz: "
)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_persons_in_report_texts_are_gone_before_anything_reads_them(tmp_path: Path, ending: str) -> None:
    row = {**PERSON, "report": PLANTED + TEXT, "room": 3}
    path = tmp_path / f"t.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    elif ending == "jsonl":
        write(path, json.dumps(row, default=str) + "\n")
    else:
        write(path, ",".join(row) + "\n" + ",".join(f'"{value}"' for value in row.values()) + "\n")
    tables = read(path)
    everything = repr(tables).lower()
    for secret in (
        "quixote",
        "zebulina",
        "drumble",
        "unlisted",
        "1939",
        "7391846",
        "5518203",
        "2021",
        "777.41",
        "0134",
    ):
        assert secret not in everything, secret
    (study,) = tables.studies.values()
    assert study["report"].endswith(f"Mrs. [NAME]: {TEXT}")
    assert study["patient_id"] == KEY.id_of("patient", "MRN-7391846")
    assert tables.replaced == {"name": 4, "date": 2, "id": 3, "phone": 1}
    assert tables.ignored == [
        f"t.{ending}: nobody reads the columns room",
        f"t.{ending}: replaced in the report texts: dates 2, ids 3, names 4, phones 1",
    ]


@given(finding_lists())
def test_reports_of_the_grammar_pass_unchanged(findings: Any) -> None:
    for dominance in (None, "left"):
        text = render_report(findings, dominance)
        assert deidentify(text, {"name": ["Roy^Anne"], "id": ["1.2.3.4"]}) == (text, {})
