"""The file of synonyms: every shipped phrase means what its place says, and a wrong file is explained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deepcoro.errors import DataError
from deepcoro.reports.grammar import Finding
from deepcoro.reports.reading import read_report
from deepcoro.reports.synonyms import SECTIONS, VESSEL_SEGMENTS, load_synonyms
from deepcoro.reports.vocabulary import SEGMENTS, VESSELS

SHIPPED = yaml.safe_load((Path(__file__).parents[2] / "deepcoro" / "reports" / "synonyms.yaml").read_text())


def test_every_section_is_filled_and_nothing_is_assumed():
    assert set(SHIPPED) == set(SECTIONS) | {"assume"}
    assert SHIPPED["assume"] == {"segment": {}, "percent": {}}
    assert set(SHIPPED["segments"]) == set(SEGMENTS)


@pytest.mark.parametrize("segment", SEGMENTS)
def test_every_name_of_a_segment_names_it(segment):
    for phrase in SHIPPED["segments"][segment]:
        (finding,) = read_report(f"{phrase.title()}: 60%").findings
        assert (finding.segment, finding.stenosis) == (segment, 60), phrase


@pytest.mark.parametrize(("vessel", "segments"), [
    ("lad", ("prox_lad", "mid_lad", "dist_lad")), ("lcx", ("prox_lcx", "mid_lcx", "dist_lcx")),
    ("rca", ("prox_rca", "mid_rca", "dist_rca")),
])  # fmt: skip
def test_every_name_of_a_vessel_with_every_position(vessel, segments):
    for phrase in SHIPPED["vessels"][vessel]:
        for segment in segments:
            for position in SHIPPED["positions"][segment.split("_")[0]]:
                (finding,) = read_report(f"{phrase} {position} 60%").findings
                assert finding.segment == segment, (phrase, position)


def test_vessels_hold_the_segments_of_the_vocabulary():
    for vessel in ("LAD", "LCX"):
        assert set(VESSEL_SEGMENTS[vessel.lower()]) == set(VESSELS["left"][vessel])
    assert set(VESSEL_SEGMENTS["left"]) | set(VESSEL_SEGMENTS["right"]) == set(VESSEL_SEGMENTS["all"]) == set(SEGMENTS)


def test_a_users_phrases_are_added(tmp_path):
    text = "The beast of the front, proximal: 60%, whatever."
    assert read_report(text).findings == ()
    path = tmp_path / "mine.yaml"
    path.write_text("vessels:\n  lad: [Beast of the  Front]\nignore: [whatever]\n")
    (finding,) = read_report(text, load_synonyms(path)).findings
    assert (finding.segment, finding.stenosis) == ("prox_lad", 60)
    assert read_report("Mid LAD 60%", load_synonyms(path)).findings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vessel: {lad: [x]}", r"section: 'vessel' is not known; did you mean 'vessels'\?"),
        ("vessels: {ladd: [x]}", r"vessels: 'ladd' is not known; did you mean 'lad'\?"),
        ("vessels: [x]", r"vessels must map lad"),
        ("thrombus: clot", r"thrombus must be a list of phrases"),
        ("negation: [no]", r"negation: False is no text; put the word in quotes"),
        ("thrombus: ['']", r"a phrase is empty"),
        ("thrombus: [stent]", r"'stent' stands under thrombus and means stent already"),
        ("percents: {some: [x]}", r"'some' must be a whole percent"),
        ("percents: {101: [x]}", r"101 must be a whole percent"),
        ("assume: {segment: {rca: mid_lad}}", r"assume.segment.rca: 'mid_lad' must be one of"),
        ("assume: {segment: {aorta: d1}}", r"'aorta' is not known"),
        ("assume: {percent: {severe: 100}}", r"assume.percent.severe: 100"),
        ("assume: {grade: {}}", r"assume: 'grade' is not known"),
        ("[1, 2]", r"must map sections to phrases"),
        ("a: [", r"is no YAML"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_synonyms(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_explained(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("ignore: [légère]".encode("latin-1"))
    for name in ("none.yaml", "latin.yaml"):
        with pytest.raises(DataError, match=f"{name}: the synonyms cannot be read"):
            load_synonyms(tmp_path / name)


def phrases(section, key=None):
    return st.sampled_from(SHIPPED[section] if key is None else SHIPPED[section][key])


@st.composite
def told_finding(draw):
    """A finding, and a sentence that says it in any of the shipped phrases, in any order."""
    segment = draw(st.sampled_from(SEGMENTS))
    places = list(SHIPPED["segments"][segment])
    position, _, vessel = segment.partition("_")
    if position in SHIPPED["positions"]:
        named = [SHIPPED["vessels"][vessel], SHIPPED["positions"][position]]
        places += [f"{draw(st.sampled_from(named[0]))} {draw(st.sampled_from(named[1]))}"]
    values, said = {"segment": segment}, []
    kind = draw(st.sampled_from(["percent", "total", "cto", "nothing"]))
    if kind == "percent":
        percent = values["stenosis"] = draw(st.integers(0, 99))
        written = draw(st.sampled_from([f"{percent}%", f"{percent} % {draw(phrases('stenosis'))}"]))
        said.append(written)
    elif kind != "nothing":
        values |= {"stenosis": 100, "occlusion": kind}
        said.append(draw(phrases("occlusion", kind)))
    for name in ("thrombus", "stent", "pci", "collaterals"):
        if draw(st.booleans()):
            values[name] = True
            said.append(draw(phrases(name)))
    if draw(st.booleans()):
        amount = values["calcification"] = draw(st.sampled_from(["minimal", "moderate", "severe"]))
        said.append(draw(phrases("calcification", amount)))
    if draw(st.booleans()) or not said:
        values["timi"] = draw(st.integers(0, 3))
        said.append(f"{draw(st.sampled_from(['TIMI', 'flux TIMI', 'TIMI flow grade']))} {values['timi']}")
    joint = draw(st.sampled_from([", ", " with ", " and ", " avec "]))
    return Finding(**values), f"{draw(st.sampled_from(places))}: {joint.join(draw(st.permutations(said)))}."


@given(told_finding())
def test_every_phrase_says_what_its_place_in_the_file_means(told):
    finding, text = told
    read = read_report(text.capitalize())
    assert (read.findings, read.unread, read.incomplete) == ((finding,), (), ()), text
