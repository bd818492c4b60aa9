"""Planted persons are gone from a text, in every form they are written in; medical sentences stay letter for letter."""

from __future__ import annotations

import datetime
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.deidentify import PLACEHOLDERS, deidentify
from tests.reports.test_reading import SENTENCES

FRENCH = ["janvier", "février", "mars", "avril", "mai", "juin", "juillet", "août", "septembre", "octobre"]
FRENCH += ["novembre", "décembre"]
MEDICAL = [
    "Mid LAD 80% stenosis, TIMI 3 flow, iFR 0.89.",
    "70-80% stenosis of D1 and 60 % of OM2, Medina 1,1,1.",
    "Medina 1.1.0 bifurcation; Medina 1-0-1; TIMI 2/3.",
    "A 2.5 x 18 mm stent and a 3.0/15 stent at 12-14 atm and 10-12-14 atm in the RCA.",
    "5F Judkins left 4 and Judkins right catheters, Amplatz, Ramus normal.",
    "LVEF 55%, LVEDP 12 mmHg, aortic pressure 120/80 mmHg, 5000 IU of heparin, 120 ml of contrast.",
    "Right dominant. Left main: normal. Proximal LAD: 80% stenosis (severe), in-stent restenosis 5%, TIMI 2 flow.",
    "Sténose serrée de 80 % de l’IVA moyenne, flux TIMI 3, sans thrombus.",
    "Occlusion chronique de la coronaire droite avec collatérales gauche-droite (Rentrop 2).",
    "A 67 year old man with NSTEMI; GRACE 140; the lesion may cause 3 mm of ST depression.",
    "Patient: right dominant circulation, 3-vessel disease.",
    "PATIENT: NORMAL LEFT MAIN",
    "Moderate MR, LVEF 55%. Mild MR. Aortic valve normal. MODERATE MR LVEF 40%; severe mr noted.",
    "Pr. LAD 80%, M. LAD 50%, MS Severe.",
    "OCT 5 runs, OCT showed a MLA of 3.2 mm2; segment 3 may be treated.",
    "Sténose du 1/3 moyen de l'IVA et du 2/3 distal, le 1/3 proximal est sain.",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Made of rare letters, so that no name is a word of a report.
surnames = st.tuples(
    st.sampled_from(["quz", "xev", "zwo", "kjö", "bélq"]), st.text(LETTERS, min_size=3, max_size=8)
).map(lambda parts: "".join(parts).capitalize())
dates = st.dates(datetime.date(1900, 1, 1), datetime.date(2099, 12, 31))
DATE_FORMS = [
    lambda d: d.isoformat(),
    lambda d: f"{d:%Y%m%d}",
    lambda d: f"{d:%Y/%m/%d}",
    lambda d: f"{d:%d/%m/%Y}",
    lambda d: f"{d:%d.%m.%Y}",
    lambda d: f"{d:%m-%d-%Y}",
    lambda d: f"{d:%d-%b-%Y}",
    lambda d: f"{d:%B} {d.day}, {d.year}",
    lambda d: f"{d:%b} {d.day}, {d.year}",
    lambda d: f"{d.day} {d:%B} {d.year}",
    lambda d: f"{d.day}th of {d:%B} {d.year}",
    lambda d: f"{d.day} {FRENCH[d.month - 1]} {d.year}",
    lambda d: f"1er {FRENCH[d.month - 1].upper()} {d.year}",
    lambda d: f"{FRENCH[d.month - 1]} {d.year}",
    lambda d: f"{d.isoformat()}T12:30:00",
]


@pytest.mark.parametrize("text", MEDICAL)
def test_medical_sentences_stay(text):
    known = {"name": ["Quzworth^Zenobia"], "date": ["19390217"], "id": ["MRN-7391846"]}
    for given_values in (None, known):
        assert deidentify(text, given_values) == (text, {})


@pytest.mark.parametrize("text", [text for text, _ in SENTENCES])
def test_sentences_that_the_reader_knows_stay(text):
    assert deidentify(unicodedata.normalize("NFC", text)) == (text, {})


@given(
    st.sampled_from(MEDICAL), st.sampled_from(DATE_FORMS), dates, st.sampled_from(["On {},", "le {}:", "({})", "{} -"])
)
def test_dates_are_gone_in_every_form(sentence, form, date, around):
    written = form(date)
    text, counts = deidentify(f"{around.format(written)} {sentence}")
    assert text == f"{around.format('[DATE]')} {sentence}"
    assert counts == {"date": 1}


@given(surnames, surnames, st.sampled_from(MEDICAL), st.sampled_from([
    "{first} {last}", "{last}, {first}", "{last}^{first}", "{LAST} {first}", "{last}", "{LAST}'S", "{bare}",
    "mr {last}",
]))  # fmt: skip
def test_known_names_are_gone_in_every_form(first, last, sentence, form):
    bare = "".join(c for c in unicodedata.normalize("NFKD", last) if not unicodedata.combining(c))
    written = form.format(first=first, last=last, LAST=last.upper(), bare=bare)
    for shape in ("NFC", "NFD"):
        text = unicodedata.normalize(shape, f"Seen: {written} today. {sentence}")
        cleaned, counts = deidentify(text, {"name": [f"{last}^{first}"]})
        assert counts["name"] >= 1
        for name in (first, last, bare):
            assert name.lower() not in cleaned.lower()
        assert cleaned.endswith(unicodedata.normalize("NFC", sentence))


@given(surnames, surnames, st.sampled_from(MEDICAL[:6]), st.sampled_from([
    "Dr {last}", "Dr. {first} {last}", "Dre {last}-{first}", "Mme {last}", "M. {last}", "Mrs {first} {last}",
    "DR {LAST}",
    "Patient {first} {last}", "Dr.{last}", "J. {last}, M.D.", "Seen by {first} {last}",
    "MR {LAST}", "Mr {lower}", "Pr {last}", "dr {lower}",
    "Dr J.-P. de la {last}", "Docteur {last}", "Cardiologist: {last}, {first}", "Patient: {first} {last}",
    "Signed by {first} {last}", "Dicté par {first} {last}", "{first} {last}, MD", "Referred by: Dr. {first} {last}",
]))  # fmt: skip
def test_titled_names_are_gone_though_no_table_has_them(first, last, sentence, form):
    written = form.format(first=first, last=last, LAST=last.upper(), lower=last.lower())
    text, counts = deidentify(f"{written}.\n{sentence}")
    assert text.endswith(f".\n{sentence}") and counts == {"name": 1}
    for name in (first, last):
        assert name.lower() not in text.lower()


@given(st.integers(1_000_000, 99_999_999), st.sampled_from(MEDICAL), st.sampled_from([
    "MRN {n}", "MRN: {n}", "dossier no {n}", "D{n}", "#{n}", "ID: A-{n}", "1.2.826.0.1.{n}.7", "accession ACC-{n}",
    "{n}",
]))  # fmt: skip
@example(20210309, MEDICAL[0], "MRN {n}")
def test_numbers_of_records_are_gone(number, sentence, form):
    text, counts = deidentify(f"{form.format(n=number)}. {sentence}")
    assert str(number) not in text and text.endswith(sentence)
    assert set(counts) <= {"id", "date", "phone"} and sum(counts.values()) >= 1


@pytest.mark.parametrize("written", ["MRN-7391846", "mrn 7391846", "MRN7391846", "7391846", "P.4711/b", "p4711b"])
def test_known_ids_are_gone_in_every_form(written):
    text, counts = deidentify(f"About {written}: mid LAD 80%.", {"id": ["MRN-7391846", "P-4711-B"]})
    assert (text, counts) == ("About [ID]: mid LAD 80%.", {"id": 1})


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("514-555-0134", "phone"),
        ("(514) 555 0134", "phone"),
        ("+1 514 555 0134", "phone"),
        ("514.555.0134 poste 22", "phone"),
        ("01 42 34 56 78", "phone"),
        ("+33 1 42 34 56 78", "phone"),
        ("a.b-c@hospital.example.org", "email"),
        ("123-45-6789", "id"),
        ("TREM 1234 5678", "id"),
        ("NAS 123 456 789", "id"),
    ],
)
def test_other_traces_are_gone(written, kind):
    text, counts = deidentify(f"Reach {written}. TIMI 3.")
    assert text.endswith("TIMI 3.") and counts == {kind: 1} and PLACEHOLDERS[kind] in text
    assert not re.search(r"555|42|hospital|6789|5678|456", text)


def test_known_birth_dates_are_gone_without_separators():
    for written in ("17021939", "17 02 1939", "1939 02 17", "02/17/1939"):
        text, _ = deidentify(f"born {written} LAD", {"date": ["1939-02-17"]})
        assert text == "born [DATE] LAD", written


def test_a_surname_that_is_a_word_of_findings_costs_no_finding():
    text, counts = deidentify(
        "Left main normal. Mr Main, Dr Long: Main Zenobia seen. MAIN, Zenobia.", {"name": ["Main^Zenobia"]}
    )
    assert text == "Left main normal. Mr [NAME], Dr [NAME]: [NAME] seen. [NAME]."
    assert counts == {"name": 4}


def test_a_short_surname_goes_only_where_it_is_written_as_a_name():
    text, _ = deidentify("Do was seen; we do not do more. NG tube, ng.", {"name": ["Do, Kim"]})
    assert text == "[NAME] was seen; we do not do more. NG tube, ng."


@given(st.text(max_size=80), st.text(max_size=12), st.text(max_size=12))
@example("Dr A." * 2000 + "A." * 2000 + "Aa-" * 2000 + "de " * 2000, "Aa", "1")  # a nested pattern would never end
def test_no_text_makes_it_fail(text, name, number):
    cleaned, counts = deidentify(text, {"name": [name], "id": [number], "date": [number]})
    assert sum(cleaned.count(placeholder) for placeholder in PLACEHOLDERS.values()) >= (1 if counts else 0)


@given(st.lists(st.sampled_from(MEDICAL), max_size=4).map(" ".join), dates, surnames)
def test_a_cleaned_text_has_nothing_left_to_clean(sentences, date, name):
    known = {"name": [name], "date": [date.isoformat()]}
    once, _ = deidentify(f"{sentences} Dr {name}, {date:%d %B %Y}, MRN 123456, 514-555-0134.", known)
    assert deidentify(once, known) == (once, {})


def test_known_names_are_found_however_their_accents_are_encoded():
    name = unicodedata.normalize("NFD", "Côté^Hélène")
    text, counts = deidentify("Coronarographie de Côté, Hélène: TC normal.", {"name": [name]})
    assert "Côté" not in text and "Hélène" not in text and counts["name"]


@pytest.mark.parametrize("date", ["09MAR2021", "9Mar21", "09 mars2021", "2021MAR09", "2021-Mar-09", "9-févr.-2021"])
def test_dates_with_the_name_of_a_month_need_no_blanks(date):
    assert deidentify(f"Angiogram of {date}: mid LAD 80%.")[0] == "Angiogram of [DATE]: mid LAD 80%."


@pytest.mark.parametrize("text", ["Segment 3 may be 20 mm long.", "OCT 20 mm runs.", "Stent of 3 x 18 mm at 12 atm."])
def test_figures_around_the_name_of_a_month_are_no_date(text):
    assert deidentify(text)[0] == text
