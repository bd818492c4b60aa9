"""Codes against the context groups that DICOM publishes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepcoro.reports import codes
from deepcoro.reports.codes import code_of_segment, codes_of
from deepcoro.reports.grammar import Finding
from deepcoro.reports.vocabulary import DOMINANCES, SEGMENTS

ONTOLOGY = Path(__file__).resolve().parents[3] / "shared" / "data" / "reports" / "ontology" / "dicom_cid_coronary.json"
TABLES = [getattr(codes, name) for name in dir(codes) if name.endswith("_CODES")] + [codes._FROM_THE_LEFT]
ALL = [code for table in TABLES for code in table.values()]


@pytest.mark.real_data
@pytest.mark.skipif(not ONTOLOGY.is_file(), reason="../shared/data is absent")
@pytest.mark.parametrize("code", ALL, ids=lambda code: code.meaning)
def test_every_code_stands_in_its_context_group(code):
    terms = json.loads(ONTOLOGY.read_text())[code.context_group]["terms"]
    assert {"scheme": code.scheme, "code": code.code, "meaning": code.meaning} in terms


def test_pydicom_knows_the_context_groups_by_these_codes():
    """The same groups as another library carries them."""
    from pydicom.sr import codedict

    for group in {code.context_group for code in ALL}:
        known = {item.value for item in (getattr(getattr(codedict.codes, group.replace(" ", "")), name)
                 for name in getattr(codedict.codes, group.replace(" ", "")).dir())}  # fmt: skip
        assert {code.code for code in ALL if code.context_group == group} <= known, group


def test_every_segment_has_a_code_of_its_own():
    for dominance in (None, "right"):
        assert len({code_of_segment(segment, dominance) for segment in SEGMENTS}) == 18


def test_the_inferior_branches_are_coded_by_the_artery_they_come_from():
    assert [code_of_segment("pda", dominance).code for dominance in DOMINANCES] == ["53655008", "91760001", "53655008"]
    assert [code_of_segment("posterolateral", d).code for d in DOMINANCES] == ["17269004", "57823005", "57823005"]
    with pytest.raises(ValueError, match="aorta"):
        code_of_segment("aorta")


def test_a_finding_is_coded_by_what_is_there():
    finding = Finding("mid_lad", stenosis=80, calcification="none", timi=0, stent=True, in_stent_restenosis=0)
    assert [code.code for code in codes_of(finding)] == ["91748002", "386139002", "386138005", "24484000", "371867000"]
    assert [code.code for code in codes_of(Finding("d1", stenosis=0))] == ["91750005"]
    assert [code.code for code in codes_of(Finding("d1", stenosis=95))] == [
        "91750005",
        "386139002",
    ]  # no code: critical
