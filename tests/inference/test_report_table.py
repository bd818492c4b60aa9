"""Reports as Parquet and JSON: whole or not there, and with the columns of the tables that others read."""

import json
import math

import pyarrow.parquet as pq
import pytest

from deepcoro.data.schema import STUDIES_SCHEMA
from deepcoro.errors import DataError
from deepcoro.inference import report_table
from deepcoro.inference.report_table import ABOUT, REPORTS_SCHEMA, report_json, write_table
from deepcoro.inference.reports import PlacedBox, UnitReport
from deepcoro.models.structured_probabilities import WORDS, SegmentProbability
from deepcoro.reports.grammar import parse_report

TEXT = "Left coronary tree. Proximal LAD: 80% stenosis (severe), TIMI 2 flow. LCX: odd."


def report(number=0, **more):
    said = {"text": TEXT, "said": parse_report(TEXT)}
    return UnitReport(number, f"v{number}", "s", "left", **(said | more))


def probability(**words):
    return SegmentProbability("prox_lad", dict.fromkeys(WORDS, 0.0) | words, 0.125)


def test_a_row_says_all_and_how_it_was_made(tmp_path):
    box = PlacedBox("v0", "prox_lad", 10, 0.25, 0.5, 0.75, 1.0)
    told = report(probabilities=(probability(severe=0.5, mild=0.25, unnamed=0.25),), boxes=(box,))
    with write_table(tmp_path / "out", {"run": "demo"}, "7", "ema") as table:
        table.add([told], "val")
        table.add(
            [UnitReport(1, "v1", "s", None, problem="v1.avi is damaged"), report(2, text="", said=parse_report(""))],
            "test",
        )
    (file,) = (tmp_path / "out").iterdir()
    found = pq.read_table(file)
    assert json.loads(found.schema.metadata[ABOUT]) == {"run": "demo"}
    assert found.schema.field("findings").type == STUDIES_SCHEMA.field("findings").type
    one, two, three = found.to_pylist()
    assert (one["unit_id"], one["study_id"], one["split"], one["tree"]) == ("v0", "s", "val", "left")
    assert (one["checkpoint"], one["weights"], one["problem"], one["text"]) == ("7", "ema", None, TEXT)
    (finding,) = one["findings"]
    assert (finding["segment"], finding["stenosis"], finding["timi"]) == ("prox_lad", 80, 2)
    assert one["unread"] == ["lcx: odd"]
    assert one["boxes"] == [box._asdict()]
    (known,) = one["probabilities"]
    assert (known["significant"], known["sentence"], known["mild"], known["cto"]) == (0.5, 0.125, 0.25, 0.0)
    nothing = ("text", "tree", "findings", "unread", "probabilities", "boxes")
    assert [two[name] for name in nothing] == [None] * 6 and two["problem"] == "v1.avi is damaged"
    assert (three["text"], three["findings"]) == ("", [])  # it wrote nothing, and was not kept from looking


def test_many_rows_are_written_as_they_come_in_files_of_some(tmp_path, monkeypatch):
    monkeypatch.setattr(report_table, "_ROWS_OF_GROUP", 4)
    monkeypatch.setattr(report_table, "_ROWS_OF_FILE", 8)
    with write_table(tmp_path / "out", {}, "7", "trained") as table:
        for begin in range(0, 30, 3):
            table.add([report(number) for number in range(begin, begin + 3)], "val")
            assert len(table._waiting) < 4
    files = sorted((tmp_path / "out").iterdir())
    assert [pq.read_metadata(file).num_rows for file in files] == [8, 8, 8, 6]
    assert pq.read_table(tmp_path / "out")["unit_id"].to_pylist() == [f"v{number}" for number in range(30)]


def test_what_breaks_off_leaves_nothing_and_nothing_is_written_over(tmp_path):
    with pytest.raises(KeyboardInterrupt), write_table(tmp_path / "out", {}, "7", "trained") as table:
        table.add([report()], "val")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with write_table(tmp_path / "new" / "out", {}, "7", "trained"):
        assert not (tmp_path / "new" / "out").exists()
    assert pq.read_table(tmp_path / "new" / "out").num_rows == 0
    with pytest.raises(DataError, match="is there already"), write_table(tmp_path / "new", {}, "7", "trained"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"), write_table(tmp_path / "file" / "o", {}, "7", "trained"):
        pass


def test_json_names_both_probabilities_of_a_finding_and_has_no_nan():
    told = report_json(report(probabilities=(probability(severe=0.5, cto=0.25, moderate=0.25),)))
    (finding,) = told["findings"]
    assert (finding["sentence_probability"], finding["significant_probability"]) == (0.125, 0.75)
    unknown = report_json(report(probabilities=(probability(severe=math.nan),)))
    assert unknown["findings"][0]["significant_probability"] is None
    without = report_json(report())
    assert without["findings"][0]["sentence_probability"] is None and without["probabilities"] is None
    json.dumps([told, unknown, without], allow_nan=False)
    assert REPORTS_SCHEMA.names[:3] == ["unit_id", "study_id", "split"]


def test_a_probability_is_no_more_than_1_and_a_full_disk_is_told(tmp_path, monkeypatch):
    over = report_json(report(probabilities=(probability(severe=1 + 1e-12),)))
    assert over["findings"][0]["significant_probability"] == 1.0 == over["probabilities"][0]["severe"]

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_table.pq.ParquetWriter, "close", full)
    with (
        pytest.raises(DataError, match="cannot be written .No space left"),
        write_table(tmp_path / "out", {}, "7", "ema") as table,
    ):
        table.add([report()], "val")
