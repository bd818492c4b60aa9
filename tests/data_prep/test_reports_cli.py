"""`python -m data_prep reports`: counts by hand, the list of phrases, the table it writes, and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from data_prep.__main__ import cli
from data_prep.dicom.identity import Key
from data_prep.dicom.tables import read_side_tables
from data_prep.reports.survey import survey
from deepcoro.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    {"study_id": "1", "report": "Mid LAD 80%. Right dominant.", "patient_name": "Quixotewitz^Ida", "lvef": 55},
    {"study_id": "2", "report": "Radial access. RCA CTO. Mid RCA stent. Dr Quixotewitz found much tortuosity."},
    {"study_id": "3", "report": "Proximal LAD: 30%, much tortuosity. Normal RCA. Ida has 50% of D1."},
    {"study_id": "4", "report": ""},
    {"study_id": "5", "report": "Much tortuosity. Mid LAD 80%. Mid LAD CTO. Mid LCX chronic occlusion."},
]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "reports.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_counts_by_hand(table: Path) -> None:
    counts = survey(table)
    assert (counts.num_reports, counts.num_empty, counts.num_complete) == (5, 1, 1)
    # Of 1: both; of 2: two and one of the procedure; of 3: the second; of 5: the second and the fourth.
    assert (counts.num_sentences, counts.num_read, counts.num_skipped) == (13, 7, 1)
    assert counts.share == pytest.approx(7 / 12)
    assert counts.findings == {("mid_lad", "severe"): 2, ("mid_rca", "other"): 1, ("mid_lcx", "cto"): 1}
    assert counts.dominance == {"right": 1}
    assert counts.said == {("rca", "normal"): 1}
    assert counts.incomplete == {("rca", "segment"): 1}
    assert counts.unread["much tortuosity", "unknown words"] == 2
    assert counts.unread["mid lad cto", "it contradicts what was said of the segment before"] == 1
    assert counts.replaced == {"name": 1}
    assert "quixote" not in repr(counts).lower()


def test_a_users_synonyms_raise_the_share(table: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("ignore: [much, tortuosity, found]\n")
    counts = survey(table, synonyms_path=mine)
    assert counts.findings["prox_lad", "mild"] == 1
    assert counts.share > survey(table).share


def test_the_printed_report(table: Path) -> None:
    result = CliRunner().invoke(cli, ["reports", "--input", str(table), "--top", "1"])
    assert result.exit_code == 0, result.output
    for words in (
        "reports           4, 1 understood to the last word; 1 rows are empty",
        "sentences        12, 7 understood (58.3%); 1 more are of the procedure",
        "rca: no segment is named",
        "2  much tortuosity   (unknown words)",
        "other phrases (--top)",
        "1  name",
    ):
        assert words in result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("mid_lad")]
    assert line.split()[1:] == [".", ".", ".", "2", ".", ".", ".", "."]
    assert "uixote" not in result.output


def test_the_table_it_writes_is_one_the_dicom_door_takes(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "findings.parquet"
    result = CliRunner().invoke(cli, ["reports", "--input", str(table), "--output", str(output)])
    assert result.exit_code == 0 and "findings in 1 of 5 rows" in result.output
    rows = {row["study_id"]: row for row in pq.read_table(output).to_pylist()}
    assert [row["findings"] is not None for row in rows.values()] == [True, False, False, False, False]
    assert rows["1"]["findings"][0] | {"segment": "mid_lad", "stenosis": 80} == rows["1"]["findings"][0]
    assert (rows["1"]["dominance"], rows["1"]["lvef"]) == ("right", 55)
    assert rows["2"]["report"].endswith("Dr [NAME] found much tortuosity.")
    key = Key(b"k" * 32)
    studies = read_side_tables(key, output, None, None).studies
    assert studies[key.id_of("study", "1")]["findings"] == rows["1"]["findings"]


def test_what_a_table_says_already_stays(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        'study_id;report;lvef;findings\n1;Normal LAD.;55;"[{""segment"": ""d1"", ""stenosis"": 20}]"\n2;Mid LAD 0%.;;\n'
    )
    survey(tmp_path / "t.csv", output=tmp_path / "o.parquet")
    first, second = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert (first["findings"][0]["segment"], first["findings"][0]["stenosis"], first["lvef"]) == ("d1", 20, 55)
    assert (second["findings"][0]["segment"], second["findings"][0]["stenosis"], second["lvef"]) == ("mid_lad", 0, None)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("t.csv", "study_id,text\n1,a\n", [], "column 'report' is missing; the table has study_id, text"),
        ("t.csv", "study_id,report\n1,\n", [], "column 'report' holds no report in 1 rows"),
        ("t.jsonl", '{"report": 3}\n', [], "row 1: 'report' must be text, got int"),
        ("t.csv", "report\nNormal.\n", ["--output", "x.parquet"], "column 'study_id' is missing"),
        ("t.csv", "study_id,report\n1,Normal.\n", ["--output", "x.csv"], "let its name end in .parquet"),
        ("t.csv", "report\nNormal.\n", ["--synonyms", "none.yaml"], "the synonyms cannot be read"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, name: str, content: str, options: list[str], message: str) -> None:
    (tmp_path / name).write_text(content)
    result = CliRunner().invoke(cli, ["reports", "--input", str(tmp_path / name), *options])
    assert isinstance(result.exception, DataError) and message in str(result.exception)


def test_a_mistake_ends_with_code_2_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep", "reports", "--input", str(tmp_path / "none.csv")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and "none.csv" in result.stderr and "Traceback" not in result.stderr
