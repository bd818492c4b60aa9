"""Reports in many wordings: every statement of the findings stands in each, once, and none besides."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.phantom.preset import preset_named
from data_prep.phantom.study import draw_patient
from data_prep.phantom.wording import SHORT_NAMES, draw_style, word_report, write_report
from deepcoro.reports.grammar import Finding, render_report
from deepcoro.reports.vocabulary import SEGMENT_NAMES, SEGMENTS, grade

STANDARD = preset_named("standard")

findings_of_one = st.builds(
    lambda segment, lesion, calcification, timi, medina, thrombus, collaterals: Finding(
        segment,
        calcification=calcification,
        timi=timi,
        medina=medina,
        thrombus=thrombus,
        collaterals=collaterals,
        **lesion,
    ),
    st.sampled_from(SEGMENTS),
    st.one_of(
        st.integers(1, 99).map(lambda p: {"stenosis": p}),
        st.integers(11, 99).map(lambda p: {"stenosis": p, "stent": True, "in_stent_restenosis": p}),
        st.sampled_from(["total", "cto"]).map(lambda kind: {"stenosis": 100, "occlusion": kind}),
        st.just({"stent": True}),
    ),
    st.sampled_from([None, "minimal", "moderate", "severe"]),
    st.sampled_from([None, 0, 1, 2, 3]),
    st.sampled_from([None, "1,1,0", "0,0,1"]),
    st.booleans(),
    st.booleans(),
)


@given(
    st.lists(findings_of_one, unique_by=lambda finding: finding.segment, max_size=6),
    st.integers(0, 10_000),
    st.sampled_from(["right", "left", "balanced"]),
)
@settings(max_examples=150, deadline=None)
def test_every_statement_is_in_the_sentence_of_its_segment(findings, seed, dominance):
    style = draw_style(np.random.default_rng(seed))
    report = word_report(findings, dominance, style)
    sentences = [sentence.strip().lower() for sentence in report.rstrip(".").split(". ")]
    assert sum(dominance in sentence and "domina" in sentence for sentence in sentences) == 1
    names = SEGMENT_NAMES if style.long_names else SHORT_NAMES
    told = {sentence.split(": ")[0]: sentence.split(": ")[1] for sentence in sentences if ": " in sentence}
    for finding in findings:
        said = told.pop(names[finding.segment].lower())
        percents = {int(p) for p in re.findall(r"(\d+)%", said)}
        if finding.occlusion != "none":
            assert "occlu" in said or "cto" in said
            assert ("chronic" in said or "cto" in said) == (finding.occlusion == "cto")
            assert percents <= {100}
        else:
            assert percents == ({finding.stenosis} if finding.stenosis is not None else set())
            words = {word for word in ("mild", "moderate", "severe", "critical") if re.search(rf"\b{word}\b", said)}
            expected = {finding.calcification} | ({grade(finding.stenosis)} if finding.stenosis else set())
            assert words <= expected
        assert bool(re.search(r"\bstent\b", said)) == finding.stent
        assert ("restenosis" in said) == (finding.in_stent_restenosis is not None)
        assert ("calcif" in said) == (finding.calcification is not None)
        if finding.calcification:
            assert finding.calcification in said
        assert ("thrombus" in said) == finding.thrombus
        assert ("collateral" in said) == finding.collaterals
        assert ("timi" in said) == (finding.timi is not None)
        assert finding.timi is None or str(finding.timi) in said.split("timi")[1]
        assert ("medina" in said) == (finding.medina is not None)
        assert finding.medina is None or finding.medina in said
    for said in told.values():  # what is left are vessels without findings
        assert said in ("normal", "no significant disease", "free of disease", "no angiographic stenosis")


def test_one_truth_is_told_in_many_ways_and_a_study_in_one():
    patient = next(p for p in (draw_patient(0, i, STANDARD) for i in range(20)) if len(p.findings) >= 2)
    told = {write_report(replace(patient, index=index), 0, STANDARD) for index in range(60)}
    canonical = render_report(patient.findings, patient.dominance)
    assert len(told) > 20
    assert canonical in told
    assert write_report(patient, 0, STANDARD) == write_report(patient, 0, STANDARD)


@pytest.mark.parametrize("name", ["easy", "plain standard"])
def test_where_wording_does_not_vary_it_is_canonical(name):
    preset = preset_named("easy")
    if name != "easy":
        preset = replace(STANDARD, realism=replace(STANDARD.realism, varied_reports=False))
    for index in range(3):
        patient = draw_patient(1, index, preset)
        assert write_report(patient, 1, preset) == render_report(patient.findings, patient.dominance)
